"""What an object store in SQLite does with what is large, foreign, damaged, locked, full or forked."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from blobstore.backends.blob import sqlite as sqlite_module
from blobstore.backends.blob import sqlite_file, sqlite_snapshot
from blobstore.backends.blob.sqlite import SqliteStore
from blobstore.backends.blob.sqlite_file import APPLICATION_ID, SqliteFile
from blobstore.backends.metadata.sql import SqlBackend
from blobstore.errors import (
    ClosedError,
    ConfigError,
    IncompatibleStoreError,
    IntegrityError,
    InvalidInputError,
    InvalidKeyError,
    KeyNotFoundError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)
from blobstore.testing.object_store import in_fork, in_threads, peak_memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")


class PartedStore(SqliteStore):
    part_size = 1000


LARGE = random.Random(0).randbytes(4500)  # five parts
OTHER = random.Random(1).randbytes(3001)


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "objects.db"


@pytest.fixture
def store(path):
    with PartedStore(path) as store:
        yield store


@contextlib.contextmanager
def raw(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def rows(path, statement):
    with raw(path) as connection:
        return connection.execute(statement).fetchall()


def run_python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def files(path):
    return sorted(file.name for file in path.parent.iterdir())


# --- where it is ---------------------------------------------------------------------------------


def test_the_first_write_makes_file_and_folders(tmp_path):
    path = tmp_path / "a" / "b" / "objects.db"
    with SqliteStore(str(path)) as store:
        assert list(store.keys()) == []
        assert store.exists("k") is False
        for read in (store.get, store.stat, store.delete, store.open, store.source):
            with pytest.raises(KeyNotFoundError):
                read("k")
        with pytest.raises(KeyNotFoundError):
            store.copy("k", "l")
        store.delete_many(["k"])
        store.sync([])
        assert store.compact() == 0
        assert list(store.leftovers()) == []
        assert not path.parent.parent.exists()
        store.put("k", b"v")
    assert files(path) == ["objects.db"]
    assert store.db_path == path


def test_a_file_that_another_store_makes_meanwhile_is_seen(path):
    with SqliteStore(path) as store, SqliteStore(path) as other:
        assert not store.exists("k")
        other.put("k", b"v")
        assert store.get("k") == b"v"


def test_a_relative_path_is_fixed_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SqliteStore("objects.db") as store:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.put("k", b"v")
    assert (tmp_path / "objects.db").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_of_a_blob_store(tmp_path):
    with SqliteStore.for_folder(tmp_path, fsync=True) as store:
        store.put("k", b"v")
        assert store.db_path == tmp_path / "blobs.db"
        with store._session.lent() as kept:
            assert kept.execute("PRAGMA synchronous").fetchone() == (3,)


@pytest.mark.parametrize("wrong", [None, 5, b"x.db", "", "a\0b", ":memory:"], ids=repr)
def test_wrong_paths(wrong):
    with pytest.raises(ConfigError):
        SqliteStore(wrong)


@pytest.mark.parametrize("wrong", [None, "5", -1, float("nan"), True, 1e9], ids=repr)
def test_wrong_timeouts(path, wrong):
    with pytest.raises(ConfigError, match="timeout"):
        SqliteStore(path, timeout=wrong)


def test_without_hard_links(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with SqliteStore(path) as store:
        store.put("k", b"v")
    with SqliteStore(path) as store:
        assert store.get("k") == b"v"
    assert files(path) == ["objects.db"]


def test_of_two_makers_one_wins(path, monkeypatch):
    """The second finds a file where it wants to put its own."""
    link = os.link

    def late(source, target):
        monkeypatch.setattr(os, "link", link)
        with SqliteStore(target) as other:
            other.put("first", b"1")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with SqliteStore(path) as store:
        store.put("second", b"2")
        assert list(store.keys()) == ["first", "second"]
    assert files(path) == ["objects.db"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with SqliteStore(tmp_path / "file" / "objects.db") as store:
        assert not store.exists("k")
        with pytest.raises(StorageError, match="making"):
            store.put("k", b"v")
        with pytest.raises(StorageError), store.writer("k") as sink:
            sink.path()


@not_root
def test_a_folder_that_may_not_be_written(path):
    path.parent.chmod(0o555)
    try:
        with SqliteStore(path) as store, pytest.raises(PermissionDeniedError):
            store.put("k", b"v")
    finally:
        path.parent.chmod(0o755)


# --- what is not ours, or not whole --------------------------------------------------------------


def untouched(path, error, match):
    before = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    with pytest.raises(error, match=match):
        SqliteStore(path)
    assert {f: f.read_bytes() for f in path.parent.iterdir() if f.is_file()} == before


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_database_of_another_program(path, mode):
    with raw(path) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE objects (key, value)")
    untouched(path, IncompatibleStoreError, "another program")


def test_database_of_another_program_with_an_unfinished_log(path):
    with raw(path) as connection:
        connection.execute("PRAGMA journal_mode=wal")
        connection.execute("CREATE TABLE objects (key, value)")
        copies = {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in ("", "-wal")}
    moved = path.with_name("moved.db")
    for suffix, data in copies.items():
        Path(f"{moved}{suffix}").write_bytes(data)
    with pytest.raises(IncompatibleStoreError):
        SqliteStore(moved)
    assert Path(f"{moved}-wal").read_bytes() == copies["-wal"]
    assert moved.read_bytes() == copies[""]


def test_an_index_is_no_object_store(path):
    with contextlib.closing(SqlBackend(path)):
        pass
    untouched(path, IncompatibleStoreError, "another program")


def test_an_object_store_is_no_index(path):
    with SqliteStore(path) as store:
        store.put("k", b"v")
    with pytest.raises(IncompatibleStoreError):
        SqlBackend(path)


@pytest.mark.parametrize("content", [b"text", b"text" * 1000], ids=["short", "long"])
def test_no_database_at_all(path, content):
    path.write_bytes(content)
    untouched(path, IncompatibleStoreError, "no SQLite database")


def test_a_folder_in_its_place(path):
    path.mkdir()
    untouched(path, IncompatibleStoreError, "is a folder")


def test_newer_format(path):
    with SqliteStore(path) as store:
        store.put("k", b"v")
    with raw(path) as connection:
        connection.execute("PRAGMA user_version=2")
    untouched(path, IncompatibleStoreError, "format 2")


def test_a_file_that_turns_out_foreign_later(path):
    with SqliteStore(path) as store:
        path.write_bytes(b"text" * 1000)
        for call in (lambda: store.get("k"), lambda: store.put("k", b"v"), lambda: store.keys()):
            with pytest.raises(IncompatibleStoreError):
                call()
    assert path.read_bytes() == b"text" * 1000


def test_an_empty_file_is_damage(path):
    path.touch()
    untouched(path, IntegrityError, "is empty")


def test_a_log_without_its_database_is_damage(path):
    Path(f"{path}-wal").write_bytes(b"log")
    untouched(path, IntegrityError, "-wal is there")


def test_a_missing_table_is_damage(path):
    with SqliteStore(path) as store:
        store.put("k", b"v")
    with raw(path) as connection:
        connection.execute("DROP TABLE parts")
    untouched(path, IntegrityError, "lacks parts")


@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_damaged_pages(path, damage):
    with SqliteStore(path) as store:
        for n in range(300):
            store.put(f"k{n}", b"v" * 500)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-len(data) // 3 :]
    else:
        data[3 * 4096 :] = bytes(len(data) - 3 * 4096)
    path.write_bytes(data)

    def everything():
        with SqliteStore(path) as store:
            for key in store.keys():  # noqa: SIM118 - a store is no dictionary
                store.get(key)
            for n in range(300):
                store.get(f"k{n}")

    with pytest.raises(IntegrityError, match="damaged"):
        everything()


DAMAGES = {
    "missing": "DELETE FROM parts WHERE number = 2",
    "short": "UPDATE parts SET data = x'00' WHERE number = 2",
    "last": "UPDATE parts SET data = CAST(data || x'00' AS BLOB) WHERE number = 4",
    "text": "UPDATE parts SET data = CAST(x'ff00' AS TEXT) WHERE number = 2",
    "same length": f"UPDATE parts SET data = '{'x' * 1000}' WHERE number = 2",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_parts(path, store, damage):
    store.put("k", LARGE)
    with raw(path) as connection:
        connection.execute(DAMAGES[damage])
    start = {"last": 4000}.get(damage, 2000)
    with pytest.raises(IntegrityError) as caught:
        store.get("k")
    assert caught.value.location == "k"
    if damage != "same length":
        with pytest.raises(IntegrityError):
            store.get_range("k", start, start + 1)
    with store.source("k") as source, pytest.raises(IntegrityError):
        source.read()
    with store.open("k") as file, pytest.raises(IntegrityError):
        file.read()
    assert store.get_range("k", 0, 5) == LARGE[:5]
    store.put("k", LARGE)
    assert store.get("k") == LARGE


@pytest.mark.parametrize("data", ["x'00'", "NULL", "'abc'", "CAST(x'ff' AS TEXT)"])
def test_damaged_rows(path, store, data):
    store.put("k", b"abc")
    with raw(path) as connection:
        connection.execute(f"UPDATE objects SET data = {data}")
    for call in (store.get, store.open, store.source, lambda key: store.get_range(key, 0, 1)):
        with pytest.raises(IntegrityError, match=r"another size|damaged"):
            call("k")


# --- keys ----------------------------------------------------------------------------------------


def test_any_text_is_a_key(store):
    keys = [
        "",
        "\0",
        "a\0b",
        "a\0",
        "a",
        "\U0010ffff",
        "\ud7ff",
        "\ue000",
        "é",
        "e\u0301",
        "k" * 9999,
    ]
    for key in keys:
        store.put(key, key.encode() + b"!")
    assert list(store.keys()) == sorted(keys, key=str.encode)
    for key in keys:
        assert store.get(key) == key.encode() + b"!"
        assert sorted(store.keys(key)) == sorted(k for k in keys if k.startswith(key))
    store.delete_many(keys)
    assert list(store.keys()) == []


@pytest.mark.parametrize("key", ["\ud800", "a\udfff"], ids=ascii)
def test_text_without_a_form_in_utf8(store, key):
    store.put("k", b"v")
    calls = [
        lambda: store.put(key, b""),
        lambda: store.get(key),
        lambda: store.exists(key),
        lambda: store.delete(key),
        lambda: store.delete_many(["k", key]),
        lambda: store.writer(key),
        lambda: store.copy("k", key),
        lambda: store.put_if_absent(key, b""),
    ]
    for call in calls:
        with pytest.raises(InvalidKeyError):
            call()
    assert list(store.keys(key)) == []
    assert list(store.keys()) == ["k"]


def test_subclasses_of_str_are_keys(store):
    class Name(str):
        __slots__ = ()

        def __str__(self):
            return "something else"

    store.put(Name("k"), b"v")
    assert list(store.keys(Name("k"))) == ["k"]
    assert store.get(Name("k")) == b"v"


def test_keys_are_read_in_pages(store, monkeypatch):
    monkeypatch.setattr(sqlite_module, "_PAGE", 3)
    names = [f"k{n:02}" for n in range(20)] + ["k05\0", "k05\0\0"]
    for name in names:
        store.put(name, b"")
    assert list(store.keys("k")) == sorted(names)
    listing = store.keys()
    seen = [next(listing) for _ in range(4)]
    store.delete_many(["k03", "k04", "k05"])
    store.put("k00a", b"")
    store.put("k19a", b"")
    seen += listing
    assert seen == sorted(set(seen))
    assert set(names) - {"k03", "k04", "k05"} <= set(seen)
    assert "k19a" in seen
    listing = store.keys()
    next(listing)
    store.close()
    with pytest.raises(ClosedError):
        list(listing)


def test_a_key_that_is_too_long(store, monkeypatch):
    limit_length(monkeypatch, 50_000)
    with pytest.raises(InvalidInputError, match="this long"):
        store.put("k" * 60_000, b"")


def limit_length(monkeypatch, limit):
    """As SQLite's limit of a billion bytes, which is too much to write in a test."""
    connect = SqliteFile._connect

    def limited(self, *arguments):
        connection = connect(self, *arguments)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)
        return connection

    monkeypatch.setattr(SqliteFile, "_connect", limited)


