"""Records as lines of JSON: those of a dump, see dump.py."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from ..format.schema import Schema
from ..records.json_values import FieldsEncoder, NotJSON


class RecordLines:
    """Writes the lines of records."""

    def __init__(self) -> None:
        self._encoder = FieldsEncoder()
        self._starts: dict[int, tuple[str, str]] = {}  # schema number -> what stands around the N

    def of(self, schema: Schema, number: int, order: int, record: bytes) -> str:
        """Return the line of a sound record, with its order in the session (0 if it isn't in it)."""
        start = self._starts.get(schema.number)
        if start is None:
            start = f'{{"id":{json.dumps(schema.name)[:-1]}.', f'","schema":{schema.number},"revision":'
            self._starts[schema.number] = start
        try:
            revision, text = self._encoder.encode(schema.fields, record[4:])
        except NotJSON:
            return self.raw(f"{schema.name}.{number}", order, None, record)
        return f'{start[0]}{number}{start[1]}{revision},"order":{order or "null"},"fields":{text}}}\n'

    def raw(self, id_: str, order: int, state: str | None, record: bytes) -> str:
        """Return the line of a record that has no fields in JSON; *state* is None if it can be read."""
        line: dict[str, Any] = {"id": id_, "order": order or None}
        if state is not None:
            line["state"] = state
        return json_line({**line, "record": b64encode(record).decode()})


def json_line(value: dict[str, Any]) -> str:
    """Return the line of any object of a dump."""
    return json.dumps(value, separators=(",", ":")) + "\n"
