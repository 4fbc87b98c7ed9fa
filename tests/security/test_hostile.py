"""Opening a session directory that somebody else has made does no harm."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgpack
import pytest

from children import in_child, run_python
from gc3session import (
    ConflictError,
    CorruptRecord,
    CorruptStore,
    DamagedSession,
    LoadError,
    ReadOnlyError,
    Session,
    Task,
    TaskCollection,
    check_session,
    dump_session,
    repair_session,
)
from gc3session.cli.fields_text import object_lines
from gc3session.format.frame import seal, values_of
from gc3session.format.schema import Schema
from gc3session.records.json_values import FieldsEncoder, NotJSON
from gc3session.records.values import Decoder, references
from gc3session.tables.lmdb.data_file.verification import MARK, check_before_opening, is_trusted, mark_trusted
from raw_tables import Raw, members, n4, n8, unsealed

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed session with a few tasks, one of them large."""
    with Session(tmp_path / "session") as session:
        session.add_many(Task(jobname=f"t{n}", extra={"n": n}) for n in range(20))
        session.add(Task(jobname="large", extra={"data": bytes(5 * PAGE)}))
    return tmp_path / "session"


def copied(path: Path) -> Path:
    """Return a copy of a session, as it comes out of an archive: with all its files, the mark too."""
    return Path(shutil.copytree(path, path.with_name("copy")))


def edit(path: Path, at: int, data: bytes) -> None:
    with open(path / "jobs" / "data.mdb", "r+b") as file:
        file.seek(at)
        file.write(data)


