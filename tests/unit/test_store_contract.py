"""The contract of BlobStore, row by row: B1 to B52, what the seed documents promise and ours keeps.

Where the software of the seeds is broken, the test is what it fails at.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import os
import pickle
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from pathlib import Path

import blosc2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore import BlobStore, ConfigError, IntegrityError, InvalidKeyError, UnsupportedTypeError
from blobstore.backends import DictStore, FilesystemBlobBackend, JsonBackend
from blobstore.errors import BlobStoreError
from blobstore.protocols import BlobBackend

BACKENDS = ["json", "sqlite"]
CODECS = ["lz4", "zstd", "gzip", "blosclz"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def store(tmp_path, backend):
    with BlobStore(tmp_path / "store", backend=backend, inline_max_bytes=0) as store:
        yield store


def reopen(store):
    """Close a store and open what it left."""
    store.close()
    return BlobStore(store.path)


def blob_files(store):
    """The files that hold blobs: everything but the index and the folder's own notes."""
    names = ("cache_metadata.", "blobstore.json", ".blobstore-id")
    return sorted(p for p in store.path.rglob("*") if p.is_file() and not p.name.startswith(names))


def blob_file(store, key):
    """The only file of a key."""
    (location,) = store.entry(key).locations
    (path,) = store.path.rglob(location)
    return path


def noise(seed=0, size=40_000):
    return np.random.default_rng(seed).bytes(size)


def python(code, *arguments, **environment):
    """Run code in a fresh interpreter; give what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- 1.1 constructor ---


def test_b01_a_relative_folder_is_fixed_at_construction(tmp_path, monkeypatch, backend):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    with BlobStore("deep/er/store", backend=backend) as store:
        monkeypatch.chdir(there)
        store.put(noise(), key="k")
        assert store["k"] == noise()
    assert [*there.iterdir()] == []
    assert [*here.iterdir()] == [here / "deep"]
    with BlobStore(here / "deep" / "er" / "store") as store:
        assert store["k"] == noise()


def test_b01_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with BlobStore() as store:
        store.put(1, key="k")
    assert [*tmp_path.iterdir()] == [tmp_path / ".blobstore"]
    with BlobStore(str(tmp_path / ".blobstore")) as store:
        assert store["k"] == 1


def test_b01_nothing_is_written_outside(tmp_path, backend):
    inside = tmp_path / "inside"
    with BlobStore(inside, backend=backend, inline_max_bytes=0) as store:
        for key in ("../x", "../../x", str(tmp_path / "absolute"), "..", "a/../../../y"):
            store.put(noise(), key=key)
            assert store[key] == noise()
        store.clear()
    assert [*tmp_path.iterdir()] == [inside]


def test_b02_backends(tmp_path):
    with BlobStore(tmp_path / "default") as store:
        store.put(1, key="k")
    assert (tmp_path / "default" / "cache_metadata.json").is_file()
    with contextlib.closing(JsonBackend(tmp_path / "elsewhere")) as index:
        with BlobStore(tmp_path / "instance", backend=index) as store:
            store.put(1, key="k")
            assert store.list() == ["k"]
        assert [*index.get_many(["k"])] == ["k"]  # a given instance is not closed


@pytest.mark.parametrize("wrong", ["xml", "JSON", "", 5, object(), JsonBackend, Path("x")])
def test_b02_unknown_backends_are_refused(tmp_path, wrong):
    with pytest.raises((ValueError, TypeError)) as caught:
        BlobStore(tmp_path / "s", backend=wrong)
    assert isinstance(caught.value, ConfigError)
    assert not (tmp_path / "s" / "blobstore.json").exists()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("level", [1, 9])
def test_b03_every_codec_and_level_for_every_kind_of_value(tmp_path, codec, level):
    values = {
        "bytes": b"abc" * 5000,
        "text": "abc" * 5000,
        "object": {"a": ["abc"] * 5000},
        "array": np.arange(50_000),
        "frame": pd.DataFrame({"a": range(5000), "b": ["x", "y"] * 2500}),
        "arrays": {"w": np.arange(50_000), "more": "z" * 5000},
        "noise": noise(),
        "tiny": 1,
    }
    with BlobStore(tmp_path, "json", codec, level) as store:
        for key, value in values.items():
            store.put(value, key=key)
        for key in ("bytes", "text", "object", "array"):
            assert store.get_metadata(key)["compression"] == codec
            assert store.get_metadata(key)["file_size"] < 20_000
    with BlobStore(tmp_path) as store:
        for key in ("bytes", "text", "object", "noise", "tiny"):
            assert store[key] == values[key]
        np.testing.assert_array_equal(store["array"], values["array"])
        pd.testing.assert_frame_equal(store["frame"], values["frame"])
        np.testing.assert_array_equal(store["arrays"]["w"], values["arrays"]["w"])
        assert store["arrays"]["more"] == values["arrays"]["more"]


@pytest.mark.parametrize("level", range(1, 10))
@pytest.mark.parametrize("codec", CODECS)
def test_b03_b04_all_levels(tmp_path, codec, level):
    with BlobStore(tmp_path, compression=codec, compression_level=level) as store:
        for key, value in (("a", np.arange(20_000.0)), ("b", {"x": "y" * 9000})):
            store.put(value, key=key)
            np.testing.assert_equal(store[key], value)


@pytest.mark.parametrize("wrong", ["rar", "LZ4", "", None, 5])
def test_b03_unknown_codecs_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"compression|codec") as caught:
        BlobStore(tmp_path / "s", compression=wrong)
    assert isinstance(caught.value, ConfigError)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("wrong", [0, 10, -1, 3.0, "3", None, True, math.nan])
def test_b04_levels_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises((ValueError, TypeError), match="level") as caught:
        BlobStore(tmp_path / "s", compression_level=wrong)
    assert isinstance(caught.value, ConfigError)
    assert not (tmp_path / "s").exists()


def test_b05_b06_the_order_of_parameters(tmp_path):
    with BlobStore(tmp_path / "s", "sqlite", "zstd", 6, True, "filesystem") as store:
        key = store.put("text")
        assert store.put("text") == key
        assert store[key] == "text"
        assert (store.path / "cache_metadata.db").is_file()


def test_b06_blob_backends_by_name_and_instance(tmp_path, backend):
    for number, choice in enumerate([None, "filesystem", "memory", DictStore()]):
        with BlobStore(tmp_path / str(number), backend=backend, blob_backend=choice) as store:
            store.put(noise(), key="k")
            assert store["k"] == noise()
            assert len(blob_files(store)) == (number < 2)


def test_b07_the_json_index_is_readable(tmp_path):
    with BlobStore(tmp_path, backend="json") as store:
        for n in range(30):
            store.put(n, key=f"runs/ü/{n}", metadata={"author": "alice"})
        store.delete("runs/ü/7")
    text = (tmp_path / "cache_metadata.json").read_text("utf-8")
    json.loads(text)
    for n in range(30):
        assert (f'"runs/ü/{n}"' in text) == (n != 7)
    assert "alice" in text


def test_b08_the_sqlite_index_is_a_database_with_wal(tmp_path):
    with BlobStore(tmp_path, backend="sqlite") as store:
        store.put(1, key="runs/7")
    connection = sqlite3.connect(tmp_path / "cache_metadata.db")
    try:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT key FROM entries").fetchall() == [("runs/7",)]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        connection.close()


def test_b09_import_places():
    code = """
import sys
from blobstore import BlobStore
import blobstore.backends
for heavy in ("numpy", "pandas", "pyarrow", "blosc2", "sqlalchemy", "torch"):
    assert heavy not in sys.modules, heavy
