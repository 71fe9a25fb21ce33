"""Importing the folders of other programs: what is read, what is refused, and that nothing is changed."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path

import blosc2
import diskcache
import joblib
import lz4.frame
import numpy as np
import pandas as pd
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore import AutoStore, BlobStore
from blobstore.errors import ConfigError, InvalidInputError, StorageError
from blobstore.importing import (
    ImportReport,
    import_cacheness,
    import_diskcache,
    import_folder,
    import_joblib,
)


@pytest.fixture
def store(tmp_path):
    with BlobStore(tmp_path / "store", backend="sqlite") as opened:
        yield opened


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def state(folder):
    """Every path below a folder with its bytes and its times of change."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[str(path)] = (content, stat.st_mtime_ns, stat.st_mode, stat.st_size)
    return found


@contextlib.contextmanager
def unchanged(folder):
    before = state(folder)
    yield
    assert state(folder) == before


def reasons(report):
    return {item.place: item.reason for item in report.unreadable}


class Evil:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Basket:
    """A class of the user's own."""

    def __init__(self, items):
        self.items = items


BASKET = f"{Basket.__module__}.Basket"


# --- diskcache ---


@pytest.fixture
def cache(source):
    with diskcache.Cache(str(source)) as opened:
        yield opened


VALUES = {
    "text": "plain",
    "empty": "",
    "number": 7,
    "huge": 1 << 80,
    "float": 0.5,
    "none": None,
    "true": True,
    "bytes": b"\0\xff",
    "nested": {"a": [1, (2, 3)], "b": {4}},
    "long text": "äöü\r\n" * 20_000,
    "long bytes": os.urandom(100_000),
    "array": np.arange(50_000),
    "frame": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
}


def same(found, expected):
    if isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
    else:
        assert type(found) is type(expected)
        assert found == expected


def test_every_kind_of_diskcache_value(source, store):
    with diskcache.Cache(str(source)) as cache:
        for key, value in VALUES.items():
            cache.set(key, value, tag="mine", expire=3600)
        cache.set("stream", io.BytesIO(b"x" * 70_000), read=True)
    with unchanged(source):
        report = import_diskcache(source, store, prefix="old/")
    assert report.ok, report.unreadable
    assert not report.skipped
    assert sorted(report.imported) == sorted(f"old/{key}" for key in [*VALUES, "stream"])
    for key, value in VALUES.items():
        same(store[f"old/{key}"], value)
    assert store["old/stream"] == b"x" * 70_000
    facts = store.get_metadata("old/text")["metadata"]["imported"]
    assert facts["from"] == "diskcache"
    assert facts["tag"] == "mine"
    assert facts["stored"] < facts["expires"]
    assert facts["place"] == "cache.db, row 1"
    assert store.verify(deep=True).ok


def test_a_cache_that_is_open_elsewhere_is_read_without_a_trace(cache, source, store):
    cache["a"] = 1
    assert (source / "cache.db-wal").stat().st_size  # what is in there is nowhere else
    with unchanged(source):
        assert import_diskcache(source, store).imported == ["a"]
    assert store["a"] == 1


def test_a_closed_cache_gets_no_files_beside_it(source, store):
    with diskcache.Cache(str(source)) as cache:
        cache["a"] = 1
    assert [path.name for path in source.iterdir()] == ["cache.db"]
    with unchanged(source):
        import_diskcache(source, store)
    assert [path.name for path in source.iterdir()] == ["cache.db"]