# --- large objects -------------------------------------------------------------------------------


def test_objects_longer_than_a_row_can_be(path, monkeypatch):
    limit_length(monkeypatch, 50_000)
    data = random.Random(3).randbytes(300_000)
    with PartedStore(path) as store:
        store.put("put", data)
        assert store.put_if_absent("absent", data)
        with store.writer("writer") as sink:
            sink.write(data)
        store.copy("put", "copy")
        for key in ("put", "absent", "writer", "copy"):
            assert store.get(key) == data
            assert store.get_range(key, 999, 250_001) == data[999:250_001]
    with monkeypatch.context() as patch:
        patch.setattr(PartedStore, "part_size", 1 << 20)
        with PartedStore(path) as store, pytest.raises(InvalidInputError):
            store.put("k", data)  # so the limit is one


SIZES = [0, 1, 999, 1000, 1001, 1999, 2000, 2001, 4500]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_those_of_parts(path, store, size):
    data = LARGE[:size]
    store.put("put", data)
    assert store.put_if_absent("absent", memoryview(bytearray(data)))
    assert not store.put_if_absent("absent", b"other" * 1000)
    store.copy("put", "copy")
    with store.writer("sink") as sink:
        sink.write(data)
    with store.writer("lent") as sink:
        sink.path().write_bytes(data)
    for key in ("put", "absent", "copy", "sink", "lent"):
        assert store.get(key) == data
        assert store.stat(key).size == size
        with store.open(key) as file, store.source(key) as source:
            assert file.read() == source.read() == data
            for start in (0, 1, 500, 999, 1000, 1001, 4499):
                for stop in (start, start + 1, start + 1000, start + 2500, 10**20):
                    assert store.get_range(key, start, stop) == data[start:stop]
                    assert source.read_range(start, stop) == data[start:stop]
                file.seek(start)
                assert file.read(1200) == data[start:][:1200]
    count = -(-size // 1000) if size > 1000 else 0
    assert rows(path, "SELECT count(*) FROM parts") == [(5 * count,)]


def test_parts_go_with_their_object(path, store):
    count = "SELECT count(*) FROM parts"
    store.put("k", LARGE)
    store.put("l", OTHER)
    assert rows(path, count) == [(9,)]
    store.put("k", OTHER)
    assert rows(path, count) == [(8,)]
    store.copy("k", "l")
    store.copy("k", "k")
    assert store.get("k") == store.get("l") == OTHER
    assert rows(path, count) == [(8,)]
    store.put("k", b"small")
    assert rows(path, count) == [(4,)]
    store.copy("k", "l")
    assert rows(path, count) == [(0,)]
    assert store.get("l") == b"small"
    store.put("k", LARGE)
    store.put("l", LARGE)
    store.delete("k")
    store.delete_many(["l"])
    assert rows(path, count) == [(0,)]


def test_parts_of_another_size_are_read(path):
    with SqliteStore(path) as store:
        store.put("one row", LARGE)
        with PartedStore(path) as other:
            other.put("parts", LARGE)
            assert other.get_range("one row", 10, 2000) == LARGE[10:2000]
        assert store.get_range("parts", 10, 2000) == LARGE[10:2000]
        store.copy("parts", "copy")
        assert store.get("copy") == LARGE


def test_an_object_in_one_row_is_read_by_pieces(path):
    data = random.Random(4).randbytes(1 << 20)
    with SqliteStore(path) as store:
        store.put("k", data)
        assert rows(path, "SELECT count(*) FROM parts") == [(0,)]
        assert store.get_range("k", 0, 10) == data[:10]  # opens the file
        assert peak_memory(lambda: store.get_range("k", 900_000, 900_010)) < 100_000
        assert store.get_range("k", 900_000, 900_010) == data[900_000:900_010]


def test_memory_is_bounded(path):
    data = random.Random(5).randbytes(12 << 20)
    with SqliteStore(path) as store:
        store.put("k", data)
        assert peak_memory(lambda: store.put("l", data)) < 1 << 20
        assert peak_memory(lambda: store.copy("k", "m")) < 1 << 20
        assert peak_memory(lambda: store.get_range("k", 5 << 20, 6 << 20)) < 3 << 20
        assert peak_memory(lambda: store.get("k")) < 20 << 20
        with store.source("m") as source, source.path() as copied:
            assert copied.read_bytes() == data


def test_a_lent_file_that_is_none(store, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"secret")
    with pytest.raises(StorageError), store.writer("k") as sink:
        sink.path().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError), store.writer("k") as sink:
        lent = sink.path()
        lent.mkdir()
        (lent / "file").touch()
    assert not lent.exists()
    assert not store.exists("k")


