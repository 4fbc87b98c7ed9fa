"""What has been changed in the objects of a store and not been saved yet.

An assignment is noted by the object's class (records/tracking.py).  A change inside a value, as of
`task.extra['x'] = 1`, is seen by a *look*: the object is packed again, and the checksum of that
compared with the one in its stamp.  So that there is something to look at, objects that loops and
loads have given are held until they have been looked at: those of a loop as it goes on, those of
the last loads for a while.

Objects with noted changes are held, too.  Past some number the oldest are kept as the records that
would be written, which take a tenth of the memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from sys import getrefcount
from typing import Final, NamedTuple
from zlib import crc32

from ..errors import CorruptRecord, Error, UnstorableValue
from ..format.frame import RECORD_KEY, head, header_of, unseal
from ..records.codec import Layout, layout_of
from ..records.values import REFERENCE, UNPACKABLE, Decoder, Encoder, Opaque
from ..tasks import Persistable, Stamp, get_stamp, set_stamp, stamp_of

HELD: Final = 1024
"""Objects that are held because they were loaded, and as many because they were changed."""


_TOGETHER: Final = 64
"""Objects that are looked at together, if they were loaded one by one."""


_ALONE: Final = next(getrefcount(obj) for obj in [object()])
"""References to an object that nobody has but a list, and the loop over it that counts them."""


class ChangedRecord(NamedTuple):
    """The record that an object would be saved as which has been changed and let go.

    Attributes:
        record: its bytes, of the next revision.
        state: in it.
        revision: that the object had been read from or written to.
        former_state: in the record of that revision.
    """

    record: bytes
    state: str
    revision: int
    former_state: str


class NewReference(Exception):
    """Raised where an object that is looked at refers to one that the store doesn't have yet."""


def _checksum(stamp: Stamp, packed: bytes) -> int:
    """Return the checksum that the record of an object's stamp would have with these values."""
    start = crc32(head(stamp.schema.number, stamp.revision, stamp.home), stamp.number & 0xFFFFFFFF)
    return crc32(packed, start)


def refuse(obj: Persistable) -> int:
    """Raise NewReference: the references of an encoder that packs none."""
    raise NewReference


