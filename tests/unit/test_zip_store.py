"""ZipStore beside the suite: other programs, other processes, torn files, damage, limits, costs."""

from __future__ import annotations

import fcntl
import gc
import io
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zipfile
import zlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from blobstore import BlobStore
from blobstore.backends.blob import zip_fields, zip_file, zip_format, zip_io, zip_sink
from blobstore.backends.blob.zip import ZipStore
from blobstore.errors import (
    ClosedError,
    ConfigError,
    IncompatibleStoreError,
    IntegrityError,
    InvalidInputError,
    InvalidKeyError,
    KeyNotFoundError,
    NotSupportedError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)
from blobstore.testing.object_store import in_fork, in_threads

needs_limits = pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "objects.zip"


@pytest.fixture
def store(path):
    with ZipStore(path) as store:
        yield store


def abandon(store: ZipStore) -> None:
    """Leave a store as a killed process would, between two of its calls."""
    store._finish.detach()
    store._file.close()


def contents(store: ZipStore) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.keys()}  # noqa: SIM118


def outside(path: Path) -> dict[str, bytes]:
    """What another program finds."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert len(names) == len(set(names))
        return {name: archive.read(name) for name in names}


# --- the file ------------------------------------------------------------------------------------


def test_file_is_made_by_the_first_put(tmp_path):
    path = tmp_path / "a/b/objects.zip"
    with ZipStore(path) as store:
        assert not store.exists("key")
        assert list(store.keys()) == []
        assert list(store.leftovers()) == []
        for call in (store.get, store.delete, store.stat, lambda key: store.copy(key, "b")):
            with pytest.raises(KeyNotFoundError):
                call("key")
        store.delete_many(["key"])
        store.sync(["key"])
        store.flush()
        assert store.compact() == 0
        assert not (tmp_path / "a").exists()
        store.put("key", b"1")
    assert outside(path) == {"key": b"1"}
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_reading_leaves_the_file_alone(path):
    with ZipStore(path) as store:
        store.put("key", b"1")
    before = path.read_bytes(), path.stat().st_mtime_ns
    with ZipStore(path) as store:
        assert contents(store) == {"key": b"1"}
        with pytest.raises(KeyNotFoundError):
            store.delete("absent")
        store.delete_many(["absent"])
        assert store.put_if_absent("key", b"2") is False
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    "content", [b"x", b"I was here first" * 20, b"PK\3\4 but no zip file", bytes(500)]
)
def test_what_is_no_zip_file_is_not_touched(path, content):
    path.write_bytes(content)
    before = path.stat().st_mtime_ns
    with ZipStore(path) as store:
        for call in (
            lambda: store.get("key"),
            lambda: store.put("key", b""),
            lambda: store.exists("key"),
            lambda: store.keys(),
            lambda: store.compact(),
            lambda: store.flush(),
        ):
            with pytest.raises(IncompatibleStoreError, match=r"objects\.zip is no zip file"):
                call()
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == before
    assert os.listdir(path.parent) == ["objects.zip"]


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_file(path, kind):
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with ZipStore(path) as store:
        for call in (lambda: store.get("key"), lambda: store.put("key", b"")):
            with pytest.raises(IncompatibleStoreError, match="no plain file"):
                call()


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with ZipStore(tmp_path / "a/b.zip") as store, pytest.raises(StorageError):
        store.put("key", b"")


def test_an_empty_file_is_an_empty_store(path):
    path.touch()
    with ZipStore(path) as store:
        assert list(store.keys()) == []
        store.put("key", b"1")
    assert outside(path) == {"key": b"1"}


def test_a_newer_format_is_refused(path):
    with ZipStore(path) as store:
        store.put("key", b"1")
    data = bytearray(path.read_bytes())
    data[data.index(b".blobstore") + 14] += 1
    path.write_bytes(data)
    with ZipStore(path) as store, pytest.raises(IncompatibleStoreError, match="newer"):
        store.put("key", b"2")
    assert path.read_bytes() == data


def test_file_that_vanishes_or_is_replaced(path, tmp_path):
    with ZipStore(path) as store:
        store.put("key", b"1")
        with store.open("key") as file:
            path.rename(tmp_path / "moved.zip")
            assert not store.exists("key")
            store.put("other", b"2")
            assert contents(store) == {"other": b"2"}
            with ZipStore(tmp_path / "moved.zip") as moved:
                assert contents(moved) == {"key": b"1"}
            assert file.read() == b"1"
        path.unlink()
        os.replace(tmp_path / "moved.zip", path)
        assert contents(store) == {"key": b"1"}


def test_links_stay_links(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.zip"
    link.symlink_to(tmp_path / "real/file.zip")
    with ZipStore(link) as store:
        store.put("key", b"1")
        store.put("key", b"2")
        os.chmod(link, 0o640)
        store.compact()
        assert store.get("key") == b"2"
    assert link.is_symlink()
    assert outside(tmp_path / "real/file.zip") == {"key": b"2"}
    assert stat.S_IMODE((tmp_path / "real/file.zip").stat().st_mode) == 0o640
    assert os.listdir(tmp_path / "real") == ["file.zip"]


def test_relative_paths_stay_where_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = ZipStore("s.zip")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with store:
        store.put("key", b"")
    assert (tmp_path / "s.zip").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        {"path": 5}, {"path": ""}, {"path": b"x.zip"}, {"path": "a\0b"},
        {"compression": "lzma"}, {"compression": None}, {"compression": ["stored"]},
        {"level": 0}, {"level": 10}, {"level": True}, {"timeout": -1}, {"timeout": "1"},
        {"timeout": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_arguments(tmp_path, arguments):
    with pytest.raises(ConfigError):
        ZipStore(**{"path": tmp_path / "x.zip", **arguments})


# --- kills ---------------------------------------------------------------------------------------


def put_new(store):
    store.put("new", b"n" * 300)


def overwrite(store):
    store.put("a", b"n" * 300)


def put_a_zip_file(store):
    """One that ends exactly where ours ends."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("inner", b"not an object of the outer one")
    store.put("a", inner.getvalue())