def test_a_writer_is_used_in_one_way(store):
    for first in (
        lambda sink: sink.path(),
        lambda sink: sink.write(b"x"),
        lambda sink: sink.abort(),
    ):
        sink = store.writer("k")
        first(sink)
        with pytest.raises(InvalidInputError, match="used twice"):
            sink.path()
        sink.abort()
        for call in (lambda: sink.write(b"x"), sink.commit):  # noqa: B023 - called at once
            with pytest.raises(InvalidInputError, match="used twice"):
                call()
    sink = store.writer("k")
    sink.path()
    with pytest.raises(InvalidInputError):
        sink.write(b"x")
    sink.abort()
    assert not store.exists("k")


def test_a_writer_ends_with_its_store(store):
    sink = store.writer("k")
    sink.write(LARGE)
    store.close()
    with pytest.raises(ClosedError):
        sink.commit()
    sink.abort()


def test_a_writer_holds_no_lock(path, store):
    with store.writer("k") as sink:
        sink.write(bytes(3 << 20))
        with SqliteStore(path, timeout=0) as other:
            other.put("other", b"v")
    assert list(store.keys()) == ["k", "other"]


# --- what is being read --------------------------------------------------------------------------


@pytest.fixture(params=["log", "rollback journal"])
def either(request, path, monkeypatch):
    if request.param == "rollback journal":
        monkeypatch.setattr(sqlite_file, "on_network", lambda folder: True)
    with PartedStore(path, timeout=0) as store:
        yield store


