"""Bytes that stand where a value of a record is expected, and that no encoder wrote."""

from __future__ import annotations

import struct
from random import Random

NUMBERS = (0, 1, -1, 2, 127, 255, *(1 << bits for bits in (16, 31, 32, 53, 63)))
NUMBERS = (*NUMBERS, *((1 << bits) - 1 for bits in (31, 63, 64)))

TEXTS = (
    "",
    "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "a\u202etxt.exe\u200b\u2066",
    "../../canary/victim.txt",
    "/etc/passwd",
    "os:system",
    "__main__:x",
    "builtins:eval",
    "Task",
    "subprocess:Popen",
    "\ud800\udfff",
    "\0\r\n\t\x7f",
    "[bold red]markup[/] %s {0} $(id)",
    "x" * 3000,
    "\u0300" * 50,
    "9" * 5000,
    "Task",
    "__class__",
    "for",
    "1",
)


def text(rng: Random) -> bytes:
    """Return a packed str."""
    data = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    return struct.pack(">BH", 0xDA, len(data)) + data


def number(rng: Random) -> bytes:
    """Return a packed number."""
    value = rng.choice(NUMBERS)
    if rng.random() < 0.2:
        return b"\xcb" + struct.pack(">d", rng.choice((float("nan"), float("inf"), -0.0, 1e308, 5e-324, -1e18)))
    return (b"\xd3" + struct.pack(">q", value)) if value < 0 else (b"\xcf" + struct.pack(">Q", value))


def extension(code: int, data: bytes) -> bytes:
    """Return a packed extension."""
    return struct.pack(">BIb", 0xC9, len(data), code) + data


def _array(items: list[bytes]) -> bytes:
    return struct.pack(">BI", 0xDD, len(items)) + b"".join(items)


def _str(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return struct.pack(">BI", 0xDB, len(data)) + data


def _int(value: int) -> bytes:
    return b"\xd3" + struct.pack(">q", value)


def _claim(rng: Random) -> bytes:
    """Return a header that claims more than there is."""
    kind = rng.choice((0xDC, 0xDD, 0xDE, 0xDF, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xD9, 0xDA, 0xDB))
    size = {0xDC: 2, 0xDE: 2, 0xC5: 2, 0xC8: 2, 0xDA: 2, 0xC4: 1, 0xC7: 1, 0xD9: 1}.get(kind, 4)
    return (
        bytes([kind])
        + rng.choice((b"\xff" * size, b"\x7f" + b"\xff" * (size - 1)))
        + rng.randbytes(rng.randrange(8))
    )


def _nested(rng: Random) -> bytes:
    """Return a value that is nested deeper than most."""
    depth = rng.choice((2, 90, 101, 250, 600, 1100, 5000))
    kind = rng.randrange(4)
    if kind == 0:
        return b"\x91" * depth + b"\xc0"
    if kind == 1:
        return b"\x81\xa1k" * depth + b"\xc0"
    value = b"\xc0"
    for _ in range(min(depth, 400)):
        value = extension(1, b"\x91" + value) if kind == 2 else b"\x81" + extension(1, b"\x91" + value) + b"\xc0"
        if len(value) > 20_000:
            break
    return value


def _dangerous(rng: Random) -> bytes:
    """Return an extension whose values are at, or beyond, a limit of its type."""
    code = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, -1, 127))
    shapes: list[list[int]] = [[1 << 60], [1 << 31, 1 << 31], [0, 1 << 62], [-1], [1 << 62, 0], [], [1] * 70]
    shapes.append([2**31] * 40)
    known = {
        10: lambda: _str(
            rng.choice(("1e999999999", "NaN123", "-sNaN", "9" * 5000, "Infinity", "1e-999999999", "\u0661"))
        ),
        11: lambda: _array(
            [rng.choice((_int(1), big_int(rng))), rng.choice((_int(0), _int(-1), big_int(rng), _int(3)))]
        ),
        9: lambda: _array([rng.choice((number(rng), big_int(rng))) for _ in range(3)]),
        13: lambda: _array([_str(rng.choice(("PosixPath", "WindowsPath", "x"))), text(rng)]),
        14: lambda: _array([text(rng), rng.choice((text(rng), number(rng), b"\x90", b"\x80"))]),
        15: lambda: _array(
            [text(rng), rng.choice((_array([text(rng)] * 2), number(rng))), _array([number(rng)] * 2)]
        ),
        16: lambda: struct.pack(">Q", rng.choice((0, 1, 2, 5, (1 << 64) - 1)))[: rng.choice((8, 8, 7, 0))],
        17: lambda: _array([_str(rng.choice(_DTYPES)), b"\xc6\0\0\0\x08" + b"\1" * 8]),
        18: lambda: _array(
            [
                _str(rng.choice(_DTYPES)),
                _array([_int(n) for n in rng.choice(shapes)]),
                b"\xc6\0\0\0\x08" + b"\1" * 8,
            ]
        ),
        6: lambda: _array([*(number(rng) for _ in range(8)), _zone(rng)]),
        8: lambda: _array([*(_int(rng.choice((0, 1, 59, 60))) for _ in range(5)), _zone(rng)]),
        4: lambda: rng.randbytes(rng.choice((0, 1, 9, 3000))),
        12: lambda: rng.randbytes(rng.choice((16, 16, 0, 15))),
    }
    if rng.random() < 0.25 or code not in known:
        data = rng.choice(
            (b"", b"\xc1", _claim(rng), _array([number(rng)] * rng.randrange(10)), b"\x80", _nested(rng))
        )
    else:
        data = known[code]()
    return extension(code, data)