from blobstore.backends import FilesystemBlobBackend, BlobBackend, MetadataBackend
"""
    assert python(code) == ""


# --- 1.2 methods ---


@pytest.mark.parametrize("key", ["a/b c", "model_v2.1", "🎉", "x" * 500, "Ünï", "..", " "])
def test_b10_put_returns_the_key_it_was_given(store, key):
    assert store.put(1, key) == key
    assert store.list() == [key]


def test_b11_generated_keys_are_unique(store):
    keys = {store.put(1) for _ in range(100)}
    assert len(keys) == 100
    assert all(type(key) is str and len(key) >= 16 for key in keys)
    assert store.list() == sorted(keys)


TRICKY_KEYS = [
    "a/b", "ab", "a b", "a.b", "model_v2.1", "model_v2.2", "🎉", "🎊", "é", "e\u0301", "K", "k", "\u212a",
    ".", "..", "../x", "/", "//", "cache_metadata.json", "cache_metadata.db", "blobstore.json", "x" * 1000,
    "x" * 999 + "y", "x" * 2048, "tmp", "blobs", ".blobstore-id", "con", "nul", " ", "\n", "\u200b", "\ufeff",
    "ß", "ss", "ﬁ", "fi", "\u0131", "I", "i", "\u0130",
]  # fmt: skip


def test_b12_keys_never_collide_and_are_never_paths(store):
    for number, key in enumerate(TRICKY_KEYS):
        store.put({"number": number}, key=key, metadata={"number": number})
    with reopen(store) as store:
        assert store.list() == sorted(TRICKY_KEYS)
        for number, key in enumerate(TRICKY_KEYS):
            assert store[key] == {"number": number}
            assert store.get_metadata(key)["metadata"] == {"number": number}
        assert len(blob_files(store)) == len(TRICKY_KEYS)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
                unique=True, min_size=1, max_size=8))  # fmt: skip
@settings(max_examples=30)
def test_b12_any_text_is_a_key(keys):
    with BlobStore(_scratch_folder(), blob_backend="memory") as store:
        store.put_many((key, number) for number, key in enumerate(keys))
        assert store.list() == sorted(keys)
        assert store.get_many(keys) == {key: number for number, key in enumerate(keys)}


_folders = itertools.count()


@pytest.fixture(autouse=True)
def _scratch(tmp_path):
    global _root  # Hypothesis wants no function-scoped fixture among the arguments
    _root = tmp_path


def _scratch_folder():
    return _root / f"scratch{next(_folders)}"


@pytest.mark.parametrize("wrong", ["", 5, 1.0, b"k", ("a",), object(), Path("x"), "\0", "\udc80"])
def test_b12_what_is_no_key(store, wrong):
    with pytest.raises((ValueError, TypeError)) as caught:
        store.put(1, key=wrong)
    assert isinstance(caught.value, InvalidKeyError)
    assert store.list() == []


def test_b12_none_is_no_key_but_where_one_is_made_up(store):
    for call in (store.get, store.delete, store.exists, store.get_metadata, store.__getitem__):
        with pytest.raises(InvalidKeyError):
            call(None)
    with pytest.raises(InvalidKeyError):
        store[None] = 1


def test_b13_none_only_for_no_such_key(store):
    assert store.get("absent") is None
    store.put(None, key="none")
    assert store.get("none", "default") is None
    assert (store.exists("none"), store.exists("absent")) == (True, False)
    store.put(noise(), key="gone")
    blob_file(store, "gone").unlink()
    with pytest.raises(IntegrityError):
        store.get("gone")
    store.put(noise(), key="bad")
    blob_file(store, "bad").write_bytes(noise(1))
    with pytest.raises(IntegrityError):
        store.get("bad")


def test_b14_metadata_is_a_fresh_copy_with_the_same_fields(tmp_path):
    found = {}
    for backend in BACKENDS:
        with BlobStore(tmp_path / backend, backend, inline_max_bytes=0) as store:
            store.put(np.arange(50_000), key="k", metadata={"accuracy": 0.9, "list": [1]})
            first = store.get_metadata("k")
            assert first["file_size"] == blob_file(store, "k").stat().st_size
            blob_file(store, "k").unlink()
            first["metadata"]["list"].append(2)
            first["info"]["shape"].append(2)
            first["metadata"]["new"] = 1
            found[backend] = store.get_metadata("k")
            assert found[backend]["metadata"] == {"accuracy": 0.9, "list": [1]}
            for name in ("created_at", "updated_at"):
                at = datetime.fromisoformat(found[backend].pop(name))
                assert at.utcoffset().total_seconds() == 0
    assert found["json"] == found["sqlite"]
    assert {"key", "data_type", "file_size", "metadata"} <= found["json"].keys()
    assert found["json"]["data_type"] == "array"


def test_b15_update_metadata_is_a_durable_shallow_merge(store):
    store.put(noise(), key="k", metadata={"a": 1, "nested": {"x": 1, "y": 2}})
    file = blob_file(store, "k")
    before = file.stat()
    assert store.update_metadata("k", {"deployed": True, "nested": {"x": 2}}) is True
    assert store.update_metadata("absent", {"deployed": True}) is False
    after = file.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    with reopen(store) as store:
        metadata = store.get_metadata("k")["metadata"]
        assert metadata == {"a": 1, "nested": {"x": 2}, "deployed": True}
        assert store.list() == ["k"]


def test_b15_user_names_never_reach_system_fields(store, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    store.put(noise(), key="k")
    system = store.entry("k")
    hostile = {name: str(secret) for name in (
        "actual_path", "storage_format", "file_hash", "location", "locations", "parts", "key", "id",
        "version", "handler", "data_type", "info", "size", "metadata", "checksum", "digest",
    )}  # fmt: skip
    assert store.update_metadata("k", hostile)
    assert store["k"] == noise()
    changed = store.entry("k")
    assert (changed.parts, changed.handler, changed.size) == (system.parts, "bytes", system.size)
    assert changed.metadata == hostile
    store.delete("k")
    assert secret.read_bytes() == b"secret"


def test_b16_delete_leaves_no_bytes(store):
    for key, value in (("a", noise()), ("b", {"w": np.arange(50_000), "x": np.zeros(20_000)})):
        store.put(value, key=key)
        assert blob_files(store)
        assert (store.delete(key), store.delete(key)) == (True, False)
        assert blob_files(store) == []


def test_b17_exists_needs_entry_and_file(store):
    assert store.exists("k") is False
    store.put({"w": np.arange(50_000), "x": np.arange(20_000.0)}, key="k")
    assert store.exists("k") is True
    files = blob_files(store)
    assert len(files) == 3
    for file in files:
        data = file.read_bytes()
        file.unlink()
        assert store.exists("k") is False
        file.write_bytes(data)
    assert store.exists("k") is True


def test_b18_list(store):
    store.put(1, key="model_a", metadata={"deployed": True, "n": 1})
    store.put(2, key="model_b", metadata={"deployed": False})
    store.put(3, key="data", metadata={"deployed": True})
    assert type(store.list()) is list
    assert store.list() == ["data", "model_a", "model_b"]
    assert store.list("model_") == ["model_a", "model_b"]
    assert store.list(metadata_filter={"deployed": True}) == ["data", "model_a"]
    assert store.list(prefix="model_", metadata_filter={"deployed": True}) == ["model_a"]
    store.update_metadata("model_b", {"deployed": True})
    assert store.list("model_", {"deployed": True}) == ["model_a", "model_b"]


def test_b19_clear_takes_its_own_blobs_and_nobody_elses(store):
    folder = store.path
    foreign = [
        folder / "mine.parquet",
        folder / "mine.pkl",
        folder / "sub" / "report.b2nd",
        folder / "blobs" / "notes.txt",
        folder / "blobs" / "ab" / "model.pkl.lz4",
        folder / "tmp" / "thesis.tex",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    store.put_many((f"k{n}", noise(n)) for n in range(5))
    assert store.clear() == 5
    assert store.clear() == 0
    assert store.gc(dry_run=False, grace=0).items == ()
    assert blob_files(store) == sorted(foreign)
    assert all(path.read_bytes() == b"mine" for path in foreign)


def test_b20_close_and_reopen(tmp_path, backend):
    store = BlobStore(tmp_path, backend=backend)
    store.put(noise(), key="k", metadata={"v": 1})
    store.close()
    store.close()
    with pytest.raises(BlobStoreError, match="closed"):
        store.put(1)
    with BlobStore(tmp_path) as store:
        assert store["k"] == noise()
    with pytest.raises(BlobStoreError, match="closed"), store:
        pass
    with pytest.raises(ZeroDivisionError), BlobStore(tmp_path) as store:
        1 / 0  # noqa: B018
    with pytest.raises(BlobStoreError, match="closed"):
        store.get("k")


# --- 1.3 values ---


class Tagged(np.ndarray):
    """An array type of somebody else's."""


