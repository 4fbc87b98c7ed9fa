"""The values in records as JSON, and back, without loss and without their classes.

None, a bool, an int of 64 bits, a finite float, a str, a list and a dict with str keys are written
as JSON has them.  Any other value is an object with one key, which begins with `$`::

    {"$float": "nan"}            also "inf" and "-inf"; the 8 bytes of any other nan in hexadecimal
    {"$str": base64}             a str that has lone surrogates: its UTF-8
    {"$bytes": base64}
    {"$dict": [[key, value], ...]}   a dict whose keys aren't all str, or that looks like one of these
    {"$ref": N}                  a reference to record N
    {"$int": "123..."}           an int of more than 64 bits: its decimal digits
    {"$uuid": "1f0c..."}         32 hexadecimal digits
    {"$tuple": [item, ...]}      an extension whose data are msgpack: these data; the other keys are in TAGS
    {"$ext": [code, base64]}     any other extension, and one whose data aren't what its code says

Each value is written in one way only, so equal records give equal text.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any, Final

import msgpack

from ..format.frame import RECORD_KEY
from ..format.schema import Schema
from .values import (
    ATTRS,
    COMPLEX,
    DATE,
    DATETIME,
    DECIMAL,
    ENUM,
    FRACTION,
    FROZENSET,
    INT,
    NUMPY_ARRAY,
    NUMPY_SCALAR,
    PATH,
    REFERENCE,
    SET,
    TIME,
    TIMEDELTA,
    TUPLE,
    UUID_,
)

TAGS: Final = {
    TUPLE: "$tuple",
    SET: "$set",
    FROZENSET: "$frozenset",
    COMPLEX: "$complex",
    DATETIME: "$datetime",
    DATE: "$date",
    TIME: "$time",
    TIMEDELTA: "$timedelta",
    DECIMAL: "$decimal",
    FRACTION: "$fraction",
    PATH: "$path",
    ENUM: "$enum",
    ATTRS: "$attrs",
    NUMPY_SCALAR: "$numpy_scalar",
    NUMPY_ARRAY: "$numpy_array",
}
"""The keys for the extensions whose data are msgpack."""

MAX_NESTED: Final = 200
"""How deep arrays and objects may be nested in the JSON of a value: other parsers of JSON take no more."""

_CODES: Final = {tag: code for code, tag in TAGS.items()}
_NAN: Final = struct.pack(">d", math.nan)
_TIMESTAMP: Final = -1  # msgpack's own extension
_UNREADABLE: Final = (ValueError, TypeError, msgpack.UnpackException)
_NOT_QUICK: Final = (*_UNREADABLE, LookupError, RecursionError)


class Extension:
    """An extension, which is equal only to itself: so two nan tuples stay two keys of a dict."""

    __slots__ = ("code", "data")

    def __init__(self, code: int, data: bytes) -> None:
        self.code = code
        self.data = data


_unpack_strictly: Any = functools.partial(msgpack.unpackb, strict_map_key=True, ext_hook=Extension)


class NotJSON(Exception):
    """A value can't be written as JSON: it is nested too deep, or its bytes aren't those of a value."""


# -- msgpack -> JSON ----------------------------------------------------------


def unpack(data: bytes) -> Any:
    """Return the value of msgpack bytes, with an `Extension` for each extension.  Raise NotJSON if they have none."""
    try:
        return msgpack.unpackb(data, strict_map_key=False, unicode_errors="surrogatepass", ext_hook=Extension)
    except (*_UNREADABLE, RecursionError) as error:
        raise NotJSON(str(error)) from error


def shown(value: Any, depth: int = 0) -> Any:
    """Return a value of `unpack` in the form in which `json` can write it.  Raise NotJSON if it is nested too deep.

    *depth* is how many arrays and objects it is inside of.
    """
    cls = type(value)
    if cls is str:
        return {"$str": _base64(_utf8(value))} if _has_surrogates(value) else value
    if cls is float:
        return value if math.isfinite(value) else {"$float": _not_finite(value)}
    if value is None or cls is int or cls is bool:
        return value
    if depth >= MAX_NESTED:
        raise NotJSON("it is nested too deep")
    if cls is list:
        return [shown(item, depth + 1) for item in value]
    if cls is bytes:
        return {"$bytes": _base64(value)}
    if cls is dict:
        if _is_object(value):
            return {key: shown(item, depth + 1) for key, item in value.items()}
        return {"$dict": [[shown(key, depth + 3), shown(item, depth + 3)] for key, item in value.items()]}
    if cls is msgpack.Timestamp:
        return {"$ext": [_TIMESTAMP, _base64(value.to_bytes())]}
    return _shown_extension(value, depth)


def _is_object(value: dict[Any, Any]) -> bool:
    """Return whether a dict is written as a JSON object."""
    if not all(type(key) is str and not _has_surrogates(key) for key in value):
        return False
    return len(value) != 1 or not next(iter(value)).startswith("$")


def _shown_extension(value: Extension, depth: int) -> Any:
    code, data = value.code, value.data
    if code < 0:
        raise NotJSON("it has an extension that is reserved by msgpack")
    short = _short_extension(code, data)
    if short is not None:
        return short
    if code in TAGS:
        try:
            inner = unpack(data)
        except NotJSON:
            pass
        else:
            return {TAGS[code]: shown(inner, depth + 1)}
    return {"$ext": [code, _base64(data)]}


def _short_extension(code: int, data: bytes) -> Any:
    """Return the form of an extension whose data aren't msgpack; None for all others."""
    if code == REFERENCE and len(data) == 8:
        return {"$ref": RECORD_KEY.unpack(data)[0]}
    if code == UUID_ and len(data) == 16:
        return {"$uuid": data.hex()}
    if code == INT:
        number = int.from_bytes(data, "big", signed=True)
        if _int_bytes(number) == data:
            return {"$int": _decimal(number)}
    return None