def test_a_cache_on_a_medium_that_cannot_be_written(source, store):
    with diskcache.Cache(str(source)) as cache:
        cache["a"], cache["b"] = 1, "x" * 50_000
    for path in [*source.rglob("*"), source]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert sorted(import_diskcache(source, store).imported) == ["a", "b"]
    finally:
        for path in [source, *source.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_diskcache_keys_that_are_no_text(source, store):
    with diskcache.Cache(str(source)) as cache:
        for key in (1, 2.5, b"raw", ("user", 7), None, "ä/b"):
            cache[key] = repr(key)
        cache["1"] = "a text"
        cache[""] = "nothing"
    report = import_diskcache(source, store)
    assert set(report.imported) == {"1", "2.5", "b'raw'", "('user', 7)", "None", "ä/b"}
    assert store["('user', 7)"] == "('user', 7)"
    assert store.get_metadata("('user', 7)")["metadata"]["imported"]["key_type"] == "tuple"
    found = reasons(report)
    assert "also that of cache.db, row 1" in found["cache.db, row 7"]
    assert "empty" in found["cache.db, row 8"]


def test_a_cache_of_shards_and_one_of_json(source, store):
    with diskcache.FanoutCache(str(source / "fanout"), shards=3) as cache:
        for number in range(20):
            cache[f"k{number}"] = "x" * number * 5_000
    with diskcache.Cache(str(source / "json"), disk=diskcache.JSONDisk) as cache:
        cache["small"] = {"a": [1, None]}
        cache[("user", 1)] = list(range(50_000))
        cache.set("stream", io.BytesIO(zlib.compress(b'"read"')), read=True)
    with unchanged(source):
        fanout = import_diskcache(source / "fanout", store, prefix="fanout/")
        as_json = import_diskcache(source / "json", store, prefix="json/")
    assert fanout.ok
    assert len(fanout.imported) == 20
    assert store["fanout/k19"] == "x" * 95_000
    assert as_json.ok
    assert store["json/small"] == {"a": [1, None]}
    assert store["json/['user', 1]"] == list(range(50_000))


def test_deque_and_index_of_diskcache(source, store):
    deque = diskcache.Deque(["a", "b"], str(source / "deque"))
    deque.cache.close()
    index = diskcache.Index(str(source / "index"), {"x": 1})
    index.cache.close()
    assert len(import_diskcache(source / "deque", store, prefix="d/").imported) == 2
    assert import_diskcache(source / "index", store, prefix="i/").imported == ["i/x"]


def test_expired_items_are_skipped_unless_they_are_wanted(source, store):
    with diskcache.Cache(str(source)) as cache:
        cache["new"] = 2
        cache.set("old", 1, expire=0.001)  # the next one to be set would remove it
    time.sleep(0.01)
    report = import_diskcache(source, store)
    assert report.imported == ["new"]
    assert "expired" in report.skipped[0].reason
    assert import_diskcache(source, store, expired=True).imported == ["old"]


def test_malicious_diskcache_pickles_run_nothing(source, store, tmp_path):
    key_marker, inline_marker, file_marker = (tmp_path / name for name in ("k", "i", "f"))
    with diskcache.Cache(str(source)) as cache:
        cache["inline"] = Evil(inline_marker)
        cache["file"] = [Evil(file_marker), "x" * 100_000]
        cache[(Evil(key_marker),)] = 1
        cache["mine"] = Basket([1])
        cache["plain"] = {"a": 1}
    report = import_diskcache(source, store)
    assert report.imported == ["plain"]
    assert [item.place for item in report.unreadable] == [
        f"cache.db, row {n}" for n in (1, 2, 3, 4)
    ]
    assert "posix.mkdir" in report.unreadable[0].reason
    assert f"trusted_types=['{BASKET}']" in report.unreadable[3].reason
    assert not key_marker.exists()
    assert not inline_marker.exists()
    assert not file_marker.exists()

    assert import_diskcache(source, store, trusted_types=[BASKET]).imported == ["mine"]
    assert store["mine"].items == [1]
    denied = import_diskcache(source, store, pickle="deny", overwrite=True)
    assert denied.imported == []
    assert all("pickle='deny'" in item.reason for item in denied.unreadable)
    assert import_diskcache(source, store, pickle="allow", prefix="all/").ok  # and it was no dud
    assert key_marker.exists()
    assert inline_marker.exists()
    assert file_marker.exists()


def change(database, statement, *values):
    connection = sqlite3.connect(database)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "ab/../../secret", "link", "", "a\0b"]
)
def test_files_that_a_diskcache_index_names_stay_in_its_folder(name, source, store, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (source / "link").symlink_to(tmp_path / "secret")
    with diskcache.Cache(str(source)) as cache:
        cache["a"] = b"x" * 50_000
        cache["b"] = b"y" * 50_000
    change(source / "cache.db", "UPDATE Cache SET filename = ? WHERE key = 'a'", name)
    report = import_diskcache(source, store)
    assert report.imported == ["b"]
    assert list(reasons(report)) == ["cache.db, row 1"]


def test_damaged_diskcache_items_are_listed(source, store):
    with diskcache.Cache(str(source)) as cache:
        for key in ("gone", "text", "pickle", "mode", "good"):
            cache[key] = (
                "ä" * 50_000 if key in ("gone", "text") else [key * 10] * 10_000 + [{}] * 50_000
            )
    database = sqlite3.connect(source / "cache.db")
    rows = dict(database.execute("SELECT key, filename FROM Cache"))
    database.close()
    (source / rows["gone"]).unlink()
    (source / rows["text"]).write_bytes(b"\xff\xff")
    (source / rows["pickle"]).write_bytes(b"\x80\x05]q")
    change(source / "cache.db", "UPDATE Cache SET mode = 9 WHERE key = 'mode'")
    (source / "stray.val").write_bytes(b"")
    with unchanged(source):
        report = import_diskcache(source, store)
    assert report.imported == ["good"]
    assert len(report.unreadable) == 4
    assert [item.place for item in report.skipped] == ["stray.val"]


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100, None])
def test_a_damaged_diskcache_index_is_listed(content, source, store):
    with diskcache.Cache(str(source)) as cache:
        for number in range(500):
            cache[number] = str(number) * 100
    if content is None:  # cut in the middle of it
        content = (source / "cache.db").read_bytes()[: 1 << 15]
    (source / "cache.db").write_bytes(content)
    with unchanged(source):
        report = import_diskcache(source, store)
    assert "the index cannot be read" in reasons(report)["cache.db"]
    assert len(report.imported) < 500


def test_an_index_that_is_a_view_is_not_read(source, store):
    database = sqlite3.connect(source / "cache.db")
    database.execute(
        "CREATE VIEW Cache AS SELECT 1 AS rowid, 'a' AS key, 1 AS raw, 1 AS mode, 1 AS value"
    )
    database.commit()
    database.close()
    assert "no table Cache" in reasons(import_diskcache(source, store))["cache.db"]


# --- what all have in common ---


def test_dry_run_progress_overwrite_and_going_on(source, store):
    with diskcache.Cache(str(source)) as cache:
        for number in range(5):
            cache[f"k{number}"] = number
    seen = []
    report = import_diskcache(source, store, dry_run=True, progress=lambda *args: seen.append(args))
    assert len(report.imported) == 5
    assert len(store) == 0
    assert [args[:2] for args in seen] == [(n, 5) for n in range(1, 6)]

    class Stop(Exception):
        pass

    def stop(done, total, place):
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        import_diskcache(source, store, progress=stop)
    assert sorted(store) == ["k0", "k1", "k2"]
    store["k1"] = "my own"
    report = import_diskcache(source, store)
    assert report.imported == ["k3", "k4"]
    assert [item.reason for item in report.skipped] == [
        f"the key 'k{n}' is in the store already" for n in range(3)
    ]
    assert report.ok
    assert store["k1"] == "my own"
    assert len(import_diskcache(source, store, overwrite=True).imported) == 5
    assert store["k1"] == 1
    assert str(report) == "2 imported, 0 unreadable, 3 skipped"


def test_a_killed_import_goes_on_where_it_was(source, tmp_path):
    with diskcache.Cache(str(source)) as cache:
        for number in range(300):
            cache[f"k{number}"] = [number] * 3_000
    code = (
        "import os, signal, sys\n"
        "from blobstore import BlobStore\n"
        "from blobstore.importing import import_diskcache\n"
        "kill = lambda done, total, place: done == 100 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "import_diskcache(sys.argv[1], BlobStore(sys.argv[2], backend='sqlite'), progress=kill)\n"
    )
    with unchanged(source):
        ended = subprocess.run(
            [sys.executable, "-c", code, source, tmp_path / "store"], timeout=60, check=False
        )
        assert ended.returncode == -9
        with BlobStore(tmp_path / "store") as store:
            assert 95 <= len(store) <= 101
            report = import_diskcache(source, store)
            assert report.ok
            assert len(report.imported) + len(report.skipped) == 300
            assert store["k299"] == [299] * 3_000
            assert store.verify(deep=True).ok


def test_a_store_that_fails_ends_the_import_with_its_error(source, tmp_path):
    from blobstore import DictStore
    from blobstore.testing.faults import FaultyStore

    with diskcache.Cache(str(source)) as cache:
        cache["a"] = "x" * 10_000
    with BlobStore(tmp_path / "closed") as closed:
        pass
    with pytest.raises(ValueError, match="closed"):
        import_diskcache(source, closed)
    objects = FaultyStore(DictStore())
    with BlobStore(tmp_path / "store", blob_backend=objects) as store:
        objects.fail("*", StorageError("the disk is on fire"))
        with pytest.raises(StorageError, match="on fire"):
            import_diskcache(source, store)
        objects.heal()
        assert import_diskcache(source, store).imported == ["a"]


