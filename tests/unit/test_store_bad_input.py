"""Wrong calls, damaged files, full disks: a typed error that helps, and nothing stored is harmed."""

from __future__ import annotations

import ctypes
import datetime
import enum
import json
import os
import pickle
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import traceback
import uuid
import warnings
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pytest

from blobstore import (
    BlobStore,
    BlobStoreError,
    ConfigError,
    IncompatibleStoreError,
    IntegrityError,
    InvalidInputError,
    InvalidKeyError,
    InvalidMetadataError,
    NotSupportedError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
)
from blobstore.backends import DictStore, FilesystemBlobBackend

BACKENDS = ["json", "sqlite"]
INDEX = {"json": "cache_metadata.json", "sqlite": "cache_metadata.db"}
MEANT_TO_CHANGE = (".lock", "-shm", "-wal")
"""What opening an index may touch without changing what is stored."""


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def store(tmp_path, backend):
    with BlobStore(tmp_path / "store", backend=backend, inline_max_bytes=0) as store:
        yield store


def noise(seed=0, size=40_000):
    return np.random.default_rng(seed).bytes(size)


def fill(folder, backend, **options):
    """Make a closed store of twenty entries, some of them small."""
    with BlobStore(folder, backend=backend, **options) as store:
        store.put_many((f"k{n:02}", *_item(n)) for n in range(20))


def _item(n):
    return (noise(n), {"n": n}) if n % 2 else ({"n": n}, {"n": n})


def is_filled(store):
    """Whether each of the twenty entries is what it was."""
    items = {f"k{n:02}": _item(n) for n in range(20)}
    return {key: (store[key], store.entry(key).metadata) for key in store} == items


