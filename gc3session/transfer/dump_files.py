"""The files of dumps, compressed as their names end: `.gz`, or `.zst` by the package zstandard."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, Final, cast

from ..errors import InvalidArgument
from ..system.filesystem import sync_directory

_GZIP_LEVEL: Final = 6
_BUFFER: Final = 1 << 20


@contextmanager
def written(file: str | os.PathLike[str] | IO[bytes]) -> Iterator[IO[bytes]]:
    """Give a binary file to write to; one that was named by its path is there whole at the end, or not at all."""
    if not isinstance(file, (str, os.PathLike)):
        yield file
        return
    path = os.path.abspath(os.fspath(file))
    if os.path.lexists(path) and not os.path.isfile(path):  # such as /dev/stdout, or a FIFO
        with open(path, "wb") as special, _compressing(path, special) as out:
            yield out
        return
    path = os.path.realpath(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "xb", _BUFFER) as plain:
            with _compressing(path, plain) as out:
                yield out
            plain.flush()
            os.fsync(plain.fileno())
        os.replace(temporary, path)
        sync_directory(os.path.dirname(path))
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise


@contextmanager
def _compressing(path: str, plain: IO[bytes]) -> Iterator[IO[bytes]]:
    if path.endswith(".gz"):
        # Without name and time in it: equal dumps are equal files.
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


def broken_compression() -> tuple[type[BaseException], ...]:
    """Return what reading a compressed file raises if it is cut or damaged."""
    import zlib

    errors: list[type[BaseException]] = [EOFError, gzip.BadGzipFile, zlib.error]
    try:
        import zstandard
    except ImportError:
        return tuple(errors)
    return (*errors, zstandard.ZstdError)