def test_what_is_being_read_stops_no_writer(either):
    either.put("k", LARGE)
    with either.source("k") as source, either.open("k") as file, source.open() as third:
        assert file.read(10) == LARGE[:10]
        for data in (OTHER, b"small", LARGE[::-1]):
            either.put("k", data)
            either.sync(["k"])
        either.delete("k")
        either.compact()
        assert file.read() == LARGE[10:]
        assert source.read() == third.read() == LARGE
        assert source.read_range(900, 2100) == LARGE[900:2100]
        with source.path() as copied:
            assert copied.read_bytes() == LARGE


def test_readers_outlive_source_and_store(either):
    either.put("k", LARGE)
    source = either.source("k")
    file = source.open()
    source.close()
    source.close()
    for call in (source.open, source.read, lambda: source.read_range(0, 1)):
        with pytest.raises(ValueError, match="closed"):
            call()
    either.close()
    assert file.read() == LARGE
    file.close()
    assert files(either.db_path) == ["objects.db"]
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_sources_are_shared_by_threads(either):
    data = random.Random(6).randbytes(50_000)
    either.put("k", data)
    with either.source("k") as source:
        either.delete("k")

        def work(number):
            rng = random.Random(number)
            for _ in range(50):
                start = rng.randrange(50_000)
                stop = start + rng.randrange(5_000)
                assert source.read_range(start, stop) == data[start:stop]
            with source.open() as file:
                assert file.read() == data

        in_threads(work, 4)


