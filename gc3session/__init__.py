"""Persistent collections of tasks in an embedded key-value store.

from gc3session import Session, Task

with Session('campaign') as session:
    session.add(Task(jobname='first', state='RUNNING'))
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    AccessDenied,
    ClashError,
    ClosedError,
    CommitUnknown,
    ConflictError,
    CorruptRecord,
    CorruptStore,
    DamagedSession,
    Error,
    InvalidArgument,
    LoadError,
    MirrorWarning,
    NetworkFilesystemError,
    NotASession,
    NotFound,
    NotInSession,
    OpenError,
    ReadOnlyError,
    StoreFull,
    StoreInUse,
    StoreUnreachable,
    UnknownFormat,
    UnstorableValue,
    WriteError,
)
from .query.conditions import Condition
from .records.values import Opaque
from .session.session import Session, TemporarySession
from .store.store import Store, make_store
from .tables.interface import Compacted
from .tables.lmdb.tables import LmdbTables as _LmdbTables  # noqa: F401
from .tables.postgresql import SCHEME as _SCHEME  # noqa: F401
from .tables.urls import register
from .tasks import (
    Event,
    GenericCollection,
    GenericPersistable,
    GenericTask,
    Persistable,
    State,
    Task,
    TaskCollection,
    Unreadable,
)

if TYPE_CHECKING:
    from .format.validation import Finding
    from .query.event_log import LogEntry
    from .query.progress import FailedTask, Progress
    from .session.information import Information
    from .snapshots.backup import BackedUp
    from .transfer.diff import Difference, diff
    from .transfer.dump import Dumped, dump_session
    from .transfer.load import Loaded, load_dump
    from .transfer.migrate import migrate_session
    from .upkeep.check import Check, check_session
    from .upkeep.repair import Repaired, repair_session

    __version__: str
else:
    # What most programs don't use is imported when it is asked for: `import gc3session` is a third faster so.
    _LATER = {
        "Check": "upkeep.check",
        "Finding": "format.validation",
        "check_session": "upkeep.check",
        "BackedUp": "snapshots.backup",
        "Repaired": "upkeep.repair",
        "repair_session": "upkeep.repair",
        "Difference": "transfer.diff",
        "diff": "transfer.diff",
        "Dumped": "transfer.dump",
        "dump_session": "transfer.dump",
        "Loaded": "transfer.load",
        "load_dump": "transfer.load",
        "LogEntry": "query.event_log",
        "Information": "session.information",
        "migrate_session": "transfer.migrate",
        "FailedTask": "query.progress",
        "Progress": "query.progress",
    }

    def __getattr__(name):
        """Return a public name that has not been imported yet, or the installed version."""
        if name == "__version__":
            from importlib.metadata import version

            return version("gc3session")
        if name in _LATER:
            value = globals()[name] = getattr(import_module(f".{_LATER[name]}", __name__), name)
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AccessDenied",
    "BackedUp",
    "Check",
    "ClashError",
    "ClosedError",
    "CommitUnknown",
    "Compacted",
    "Condition",
    "ConflictError",
    "CorruptRecord",
    "CorruptStore",
    "DamagedSession",
    "Difference",
    "Dumped",
    "Error",
    "Event",
    "FailedTask",
    "Finding",
    "GenericCollection",
    "GenericPersistable",
    "GenericTask",
    "Information",
    "InvalidArgument",
    "LoadError",
    "Loaded",
    "LogEntry",
    "MirrorWarning",
    "NetworkFilesystemError",
    "NotASession",
    "NotFound",
    "NotInSession",
    "Opaque",
    "OpenError",
    "Persistable",
    "Progress",
    "ReadOnlyError",
    "Repaired",
    "Session",
    "State",
    "Store",
    "StoreFull",
    "StoreInUse",
    "StoreUnreachable",
    "Task",
    "TaskCollection",
    "TemporarySession",
    "UnknownFormat",
    "Unreadable",
    "UnstorableValue",
    "WriteError",
    "check_session",
    "diff",
    "dump_session",
    "load_dump",
    "make_store",
    "migrate_session",
    "register",
    "repair_session",
]