@pytest.mark.parametrize("call", [import_diskcache, import_cacheness, import_joblib, import_folder])
def test_wrong_calls(call, source, store, tmp_path):
    with pytest.raises(InvalidInputError, match="nothing to import"):
        call(tmp_path / "missing", store)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="no folder"):
        call(tmp_path / "file", store)
    with pytest.raises(ConfigError, match="into a BlobStore"):
        call(source, {})
    with pytest.raises(ConfigError, match="prefix"):
        call(source, store, prefix=7)
    with pytest.raises(ConfigError, match="pickle must be"):
        call(source, store, pickle="maybe")
    with pytest.raises(ConfigError, match="every type"):
        call(source, store, trusted_types=["*"])
    inner = BlobStore(source / "inner")
    with inner, pytest.raises(InvalidInputError, match="would be changed"):
        call(source, inner)


@pytest.mark.parametrize("call", [import_diskcache, import_cacheness])
def test_a_folder_without_an_index_is_an_error(call, source, store):
    with pytest.raises(InvalidInputError, match="there is n"):
        call(source, store)


# --- joblib ---


def double(x, y=1):
    return {"x": np.full((3, 4), x), "y": y}


@pytest.mark.parametrize("compress", [False, True, 9])
def test_results_of_a_joblib_memory(compress, source, store):
    cached = joblib.Memory(str(source), verbose=0, compress=compress).cache(double)
    cached(2)
    cached(3, y="z")
    with unchanged(source):
        report = import_joblib(source, store, prefix="m/")
    assert report.ok, report.unreadable
    assert len(report.imported) == 2
    assert {Path(item.place).name for item in report.skipped} <= {
        ".gitignore",
        "func_code.py",
    }
    by_argument = {}
    for key in report.imported:
        assert key.startswith("m/")
        assert key.split("/")[-2] == "double"
        facts = store.get_metadata(key)["metadata"]["imported"]
        assert facts["from"] == "joblib"
        assert facts["computed"]
        assert facts["duration"] >= 0
        by_argument[facts["arguments"]["x"]] = store[key]
    np.testing.assert_array_equal(by_argument["3"]["x"], np.full((3, 4), 3))
    assert by_argument["3"]["y"] == "z"


OBJECTS = {
    "scalar": 7,
    "array": np.arange(12.0).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "empty": np.empty((0, 3), "f4"),
    "zero-d": np.array(5),
    "record": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "big endian": np.arange(5, dtype=">i4"),
    "times": np.array(["2024-01-01"], dtype="datetime64[D]"),
    "objects": np.array([{"a": 1}, None, "x"], dtype=object),
    "matrix": np.arange(4).reshape(2, 2).view(np.matrix),
    "nested": [np.arange(3), {"k": np.ones((2, 2), "f4")}, "end", np.arange(40_000)],
    "frame": pd.DataFrame({"a": [1.5, 2.5]}),
}


def equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            equal(one, other)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            equal(found[key], expected[key])
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.flags.f_contiguous == expected.flags.f_contiguous
        np.testing.assert_array_equal(found, expected)
    else:
        same(found, expected)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("pickles", ["signed", "allow"])
def test_objects_that_joblib_dumped(protocol, pickles, source, store):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # of the matrix
        for name, value in OBJECTS.items():
            joblib.dump(value, source / f"{name}.joblib", protocol=protocol)
        with unchanged(source):
            report = import_joblib(source, store, pickle=pickles)
        assert report.ok, report.unreadable
        for name, value in OBJECTS.items():
            equal(store[f"{name}.joblib"], value)
    assert store.get_metadata("scalar.joblib")["metadata"]["imported"]["size"] > 0


@pytest.mark.parametrize("extension", [".z", ".gz", ".bz2", ".xz", ".lzma", ".lz4"])
def test_compressed_dumps_of_joblib(extension, source, store):
    value = {"a": np.arange(300_000), "b": "x"}
    joblib.dump(value, source / f"a.pkl{extension}")
    whole = (source / f"a.pkl{extension}").read_bytes()
    (source / f"cut.pkl{extension}").write_bytes(whole[:-50])
    report = import_joblib(source, store)
    assert report.imported == [f"a.pkl{extension}"]
    equal(store[f"a.pkl{extension}"], value)
    assert list(reasons(report)) == [f"cut.pkl{extension}"]


@pytest.mark.parametrize("compressed", [False, True])
def test_malicious_joblib_files_run_nothing(compressed, source, store, tmp_path):
    marker = tmp_path / "marker"
    evil = {
        "direct.pkl": Evil(marker),
        "behind an array.pkl": [np.arange(3), Evil(marker)],
        "in an array.pkl": np.array([Evil(marker)], dtype=object),
        "mine.pkl": Basket(np.arange(3)),
    }
    for name, value in evil.items():
        joblib.dump(value, source / name, compress=compressed)
    report = import_joblib(source, store)
    assert report.imported == []
    assert set(reasons(report)) == set(evil)
    assert not marker.exists()
    assert import_joblib(source, store, trusted_types=[BASKET]).imported == ["mine.pkl"]
    np.testing.assert_array_equal(store["mine.pkl"].items, np.arange(3))
    report = import_joblib(source, store, pickle="allow")
    assert marker.exists()
    assert "behind an array.pkl" in {*report.imported, *reasons(report)}
    assert set(reasons(import_joblib(source, store, pickle="deny", overwrite=True))) == set(evil)


def test_a_model_of_scikit_learn_that_joblib_dumped(source, store):
    from sklearn.ensemble import RandomForestClassifier

    points = np.arange(40.0).reshape(20, 2)
    model = RandomForestClassifier(3, random_state=0).fit(points, points[:, 0] > 20)
    joblib.dump(model, source / "model.joblib", compress=3)
    assert "trusted_types" in reasons(import_joblib(source, store))["model.joblib"]
    assert import_joblib(source, store, trusted_types=["sklearn.*"]).ok
    np.testing.assert_array_equal(store["model.joblib"].predict(points), model.predict(points))


def wrapper_pickle(attributes, tail=b""):
    """A file of joblib with a wrapper of these attributes."""
    from joblib.numpy_pickle import NumpyArrayWrapper

    wrapper = NumpyArrayWrapper.__new__(NumpyArrayWrapper)
    wrapper.__dict__.update(attributes)
    return pickle.dumps(wrapper, protocol=2)[:-1] + tail + b"."


GOOD = {
    "subclass": np.ndarray,
    "shape": (2,),
    "order": "C",
    "dtype": np.dtype("i4"),
    "numpy_array_alignment_bytes": None,
}