def test_seeking(store):
    store.put("k", LARGE)
    with store.open("k") as file:
        assert file.seek(-10, os.SEEK_END) == 4490
        assert file.read() == LARGE[-10:]
        assert file.seek(9999) == 9999
        assert file.read() == b""
        with pytest.raises(ValueError, match="negative"):
            file.seek(-5000, os.SEEK_END)
        file.seek(990)
        buffer = bytearray(20)
        assert file.readinto(buffer) == 20
        assert buffer == LARGE[990:1010]
        assert not file.writable()


def test_few_connections_are_kept(store):
    store.put("k", LARGE)
    pool = store._session.pool
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(store.source("k"))
        assert len(pool._all) >= 20
    assert len(pool._all) == len(pool.idle) <= 4
    assert not pool.holders


def test_what_is_forgotten_is_given_back(store):
    store.put("k", LARGE)
    source, file = store.source("k"), store.open("k")
    assert len(store._session.pool.holders) == 2
    del source, file
    gc.collect()
    assert not store._session.pool.holders
    assert len(store._session.pool._all) == len(store._session.pool.idle)


def test_a_forgotten_store_leaves_no_connection(path):
    store = PartedStore(path)
    store.put("k", LARGE)
    pool = store._session.pool
    del store
    gc.collect()
    assert pool._all == {}
    assert files(path) == ["objects.db"]


@linux
def test_nothing_stays_open(path):
    def held():
        return [
            name for n in os.listdir("/proc/self/fd")
            if (name := os.path.realpath(f"/proc/self/fd/{n}")).startswith(str(path.parent))
        ]  # fmt: skip

    with PartedStore(path) as store:
        store.put("k", LARGE)
        with store.writer("w") as sink:
            sink.write(bytes(2 << 20))
        with pytest.raises(RuntimeError), store.writer("w") as sink:
            sink.write(bytes(2 << 20))
            raise RuntimeError
        with pytest.raises(KeyNotFoundError):
            store.source("absent")
        store.open("k").close()
    assert held() == []


# --- etags, space, disk --------------------------------------------------------------------------


def test_etags_never_repeat(path, store):
    etags = set()
    for n in range(20):
        store.put("k", b"same")
        etags.add(store.stat("k").etag)
        if n % 3 == 0:
            store.delete("k")
    store.put("k", b"same")
    before = store.stat("k")
    store.copy("k", "k")
    store.copy("k", "l")
    etags |= {before.etag, store.stat("k").etag, store.stat("l").etag}
    assert len(etags) == 23
    assert store.stat("k").modified >= before.modified