ARRAYS = {
    "2d": np.random.default_rng(0).standard_normal((300, 200)),
    "fortran": np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
    "strided": np.arange(120_000)[::2],
    "backwards": np.arange(60_000)[::-1],
    "broadcast": np.broadcast_to(np.float32(3), (200, 200)),
    "0d": np.array(1.5),
    "empty": np.empty((0, 5), "f4"),
    "empty late": np.empty((5, 0, 3), "u1"),
    "bool": np.arange(70_000) % 3 == 0,
    "f2": np.arange(2000, dtype="f2"),
    "long": np.linspace(0, 1, 9000, dtype="g"),
    "complex": np.arange(30_000) * 1j,
    "big endian": np.arange(30_000, dtype=">i4"),
    "nan and -0": np.array([np.nan, -0.0, np.inf, -np.inf]),
    "dates": np.arange("2020-01-01", "2024-01-01", dtype="M8[D]"),
    "nat": np.array(["NaT", "2020-01-01T00:00:00.000000001"], "M8[ns]"),
    "spans": np.arange(3000).astype("m8[ms]"),
    "text": np.array(["a", "üñ", "🎉"] * 1000),
    "raw text": np.array([b"a", b"abc"] * 1000),
    "void": np.array([b"\0\1\2\0"] * 100, "V4"),
    "structured": np.array([(1, 2.5, "x")] * 5000, [("a", "i4"), ("b", "f8"), ("c", "U3")]),
    "aligned": np.zeros(100, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "nested": np.zeros(50, [("a", [("b", "f4", (2, 2))])]),
    "objects": np.array([{"x": 1}, None, [1, 2]], object),
    "20d": np.zeros((1,) * 20),
    "one": np.ones(1, "u8"),
}


def assert_array(found, wanted):
    assert type(found) is type(wanted)
    assert found.dtype == wanted.dtype
    assert found.dtype.isalignedstruct == wanted.dtype.isalignedstruct
    assert found.shape == wanted.shape
    assert found.flags.writeable
    if wanted.dtype.hasobject or wanted.dtype.isalignedstruct or wanted.dtype.char == "g":
        assert found.tolist() == wanted.tolist()  # padding may differ, and is not content
    else:
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("codec", ["lz4", "blosclz"])
@pytest.mark.parametrize("name", ARRAYS)
def test_b21_arrays_come_back_exactly(tmp_path, name, codec):
    array = ARRAYS[name]
    before = array.copy()
    with BlobStore(tmp_path, compression=codec) as store:
        store.put(array, key="k")
        assert_array(store["k"], array)
        assert store["k"].flags.f_contiguous == array.flags.f_contiguous or not (
            array.flags.c_contiguous or array.flags.f_contiguous
        )
    np.testing.assert_equal(array, before)
    with BlobStore(tmp_path) as store:
        assert_array(store["k"], array)


def test_b21_subclasses_keep_their_type(store):
    masked = np.ma.masked_array(np.arange(30_000), mask=np.arange(30_000) % 2 == 0, fill_value=-1)
    matrix = np.arange(40_000).reshape(200, 200).view(np.matrix)
    records = np.rec.array([(1, "x"), (2, "y")], dtype=[("a", "i4"), ("b", "U1")])
    tagged = np.arange(30_000).view(Tagged)
    for key, value in {"ma": masked, "mat": matrix, "rec": records, "tag": tagged}.items():
        store.put(value, key=key)
    found = store["ma"]
    assert type(found) is np.ma.MaskedArray
    assert (found.mask == masked.mask).all()
    assert (found.data == masked.data).all()
    assert found.fill_value == -1
    assert_array(store["mat"], matrix)
    assert type(store["rec"]) is np.recarray
    assert store["rec"].b.tolist() == ["x", "y"]
    assert_array(store["tag"], tagged)


def test_b21_scalars_keep_their_type(store):
    for number, value in enumerate([np.float32(0.1), np.int8(3), np.bool_(True), np.str_("x"),
                                    np.datetime64("2020-01-01", "D"), np.complex64(1j)]):  # fmt: skip
        store.put(value, key=str(number))
        assert type(store[str(number)]) is type(value)
        assert store[str(number)] == value


def test_b21_blosc2_reads_the_files(store):
    array = ARRAYS["2d"]
    store.put(array, key="k")
    file = blob_file(store, "k")
    assert file.name.endswith(".b2nd")
    assert_array(blosc2.open(str(file), mode="r")[...], array)


DICTS = {
    "arrays": {"weight": np.arange(30_000.0), "bias": np.zeros(3)},
    "one array": {"w": np.arange(30_000)},
    "names that mean something": {"file": np.arange(20_000), "arr_0": np.ones(2), "": np.ones(1)},
    "numbers as names": {
        0: np.arange(20_000),
        1.5: np.ones(3),
        None: 2,
        (1, "x"): np.zeros(20_000),
    },
    "nested": {"a": {"b": [np.arange(20_000), {"c": np.arange(3)}]}, "t": (np.zeros(10_000), 1)},
    "mixed": {"w": np.arange(20_000), "text": "x" * 9000, "frame": pd.DataFrame({"a": [1]})},
    "objects": {"w": np.array([1, "x", None], object), "v": np.arange(20_000)},
}


def assert_equal(found, wanted):
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert [*map(repr, found)] == [*map(repr, wanted)]
        for one, other in zip(found.values(), wanted.values(), strict=True):
            assert_equal(one, other)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_equal(one, other)
    elif isinstance(wanted, np.ndarray):
        assert_array(found, wanted)
    elif isinstance(wanted, pd.DataFrame):
        pd.testing.assert_frame_equal(found, wanted)
    else:
        assert found == wanted


@pytest.mark.parametrize("name", DICTS)
def test_b22_a_dict_of_arrays_comes_back_as_a_dict(store, name):
    store.put(DICTS[name], key="k")
    assert_equal(store["k"], DICTS[name])


def test_b22_an_array_that_is_met_twice_is_one_array(store):
    weights = np.arange(20_000.0)
    store.put({"encoder": weights, "decoder": weights, "copy": weights.copy()}, key="tied")
    found = store["tied"]
    assert found["encoder"] is found["decoder"]
    assert found["copy"] is not found["encoder"]
    found["encoder"][0] = -1
    assert (found["decoder"][0], found["copy"][0]) == (-1, 0)


def _frames():
    rng = np.random.default_rng(0)
    n = 200
    dates = pd.date_range("2024-01-01", periods=n, freq="h")
    return {
        "plain": pd.DataFrame({"i": range(n), "f": rng.standard_normal(n), "s": ["a", "b"] * 100}),
        "one column": pd.DataFrame({"a": [1, 2, 3]}),
        "nothing": pd.DataFrame(),
        "no rows": pd.DataFrame({"a": pd.Series([], dtype="i4"), "b": pd.Series([], dtype="str")}),
        "no columns": pd.DataFrame(index=[3, 1, 2]),
        "index": pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="id")),
        "stepped index": pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(10, 30, 10)),
        "multi": pd.DataFrame(
            {"a": range(4)},
            index=pd.MultiIndex.from_product([["x", "y"], [1, 2]], names=["n", None]),
        ),
        "dates": pd.DataFrame({"a": range(n)}, index=dates),
        "zones": pd.DataFrame({"t": dates.tz_localize("Europe/Berlin"), "u": dates.as_unit("us")}),
        "spans": pd.DataFrame({"d": pd.to_timedelta(range(5), "h")}),
        "categories": pd.DataFrame(
            {"c": pd.Categorical(["b", "a", None], categories=["b", "a", "z"], ordered=True)}
        ),
        "nullable": pd.DataFrame(
            {"i": pd.array([1, None], "Int64"), "b": pd.array([True, None], "boolean")}
        ),
        "nan": pd.DataFrame({"f": [1.0, np.nan], "o": pd.Series([None, "x"], dtype=object)}),
        "small": pd.DataFrame({"a": np.arange(3, dtype="i1"), "b": np.arange(3, dtype="f4")}),
        "numbered": pd.DataFrame(np.arange(6).reshape(2, 3)),
        "odd names": pd.DataFrame([[1, 2, 3]], columns=["", "a.b", "ü"]),
        "number names": pd.DataFrame([[1, 2]], columns=[1.5, (1, "x")]),
        "twice the same name": pd.DataFrame([[1, 2.5]], columns=["a", "a"]),
        "column levels": pd.DataFrame(
            [[1, 2]], columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])
        ),
        "mixed objects": pd.DataFrame({"o": [1, "x", None, [1, 2], {"k": {1}}]}),
        "lists": pd.DataFrame({"l": [[1, 2], [], None]}),
        "text numbers": pd.DataFrame({"o": pd.Series(["1", 1, 1.0], dtype=object)}),
        "python dates": pd.DataFrame({"d": [date(2024, 1, 1), None]}),
        "bytes": pd.DataFrame({"b": [b"\0x", b""]}),
        "complex": pd.DataFrame({"c": [1j, 2]}),
        "period": pd.DataFrame({"p": pd.period_range("2024-01", periods=3, freq="M")}),
        "interval": pd.DataFrame({"v": pd.interval_range(0, 3)}),
        "sparse": pd.DataFrame({"s": pd.arrays.SparseArray([0, 0, 1])}),
        "strings": pd.DataFrame({"s": pd.array(["a", None], "string")}),
        "huge ints": pd.DataFrame({"u": np.array([2**64 - 1, 0], "u8")}),
    }


