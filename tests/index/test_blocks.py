"""The index by blocks: its bytes, and what it says of members that are few, many, far apart or in very many states."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from consistency import number_of
from gc3session import Session, Task
from gc3session.errors import CorruptRecord
from gc3session.index.entries import (
    BLOCK,
    INDEX_KEY,
    LISTED,
    Block,
    Kind,
    bits_of,
    numbers_of,
    pack_members,
    unpack_members,
)
from gc3session.tables.interface import INDEX

ON_EVERY_STORE = True

places = st.sets(st.integers(0, BLOCK - 1), min_size=1, max_size=200) | st.integers(1, BLOCK).map(
    lambda count: set(range(count))
)


@hypothesis.given(places=places, block=st.integers(0, 2**50))
def test_members_come_back_from_their_bytes(places: set[int], block: int) -> None:
    key = INDEX_KEY.pack(1, block, 2, 3)
    bits = bits_of(sorted(places))
    packed = pack_members(key, bits)
    assert len(packed) == 4 + (2 * len(places) if len(places) <= LISTED else BLOCK // 8)
    assert unpack_members(key, packed) == bits
    assert numbers_of(block, bits) == [BLOCK * block + place for place in sorted(places)]


@hypothesis.given(places=places, at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_every_flipped_bit_and_every_other_key_is_found(places: set[int], at: int, bit: int) -> None:
    key = INDEX_KEY.pack(1, 5, 2, 3)
    packed = bytearray(pack_members(key, bits_of(sorted(places))))
    for other in (INDEX_KEY.pack(2, 5, 2, 3), INDEX_KEY.pack(1, 6, 2, 3), INDEX_KEY.pack(1, 5, 2, 4)):
        with pytest.raises(CorruptRecord):
            unpack_members(other, bytes(packed))
    packed[at % len(packed)] ^= 1 << bit
    with pytest.raises(CorruptRecord):
        unpack_members(key, bytes(packed))


@hypothesis.given(
    kinds=st.dictionaries(
        st.builds(Kind, st.integers(1, 3), st.integers(0, 3)), st.sets(st.integers(0, BLOCK - 1)), max_size=5
    ),
    after=st.integers(-1, 3 * BLOCK),
)
def test_entries_of_a_block_are_in_the_order_of_their_numbers(kinds: dict[Kind, set[int]], after: int) -> None:
    taken: dict[int, int] = {}
    for kind, some in kinds.items():
        for place in some:
            taken.setdefault(place, kind.schema)
    by_kind = {kind: bits_of(sorted(p for p in some if taken[p] == kind.schema)) for kind, some in kinds.items()}
    found = Block(1, by_kind).entries(after)
    assert found == sorted(
        {(BLOCK + p, schema) for p, schema in taken.items() if BLOCK + p > after and p in kinds_of(kinds, schema)}
    )


def kinds_of(kinds: dict[Kind, set[int]], schema: int) -> set[int]:
    return {place for kind, some in kinds.items() if kind.schema == schema for place in some}


def spread(session: Session, numbers: list[int]) -> list[str]:
    """Add a task under each of some Ns, which are ascending."""
    sequence = session.store.sequence
    sequence.expect(numbers[-1])
    sequence.next()
    sequence.numbers = iter(numbers)
    ids = [session.add(Task(state=("NEW", "RUNNING")[n % 2]), flush=False) for n in numbers]
    session.flush()
    assert [number_of(id_) for id_ in ids] == numbers
    return ids


SPARSE = [1, 2, 4095, 4096, 8191, 8192, 3 * BLOCK + 7, 100 * BLOCK, 100 * BLOCK + 1, 200 * BLOCK - 1]


@pytest.mark.parametrize("left_out", range(0, len(SPARSE), 3))
def test_members_that_are_far_apart_are_all_found(session: Session, left_out: int) -> None:
    ids = spread(session, SPARSE)
    gone = ids.pop(left_out)
    session.forget(gone, flush=False)
    for _ in range(2):
        assert list(session.ids()) == ids
        assert [task.persistent_id for task in session] == ids
        for state, rest in (("NEW", 0), ("RUNNING", 1)):
            assert list(session.select(state=state).ids()) == [id_ for id_ in ids if number_of(id_) % 2 == rest]
        with session.store.lock, session.store.reading() as reader:
            assert session._index.last(reader) in (number_of(ids[-1]), number_of(gone))
        session.flush()


@pytest.mark.parametrize("flush", [True, False])
def test_very_many_states_are_counted_and_selected(session: Session, flush: bool) -> None:
    tasks = [Task(state=f"state {n}") for n in range(500)]
    ids = session.add_many(tasks)
    for task in tasks[::2]:
        task.state = "NEW"
    session.save_all(flush=flush)
    assert session.stats() == {"NEW": 250, **{f"state {n}": 1 for n in range(1, 500, 2)}}
    assert list(session.select(state="NEW").ids()) == list(ids[::2])
    assert list(session.select(state=["state 7", "state 8", "state 9"]).ids()) == [ids[7], ids[9]]
    session.remove_many(ids[1::2], flush=flush)
    assert session.stats() == {"NEW": 250}


@pytest.mark.parametrize("count", [1, LISTED - 1, LISTED, LISTED + 1, BLOCK - 1, BLOCK, 2 * BLOCK + 1])
def test_entry_grows_and_shrinks_with_its_members(session: Session, count: int) -> None:
    ids = session.add_many(Task() for _ in range(count))
    assert list(session.ids()) == list(ids)
    for some in (ids[: count // 2], ids[count // 2 : -1], ids[-1:]):
        session.remove_many(some)
        assert len(session) == len(list(session.ids()))
    assert len(session) == 0
    with session.store.lock, session.store.reading() as reader:
        assert reader.scan(INDEX, b"") == []