def test_deleted_bytes_are_used_again_or_given_back(path):
    with SqliteStore(path) as store:
        for n in range(50):
            store.put(f"k{n}", random.Random(n).randbytes(100_000))
        store.compact()
        full = path.stat().st_size
        assert full > 5_000_000
        store.delete_many(f"k{n}" for n in range(49))
        for n in range(40):
            store.put(f"l{n}", random.Random(n).randbytes(100_000))
        store.delete_many(f"l{n}" for n in range(40))
        assert path.stat().st_size <= full + 8192
        given = store.compact()
        assert given >= 4_800_000
        assert path.stat().st_size < 200_000
        assert store.get("k49") == random.Random(49).randbytes(100_000)
        assert store.compact() == 0


FULL = """
    import resource, sys
    from pathlib import Path
    from blobstore.backends.blob.sqlite import SqliteStore
    from blobstore.errors import OutOfSpaceError
    store = SqliteStore(sys.argv[1], fsync=sys.argv[2] == "fsync")
    old = bytes(range(256)) * 400
    store.put("k", old)
    store.put("filler", bytes(500_000))
    store.close()
    store = SqliteStore(sys.argv[1])
    limit = Path(sys.argv[1]).stat().st_size + 200_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    big = bytes(8_000_000)
    def stream():
        with store.writer("k") as sink:
            for start in range(0, len(big), 100_000):
                sink.write(big[start:start + 100_000])
    def lend():
        with store.writer("k.bin") as sink:
            sink.path().write_bytes(bytes(limit))
    for call in (
        lambda: store.put("k", big), lambda: store.put("new", big), stream, lend,
        lambda: store.put_if_absent("new", big), lambda: store.put("new", bytes(1 << 20)),
    ):
        try:
            call()
        except OutOfSpaceError as exc:
            assert "Free some space" in str(exc)
        else:
            raise AssertionError("there was room")
        assert store.get("k") == old
        assert not store.exists("new") and not store.exists("k.bin")
    # A full disk does not stop what frees some of it, nor what finds room in what was freed.
    store.delete("filler")
    for n in range(400):
        store.put("small", bytes([n % 256]) * 1000)
    assert store.get("small") == bytes([399 % 256]) * 1000
    store.close()
    print(*sorted(p.name for p in Path(sys.argv[1]).parent.iterdir()))
"""


@linux
@pytest.mark.parametrize("fsync", ["fsync", "not"])
def test_full_disk(path, fsync):
    done = run_python(FULL, path, fsync)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["objects.db"]


class Failing:
    """A connection on which the disk fails at some statements."""

    def __init__(self, connection, *texts):
        self.connection = connection
        self.texts = texts

    def __getattr__(self, name):
        return getattr(self.connection, name)

    def execute(self, text, *arguments):
        if text.startswith(self.texts):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return self.connection.execute(text, *arguments)


@pytest.mark.parametrize(
    ("data", "statement", "outcome"),
    [
        (b"small", "INSERT INTO objects", "unknown"),
        (LARGE, "COMMIT", "unknown"),
        (LARGE, "INSERT INTO parts", None),
    ],
)
def test_a_disk_that_fails(store, monkeypatch, data, statement, outcome):
    """At the end of a transaction it leaves open whether that landed: recovery may accept it."""
    store.put("k", b"old")
    pool = store._session.pool
    kept = pool.acquire()
    pool.release(kept)
    with monkeypatch.context() as patch:
        patch.setattr(pool, "acquire", lambda: Failing(kept, statement))
        patch.setattr(pool, "release", lambda kept: None)
        with pytest.raises(StorageError) as caught:
            store.put("k", data)
    assert getattr(caught.value, "outcome", None) == outcome
    assert caught.value.location == "k"
    assert store.get("k") == b"old"


def test_synced_with_the_log(path, monkeypatch):
    synced = []
    fsync = os.fsync

    def note(descriptor):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    with SqliteStore(path) as store:
        store.put("k", b"v")
        monkeypatch.setattr(os, "fsync", note)
        store.sync(["k", "absent"])
    assert synced == ["objects.db-wal", "folder"]


# --- others at work ------------------------------------------------------------------------------


def test_locked_for_too_long(path):
    with SqliteStore(path, timeout=0.01) as store:
        store.put("k", b"old")
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            for call in (
                lambda: store.put("k", b"new"),
                lambda: store.put("k", bytes(2 << 20)),
                lambda: store.delete("k"),
                lambda: store.delete_many(["k"]),
                lambda: store.copy("k", "l"),
                lambda: store.put_if_absent("l", b""),
                store.compact,
            ):
                with pytest.raises(UnavailableError, match="timeout") as caught:
                    call()
                assert caught.value.retryable
                assert caught.value.outcome == "failed"
            assert store.get("k") == b"old"
            assert list(store.keys()) == ["k"]
            other.execute("ROLLBACK")
        store.put("k", b"new")
        assert store.get("k") == b"new"