class Changes:
    """The unsaved changes of one store.

    Args:
        keep: objects -> the records to keep in their place, by N, of those of which that can be done now.
        is_own: stamp -> whether it is one of this store.
        stored: N -> its committed record, or None.

    Attributes:
        objects: those that were changed, by their id(): after `invalidate_cache` two may have one N.
        records: N -> the record of one that was changed and let go.
        limit: how many objects there may be before the oldest are kept as records.
        encoder: packs objects without giving an N to what they refer to: it raises NewReference.
    """

    def __init__(
        self,
        keep: Callable[[list[Persistable]], dict[int, ChangedRecord]],
        is_own: Callable[[Stamp], bool],
        stored: Callable[[int], bytes | None],
    ) -> None:
        self.objects: dict[int, Persistable] = {}
        self.records: dict[int, ChangedRecord] = {}
        self.limit = HELD
        self._keep = keep
        self._is_own = is_own
        self._stored = stored
        self._decoder = Decoder(lambda number: Opaque(REFERENCE, RECORD_KEY.pack(number)))
        self.encoder = Encoder(self._refer)
        self._recent: deque[list[Persistable]] = deque()
        self._held = 0  # objects in _recent

    def __len__(self) -> int:
        return len(self.objects) + len(self.records)

    def numbers(self) -> set[int]:
        """Return the Ns of what has been changed."""
        return {get_stamp(obj).number for obj in [*self.objects.values()]} | {*self.records}

    def clear(self) -> None:
        """Forget all of it."""
        self.objects.clear()
        self.records.clear()
        self._recent.clear()
        self._held = 0

    # -- looking

    def _refer(self, obj: Persistable) -> int:
        stamp = stamp_of(obj)
        if stamp is None or not self._is_own(stamp):
            raise NewReference
        return stamp.number

    def checksum(self, obj: Persistable, layout: Layout, stamp: Stamp) -> int:
        """Return the checksum of what an object packs to: that of its record, if the record has the class's fields."""
        values = layout.values(obj)
        try:
            packed = self.encoder.quick_pack(values)
        except UnicodeEncodeError:  # a lone surrogate
            packed = self.encoder.pack(values, lambda: ())
        return _checksum(stamp, packed)

    def _is_noted(self, obj: Persistable, stamp: Stamp) -> bool:
        return id(obj) in self.objects or stamp.number in self.records

    def is_changed(self, obj: Persistable, stamp: Stamp) -> bool:
        """Look whether an object differs from what was last loaded or saved of it."""
        if self._is_noted(obj, stamp):
            return True
        try:
            found = self.checksum(obj, layout_of(type(obj)), stamp)
        except (NewReference, AttributeError, UnstorableValue, *UNPACKABLE):
            self.encoder = Encoder(self._refer)  # what a failure has left in it
            # What is wrong with it is said when it is saved.
            return stamp.checksum >= 0 or stamp.checksum != self._checksum_with_new(obj)
        return found != stamp.checksum and found != self._packed_again(stamp)

    def _packed_again(self, stamp: Stamp) -> int | None:
        """Return the checksum of what the stored record packs to, which another version may have packed otherwise."""
        record = self._stored(stamp.number)
        try:
            if record is None or header_of(record).revision != stamp.revision:
                return None
            values = self._decoder.unpack(unseal(stamp.number, record))[3]
        except CorruptRecord:
            return None
        return _checksum(stamp, self.encoder.pack(values, lambda: ()))

    def look_at(self, objs: Iterable[Persistable]) -> None:
        """Look at objects which are about to be let go, and hold those that have changed."""
        cls: type[Persistable] | None = None
        own_store: object = None  # this one, as stamps have it
        objects, records = self.objects, self.records
        for obj in objs:
            try:  # the short way, for very many that haven't changed
                if id(obj) in objects:
                    continue
                store, number, revision, _, schema, home, checksum, _ = get_stamp(obj)
                if type(obj) is not cls:
                    cls = type(obj)
                    values, pack = layout_of(cls).values, self.encoder.packer.pack
                if (
                    store is own_store
                    and number not in records
                    and crc32(head(schema.number, revision, home) + pack(values(obj)), number) == checksum
                ):
                    continue
            except (NewReference, AttributeError, Error, *UNPACKABLE):
                self.encoder, cls = Encoder(self._refer), None
            own = stamp_of(obj)
            if own is not None and self._is_own(own):
                own_store = own.store
                if self.is_changed(obj, own):
                    self.note(obj, own.number)

    def forget(self, obj: Persistable, stamp: Stamp) -> None:
        """Take an object as it is for what is stored."""
        self.objects.pop(id(obj), None)
        try:
            checksum = self.checksum(obj, layout_of(type(obj)), stamp)
        except (NewReference, AttributeError, Error, *UNPACKABLE):
            self.encoder = Encoder(self._refer)
            checksum = self._checksum_with_new(obj)
        set_stamp(obj, stamp._replace(checksum=checksum))

    def _checksum_with_new(self, obj: Persistable) -> int:
        """Return a negative checksum of an object that refers to some which the store doesn't have: theirs is part of it.

        Such are made by an `upgrade_record`, or as the default of a new field.  0 if it can't be packed.
        """
        seen: set[int] = set()

        def refer(other: Persistable) -> int:
            stamp = stamp_of(other)
            if stamp is not None and self._is_own(stamp):
                return stamp.number
            if id(other) in seen:
                return 0
            seen.add(id(other))
            return checksum(other)

        def checksum(one: Persistable) -> int:
            return crc32(Encoder(refer).pack(layout_of(type(one)).values(one), lambda: ()))

        try:
            return -1 - checksum(obj)
        except (AttributeError, Error, *UNPACKABLE):
            return 0

    def look_at_recent(self) -> None:
        """Look at the objects that were loaded last.

        Some may no longer be among the living ones: those that a collected cycle had, until its loop gave them here.
        """
        for objs in self._recent:
            self.look_at(objs)

    # -- holding

    def note(self, obj: Persistable, number: int) -> None:
        """Hold an object that has been changed."""
        self.records.pop(number, None)
        self.objects[id(obj)] = obj

    def let_go(self) -> None:
        """Keep the oldest half of the changed objects as records, if there are many."""
        if len(self.objects) <= self.limit:
            return
        self._keep_records([*self.objects.values()][: len(self.objects) // 2])
        # Some can't be kept, such as those of the batch: they aren't all tried again at once.
        self.limit = max(HELD, 2 * len(self.objects))

    def _keep_records(self, objs: list[Persistable]) -> None:
        """Keep the records of objects that have been changed in their place, if that can be done now."""
        kept = self._keep(objs)
        self.records.update(kept)
        for obj in objs:
            if get_stamp(obj).number in kept:
                del self.objects[id(obj)]

    def remember(self, objs: list[Persistable]) -> None:
        """Look at objects that have been loaded, and are let go now; hold the others, and look at those of long ago."""
        alone: list[Persistable] = []
        held: list[Persistable] = []
        for obj in objs:
            (alone if getrefcount(obj) == _ALONE + (id(obj) in self.objects) else held).append(obj)
        self.look_at(alone)
        changed = [obj for obj in alone if id(obj) in self.objects]
        if changed:
            self._keep_records(changed)
        if held:
            self.hold(held)

    def hold(self, objs: list[Persistable]) -> None:
        """Hold objects that have been loaded, and look at those that were loaded long ago."""
        recent = self._recent
        if recent and len(recent[-1]) + len(objs) <= _TOGETHER:
            recent[-1] += objs
        else:
            recent.append(objs)
        self._held += len(objs)
        while self._held - len(recent[0]) >= HELD:
            oldest = recent.popleft()
            self._held -= len(oldest)
            self.look_at(oldest)
            self.let_go()
