"""The files of dumps: compressed if their names end with `.gz`, or `.zst` (by the package zstandard)."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, cast

from ..errors import InvalidArgument
from ..system.filesystem import real_path, written_durably

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
    path = real_path(path)
    with written_durably(path) as plain, _compressing(path, plain) as out:
        yield out


@contextmanager
def _compressing(path: str, plain: IO[bytes]) -> Iterator[IO[bytes]]:
    if path.endswith(".gz"):
        # The file says neither its name nor its time, so that equal dumps are equal files.
        with gzip.GzipFile("", "wb", 6, plain, mtime=0) as out:
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
    with open(path, "rb", _BUFFER) as plain:
        if path.endswith(".gz"):
            with gzip.GzipFile(fileobj=plain) as lines:
                yield cast(IO[bytes], lines)
        elif path.endswith(".zst"):
            reader = _zstandard(path).ZstdDecompressor().stream_reader(plain, read_across_frames=True)
            with _Decompressed(reader, _BUFFER) as lines:
                lines.name = path
                yield lines
        else:
            yield plain


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
    errors = (EOFError, gzip.BadGzipFile, zlib.error)
    try:
        import zstandard
    except ImportError:
        return errors
    return (*errors, zstandard.ZstdError)