FRAMES = _frames()


@pytest.mark.parametrize("name", FRAMES)
def test_b23_frames_come_back_exactly(store, name):
    frame = FRAMES[name]
    before = copy.deepcopy(frame)
    store.put(frame, key="k")
    found = store["k"]
    assert type(found) is pd.DataFrame
    pd.testing.assert_frame_equal(found, before, check_freq=False)
    pd.testing.assert_frame_equal(frame, before)
    assert type(found.index) is type(before.index)
    assert found.columns.names == before.columns.names
    for position in range(before.shape[1]):
        if before.dtypes.iloc[position].kind == "O":
            kinds = [[*map(type, x.iloc[:, position])] for x in (found, before)]
            assert kinds[0] == kinds[1]


def test_b23_the_file_is_parquet(store):
    frame = FRAMES["plain"]
    store.put(frame, key="k")
    file = blob_file(store, "k")
    assert file.name.endswith(".parquet")
    assert file.read_bytes()[:4] == file.read_bytes()[-4:] == b"PAR1"
    pd.testing.assert_frame_equal(pd.read_parquet(file), frame)


@pytest.mark.parametrize("name", ["mixed objects", "text numbers", "complex"])
def test_b23_what_parquet_cannot_hold_is_pickled(store, name):
    store.put(FRAMES[name], key="k")
    assert ".pkl" in blob_file(store, "k").name


@pytest.mark.parametrize("name", [None, "x", 0, "0", ("a", 1), 1.5])
def test_b23_series_keep_their_name(store, name):
    series = pd.Series([1.5, None, 3], index=pd.Index([5, 3, 1], name="i"), name=name)
    store.put(series, key="k")
    pd.testing.assert_series_equal(store["k"], series)
    assert type(store["k"].name) is type(name)


def test_b23_attributes_of_a_frame(store):
    frame = pd.DataFrame({"a": [1, 2]})
    frame.attrs = {"unit": "m", "nested": {"x": [1]}}
    store.put(frame, key="k")
    assert store["k"].attrs == frame.attrs


class Counted:
    """Knows how often it was serialised."""

    count = 0

    def __init__(self, value):
        self.value = value

    def __getstate__(self):
        type(self).count += 1
        return {"value": self.value}


@pytest.mark.parametrize("size", [10, 100_000])
def test_b24_objects_are_pickled_once(store, size):
    Counted.count = 0
    store.put([Counted("x" * size)], key="k")
    assert Counted.count == 1
    assert ".pkl" in blob_file(store, "k").name
    assert store["k"][0].value == "x" * size


def function_with_a_name(x):
    return x + 1


def test_b25_functions(store):
    store.put(function_with_a_name, key="f")
    assert store["f"](1) == 2
    store.put(len, key="len")
    assert store["len"] is len
    before = blob_files(store)
    inner = threading.Lock()
    for refused in (lambda x: x, (x for x in [1]), inner, [lambda: 0]):
        with pytest.raises(UnsupportedTypeError, match="cannot be stored"):
            store.put(refused, key="refused")
    assert (store.exists("refused"), blob_files(store)) == (False, before)


def test_b26_polars_frames(store):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"a": [1, None], "b": ["x", "y"]})
    store.put(frame, key="k")
    assert store["k"].equals(frame)


@pytest.mark.parametrize("value", [None, False, True, 0, 0.0, "", b"", {}, [], (), set(), ...])
def test_b27_values_that_are_false(store, value):
    store.put(value, key="k")
    assert type(store.get("k", "default")) is type(value)
    assert store.get("k", "default") == value
    assert store.exists("k")
    assert "k" in store


# --- 1.4 metadata ---


def test_b28_the_callers_dict_is_copied(store):
    given = {"a": [1, {"b": 2}], "n": np.float32(0.5)}
    before = copy.deepcopy(given)
    store.put(1, key="k", metadata=given)
    store.update_metadata("k", given)
    assert given == before
    given["a"][1]["b"] = 3
    assert store.get_metadata("k")["metadata"]["a"] == [1, {"b": 2}]


def test_b29_any_string_is_a_name(store):
    names = ["", "storage_format", "actual_path", "key", "id", "a.b", "$gt", "@size", "ü", "\0", '"',
             "'", "--", "[0]", "$.x", "x" * 3000, "metadata", "__class__"]  # fmt: skip
    metadata = {name: number for number, name in enumerate(names)}
    store.put(noise(), key="k", metadata=metadata)
    with reopen(store) as store:
        assert store.get_metadata("k")["metadata"] == metadata
        assert store["k"] == noise()
        for name in names:
            assert store.list(metadata_filter={name: metadata[name]}) == ["k"]
            assert store.list(metadata_filter={name: -1}) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, max_size=4))