def snapshot(folder):
    """Every file's bytes, but for locks and what SQLite rebuilds."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(MEANT_TO_CHANGE)
    }


def message_helps(exc, *words):
    """The message says where, in words of the caller, and something to do."""
    text = str(exc)
    assert isinstance(exc, BlobStoreError)
    assert len(text) > 30
    for word in words:
        assert str(word) in text, text
    # What is wrong, and then what to try, or what would be right.
    assert any(sign in text for sign in (": ", "; ", ". ", ", not ")), text


# --- wrong calls ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "xml"}, ["xml", "json", "sqlite"]),
        ({"backend": 5}, ["backend", "5"]),
        ({"backend": "nosuchdialect://host/db"}, ["nosuchdialect"]),
        ({"blob_backend": "tape"}, ["tape", "filesystem", "memory"]),
        ({"blob_backend": 5}, ["blob_backend", "5"]),
        ({"blob_backend": "gopher://bucket"}, ["gopher"]),
        ({"compression": "rar"}, ["rar", "lz4", "zstd", "gzip", "blosclz"]),
        ({"compression": 5}, ["5"]),
        ({"compression_level": 0}, ["level", "1", "9", "0"]),
        ({"compression_level": 10}, ["level", "10"]),
        ({"compression_level": "3"}, ["level", "'3'"]),
        ({"content_addressable": "md5"}, ["md5", "blake3", "sha256"]),
        ({"content_addressable": 5}, ["content_addressable", "5"]),
        ({"pickle": "sure"}, ["pickle", "sure", "signed", "allow", "deny"]),
        ({"inline_max_bytes": -1}, ["inline_max_bytes", "-1"]),
        ({"inline_max_bytes": "8K"}, ["inline_max_bytes", "8K"]),
        ({"handlers": [5]}, ["andler", "5"]),
    ],
)
def test_wrong_arguments(tmp_path, options, words):
    with pytest.raises(ConfigError) as caught:
        BlobStore(tmp_path / "s", **options)
    message_helps(caught.value, *words)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)
    assert not (tmp_path / "s" / "blobstore.json").exists()


@pytest.mark.parametrize("wrong", [5, None, "", b"", "a\0b", ["x"]], ids=repr)
def test_a_folder_that_is_no_path(wrong):
    with pytest.raises(ConfigError) as caught:
        BlobStore(wrong)
    message_helps(caught.value, "cache_dir")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", ["empty"]),
        ("k" * 2049, ["2049", "2048", "kkk"]),
        ("ü" * 1025, ["2050", "2048"]),
        ("a\0b", ["NUL"]),
        ("a\ud800", ["surrogate", "1"]),
        ("\udcff", ["surrogate"]),
        (5, ["int"]),
        (b"k", ["bytes"]),
        (("a", "b"), ["tuple"]),
    ],
    ids=lambda x: ascii(x)[:20],
)
def test_wrong_keys(store, key, words):
    store.put(1, key="k")
    for call in (
        lambda: store.put(noise(), key=key),
        lambda: store.put_many([("new", noise()), (key, 1)]),
        lambda: store.get(key),
        lambda: store.get_many(["k", key]),
        lambda: store.__setitem__(key, 1),
        lambda: store.exists(key),
        lambda: store.entry(key),
        lambda: store.get_metadata(key),
        lambda: store.update_metadata(key, {}),
        lambda: store.delete(key),
        lambda: store.copy("k", key),
        lambda: store.move(key, "k"),
        lambda: store.put_file(__file__, key=key),
        lambda: store.get_file(key, store.path / "out"),
        lambda: store.open(key),
    ):
        with pytest.raises(InvalidKeyError) as caught:
            call()
        message_helps(caught.value, *words)
        assert isinstance(caught.value, ValueError)
    assert store.list() == ["k"]
    assert not (store.path / "out").exists()


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    __slots__ = ()


ACCEPTED = {
    "f4": (np.float32(0.25), 0.25),
    "f8": (np.float64(0.1), 0.1),
    "i8": (np.int64(-3), -3),
    "u8": (np.uint64(2**64 - 1), 2**64 - 1),
    "bool": (np.bool_(False), False),
    "np text": (np.str_("x"), "x"),
    "np date": (np.datetime64("2024-01-02"), "2024-01-02"),
    "0d": (np.array(7), 7),
    "datetime": (
        datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.UTC),
        "2024-01-02T03:00:00+00:00",
    ),
    "date": (datetime.date(2024, 1, 2), "2024-01-02"),
    "time": (datetime.time(1, 2), "01:02:00"),
    "timestamp": (pd.Timestamp("2024-01-02 03:04"), "2024-01-02T03:04:00"),
    "path": (PurePosixPath("/a/ü"), "/a/ü"),
    "uuid": (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    "enum": (Colour.RED, "red"),
    "subclass": (Text("x"), "x"),
    "tuple": ((1, (2,)), [1, [2]]),
    "deep": ({"a": [np.int8(1), {"p": PurePosixPath("x")}]}, {"a": [1, {"p": "x"}]}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_metadata_with_one_obvious_json_form(store, name):
    given, wanted = ACCEPTED[name]
    store.put(1, key="k", metadata={"x": given})
    for found in (store.entry("k").metadata, store.get_metadata("k")["metadata"]):
        assert repr(found) == repr({"x": wanted})
    assert store.list(metadata_filter={"x": given}) == ["k"]
    assert store.list(metadata_filter={"x": wanted}) == ["k"]
    store.close()
    with BlobStore(store.path) as store:
        assert repr(store.entry("k").metadata) == repr({"x": wanted})


def _circle():
    circle = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"a": {"b": [1, {2}]}}, ['["a"]["b"][1]', "set"]),
        ({"x": b"1"}, ['["x"]', "bytes"]),
        ({"x": float("nan")}, ['["x"]', "nan"]),
        ({"x": [0.0, float("-inf")]}, ['["x"][1]', "inf"]),
        ({"x": np.float32("nan")}, ['["x"]', "nan"]),
        ({"x": np.arange(3)}, ['["x"]', "ndarray"]),
        ({"x": np.timedelta64(5, "s")}, ['["x"]', "timedelta"]),
        ({"x": np.complex64(1)}, ['["x"]', "complex"]),
        ({"x": 1j}, ['["x"]', "complex"]),
        ({"x": object()}, ['["x"]', "object"]),
        ({"x": pd.DataFrame()}, ['["x"]', "DataFrame"]),
        ({"x": {5: 1}}, ['["x"]', "5", "int"]),
        ({None: 1}, ["None"]),
        ({"x": "\ud800"}, ['["x"]', "surrogate"]),
        ({"\ud800": 1}, ["surrogate"]),
        ({"x": _circle()}, ['["x"]', "nested"]),
        ({"x": 10**5000}, ["digits"]),
        ("text", ["str"]),
        ([("a", 1)], ["list"]),
    ],
    ids=[f"case{n}" for n in range(19)],
)
def test_metadata_that_is_no_json(store, metadata, words):
    store.put("old", key="k", metadata={"v": 1})
    before = snapshot(store.path)
    for call in (
        lambda: store.put(noise(), key="k", metadata=metadata),
        lambda: store.put(noise(), metadata=metadata),
        lambda: store.put_many([("new", noise()), ("k", 1, metadata)]),
        lambda: store.update_metadata("k", metadata),
        lambda: store.put_file(__file__, key="k", metadata=metadata),
        lambda: store.list(metadata_filter=metadata),
    ):
        with pytest.raises(InvalidMetadataError) as caught:
            call()
        message_helps(caught.value, "metadata", *words)
    assert snapshot(store.path) == before
    assert (store["k"], store.entry("k").metadata) == ("old", {"v": 1})


def test_other_wrong_calls(store):
    store.put(1, key="k")
    for call in (
        lambda: store.put(1, key="k", overwrite=False, if_version=1),
        lambda: store.put(1, key="k", if_version="1"),
        lambda: store.put(1, key="k", if_version=True),
        lambda: store.list(prefix=5),
        lambda: store.put_many(["k"]),
        lambda: store.put_many([("k",)]),
        lambda: store.put_many([("k", 1, {}, {})]),
    ):
        with pytest.raises(InvalidInputError) as caught:
            call()
        message_helps(caught.value)
    assert (store.list(), store["k"], store.entry("k").version) == (["k"], 1, 1)


def test_a_file_that_is_not_there(store, tmp_path):
    with pytest.raises((StorageError, InvalidInputError)) as caught:
        store.put_file(tmp_path / "absent", key="k")
    message_helps(caught.value, tmp_path / "absent")
    with pytest.raises((StorageError, InvalidInputError)) as caught:
        store.put_file(tmp_path, key="k")
    message_helps(caught.value, tmp_path)
    store.put(b"x", key="k")
    with pytest.raises(StorageError) as caught:
        store.get_file("k", tmp_path / "no" / "such" / "folder")
    message_helps(caught.value, tmp_path / "no")
    assert store.list() == ["k"]


def test_readonly_changes_nothing(tmp_path, backend):
    fill(tmp_path / "s", backend)
    before = snapshot(tmp_path / "s")
    with BlobStore(tmp_path / "s", readonly=True) as store:
        assert is_filled(store)
        for call in (
            lambda: store.put(1),
            lambda: store.delete("k00"),
            lambda: store.update_metadata("k00", {}),
            lambda: store.clear(),
            lambda: store.copy("k00", "x"),
            lambda: store.move("k00", "x"),
            lambda: store.put_many([("x", 1)]),
            lambda: store.gc(dry_run=False),
            lambda: store.__setitem__("x", 1),
        ):
            with pytest.raises(NotSupportedError) as caught:
                call()
            message_helps(caught.value, "readonly")
        assert store.verify(deep=True).ok
        assert store.gc(grace=0).items == ()
    assert snapshot(tmp_path / "s") == before
    with pytest.raises(BlobStoreError) as caught:
        BlobStore(tmp_path / "absent", readonly=True)
    message_helps(caught.value, tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


# --- folders ---


def test_a_file_where_the_folder_should_be(tmp_path, backend):
    (tmp_path / "file").write_bytes(b"mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError) as caught:
            BlobStore(folder, backend=backend)
        message_helps(caught.value, folder)
    assert (tmp_path / "file").read_bytes() == b"mine"


def in_child(work):
    """Run `work` in a forked child; its end must be good."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is fine for us
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(60)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "its error is above"


