"""IDs, `ClassName.N`: many of them in little memory, and what they consist of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from ..errors import InvalidArgument
from ..tasks import get_stamp


class IDs(Sequence[str]):
    """A sequence of IDs; however many consecutive ones take no more memory than one of them."""

    def __init__(self) -> None:
        self._runs: list[tuple[str, int, int]] = []  # name, first N, N after the last
        self._length = 0

    def append(self, name: str, first: int, end: int) -> None:
        """Add the IDs of that *name* from N *first* to the one before *end*."""
        if self._runs and self._runs[-1][0] == name and self._runs[-1][2] == first:
            self._runs[-1] = (name, self._runs[-1][1], end)
        else:
            self._runs.append((name, first, end))
        self._length += end - first

    def extend(self, objs: Sequence[Any]) -> None:
        """Add the IDs of objects that have been stored."""
        if objs:
            first, last = objs[0], objs[-1]
            same = all(type(obj) is type(first) for obj in objs)
            if same and get_stamp(last).number - get_stamp(first).number == len(objs) - 1:
                self.append(get_stamp(first).schema.name, get_stamp(first).number, get_stamp(last).number + 1)
            else:
                for obj in objs:
                    self.append(get_stamp(obj).schema.name, get_stamp(obj).number, get_stamp(obj).number + 1)

    def numbers(self) -> Iterator[int]:
        """Give the Ns."""
        for _, first, end in self._runs:
            yield from range(first, end)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        for name, first, end in self._runs:
            for number in range(first, end):
                yield f"{name}.{number}"

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(self._length))]
        left = place + self._length if place < 0 else place
        for name, first, end in self._runs:
            if 0 <= left < end - first:
                return f"{name}.{first + left}"
            left -= end - first
        raise IndexError(f"there are {self._length} IDs, none at {place}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (IDs, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, islice(self, 3)))
        return f"<{self._length} IDs: {shown}{', ...' if self._length > 3 else ''}>"


def all_ids(ids: Iterable[str]) -> list[str]:
    """Return some IDs as a list.  Raise InvalidArgument for a lone ID: as a str it is iterable, too."""
    if isinstance(ids, str):
        raise InvalidArgument(f"a collection of IDs is needed, not the str {ids!r}; write [{ids!r}]")
    return list(ids)


def parse_id(id_: object) -> tuple[str, int] | None:
    """Return the class name and the N of an ID, or None if *id_* isn't one."""
    if not isinstance(id_, str):
        return None
    name, dot, digits = id_.rpartition(".")
    if not (dot and name and digits.isascii() and digits.isdigit() and digits[0] != "0" and len(digits) < 20):
        return None
    number = int(digits)
    return (name, number) if number < 1 << 63 else None
