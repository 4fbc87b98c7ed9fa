"""What a hostile hand does to a session directory: each mutation is a function of a random number generator.

`Case(seed, n)` is always the same case: the generator is made from the two, and every choice is its.
A case is built beside a *canary*, a directory that nothing may touch and that the hostile
links, paths and URLs lead to::

    work/canary/victim.txt      a file of the user's
    work/canary/store/          the store of another session, whole
    work/canary/empty.mdb       an empty file: LMDB would make an environment of it
    work/canary/directory/      an empty directory
    work/case/                  the hostile session
"""

from __future__ import annotations

import functools
import os
import shutil
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

import hostile_records
from hostile_base import Bases, Target

NOBODY: Final = 65534
_NUMBERS: Final = (0, 1, 2, 7, 8, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1)
_FILES: Final = ("store.url", "session_ids.txt", "created", "finished")
_TEMPORARY: Final = (
    "session_ids.txt.tmp session_ids.txt.1.1.tmp store.url.1.1.tmp created.1.1.tmp jobs.1.00000000.tmp jobs/checked "
    "damaged jobs.4194999.deadbeef.tmp".split()
)
_TEXTS: Final = (
    b"\x1b]0;owned\x07\x1b[2J",
    "Task.1\n\u202eTask.2\u200b\n\ufeff".encode(),
    b"\xff\xfe\x00\x00",
    b"Task.18446744073709551616\nTask.-1\n../../x\n",
    b"\n" * 5000,
    b"Task.1\n" * 3,
    b"\0" * 4096,
)


Mutation = Callable[[Target], None]


# -- data.mdb: its bytes


def _of_bytes(change: Callable[[bytearray, Random], None]) -> Mutation:
    """Return the mutation that changes the bytes of the data file so."""

    @functools.wraps(change)
    def mutation(target: Target) -> None:
        data = bytearray(target.data.read_bytes())
        change(data, target.rng)
        target.data.write_bytes(data)

    return mutation


@_of_bytes
def flipped_bits(data: bytearray, rng: Random) -> None:
    """Some bits anywhere."""
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