def as_somebody_without_rights():
    """In a child: what root may do and others may not, it may not any more."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    # As user nobody, the folders above a test's own could not even be entered. So stay the owner of
    # the files, and give up the right to ignore their mode: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.syscall(_CAPGET, header, data) == 0
    for word in (0, 1, 2):
        data[word] &= ~0b110
    assert libc.syscall(_CAPSET, header, data) == 0, os.strerror(ctypes.get_errno())


_CAPGET, _CAPSET = {"x86_64": (125, 126), "aarch64": (90, 91)}.get(os.uname().machine, (0, 0))
needs_rights = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not _CAPGET, reason="needs the capabilities of Linux"
)


@needs_rights
def test_a_folder_without_permission(tmp_path, backend):
    parent = tmp_path / "parent"
    parent.mkdir()
    parent.chmod(0o500)

    def work():
        as_somebody_without_rights()
        with pytest.raises(PermissionDeniedError) as caught:
            BlobStore(parent / "store", backend=backend)
        message_helps(caught.value, parent / "store")

    in_child(work)
    assert [*parent.iterdir()] == []
    parent.chmod(0o700)


@needs_rights
def test_a_store_that_may_not_be_written(tmp_path, backend):
    fill(tmp_path / "s", backend)
    before = snapshot(tmp_path / "s")
    folders = [tmp_path / "s", *(p for p in (tmp_path / "s").rglob("*") if p.is_dir())]
    for path in folders:
        path.chmod(0o500)
    for path in (tmp_path / "s").rglob("*"):
        if path.is_file():
            path.chmod(0o400)

    def work():
        as_somebody_without_rights()
        with pytest.raises(PermissionDeniedError) as caught, BlobStore(tmp_path / "s") as store:
            store.put(noise(99), key="new")
        message_helps(caught.value, tmp_path / "s", "readonly=True")
        with BlobStore(tmp_path / "s", readonly=True) as store:
            assert is_filled(store)

    in_child(work)
    for path in folders:
        path.chmod(0o700)
    assert snapshot(tmp_path / "s") == before


@needs_rights
def test_permission_that_is_lost_while_the_store_is_open(tmp_path, backend):
    def work():
        as_somebody_without_rights()
        with BlobStore(tmp_path / "s", backend=backend) as store:
            store.put(noise(), key="k", metadata={"v": 1})
            (file,) = (tmp_path / "s" / "blobs").rglob("*.bin*")
            for folder in ("blobs", "tmp"):
                (tmp_path / "s" / folder).chmod(0o500)
            with pytest.raises(PermissionDeniedError) as caught:
                store.put(noise(1), key="k")
            message_helps(caught.value, tmp_path / "s")
            file.chmod(0)
            with pytest.raises(PermissionDeniedError) as caught:  # not a miss, and not damage
                store.get("k")
            message_helps(caught.value, "k")
            file.chmod(0o600)
            for folder in ("blobs", "tmp"):
                (tmp_path / "s" / folder).chmod(0o700)
            assert (store["k"], store.entry("k").metadata) == (noise(), {"v": 1})
            store.put(noise(1), key="k")

    in_child(work)
    with BlobStore(tmp_path / "s") as store:
        assert store["k"] == noise(1)
        assert store.verify(deep=True).ok


# --- full disks ---


BIG = {
    "bytes": lambda: noise(5, 400_000),
    "array": lambda: np.random.default_rng(5).standard_normal(50_000),
    "frame": lambda: pd.DataFrame({"x": np.random.default_rng(5).standard_normal(50_000)}),
    "object": lambda: [noise(5, 400_000)],
    "arrays": lambda: {"w": np.random.default_rng(5).standard_normal(50_000), "e": 1},
}


@pytest.mark.parametrize("kind", BIG)
def test_a_file_size_limit(tmp_path, backend, kind):
    fill(tmp_path / "s", backend)

    def work():
        with BlobStore(tmp_path / "s") as store:
            store[f"warm {kind}"] = BIG[kind]()  # libraries load before files are limited
            store.delete(f"warm {kind}")
            before = blobs(store.path)
            # The index file may already be larger than the blob is allowed to be.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
            for _ in range(2):
                with pytest.raises(OutOfSpaceError) as caught:
                    store.put(BIG[kind](), key="k01", metadata={"n": "new"})
                message_helps(caught.value, "space")
            with pytest.raises(OutOfSpaceError):
                store.put_many([("fine", noise(7)), ("k02", BIG[kind]())])
            assert blobs(store.path) == before
            assert is_filled(store)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            store.put(BIG[kind](), key="afterwards")

    in_child(work)
    with BlobStore(tmp_path / "s") as store:
        assert store.exists("afterwards")
        store.delete("afterwards")
        assert is_filled(store)
        assert store.verify(deep=True).ok


def blobs(folder):
    """Names of all blobs and of whatever is being written."""
    return {p.name for top in ("blobs", "tmp") for p in (folder / top).rglob("*") if p.is_file()}


def test_an_index_that_cannot_grow(tmp_path, backend):
    """The blob fits, its entry does not: the key is what it was, and no blob stays."""
    fill(tmp_path / "s", backend)

    def work():
        with BlobStore(tmp_path / "s", inline_max_bytes=0) as store:
            store.put("x", key="k00", metadata={"n": 0})
            store.put({"n": 0}, key="k00", metadata={"n": 0})
            before = blobs(store.path)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            for call in (
                lambda: store.put(noise(77), key="k01", metadata={"text": "x" * 500_000}),
                lambda: store.update_metadata("k01", {"text": "x" * 500_000}),
            ):
                with pytest.raises(OutOfSpaceError) as caught:
                    call()
                message_helps(caught.value, "space")
                assert is_filled(store)
            assert blobs(store.path) == before
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            store.put(1, key="afterwards")
            store.delete("afterwards")

    in_child(work)
    with BlobStore(tmp_path / "s") as store:
        assert is_filled(store)
        assert store.verify(deep=True).ok


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MiB, where this may be had."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root mounts")
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk, backend):
    acknowledged = {}
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(500_000))
    with BlobStore(small_disk / "s", backend=backend, inline_max_bytes=0) as store:
        with pytest.raises(OutOfSpaceError) as caught:
            for n in range(1000):
                store.put(noise(n, 100_000), key=f"k{n % 40}", metadata={"n": n})
                acknowledged[f"k{n % 40}"] = n
        message_helps(caught.value, "space")
        assert len(acknowledged) > 10
        for _ in range(20):  # and again, from a full disk on
            with pytest.raises(OutOfSpaceError):
                store.put(noise(2000, 3_000_000), key="k0")
        assert {key: store.entry(key).metadata["n"] for key in store} == acknowledged
        assert all(store[key] == noise(n, 100_000) for key, n in acknowledged.items())
        assert {x for key in store for x in store.entry(key).locations} | {
            ".blobstore-id"
        } == blobs(store.path)
        ballast.unlink()
        for key in sorted(acknowledged)[:8]:
            assert store.delete(key)
            del acknowledged[key]
        store.put(noise(3000, 100_000), key="afterwards")
    with BlobStore(small_disk / "s") as store:
        assert store["afterwards"] == noise(3000, 100_000)
        assert all(store[key] == noise(n, 100_000) for key, n in acknowledged.items())
        assert store.verify(deep=True).ok


# --- damaged blobs ---

FORMATS = {
    ".b2nd": lambda: np.random.default_rng(0).standard_normal((50, 60)),
    ".parquet": lambda: pd.DataFrame({"a": range(1000), "b": ["x", "y"] * 500}),
    ".pkl": lambda: {"a": list(range(3000)), "b": noise(1, 500)},
    ".pkl buffers": lambda: [np.ma.arange(20_000), "x"],
    ".bin": lambda: noise(0, 10_000),
    ".txt": lambda: "text" * 3000,
    "mapping": lambda: {"w": np.random.default_rng(0).standard_normal(9000), "e": 1, "s": "x" * 50},
}


@pytest.mark.parametrize("compression", ["lz4", "zstd", "gzip", "none"])
@pytest.mark.parametrize("name", FORMATS)
def test_bit_flips_at_many_offsets(tmp_path, name, compression):
    with BlobStore(tmp_path, backend="json", compression=compression) as store:
        store.put(FORMATS[name](), key="k")
        for location in store.entry("k").locations:
            (file,) = tmp_path.rglob(location)
            whole = file.read_bytes()
            step = max(1, len(whole) // 60)
            offsets = [
                *range(32),
                *range(32, len(whole) - 32, step),
                *range(len(whole) - 32, len(whole)),
            ]
            for offset in offsets:
                if offset >= len(whole):
                    continue
                bad = bytearray(whole)
                bad[offset] ^= 1 << offset % 8
                file.write_bytes(bad)
                refuses(store, "k", location)
            file.write_bytes(whole)
        assert store.verify(deep=True).ok


def refuses(store, key, location):
    for call in (lambda: store.get(key, "default"), lambda: store[key]):
        with pytest.raises(IntegrityError) as caught:
            call()
        message_helps(caught.value, key, location)
        assert (caught.value.key, caught.value.location) == (key, location)


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_grown_and_swapped_blobs(tmp_path, name):
    with BlobStore(tmp_path, backend="json") as store:
        store.put(FORMATS[name](), key="k")
        store.put(noise(9), key="other")
        (other,) = tmp_path.rglob(store.entry("other").locations[0])
        for location in store.entry("k").locations:
            (file,) = tmp_path.rglob(location)
            whole = file.read_bytes()
            for bad in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], whole[1:], whole + b"\0",
                        whole * 2, whole[::-1], bytes(len(whole)), other.read_bytes()):  # fmt: skip
                file.write_bytes(bad)
                refuses(store, "k", location)
                (problem,) = store.verify(deep=True).problems
                assert problem.location == location
            file.write_bytes(whole)
        assert store["other"] == noise(9)
        assert store.verify(deep=True).ok


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("verify_on_read", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_a_pickle_in_place_of_a_blob_is_never_run(tmp_path, name, verify_on_read):
    trace = tmp_path / "trace"
    with BlobStore(tmp_path / "s", compression="none", verify_on_read=verify_on_read) as store:
        store.put(FORMATS[name](), key="k")
        for location in store.entry("k").locations:
            (file,) = tmp_path.rglob(location)
            whole = file.read_bytes()
            for bomb in (pickle.dumps(Bomb(trace)), pickle.dumps(Bomb(trace), 0),
                         pickle.dumps(Bomb(trace)).ljust(len(whole), b"\0")):  # fmt: skip
                file.write_bytes(bomb)
                if verify_on_read or ".pkl" in location:
                    refuses(store, "k", location)
                else:
                    harmless(store)
                assert not trace.exists()
            file.write_bytes(whole)


def harmless(store):
    """Bytes that nobody checked: an error of ours, or text and bytes that are just that."""
    try:
        found = store.get("k")
    except BlobStoreError:
        return
    assert isinstance(found, bytes | str)


@pytest.mark.parametrize("name", FORMATS)
def test_unchecked_damage_is_still_a_typed_error(tmp_path, name):
    """Without `verify_on_read`, what decodes may be wrong; what does not is no foreign error."""
    with BlobStore(tmp_path, backend="json", compression="zstd", verify_on_read=False) as store:
        store.put(FORMATS[name](), key="k")
        for location in store.entry("k").locations:
            (file,) = tmp_path.rglob(location)
            whole = file.read_bytes()
            for offset in range(0, len(whole), max(1, len(whole) // 40)):
                bad = bytearray(whole)
                bad[offset] ^= 0xFF
                file.write_bytes(bad)
                unchecked(store)
            for bad in (b"", whole[: len(whole) // 2], noise(1, 100)):
                file.write_bytes(bad)
                unchecked(store)
            file.write_bytes(whole)


def unchecked(store):
    try:
        store.get("k")
    except BlobStoreError as exc:
        message_helps(exc, "k")
        assert exc.key == "k"  # noqa: PT017 - it may as well not be raised


def test_a_damaged_inline_value(tmp_path):
    with BlobStore(tmp_path, backend="sqlite") as store:
        for key, value in {"object": {"x": 1}, "text": "hello", "array": np.arange(5)}.items():
            store.put(value, key=key)
            assert store.entry(key).inline
    trace = tmp_path / "trace"
    bomb = pickle.dumps(Bomb(trace))
    column = _payload_column(tmp_path)
    for bad in (bomb, b"", b"\0" * 20):
        with sqlite3.connect(tmp_path / "cache_metadata.db") as connection:
            table, name = column
            connection.execute(f"UPDATE {table} SET {name} = ? WHERE {name} IS NOT NULL", (bad,))
        connection.close()
        with BlobStore(tmp_path) as store:
            for key in store:
                with pytest.raises(IntegrityError) as caught:
                    store.get(key)
                message_helps(caught.value, key)
        assert not trace.exists()


def _payload_column(folder):
    """Where the database keeps inline values."""
    connection = sqlite3.connect(folder / "cache_metadata.db")
    try:
        tables = [
            row[0]
            for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        for table in tables:
            for row in connection.execute(f"PRAGMA table_info({table})"):
                if row[1] == "payload":
                    return table, row[1]
    finally:
        connection.close()
    pytest.fail("no column named payload")


# --- damaged indexes ---


def opens_or_refuses(folder, backend=None):
    """Open a damaged store: all is there, or a typed error names the place; nothing is written."""
    before = snapshot(folder)
    try:
        store = BlobStore(folder, backend=backend)
    except (IntegrityError, IncompatibleStoreError, StorageError, ConfigError) as exc:
        message_helps(exc, folder)
        assert snapshot(folder) == before
        return False
    with store:
        try:
            assert is_filled(store)
        except (IntegrityError, StorageError) as exc:
            message_helps(exc)
            return False
    return True


@pytest.mark.parametrize(
    "damage",
    ["emptied", "first half", "last byte gone", "zeros", "garbage", "a list", "a foreign document",
     "null", "nothing in it", "no text", "removed", "a folder"],
)  # fmt: skip
def test_a_damaged_json_document(tmp_path, damage):
    fill(tmp_path, "json")
    path = tmp_path / "cache_metadata.json"
    whole = path.read_bytes()
    bad = {
        "emptied": b"", "first half": whole[: len(whole) // 2], "last byte gone": whole.rstrip()[:-1],
        "zeros": bytes(len(whole)), "garbage": noise(1, len(whole)), "a list": b"[1, 2]",
        "a foreign document": b'{"name": "my-app", "dependencies": {}}', "null": b"null",
        "nothing in it": b"{}", "no text": b'{"\xff": 1}', "removed": None, "a folder": None,
    }[damage]  # fmt: skip
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif bad is not None:
        path.write_bytes(bad)
    assert not opens_or_refuses(tmp_path)
    assert not opens_or_refuses(tmp_path, "json")
    if damage == "a folder":
        path.rmdir()
    path.write_bytes(whole)
    with BlobStore(tmp_path) as store:
        assert is_filled(store)
        assert store.verify(deep=True).ok


def test_a_json_document_with_a_flipped_bit(tmp_path):
    """Wherever it is: an error, or what was stored."""
    fill(tmp_path, "json")
    path = tmp_path / "cache_metadata.json"
    whole = path.read_bytes()
    for number, offset in enumerate(range(0, len(whole), max(1, len(whole) // 150))):
        bad = bytearray(whole)
        bad[offset] ^= 1 << number % 7
        path.write_bytes(bad)
        opens_or_refuses(tmp_path)
        assert {p.name for p in tmp_path.glob("blobs/*/*")} >= {
            p.name for p in tmp_path.rglob("*.bin*")
        }
    path.write_bytes(whole)
    with BlobStore(tmp_path) as store:
        assert is_filled(store)
        assert store.verify(deep=True).ok


def test_a_damaged_journal(tmp_path):
    """A writer that did not close leaves a journal; damage inside it is no end of it."""
    master = tmp_path / "master"

    def work():
        store = BlobStore(master, backend="json")
        for n in range(20):
            data, metadata = _item(n)
            store.put(data, key=f"k{n:02}", metadata=metadata)
        os._exit(0)

    in_child(work)
    (journal,) = master.glob("*.journal")
    whole = journal.read_bytes()
    folder = tmp_path / "victim"
    for number, offset in enumerate(range(0, len(whole) * 9 // 10, len(whole) // 60)):
        shutil.copytree(master, folder)
        bad = bytearray(whole)
        bad[offset] ^= 1 << number % 7
        (folder / journal.name).write_bytes(bad)
        assert not opens_or_refuses(folder), offset
        shutil.rmtree(folder)
    shutil.copytree(master, folder)
    (folder / journal.name).write_bytes(whole[:-5])  # a torn last line was never acknowledged
    with BlobStore(folder) as store:
        assert store.list() == [f"k{n:02}" for n in range(19)]


@pytest.mark.parametrize(
    "damage", ["emptied", "first half", "header", "zeros", "garbage", "a folder", "removed"]
)
def test_a_damaged_database(tmp_path, damage):
    fill(tmp_path, "sqlite")
    path = tmp_path / "cache_metadata.db"
    whole = path.read_bytes()
    assert len(whole) > 8192, "the database was not written back at close"
    bad = {
        "emptied": b"", "first half": whole[: len(whole) // 2], "header": b"x" * 100 + whole[100:],
        "zeros": bytes(len(whole)), "garbage": noise(1, len(whole)), "a folder": None, "removed": None,
    }[damage]  # fmt: skip
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif bad is not None:
        path.write_bytes(bad)
    assert not opens_or_refuses(tmp_path)
    assert not opens_or_refuses(tmp_path, "sqlite")
    if damage == "a folder":
        path.rmdir()
    for extra in tmp_path.glob("cache_metadata.db-*"):
        extra.unlink()
    path.write_bytes(whole)
    with BlobStore(tmp_path) as store:
        assert is_filled(store)
        assert store.verify(deep=True).ok


def test_a_database_with_damaged_pages(tmp_path):
    """Whatever page is hit: an error of ours, or the right values; never another's error."""
    master, folder = tmp_path / "master", tmp_path / "victim"
    fill(master, "sqlite")
    whole = (master / "cache_metadata.db").read_bytes()
    refused = 0
    for page in range(len(whole) // 4096):
        shutil.copytree(master, folder)
        start = page * 4096 + (100 if page == 0 else 0)
        end = (page + 1) * 4096
        (folder / "cache_metadata.db").write_bytes(
            whole[:start] + noise(page, end - start) + whole[end:]
        )
        refused += not values_are_right_or_refused(folder)
        shutil.rmtree(folder)
    assert refused


def values_are_right_or_refused(folder):
    try:
        with BlobStore(folder) as store:
            for n in range(20):
                data, metadata = _item(n)
                found = store.get(f"k{n:02}")
                assert found is None or found == data
                assert found is None or store.entry(f"k{n:02}").metadata == metadata
            store.list()
            report = store.verify(deep=True)
            return report.ok and is_filled(store)
    except (IntegrityError, StorageError) as exc:
        message_helps(exc)
        return False


def test_a_database_of_another_program(tmp_path):
    path = tmp_path / "s" / "cache_metadata.db"
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE invoices (id INTEGER PRIMARY KEY, total REAL)")
        connection.execute("INSERT INTO invoices VALUES (1, 2.5)")
    connection.close()
    before = path.read_bytes()
    for backend in ("sqlite", None):
        with pytest.raises(IncompatibleStoreError) as caught:
            BlobStore(tmp_path / "s", backend=backend)
        message_helps(caught.value, path)
    assert path.read_bytes() == before
    assert sorted(
        p.name for p in path.parent.iterdir() if not p.name.endswith(MEANT_TO_CHANGE)
    ) == ["cache_metadata.db"]


def test_a_json_document_of_another_program(tmp_path):
    path = tmp_path / "s" / "cache_metadata.json"
    path.parent.mkdir()
    for text in ('{"my-app": {"cache": {}}}', "[]", '{"entries": {}, "version": 1}'):
        path.write_text(text)
        for backend in ("json", None):
            with pytest.raises((IncompatibleStoreError, IntegrityError)) as caught:
                BlobStore(tmp_path / "s", backend=backend)
            message_helps(caught.value, path)
        assert path.read_text() == text


# --- blobstore.json, and whose blobs these are ---


def change_description(folder, **changes):
    path = folder / "blobstore.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_store_of_a_newer_format(tmp_path, backend):
    fill(tmp_path, backend)
    whole = (tmp_path / "blobstore.json").read_bytes()
    change_description(tmp_path, format=99, least_reader=99, created_by="blobstore 9.0")
    before = snapshot(tmp_path)
    for options in ({}, {"backend": backend}, {"readonly": True}):
        with pytest.raises(IncompatibleStoreError) as caught:
            BlobStore(tmp_path, **options)
        message_helps(caught.value, tmp_path, "blobstore 9.0", "upgrade")
    assert snapshot(tmp_path) == before
    (tmp_path / "blobstore.json").write_bytes(whole)
    change_description(tmp_path, format=99)  # newer, but this version can still read it
    with BlobStore(tmp_path) as store:
        assert is_filled(store)


def test_a_newer_description_with_names_we_do_not_know(tmp_path, backend):
    fill(tmp_path, backend)
    change_description(tmp_path, format=2, shiny="new")
    with BlobStore(tmp_path) as store:
        assert is_filled(store)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "5", "{}", '{"format": 1}', "garbage", '{"format": "x", "least_reader": []}',
     "\0\0\0", '{"name": "my-app"}'],
)  # fmt: skip
def test_a_damaged_description(tmp_path, backend, text):
    fill(tmp_path, backend)
    path = tmp_path / "blobstore.json"
    whole = path.read_bytes()
    path.write_text(text)
    before = snapshot(tmp_path)
    for options in ({}, {"backend": backend}):
        with pytest.raises((IntegrityError, IncompatibleStoreError)) as caught:
            BlobStore(tmp_path, **options)
        message_helps(caught.value, path)
    assert snapshot(tmp_path) == before
    path.write_bytes(whole)
    with BlobStore(tmp_path) as store:
        assert is_filled(store)