_DTYPES = (
    "<f8", "|O", "<U999999999", "|V0", "|V2147483647", "<M8[as]", "<M8[1073741824Y]", "|S0", "x", "i4,O", "(2,3)f4",
    "(1000000000,)i8", ",".join(["i1"] * 200), "<c16", "|b1", "\x1b", "float", "object", "a{", "<f8" * 3,
)  # fmt: skip


def big_int(rng: Random) -> bytes:
    """Return a packed int of more than 64 bits."""
    return extension(4, b"\1" + rng.randbytes(rng.choice((8, 40, 2000))))


def _zone(rng: Random) -> bytes:
    names = (
        "Europe/Zurich",
        "../../etc/passwd",
        "/etc/localtime",
        "a/../b",
        "",
        "posixrules",
        "zone.tab",
        "\0",
        "x" * 300,
    )
    return rng.choice((b"\xc0", number(rng), _str(rng.choice(names)), _array([number(rng), text(rng)]), b"\x90"))


def hostile_value(rng: Random, depth: int = 0) -> bytes:
    """Return the bytes of one value, or what pretends to be that."""
    kind = rng.randrange(10)
    if kind < 4:
        return _dangerous(rng)
    if kind == 4:
        return text(rng)
    if kind == 5:
        return number(rng)
    if kind == 6:
        return _nested(rng)
    if kind == 7:
        return rng.choice((b"\xc1", _claim(rng), rng.randbytes(rng.randrange(1, 20))))
    if depth > 3:
        return b"\xc0"
    inner = [hostile_value(rng, depth + 1) for _ in range(rng.randrange(1, 4))]
    if kind == 8:
        return rng.choice((_array(inner), extension(rng.choice((1, 2, 3)), _array(inner * 2))))
    return struct.pack(">BI", 0xDF, len(inner)) + b"".join(key + b"\xc0" for key in inner)


def hostile_body(rng: Random) -> bytes:
    """Return what stands in a frame instead of a record, a schema or a row."""
    kind = rng.randrange(6)
    if kind == 0:
        return hostile_value(rng)
    if kind == 1:
        return b"\x94" + b"".join(hostile_value(rng) for _ in range(4))
    if kind == 2:
        numbers = b"".join(number(rng) for _ in range(3))
        return b"\x94" + numbers + _array([hostile_value(rng) for _ in range(rng.randrange(12))])
    if kind == 3:
        values = _array([hostile_value(rng) for _ in range(rng.choice((5, 8, 9, 10, 11, 12)))])
        return b"\x94\x01\x01\x01" + values
    if kind == 4:  # what a row has: two numbers, an event, and seven facts of the mirror
        facts = [
            rng.choice((number(rng), text(rng), b"\xc4\x01x", b"\x91\x92\x01\x01", b"\xc0")) for _ in range(7)
        ]
        return b"\x94\x01" + number(rng) + rng.choice((b"\xc0", b"\x92\x01\x01", number(rng))) + _array(facts)
    return rng.randbytes(rng.randrange(60))


def hostile_members(rng: Random) -> bytes:
    """Return what stands in an entry of the index, before its checksum."""
    size = rng.choice((0, 1, 2, 64, 65, 256, 300))
    if rng.random() < 0.3:
        return rng.randbytes(rng.choice((512, 512, 511, 513, 2 * size)))
    places = [rng.choice((*range(4096), 4096, 0xFFFF)) for _ in range(size)]
    return b"".join(place.to_bytes(2, "big") for place in (sorted({*places}) if rng.random() < 0.7 else places))