def test_a_turn_that_is_never_given_back(store, monkeypatch):
    store.put("k", b"old")
    monkeypatch.setattr(store._session, "_timeout", 0.01)
    lost = store._session.pool.writing
    with lost:
        store.put("k", b"new")
        store.put("k", LARGE)
    assert store._session.pool.writing is not lost
    assert store.get("k") == LARGE


def test_rollback_journal_on_network(path, monkeypatch):
    """New or moved there from a local disk; and back."""
    for there, mode in [(False, "wal"), (True, "delete"), (True, "delete"), (False, "wal")]:
        monkeypatch.setattr(sqlite_file, "on_network", lambda _, there=there: there)
        with PartedStore(path) as store:
            store.put("k", LARGE)
            assert Path(f"{path}-wal").exists() is not there
            assert rows(path, "PRAGMA journal_mode") == [(mode,)]
            with store.source("k") as source:
                assert (source._snapshot._copy is not None) is there
                assert source.read() == LARGE


WORKER = """
    import sys, threading
    from blobstore.backends.blob.sqlite import SqliteStore
    class Store(SqliteStore):
        part_size = 1000
    path, name = sys.argv[1:]
    sys.stdin.readline()
    store = Store(path)
    won = []
    def work(t):
        for i in range(15):
            data = f"{name}{t}{i}".encode() * (500 if i % 3 else 3)
            store.put(f"{name}/{t}/{i}", data)
            store.put("shared", data)
            assert store.get(f"{name}/{t}/{i}") == data
            found = store.get("shared")
            assert len(set(found[n:n + 4] for n in range(0, 12, 4))) <= 3 and found
            if store.put_if_absent(f"once/{t}/{i}", name.encode()):
                won.append((t, i))
            if i % 2:
                store.delete(f"{name}/{t}/{i}")
    threads = [threading.Thread(target=work, args=(t,)) for t in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    store.close()
    print(len(won))
"""