def _int_bytes(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


_DIGITS: Final = 4000  # Python converts no more of them to an int, or back, unless that is set otherwise


def _decimal(number: int) -> str:
    """Return the decimal digits of an int of any size."""
    if number.bit_length() < 3 * _DIGITS:
        return str(number)
    sign, number = ("-", -number) if number < 0 else ("", number)
    return sign + _digits(number, number.bit_length() * 1234 // 4096 + 1).lstrip("0")


def _digits(number: int, count: int) -> str:
    """Return the last *count* digits of an int, by halves."""
    if count <= _DIGITS:
        return str(number).zfill(count)
    low = count // 2
    high, rest = divmod(number, 10**low)
    return _digits(high, count - low) + _digits(rest, low)


def _number(digits: str) -> int:
    """Return the int that decimal digits mean, however many they are."""
    if len(digits) <= _DIGITS:
        return int(digits)
    if digits[0] == "-":
        return -_number(digits[1:])
    low = len(digits) // 2
    return int(_number(digits[:-low]) * 10**low + _number(digits[-low:]))


def _not_finite(value: float) -> str:
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    bits = struct.pack(">d", value)
    return "nan" if bits == _NAN else bits.hex()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _has_surrogates(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _encoder(encoder: json.JSONEncoder) -> Callable[[Any], str]:
    """Return a function that does what `encoder.encode` does, but makes its C encoder only once."""
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    separators = encoder.key_separator, encoder.item_separator
    text = json.encoder.encode_basestring_ascii
    chunks = make(None, encoder.default, text, None, *separators, False, False, encoder.allow_nan)
    join = "".join
    return lambda value: join(chunks(value, 0))


class FieldsEncoder:
    """Writes the fields of records as JSON: almost all in a quick way, the others by `shown`."""

    def __init__(self) -> None:
        self._tags = 0
        options: dict[str, Any] = {"check_circular": False, "allow_nan": False, "separators": (",", ":")}
        self._encode = _encoder(json.JSONEncoder(default=self._tagged, **options))

    def encode(self, schema: Schema, packed: bytes) -> str:
        """Return the packed values of a record as a JSON object.

        Raise NotJSON if a value has no JSON, CorruptRecord if these aren't values of the schema.
        """
        self._tags = 0
        try:
            values = _unpack_strictly(packed)
            schema.check(values)
            text = self._encode(dict(zip(schema.fields, values, strict=True)))
        except _NOT_QUICK:
            pass  # for example a float that isn't finite, a key that isn't a str, lone surrogates
        else:
            # If `"$` is in the text more often than tags were written, some str begins with `$`: it may be
            # a key that looks like a tag.  JSON with few brackets isn't nested too deep, nor is that of
            # few bytes: each array or object comes from one of them at least.
            flat = len(packed) <= MAX_NESTED or text.count("[") + text.count("{") <= MAX_NESTED
            if flat and text.count('"$') == self._tags:
                return text
        values = unpack(packed)
        schema.check(values)
        try:
            return self._encode({name: shown(value) for name, value in zip(schema.fields, values, strict=True)})
        except RecursionError as error:
            raise NotJSON("it is nested too deep") from error

    def _tagged(self, value: Any) -> Any:
        """Return the form of a value that json doesn't know; called by json."""
        self._tags += 1
        if type(value) is bytes:
            return {"$bytes": _base64(value)}
        if type(value) is not Extension:
            raise TypeError
        code, data = value.code, value.data
        short = _short_extension(code, data)
        if short is not None:
            return short
        return {TAGS[code]: _unpack_strictly(data)}


# -- JSON -> msgpack ----------------------------------------------------------


class FieldsDecoder:
    """Reads lines of JSON whose values are in the form of `shown`."""

    def __init__(self) -> None:
        self._decode = json.JSONDecoder(object_pairs_hook=self._object).decode
        self._packer = _packer()
        self._with_surrogates = _packer("surrogatepass")

    def decode(self, line: str) -> Any:
        """Return the value of a line, as `pack` takes it.  Raise ValueError if it can't be read."""
        try:
            return self._decode(line)
        except RecursionError:
            raise ValueError("its values are nested too deeply") from None
        except (TypeError, OverflowError, KeyError, struct.error) as error:
            raise ValueError(f"a value in it is not as a dump has it: {error}") from error

    def pack(self, value: Any) -> bytes:
        """Return the msgpack bytes of a value of `decode`.  Raise ValueError if it has none."""
        try:
            try:
                return self._packer.pack(value)  # type: ignore[no-any-return]
            except UnicodeEncodeError:
                return self._with_surrogates.pack(value)  # type: ignore[no-any-return]
        except (TypeError, OverflowError, RecursionError) as error:
            # A packer that failed may still hold a part of the value.
            self._packer, self._with_surrogates = _packer(), _packer("surrogatepass")
            raise ValueError(f"a value in it is not as a dump has it: {error}") from error

    def _object(self, pairs: list[tuple[str, Any]]) -> Any:
        """Return the dict or, for a tag, the value of a JSON object; called by json."""
        if len(pairs) == 1:
            tag, value = pairs[0]
            if tag[:1] == "$":
                return self._value(tag, value)
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("it has a key twice in one object")
        return found

    def _value(self, tag: str, value: Any) -> Any:
        code = _CODES.get(tag)
        if code is not None:
            return Extension(code, self.pack(value))
        if tag == "$ref":
            return Extension(REFERENCE, RECORD_KEY.pack(value))
        if tag == "$bytes":
            return _from_base64(value)
        if tag == "$str":
            return _from_base64(value).decode("utf-8", "surrogatepass")
        if tag == "$float":
            special = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.get(value)
            # Each nan is an object of its own, so that two of them stay two keys of a dict.
            bits = bytes.fromhex(value) if special is None else struct.pack(">d", special)
            return struct.unpack(">d", bits)[0]
        if tag == "$dict":
            found = dict(value)
            if len(found) < len(value):
                raise ValueError("it has a key twice in one dict")
            return found
        if tag == "$int":
            return Extension(INT, _int_bytes(_number(value)))
        if tag == "$uuid":
            return Extension(UUID_, bytes.fromhex(value))
        if tag == "$ext":
            code, data = value
            if code == _TIMESTAMP:
                return msgpack.Timestamp.from_bytes(_from_base64(data))
            return Extension(code, _from_base64(data))
        raise ValueError(f"{tag!r} is not the key of any value in a dump")


def _packer(unicode_errors: str | None = None) -> msgpack.Packer:
    return msgpack.Packer(default=_extension, strict_types=True, use_bin_type=True, unicode_errors=unicode_errors)


def _extension(value: Any) -> msgpack.ExtType:
    """Return the extension of a value that msgpack doesn't know; called by msgpack."""
    if type(value) is not Extension:
        raise TypeError(f"there is no msgpack for {value!r}")
    return msgpack.ExtType(value.code, value.data)


def _from_base64(text: str) -> bytes:
    return b64decode(text, validate=True)
