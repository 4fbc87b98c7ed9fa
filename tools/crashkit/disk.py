"""What a disk may hold after a power cut, worked out from the calls that were recorded.

Of a file each unit (a sector of 512 bytes) that was written since it was last flushed holds any of the
contents that it has had since, whatever the other units hold; the length and the time of change are any that
the file has had since. Of a directory each change of a name since it was last flushed has been
made or not, whatever became of the other changes; a rename has been made whole or not at all.

Flushing a file says nothing of its name, flushing a directory nothing of what is in its files.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from recorder import Entry

SECTOR = 512
"""Bytes that a disk writes whole or not at all."""

_PAGE = 4096
_FREE_CHOICES = 5
"""Up to so many free choices are tried in all combinations."""

_SAMPLE = 400
"""Choices that are tried one by one at most; of more, a sample is."""


@attrs.frozen
class Name:
    """A file or directory in a state.

    Attributes:
        path: relative to the root; a directory comes before what is in it.
        data: of a file; None for a directory.
        mtime: in ns, of a file whose time was set on purpose; else 0.
        inode: of a file, where it was recorded; else 0.
    """

    path: str
    data: bytes | None
    mtime: int
    inode: int


@attrs.frozen
class State:
    """Everything that the disk holds."""

    names: tuple[Name, ...]

    def digest(self) -> bytes:
        """Return a hash of all of it."""
        hash_ = hashlib.blake2b(digest_size=16)
        for name in self.names:
            size = -1 if name.data is None else len(name.data)
            line = f"{name.path}\0{size}\0{name.mtime}\0{name.inode}\0"
            hash_.update(line.encode(errors="surrogateescape"))
            hash_.update(name.data or b"")
        return hash_.digest()

    @property
    def inodes(self) -> dict[str, int]:
        """The inode of each file, by its path."""
        return {name.path: name.inode for name in self.names if name.inode}

    def build(self, root: Path) -> None:
        """Write all of it into *root*, an empty directory."""
        for name in self.names:
            path = os.path.join(root, name.path)
            if name.data is None:
                os.mkdir(path)
            else:
                with open(path, "wb") as file:
                    file.write(name.data)
                if name.mtime:
                    os.utime(path, ns=(name.mtime, name.mtime))


class File:
    """What is known of a file's contents: on disk, and since."""

    def __init__(self, inode: int, unit: int) -> None:
        self.inode = inode
        self.unit = unit
        self.disk = bytearray()
        self.live = bytearray()
        self.versions: dict[int, list[bytes]] = {}  # of the units that were written since they were flushed
        self.lengths = [0]
        self.mtimes = [0]  # 0: it was never set

    def write(self, offset: int, data: bytes) -> None:
        """Note a write."""
        end = offset + len(data)
        if len(self.live) < end:
            self.resize(end)
        self.live[offset:end] = data
        for i in range(offset // self.unit, (end + self.unit - 1) // self.unit):
            part = slice(i * self.unit, (i + 1) * self.unit)
            had = self.versions.setdefault(i, [bytes(self.disk[part])])
            if had[-1] != self.live[part]:
                had.append(bytes(self.live[part]))

    def resize(self, length: int) -> None:
        """Note another length."""
        if length < len(self.live):
            del self.live[length:]
            self.versions = {i: had for i, had in self.versions.items() if i * self.unit < length}
        else:
            self.live.extend(bytes(length - len(self.live)))
        self.lengths.append(length)

    def touch(self, mtime: int) -> None:
        """Note another time of change."""
        if mtime != self.mtimes[-1]:
            self.mtimes.append(mtime)

    def flush(self) -> None:
        """Note that all bytes are on disk."""
        self.disk = bytearray(self.live)
        self.versions.clear()
        self.lengths = [len(self.live)]

    def flush_range(self, offset: int, size: int) -> None:
        """Note that some bytes are on disk: the kernel flushes whole pages."""
        begin = offset // _PAGE * _PAGE
        end = min((offset + size + _PAGE - 1) // _PAGE * _PAGE, len(self.live))
        self.disk.extend(bytes(max(0, end - len(self.disk))))
        for i in [i for i in self.versions if begin <= i * self.unit < end]:
            newest = self.versions.pop(i)[-1]
            self.disk[i * self.unit : i * self.unit + len(newest)] = newest
        self.lengths = sorted({max(length, end) for length in self.lengths})

    def contents(self, version: Callable[[int, int], int], length: int) -> bytes:
        """Return bytes that the disk may hold: *version* says which of how many a unit has."""
        data = bytearray(self.disk)
        for i, had in self.versions.items():
            chosen = version(i, len(had))
            if chosen:
                begin = i * self.unit
                data.extend(bytes(max(0, begin - len(data))))
                data[begin : begin + len(had[chosen])] = had[chosen]
        del data[length:]
        data.extend(bytes(length - len(data)))
        return bytes(data)


class Directory:
    """The names in a directory that are on disk."""

    def __init__(self) -> None:
        self.disk: dict[str, Node] = {}


Node = File | Directory


@attrs.frozen(eq=False)
class Change:
    """A change of names that is not on disk for certain: each place gets a node, or None."""

    places: tuple[tuple[Directory, str, Node | None], ...]

    @property
    def flushed_with(self) -> Directory:
        """The directory whose flush brings it to disk: the one that gets the name."""
        return self.places[-1][0]


@attrs.frozen(eq=False)
class _Choices:
    """What one state has: which changes of names, and of each file units, length and time."""

    changed: Callable[[int], bool]
    version: Callable[[File, int, int], int]
    length: Callable[[File], int]
    mtime: Callable[[File], int]


class Disk:
    """What is known of a disk below a directory, whose inode is *root*; files are torn at *unit* bytes."""

    def __init__(self, root: int, unit: int = SECTOR) -> None:
        self._unit = unit
        self._root = Directory()
        self._nodes: dict[int, Node] = {root: self._root}
        self._changes: list[Change] = []

    def follow(self, entry: Entry) -> None:
        """Note a call."""
        node = self._nodes.get(entry.inode)
        if entry.kind in "CM":
            made: Node = File(entry.inode, self._unit) if entry.kind == "C" else Directory()
            self._nodes[entry.inode] = made  # an inode may have been another file's
            self._change((entry.parent, entry.name, made))
        elif entry.kind == "N":
            self._change((entry.target, entry.target_name, node))
        elif entry.kind == "K":
            self._change((entry.parent, entry.name, None))
        elif entry.kind == "R":
            self._change((entry.parent, entry.name, None), (entry.target, entry.target_name, node))
        elif entry.kind == "E":
            other = self._newest(entry.target, entry.target_name)
            self._change((entry.parent, entry.name, other), (entry.target, entry.target_name, node))
        elif isinstance(node, Directory):
            self._flush_names(node)
        elif isinstance(node, File):
            self._follow_file(entry, node)

    def _follow_file(self, entry: Entry, file: File) -> None:
        if entry.kind == "W":
            file.write(entry.offset, entry.data)
        elif entry.kind in "TL":
            file.resize(entry.offset)
        elif entry.kind in "FS":
            file.flush()
        elif entry.kind == "D":
            file.flush_range(entry.offset, int(entry.data))
        if entry.kind == "S":
            del file.mtimes[:-1]
        elif entry.kind == "U" or (entry.kind in "WTL" and file.mtimes[-1]):
            file.touch(entry.mtime)

    def _change(self, *places: tuple[int, str, Node | None]) -> None:
        known = []
        for inode, name, node in places:
            directory = self._nodes[inode]
            if not isinstance(directory, Directory):
                raise TypeError(f"inode {inode} was a file, and is said to be a directory")
            known.append((directory, name, node))
        self._changes.append(Change(tuple(known)))

    def _newest(self, inode: int, name: str) -> Node | None:
        directory = self._nodes[inode]
        for change in reversed(self._changes):
            for place, changed, node in reversed(change.places):
                if (place, changed) == (directory, name):
                    return node
        return directory.disk.get(name) if isinstance(directory, Directory) else None

    def _flush_names(self, directory: Directory) -> None:
        waiting = []
        for change in self._changes:
            if change.flushed_with is directory:
                for place, name, node in change.places:
                    _put(place.disk, name, node)
            else:
                waiting.append(change)
        self._changes = waiting

    # -- states

    def everything(self) -> State:
        """Return what programs see, or find after they were killed: nothing is lost without a power cut."""
        return self._state(
            _Choices(lambda i: True, lambda file, i, n: n - 1, _whole, lambda file: file.mtimes[-1])
        )

    def nothing(self) -> State:
        """Return what the disk holds if nothing has been written that need not be."""
        least = _Choices(
            lambda i: False, lambda file, i, n: 0, lambda file: file.lengths[0], lambda file: file.mtimes[0]
        )
        return self._state(least)

    def states(self, chance: random.Random, count: int) -> Iterator[State]:
        """Give at most *count* states, which may be the same; all, if there are few choices."""
        yield self.nothing()
        yield self.everything()
        names = list(range(len(self._changes)))
        units = [(file, i) for file in self._files() for i in file.versions]
        free: list[object] = [*names, *units]
        if len(free) <= _FREE_CHOICES and all(len(file.versions[i]) == 2 for file, i in units):
            yield from self._combinations(free)
        elif free:
            singles = free if len(free) <= _SAMPLE else chance.sample(free, _SAMPLE)
            for one in chance.sample(singles, min(len(singles), count // 4)):
                yield self._all_but(one)
                yield self._only(one)
        if not free and all(len(file.lengths) == len(file.mtimes) == 1 for file in self._files()):
            return
        for _ in range(count):
            yield self._random(chance)

    def _combinations(self, free: list[object]) -> Iterator[State]:
        for some in itertools.product((False, True), repeat=len(free)):
            chosen = {one for one, taken in zip(free, some, strict=True) if taken}
            yield self._chosen(lambda one, chosen=chosen: one in chosen)  # type: ignore[misc]

    def _all_but(self, one: object) -> State:
        return self._chosen(lambda other: other != one)

    def _only(self, one: object) -> State:
        return self._chosen(lambda other: other == one)

    def _chosen(self, taken: Callable[[object], bool]) -> State:
        def version(file: File, i: int, n: int) -> int:
            return n - 1 if taken((file, i)) else 0

        return self._state(_Choices(taken, version, _whole, lambda file: file.mtimes[-1]))

    def _random(self, chance: random.Random) -> State:
        names, units, lengths = (chance.choice((0, 0.1, 0.5, 0.9, 1)) for _ in range(3))

        def version(file: File, i: int, n: int) -> int:
            return chance.randrange(1, n) if n > 1 and chance.random() < units else 0

        def length(file: File) -> int:
            return len(file.live) if chance.random() < lengths else chance.choice(file.lengths)

        return self._state(
            _Choices(lambda i: chance.random() < names, version, length, lambda file: chance.choice(file.mtimes))
        )

    def _files(self) -> list[File]:
        """Return the files that may have a name in some state."""
        found: dict[int, File] = {}
        seen: set[int] = set()
        waiting: list[Node | None] = [self._root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, File):
                found[id(node)] = node
            elif node is not None and id(node) not in seen:
                seen.add(id(node))
                waiting += node.disk.values()
                waiting += (new for change in self._changes for place, _, new in change.places if place is node)
        return list(found.values())

    def _state(self, choices: _Choices) -> State:
        names: dict[int, dict[str, Node]] = {}  # of the directories whose names aren't those on disk
        for i, change in enumerate(self._changes):
            if choices.changed(i):
                for place, name, node in change.places:
                    _put(names.setdefault(id(place), dict(place.disk)), name, node)
        found: list[Name] = []

        def walk(directory: Directory, path: str) -> None:
            for name, node in sorted(names.get(id(directory), directory.disk).items()):
                if isinstance(node, Directory):
                    found.append(Name(path + name, None, 0, 0))
                    walk(node, f"{path}{name}/")
                else:
                    file = node

                    def version(i: int, n: int, file: File = file) -> int:
                        return choices.version(file, i, n)

                    data = file.contents(version, choices.length(file))
                    found.append(Name(path + name, data, choices.mtime(file), file.inode))

        walk(self._root, "")
        return State(tuple(found))


def _put(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _whole(file: File) -> int:
    return len(file.live)
