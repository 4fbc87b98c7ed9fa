"""Persistent collections of tasks in an embedded key-value store.

from gc3session import Session, Task

with Session('campaign') as session:
    session.add(Task(jobname='first', state='RUNNING'))
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .conditions import Condition
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
from .lmdb_store import LmdbTables as _LmdbTables  # noqa: F401
from .postgresql import SCHEME as _SCHEME  # noqa: F401
from .session import Session, TemporarySession
from .store import Store, make_store, register
from .tables import Compacted
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
from .values import Opaque

if TYPE_CHECKING:
    from .backup import BackedUp
    from .checked_records import Finding
    from .checking import Check, check_session
    from .differences import Difference, diff
    from .dump import Dumped, dump_session
    from .dump_loading import Loaded, load_dump
    from .events import LogEntry
    from .information import Information
    from .migration import migrate_session
    from .repairing import Repaired, repair_session
    from .watching import FailedTask, Progress

    __version__: str
else:
    # What most programs don't use is imported when it is asked for: `import gc3session` is a third faster so.
    _LATER = {
        "Check": "checking",
        "Finding": "checked_records",
        "check_session": "checking",
        "BackedUp": "backup",
        "Repaired": "repairing",
        "repair_session": "repairing",
        "Difference": "differences",
        "diff": "differences",
        "Dumped": "dump",
        "dump_session": "dump",
        "Loaded": "dump_loading",
        "load_dump": "dump_loading",
        "LogEntry": "events",
        "Information": "information",
        "migrate_session": "migration",
        "FailedTask": "watching",
        "Progress": "watching",
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
