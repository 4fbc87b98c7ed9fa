"""Persistent collections of tasks in an embedded key-value store.

from gc3session import Session, Task

with Session('campaign') as session:
    session.add(Task(jobname='first', state='RUNNING'))
"""

from .differences import Difference, diff
from .dump import Dumped, dump_session
from .dump_loading import Loaded, load_dump
from .errors import (
    ClashError,
    ClosedError,
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
    UnknownFormat,
    UnstorableValue,
    WriteError,
)
from .lmdb_store import LmdbTables as _LmdbTables  # noqa: F401
from .session import Session, TemporarySession
from .store import Store, make_store, register
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


def __getattr__(name: str) -> str:
    """Return the installed version as `__version__`; it is looked up only where it is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("gc3session")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ClashError",
    "ClosedError",
    "ConflictError",
    "CorruptRecord",
    "CorruptStore",
    "DamagedSession",
    "Difference",
    "Dumped",
    "Error",
    "Event",
    "GenericCollection",
    "GenericPersistable",
    "GenericTask",
    "InvalidArgument",
    "LoadError",
    "Loaded",
    "MirrorWarning",
    "NetworkFilesystemError",
    "NotASession",
    "NotFound",
    "NotInSession",
    "Opaque",
    "OpenError",
    "Persistable",
    "ReadOnlyError",
    "Session",
    "State",
    "Store",
    "StoreFull",
    "Task",
    "TaskCollection",
    "TemporarySession",
    "UnknownFormat",
    "Unreadable",
    "UnstorableValue",
    "WriteError",
    "diff",
    "dump_session",
    "load_dump",
    "make_store",
    "register",
]
