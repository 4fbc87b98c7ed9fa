"""The files of dumps: compressed if their names end with `.gz`, or `.zst` (by the package zstandard)."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, Final, cast

from ..errors import InvalidArgument
from ..system.filesystem import sync, temporary_name

_GZIP_LEVEL: Final = 6
_BUFFER: Final = 1 << 20  # bytes


@contextmanager
def written(file: str | os.PathLike[str] | IO[bytes]) -> Iterator[IO[bytes]]:
    """Give a binary file to write to. At a path it is there whole at the end, or not at all."""
    if not isinstance(file, (str, os.PathLike)):
        yield file
        return
    path = os.path.abspath(os.fspath(file))
    if os.path.lexists(path) and not os.path.isfile(path):  # /dev/stdout or a FIFO, for example
        with open(path, "wb") as special, _compressing(path, special) as out:
            yield out
        return
    path = os.path.realpath(path)
    temporary = temporary_name(path)
    try:
        with open(temporary, "xb", _BUFFER) as plain:
            with _compressing(path, plain) as out:
                yield out
            plain.flush()
            os.fsync(plain.fileno())
        os.replace(temporary, path)
        sync(os.path.dirname(path))
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise


@contextmanager
def _compressing(path: str, plain: IO[bytes]) -> Iterator[IO[bytes]]:
    if path.endswith(".gz"):
        # The file says neither its name nor its time, so that equal dumps are equal files.
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, plain, mtime=0) as out:
            yield cast(IO[bytes], out)
    elif path.endswith(".zst"):
        with _zstandard(path).ZstdCompressor().stream_writer(plain, closefd=False) as out:
            yield out
    else:
        yield plain


@contextmanager
def opened_lines(file: str | os.PathLike[str] | IO[bytes]) -> Iterator[IO[bytes]]:
    """Give a binary file to read lines from."""
    if not isinstance(file, (str, os.PathLike)):
        yield file
        return
    path = os.fspath(file)
    with ExitStack() as stack:
        lines: Any = stack.enter_context(open(path, "rb", _BUFFER))
        if path.endswith(".gz"):
            lines = stack.enter_context(gzip.GzipFile(fileobj=lines))
        elif path.endswith(".zst"):
            reader = _zstandard(path).ZstdDecompressor().stream_reader(lines, read_across_frames=True)
            lines = stack.enter_context(_Decompressed(reader, _BUFFER))
            lines.name = path
        yield lines


class _Decompressed(io.BufferedReader):
    """A decompressed file.

    Attributes:
        name: of the compressed one, for messages.
    """

    name = ""


def _zstandard(path: str) -> Any:
    try:
        import zstandard  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise InvalidArgument(
            f"{path}: .zst needs the package zstandard: pip install zstandard, or use .gz"
        ) from error
    return zstandard


class DumpText(Iterable[str]):
    """The lines of a dump as text.

    Args:
        lines: a binary file, or its lines.
        name: that of the dump in messages; it is that of the file unless it is given.
    """

    def __init__(self, lines: Iterable[bytes], name: str | None = None) -> None:
        file_name = getattr(lines, "name", None)
        self._name = name or (file_name if isinstance(file_name, str) else "the dump")
        self._lines = lines
        self._number = 0

    def __iter__(self) -> Iterator[str]:
        """Give the lines. Raise ValueError if one is damaged."""
        try:
            for line in self._lines:
                self._number += 1
                if not line.endswith(b"\n"):
                    raise ValueError("the dump is cut: this line has no end")
                if not line.isascii():
                    raise ValueError("it has other characters than ASCII")
                yield line.decode("ascii")
        except Exception as error:
            if not isinstance(error, _broken_compression()):
                raise
            raise ValueError(f"it is cut or damaged ({error})") from error

    def broken(self, what: object) -> InvalidArgument:
        """Return the exception for a fault of the line that was read last."""
        return InvalidArgument(f"{self._name}, line {self._number}: {what}")


def _broken_compression() -> tuple[type[BaseException], ...]:
    """Return what reading a compressed file raises if it is cut or damaged."""
    errors: list[type[BaseException]] = [EOFError, gzip.BadGzipFile, zlib.error]
    try:
        import zstandard
    except ImportError:
        return tuple(errors)
    return (*errors, zstandard.ZstdError)