def test_two_processes_of_three_threads(path):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(WORKER), str(path)]
    pipe = subprocess.PIPE
    children = [
        subprocess.Popen([*command, name], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for name in "pq"
    ]
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    won = 0
    for child in children:
        out, error = child.communicate(timeout=120)
        assert (child.returncode, error) == (0, "")
        won += int(out)
    assert won == 45
    with PartedStore(path) as store:
        wanted = {f"{p}/{t}/{i}" for p in "pq" for t in range(3) for i in range(0, 15, 2)}
        assert set(store.keys("p/")) | set(store.keys("q/")) == wanted
        for key in wanted:
            name, t, i = key.split("/")
            assert store.get(key) == f"{name}{t}{i}".encode() * (500 if int(i) % 3 else 3)
        assert len(list(store.keys("once/"))) == 45
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    orphans = (
        "SELECT count(*) FROM parts WHERE object NOT IN (SELECT id FROM objects WHERE part > 0)"
    )
    assert rows(path, orphans) == [(0,)]
    assert files(path) == ["objects.db"]


def test_put_if_absent_of_large_objects_has_one_winner(store):
    blobs = [bytes([n]) * 5000 for n in range(6)]
    won = in_threads(lambda n: store.put_if_absent("k", blobs[n]), 6)
    assert won.count(True) == 1
    assert store.get("k") == blobs[won.index(True)]
    assert rows(store.db_path, "SELECT count(*) FROM parts") == [(5,)]


# --- forks ---------------------------------------------------------------------------------------


def test_a_forked_child_reads_on(store):
    """What is being read is copied before the fork: a connection must not be inherited."""
    store.put("k", LARGE)
    with store.source("k") as source, store.open("k") as file:
        assert file.read(10) == LARGE[:10]
        assert store._session.pool.holders

        def child():
            assert source.read() == LARGE
            assert file.read() == LARGE[10:]
            store.put("child", OTHER)
            with source.open() as another:
                assert another.read() == LARGE

        in_fork(child)
        assert not store._session.pool.holders
        store.delete("k")
        assert source.read() == LARGE
        assert file.read() == LARGE[10:]
        assert store.get("child") == OTHER


def test_what_cannot_be_copied_before_a_fork_is_lost_alone(store, monkeypatch):
    store.put("k", LARGE)

    def refuse(**_):
        raise OSError(28, "No space left on device")

    with store.source("k") as source:
        monkeypatch.setattr(sqlite_snapshot.tempfile, "TemporaryFile", refuse)

        def child():
            assert store.get("k") == LARGE
            with pytest.raises(StorageError, match="forked"):
                source.read()

        in_fork(child)
        with pytest.raises(StorageError, match="No space left"):
            source.read()
        assert store.get("k") == LARGE


def test_a_copy_that_cannot_be_made_is_an_error(path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "on_network", lambda folder: True)
    with PartedStore(path, timeout=0) as store:
        store.put("k", LARGE)

        def refuse(**_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(sqlite_snapshot.tempfile, "TemporaryFile", refuse)
            for read in (store.open, store.source):
                with pytest.raises(OutOfSpaceError):
                    read("k")
        assert not store._session.pool.holders
        store.put("k", OTHER)


TORN = """
    import os, sys, threading, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
    from blobstore.backends import sqlite_pool
    from blobstore.backends.blob.sqlite import SqliteStore
    from blobstore.errors import StorageError
    class Store(SqliteStore):
        part_size = 1000
    store = Store(sys.argv[1])
    store.put("k", bytes(5000))
    source = store.source("k")
    source.read_range(10, 20)  # has a part open
    sqlite_pool._FORK_WAIT = 0
    held, go = threading.Event(), threading.Event()
    def read():
        with source._snapshot._lock:
            held.set()
            go.wait()
    reader = threading.Thread(target=read)
    reader.start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        status = 0
        for call in (source.read, lambda: store.get("k")):
            try:
                call()
            except StorageError as exc:
                status |= "forked" not in str(exc)
            else:
                status |= 2
        source.close()
        sys.exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    go.set()
    reader.join()
    assert source.read() == bytes(5000)
    source.close()
    store.put("k", b"v")
    store.close()
    assert os.listdir(os.path.dirname(sys.argv[1])) == ["objects.db"]
"""


@linux
def test_a_fork_in_the_middle_of_reading(path):
    """The child finalises nothing of its parent's, and says what is the matter."""
    done = run_python(TORN, path)
    assert (done.returncode, done.stderr) == (0, "")


@linux
def test_a_fork_from_inside_a_read_lets_it_end(store):
    """A signal handler forks: the connection is in use by this very thread."""
    store.put("k", LARGE)
    with store.source("k") as source:
        snapshot = source._snapshot
        snapshot._reading = True
        snapshot.let_go()
        assert snapshot._kept is not None
        snapshot._reading = False
        snapshot.let_go()
        assert snapshot._kept is None
        assert source.read() == LARGE


# --- leftovers -----------------------------------------------------------------------------------


def test_leftovers_are_those_of_this_store(path, store):
    store.put("k", b"v")
    sink = store.writer("model.b2nd")
    lent = sink.path()
    assert lent.suffix == ".b2nd"
    lent.write_bytes(b"unfinished")
    foreign = path.with_name("other.db." + "0" * 32 + ".part")
    foreign.write_bytes(b"")
    path.with_name("objects.db." + "0" * 32 + ".new-journal").write_bytes(b"")
    found = {item.name: item for item in store.leftovers()}
    assert set(found) == {lent.name, "objects.db." + "0" * 32 + ".new-journal"}
    assert found[lent.name].size == 10
    assert found[lent.name].modified.utcoffset().total_seconds() == 0
    for name in found:
        store.remove_leftover(name)
        store.remove_leftover(name)
    assert list(store.leftovers()) == []
    for name in ("objects.db", foreign.name, "../" + lent.name, ""):
        with pytest.raises(InvalidInputError, match="no temporary file"):
            store.remove_leftover(name)
    assert foreign.exists()
    sink.abort()


def test_pickled_store_that_is_a_subclass(path):
    with PartedStore(path, timeout=3) as store:
        store.put("k", LARGE)
        with pickle.loads(pickle.dumps(store)) as copy:
            assert type(copy) is PartedStore
            assert copy.get("k") == LARGE
            assert repr(copy) == f"PartedStore({str(path)!r})"


def test_the_file_says_whose_it_is(path):
    with SqliteStore(path) as store:
        store.put("k", b"v")
    assert rows(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert rows(path, "PRAGMA user_version") == [(1,)]
    assert rows(path, "SELECT key, size, data FROM objects") == [("k", 1, b"v")]


def test_no_sqlalchemy_is_needed(path):
    code = """
        import sys
        from blobstore.backends.blob.sqlite import SqliteStore
        with SqliteStore(sys.argv[1]) as store:
            store.put("k", b"v")
            assert store.get("k") == b"v"
        assert "sqlalchemy" not in sys.modules
    """
    assert run_python(code, path).stderr == ""