def leaves(path: Path) -> list[int]:
    """Return the numbers of the leaf pages of the data file."""
    data = (path / "jobs" / "data.mdb").read_bytes()
    return [n for n in range(2, len(data) // PAGE) if struct.unpack_from("<QxxH", data, n * PAGE) == (n, 2)]


# -- the data file


def test_a_new_store_is_trusted_and_not_walked_through(path: Path) -> None:
    assert is_trusted(str(path / "jobs"))
    assert not check_before_opening(str(path / "jobs"), verify=None)
    assert check_before_opening(str(path / "jobs"), verify=True)


def test_a_copy_is_walked_through_until_it_has_been_opened_for_writing(path: Path) -> None:
    jobs = str(copied(path) / "jobs")
    assert not is_trusted(jobs)
    for _ in range(2):
        before = sorted(os.listdir(jobs))
        Session(path.with_name("copy"), read_only=True).close()
        assert sorted(os.listdir(jobs)) == before
        assert check_before_opening(jobs, verify=None)
    Session(path.with_name("copy")).close()
    assert is_trusted(jobs)


def test_a_damaged_page_of_a_copy_is_found_before_lmdb_meets_it(path: Path) -> None:
    copy = copied(path)
    for page in leaves(copy):
        edit(copy, page * PAGE + 10, b"\x01\x00")  # a branch page
    for read_only in (True, False):
        with pytest.raises(CorruptStore, match="truncated or damaged"):
            Session(copy, read_only=read_only)
    with pytest.raises(CorruptStore):
        Session(copy, verify=True)


@pytest.mark.parametrize("forged", ["old", "other inode", "text", "link", "long"])
def test_a_mark_can_not_be_brought_along(path: Path, forged: str) -> None:
    jobs = path / "jobs"
    mark = jobs / MARK
    line = mark.read_bytes()
    if forged == "old":  # as if it came back to the very inode
        earlier = int(line.split()[0]) - 60 * 10**9
        mark.write_bytes(b"%d %s" % (earlier, line.split(b" ")[1]))
    elif forged == "other inode":
        data = (jobs / "data.mdb").read_bytes()
        (jobs / "new").write_bytes(data)
        (jobs / "new").rename(jobs / "data.mdb")
    elif forged == "text":
        mark.write_bytes(line.replace(b"a", b"b"))
    elif forged == "link":
        mark.rename(jobs / "elsewhere")
        mark.symlink_to("elsewhere")
    else:
        mark.write_bytes(line + b"x" * 1000)
    assert not is_trusted(str(jobs))
    mark_trusted(str(jobs))
    assert is_trusted(str(jobs))


def test_a_mark_that_can_not_be_written_costs_time_only(path: Path) -> None:
    mark = path / "jobs" / MARK
    mark.unlink()
    mark.mkdir()
    with Session(path) as session:
        assert len(session) == 21
    assert not is_trusted(str(path / "jobs"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_file_of_another_user_is_always_walked_through(path: Path) -> None:
    jobs = path / "jobs"
    os.chown(jobs / "data.mdb", 65534, 65534)
    mark_trusted(str(jobs))
    os.chown(jobs / MARK, 65534, 65534)
    assert not is_trusted(str(jobs))
    assert check_before_opening(str(jobs), verify=None)
    with Session(path, read_only=True) as session:
        assert len(session) == 21


# lmdb.verify 3.0 has three defects, which the walk through the pages must not have.


def test_flags_of_the_free_list_that_verify_lets_pass_are_refused(path: Path) -> None:
    # lmdb.verify doesn't compare these with what LMDB makes the list with; 0x2c ends the process.
    copy = copied(path)
    for page in (0, 1):
        edit(copy, page * PAGE + 44, struct.pack("<H", 0x2C))
    with pytest.raises(CorruptStore, match="impossible values"):
        Session(copy)


def test_cut_inside_a_long_value_is_found(path: Path) -> None:
    # lmdb.verify reads the first page of a long value only; reading the others is SIGBUS.
    data = path / "jobs" / "data.mdb"
    content = data.read_bytes()
    runs = [
        n
        for n in range(2, len(content) // PAGE)
        if struct.unpack_from("<QxxHI", content, n * PAGE)[:2] == (n, 4)
        and struct.unpack_from("<I", content, n * PAGE + 12)[0] > 2
    ]
    os.truncate(data, (runs[-1] + 2) * PAGE)
    for read_only in (True, False):
        with pytest.raises(CorruptStore):
            Session(path, read_only=read_only)


def test_a_value_that_became_shorter_in_one_transaction_is_no_damage(path: Path) -> None:
    # LMDB leaves a small value on the pages of the long one that it replaces; lmdb.verify wants them exact.
    with Raw(path) as raw:
        raw.put("metadata", n4(1) + b"name", bytes(9000))
        raw.put("metadata", n4(1) + b"name", bytes(3000))
    with Session(copied(path)) as session:
        assert len(session) == 21


def test_without_a_walk_the_user_takes_the_risk(path: Path) -> None:
    copy = copied(path)
    (copy / "jobs" / MARK).unlink()
    assert not check_before_opening(str(copy / "jobs"), verify=False)
    with Session(copy, verify=False) as session:
        assert len(session) == 21
    assert not is_trusted(str(copy / "jobs"))


def test_a_file_of_holes_is_refused_before_memory_is_taken_for_its_pages(path: Path) -> None:
    copy = copied(path)
    os.truncate(copy / "jobs" / "data.mdb", 1 << 43)
    with pytest.raises(CorruptStore, match="holes"):
        Session(copy, read_only=True)


def test_errors_of_lmdb_in_a_dump_are_ours(path: Path, tmp_path: Path) -> None:
    with Raw(path) as raw:
        raw.put("meta", b"next N", b"short")
    with Session(path, read_only=True) as session, pytest.raises(CorruptStore, match="isn't as the format has it"):
        dump_session(session, tmp_path / "dump")


# -- what is in the directory


@pytest.mark.parametrize("name", ["store.url", "session_ids.txt", "created", "finished", "session_ids.txt.tmp"])
@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_odd_files_neither_hang_nor_lead_elsewhere(path: Path, tmp_path: Path, name: str, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    place = path / name
    place.unlink(missing_ok=True)
    {"fifo": os.mkfifo, "link": lambda p: p.symlink_to(victim), "directory": Path.mkdir}[kind](place)
    uses = """
        import sys, warnings
        warnings.simplefilter("ignore")
        from gc3session import Error, Session, Task, dump_session
        for read_only in (True, False):
            try:
                with Session(sys.argv[1], read_only=read_only) as session:
                    if not read_only:
                        session.add(Task())
                        session.set_start_timestamp(1.0)
                    print(len(session), session.created, session.finished)
                    dump_session(session, sys.argv[2])
                    if not read_only:
                        session.set_end_timestamp(2.0)
            except Error as error:
                print(type(error).__name__)
    """
    run_python(uses, path, tmp_path / "dump")
    assert victim.read_bytes() == b"precious"
    assert victim.stat().st_mtime > 10, "the time of another file was set"
    dumped = tmp_path / "dump"
    assert not dumped.exists() or b"precious" not in dumped.read_bytes()


@pytest.mark.parametrize("load", [True, False])
def test_a_store_that_is_a_link_is_refused(path: Path, tmp_path: Path, load: bool) -> None:
    (path / "jobs").rename(tmp_path / "elsewhere")
    (path / "jobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedSession, match="link"):
        Session(path, load=load)
    (path / "jobs").unlink()
    (path / "jobs").symlink_to(tmp_path / "new")
    with pytest.raises(DamagedSession, match="link"):
        Session(path, load=load)
    assert not (tmp_path / "new").exists()


def led_to(path: Path, place: Path) -> Path:
    """Have the `store.url` of a session lead to *place*; return the session."""
    url = path / "store.url"
    identity = url.read_text().partition("#")[2]
    url.write_text(f"lmdb://{place}#{identity}")
    return path


def test_a_url_does_not_lead_into_a_store_that_knows_no_such_session(path: Path, tmp_path: Path) -> None:
    with Session(tmp_path / "other") as other:
        other.add(Task(jobname="secret"))
    led_to(path, tmp_path / "other" / "jobs")
    for read_only in (True, False):
        with pytest.raises(DamagedSession, match="doesn't know this session"):
            Session(path, read_only=read_only)
    (path / "session_ids.txt").write_bytes(b"")
    with Session(path, store_or_url=tmp_path / "other" / "jobs") as session:
        assert len(session) == 0


def test_a_url_does_not_have_a_store_made_elsewhere(path: Path, tmp_path: Path) -> None:
    led_to(path, tmp_path / "new" / "deeper")
    with pytest.raises(DamagedSession, match="missing"):
        Session(path)
    assert not (tmp_path / "new").exists()


def outside(path: Path, above: Path) -> dict[Path, bytes | None]:
    """Return what is in the directory *above* but not in the session."""
    found = (file for file in above.rglob("*") if path not in (file, *file.parents))
    return {file: None if file.is_dir() else file.read_bytes() for file in found}


@pytest.mark.parametrize("there", ["an empty directory", "a file", "an empty data file"])
def test_repair_moves_nothing_that_is_outside(path: Path, tmp_path: Path, there: str) -> None:
    place = tmp_path / "place"
    if there == "a file":
        place.write_text("precious")
    else:
        place.mkdir()
    if there == "an empty data file":
        (place / "data.mdb").touch()
    shutil.rmtree(path / "jobs")
    led_to(path, place)
    before = outside(path, tmp_path)
    for dry_run in (True, False):
        with pytest.raises(DamagedSession):
            repair_session(path, dry_run=dry_run)
        assert outside(path, tmp_path) == before


def test_a_session_with_a_store_elsewhere_is_found_again_before_anything_is_added(tmp_path: Path) -> None:
    Session(tmp_path / "session", store_or_url=tmp_path / "store").close()
    with Session(tmp_path / "session") as session:
        assert session.add(Task())


# -- what the tables hold


def spoil(path: Path, table: str, change: Callable[[bytes, bytes], bytes]) -> None:
    """Change each value of a table."""
    with Raw(path) as raw:
        for key, value in raw.items(table):
            raw.put(table, key, change(key, value))


@pytest.mark.parametrize(
    "row",
    [
        [1, 1 << 63, None],
        [1, -1, None],
        [0, 0, None],
        [1 << 32, 0, None],
        [1, 0, None, 7],
        [1, 0, [1]],
        [1, 0, "x"],
        [1, 0, [1, 1 << 62, 1 << 62, "x"]],
        [1, 0, [1, 10, 11, "x", 0, b"", []]],
        [1, 0, [1, 10, 0, "x", 11, b"", []]],
        [1, 0, [1, 10, 0, "x", 0, "", []]],
        [1, 0, [1, 10, 0, "x", 0, b"", [[0, 1 << 62]]]],
        [1, 0, [1, 10, 0, "x", 0, b"", [[-5, 7]]]],
        [1, 2],
        {},
        7,
    ],
)
def test_a_row_that_can_not_be_is_refused_and_does_not_fill_the_disk(path: Path, row: object) -> None:
    spoil(path, "sessions", lambda key, value: seal(0, msgpack.packb(row)))
    with pytest.raises(CorruptStore):
        Session(path)
    assert sorted(os.listdir(path)) == ["created", "jobs", "session_ids.txt", "store.url"]


@pytest.mark.parametrize("total", [1 << 25, 1 << 31, 1 << 60])
def test_a_total_beyond_what_was_ever_stored_takes_no_memory(path: Path, total: int) -> None:
    with Raw(path) as raw:
        raw.change_row(total=total)
    with Session(path, read_only=True) as session:
        # `list` makes room for as many as there are said to be, before it asks for any.
        for uses in (len, lambda s: list(s.tasks)):
            with pytest.raises(CorruptStore, match="repair"):
                uses(session)
    repair_session(path)
    with Session(path) as session:
        assert len(list(session.tasks)) == 21


@pytest.mark.parametrize("state", [None, 7, b"NEW", [], msgpack.ExtType(13, b"\x92\xa1x\xa1y")])
def test_a_state_that_is_no_text_makes_its_record_unreadable(path: Path, state: object) -> None:
    with Raw(path) as raw:
        at = unsealed(raw.get("schemas", n4(1)))[3].index("state")
        raw.change_record(3, lambda body: [*body[:3], [*body[3][:at], state, *body[3][at + 1 :]]])
    with Session(path) as session:
        for _ in range(2):  # the second time it is known how such a record is built
            with pytest.raises(LoadError, match="state"):
                session.load("Task.3")
            assert session.load("Task.4").jobname == "t3"
        assert sum(task is not None for task in readable(session)) == 20


def readable(session: Session) -> Iterator[Task]:
    """Give the tasks that can be read."""
    tasks = iter(session)
    while True:
        try:
            yield next(tasks)
        except StopIteration:
            return
        except LoadError:
            continue


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("number", [1 << 31, 1 << 32, (1 << 64) - 1])
def test_numbers_in_the_header_of_a_record_that_can_not_be_are_found_and_taken_out(
    path: Path, place: int, number: int
) -> None:
    def change(key: bytes, value: bytes) -> bytes:
        n = int.from_bytes(key, "big")
        parts = unsealed(value)
        parts[place] = number
        return seal(n, msgpack.packb(parts)) if n == 5 else value

    spoil(path, "records", change)
    assert bool(list(check_session(path))) is (place != 1 or number >= 1 << 63)
    with Session(path) as session:
        session.remove("Task.6")
        for id_ in list(session.ids()):
            try:
                task = session.load(id_)
                task.jobname += "!"
                session.save(task)
            except (LoadError, ConflictError):
                assert id_ == "Task.5"
    repair_session(path)
    assert list(check_session(path)) == []
    with Session(path) as session:
        assert len([*session]) >= 19


@pytest.mark.parametrize("block", [1 << 51, (1 << 64) - 1])
def test_blocks_of_the_index_that_can_not_be_are_found_and_taken_out(path: Path, block: int) -> None:
    with Raw(path) as raw:
        key = struct.pack(">IQII", 1, block, 1, 1)
        raw.put("index", key, members(key, 7))
    assert list(check_session(path))
    for use in (lambda session: list(session.ids()), lambda session: list(session)):
        with Session(path, read_only=True) as session, suppress(CorruptStore):
            use(session)
    repair_session(path)
    assert list(check_session(path)) == []
    with Session(path) as session:
        assert len(session) == len([*session]) == 21


def nested(depth: int) -> bytes:
    value = b"\xc0"
    for _ in range(depth):
        value = b"\x91" + value
        value = b"\xc9" + struct.pack(">Ib", len(value), 1) + value
    return value


def test_nested_values_do_not_overflow_the_stack(path: Path) -> None:
    with pytest.raises(CorruptRecord, match="nested too deeply"):
        Decoder(int).unpack(nested(5000))
    decoder = Decoder(int)
    for _ in range(3):
        with pytest.raises(CorruptRecord):
            decoder.unpack(nested(101 + 1))
        assert decoder.unpack(nested(100)) is not None


def test_a_record_that_is_nested_too_deeply_raises_for_itself_alone(path: Path) -> None:
    with Session(path) as session:
        first = next(iter(session.tasks))

    def change(key: bytes, value: bytes) -> bytes:
        number = int.from_bytes(key, "big")
        if f"Task.{number}" != first:
            return value
        *header, values = unsealed(value)
        body = b"\x94" + b"".join(map(msgpack.packb, header)) + bytes([0x90 + len(values)])
        return seal(number, body + nested(400) * len(values))

    spoil(path, "records", change)
    with Session(path, read_only=True) as session:
        with pytest.raises(CorruptRecord, match="nested"):
            session.load(first)
        assert len(session) == 21
        loaded = 0
        for id_ in session.tasks:
            try:
                session.load(id_)
                loaded += 1
            except LoadError:
                pass
        assert loaded == 20


# -- rights


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_files_have_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    makes = """
        import os, sys
        os.umask(int(sys.argv[2]))
        from gc3session import Session, Task
        with Session(sys.argv[1]) as session:
            session.add(Task())
            session.set_end_timestamp()
    """
    run_python(makes, tmp_path / "session", umask)
    found = list((tmp_path / "session").rglob("*"))
    assert len(found) == 9
    for path in (tmp_path / "session", *found):
        allowed = (0o777 if path.is_dir() else 0o666) & ~umask
        if path.name in ("lock.mdb", "writer.lock"):  # for those who may write the store
            allowed = (allowed & 0o222) * 3
        assert path.stat().st_mode & 0o7777 == allowed, path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_session_of_another_user_opens_read_only(tmp_path: Path) -> None:
    with Session(tmp_path / "session") as session:
        session.add(Task(jobname="theirs"))
    for place in (tmp_path, *tmp_path.parents):
        if not place.stat().st_mode & 1:
            place.chmod(place.stat().st_mode | 0o111)

    def read() -> None:  # forked: the other user may have no right to read the library's files
        os.setgid(65534)
        os.setuid(65534)
        with Session(tmp_path / "session", read_only=True) as session:
            assert [task.jobname for task in session] == ["theirs"]
        with pytest.raises(ReadOnlyError, match="read_only=True"), Session(tmp_path / "session") as session:
            session.add(Task())

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "session").rglob("*")}
    in_child(read)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "session").rglob("*")}


def test_an_array_of_items_without_bytes_takes_no_memory() -> None:
    pytest.importorskip("numpy")
    shape = [1 << 31, 1 << 31]
    for dtype in ("|S0", "<U0", "|V0"):
        array = Decoder(int).build(18, msgpack.packb([dtype, shape, b""]))
        assert list(array.shape) == shape
        assert array.nbytes == 0


@pytest.mark.parametrize("shape", [[-1], [-1, 0], [2.0], ["x"], [1 << 62, 1 << 62], None, [[1]], [True]])
def test_a_shape_that_no_array_has_is_refused(shape: object) -> None:
    pytest.importorskip("numpy")
    for dtype in ("|V0", "|i1"):
        data = msgpack.ExtType(18, msgpack.packb([dtype, shape, b"\1"]))
        with pytest.raises(CorruptRecord):
            Decoder(int).unpack(msgpack.packb(data))


@pytest.mark.parametrize(
    "listed", ["(1000000000,)i8", "(2,3)f4", "i1,i1", "a{", "float", "object", "", "<f8\n", ["x"]]
)
@pytest.mark.parametrize("inside", [False, True])
def test_numpy_compiles_no_text_of_a_record(listed: object, inside: bool) -> None:
    pytest.importorskip("numpy")
    data = msgpack.packb([[["field", listed]] if inside else listed, [1], bytes(8)])
    compiled = []
    sys.addaudithook(lambda event, args: compiled.append(args) if event == "compile" else None)
    with pytest.raises(CorruptRecord):
        Decoder(int).unpack(msgpack.packb(msgpack.ExtType(18, data)))
    assert compiled == []


def test_references_in_bytes_that_are_no_value_are_none() -> None:
    for data in (b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x81\x80\x01", b"\xa1\xff\xc0"):
        assert references(msgpack.ExtType(1, data)) == []
        assert references([msgpack.ExtType(16, b"short"), msgpack.ExtType(16, bytes(7) + b"\x05")]) == [5]


@pytest.mark.parametrize(
    "parts", [["1", 1, 0, []], [1, None, 0, []], [1, 1, "x", []], [1, 1, 0, {}], [1, 1, 0], 7, [True, 1, 0, []]]
)
def test_a_record_whose_parts_have_the_wrong_types_is_damaged(parts: object) -> None:
    with pytest.raises(CorruptRecord, match="not a record"):
        values_of(7, seal(7, msgpack.packb(parts)))


def test_an_extension_that_msgpack_keeps_for_itself_has_no_json() -> None:
    schema = Schema(1, "tag", "Name", 0, ("f",))
    assert FieldsEncoder().encode(schema, b"\x91" + msgpack.packb(7)) == '{"f":7}'
    for inner in (b"\xc7\x01\xfb\x00", b"\x91\xc7\x01\x80\x00"):
        with pytest.raises(NotJSON):
            FieldsEncoder().encode(schema, b"\x91" + inner)


# -- what reaches a terminal

ODD = "a\x1b[2J\x1b]0;x\x07\u202etxt\u200b\u2066\x9b1m\r\x7f\u2028z"


def test_text_of_records_and_paths_is_shown_and_not_sent(tmp_path: Path) -> None:
    path = tmp_path / ODD
    with Session(path) as session:
        task = Task(jobname=ODD, state=ODD, extra={ODD: [ODD, {ODD: ODD}], "long": ODD * 40})
        id_ = session.add(task)
        session.add(Task(jobname="other"))
    (path / "created").write_text(ODD)

    def change(key: bytes, value: bytes) -> bytes:
        tag, _, kind, fields = unsealed(value)
        return seal(int.from_bytes(key, "big"), msgpack.packb([tag + ODD, ODD, kind, [ODD, *fields[1:]]]))

    commands: list[list[str]] = [
        ["list", "-r"], ["info"], ["info", "--scan"], ["show", "{id}", "{odd}.1", "x"], ["select", "--where", "jobname ~ a"],
        ["log"], ["watch", "--once"], ["check"], ["repair", "--dry-run"], ["diff", "{other}"], ["dump", "-o", "{out}"],
        ["backup", "{other}"], ["remove", "--yes", "{odd}.9"], ["forget", "--yes", "{odd}.9"], ["{odd}"],
    ]  # fmt: skip
    spoil(path, "schemas", change)
    id_ = f"{ODD}.{id_.rpartition('.')[2]}"
    for n, (name, *arguments) in enumerate(commands):
        names = {"id": id_, "odd": ODD, "other": f"{path}-{n}", "out": f"{tmp_path / ODD}-{n}.jsonl"}
        words = [word.format(**names) for word in (name, str(path), *arguments)]
        done = subprocess.run(
            [sys.executable, "-m", "gc3session", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, 1, 2), done.stderr
        sent = {c for c in (done.stdout + done.stderr).replace("\n", "") if not c.isprintable()}
        assert not sent, (words, sent)


def test_arrays_are_shown_without_what_controls_a_terminal(path: Path) -> None:
    # Of an array of no dimensions NumPy's text is the value itself; one in a history stands on one line.
    numpy = pytest.importorskip("numpy")
    for array in (numpy.array("\x1b[2J\u202e"), numpy.zeros((), "V0"), numpy.arange(6).reshape(2, 3)):
        task = Task(jobname="x", extra={"array": array})
        task.history = [array, [array]]
        for line in object_lines(task, lambda text, style: text):
            assert line.isprintable(), line


def test_after_an_undone_transaction_numbers_that_are_in_use_lead_to_their_records(path: Path) -> None:
    with Raw(path) as raw:
        raw.put("meta", b"next N", n8(1))
    with Session(path) as session:
        with pytest.raises(ZeroDivisionError), session.transaction():
            new = [Task(jobname="new"), TaskCollection(tasks=[Task(jobname="new")])]
            session.add_many(new)
            raise ZeroDivisionError
        assert [task.jobname for task in session][:3] == ["t0", "t1", "t2"]
        assert new[0].persistent_id is None
    repair_session(path)