@pytest.mark.parametrize(
    "attributes",
    [
        {"shape": (1 << 40,)},
        {"shape": (-1,)},
        {"shape": "2"},
        {"shape": (2.0,)},
        {"shape": (3,)},
        {"order": "K"},
        {"dtype": "i4"},
        {"dtype": np.dtype("f8")},
        {"numpy_array_alignment_bytes": 16},
    ],
    ids=repr,
)
@pytest.mark.parametrize("pickles", ["signed", "allow"])
def test_arrays_in_joblib_files_that_are_none(attributes, pickles, source, store):
    elements = np.array([1, 2], "i4").tobytes()
    (source / "good.pkl").write_bytes(wrapper_pickle(GOOD, elements))
    (source / "bad.pkl").write_bytes(wrapper_pickle(GOOD | attributes, elements))
    report = import_joblib(source, store, pickle=pickles)
    assert report.imported == ["good.pkl"]
    assert list(reasons(report)) == ["bad.pkl"]
    np.testing.assert_array_equal(store["good.pkl"], [1, 2])


def test_a_joblib_array_that_is_referred_to_again(source, store):
    """Its wrapper would be in the object, which no file of joblib asks for."""
    elements = np.array([1, 2], "i4").tobytes()
    content = wrapper_pickle(GOOD, elements)
    memoised = content.index(b"\x81q")  # the wrapper, as the second of a pair
    again = b"h" + content[memoised + 2 : memoised + 3] + b"\x86."
    (source / "twice.pkl").write_bytes(content[:-1] + again)
    assert import_joblib(source, store).imported == []
    assert len(store) == 0


def test_files_of_old_joblib_and_of_others(source, store):
    old = pickle.dumps(np.arange(3), protocol=2)
    (source / "old.pkl").write_bytes(b"\x80\x02cjoblib.numpy_pickle\nNDArrayWrapper\n)\x81}b.")
    (source / "plain.pkl").write_bytes(old)
    (source / "garbage.pkl").write_bytes(b"garbage")
    (source / "empty.pkl").write_bytes(b"")
    (source / "notes.txt").write_text("hello")
    report = import_joblib(source, store)
    assert report.imported == ["plain.pkl"]
    found = reasons(report)
    assert set(found) == {"old.pkl", "garbage.pkl", "empty.pkl"}
    assert "before 0.10" in found["old.pkl"]
    assert [item.place for item in report.skipped] == ["notes.txt"]


@pytest.mark.parametrize(
    "pack", [zlib.compress, gzip.compress, bz2.compress, lzma.compress, lz4.frame.compress]
)
def test_decompression_bombs_are_refused(pack, source, store):
    (source / "bomb.pkl").write_bytes(pack(pickle.dumps(bytes(64 << 20))))
    report = import_joblib(source, store, max_decompressed_bytes=1 << 20)
    # LZ4 does not shrink that far: no bomb.
    refused = [] if pack is lz4.frame.compress else ["bomb.pkl"]
    assert list(reasons(report)) == refused
    assert all("grows to more than" in reason for reason in reasons(report).values())


# --- plain folders ---


def test_a_folder_of_files(source, store):
    frame = pd.DataFrame({"a": [1, 2]})
    (source / "data" / "deep").mkdir(parents=True)
    frame.to_parquet(source / "data" / "frame.parquet")
    np.save(source / "data" / "deep" / "x.npy", np.arange(4))
    (source / "config.json").write_text('{"lr": 0.1}')
    (source / "NOTES.MD").write_text("# Notes\r\n")
    (source / "archive.tar.gz").write_bytes(b"\x1f\x8b123")
    (source / "no extension").write_bytes(b"\0\1")
    (source / ".hidden").write_bytes(b"h")
    (source / "model.v1").write_bytes(b"m")
    os.utime(source / "config.json", (1_700_000_000, 1_700_000_000))
    with unchanged(source):
        report = import_folder(source, store, prefix="in/")
    assert report.ok, report.unreadable
    assert report.imported == [
        "in/.hidden",
        "in/NOTES.MD",
        "in/archive.tar.gz",
        "in/config.json",
        "in/model.v1",
        "in/no extension",
        "in/data/frame.parquet",
        "in/data/deep/x.npy",
    ]
    pd.testing.assert_frame_equal(store["in/data/frame.parquet"], frame)
    np.testing.assert_array_equal(store["in/data/deep/x.npy"], np.arange(4))
    assert store["in/config.json"] == {"lr": 0.1}
    assert store["in/NOTES.MD"] == "# Notes\r\n"
    assert store["in/archive.tar.gz"] == b"\x1f\x8b123"
    facts = store.get_metadata("in/config.json")["metadata"]["imported"]
    assert facts == {
        "from": "folder",
        "place": "config.json",
        "size": 11,
        "modified": "2023-11-14T22:13:20+00:00",
    }


def test_files_as_the_bytes_that_they_are(source, store, tmp_path):
    (source / "table.csv").write_bytes(b"id\n007\n")
    (source / "bad.json").write_bytes(b"{")
    report = import_folder(source, store, parse=False)
    assert report.ok
    assert store["table.csv"] == b"id\n007\n"
    store.get_file("bad.json", tmp_path / "out.json")
    assert (tmp_path / "out.json").read_bytes() == b"{"


def test_damaged_files_are_listed(source, store):
    bad = ("a.json", "b.parquet", "c.npy", "d.npz", "e.pkl", "f.yaml", "g.txt", "h.png", "i.jsonl")
    for name in bad:
        (source / name).write_bytes(b"{\xff\x00 [")
    (source / "good.txt").write_text("x")
    with unchanged(source):
        report = import_folder(source, store)
    assert report.imported == ["good.txt"]
    assert sorted(reasons(report)) == sorted(bad)


