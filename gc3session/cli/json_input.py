"""JSON as the commands read it: nothing that it says is dropped in silence."""

from __future__ import annotations

import json
import sys
from typing import Any


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text in UTF-8; NaN and Infinity are floats in it.

    Raise ValueError, saying what and where, if it is none, or an object has a key twice.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte, place = data[error.start], error.start + 1
        raise ValueError(f"it is not UTF-8: byte 0x{byte:02x} at position {place}") from None
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.rstrip() else ""
        what = error.msg.removesuffix(" at")
        raise ValueError(f"it is not JSON: {what} at {line}column {error.colno}") from None
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        limit = sys.get_int_max_str_digits()
        raise ValueError(f"it has an integer of more than {limit} digits") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {twice!r} twice in one object")
    return found


_decode = json.JSONDecoder(object_pairs_hook=_object).decode