@settings(max_examples=25)
def test_b30_all_json_is_kept_exactly(backend, metadata):
    folder = _scratch_folder()
    with BlobStore(folder, backend=backend) as store:
        store.put(1, key="k", metadata=metadata)
        assert repr(store.get_metadata("k")["metadata"]) == repr(metadata)
    with BlobStore(folder) as store:
        assert repr(store.get_metadata("k")["metadata"]) == repr(metadata)
        for name, value in metadata.items():
            assert store.list(metadata_filter={name: value}) == ["k"]


def test_b31_numpy_scalars_stay_numbers(store):
    metadata = {"f8": np.float64(0.5), "f4": np.float32(0.1), "i": np.int64(7), "b": np.bool_(True)}
    store.put(1, key="k", metadata=metadata)
    with reopen(store) as store:
        found = store.get_metadata("k")["metadata"]
        assert found == {"f8": 0.5, "f4": float(np.float32(0.1)), "i": 7, "b": True}
        assert [type(x) for x in found.values()] == [float, float, int, bool]
        for wanted in ({"f8": 0.5}, {"i": 7}, {"b": True}, {"i": np.int8(7)}, metadata):
            assert store.list(metadata_filter=wanted) == ["k"]
        assert store.list(metadata_filter={"i": "7"}) == []


@pytest.mark.parametrize(
    "wrong", [{1}, b"x", object(), math.nan, math.inf, {1: 2}, 1j, np.arange(3)]
)
def test_b32_what_is_no_json_is_refused_and_harms_nothing(store, wrong):
    store.put_many((f"k{n}", n, {"n": n}) for n in range(12))
    for call in (
        lambda: store.put(noise(), key="new", metadata={"x": wrong}),
        lambda: store.put(noise(), key="k3", metadata={"x": [wrong]}),
        lambda: store.update_metadata("k3", {"x": wrong}),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
    store.put(1, key="later")
    with reopen(store) as store:
        assert store.list() == sorted([*(f"k{n}" for n in range(12)), "later"])
        assert store.get_metadata("k3")["metadata"] == {"n": 3}
        assert store["k3"] == 3


# --- 1.5 listing ---


def test_b33_prefixes_are_literal(store):
    keys = ["a%b", "axb", "a_b", "aXb", "A%b", "a*", "a[1]", "a1", "\\", "\\%", "a%", "ä", "Ä", "%"]
    store.put_many((key, 1) for key in keys)
    for prefix in ["a%", "a_", "a*", "a[", "\\", "%", "_", "*", "A", "a", "ä", "a%b", "zz", "a%bc"]:
        assert store.list(prefix=prefix) == sorted(k for k in keys if k.startswith(prefix)), prefix
    assert store.list(prefix="") == store.list(prefix=None) == store.list() == sorted(keys)


def test_b34_filters_are_data(store):
    entries = {
        "int": {"v": 1}, "str": {"v": "1"}, "true": {"v": True}, "float": {"v": 1.5}, "none": {"v": None},
        "list": {"v": [1, 2]}, "dict": {"v": {"a": 1, "b": [None]}}, "zero": {"v": 0},
        "false": {"v": False}, "sql": {"v": "x' OR '1'='1"}, "more": {"v": 1, "w": 2},
        "big": {"v": 2**60 + 1}, "path": {"v.a": 1}, "quote": {'v"': 1}, "minus": {"v": -0.0},
    }  # fmt: skip
    store.put_many((key, 0, value) for key, value in entries.items())
    for wanted, found in [
        ({"v": 1}, ["int", "more"]), ({"v": 1.0}, ["int", "more"]), ({"v": "1"}, ["str"]),
        ({"v": True}, ["true"]), ({"v": False}, ["false"]), ({"v": 0}, ["minus", "zero"]),
        ({"v": 1.5}, ["float"]), ({"v": None}, ["none"]), ({"v": [1, 2]}, ["list"]), ({"v": [1]}, []),
        ({"v": [2, 1]}, []), ({"v": {"b": [None], "a": 1}}, ["dict"]), ({"v": {"a": 1}}, []),
        ({"v": "x' OR '1'='1"}, ["sql"]), ({"v": 1, "w": 2}, ["more"]), ({"w": 3, "v": 1}, []),
        ({"v": 2**60}, []), ({"v": 2**60 + 1}, ["big"]), ({"v.a": 1}, ["path"]), ({'v"': 1}, ["quote"]),
        ({"' OR 1=1 --": 1}, []), ({"v": (1, 2)}, ["list"]), ({"v": ""}, []), ({"v": []}, []),
    ]:  # fmt: skip
        assert store.list(metadata_filter=wanted) == found, wanted


def test_b35_a_filter_on_none(store):
    store.put_many([("none", 1, {"v": None}), ("zero", 1, {"v": 0}), ("empty", 1, {"v": ""}),
                    ("false", 1, {"v": False}), ("without", 1), ("text", 1, {"v": "null"})])  # fmt: skip
    assert store.list(metadata_filter={"v": None}) == ["none"]


def test_b36_both_backends_give_the_same_answers(tmp_path):
    answers = []
    for backend in BACKENDS:
        with BlobStore(tmp_path / backend, backend=backend) as store:
            log = [store.put_many((f"k{n % 7}", n, {"n": n, "odd": n % 2 == 1}) for n in range(20))]
            log += [store.delete("k2"), store.delete("k2"), store.update_metadata("k1", {"n": "x"})]
            log += [store.move("k3", "é"), store.copy("é", "k0"), store.list(), store.list("k")]
            log += [
                store.list(metadata_filter={"odd": True}),
                store.count(prefix="k", metadata_filter={"odd": False}),
            ]
            log += [[(e.key, e.version, e.metadata, e.size) for e in map(store.entry, store)]]
            log += [{key: store[key] for key in store}, store.delete_many(["k0", "x"]), len(store)]
            log += [store.clear(), store.clear()]
            answers.append(log)
    assert answers[0] == answers[1]


class Work:
    """Counts what a call costs, in function calls and in bytes read and written, not in time."""

    def __enter__(self):
        self.calls = 0
        self._before = self._bytes()
        sys.setprofile(self._count)
        return self

    def __exit__(self, *exc_info):
        sys.setprofile(None)
        self.bytes = self._bytes() - self._before

    def _count(self, frame, event, arg):
        self.calls += event in ("call", "c_call")

    @staticmethod
    def _bytes():
        lines = Path("/proc/self/io").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar")))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs the counters of Linux")
def test_b37_the_cost_of_a_call_does_not_grow_with_the_store(tmp_path, backend):
    costs = {}
    with BlobStore(tmp_path, backend=backend, inline_max_bytes=8192) as store:
        store.put_many((f"k{n:05}", n, {"n": n, "deployed": n % 100 == 0}) for n in range(200))
        costs[200] = _costs(store)
        store.put_many(
            (f"k{n:05}", n, {"n": n, "deployed": n % 100 == 0}) for n in range(200, 5000)
        )
        costs[5000] = _costs(store)
    for name, (calls, size) in costs[5000].items():
        few_calls, few_bytes = costs[200][name]
        assert calls < 6 * few_calls, (name, costs)
        assert size < 6 * few_bytes + 20_000, (name, costs)


def _costs(store):
    store.put(0, key="k00100")
    costs = {}
    for name, call in {
        "put": lambda: store.put(1, key="k00100", metadata={"n": 100}),
        "get": lambda: store["k00100"],
        "get_metadata": lambda: store.get_metadata("k00100"),
        "update_metadata": lambda: store.update_metadata("k00100", {"m": 1}),
        "exists": lambda: store.exists("k00100"),
        "list": lambda: store.list(prefix="k0010"),
    }.items():
        call()
        with Work() as work:
            call()
        costs[name] = (work.calls, work.bytes)
    return costs


