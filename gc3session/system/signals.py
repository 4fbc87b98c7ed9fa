"""Context managers that no signal's handler can leave open.

A handler runs between two instructions of Python, also as `__enter__` or `__exit__` of a context
manager written in Python begins, as those of `contextlib` are.  If it raises there, the block is
left without the manager's knowledge, and what it holds it holds as long as somebody keeps the
exception: the traceback has the frame, and that has the manager.

Here the generator is held by nothing but the `with` statement.  As that is left, in whatever
way, the generator dies, and is closed by that, if it wasn't ended: GeneratorExit is raised where
it has yielded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from functools import partial, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar
from weakref import ref

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)
Steps = Generator[T_co, None, None]


def signal_safe(function: Callable[P, Iterator[T_co]]) -> Callable[P, AbstractContextManager[T_co]]:
    """Make a context manager of a generator function, as `contextlib.contextmanager` does; see above."""

    @wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T_co]:
        return _SignalSafe(partial(function, *args, **kwargs))  # type: ignore[arg-type]  # an Iterator is said

    return made


def _exit(
    steps: ref[Steps[Any]],
    cls: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> bool:
    # steps() is given no name: the traceback of an exception would hold it.
    if cls is None:
        next(steps(), None)  # type: ignore[arg-type]  # it is alive
        return False
    if error is None:
        error = cls()
    try:
        steps().throw(error)  # type: ignore[union-attr]
    except StopIteration as ended:
        return ended is not error
    except BaseException as raised:
        # PEP 479: a StopIteration that goes through a generator is wrapped.
        wrapped = (
            isinstance(raised, RuntimeError) and isinstance(error, StopIteration) and raised.__cause__ is error
        )
        if raised is not error and not wrapped:
            raise
        error.__traceback__ = trace
    return False


class _Exit:
    """`__exit__`: the statement looks it up once, before it calls `__enter__`, and drops it at its end."""

    def __get__(self, manager: _SignalSafe[Any] | None, cls: object) -> Callable[..., bool]:
        if manager is None:  # an ExitStack asks so
            return lambda manager, *error: _exit(manager.steps, *error)
        if manager.entered:
            assert manager.steps is not None
            return partial(_exit, manager.steps)
        steps = manager.make()
        manager.steps = ref(steps)
        leave = partial(_exit, manager.steps)  # which calls in C, so that no frame refers to it
        leave.steps = steps  # type: ignore[attr-defined]
        return leave


class _SignalSafe(Generic[T_co]):
    __slots__ = ("entered", "kept", "make", "steps")

    def __init__(self, make: Callable[[], Steps[T_co]]) -> None:
        self.make = make
        self.entered = False
        self.steps: ref[Steps[T_co]] | None = None

    def __enter__(self) -> T_co:
        if self.entered:
            raise RuntimeError("it has been entered before; make another one for each `with`")
        if self.steps is None or self.steps() is None:  # without a `with` statement
            self.kept = self.make()
            self.steps = ref(self.kept)
        self.entered = True
        return next(self.steps())  # type: ignore[arg-type]  # it is alive

    if TYPE_CHECKING:

        def __exit__(
            self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
        ) -> bool: ...
    else:
        __exit__ = _Exit()