@_of_bytes
def flipped_header(data: bytearray, rng: Random) -> None:
    """Some bits of a page's header or its node pointers."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        page = rng.randrange(len(data) // 4096)
        data[page * 4096 + rng.randrange(rng.choice((16, 64)))] ^= 1 << rng.randrange(8)


@_of_bytes
def odd_numbers(data: bytearray, rng: Random) -> None:
    """Numbers of 16, 32 or 64 bits that are at a limit, where pages have theirs."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        page = rng.randrange(len(data) // 4096)
        size, code = rng.choice(((2, "<H"), (4, "<I"), (8, "<Q")))
        at = page * 4096 + rng.randrange(0, rng.choice((16, 168, 4096 - 8)), 2)
        number = rng.choice((*_NUMBERS, len(data) // 4096, page, rng.getrandbits(64)))
        struct.pack_into(code, data, at, number % (1 << 8 * size))


@_of_bytes
def odd_nodes(data: bytearray, rng: Random) -> None:
    """A node of a leaf or branch page with another size, flag or child."""
    pages = list(range(2, len(data) // 4096))
    rng.shuffle(pages)
    for page in pages:
        begin = page * 4096
        flags, lower = struct.unpack_from("<HH", data, begin + 10)
        count = (lower - 16) // 2
        if flags & 3 and 0 < count < 2000:
            (node,) = struct.unpack_from("<H", data, begin + 16 + 2 * rng.randrange(count))
            if node + 24 <= 4096:
                number = rng.choice((*_NUMBERS, page, rng.getrandbits(16))) % (1 << 16)
                struct.pack_into("<H", data, begin + node + 2 * rng.randrange(12), number)
                return


@_of_bytes
def odd_meta(data: bytearray, rng: Random) -> None:
    """A field of a meta page, or of both, with a number at a limit."""
    places = {"<H": (10, 44, 46, 92, 94), "<I": (20, 40, 88), "<Q": (24, 32, 48, 80, 120, 128, 136, 144)}
    fields = [(at, code) for code, some in places.items() for at in some]
    at, code = rng.choice(fields)
    number = rng.choice((*_NUMBERS, 0x2C, 0x0C, len(data) // 4096, len(data) // 4096 + 1, rng.getrandbits(20)))
    for page in rng.choice(((0,), (1,), (0, 1))):
        struct.pack_into(code, data, page * 4096 + at, number % (1 << 8 * struct.calcsize(code)))


@_of_bytes
def swapped_pages(data: bytearray, rng: Random) -> None:
    """Two pages in each other's place, or one twice, with its own number or the other's."""
    a, b = (4096 * rng.randrange(len(data) // 4096) for _ in range(2))
    first, second = data[a : a + 4096], data[b : b + 4096]
    if rng.random() < 0.5:
        first[:8], second[:8] = second[:8], first[:8]
    data[a : a + 4096] = second
    if rng.random() < 0.7:
        data[b : b + 4096] = first


@_of_bytes
def blanked(data: bytearray, rng: Random) -> None:
    """A page, or a part of one, of zeros, ones or noise."""
    size = rng.choice((8, 512, 4096, 8192))
    at = rng.randrange(0, len(data) - size, 8 if size == 8 else 512)
    filler = rng.choice((b"\0" * size, b"\xff" * size, rng.randbytes(size)))
    data[at : at + size] = filler


def cut(target: Target) -> None:
    """The data file without its end."""
    size = target.data.stat().st_size
    at = target.rng.choice((0, 1, 151, 152, 4096, 8192, size - 1, size - 4096, target.rng.randrange(size)))
    os.truncate(target.data, at - at % 4096 if target.rng.random() < 0.5 else at)


def mixed(target: Target) -> None:
    """Two of the others."""
    for mutation in target.rng.sample(
        (flipped_bits, flipped_header, odd_numbers, odd_meta, swapped_pages, blanked), 2
    ):
        mutation(target)
    if target.rng.random() < 0.5 and target.data.stat().st_size:
        cut(target)


def enlarged(target: Target) -> None:
    """A data or lock file that ends in a hole of a size that no memory has."""
    path = target.rng.choice((target.data, target.lock))
    os.truncate(path, target.rng.choice((1 << 24, 1 << 36, 1 << 42)) + target.rng.choice((0, 1, 4095)))


def another_file(target: Target) -> None:
    """A data file that is something else, or another session's."""
    rng = target.rng
    other = rng.choice(target.bases.sessions)
    target.data.write_bytes(
        rng.choice(
            (
                b"",
                b"x" * 10_000,
                rng.randbytes(8192),
                other.data,
                target.bases.version_3,
                target.bases.other_tables,
            )
        )
    )


# -- lock.mdb


def spoilt_lock(target: Target) -> None:
    """A lock file of noise, of another size, or with mutated fields."""
    rng = target.rng
    data = bytearray(target.lock.read_bytes())
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.choice((1, 4, 64))):
            data[rng.randrange(min(len(data), rng.choice((64, 192, 8192, len(data)))))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data = data[: rng.choice((0, 1, 63, 64, 192, 8191))]
    elif kind == 2:
        data = bytearray(rng.randbytes(rng.choice((64, 8192, 80_000))))
    else:
        struct.pack_into("<Q", data, rng.randrange(0, 192, 8), rng.choice((*_NUMBERS, rng.getrandbits(64))))
    target.lock.write_bytes(data)


# -- names that are something else than files


def _put_special(path: Path, target: Target) -> None:
    """Put a link, FIFO, directory, device or socket in the place of *path*."""
    rng = target.rng
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    canary = target.canary
    ends = "victim.txt store/data.mdb store empty.mdb directory new session session/store.url".split()
    kind = rng.randrange(8)
    if kind < 4:
        end = canary / rng.choice(ends)
        path.symlink_to(end if rng.random() < 0.5 else os.path.relpath(end, path.parent))
    elif kind == 4:
        path.symlink_to(rng.choice((path.name, "/dev/zero", "/dev/full", "/etc/passwd", "/proc/self/mem")))
    elif kind == 5:
        os.mkfifo(path)
    elif kind == 6:
        path.mkdir()
        if rng.random() < 0.5:
            (path / "inside").write_bytes(b"x")
    elif os.geteuid() == 0 and rng.random() < 0.8:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, rng.choice((3, 5, 7))))  # null, zero, full
    else:
        os.mknod(path, 0o666 | stat.S_IFSOCK)


def special_data(target: Target) -> None:
    """data.mdb or one of the lock files is a link, FIFO, directory, device or socket."""
    _put_special(target.rng.choice((target.data, target.lock, target.lock.with_name("writer.lock"))), target)


def special_file(target: Target) -> None:
    """One of the session's text files is, or the whole of jobs/."""
    _put_special(target.case / target.rng.choice((*_FILES, "jobs")), target)


def special_temporary(target: Target) -> None:
    """A name that the library writes under, or deletes, is; and what it replaces is stale."""
    _put_special(target.case / target.rng.choice(_TEMPORARY), target)
    if target.rng.random() < 0.7:
        (target.case / "session_ids.txt").write_bytes(b"Task.1\n")


def hard_link(target: Target) -> None:
    """One of the files is another one, too, that stands elsewhere."""
    name = target.rng.choice(("jobs/data.mdb", "jobs/lock.mdb", "jobs/writer.lock", "jobs/checked", *_FILES))
    own = "victim.txt" if name == "jobs/checked" else name.replace("jobs/", "store/")
    other = own if name.startswith("jobs/") else f"session/{name}"
    path = target.case / name
    path.unlink(missing_ok=True)
    path.hardlink_to(target.canary / target.rng.choice((other, other, "victim.txt", "empty.mdb")))


def planted_directory(target: Target) -> None:
    """A leftover of making the store whose files are links to the canary."""
    leftover = target.case / "jobs.4194999.deadbeef.tmp"
    leftover.mkdir()
    for name in ("data.mdb", "lock.mdb"):
        (leftover / name).symlink_to(target.canary / "victim.txt")
    if target.rng.random() < 0.5:
        shutil.rmtree(target.case / "jobs")
        (target.case / "session_ids.txt").write_bytes(b"")


def missing(target: Target) -> None:
    """One of the names, or two of them, are missing."""
    names = (*_FILES, "jobs", "jobs/data.mdb", "jobs/lock.mdb", "jobs/writer.lock")
    for name in target.rng.sample(names, 2):
        path = target.case / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# -- the text files


def _url(target: Target) -> bytes:
    """Return what a store.url may say that leads elsewhere, or is none."""
    rng, canary = target.rng, target.canary
    identity = rng.choice((target.bases.sessions[0].identity, "0" * 32, "f" * 31, "", "g" * 32))
    places = (
        "jobs . .. ../canary/store jobs/../../canary/store %2e%2e/canary/new jobs%00x jobs/x/y "
        "//CANARY/store //CANARY/new //CANARY/new/deeper //CANARY/link //CANARY/link/new //CANARY/victim.txt "
        "//CANARY/directory //WORK/case/../canary/store CANARY/store ///CANARY/store "
        "//host/share jobs?x=1 %1b%5b2J\u202e //proc/self/root/tmp //dev/zero".split()
    )
    place = rng.choice(("", "x" * 5000, *places))
    scheme = rng.choice(("lmdb",) * 8 + ("postgresql", "postgres", "sqlite", "file", "http", "LMDB", ""))
    if scheme.startswith("postgres"):
        places = (
            "//127.0.0.1:1/x ///x?host=/nowhere&service=x&passfile=/etc/passwd //u:p@127.0.0.1:1/x //u@[::1/x "
            "//u@\u2100/x ///%ff //u:a?b@127.0.0.1:1/x?sslkeylogfile=CANARY/keys "
            "//127.0.0.1:1/x?sslkeylogfile=CANARY/keys&hostaddr=127.0.0.2&passfile=CANARY "
            "//127.0.0.1:1/x?sslkey=CANARY/engine.so:key&sslcert=CANARY/cert".split()
        )
        place = rng.choice(places)
    place = place.replace("CANARY", str(canary)).replace("WORK", str(canary.parent))
    text = f"{scheme}:{place}#{identity}" + rng.choice(("\n",) * 6 + ("", "\r\n", "\n\n", "\nlmdb:jobs#\n"))
    data = text.encode()
    if rng.random() < 0.15:
        data = rng.choice((*_TEXTS, b"", data * 5000))
    return data


def odd_url(target: Target) -> None:
    """A store.url that leads elsewhere, or is none."""
    (target.case / "store.url").write_bytes(_url(target))


def odd_move(target: Target) -> None:
    """The store says that its session has moved to a place that a store.url must not name either."""
    hostile_records.note_of_moving(target, _url(target).strip()[: 1 << 20])


def odd_text(target: Target) -> None:
    """A mirror, `created` or `finished` of noise, control characters or endless holes."""
    rng = target.rng
    path = target.case / rng.choice(("session_ids.txt", "created", "finished"))
    path.write_bytes(rng.choice((*_TEXTS, b"", rng.randbytes(300))))
    if rng.random() < 0.2:
        os.truncate(path, rng.choice((1 << 34, 1 << 42)))
    os.utime(path, ns=(rng.choice((0, 1, -(10**18), 10**18, 9 * 10**18)),) * 2)


def swapped_files(target: Target) -> None:
    """Two files in each other's place."""
    names = ("jobs/data.mdb", "jobs/lock.mdb", "jobs/writer.lock", *_FILES)
    first, second = (target.case / name for name in target.rng.sample(names, 2))
    other = first.with_name(first.name + "_")
    for path in (first, second):
        path.touch()
    first.rename(other)
    second.rename(first)
    other.rename(second)


def odd_rights(target: Target) -> None:
    """Files of somebody else, or with odd rights."""
    rng = target.rng
    names = ("", "jobs", "jobs/data.mdb", "jobs/lock.mdb", "jobs/writer.lock", *_FILES)
    chosen = rng.sample(names, rng.choice((1, 2, len(names))))
    for name in sorted(chosen, reverse=True):  # what is in a directory can only be reached before
        path = target.case / name
        if path.exists():
            path.chmod(rng.choice((0, 0o444, 0o555, 0o222, 0o777, 0o4755)))
            if os.geteuid() == 0:
                os.chown(path, NOBODY, NOBODY)


def owned_by_another(target: Target) -> None:
    """All files belong to another user; and the data file is spoilt, too."""
    flipped = target.rng.choice((flipped_bits, flipped_header, odd_numbers, odd_nodes, swapped_pages))
    flipped(target)
    if os.geteuid() == 0:
        for path in (target.case, *target.case.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


MUTATIONS: Final[dict[Mutation, int]] = {
    flipped_bits: 10,
    flipped_header: 12,
    odd_numbers: 10,
    odd_nodes: 12,
    odd_meta: 8,
    swapped_pages: 6,
    blanked: 6,
    cut: 6,
    mixed: 6,
    enlarged: 2,
    another_file: 2,
    spoilt_lock: 5,
    special_data: 4,
    special_file: 6,
    special_temporary: 4,
    hard_link: 4,
    planted_directory: 1,
    missing: 2,
    odd_url: 8,
    odd_move: 4,
    odd_text: 4,
    swapped_files: 2,
    odd_rights: 3,
    owned_by_another: 6,
    hostile_records.spoilt_records: 14,
}
"""How often each is chosen, of their sum."""


DEADLY: Final[dict[Mutation, int]] = {flipped_header: 1, odd_nodes: 1, swapped_pages: 1, cut: 2, mixed: 1}
"""Those that LMDB alone survives least."""


def build(work: Path, bases: Bases, rng: Random, mutations: dict[Mutation, int]) -> str:
    """Make the hostile session `work/case` by one of *mutations*; return which."""
    target = Target(work, bases, rng)
    mutation = rng.choices(list(mutations), list(mutations.values()))[0]
    base = rng.choice(bases.sessions)
    base.write(target.case)
    mutation(target)
    return mutation.__name__