@pytest.mark.parametrize(
    "changes",
    [{"format": "1"}, {"least_reader": None}, {"store_id": 5}, {"store_id": ""}, {"index": 5},
     {"index": "carrier-pigeon"}, {"index": ["json"]}, {"least_reader": True}],
    ids=str,
)  # fmt: skip
def test_a_description_with_a_wrong_field(tmp_path, backend, changes):
    fill(tmp_path, backend)
    change_description(tmp_path, **changes)
    opens_or_refuses(tmp_path)


def test_a_description_that_is_gone_is_written_anew(tmp_path, backend):
    fill(tmp_path, backend)
    whole = json.loads((tmp_path / "blobstore.json").read_text())
    (tmp_path / "blobstore.json").unlink()
    with BlobStore(tmp_path) as store:
        assert is_filled(store)
    again = json.loads((tmp_path / "blobstore.json").read_text())
    assert (again["store_id"], again["index"]) == (whole["store_id"], backend)


def test_a_description_of_another_store(tmp_path, backend):
    fill(tmp_path / "a", backend)
    fill(tmp_path / "b", backend)
    whole = (tmp_path / "a" / "blobstore.json").read_bytes()
    (tmp_path / "a" / "blobstore.json").write_bytes(
        (tmp_path / "b" / "blobstore.json").read_bytes()
    )
    before = snapshot(tmp_path)
    with pytest.raises(IncompatibleStoreError) as caught:
        BlobStore(tmp_path / "a")
    message_helps(caught.value, tmp_path / "a", json.loads(whole)["store_id"])
    assert snapshot(tmp_path) == before
    (tmp_path / "a" / "blobstore.json").write_bytes(whole)
    with BlobStore(tmp_path / "a") as store:
        assert is_filled(store)