@pytest.mark.nightly
def test_b37_ten_thousand_entries(tmp_path, backend):
    with BlobStore(tmp_path, backend=backend) as store:
        times = {}
        for size in (200, 10_000):
            store.put_many((f"k{n:05}", n, {"n": n, "odd": n % 2}) for n in range(len(store), size))
            for name, call in {
                "put": lambda: store.put(1, key="k00100", metadata={"n": 100}),
                "get": lambda: store["k00100"],
                "get_metadata": lambda: store.get_metadata("k00100"),
            }.items():
                times[name, size] = _median(call)
        for name in ("put", "get", "get_metadata"):
            assert times[name, 10_000] < 6 * times[name, 200], times
        started = time.perf_counter()
        assert len(store.list()) == 10_000
        assert len(store.list(prefix="k001")) == 100
        assert len(store.list(metadata_filter={"odd": 1})) == 5000
        assert time.perf_counter() - started < 1


def _median(call):
    times = []
    for _ in range(50):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


# --- 1.6 content addressing ---


@pytest.fixture
def shared(tmp_path, backend):
    with BlobStore(tmp_path / "shared", backend, content_addressable=True, inline_max_bytes=0) as s:
        yield s


SAME = {
    "memory order": lambda: (
        np.arange(60_000).reshape(200, 300),
        np.asfortranarray(np.arange(60_000).reshape(200, 300)),
    ),
    "strides": lambda: (np.arange(60_000)[::2], np.arange(0, 60_000, 2)),
    "string identity": lambda: (["abc", "abc"], ["".join("abc"), "".join("abc")]),
    "order of a set": lambda: (set(range(1000)), set(range(999, -1, -1))),
    "frame after use": lambda: (_frame(), _used(_frame())),
    "slice of a frame": lambda: (_frame()[10:20], _frame().iloc[10:20].copy()),
    "objects": lambda: (Counted([1, "x"]), Counted([1, "".join("x")])),
    "read-only": lambda: (np.arange(9.0), _readonly(np.arange(9.0))),
    "nested arrays": lambda: (
        {"w": np.arange(60_000).reshape(200, 300)},
        {"w": np.asfortranarray(np.arange(60_000).reshape(200, 300))},
    ),
}


def _frame():
    return pd.DataFrame({"a": range(100), "b": ["x", "y"] * 50, "c": np.arange(100) / 7})


def _used(frame):
    frame.loc[5]
    frame["a"].is_unique  # noqa: B018
    frame.index.get_loc(7)
    frame.groupby("b").sum()
    return frame


def _readonly(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("name", SAME)
def test_b38_equal_content_has_one_key(shared, name):
    one, other = SAME[name]()
    key = shared.put(one)
    assert shared.put(other) == key
    assert len(bytes.fromhex(key)) >= 16
    assert shared.list() == [key]


DIFFERENT = [
    np.arange(6), np.arange(6, dtype="i4"), np.arange(6.0), np.arange(6).reshape(2, 3),
    np.arange(6).reshape(3, 2), np.arange(6).reshape(1, 6), np.arange(6, dtype=">i8"), np.zeros(6), -np.zeros(6),
    [0, 1, 2, 3, 4, 5], (0, 1, 2, 3, 4, 5), {0, 1, 2, 3, 4, 5}, [0.0, 1, 2, 3, 4, 5], [False, 1, 2, 3, 4, 5],
    b"x", "x", ["x"], [b"x"], bytearray(b"x"), 1, True, 1.0, "1", None, "None", [], (), {}, set(), frozenset(),
    {"a": 1, "b": 2}, {"b": 2, "a": 1}, [[1], 2], [1, [2]], [[1, 2]], 0.0, -0.0, 1 + 0j,
    pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"b": [1, 2]}), pd.DataFrame({"a": [1.0, 2]}),
    pd.DataFrame({"a": [1, 2]}, index=[1, 2]), pd.DataFrame({"a": [1, 2]}, index=[2, 1]),
    pd.DataFrame({"a": [1, 2]}, index=pd.Index([0, 1], name="i")), pd.Series([1, 2], name="a"), pd.Series([1, 2]),
    pd.DataFrame({"a": pd.array([1, 2], "Int64")}), pd.DataFrame({"a": [1], "b": [2]}),
    pd.DataFrame({"b": [2], "a": [1]}), np.array(["x"]), np.array([b"x"]), np.array([1], object), np.float64(1),
    np.array([], "f4"), np.array([], "f8"), np.empty((0, 2)), np.empty((2, 0)),
]  # fmt: skip


def test_b38_different_content_has_different_keys(shared):
    keys = [shared.put(value) for value in DIFFERENT]
    again = {}
    for key, value in zip(keys, DIFFERENT, strict=True):
        again.setdefault(key, []).append(value)
    assert [values for values in again.values() if len(values) > 1] == []


CROSS_PROCESS = """
import sys
import numpy as np, pandas as pd
from blobstore import BlobStore
values = [{"a", "b", "cd", "efg"}, {"x": frozenset("hello"), "y": [1.5, None]}, np.arange(9000.0),
          pd.DataFrame({"a": [1, 2], "b": ["x", None]}), {"w": np.arange(30000), "e": 3}, "text", b"b",
          frozenset({("a", 1), ("b", 2)}), pd.Series(["x", "y"])]
with BlobStore(sys.argv[1], content_addressable=True) as store:
    print(*(store.put(value) for value in values))
    print(len(store))
"""


