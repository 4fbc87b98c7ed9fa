"""New tasks that are sent to the server before the transaction that writes them is complete.

While a program encodes very many tasks, the server takes those that are ready, with their entries
in the index: the transaction has begun, and what it sends are rows of its own alone, for which
nobody waits.  If anything comes between (the batch changes, the connection is lost, another program
writes to the session) what was sent is given up, and the write is made as if it had not been.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..format.frame import RECORD_KEY
from ..index.index_writer import Ledger
from ..tables.interface import RECORDS, Ahead, Writer

if TYPE_CHECKING:
    from ..index.index import Index
    from .store import Store


class Sending:
    """What has been sent, of the batch of *store*, by the transaction *ahead*: new tasks of the session of *index*.

    Attributes:
        ahead: the transaction.
        sent: N -> record.
        index: the session's.
    """

    def __init__(self, store: Store, index: Index, ahead: Ahead) -> None:
        self.ahead = ahead
        self.sent: dict[int, bytes] = {}
        self._store = store
        self.index = index
        self._ledger: Ledger | None = None
        self._given_up = False
        self._batch = store.batch
        self._edits = store.batch.edits  # when it began

    def send(self, whose: Index, numbers: list[int]) -> None:
        """Send new tasks, which have been added last, to the session of the index *whose*: it may be another one."""
        if self._given_up:
            return
        batch, index = self._batch, self.index
        records = {number: record for number in numbers if (record := batch.records.get(number)) is not None}
        alone = (
            whose is index
            and not index.late
            and len(index.joined) == len(self.sent) + len(numbers)
            and len(records) == len(numbers)
            and batch.bases.keys().isdisjoint(records)
            and self.sent.keys().isdisjoint(records)
        )
        self._given_up = True  # unless all is known to have been sent: a signal may come at any instant
        if alone and self.ahead.send(lambda writer: self._send(writer, numbers, records)):
            self.sent.update(records)
            self._given_up = False
        else:
            self.give_up()

    def _send(self, writer: Writer, numbers: list[int], records: dict[int, bytes]) -> bool:
        """Send records and their entries; return False, without doing so, if these will be other ones."""
        index = self.index
        if self._ledger is None:
            if index.session(writer) is None or numbers[0] <= index.last(writer):
                return False
            self._ledger = Ledger(self._store, writer)
        writer.add(RECORDS, [(RECORD_KEY.pack(number), record) for number, record in records.items()])
        self._ledger.join(index.identity, index.joining_new(numbers))
        return True

    def ledger(self) -> Ledger:
        """Return the ledger in which the entries were written."""
        assert self._ledger is not None
        return self._ledger

    def is_part(self) -> bool:
        """Return whether all that was sent is still what the batch is to write."""
        batch, joined = self._batch, self.index.joined
        if self._given_up or self._ledger is None or self._store.batch is not batch:
            return False
        return batch.edits == self._edits or all(
            batch.records.get(number) is record and number not in batch.bases and joined.get(number) == number
            for number, record in self.sent.items()
        )

    def give_up(self) -> None:
        """Give up what was sent."""
        self._given_up = True
        self.ahead.drop()