CHANGES = {
    "put": put_new,
    "overwrite": overwrite,
    "zip": put_a_zip_file,
    "delete": lambda store: store.delete("a"),
    "delete_many": lambda store: store.delete_many(["a", "b", "c"]),
    "flush": lambda store: store.flush(),
    "copy": lambda store: store.copy("a", "b"),
}


@pytest.mark.parametrize("unclean", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_every_beginning_of_a_change_leaves_the_old_or_the_new(path, change, unclean):
    """A write that is cut off anywhere, by a kill or a full disk."""
    with ZipStore(path) as store:
        for key in "abc":
            store.put(key, key.encode() * 50)
    store = ZipStore(path)
    if unclean or change == "flush":
        store.put("tail", b"t" * 70)
        store.delete("b")
    old, before = contents(store), path.read_bytes()
    CHANGES[change](store)
    new, after = contents(store), path.read_bytes()
    abandon(store)
    possible = [old, new]
    if change == "delete_many":  # each deletion by itself
        possible += [{k: v for k, v in old.items() if k != "a"}]
        possible += [{k: v for k, v in old.items() if k not in "ab"}]
    for cut in range(len(before), len(after) + 1):
        path.write_bytes(before[: len(zip_format.HEAD)] + after[len(zip_format.HEAD) : cut])
        reader = ZipStore(path)
        assert contents(reader) in possible, cut
        writer = ZipStore(path)
        writer.put("later", b"!")
        wanted = contents(reader)
        assert wanted.pop("later") == b"!"
        assert wanted in possible, cut
        reader.close()
        assert outside(path) == contents(writer) == wanted | {"later": b"!"}
        abandon(writer)


def test_every_beginning_of_a_new_file(path):
    with ZipStore(path) as store:
        store.put("key", b"data")
    whole = zip_format.HEAD + path.read_bytes()[len(zip_format.HEAD) :]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with ZipStore(path) as store:
            assert contents(store) in ({}, {"key": b"data"}), cut
            store.put("more", b"x")
        assert set(outside(path)) - {"key"} == {"more"}


def test_a_torn_tail_that_is_replaced_is_seen_by_those_who_looked_at_it(path):
    with ZipStore(path) as store:
        store.put("old", b"1")
    torn = zip_format.pack_record(
        zip_format.Record(zip_format.Kind.MEMBER, b"torn", stored=500, size=500, follows=500)
    )
    for tail in (torn, torn[:20], torn + b"x" * 499):
        size = path.stat().st_size
        with path.open("ab") as file:
            file.write(tail)
        reader, writer = ZipStore(path), ZipStore(path)
        assert not reader.exists("torn")
        assert path.stat().st_size == size + len(tail)
        writer.put("new", b"n" * (len(tail)))
        assert reader.get("new") == b"n" * len(tail)
        assert not reader.exists("torn")
        writer.close()
        reader.close()
    assert set(outside(path)) == {"old", "new"}


def test_blanks_at_the_end_are_what_a_power_cut_leaves(path):
    with ZipStore(path) as store:
        store.put("old", b"1")
    with path.open("ab") as file:
        file.write(bytes(3 << 20))
    with ZipStore(path) as store:
        assert contents(store) == {"old": b"1"}
        store.put("new", b"2")
    assert outside(path) == {"old": b"1", "new": b"2"}
    assert path.stat().st_size < 1 << 20


def test_directories_that_a_power_cut_took(path):
    for number in range(4):
        with ZipStore(path) as store:
            store.put(f"k{number}", b"x" * 100)
            store.put("same", b"%d" % number)
    whole = path.read_bytes()
    slots = zip_format.parse_slots(whole)
    assert [slot.sequence for slot in slots] == [4, 3]
    for kept in (slots[0].start, slots[1].start + 10, slots[1].start - 5, 400):
        path.write_bytes(whole[:kept])
        with ZipStore(path) as store:
            found = contents(store)
            assert found
            assert found["same"] in [b"0", b"1", b"2", b"3"]
            assert all(value == b"x" * 100 for key, value in found.items() if key != "same")
            store.put("later", b"1")
        assert outside(path) == found | {"later": b"1"}


def test_a_store_that_nobody_closes_is_finished_with_its_program(path):
    program = (
        "import sys; from blobstore.backends.blob.zip import ZipStore\n"
        "store = ZipStore(sys.argv[1]); store.put('key', b'1')"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert outside(path) == {"key": b"1"}
    store = ZipStore(path)
    store.put("key", b"2")
    del store
    assert outside(path) == {"key": b"2"}


# --- other programs ------------------------------------------------------------------------------


class Unseekable(io.RawIOBase):
    """What zipfile writes to with data descriptors."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.data += data
        return len(data)


def foreign_zip(path: Path, *, prefix: bytes = b"") -> dict[str, bytes]:
    """A zip file with all that others write; gives the objects in it."""
    raw = Unseekable()
    raw.data += prefix
    objects = {}
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, method in enumerate((0, 8, 12, 14)):
            for size in (0, 10, 200_000):
                key = f"m{method}/{size}"
                objects[key] = (b"%d" % number * 7 + bytes(range(256)) * (size // 256))[:size]
                archive.writestr(key, objects[key], method)
        archive.mkdir("folder")
        archive.writestr("../evil", b"evil")
        archive.writestr("C:/evil", b"evil")
        archive.writestr("folder/ü", b"utf8")
        archive.writestr("twice", b"first")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("twice", b"second")
        info = zipfile.ZipInfo("old", (1990, 5, 6, 7, 8, 10))
        info.external_attr, info.comment = 0o100755 << 16, b"a note"
        info.extra = b"\x99\x99\3\0abc"
        archive.writestr(info, b"old one")
        archive.comment = b"of the archive"
    path.write_bytes(raw.data)
    return objects | {"folder/ü": b"utf8", "twice": b"second", "old": b"old one"}


@pytest.mark.parametrize("prefix", [b"", b"#!/bin/sh\nexec unzip $0\n"], ids=["plain", "program"])
def test_zip_files_of_others_are_read(path, prefix):
    objects = foreign_zip(path, prefix=prefix)
    before = path.read_bytes()
    with ZipStore(path) as store:
        assert sorted(store.keys()) == sorted(objects)
        for key, data in objects.items():
            assert store.get(key) == data
            assert store.stat(key).size == len(data)
            assert store.get_range(key, 3, 100_000) == data[3:100_000]
            with store.open(key) as file, store.source(key) as source:
                assert file.seek(-5 if len(data) > 5 else 0, io.SEEK_END) == file.tell()
                assert file.read() == (data[-5:] if len(data) > 5 else b"")
                file.seek(1)
                assert file.read(7) == data[1:8]
                assert source.read() == data
        assert store.stat("old").modified == datetime(1990, 5, 6, 7, 8, 10).astimezone(UTC)
        assert not store.exists("folder")
    assert path.read_bytes() == before


@pytest.mark.parametrize("change", ["put", "delete", "copy", "flush", "compact"])
def test_zip_files_of_others_are_changed(path, change):
    objects = foreign_zip(path)
    with ZipStore(path) as store:
        etags = {key: store.stat(key) for key in objects}
        if change == "put":
            store.put("twice", b"third")
            store.put("new", b"n")
            objects |= {"twice": b"third", "new": b"n"}
        elif change == "delete":
            store.delete("twice")
            del objects["twice"]
        elif change == "copy":
            store.copy("m14/200000", "new")
            objects["new"] = objects["m14/200000"]
        else:
            getattr(store, change)()
        assert contents(store) == objects
        for key in objects.keys() & etags.keys() - {"twice"}:
            assert store.stat(key) == etags[key]
    with ZipStore(path) as store:
        assert contents(store) == objects
        store.compact()
        assert contents(store) == objects
    found = outside_with_duplicates(path)
    # What is no object was kept as it was.
    assert found == objects | {"folder/": b"", "../evil": b"evil", "C:/evil": b"evil"}
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("old")
        assert archive.comment == b"of the archive"
    assert (info.comment, info.external_attr >> 16) == (b"a note", 0o100755)
    assert info.date_time == (1990, 5, 6, 7, 8, 10)
    assert b"\x99\x99\3\0abc" in info.extra


def outside_with_duplicates(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {info.filename: archive.read(info) for info in archive.infolist()}


def test_a_self_extractor_is_not_changed(path):
    foreign_zip(path, prefix=b"#!/bin/sh\n")
    before = path.read_bytes()
    with ZipStore(path) as store, pytest.raises(IncompatibleStoreError, match="begins with"):
        store.put("new", b"n")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_empty_zip_files_of_others(path):
    zipfile.ZipFile(path, "w").close()
    with ZipStore(path) as store:
        assert list(store.keys()) == []
        store.put("key", b"1")
        store.delete("key")
    assert outside(path) == {}


def test_names_that_are_not_utf8(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("caf\xe9", b"1")
    data = path.read_bytes().replace("caf\xe9".encode(), b"caf\x82\x82")
    data = data.replace(b"\0\x08\0\0", b"\0\0\0\0")  # no longer marked as UTF-8
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        (name,) = archive.namelist()
    assert name == "caféé"
    with ZipStore(path) as store:
        assert contents(store) == {name: b"1"}
        store.put("new", b"2")
        assert store.get(name) == b"1"
        store.delete(name)
        store.put(name, b"3")
    with ZipStore(path) as store:
        assert contents(store) == {name: b"3", "new": b"2"}
    assert outside(path) == {name: b"3", "new": b"2"}


def encrypted_zip(path: Path) -> None:
    """Marks a member as encrypted; nothing here decrypts, so its bytes do not matter."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("secret", b"x" * 20)
        archive.writestr("open", b"y")
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)


def test_encrypted_members(path):
    encrypted_zip(path)
    with ZipStore(path) as store:
        for _ in range(2):
            assert {"open", "secret"} <= set(store.keys())
            for call in (
                store.get,
                store.open,
                store.source,
                lambda key: store.get_range(key, 0, 5),
                lambda key: store.copy(key, "copy"),
            ):
                with pytest.raises(NotSupportedError, match="encrypted"):
                    call("secret")
            assert store.get("open") == b"y"
            store.put("new", b"")  # makes the file ours
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("secret").flag_bits & 1
        with pytest.raises(RuntimeError, match="password"):
            archive.read("secret")
    with ZipStore(path) as store:
        store.put("secret", b"told")
    assert outside(path)["secret"] == b"told"


def test_compressions_that_nobody_knows(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("odd", b"x" * 20)
    data = bytearray(path.read_bytes())
    data[8] = data[data.index(b"PK\1\2") + 10] = 97
    path.write_bytes(data)
    with ZipStore(path) as store:
        for call in (store.get, store.open, store.source):
            with pytest.raises(NotSupportedError, match="method 97"):
                call("odd")
        store.put("new", b"")
        store.copy("odd", "copy")
        assert sorted(store.keys()) == ["copy", "new", "odd"]


@pytest.mark.parametrize("closed", [True, False])
def test_changes_by_another_program(path, closed):
    """It writes over our last directory, and adds its own."""
    store = ZipStore(path)
    for key in "ab":
        store.put(key, key.encode())
    store.put("a", b"again")
    store.close() if closed else store.flush()
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("theirs", b"t" * 5000)
        archive.comment = b"note"
    after = ZipStore(path) if closed else store
    with after as store:
        wanted = {"a": b"again", "b": b"b", "theirs": b"t" * 5000}
        assert contents(store) == wanted
        store.put("ours", b"o")
        assert contents(store) == wanted | {"ours": b"o"}
    assert outside(path) == wanted | {"ours": b"o"}
    with zipfile.ZipFile(path) as archive:
        assert archive.comment == b"note"


def test_a_comment_that_another_program_adds(path):
    with ZipStore(path) as store:
        store.put("a", b"1")
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"only this"
    with ZipStore(path) as store:
        store.put("b", b"2")
    assert outside(path) == {"a": b"1", "b": b"2"}
    with zipfile.ZipFile(path) as archive:
        assert archive.comment == b"only this"


@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
def test_unzip_is_content(path, tmp_path):
    with ZipStore(path, compression="deflated") as store:
        store.put("ü/a.txt", b"a" * 1000)
        store.put("b", b"old")
        store.flush()
        store.put("b", b"new")
        store.put("c", b"gone")
        store.delete("c")
    done = subprocess.run(
        ["unzip", "-o", str(path), "-d", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr
    assert (tmp_path / "out/b").read_bytes() == b"new"
    assert sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file()) == ["a.txt", "b"]


@pytest.mark.parametrize(
    "key", ["../x", "/abs", "a\\..\\..\\x", "C:\\x", "\\x", ".", "", "a/../../x"]
)
def test_evil_keys(store, path, tmp_path, key):
    calls = [
        store.get, store.exists, store.delete, store.stat, store.open, store.source,
        store.local_path, store.writer, lambda key: store.put(key, b"x"),
        lambda key: store.put_if_absent(key, b"x"), lambda key: store.delete_many([key]),
        lambda key: store.copy("fine", key), lambda key: store.copy(key, "fine"),
        lambda key: store.get_range(key, 0, 1), lambda key: store.sync([key]),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InvalidKeyError):
            call(key)
    assert not path.exists()


def test_extraction_stays_in_its_folder(store, path, tmp_path):
    keys = ["a", "d/e/f", "...", "~", "back\\slash", "two words", "..a/..b", "-rf", "a/C:x", "ü"]
    stored = {}
    for key in keys:
        with suppress(InvalidKeyError):
            store.put(key, key.encode())
            stored[key] = key.encode()
    assert set(keys) - set(stored) == {"a/C:x"}, "a is a file"
    store.close()
    target = tmp_path / "deep/target"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(target)
    found = {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    assert found == stored
    assert sorted(os.listdir(tmp_path)) == ["deep", "objects.zip"]


def test_no_object_is_a_folder(store):
    store.put("a/b/c", b"1")
    for key in ("a", "a/b", "a/b/c/d", "a/b/c/d/e"):
        with pytest.raises(InvalidKeyError, match="beside"):
            store.put(key, b"")
        with pytest.raises(InvalidKeyError, match="beside"):
            store.put_if_absent(key, b"")
        with pytest.raises(InvalidKeyError, match="beside"):
            store.copy("a/b/c", key)
        with pytest.raises(InvalidKeyError, match="beside"), store.writer(key) as sink:
            sink.write(b"")
        assert not store.exists(key)
    store.put("a/b/d", b"2")
    store.delete("a/b/c")
    with pytest.raises(InvalidKeyError, match="beside"):
        store.put("a/b", b"")
    store.delete("a/b/d")
    store.put("a", b"3")
    assert contents(store) == {"a": b"3"}


def test_names_that_are_too_long(store, path):
    key = "n" * 70_000
    assert not store.exists(key)
    with pytest.raises(KeyNotFoundError):
        store.get(key)
    for call in (lambda: store.put(key, b""), lambda: store.writer(key)):
        with pytest.raises(InvalidKeyError, match="65535"):
            call()
    assert not path.exists()
    store.put(key[:65535], b"1")
    store.put("b", b"2")
    other = ZipStore(path)
    assert contents(other) == {key[:65535]: b"1", "b": b"2"}
    abandon(other)


# --- other processes -----------------------------------------------------------------------------


def write_many(path: str, name: str, count: int) -> None:
    with ZipStore(path) as store:
        for number in range(count):
            store.put(f"{name}/{number}", f"{name} {number}".encode() * 50)
            store.put("shared", name.encode() * 1000)
            if number % 2:
                store.delete(f"{name}/{number}")
            if number % 20 == 5:
                store.compact()
            if number % 7 == 3:
                store.flush()


def test_two_processes_write_at_once(path):
    processes = [spawn.Process(target=write_many, args=(str(path), n, 60)) for n in ("one", "two")]
    for process in processes:
        process.start()
    reader = ZipStore(path)
    while any(process.is_alive() for process in processes):
        for key in list(reader.keys()):
            with suppress(KeyNotFoundError):  # deleted meanwhile
                data = reader.get(key)
                name = data[:3].decode()
                wanted = name * 1000 if key == "shared" else key.replace("/", " ") * 50
                assert data == wanted.encode()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    wanted = {f"{n}/{i}" for n in ("one", "two") for i in range(0, 60, 2)} | {"shared"}
    assert set(reader.keys()) == wanted
    reader.close()
    assert set(outside(path)) == wanted


def claim(path: str, name: str, count: int) -> list[bool]:
    with ZipStore(path) as store:
        return [store.put_if_absent(f"k{i}", name.encode()) for i in range(count)]


def test_put_if_absent_has_one_winner_among_processes(path):
    with spawn.Pool(2) as pool:
        won = pool.starmap(claim, [(str(path), name, 200) for name in "ab"])
    assert all(one is not two for one, two in zip(*won, strict=True))
    with ZipStore(path) as store:
        for number in range(200):
            assert store.get(f"k{number}") == (b"a" if won[0][number] else b"b")


def test_stores_see_each_other_at_once(path):
    with ZipStore(path) as one, ZipStore(path) as two:
        one.put("a", b"1")
        assert two.get("a") == b"1"
        two.put("a", b"2")
        two.put("b", b"2")
        assert contents(one) == {"a": b"2", "b": b"2"}
        one.delete("a")
        assert not two.exists("a")
        one.compact()
        two.put("c", b"3")
        two.compact()
        assert contents(one) == contents(two) == {"b": b"2", "c": b"3"}
        one.close()
        two.put("d", b"4")
    assert set(outside(path)) == {"b", "c", "d"}


def test_open_files_outlive_everything(path):
    data = os.urandom(300_000)
    for compression in ("stored", "deflated"):
        with ZipStore(path, compression=compression) as store:
            store.put("key", data)
            with store.open("key") as file, store.source("key") as source:
                assert file.read(10) == data[:10]
                store.put("key", b"newer")
                store.compact()
                store.delete("key")
                store.compact()
                store.close()
                path.unlink()
                assert file.read() == data[10:]
                assert source.read() == data
                with source.open() as again, source.path() as lent:
                    assert again.read(5) == data[:5]
                    assert lent.read_bytes() == data
            with pytest.raises(ValueError, match="closed"):
                source.read()


def test_waiting_for_another_writer_ends(path):
    with ZipStore(path, timeout=0.01) as store:
        store.put("key", b"1")
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            for call in (
                lambda: store.put("key", b"2"),
                lambda: store.delete("key"),
                store.compact,
                store.flush,
            ):
                with pytest.raises(UnavailableError, match="another writer"):
                    call()
            assert store.get("key") == b"1"
        store.put("key", b"2")
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(UnavailableError):
                store.close()
    with ZipStore(path) as store:
        assert store.get("key") == b"2"


def test_a_reader_does_not_wait_to_add_a_directory(path):
    store = ZipStore(path)
    store.put("key", b"1")
    before = path.read_bytes()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with ZipStore(path) as reader:
            assert reader.get("key") == b"1"
    assert path.read_bytes() == before
    store.close()


def test_a_child_leaves_the_lock_of_its_parent_alone(path):
    with ZipStore(path) as store:
        store.put("key", b"1")
        with store._file.appending() as view:

            def child() -> None:
                assert store.get("key") == b"1"
                with pytest.raises(UnavailableError), ZipStore(path, timeout=0) as other:
                    other.put("key", b"child")
                store._file._timeout = 0
                with pytest.raises(UnavailableError):
                    store.put("key", b"child")
                store._file.close()

            in_fork(child)
            with path.open("rb") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert view.members.keys() == {"key"}
        assert store.get("key") == b"1"


def test_pickled_copies(path):
    with ZipStore(path, compression="deflated", level=9, fsync=True) as store:
        store.put("key", b"1" * 1000)
        with pickle.loads(pickle.dumps(store)) as copy:
            assert copy._options == store._options
            assert copy.get("key") == b"1" * 1000
    with pytest.raises(ClosedError):
        pickle.dumps(store)


def test_threads_while_others_compact(path):
    with ZipStore(path) as store:

        def work(number: int) -> bool:
            good = True
            for turn in range(40):
                key = f"{number}/{turn % 5}"
                data = key.encode() * (turn * 100)
                store.put(key, data)
                good &= store.get(key) == data
                if number == 0 and turn % 10 == 9:
                    store.compact()
                if number == 1 and turn % 10 == 4:
                    store.delete_many([f"1/{n}" for n in range(5)])
            return good

        assert all(in_threads(work, 4))
        found = contents(store)
    assert outside(path) == found


def test_closing_while_others_write(path):
    store = ZipStore(path)
    acknowledged: list[str] = []

    def work(number: int) -> None:
        with suppress(ClosedError):
            for turn in range(10_000):
                if number == 0 and turn == 20:
                    store.close()
                store.put(f"{number}/{turn}", b"x")
                acknowledged.append(f"{number}/{turn}")
                store.get(f"{number}/{turn}")

    in_threads(work, 3)
    with ZipStore(path) as again:
        assert set(acknowledged) <= set(again.keys())


# --- damage and limits ---------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["stored", "deflated"])
def test_damaged_bytes_are_never_given(path, compression):
    data = b"0123456789" * 5000
    with ZipStore(path, compression=compression) as store:
        store.put("key", data)
        store.put("fine", b"fine")
        start = store._find("key").start
    raw = bytearray(path.read_bytes())
    raw[start + 40] ^= 4
    path.write_bytes(raw)
    with ZipStore(path) as store:
        with pytest.raises(IntegrityError, match="'key'") as caught:
            store.get("key")
        assert caught.value.location == "key"
        with store.open("key") as file, pytest.raises(IntegrityError):
            file.read()
        with store.open("key") as file, pytest.raises(IntegrityError):
            while file.read(1000):
                pass
        with store.source("key") as source, pytest.raises(IntegrityError):
            source.read()
        assert store.get("fine") == b"fine"
        store.compact()
        with pytest.raises(IntegrityError):
            store.get("key")
        store.put("key", data)
        assert store.get("key") == data


def test_packed_bytes_that_end_too_early_or_too_late(path):
    with ZipStore(path, compression="deflated") as store:
        store.put("key", b"0" * 100_000)
        place = store._find("key")
        packed = place.handle.read(place.start, place.start + place.member.stored)
    for wrong in (zlib.compress(b"0" * 10, wbits=-15), zlib.compress(b"1" * 999_999, wbits=-15)):
        raw = bytearray(path.read_bytes())
        raw[place.start : place.start + len(packed)] = wrong[: len(packed)].ljust(
            len(packed), b"\0"
        )
        path.write_bytes(raw)
        with ZipStore(path) as store:
            with pytest.raises(IntegrityError):
                store.get("key")
            with pytest.raises(IntegrityError), store.open("key") as file:
                file.read()


def test_garbage_behind_the_records_is_no_torn_write(path):
    with ZipStore(path) as store:
        store.put("key", b"1")
    whole = path.read_bytes() + b"garbage" * 100
    path.write_bytes(whole)
    store = ZipStore(path, timeout=1)
    for call in (lambda: store.get("key"), lambda: store.put("new", b"")):
        with pytest.raises(IntegrityError, match=rf"damaged at byte {len(whole) - 700}"):
            call()
    store.close()
    assert path.read_bytes() == whole


def test_a_file_that_got_shorter(path):
    with ZipStore(path) as store:
        store.put("a", b"1" * 1000)
        store.put("b", b"2" * 1000)
        with store.open("b") as file:
            os.truncate(path, 1500)
            assert contents(store) == {"a": b"1" * 1000}
            with pytest.raises(IntegrityError):
                file.read()
        store.put("c", b"3")
    assert outside(path) == {"a": b"1" * 1000, "c": b"3"}


def test_members_that_are_not_where_the_directory_says(path):
    foreign_zip(path)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\3\4", 100)
    raw[at : at + 4] = b"XXXX"
    path.write_bytes(raw)
    with ZipStore(path) as store:
        with pytest.raises(IntegrityError, match="not where the directory"):
            contents(store)
        with pytest.raises(IntegrityError):
            store.put("new", b"")
    assert path.read_bytes() == raw
    assert os.listdir(path.parent) == [path.name]


def limited(work, limit: int) -> None:
    """Run in a child whose files cannot grow beyond a size, as on a full disk."""

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        work()

    in_fork(child)


def test_full_disk(path):
    with ZipStore(path) as store:
        store.put("key", b"old" * 1000)
    before = path.read_bytes()

    def work() -> None:
        store = ZipStore(path)
        big = os.urandom(20_000)

        def write() -> None:
            with store.writer("key") as sink:
                sink.write(big)

        def write_much() -> None:
            with store.writer("key", size_hint=5 << 20) as sink:
                sink.write(big * 100)

        def lend() -> None:
            with store.writer("key") as sink:
                sink.path().write_bytes(big[:5000])

        for call in (
            lambda: store.put("key", big),
            lambda: store.put_if_absent("new", big),
            write,
            write_much,
            lend,
        ):
            with pytest.raises(OutOfSpaceError):
                call()
            assert path.read_bytes() == before
            assert store.get("key") == b"old" * 1000
        store.put("small", b"s")
        assert contents(store) == {"key": b"old" * 1000, "small": b"s"}
        for number in range(100):
            try:
                store.put(f"n{number}", b"x" * 60)
            except OutOfSpaceError:
                break
        with pytest.raises(OutOfSpaceError):
            store.flush()
        with pytest.raises(OutOfSpaceError):
            store.close()

    limited(work, 6000)
    assert os.listdir(path.parent) == [path.name]
    with ZipStore(path) as store:
        found = contents(store)
        assert found["key"] == b"old" * 1000
        assert found["small"] == b"s"
    assert outside(path) == found


def test_full_disk_while_compacting(path):
    with ZipStore(path) as store:
        store.put("key", b"old" * 1000)
        store.put("key", b"new" * 2000)

    def work() -> None:
        store = ZipStore(path)
        with pytest.raises(OutOfSpaceError):
            store.compact()
        assert list(store.leftovers()) == []

    limited(work, 5000)
    assert os.listdir(path.parent) == [path.name]
    assert outside(path) == {"key": b"new" * 2000}


@needs_limits
def test_files_that_may_only_be_read(path):
    store = ZipStore(path)
    store.put("key", b"1")
    abandon(store)
    path.chmod(0o444)
    with ZipStore(path) as store:
        assert store.get("key") == b"1"
        with pytest.raises(PermissionDeniedError):
            store.put("key", b"2")
    path.chmod(0o644)


def test_an_interrupted_write_is_taken_back(store, path, monkeypatch):
    store.put("key", b"old")
    size = path.stat().st_size
    real = os.pwritev

    def interrupted(fd, buffers, at):
        real(fd, [buffers[0]], at)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zip_io.os, "pwritev", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.put("key", b"new" * 100)
    assert path.stat().st_size == size
    assert store.get("key") == b"old"
    store.put("key", b"newer")
    assert store.get("key") == b"newer"


def test_what_is_whole_is_not_taken_back(store, path, monkeypatch):
    store.put("key", b"old")
    real = os.pwritev

    def interrupted(fd, buffers, at):
        real(fd, buffers, at)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zip_io.os, "pwritev", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.put("key", b"new")
    assert store.get("key") == b"new"
    store.put("other", b"1")
    assert contents(store) == {"key": b"new", "other": b"1"}


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_short_writes_go_on(store, monkeypatch, most):
    real = os.pwritev

    def short(fd, buffers, at):
        return real(fd, [memoryview(buffers[0])[:most]], at)

    monkeypatch.setattr(zip_io.os, "pwritev", short)
    store.put("key", b"0123456789" * 30)
    with store.writer("other", size_hint=2 << 20) as sink:
        sink.write(b"abc" * 500)
    assert contents(store) == {"key": b"0123456789" * 30, "other": b"abc" * 500}


def test_copying_where_the_kernel_cannot(store, monkeypatch):
    def cannot(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(zip_io.os, "copy_file_range", cannot)
    data = os.urandom(3 << 20)
    with store.writer("key", size_hint=len(data)) as sink:
        sink.write(data)
    store.copy("key", "copy")
    store.compact()
    assert store.get("copy") == store.get("key") == data


# --- huge files ----------------------------------------------------------------------------------


def test_zip64_fields_in_a_file(path, monkeypatch):
    """With the limit at 1,000 bytes, so that nearly everything needs them."""
    monkeypatch.setattr(zip_fields, "ZIP64_LIMIT", 1000)
    objects = {f"k{n}": b"x" * n for n in (0, 10, 999, 1000, 1001, 5000)}
    with ZipStore(path) as store:
        for key, data in objects.items():
            store.put(key, data)
        assert contents(store) == objects
    assert outside(path) == objects
    monkeypatch.undo()
    with ZipStore(path) as store:
        assert contents(store) == objects
        store.put("new", b"1")
        store.compact()
    assert outside(path) == objects | {"new": b"1"}


def test_an_object_behind_4_gib(path):
    """In a hole: a member of 5 GiB that nothing was written of."""
    size = 5 << 30
    with ZipStore(path) as store:
        store.put("a", b"1")
        abandon(store)
    record = zip_format.Record(
        zip_format.Kind.MEMBER, b"huge", stored=size, size=size, tag=5, follows=size
    )
    with path.open("ab") as file:
        file.write(zip_format.pack_record(record))
        file.truncate(file.tell() + size)
    with ZipStore(path) as store:
        store.put("behind", b"2")
        assert store.stat("huge").size == size
        assert store.get_range("huge", size - 5, size + 5) == bytes(5)
        assert store.get("behind") == b"2"
    with ZipStore(path) as store:
        assert sorted(store.keys()) == ["a", "behind", "huge"]
        assert store.get("behind") == b"2"
    with zipfile.ZipFile(path) as archive:
        assert archive.read("behind") == b"2"
        assert archive.getinfo("huge").file_size == size
        assert archive.getinfo("behind").header_offset > size


def test_seventy_thousand_objects(path):
    with ZipStore(path) as store, store._file.appending() as view:
        # In one go: 70,000 puts would show nothing else, and take their time.
        kind = zip_format.Kind.MEMBER
        records = [zip_format.Record(kind, b"%d" % number) for number in range(70_000)]
        store._file.append(view, records)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 70_000
    with ZipStore(path) as store:
        assert len(list(store.keys())) == 70_000
        store.put("new", b"1")
        store.compact()
        assert len(list(store.keys())) == 70_001


# --- cost ----------------------------------------------------------------------------------------

CALLS = {"stat", "fstat", "open", "close", "flock", "pwritev", "pread", "preadv", "fsync"}


def cost(work) -> tuple[list[str], int]:
    """The system calls of a piece of work, and how many calls of any kind it took."""
    seen: list[str] = []
    count = 0

    def note(frame, event, argument) -> None:
        nonlocal count
        count += 1
        if event == "c_call" and argument.__name__ in CALLS and argument.__module__ != "builtins":
            seen.append(argument.__name__)

    gc.disable()  # a collection would be counted, with whatever it finalises
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return seen, count


def test_a_put_costs_the_same_whatever_is_there(path):
    costs, grown = [], []
    with ZipStore(path) as store:
        for members in (10, 5000):
            for number in range(members):
                store.put(f"{members}/{number}", b"")
            before = path.stat().st_size
            costs.append(cost(lambda m=members: store.put(f"new{m:04}", b"data")))
            grown.append(path.stat().st_size - before)
    assert costs[0] == costs[1]
    assert grown[0] == grown[1] == 4 + zip_format.record_size(b"new0000")
    assert [call for call in costs[0][0] if call not in ("fstat", "flock")].count("pwritev") == 1
    assert len(costs[0][0]) <= 8, costs[0][0]


def test_reading_costs_the_same_whatever_is_there(path):
    with ZipStore(path) as store:
        for number in range(3000):
            store.put(f"{number}", b"x")
        calls, _ = cost(lambda: store.get("7"))
        assert calls == ["stat", "pread"]
        calls, _ = cost(lambda: store.exists("absent"))
        assert calls == ["stat"]


def test_what_fsync_syncs(path, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(fd):
        synced.append(os.path.realpath(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with ZipStore(path) as store:
        store.put("key", b"1")
        assert synced == []
        store.sync(["key"])
        assert synced == [str(path), str(path.parent)]
        synced.clear()
        store.sync([])
    assert synced == []
    with ZipStore(path, fsync=True) as store:
        for change in (
            lambda: store.put("key", b"1"),
            lambda: store.copy("key", "b"),
            lambda: store.delete("key"),
            lambda: store.delete_many(["b"]),
        ):
            change()
            assert synced == [str(path)]
            synced.clear()
        store.compact()
        assert synced[-1] == str(path.parent)
        path.unlink()
        synced.clear()
        store.put("key", b"1")
        assert synced == [str(path.parent), str(path)]


# --- garbage -------------------------------------------------------------------------------------


def test_compact(path):
    with ZipStore(path) as store:
        for turn in range(5):
            store.put("key", os.urandom(10_000))
            store.put(f"k{turn}", b"x")
        store.delete("k0")
        old, stats = contents(store), {key: store.stat(key) for key in contents(store)}
        before = path.stat().st_size
        assert store.compact() == before - path.stat().st_size > 39_000
        assert contents(store) == old
        assert {key: store.stat(key) for key in contents(store)} == stats
        assert outside(path) == old, "readable at once"
        assert list(store.leftovers()) == []
    assert store.path.stat().st_size < 11_500


@pytest.mark.parametrize("auto", [True, False])
def test_closing_compacts_when_most_is_garbage(path, auto):
    with ZipStore(path, auto_compact=auto) as store:
        for _ in range(6):
            store.put("key", os.urandom(1 << 20))
        last = store.get("key")
    assert (path.stat().st_size < 2 << 20) is auto
    assert outside(path) == {"key": last}
    with ZipStore(path, auto_compact=True) as store:
        assert store.get("key") == last
    assert (path.stat().st_size < 2 << 20) is auto, "who only reads compacts nothing"


def test_many_sessions_do_not_make_the_file_grow_without_bound(path, monkeypatch):
    monkeypatch.setattr("blobstore.backends.blob.zip.COMPACT_AT", 1000)
    for number in range(300):
        with ZipStore(path) as store:
            store.put("key", b"%d" % number)
    assert path.stat().st_size < 3000
    with ZipStore(path) as store:
        assert contents(store) == {"key": b"299"}


def test_closing_goes_on_when_compacting_fails(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    store = ZipStore(path)
    for _ in range(6):
        store.put("key", bytes(1 << 20))
    monkeypatch.setattr(zip_file, "write_copy", full)
    store.close()
    assert outside(path) == {"key": bytes(1 << 20)}
    assert os.listdir(path.parent) == [path.name]


def test_leftovers(store, path):
    store.put("key", b"1")
    names = [".blobstore-00000000-" + "0" * 32, ".blobstore-x", "put-" + "0" * 32]
    for name in names:
        (path.parent / name).write_bytes(b"another's")
    assert list(store.leftovers()) == []
    sink = store.writer("key.b2nd")
    lent = sink.path()
    assert lent.parent == path.parent
    assert lent.suffix == ".b2nd"
    lent.write_bytes(b"12345")
    (left,) = store.leftovers()
    assert (left.name, left.size) == (lent.name, 5)
    assert datetime.now(UTC) - left.modified < timedelta(hours=1)
    with lent.open("rb") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        assert list(store.leftovers()) == [], "somebody is writing it"
    for name in (*names, "../x", "key", path.name, 5):
        with pytest.raises(InvalidKeyError):
            store.remove_leftover(name)
    store.remove_leftover(lent.name)
    store.remove_leftover(lent.name)
    assert not lent.exists()
    with pytest.raises(InvalidInputError, match="nothing was written"):
        sink.commit()
    lent = store.writer("key").path()
    lent.mkdir()
    (lent / "inside").write_bytes(b"")
    (left,) = store.leftovers()
    store.remove_leftover(left.name)
    assert sorted(os.listdir(path.parent)) == sorted([*names, path.name])


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["stored", "deflated"])
@pytest.mark.parametrize("size", [0, 10, zip_sink.IN_MEMORY, zip_sink.IN_MEMORY + 1, 5 << 20])
def test_writer_sizes(path, size, compression):
    data = os.urandom(size)
    with ZipStore(path, compression=compression) as store:
        with store.writer("written") as sink:
            for at in range(0, size, 700_000):
                sink.write(data[at : at + 700_000])
        with store.writer("lent") as sink:
            sink.path().write_bytes(data)
        assert store.get("written") == store.get("lent") == data
    assert outside(path) == {"written": data, "lent": data}


def test_writers_are_used_one_way(store):
    def twice(sink):
        sink.path()
        sink.path()

    def both(sink):
        sink.path()
        sink.write(b"x")

    def other_way(sink):
        sink.write(b"x")
        sink.path()

    def late(sink):
        sink.commit()
        sink.write(b"x")

    for misuse in (twice, both, other_way, late):
        sink = store.writer("key")
        with pytest.raises(InvalidInputError, match="used twice"):
            misuse(sink)
        sink.abort()
        sink.abort()


def test_a_writer_outlives_compaction_but_not_its_store(store, path):
    with store.writer("key", size_hint=2 << 20) as sink:
        sink.write(b"1")
        store.put("other", b"2")
        store.compact()
    assert store.get("key") == b"1"
    with pytest.raises(ClosedError), store.writer("new") as sink:
        sink.write(b"1")
        store.close()
    assert set(outside(path)) == {"key", "other"}
    assert os.listdir(path.parent) == [path.name]


def test_data_that_does_not_shrink_is_stored(path):
    with ZipStore(path, compression="deflated", level=9) as store:
        noise = os.urandom(1000)
        store.put("noise", noise)
        store.put("text", b"a" * 1000)
        assert store._find("noise").member.method == zip_fields.STORED
        assert store._find("text").member.stored < 50
        assert contents(store) == {"noise": noise, "text": b"a" * 1000}


def test_times_are_kept_exactly(path):
    before = datetime.now(UTC)
    with ZipStore(path) as store:
        store.put("key", b"1")
        stat_ = store.stat("key")
        assert before - timedelta(microseconds=1) <= stat_.modified <= datetime.now(UTC)
    with ZipStore(path) as store:
        assert store.stat("key") == stat_
    with zipfile.ZipFile(path) as archive:
        moment = datetime(*archive.getinfo("key").date_time).astimezone(UTC)
    assert abs(moment - stat_.modified) <= timedelta(seconds=2)


def test_under_a_blob_store(tmp_path):
    with BlobStore(tmp_path / "s", blob_backend=ZipStore(tmp_path / "blobs.zip")) as store:
        store.put({"a": [1, 2, 3]}, key="k")
        store.put(b"bytes" * 1000, key="b")
        store.put(b"other" * 1000, key="b")
    with BlobStore(tmp_path / "s", blob_backend=ZipStore.for_folder(tmp_path)) as store:
        assert store["k"] == {"a": [1, 2, 3]}
        assert store["b"] == b"other" * 1000
        assert store.verify(deep=True).ok
        store.gc(dry_run=False, grace=0)
    assert len(outside(tmp_path / "blobs.zip")) == 3


def test_no_thread_stays_behind(path):
    with ZipStore(path) as store:
        store.put("key", b"")
    assert not [t for t in threading.enumerate() if t.name.startswith("blobstore")]


# --- races, one step at a time -------------------------------------------------------------------


def test_a_reader_that_is_faster_than_the_writer_itself(store, path, monkeypatch):
    store.put("a", b"1")
    real = store._file._write

    def write(*arguments):
        real(*arguments)
        store.keys()  # a thread that reads takes in what was just written

    monkeypatch.setattr(store._file, "_write", write)
    store.put("b", b"2")
    store.delete_many(["a", "b"])
    for key in "abc":
        monkeypatch.setattr(store._file, "_write", real)
        store.put(key, key.encode())
        monkeypatch.setattr(store._file, "_write", write)
        store.put(f"{key}2", b"x")
    store.flush()
    wanted = {"a": b"a", "b": b"b", "c": b"c", "a2": b"x", "b2": b"x", "c2": b"x"}
    assert contents(store) == outside(path) == wanted


def test_a_compacted_file_is_locked_when_it_gets_its_name(store, path, monkeypatch):
    store.put("a", b"1")
    real, tried = os.replace, []

    def replace(draft, target):
        assert list(store.leftovers()) == [], "it is being written"
        real(draft, target)
        with path.open("rb") as other, pytest.raises(BlockingIOError):
            tried.append(target)
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(os, "replace", replace)
    store.compact()
    assert tried == [str(path)]
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_another_program_makes_the_file_shorter(path):
    """It takes away a long comment, and adds a small member, where our directory was."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"1")
        archive.comment = b"long " * 1000
    with ZipStore(path) as store:
        store.put("b", b"2")
    before = path.stat().st_size
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("theirs", b"t")
        archive.comment = b""
    assert path.stat().st_size < before
    with ZipStore(path) as store:
        assert contents(store) == {"a": b"1", "b": b"2", "theirs": b"t"}
        store.put("c", b"3")
    assert outside(path) == {"a": b"1", "b": b"2", "theirs": b"t", "c": b"3"}


def test_an_object_that_is_replaced_is_never_absent(store):
    class Watched(dict):
        def pop(self, *arguments):
            raise AssertionError("a thread that reads now finds nothing")

    store.put("d/a", b"1")
    view = store._file.view()
    view.members = Watched(view.members)
    store.put("d/a", b"22")
    store.copy("d/a", "d/b")
    with store.writer("d/a") as sink:
        sink.write(b"333")
    assert store._file.view() is view
    assert contents(store) == {"d/a": b"333", "d/b": b"22"}
    view.members = dict(view.members)
    store.delete_many(["d/a", "d/b"])
    store.put("d", b"no folder any more")


def test_a_record_cut_short_behind_a_directory_is_removed_by_whoever_closes(tmp_path):
    """Other programs look for the directory at the end of the file."""
    path = tmp_path / "z.zip"
    with ZipStore(path) as store:
        store.put("a", b"1")
    with ZipStore(path, compression="stored") as store:
        store.put("b", bytes(200_000))
        store._file.dirty = False  # as if it was killed
        store._finish.detach()
    os.truncate(path, path.stat().st_size - 100_000)
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(path)
    with ZipStore(path) as reader:
        assert reader.get("a") == b"1"
        assert not reader.exists("b")
    with zipfile.ZipFile(path) as archive:
        assert archive.read("a") == b"1"
