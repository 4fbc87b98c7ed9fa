"""The names of states, by number: an entry of the index has the number only."""

from __future__ import annotations

import msgpack

from ..errors import CorruptRecord
from ..format.frame import seal, unseal
from ..tables.interface import META, NUMBERING, STATES, Reader, Writer
from .entries import STATE_KEY


def pack_state(number: int, name: str) -> bytes:
    """Return the bytes under which a state's name is stored."""
    return seal(number, msgpack.packb(name, unicode_errors="surrogatepass"))


def unpack_state(number: int, data: bytes) -> str:
    """Return the name of a state.  Raise CorruptRecord if *data* isn't one."""
    try:
        name = msgpack.unpackb(unseal(number, data), unicode_errors="surrogatepass")
    except (ValueError, msgpack.UnpackException) as error:
        raise CorruptRecord(f"it is not a state: {error}") from error
    if type(name) is not str:
        raise CorruptRecord("it is not a state")
    return name


class StateNames:
    """What is known of the table `states`; a name never changes once it is stored."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {0: ""}
        self._numbers: dict[str, int] = {"": 0}
        self._read_to = 0

    def name(self, number: int, reader: Reader) -> str:
        """Return the name of that number; a made-up one if it can't be read."""
        if number not in self._names:
            self._read(reader)
        return self._names.get(number, f"unreadable state {number}")

    def number(self, name: str, reader: Reader) -> int | None:
        """Return the number of that name, or None if it has none."""
        if name not in self._numbers:
            self._read(reader)
        return self._numbers.get(name)

    def _read(self, reader: Reader) -> None:
        """Read those that were stored since this was done last."""
        for key, data in reader.scan(STATES, STATE_KEY.pack(self._read_to + 1)):
            number = int.from_bytes(key, "big")
            self._read_to = number
            try:
                name = unpack_state(number, data)
            except CorruptRecord:
                continue  # a check finds it, and a repair takes the name from the records
            self._names[number] = name
            self._numbers.setdefault(name, number)


class NewStates:
    """The numbers of states in one transaction, which may add some."""

    def __init__(self, known: StateNames, writer: Writer) -> None:
        self._known = known
        self._writer = writer
        self._new: dict[str, int] = {}
        self._has_read = False
        self._next = 0  # number of the next new one, once these are locked

    def known(self, name: str) -> int | None:
        """Return the number of that name, or None if it has none."""
        number = self._new.get(name) or self._known._numbers.get(name)
        if number is None and not self._has_read:
            # What this transaction adds is not to be known before it is committed: so it is read first, and never again.
            self._has_read = True
            self._known._read(self._writer)
            number = self._known._numbers.get(name)
        return number

    def number(self, name: str) -> int:
        """Return the number of that name, which gets one if it has none."""
        number = self.known(name)
        if number is None and not self._next:
            self._writer.lock(META, [NUMBERING])
            self._known._read(self._writer)
            self._next = self._known._read_to + 1
            number = self._known._numbers.get(name)
        if number is not None:
            return number
        number, self._next = self._next, self._next + 1
        self._writer.put(STATES, [(STATE_KEY.pack(number), pack_state(number, name))])
        self._new[name] = number
        return number