def test_b38_keys_are_the_same_in_other_processes(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(
            lambda seed: python(CROSS_PROCESS, tmp_path / seed, PYTHONHASHSEED=seed), ("1", "2")
        )
    assert one == other
    assert one.split()[-1] == "9"


def test_b39_names_for_shared_content(shared):
    model = {"weights": np.arange(50_000), "bias": 1}
    assert shared.put(model, key="fraud_detector_v2.1", metadata={"a": 1}) == "fraud_detector_v2.1"
    key = shared.put(copy.deepcopy(model), metadata={"a": 2})
    shared.put(model, key="fraud_detector_v2.2", metadata={"a": 3})
    files = blob_files(shared)
    assert len(files) == 2  # the array and the rest, each stored once
    assert shared.list(prefix="fraud_detector") == ["fraud_detector_v2.1", "fraud_detector_v2.2"]
    assert [shared.get_metadata(k)["metadata"]["a"] for k in sorted(shared)] == [
        {"fraud_detector_v2.1": 1, "fraud_detector_v2.2": 3, key: 2}[k] for k in sorted(shared)
    ]
    assert shared.update_metadata("fraud_detector_v2.1", {"deployed": True})
    assert shared.list(metadata_filter={"deployed": True}) == ["fraud_detector_v2.1"]
    for name in ("fraud_detector_v2.1", key):
        assert shared.delete(name)
        assert blob_files(shared) == files
    assert_equal(shared["fraud_detector_v2.2"], model)
    shared.delete("fraud_detector_v2.2")
    assert blob_files(shared) == []


@pytest.mark.parametrize("size", [0, 1, 1000, 8192, 9000, 20_000, 40_000, 200_000])
def test_b39_stored_once_whatever_its_size(tmp_path, backend, size):
    with BlobStore(tmp_path, backend, content_addressable=True) as store:
        for name in ("a", "b"):
            store.put(noise(size, size), key=name)
        entries = [store.entry(name) for name in ("a", "b")]
        assert len(blob_files(store)) == (0 if entries[0].inline else 1)
        assert entries[0].parts == entries[1].parts


def test_b39_a_put_again_without_metadata_keeps_them(shared):
    key = shared.put(noise(), metadata={"author": "alice"})
    assert shared.put(noise()) == key
    assert shared.get_metadata(key)["metadata"] == {"author": "alice"}
    assert shared.put(noise(), metadata={"author": "bob"}) == key
    assert shared.get_metadata(key)["metadata"] == {"author": "bob"}


def test_b39_a_put_of_known_content_mends_a_blob_that_is_gone(shared):
    shared.put(noise(), key="a")
    (file,) = blob_files(shared)
    file.unlink()
    shared.put(noise(), key="b")
    assert shared["b"] == noise(), "what was acknowledged can be read"


def test_b39_frozen_arrays_of_checkpoints_are_stored_once(shared):
    frozen = {f"layer{n}": np.random.default_rng(n).standard_normal(20_000) for n in range(7)}
    for epoch in range(4):
        head = np.random.default_rng(100 + epoch).standard_normal(20_000)
        shared.put({**frozen, "head": head, "epoch": epoch}, key=f"epoch{epoch}")
    assert len([p for p in blob_files(shared) if p.suffix == ".b2nd"]) == 7 + 4
    np.testing.assert_array_equal(shared["epoch2"]["layer3"], frozen["layer3"])


def test_b39_the_first_writers_codec_stays(tmp_path, backend):
    data = np.arange(60_000)
    for codec in ("zstd", "lz4"):
        with BlobStore(tmp_path, backend, codec, content_addressable=True) as store:
            store.put(data, key=codec)
            assert len(blob_files(store)) == 1
            np.testing.assert_array_equal(store[codec], data)
            assert store.get_metadata(codec)["compression"] == "zstd"


# --- 1.7 blob backends ---


@pytest.mark.parametrize("bit", range(0, 8 * 40_000, 9_973))
def test_b40_one_flipped_bit_is_noticed(tmp_path, bit):
    array = np.random.default_rng(0).standard_normal(6000)
    with BlobStore(tmp_path) as store:
        store.put(array, key="k")
        file = blob_file(store, "k")
        data = bytearray(file.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        with pytest.raises(IntegrityError) as caught:
            store.get("k")
        assert caught.value.location == file.name
        assert store.entry("k").parts[0].blob.checksum.partition(":")[2] in str(caught.value)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("value", [{"x": 1}, np.arange(50_000), {"w": np.arange(50_000)}, "text"])
def test_b40_a_blob_replaced_by_a_pickle_is_never_run(tmp_path, value, verify):
    trace = tmp_path / "trace"
    with BlobStore(tmp_path / "s", compression="lz4", verify_on_read=verify) as store:
        store.put(value, key="k")
        for file in blob_files(store):
            whole = file.read_bytes()
            file.write_bytes(pickle.dumps(Bomb(trace)))
            if verify or ".pkl" in file.name:
                with pytest.raises(IntegrityError):
                    store.get("k")
            else:
                _load_anything(store)
            assert not trace.exists()
            file.write_bytes(whole)


def _load_anything(store):
    """Unchecked bytes may be garbage, but garbage of their own type or a typed error."""
    try:
        found = store.get("k")
    except BlobStoreError:
        return
    assert isinstance(found, str)


def test_b41_blobs_are_sharded_files_replaced_whole(store):
    store.put_many((f"k{n}", noise(n)) for n in range(20))
    for file in blob_files(store):
        assert file.parent.parent == store.path / "blobs"
        assert file.name.startswith(file.parent.name)
        assert len(file.parent.name) == 2
    old = blob_file(store, "k0")
    with old.open("rb") as reader:  # as somebody who is reading just now
        store.put(noise(99), key="k0")
        assert reader.read() == noise(0)
    assert blob_file(store, "k0") != old


def test_b42_memory(tmp_path, backend):
    with BlobStore(tmp_path, backend, blob_backend="memory") as store:
        for number, value in enumerate([noise(), {"x": np.arange(50_000)}, "small"]):
            store.put(value, key=str(number), metadata={"n": number})
            assert store.exists(str(number))
            assert_equal(store[str(number)], value)
        assert blob_files(store) == []
        assert store.delete("0")
        assert (store.exists("0"), store.get("0"), store.delete("0")) == (False, None, False)
        assert store.list() == ["1", "2"]


def test_b42_a_store_in_memory_has_no_second_handle(tmp_path, backend):
    with BlobStore(tmp_path, backend, blob_backend="memory") as store:
        store.put(noise(), key="k")
        with pytest.raises((BlobStoreError, TypeError, pickle.PicklingError)):
            pickle.dumps(store)


@pytest.mark.parametrize("shard_chars", [1, 2, 3, 8])
def test_b43_shard_chars(tmp_path, shard_chars):
    backend = FilesystemBlobBackend(base_dir=tmp_path / "cache", shard_chars=shard_chars)
    with backend, BlobStore(tmp_path / "cache", blob_backend=backend) as store:
        store.put_many((str(n), noise(n)) for n in range(5))
        files = blob_files(store)
        assert len(files) == 5
        for file in files:
            first = file.relative_to(tmp_path / "cache").parts[0]
            assert len(first) == shard_chars
            assert file.name.startswith(first)
        assert store["3"] == noise(3)


class Recording(BlobBackend):
    """Records each call."""

    def __init__(self):
        self.calls = []
        self.data = {}

    def write_blob(self, blob_id, data):
        self.calls.append("write_blob")
        self.data[f"at/{blob_id}"] = data
        return f"at/{blob_id}"

    def read_blob(self, blob_path):
        self.calls.append("read_blob")
        if blob_path not in self.data:
            raise FileNotFoundError(blob_path)
        return self.data[blob_path]

    def delete_blob(self, blob_path):
        self.calls.append("delete_blob")
        return self.data.pop(blob_path, None) is not None

    def exists(self, blob_path):
        self.calls.append("exists")
        return blob_path in self.data

    def called(self):
        calls, self.calls = set(self.calls), []
        return calls


def test_b44_what_a_blob_backend_overrides_is_called(tmp_path, backend):
    blobs = Recording()
    with BlobStore(tmp_path, backend, blob_backend=blobs) as store:
        store.put(noise(), key="k")
        assert "write_blob" in blobs.called()
        assert store.entry("k").locations == (*blobs.data,)
        assert store["k"] == noise()
        assert "read_blob" in blobs.called()
        assert store.exists("k")
        assert blobs.called() == {"exists"}
        store.delete("k")
        assert "delete_blob" in blobs.called()
        assert blobs.data == {}
        store.put(noise(), key="gone")
        blobs.data.clear()
        with pytest.raises(IntegrityError):
            store.get("gone")
        assert store.exists("gone") is False
    assert blob_files(store) == []


def test_b44_no_path_leads_out(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    with FilesystemBlobBackend(tmp_path / "base") as blobs:
        for path in ("../outside", str(outside), "a/../../outside", "ab/../../outside"):
            with pytest.raises((ValueError, KeyError, OSError)):
                blobs.read_blob(path)
            with pytest.raises((ValueError, KeyError, OSError)):
                blobs.write_blob(path, b"x")
            with contextlib.suppress(ValueError, KeyError, OSError):
                assert blobs.delete_blob(path) is False
        with pytest.raises(FileNotFoundError):
            blobs.read_blob("absent")
        assert blobs.delete_blob("absent") is False
    assert outside.read_bytes() == b"mine"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["outside"]


@pytest.mark.parametrize("wrong", ["tape", "", 5, object(), DictStore])
def test_b45_unknown_blob_backends_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError) as caught:
        BlobStore(tmp_path / "s", blob_backend=wrong)
    assert isinstance(caught.value, ConfigError)


def test_b46_any_object_store(tmp_path, backend):
    with DictStore() as objects, BlobStore(tmp_path, backend, blob_backend=objects) as store:
        store.put(noise(), key="k")
        (location,) = store.entry("k").locations
        assert objects.get(location) == noise()
        store.delete("k")
        assert not objects.exists(location)


# --- 1.8 durability ---

WRITER = """
import itertools, sys
import numpy as np
from blobstore import BlobStore
store = BlobStore(sys.argv[1], backend=sys.argv[2])
for seed in itertools.count(1):
    key = f"k{seed % 3}"
    size = 100_000 if seed % 2 else 50
    store.put(np.random.default_rng(seed).bytes(size), key=key, metadata={"seed": seed, "size": size})
    print(seed, flush=True)
"""


def test_b47_a_killed_writer_leaves_whole_values(tmp_path, backend):
    with BlobStore(tmp_path, backend=backend) as store:
        store.put("other", key="other", metadata={"v": 1})
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), backend], stdout=subprocess.PIPE, text=True
    )
    with process:
        for _ in range(25):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        lines = [line for line in process.stdout.read().split("\n") if line.isdigit()]
    last = int(lines[-1]) if lines else 25
    with BlobStore(tmp_path) as store:
        assert (store["other"], store.get_metadata("other")["metadata"]) == ("other", {"v": 1})
        seeds = set()
        for key in ("k0", "k1", "k2"):
            meta = store.get_metadata(key)["metadata"]
            assert store[key] == np.random.default_rng(meta["seed"]).bytes(meta["size"])
            seeds.add(meta["seed"])
        assert seeds in ({last - 2, last - 1, last}, {last - 1, last, last + 1})
        assert store.verify(deep=True).ok
        store.gc(dry_run=False, grace=0)
        assert len(blob_files(store)) == sum(not store.entry(k).inline for k in store)


