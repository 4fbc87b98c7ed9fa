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
    UnsavedWarning,
    UnstorableValue,
    WaitingWarning,
    WriteError,
)
from .format.schema import Schema
from .records.values import Opaque
from .session.session import Session, TemporarySession
from .store.store import Store, make_store
from .tables.interface import Compacted, Figure
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
from .workflow import Workflow, WorkflowTask

if TYPE_CHECKING:
    from .query.conditions import Condition
    from .query.event_log import LogEntry
    from .query.progress import FailedTask, Progress
    from .query.selection import Selected
    from .session.information import EventFigures, Information, SchemaFigures
    from .snapshots.backup import BackedUp
    from .store.record_view import StoredReference, StoredTask, UnreadableTask
    from .transfer.diff import Difference, diff
    from .transfer.dump import Dumped, dump_session
    from .transfer.load import Loaded, load_dump
    from .transfer.migrate import Moved, migrate_session
    from .upkeep.check import Check, check_session
    from .upkeep.finding import Finding
    from .upkeep.repair import Repaired, repair_session

    __version__: str
else:
    # What most programs don't use is imported when it is asked for: `import gc3session` is a third faster so.
    _LATER = {
        "query.conditions": ("Condition",),
        "query.event_log": ("LogEntry",),
        "query.progress": ("FailedTask", "Progress"),
        "query.selection": ("Selected",),
        "session.information": ("EventFigures", "Information", "SchemaFigures"),
        "snapshots.backup": ("BackedUp",),
        "store.record_view": ("StoredReference", "StoredTask", "UnreadableTask"),
        "transfer.diff": ("Difference", "diff"),
        "transfer.dump": ("Dumped", "dump_session"),
        "transfer.load": ("Loaded", "load_dump"),
        "transfer.migrate": ("Moved", "migrate_session"),
        "upkeep.check": ("Check", "check_session"),
        "upkeep.finding": ("Finding",),
        "upkeep.repair": ("Repaired", "repair_session"),
    }

    def __getattr__(name):
        """Return a public name that has not been imported yet, or the installed version."""
        if name == "__version__":
            from importlib.metadata import version

            return version("gc3session")
        for module, names in _LATER.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, and no others."""
    return [*__all__, "__version__"]


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
    "EventFigures",
    "FailedTask",
    "Figure",
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
    "Moved",
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
    "Schema",
    "SchemaFigures",
    "Selected",
    "Session",
    "State",
    "Store",
    "StoreFull",
    "StoreInUse",
    "StoreUnreachable",
    "StoredReference",
    "StoredTask",
    "Task",
    "TaskCollection",
    "TemporarySession",
    "UnknownFormat",
    "Unreadable",
    "UnreadableTask",
    "UnsavedWarning",
    "UnstorableValue",
    "WaitingWarning",
    "Workflow",
    "WorkflowTask",
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
