"""Context managers that the handler of a signal can't leave open.

A handler may run between any two instructions of Python, also when `__enter__` or `__exit__` begins, if these
are written in Python as those of `contextlib` are. If the handler raises there, the block is left
and `__exit__` never runs. What the manager holds then stays held as long as the exception is kept somewhere,
because its traceback refers to the frame, and the frame to the manager.

Here only the `with` statement refers to the generator. However the statement is left, the generator is
deleted; and deleting a generator that has not ended raises GeneratorExit in it where it yielded.
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
    """Return a context manager for a generator function, as `contextlib.contextmanager` does, but see above."""

    @wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T_co]:
        return _SignalSafe(partial(function, *args, **kwargs))  # type: ignore[arg-type]  # declared as an Iterator

    return made


def _exit(
    steps: ref[Steps[Any]],
    cls: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> bool:
    # No variable holds steps(): the traceback of an exception would keep it alive.
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
        # PEP 479: a StopIteration that leaves a generator is wrapped in a RuntimeError.
        wrapped = (
            isinstance(raised, RuntimeError) and isinstance(error, StopIteration) and raised.__cause__ is error
        )
        if raised is not error and not wrapped:
            raise
        error.__traceback__ = trace
    return False


class _Exit:
    """`__exit__`: the `with` statement looks it up once, before it calls `__enter__`, and drops it at its end."""

    def __get__(self, manager: _SignalSafe[Any] | None, cls: object) -> Callable[..., bool]:
        if manager is None:  # looked up in the class, as an ExitStack does
            return lambda manager, *error: _exit(manager.steps, *error)
        if manager.entered:
            assert manager.steps is not None
            return partial(_exit, manager.steps)
        steps = manager.make()
        manager.steps = ref(steps)
        leave = partial(_exit, manager.steps)  # it calls in C, so that no frame refers to `steps`
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
            raise RuntimeError("this context manager has been entered before; make another one for each `with`")
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