def test_an_index_of_another_store(tmp_path, backend):
    fill(tmp_path / "a", backend)
    fill(tmp_path / "b", backend)
    name = INDEX[backend]
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    before = snapshot(tmp_path)
    with pytest.raises((IncompatibleStoreError, IntegrityError)) as caught:
        BlobStore(tmp_path / "a")
    message_helps(caught.value, tmp_path / "a")
    assert snapshot(tmp_path) == before


def test_an_index_that_is_gone(tmp_path, backend):
    fill(tmp_path, backend)
    (tmp_path / INDEX[backend]).unlink()
    for extra in [*tmp_path.glob("*.journal"), *tmp_path.glob("*-wal"), *tmp_path.glob("*-shm")]:
        extra.unlink()
    before = snapshot(tmp_path)
    for options in ({}, {"backend": "json"}, {"backend": "sqlite"}):
        with pytest.raises(BlobStoreError) as caught:
            BlobStore(tmp_path, **options)
        message_helps(caught.value, tmp_path)
    assert snapshot(tmp_path) == before
    (tmp_path / "blobstore.json").unlink()  # the blobs alone still say that they are somebody's
    with pytest.raises(IncompatibleStoreError):
        BlobStore(tmp_path)
    assert set(before) - {"blobstore.json"} <= set(snapshot(tmp_path))


