"""URLs of stores, and the kinds of tables that are registered for their schemes."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import quote, unquote

from ..errors import InvalidArgument
from ..system.filesystem import real_path
from .interface import Tables

_constructors: dict[str, Callable[..., Tables]] = {}


def register(scheme: str, constructor: Callable[..., Tables]) -> None:
    """Have `make_store` use *constructor* for URLs that begin with *scheme* and a colon.

    The constructor is called with the URL and, as keyword arguments, `read_only` and the store's
    own options; it returns the tables (`tables.Tables`).
    """
    if not isinstance(scheme, str) or not scheme.replace("+", "").isalnum():
        raise InvalidArgument(f"the scheme of a URL must be letters and digits, not {scheme!r}")
    _constructors[scheme] = constructor


_USER_PASSWORD = re.compile(r"(?<=://)([^/?#\s:@]*):[^/?#\s]*@")
_PASSWORD_OPTION = re.compile(r"([?&])(?:ssl)?password=[^&#\s]*(&?)")


def without_password(text: str) -> str:
    """Return *text* without the passwords of the URLs in it, for files and messages."""
    text = _USER_PASSWORD.sub(r"\1@", text)
    return _PASSWORD_OPTION.sub(lambda match: match[1] if match[2] else "", text)


class StoreURL(str):
    """The URL of a store, `scheme:rest`: a str that knows its parts.

    Args:
        url: a URL, or the path of an LMDB store.

    Raise InvalidArgument if it can be neither.
    """

    __slots__ = ()

    def __new__(cls, url: str | os.PathLike[str]) -> Self:
        text = os.fspath(url)
        if not isinstance(text, str) or not text or "\0" in text:
            raise InvalidArgument(f"a store's URL must be a non-empty str or path, not {url!r}")
        scheme, colon, _ = text.partition(":")
        if isinstance(url, str) and colon and "/" not in scheme:
            return super().__new__(cls, text)
        return cls.of_path(os.path.abspath(text))

    @classmethod
    def of_path(cls, path: str) -> Self:
        """Return the URL of the LMDB store in the directory *path*, which is absolute."""
        return super().__new__(cls, f"lmdb://{quote(path, errors='surrogateescape')}")

    @property
    def scheme(self) -> str:
        """The kind of store, such as 'lmdb'."""
        return self.partition(":")[0]

    @property
    def is_lmdb(self) -> bool:
        """Whether the store is a directory of LMDB."""
        return self.scheme == "lmdb"

    @property
    def path(self) -> str:
        """The directory of an LMDB store; of a URL without `//` it is a relative path."""
        return unquote(self.partition(":")[2].removeprefix("//"), errors="surrogateescape")

    def is_inside(self, directory: str) -> bool:
        """Return whether the store is a directory below *directory*."""
        return self.is_lmdb and real_path(self.path).startswith(real_path(directory) + os.sep)


def make_tables(url: str | os.PathLike[str], *, read_only: bool = False, **options: Any) -> Tables:
    """Return the tables of the store at *url*, without reading anything yet; see `make_store`."""
    text = StoreURL(url)
    scheme = text.scheme
    constructor = _constructors.get(scheme)
    if constructor is None:
        raise InvalidArgument(
            f"{without_password(text)!r}: no store is registered for the scheme {scheme!r}; known are {', '.join(sorted(_constructors))}"
        )
    signature = inspect.signature(constructor)
    try:
        signature.bind(text, read_only=read_only, **options)
    except TypeError as error:
        known = [name for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY]
        raise InvalidArgument(f"{scheme} stores: {error}; their options are {', '.join(known)}") from error
    return constructor(text, read_only=read_only, **options)