class FailingHalfway:
    def __init__(self):
        self.array = np.arange(50_000)

    def __reduce__(self):
        return (list, ((self.array, _Fails()),))


class _Fails:
    def __reduce__(self):
        raise RuntimeError("this serialiser fails")


def test_b48_a_failing_serialiser_changes_nothing(store):
    store.put(noise(), key="k", metadata={"v": 1})
    before = blob_files(store)
    for wrong in (FailingHalfway(), {"w": np.arange(50_000), "x": _Fails()}):
        with pytest.raises((RuntimeError, UnsupportedTypeError), match="this serialiser fails"):
            store.put(wrong, key="k", metadata={"v": 2})
        with pytest.raises((RuntimeError, UnsupportedTypeError), match="this serialiser fails"):
            store.put_many([("new", noise(1)), ("k", wrong)])
    assert (store["k"], store.get_metadata("k")["metadata"]) == (noise(), {"v": 1})
    assert (blob_files(store), store.list()) == (before, ["k"])


def test_b49_two_stores_and_threads_in_one_process(tmp_path, backend):
    with BlobStore(tmp_path, backend) as one, BlobStore(tmp_path, backend) as other:
        start = threading.Barrier(4)

        def work(number):
            store = (one, other)[number % 2]
            start.wait()
            for i in range(15):
                store.put(noise(i), key=f"{number}/{i}", metadata={"i": i})
                store.put([number, i], key="shared", metadata={"at": [number, i]})
                store.update_metadata("0/0", {f"seen{number}": i})

        one.put(0, key="0/0")
        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(work, number) for number in range(4)]:
                future.result()
        for store in (one, other):
            assert len(store) == 4 * 15 + 1
            assert all(store[f"{n}/{i}"] == noise(i) for n in range(4) for i in range(15))
            assert store["shared"] == store.get_metadata("shared")["metadata"]["at"]
            assert store.get_metadata("shared")["version"] == 4 * 15
            assert store.verify(deep=True).ok


@pytest.mark.parametrize("damage", ["truncated", "emptied", "garbage", "removed"])
def test_b50_a_damaged_index_is_never_an_empty_store(tmp_path, backend, damage):
    name = {"json": "cache_metadata.json", "sqlite": "cache_metadata.db"}[backend]
    with BlobStore(tmp_path, backend=backend, inline_max_bytes=0) as store:
        store.put_many((f"k{n}", noise(n)) for n in range(20))
    index = tmp_path / name
    data = index.read_bytes()
    if damage == "removed":
        index.unlink()
    else:
        index.write_bytes({"truncated": data[: len(data) // 2], "emptied": b"",
                           "garbage": noise(5, 5000)}[damage])  # fmt: skip
    left = index.read_bytes() if index.exists() else None
    for choice in (backend, None):
        try:
            with BlobStore(tmp_path, backend=choice) as store:
                assert len(store) == 20
                assert all(store[f"k{n}"] == noise(n) for n in range(20))
        except BlobStoreError as exc:
            assert str(tmp_path) in str(exc)  # noqa: PT017 - recovering is as good
            assert (index.read_bytes() if index.exists() else None) == left
    assert len(blob_files(store)) == 20


def test_b51_a_moved_folder_works(tmp_path, backend):
    with BlobStore(tmp_path / "old", backend=backend, inline_max_bytes=0) as store:
        store.put(noise(), key="k", metadata={"v": 1})
        store.put({"w": np.arange(50_000)}, key="w")
    (tmp_path / "deep").mkdir()
    (tmp_path / "old").rename(tmp_path / "deep" / "new")
    with BlobStore(tmp_path / "deep" / "new") as store:
        assert store["k"] == noise()
        assert_equal(store["w"], {"w": np.arange(50_000)})
        store.put(1, key="more")
        assert store.delete("k")
        assert store.verify(deep=True).ok
    for path in (tmp_path / "deep" / "new").rglob("*"):
        assert path.is_dir() or os.fsencode(tmp_path / "old") not in path.read_bytes()
    assert not (tmp_path / "old").exists()


MEMORY = """
import re, sys
import numpy as np, pandas as pd
from pathlib import Path
from blobstore import BlobStore

def peak(call):
    Path("/proc/self/clear_refs").write_text("5")
    before = field("VmRSS")
    result = call()
    return (field("VmHWM") - before) * 1024, result

def field(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

class Model:
    pass

def make(kind, size):
    array = np.random.default_rng(0).standard_normal(size // 8)
    if kind == "array":
        return array
    if kind == "frame":
        return pd.DataFrame(array.reshape(8, -1).T.copy(order="F"), columns=list("abcdefgh"))
    model = Model()
    model.weights = array
    return model

kind, size = sys.argv[2], int(sys.argv[3]) << 20
with BlobStore(sys.argv[1]) as store:
    store.put(make(kind, 1 << 20), key="warm")
    store.get("warm")
    value = make(kind, size)
    put, _ = peak(lambda: store.put(value, key="k"))
    del value
    get, found = peak(lambda: store.get("k"))
    print(put / size, get / size)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("size", [64, pytest.param(256, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    ("kind", "put_limit", "get_limit"),
    [("array", 1.3, 1.6), ("object", 2.3, 2.6), ("frame", 2.3, 3.2)],
)
def test_b52_memory(tmp_path, kind, put_limit, get_limit, size):
    put, get = map(float, python(MEMORY, tmp_path, kind, size).split())
    assert put <= put_limit
    assert 0.5 <= get <= get_limit


def test_the_names_of_tests_carry_every_row():
    text = Path(__file__).read_text("utf-8")
    assert [n for n in range(1, 53) if f"_b{n:02}_" not in text] == []
