"""The Ns of references are changed where they stand in a record's bytes, and nothing else is."""

from __future__ import annotations

from typing import Any

import attrs
import msgpack
from hypothesis import example, given
from hypothesis import strategies as st

from examples import Note
from gc3session import Opaque
from gc3session.records.references import with_references
from gc3session.records.values import Encoder
from test_values import values

MARK = b"\xd7\x10"  # what stands before the N of a reference


def packed(value: Any, notes: dict[int, int]) -> bytes:
    """Return the bytes of a value in which each Note is a reference, to the N that *notes* has for its text."""
    return Encoder(lambda note: notes[int(note.text)]).pack([value], lambda: [("value", value)])


noted = st.recursive(
    st.one_of(values, st.integers(0, 9).map(lambda n: Note(str(n)))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.builds(Note, st.just("5"), inner),
    ),
    max_leaves=12,
)


@given(value=noted)
@example(value=[Note("1"), (Note("2"), {"k": (Note("3"),)}), {(1, (2,)): [Note("4")]}])
@example(value=[MARK + bytes(8), (MARK + b"\0" * 8).decode("latin-1"), 0xD710 << 32, Note("1")])
@example(value=[Opaque(1, MARK + bytes(4)), Opaque(1, b"\xc1"), Opaque(60, MARK + bytes(8)), Note("1")])
def test_every_reference_is_changed_and_nothing_else(value: Any) -> None:
    before = {n: 0xD710_D710_0000 + n for n in range(10)}
    after = {n: number + 7 for n, number in before.items()}
    moved = with_references(packed(value, before), lambda number: number + 7)
    assert moved == packed(value, after)
    assert with_references(moved, lambda number: number) == moved


@given(data=st.binary(max_size=60))
@example(data=MARK)
@example(data=b"\x91" + MARK + bytes(7))
@example(data=b"\xc7\xff\x01" + MARK + bytes(8))
def test_bytes_that_are_no_values_keep_their_length(data: bytes) -> None:
    assert len(with_references(data, lambda number: 0)) == len(data)
    assert len(with_references(data + MARK + bytes(8), lambda number: 1)) == len(data) + 10


def test_references_nested_deep_are_changed() -> None:
    inner = msgpack.packb(msgpack.ExtType(16, bytes(8)))
    for _ in range(3000):
        inner = msgpack.packb(msgpack.ExtType(1, inner))
    assert with_references(inner, lambda number: 5).endswith(MARK + bytes(7) + b"\5")


def test_attrs_objects_and_sets_may_hold_references() -> None:
    @attrs.frozen
    class Pair:
        left: Any
        right: Any

    value = [Pair(Note("1"), frozenset({("a", "b")})), {Pair(1, 2)}]
    numbers = {1: 300}
    assert with_references(packed(value, numbers), lambda number: 40) == packed(value, {1: 40})