def test_links_pipes_and_strange_names_in_a_folder(source, store, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secrets").mkdir()
    (source / "file.txt").write_text("x")
    (source / "inner.txt").symlink_to("file.txt")
    (source / "outer.txt").symlink_to(tmp_path / "secret")
    (source / "up.txt").symlink_to("../secret")
    (source / "broken.txt").symlink_to("nothing")
    (source / "loop.txt").symlink_to("loop.txt")
    (source / "folder").symlink_to(tmp_path / "secrets")
    os.mkfifo(source / "pipe.txt")
    Path(os.fsdecode(os.fsencode(source) + b"/b\xff.txt")).write_bytes(b"x")
    with unchanged(source):
        report = import_folder(source, store)
    assert report.imported == ["file.txt", "inner.txt"]
    found = reasons(report)
    assert len(found) == 7
    assert "leads out of the folder" in found["outer.txt"]
    assert "leads out of the folder" in found["up.txt"]
    assert "no regular file" in found["pipe.txt"]
    assert "link to a folder" in found["folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_that_may_not_be_read_are_listed(source, store):
    (source / "locked.txt").write_text("x")
    (source / "locked.txt").chmod(0)
    (source / "closed").mkdir(mode=0)
    try:
        assert set(reasons(import_folder(source, store))) == {"locked.txt", "closed"}
    finally:
        (source / "closed").chmod(0o755)


def test_pickles_in_a_folder_load_if_they_are_ones_own_or_harmless(source, store, tmp_path):
    marker = tmp_path / "marker"
    with AutoStore(source) as files:
        files["own/basket"] = Basket([1])
        files["frame"] = pd.DataFrame({"a": [1]})
    (source / "evil.pkl").write_bytes(pickle.dumps(Evil(marker)))
    (source / "plain.pkl").write_bytes(pickle.dumps({1, 2}))
    (source / "strange.pkl").write_bytes(pickle.dumps(Basket([2])))
    shutil.copy(source / "own" / "basket.pkl", source / "moved.pkl")
    with unchanged(source):
        report = import_folder(source, store)
    assert set(report.imported) == {"own/basket.pkl", "frame.parquet", "plain.pkl"}
    assert store["own/basket.pkl"].items == [1]
    assert store["plain.pkl"] == {1, 2}
    assert set(reasons(report)) == {"evil.pkl", "strange.pkl", "moved.pkl"}
    assert not marker.exists()
    assert import_folder(source, store, trusted_types=[BASKET]).imported == [
        "moved.pkl",
        "strange.pkl",
    ]
    assert import_folder(source, store, pickle="allow").imported == ["evil.pkl"] or marker.exists()


# --- cacheness ---
#
# cacheness is not on the package index: these write what its sources say that it writes.


class CachenessFolder:
    """Files and index entries as cacheness makes them."""

    def __init__(self, root):
        self.root = root
        self.entries = {}

    def add(
        self, key, content, extension, data_type, storage_format, *, user=None, hashed=True, **more
    ):
        path = self.root / f"{key}{extension}"
        path.write_bytes(content)
        system = {
            "actual_path": str(path),
            "storage_format": storage_format,
            "compression_codec": "lz4",
        }
        if hashed:
            system["file_hash"] = xxhash.xxh3_64(content).hexdigest()
        self.entries[key] = {
            "description": "",
            "data_type": data_type,
            "created_at": "2025-03-01T10:00:00+00:00",
            "accessed_at": "2025-03-02T10:00:00+00:00",
            "file_size": len(content),
            "metadata": {**(user or {}), **system},
            **more,
        }
        return path

    def array(self, key, array, **more):
        return self.add(key, container(array), ".b2nd", "array", "blosc2", **more)

    def write_json(self):
        document = {"entries": self.entries, "cache_hits": 3, "cache_misses": 1}
        (self.root / "cache_metadata.json").write_text(json.dumps(document))

    def write_old_json(self):
        document = {
            "entries": {k: {**e["metadata"], "description": "d"} for k, e in self.entries.items()},
            "access_times": {k: e["accessed_at"] for k, e in self.entries.items()},
            "creation_times": {k: e["created_at"] for k, e in self.entries.items()},
            "file_sizes": {k: e["file_size"] for k, e in self.entries.items()},
            "data_types": {k: e["data_type"] for k, e in self.entries.items()},
            "cache_key_params": {k: {"n": 1} for k in self.entries},
            "cache_hits": 0,
            "cache_misses": 0,
        }
        (self.root / "cache_metadata.json").write_text(json.dumps(document))

    def write_sqlite(self, *, table="cache_entries", close=True):
        database = sqlite3.connect(self.root / "cache_metadata.db", isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(
            f"CREATE TABLE {table} (cache_key VARCHAR(16) PRIMARY KEY, description VARCHAR, data_type "
            "VARCHAR, created_at DATETIME, accessed_at DATETIME, file_size INTEGER, file_hash VARCHAR, "
            "entry_signature VARCHAR, s3_etag VARCHAR, object_type VARCHAR, storage_format VARCHAR, "
            "serializer VARCHAR, compression_codec VARCHAR, actual_path VARCHAR, cache_key_params TEXT, "
            "metadata_dict TEXT, access_count INTEGER DEFAULT 0, ttl_seconds INTEGER, expires_at "
            "DATETIME, blob_data BLOB, is_inline INTEGER DEFAULT 0, inline_ext TEXT)"
        )
        for key, entry in self.entries.items():
            meta = dict(entry["metadata"])
            names = ("file_hash", "storage_format", "compression_codec", "actual_path")
            system = [meta.pop(name, None) for name in names]
            database.execute(
                f"INSERT INTO {table} (cache_key, description, data_type, created_at, accessed_at, "
                "file_size, file_hash, storage_format, compression_codec, actual_path, metadata_dict, "
                "expires_at, blob_data, is_inline, inline_ext) VALUES (" + ",".join("?" * 15) + ")",
                (
                    key,
                    entry["description"],
                    entry["data_type"],
                    "2025-03-01 10:00:00.000000",
                    "2025-03-02 10:00:00.000000",
                    entry["file_size"],
                    *system,
                    json.dumps(meta) if meta else None,
                    entry.get("expires_at"),
                    entry.get("blob_data"),
                    int("blob_data" in entry),
                    entry.get("inline_ext"),
                ),
            )
        if close:
            database.close()
        return database

    def write_old_sqlite(self):
        database = sqlite3.connect(self.root / "cache_metadata.db")
        database.execute(
            "CREATE TABLE cache_entries (cache_key VARCHAR(16) PRIMARY KEY, description VARCHAR, "
            "data_type VARCHAR, prefix VARCHAR, created_at DATETIME, accessed_at DATETIME, file_size "
            "INTEGER, file_hash VARCHAR, cache_key_params TEXT, metadata_json TEXT)"
        )
        for key, entry in self.entries.items():
            meta = dict(entry["metadata"])
            file_hash = meta.pop("file_hash", None)
            values = (key, "", entry["data_type"], "", "2025-03-01 10:00:00", "2025-03-02 10:00:00")
            database.execute(
                "INSERT INTO cache_entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, entry["file_size"], file_hash, '{"n": 1}', json.dumps(meta)),
            )
        database.commit()
        database.close()


WRITERS = ["write_json", "write_old_json", "write_sqlite", "write_old_sqlite"]


def container(array, *, one_chunk=True):
    """Length and text of shape and dtype, then a Blosc chunk."""
    shape, dtype = (str(value).encode() for value in (array.shape, array.dtype))
    if one_chunk:
        packed = blosc2.compress(
            array, typesize=array.dtype.itemsize, clevel=5, codec=blosc2.Codec.LZ4
        )
    else:
        params = {"typesize": array.dtype.itemsize, "clevel": 5, "codec": blosc2.Codec.LZ4}
        packed = blosc2.compress2(array, cparams=params)
    head = b"".join(len(text).to_bytes(4, "little") + text for text in (shape, dtype))
    return head + packed


def packed_pickle(obj, codec=blosc2.Codec.LZ4, pieces=1):
    data = pickle.dumps(obj, -1)
    step = -(-len(data) // pieces)
    return b"".join(
        blosc2.compress(data[start : start + step], typesize=1, codec=codec, clevel=5)
        for start in range(0, len(data), step)
    )


def saved(save):
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


@pytest.fixture
def folder(source):
    return CachenessFolder(source)


CACHENESS_VALUES = {
    "array": np.arange(12.0).reshape(3, 4),
    "big": np.arange(200_000),
    "several": {"a": np.arange(3), "b": np.ones(2)},
    "one": {"weights": np.arange(3)},
    "npz": np.arange(5),
    "small": {"a": [1, 2], "t": (1, 2)},
    "object": list(range(5_000)),
    "zstd": "x" * 10_000,
    "chunks": b"y" * 10_000,
    "frame": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=[5, 6]),
    "series": pd.Series([1.5, 2.5], name="s"),
    "bytes": b"\0raw",
}


def fill(folder):
    """Each kind of file of which cacheness has one."""
    values = CACHENESS_VALUES
    user = {"accuracy": 0.9, "stage": {"deployed": True}}
    folder.array("array", values["array"], user=user)
    folder.add("big", container(values["big"], one_chunk=False), ".b2nd", "array", "blosc2_array")
    for name in ("several", "one"):
        content = saved(lambda f, n=name: np.savez(f, **values[n]))
        folder.add(name, content, ".npz", "array", "npz")
    folder.add(
        "npz", saved(lambda f: np.savez_compressed(f, data=values["npz"])), ".npz", "array", "npz"
    )
    folder.add("small", pickle.dumps(values["small"]), ".pkl", "object", "pickle")
    folder.add("object", packed_pickle(values["object"]), ".pkl.lz4", "object", "compressed_pickle")
    packed = packed_pickle(values["zstd"], blosc2.Codec.ZSTD)
    folder.add("zstd", packed, ".pkl.zstd", "object", "compressed_pickle")
    packed = packed_pickle(values["chunks"], pieces=3)
    folder.add("chunks", packed, ".pkl.lz4", "object", "compressed_pickle")
    content = saved(lambda f: values["frame"].to_parquet(f))
    folder.add("frame", content, ".parquet", "pandas_dataframe", "parquet")
    content = saved(lambda f: values["series"].to_frame().to_parquet(f))
    folder.add("series", content, ".parquet", "pandas_series", "parquet")
    folder.add("bytes", values["bytes"], ".bin", "bytes", "raw_bytes")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_of_cacheness(writer, folder, source, store):
    fill(folder)
    getattr(folder, writer)()
    with unchanged(source):
        report = import_cacheness(source, store, prefix="c/")
    assert report.ok, report.unreadable
    assert not report.skipped
    assert len(report.imported) == len(CACHENESS_VALUES)
    for key, value in CACHENESS_VALUES.items():
        found = store[f"c/{key}"]
        if isinstance(value, pd.Series):
            pd.testing.assert_series_equal(found, value)
        elif isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(found, value)
        else:
            equal(found, value)
    assert store["c/array"].flags.writeable
    metadata = store.get_metadata("c/array")["metadata"]
    facts = metadata.pop("imported")
    assert metadata == {"accuracy": 0.9, "stage": {"deployed": True}}
    assert store.list(metadata_filter={"accuracy": 0.9}) == ["c/array"]
    assert facts["from"] == "cacheness"
    assert facts["created"].startswith("2025-03-01")
    assert facts["data_type"] == "array"


def test_a_cacheness_database_that_is_open_elsewhere(folder, source, store):
    folder.array("a", np.arange(3))
    database = folder.write_sqlite(close=False)
    assert (source / "cache_metadata.db-wal").stat().st_size
    with unchanged(source):
        assert import_cacheness(source, store).imported == ["a"]
    database.close()


def test_polars_frames_and_series_of_cacheness(folder, source, store):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    folder.add("frame", saved(frame.write_parquet), ".parquet", "polars_dataframe", "parquet")
    content = saved(frame["a"].to_frame().write_parquet)
    folder.add("series", content, ".parquet", "polars_series", "parquet", user={"series_name": "n"})
    folder.write_json()
    assert import_cacheness(source, store).ok
    assert store["frame"].equals(frame)
    assert store["series"].equals(frame["a"].alias("n"))
    assert store["series"].name == "n"


def test_an_unnamed_series_has_no_name_where_the_index_says_so(folder, source, store):
    content = saved(pd.Series([1, 2]).to_frame().to_parquet)
    user = {"is_series": True, "series_name": None, "backend": "pandas"}
    folder.add("s", content, ".parquet", "pandas_series", "parquet", user=user)
    folder.write_json()
    import_cacheness(source, store)
    assert store["s"].name is None


def test_inline_bytes_and_expired_entries_of_cacheness(folder, source, store):
    content = pickle.dumps([1, 2])
    path = folder.add("inline", content, ".pkl", "object", "pickle")
    path.unlink()
    folder.entries["inline"] |= {"blob_data": content, "inline_ext": ".pkl"}
    folder.entries["inline"]["metadata"]["actual_path"] = ""
    folder.array("array", np.arange(3)).unlink()
    blob = container(np.arange(3))
    folder.entries["array"] |= {"blob_data": blob, "inline_ext": ".b2nd"}
    folder.array("old", np.arange(3), expires_at="2025-03-01 11:00:00.000000")
    folder.write_sqlite()
    report = import_cacheness(source, store)
    assert report.imported == ["inline", "array"]
    assert store["inline"] == [1, 2]
    assert [item.place for item in report.skipped] == ["cache_metadata.db: old"]
    assert import_cacheness(source, store, expired=True).imported == ["old"]


def test_a_cacheness_folder_that_was_moved(folder, source, store, tmp_path):
    folder.array("a", np.arange(3))
    (source / "ab").mkdir()
    inner = folder.array("ab/b", np.arange(4))
    folder.entries["b"] = folder.entries.pop("ab/b")
    assert inner.exists()
    folder.write_json()
    moved = tmp_path / "moved"
    source.rename(moved)
    with unchanged(moved):
        assert import_cacheness(moved, store).imported == ["a", "b"]
    np.testing.assert_array_equal(store["b"], np.arange(4))


@pytest.mark.parametrize(
    "path", ["../secret.bin", "/etc/passwd", "link.bin", "x/../../secret.bin", "s3://bucket/a.bin",
             "C:\\temp\\secret.bin", "missing.bin", "", ".", "a\0.bin", 7]
)  # fmt: skip
@pytest.mark.parametrize("writer", ["write_json", "write_sqlite"])
def test_files_that_a_cacheness_index_names_stay_in_its_folder(
    path, writer, folder, source, store, tmp_path
):
    (tmp_path / "secret.bin").write_bytes(b"secret")
    (source / "link.bin").symlink_to(tmp_path / "secret.bin")
    folder.array("good", np.arange(3))
    folder.add("bad", b"x", ".bin", "bytes", "raw_bytes", hashed=False).unlink()
    folder.entries["bad"]["metadata"]["actual_path"] = path
    getattr(folder, writer)()
    report = import_cacheness(source, store)
    assert report.imported == ["good"]
    assert [item.place.split(": ")[1] for item in report.unreadable] == ["bad"]


def test_malicious_cacheness_entries_run_nothing(folder, source, store, tmp_path):
    marker = tmp_path / "marker"
    folder.add("pickle", pickle.dumps(Evil(marker)), ".pkl", "object", "pickle")
    folder.add("packed", packed_pickle(Evil(marker)), ".pkl.lz4", "object", "compressed_pickle")
    folder.add("dill", pickle.dumps(Evil(marker)), ".pkl", "object", "dill")
    array = np.array([Evil(marker)], dtype=object)
    content = saved(lambda f: np.savez(f, data=array, allow_pickle=True))
    folder.add("npz", content, ".npz", "array", "npz")
    shape = f"__import__('os').mkdir({str(marker)!r})".encode()
    content = len(shape).to_bytes(4, "little") + shape + (2).to_bytes(4, "little") + b"i4"
    folder.add("shape", content, ".b2nd", "array", "blosc2")
    pointers = np.arange(4)
    content = container(pointers).replace(b"int64", b"O    ")
    folder.add("pointers", content, ".b2nd", "array", "blosc2")
    folder.add("mine", pickle.dumps(Basket([3])), ".pkl", "object", "pickle")
    folder.write_json()
    report = import_cacheness(source, store)
    assert report.imported == []
    assert len(report.unreadable) == 7
    assert not marker.exists()
    assert import_cacheness(source, store, trusted_types=[BASKET]).imported == ["mine"]
    assert len(import_cacheness(source, store, pickle="deny", overwrite=True).unreadable) == 7
    import_cacheness(source, store, pickle="allow")
    assert marker.exists()


def test_damaged_cacheness_files_are_listed(folder, source, store):
    fill(folder)
    bad = {
        "b1": (b"", ".b2nd"),
        "b2": (b"\xff" * 50, ".b2nd"),
        "b3": (container(np.arange(9))[:-3], ".b2nd"),
        "b4": (container(np.arange(9)).replace(b"(9,)", b"(8,)"), ".b2nd"),
        "n1": (b"PK\x03\x04", ".npz"),
        "p1": (b"PAR1", ".parquet"),
        "k1": (b"\x80\x05", ".pkl"),
        "k2": (packed_pickle([1] * 999)[:-1], ".pkl.lz4"),
        "k3": (b"", ".pkl.lz4"),
        "k4": (b"\0" * 64, ".pkl.lz4"),
        "t1": (b"tensor", ".b2tr"),
    }
    for key, (content, extension) in bad.items():
        folder.add(key, content, extension, "object", "compressed_pickle", hashed=False)
    flipped = folder.array("flipped", np.arange(1000))
    content = bytearray(flipped.read_bytes())
    content[-5] ^= 1
    flipped.write_bytes(content)
    folder.array("gone", np.arange(3)).unlink()
    folder.array("secret", np.arange(3), user={"encryption_algorithm": "AES-256-GCM"})
    (source / "orphan.pkl").write_bytes(b"")
    folder.write_json()
    with unchanged(source):
        report = import_cacheness(source, store)
    assert set(report.imported) == set(CACHENESS_VALUES)
    found = {place.split(": ")[1]: reason for place, reason in reasons(report).items()}
    assert set(found) == {*bad, "flipped", "gone", "secret"}
    assert "hash differs" in found["flipped"]
    assert "encrypted" in found["secret"]
    assert [item.place for item in report.skipped] == ["orphan.pkl"]


def test_a_bomb_in_a_cacheness_folder(folder, source, store):
    zeros = np.zeros(8 << 20)
    folder.array("b2nd", zeros)
    folder.add("npz", saved(lambda f: np.savez_compressed(f, data=zeros)), ".npz", "array", "npz")
    folder.add("pkl", packed_pickle(bytes(64 << 20)), ".pkl.lz4", "object", "compressed_pickle")
    folder.write_json()
    report = import_cacheness(source, store, max_decompressed_bytes=1 << 20)
    assert len(report.unreadable) == 3
    assert all("grows to more than" in item.reason for item in report.unreadable)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"entries": 3}', "[" * 100_000, "\xff\0"])
def test_a_damaged_json_index_is_listed(content, source, store):
    (source / "cache_metadata.json").write_text(content, encoding="latin-1")
    report = import_cacheness(source, store)
    assert list(reasons(report)) == ["cache_metadata.json"]


def test_strange_entries_in_a_json_index(source, store):
    entries = {
        "a": None,
        "b": {},
        "c": {"metadata": 7, "data_type": 3, "expires_at": "never"},
        "d": {"metadata": {"metadata_dict": "{", "actual_path": "d.bin"}},
        "x" * 3000: {"metadata": {"actual_path": "x.bin", "storage_format": []}},
        "": {"metadata": {"actual_path": "x.bin"}},
        "nan": {"metadata": {"actual_path": "x.bin", "loss": float("nan")}},
        "good": {"metadata": {"actual_path": "x.bin", "imported": "mine", "file_hash": None}},
    }
    (source / "x.bin").write_bytes(b"x")
    (source / "cache_metadata.json").write_text(json.dumps({"entries": entries}))
    report = import_cacheness(source, store)
    assert report.imported == ["good"]
    assert len(report.unreadable) == 7
    metadata = store.get_metadata("good")["metadata"]
    assert metadata["imported"] == "mine"
    assert metadata["imported_"]["from"] == "cacheness"


def test_both_indexes_and_namespaces_of_cacheness(folder, source, store):
    folder.array("both", np.arange(3))
    folder.write_sqlite()
    folder.array("json", np.arange(4))
    folder.write_json()
    report = import_cacheness(source, store)
    assert report.imported == ["both", "json"]
    assert [item.place for item in report.skipped] == ["cache_metadata.json: both"]
    with pytest.raises(ConfigError, match="namespace"):
        import_cacheness(source, store, namespace="x; DROP TABLE cache_entries")
    (source / "cache_metadata.db").unlink()
    folder.write_sqlite(table="cache_entries_team")
    (source / "team_metadata.json").write_text('{"entries": {}}')
    report = import_cacheness(source, store, namespace="team", prefix="t/")
    assert sorted(report.imported) == ["t/both", "t/json"]


def test_a_report_says_how_it_went():
    report = ImportReport(["a"])
    assert report.ok
    assert str(report) == "1 imported, 0 unreadable, 0 skipped"


def test_a_file_that_fails_while_it_is_streamed_is_listed(source, store, monkeypatch):
    """The disk has a bad sector, which opening the file does not show."""
    (source / "a.bin").write_bytes(b"a")
    (source / "bad.bin").write_bytes(b"x")
    (source / "c.bin").write_bytes(b"c")

    class Failing(io.FileIO):
        def __init__(self, name, *args, **kwargs):
            super().__init__(name, *args, **kwargs)
            self.bad = str(name).endswith("bad.bin")

        def readinto(self, buffer):
            return self.read_or_fail(lambda: super(Failing, self).readinto(buffer))

        def read(self, size=-1):
            return self.read_or_fail(lambda: super(Failing, self).read(size))

        def readall(self):
            return self.read_or_fail(super().readall)

        def read_or_fail(self, read):
            if self.bad:
                raise OSError(5, "Input/output error")
            return read()

    original = Path.open

    def opened(path, mode="r", *args, **kwargs):
        if path.parent != source:  # of a package that is looked up, say
            return original(path, mode, *args, **kwargs)
        return io.BufferedReader(Failing(path))

    monkeypatch.setattr(io, "FileIO", Failing)
    monkeypatch.setattr(Path, "open", opened)
    report = import_folder(source, store)
    monkeypatch.undo()
    assert report.imported == ["a.bin", "c.bin"]
    assert "Input/output error" in reasons(report)["bad.bin"]


# --- whatever is in the folder ---


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """A folder of each kind, and the call that imports it."""
    root = tmp_path_factory.mktemp("templates")
    with diskcache.Cache(str(root / "diskcache"), disk_min_file_size=100) as cache:
        for key in ("a", 1, ("t", 2)):
            cache.set(key, {"k": list(range(100))}, tag="t", expire=3600)
            cache[str(key) + "b"] = b"x" * 300
    joblib.Memory(str(root / "joblib"), verbose=0).cache(double)(2)
    joblib.dump([np.arange(100), {"a": 1}], root / "joblib" / "dump.pkl")
    joblib.dump(np.arange(100), root / "joblib" / "dump.pkl.gz")
    for name in ("json", "sqlite"):
        (root / name).mkdir()
        folder = CachenessFolder(root / name)
        fill(folder)
        for entry in folder.entries.values():
            del entry["metadata"]["file_hash"]
        folder.write_json() if name == "json" else folder.write_sqlite()
    (root / "folder").mkdir()
    with AutoStore(root / "folder") as files:
        files["a"], files["b"], files["c"] = {"x": 1}, np.arange(50), Basket([1])
        files["d"], files["e"] = [{"x": 1}, {"x": 2}], {"u": np.arange(3), "v": np.ones(2)}
    return {
        root / "diskcache": import_diskcache,
        root / "joblib": import_joblib,
        root / "json": import_cacheness,
        root / "sqlite": import_cacheness,
        root / "folder": import_folder,
    }


@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=25)
def test_damage_of_any_kind_never_ends_an_import(seed, templates):
    chance = random.Random(seed)
    template, call = chance.choice(list(templates.items()))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        shutil.copytree(template, source)
        paths = [path for path in source.rglob("*") if path.is_file() and path.stat().st_size]
        for path in chance.sample(paths, chance.randint(1, len(paths))):
            content = bytearray(path.read_bytes())
            for _ in range(chance.choice([1, 3, 50])):
                content[chance.randrange(len(content))] = chance.randrange(256)
            if chance.random() < 0.2:
                del content[chance.randrange(len(content)) :]
            path.write_bytes(content)
        with unchanged(source), BlobStore(Path(scratch, "store"), backend="sqlite") as store:
            report = call(source, store)
            assert len(store) == len(report.imported)
            assert store.verify(deep=True).ok


NO_TEXT = object()
STRANGE = [
    None,
    b"\xff\x00",
    NO_TEXT,
    "text",
    "",
    -1,
    1 << 62,
    1e300,
    float("inf"),
    "[" * 5000,
    "9" * 5000,
]


@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=40)
def test_strange_values_in_a_database_never_end_an_import(seed, templates):
    chance = random.Random(seed)
    name = chance.choice(["diskcache", "sqlite"])
    template, call = next(item for item in templates.items() if item[0].name == name)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        shutil.copytree(template, source)
        table, file = (
            ("Cache", "cache.db") if name == "diskcache" else ("cache_entries", "cache_metadata.db")
        )
        database = sqlite3.connect(source / file)
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        for _ in range(chance.randint(1, 10)):
            value = chance.choice(STRANGE)
            where = f"WHERE rowid % 3 = {chance.randint(0, 2)}"
            change = f"UPDATE OR IGNORE {table} SET {chance.choice(columns)} = "
            with contextlib.suppress(sqlite3.Error):  # rowid takes numbers only
                if value is NO_TEXT:
                    database.execute(f"{change} CAST(x'ff' AS TEXT) {where}")
                else:
                    database.execute(f"{change} ? {where}", (value,))
        database.commit()
        database.close()
        with unchanged(source), BlobStore(Path(scratch, "store"), backend="sqlite") as store:
            report = call(source, store)
            assert len(store) == len(report.imported)


def test_arrays_of_objects_in_an_npz_load_only_if_all_is_trusted(folder, source, store):
    array = np.array([{"a": 1}, None], dtype=object)
    folder.add("a", saved(lambda f: np.savez(f, data=array)), ".npz", "array", "npz")
    folder.write_json()
    assert import_cacheness(source, store).imported == []
    assert import_cacheness(source, store, pickle="allow").imported == ["a"]
    equal(store["a"], array)