def test_the_other_kind_of_index(tmp_path):
    for there, asked in (BACKENDS, BACKENDS[::-1]):
        fill(tmp_path / there, there)
        before = snapshot(tmp_path / there)
        with pytest.raises(ConfigError) as caught:
            BlobStore(tmp_path / there, backend=asked)
        message_helps(caught.value, tmp_path / there, there, asked)
        assert snapshot(tmp_path / there) == before


@pytest.mark.parametrize("shared", [DictStore, lambda: None], ids=["memory", "files"])
def test_two_indexes_on_one_set_of_blobs_are_refused(tmp_path, backend, shared):
    objects = shared() or FilesystemBlobBackend(tmp_path / "objects")
    with objects:
        with BlobStore(tmp_path / "one", backend, blob_backend=objects) as store:
            store.put(noise(), key="k")
            store_id = store._index.store_id
        names = sorted(objects.keys())
        with pytest.raises(IncompatibleStoreError) as caught:
            BlobStore(tmp_path / "two", backend, blob_backend=objects)
        message_helps(caught.value, store_id)
        assert sorted(objects.keys()) == names
        with BlobStore(tmp_path / "one", blob_backend=objects) as store:
            assert store["k"] == noise()


def test_blobs_that_were_taken_away_with_their_marker(tmp_path, backend):
    """An index whose blobs are gone says so for each of them; it is not an empty store."""
    fill(tmp_path, backend, inline_max_bytes=0)
    shutil.rmtree(tmp_path / "blobs")
    with BlobStore(tmp_path) as store:
        assert len(store) == 20
        with pytest.raises(IntegrityError):
            store.get("k01")
        assert store.exists("k01") is False
        assert len(store.verify().problems) == 20
        store.put(noise(1), key="k01")
        assert store["k01"] == noise(1)
