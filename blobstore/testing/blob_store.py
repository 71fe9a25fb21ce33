"""What a BlobStore must do over any index and any object store, as tests to inherit.

Subclass `BlobStoreSuite` in a test module, name the class ``Test...``, and say how to open a store::

    class TestOverMyObjects(BlobStoreSuite):
        def make_store(self, folder):
            return BlobStore(folder, blob_backend=MyObjects(folder / "mine"))

        def blobs(self, store):
            return {path.name: path.read_bytes() for path in (store.path / "mine").iterdir()}

        def poke(self, store, location, data):
            (store.path / "mine" / location).write_bytes(data)

What a test expects is written out in it, or follows from a dictionary; no store is compared with
itself. Needs pytest.
"""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from blobstore.errors import (
    BlobStoreError,
    ClosedError,
    ConflictError,
    IntegrityError,
    InvalidInputError,
    InvalidKeyError,
    InvalidMetadataError,
    KeyExistsError,
    KeyNotFoundError,
    UnsupportedTypeError,
)
from blobstore.keys import is_location
from blobstore.store import BlobStore
from blobstore.testing.store_queries import StoreQueries

ODD_KEYS = [
    "a", "A", "a/b", "ab", "a b", "a/../b", "..", ".", "/", "../escape", "/absolute", "a//b", "a/",
    "cache_metadata.json", "blobstore.json", "blobs", "model_v2.1", "model_v2.2", "C:\\x", "a\nb\t",
    "100%", "%", "_", "*", "[x]", "?", "'; drop table entries; --", '"', "\u00e9", "e\u0301",
    "\U0001f389", "\uffff", "\u202e", "-rf", "~", "$where", "@key", "k" * 2048, "\u00fc" * 1024,
]  # fmt: skip
"""Keys that a careless store trips over; each of them is another key than all others."""

JSON = {
    "text": "a\0b \U0001f389 \"quoted\" 'x'", "yes": True, "no": False, "none": None, "int": 2**70,
    "float": 0.1, "tiny": 5e-324, "whole": 1.0, "list": [1, [2, {"x": []}], "1"], "empty": {},
    "": "no name", "a.b": "dot", "$gt": "dollar", "actual_path": "/etc/passwd", "key": "mine",
}  # fmt: skip
"""Metadata of every JSON type, under names that mean something elsewhere."""

VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "False": lambda: False,
    "zero": lambda: 0,
    "text": lambda: "t\u00ebxt\0\n" * 1000,
    "no text": lambda: "",
    "no bytes": lambda: b"",
    "bytes": lambda: bytes(range(256)) * 300,
    "bytearray": lambda: bytearray(b"xyz"),
    "no dict": dict,
    "nested": lambda: {"a": [1, 2.5, None, (True, "x")], 3: {4, 5}, ("t",): frozenset({6})},
    "numbers": lambda: [0.1, math.pi, 2**80, 1 + 2j, Decimal("1.10")],
    "time": lambda: datetime(2024, 2, 29, tzinfo=UTC),
    "array": lambda: np.arange(60_000, dtype="f8").reshape(200, 300),
    "no array": lambda: np.empty((0, 3), "i2"),
    "scalar array": lambda: np.array(2.5),
    "frame": lambda: pd.DataFrame({"a": range(500), "b": [0.5, None] * 250, "c": ["x", "y"] * 250}),
    "series": lambda: pd.Series([1, 2, 3], index=[5, 3, 1]),
    "arrays": lambda: {"w": np.arange(30_000.0), "b": np.ones(3), "epoch": 3, 7: [np.arange(9)]},
}
"""Objects that every store must give back equal and of their type, each made anew."""


def big(seed: int = 0) -> bytes:
    """Bytes that no index keeps inline and no codec makes shorter; others for each seed."""
    return np.random.default_rng(seed).bytes(40_000)


def assert_same(found: Any, wanted: Any) -> None:
    """Insist on equality and exact type, all the way down.

    Examples
    --------
    >>> assert_same([1, {"x": np.zeros(2)}], [1, {"x": np.zeros(2)}])
    >>> assert_same([1], [True])
    Traceback (most recent call last):
    ...
    AssertionError: int is not bool: 1, True
    """
    kinds = f"{type(found).__name__} is not {type(wanted).__name__}: {found!r:.80}, {wanted!r:.80}"
    assert type(found) is type(wanted), kinds
    if isinstance(wanted, np.ndarray):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted, strict=True)
    elif isinstance(wanted, pd.DataFrame):
        pd.testing.assert_frame_equal(found, wanted)
    elif isinstance(wanted, pd.Series):
        pd.testing.assert_series_equal(found, wanted)
    elif isinstance(wanted, dict):
        assert_same([*found], [*wanted])
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    else:
        assert found == wanted


class BlobStoreSuite(StoreQueries):
    """Tests of a BlobStore; subclass it and write `make_store`.

    Attributes
    ----------
    content_addressable : bool
        Whether `make_store` turns content addressing on.
    reopens : bool
        Whether a store that is opened again has what was stored before.
    shares : bool
        Whether a second handle, opened while the first is open, works on the same store.
    picklable : bool
        Whether a pickled copy of a store works on the same store.
    """

    content_addressable: ClassVar[bool] = False
    reopens: ClassVar[bool] = True
    shares: ClassVar[bool] = True
    picklable: ClassVar[bool] = True

    def make_store(self, folder: Path) -> BlobStore:
        """Open the store that is in `folder`, or make it."""
        raise NotImplementedError

    def blobs(self, store: BlobStore) -> dict[str, bytes]:
        """Give all stored blobs by location, read behind the store's back."""
        files = (path for path in (store.path / "blobs").rglob("*") if is_location(path.name))
        return {path.name: path.read_bytes() for path in files}

    def poke(self, store: BlobStore, location: str, data: bytes | None) -> None:
        """Replace a blob behind the store's back; None removes it."""
        (path,) = (store.path / "blobs").rglob(location)
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[BlobStore]:
        """The store under test, closed afterwards."""
        with self.make_store(tmp_path / "store") as store:
            yield store
            self.check(store)

    @contextmanager
    def again(self, store: BlobStore) -> Iterator[BlobStore]:
        """Open the same store once more, after closing it unless handles may share it."""
        if not self.reopens:
            pytest.skip("this store is gone when it is closed")
        if not self.shares:
            store.close()
        with self.make_store(store.path) as second:
            yield second

    def check(self, store: BlobStore) -> None:
        """Hold what every history must leave behind: whole entries, and no blob but theirs."""
        if store._closed:  # noqa: SLF001 - a test may have closed it
            return
        report = store.verify(deep=True)
        assert report.ok, report.problems
        assert {x for key in store for x in store.entry(key).locations} == {*self.blobs(store)}
        assert store.gc(grace=0).items == ()

    # --- values ---

    @pytest.mark.parametrize("name", VALUES)
    def test_values_come_back(self, store: BlobStore, name: str) -> None:
        """Equal, of the same type, and again after opening the store anew."""
        wanted = VALUES[name]()
        assert store.put(wanted, key=name) == name
        assert_same(wanted, VALUES[name]())  # putting changed nothing in it
        assert store.exists(name) is True
        assert_same(store.get(name, "default"), wanted)
        assert_same(store[name], wanted)
        assert not isinstance(wanted, np.ndarray) or store[name].flags.writeable
        if self.reopens:
            with self.again(store) as second:
                assert_same(second[name], wanted)

    def test_values_are_the_callers_own(self, store: BlobStore) -> None:
        """Nothing that is done to what was put or got reaches the store."""
        given: dict[str, Any] = {"list": [1], "array": np.arange(20_000)}
        store.put(given, key="k")
        given["list"].append(2)
        given["array"][0] = 9
        found = store["k"]
        assert_same(found, {"list": [1], "array": np.arange(20_000)})
        found["list"].append(3)
        found["array"][0] = 9
        assert_same(store["k"], {"list": [1], "array": np.arange(20_000)})

    def test_what_cannot_be_stored_leaves_nothing(self, store: BlobStore) -> None:
        """A typed error; the key is what it was."""
        store.put(big(), key="k", metadata={"v": 1})
        before = self.blobs(store)
        for wrong in (threading.Lock(), [big(1), threading.Lock()], {"f": lambda: None}):
            with pytest.raises(UnsupportedTypeError):
                store.put(wrong, key="k", metadata={"v": 2})
            with pytest.raises(UnsupportedTypeError):
                store.put_many([("new", big(2)), ("k", wrong)])
        assert store.get("k") == big()
        assert store.entry("k").metadata == {"v": 1}
        assert (store.list(), self.blobs(store)) == (["k"], before)

    # --- keys ---

    def test_odd_keys_are_kept_apart(self, store: BlobStore) -> None:
        """Each key is itself: unchanged, no other's, no path."""
        for number, key in enumerate(ODD_KEYS):
            assert store.put({"number": number}, key=key, metadata={"n": number}) == key
        assert store.list() == sorted(ODD_KEYS)
        for number, key in enumerate(ODD_KEYS):
            assert store.get(key) == {"number": number}
            assert store.entry(key).metadata == {"n": number}
            assert store.list(metadata_filter={"n": number}) == [key]
        for key in ODD_KEYS[::2]:
            assert store.delete(key) is True
        assert store.list() == sorted(ODD_KEYS[1::2])
        assert {key: store[key]["number"] for key in store} == {
            key: number for number, key in enumerate(ODD_KEYS) if number % 2
        }

    @pytest.mark.parametrize("wrong", ["", "k" * 2049, "\u00fc" * 1025, "a\0b", "\ud800", 5, b"k"])
    def test_wrong_keys_are_refused(self, store: BlobStore, wrong: Any) -> None:
        """By every method that takes one, with nothing written."""
        store.put(1, key="k")
        for call in (
            lambda: store.put(1, key=wrong),
            lambda: store.put_many([("fine", 1), (wrong, 1)]),
            lambda: store.get(wrong),
            lambda: store[wrong],
            lambda: store.get_metadata(wrong),
            lambda: store.update_metadata(wrong, {}),
            lambda: store.exists(wrong),
            lambda: store.delete(wrong),
            lambda: store.delete_many(["k", wrong]),
            lambda: store.copy("k", wrong),
            lambda: store.move(wrong, "new"),
        ):
            with pytest.raises(InvalidKeyError):
                call()
        assert store.list() == ["k"]

    def test_made_up_keys(self, store: BlobStore) -> None:
        """Unique without content addressing, the content's own with it."""
        keys = [store.put({"x": n % 2}) for n in range(6)]
        assert {type(key) for key in keys} == {str}
        assert min(map(len, keys)) >= 16
        assert len(set(keys)) == (2 if self.content_addressable else 6)
        assert store.list() == sorted(set(keys))
        assert [store[key]["x"] for key in keys] == [0, 1] * 3

    # --- one key ---

    def test_an_absent_key(self, store: BlobStore) -> None:
        """None, False or the default; an error only where one was asked for."""
        store.put(1, key="other")
        assert store.get("k") is None
        assert store.get("k", 7) == 7
        assert store.get_metadata("k") is None
        assert store.update_metadata("k", {"x": 1}) is False
        assert store.delete("k") is False
        assert store.exists("k") is False
        assert "k" not in store
        assert store.get_many(["k"]) == {}
        for call in (
            lambda: store["k"],
            lambda: store.__delitem__("k"),
            lambda: store.entry("k"),
            lambda: store.copy("k", "l"),
            lambda: store.move("k", "l"),
            lambda: store.open("k"),
        ):
            with pytest.raises(KeyNotFoundError) as caught:
                call()
            assert caught.value.key == "k"
        assert store.list() == ["other"]

    def test_overwriting(self, store: BlobStore) -> None:
        """The new value with its own metadata; nothing of the old one stays."""
        store.put(big(1), key="k", metadata={"old": 1})
        first = store.entry("k")
        store.put(np.arange(50_000), key="k", metadata={"new": 2})
        assert_same(store["k"], np.arange(50_000))
        second = store.entry("k")
        assert second.metadata == {"new": 2}
        assert (first.version, second.version, first.id) == (1, 2, second.id)
        assert second.data_type == "array"
        assert second.created_at == first.created_at
        assert second.updated_at >= first.updated_at
        assert not {*first.locations} & {*self.blobs(store)}

    def test_deleting(self, store: BlobStore) -> None:
        """True once, False then; no bytes stay; the key can be stored anew."""
        store.put(big(), key="k", metadata={"v": 1})
        old = store.entry("k")
        assert store.delete("k") is True
        assert (store.delete("k"), store.get("k"), len(store)) == (False, None, 0)
        assert self.blobs(store) == {}
        store.put(1, key="k")
        assert store.entry("k").version == 1
        assert store.entry("k").id != old.id

    def test_conditional_puts(self, store: BlobStore) -> None:
        """`overwrite=False` and `if_version` change nothing when they fail."""
        store.put("a", key="k", overwrite=False)
        with pytest.raises(KeyExistsError):
            store.put(big(), key="k", overwrite=False)
        store.put("b", key="k", if_version=1)
        for stale in (1, 3):
            with pytest.raises(ConflictError):
                store.put(big(), key="k", if_version=stale)
        entry = store.entry("k")
        store.delete("k")
        store.put("c", key="k")
        store.put("d", key="k")
        with pytest.raises(ConflictError):  # the version is right, but it is another incarnation
            store.put("e", key="k", if_version=entry)
        with pytest.raises(ConflictError):
            store.put("e", key="absent", if_version=1)
        assert (store["k"], store.list()) == ("d", ["k"])
        store.put("f", key="k", if_version=store.entry("k"))
        assert store["k"] == "f"

    def test_copy_and_move(self, store: BlobStore) -> None:
        """Object and metadata under another key; the blobs are shared, and outlive their first."""
        store.put(big(), key="a", metadata={"v": 1})
        store.put(big(1), key="taken")
        assert store.copy("a", "b/../b") == "b/../b"
        assert len(self.blobs(store)) == 2
        store.update_metadata("b/../b", {"v": 2})
        assert store.move("a", "taken") == "taken"
        assert store.list() == ["b/../b", "taken"]
        assert [store.entry(key).metadata["v"] for key in store] == [2, 1]
        assert len(self.blobs(store)) == 1
        with pytest.raises(KeyExistsError):
            store.copy("taken", "b/../b", overwrite=False)
        with pytest.raises(KeyExistsError):
            store.move("taken", "b/../b", overwrite=False)
        store.delete("taken")
        assert store["b/../b"] == big()

    def test_copy_and_move_onto_itself(self, store: BlobStore) -> None:
        """Harmless."""
        store.put(big(), key="a", metadata={"v": 1})
        store.copy("a", "a")
        store.move("a", "a")
        assert store.list() == ["a"]
        assert store["a"] == big()
        assert store.entry("a").metadata == {"v": 1}

    # --- several keys ---

    def test_as_a_mapping(self, store: BlobStore) -> None:
        """What Python promises of a mutable mapping."""
        store["b"], store["a"] = 1, [2]
        store.update({"c": {"x": 3}})
        assert (len(store), [*store], dict(store.items())) == (
            3,
            ["a", "b", "c"],
            {"a": [2], "b": 1, "c": {"x": 3}},
        )
        anything: Any = 5
        assert ("a" in store, "x" in store, anything in store) == (True, False, False)
        assert store.pop("c") == {"x": 3}
        assert store.setdefault("b", 9) == 1
        assert store.setdefault("d", 4) == 4
        del store["a"]
        assert [*store] == ["b", "d"]

    def test_many_at_once(self, store: BlobStore) -> None:
        """In order, in one transaction; later items of a key win."""
        items: list[Any] = [(f"k{n}", big(n), {"n": n}) for n in range(8)]
        keys = store.put_many([*items, ("small", 1), ("k3", "last")])
        assert keys == [*(f"k{n}" for n in range(8)), "small", "k3"]
        assert store.list() == [*(f"k{n}" for n in range(8)), "small"]
        assert store["k3"] == "last"
        assert store.entry("k3").metadata == {}
        found = store.get_many(["k5", "absent", "k1", "k5"])
        assert list(found.items()) == [("k5", big(5)), ("k1", big(1))]
        assert store.delete_many(["k0", "absent", "k0", "small"]) == 2
        assert store.put_many([]) == []
        assert store.delete_many([]) == 0
        assert store.clear() == 7
        assert (store.clear(), len(store), self.blobs(store)) == (0, 0, {})

    def test_one_bad_item_stops_all(self, store: BlobStore) -> None:
        """Nothing of a failed `put_many` is stored."""
        bad: list[Any] = [("k",), ("k", 1, {"x": {1}}), ("", 1), ("k", 1, {}, 2)]
        for wrong in bad:
            with pytest.raises(InvalidInputError):
                store.put_many([("fine", big()), wrong])
        assert (store.list(), self.blobs(store)) == ([], {})

    def test_listing(self, store: BlobStore) -> None:
        """Literal prefixes, in the order of code points."""
        keys = ["a", "a%", "a_", "aX", "A", "b*", "b[", "ab", "\u00e9", "\uffff", "\U0001f389"]
        store.put_many((key, n) for n, key in enumerate(keys))
        for prefix in ["", "a", "a%", "a_", "A", "b", "b*", "b[", "%", "*", "\u00e9", "\U0001f389"]:
            wanted = sorted(key for key in keys if key.startswith(prefix))
            assert store.list(prefix=prefix) == wanted
            assert store.count(prefix=prefix) == len(wanted)
        assert store.list(None) == store.list("") == [*store]

    def test_changing_the_store_while_iterating(self, store: BlobStore) -> None:
        """Keys that were there all the time are given once."""
        store.put_many((f"k{n}", n) for n in range(10))
        seen = []
        for key in store:
            seen.append(key)
            store.delete(key)
            store.put(1, key=f"a{key}")
        assert seen == [f"k{n}" for n in range(10)]

    # --- metadata ---

    def test_metadata_is_kept_exactly(self, store: BlobStore) -> None:
        """All JSON types, any name, order included; the caller's dictionary is not touched."""
        given: dict[str, Any] = copy.deepcopy(JSON)
        store.put(big(), key="k", metadata=given)
        assert_same(given, JSON)
        given["list"].append("changed")
        described = store.get_metadata("k")
        assert described is not None
        assert_same(described["metadata"], JSON)
        assert described["file_size"] == sum(map(len, self.blobs(store).values()))
        assert described["data_type"] == "bytes"
        created = datetime.fromisoformat(described["created_at"])
        assert abs((datetime.now(UTC) - created).total_seconds()) < 3600
        described["metadata"]["list"].append("changed")
        self.check_json(store)
        if self.reopens:
            with self.again(store) as second:
                self.check_json(second)

    def check_json(self, store: BlobStore) -> None:
        """Insist on the metadata `JSON` of the key "k", and that each pair of it is found."""
        assert_same(store.entry("k").metadata, JSON)
        found = [store.list(metadata_filter={name: value}) for name, value in JSON.items()]
        assert found == [["k"]] * len(JSON)

    def test_changing_metadata(self, store: BlobStore) -> None:
        """A shallow merge, or all of it; the blob stays."""
        store.put(big(), key="k", metadata={"a": {"x": 1}, "b": 2})
        before = self.blobs(store), store.entry("k")
        assert store.update_metadata("k", {"a": {"y": 2}, "c": np.float32(0.5)}) is True
        assert store.entry("k").metadata == {"a": {"y": 2}, "b": 2, "c": 0.5}
        assert store.update_metadata("k", {"d": None}, replace=True) is True
        assert store.entry("k").metadata == {"d": None}
        after = store.entry("k")
        assert (self.blobs(store), after.parts, after.id) == (
            before[0],
            before[1].parts,
            before[1].id,
        )
        assert after.version == 3
        assert store["k"] == big()

    @pytest.mark.parametrize("wrong", [{"x": {1}}, {"x": b"1"}, {5: 1}, {"x": math.nan}, "text"])
    def test_wrong_metadata_is_refused(self, store: BlobStore, wrong: Any) -> None:
        """With nothing stored or changed."""
        store.put("old", key="k", metadata={"v": 1})
        for call in (
            lambda: store.put(big(), key="k", metadata=wrong),
            lambda: store.put(big(), metadata=wrong),
            lambda: store.put_many([("l", big()), ("k", 1, wrong)]),
            lambda: store.update_metadata("k", wrong),
        ):
            with pytest.raises(InvalidMetadataError, match="metadata"):
                call()
        assert (store.list(), store["k"], store.entry("k").metadata) == (["k"], "old", {"v": 1})
        assert store.entry("k").version == 1

    def test_filters(self, store: BlobStore) -> None:
        """All pairs must be equal, by value and type; names and values are data."""
        metadata: dict[str, dict[str, Any]] = {
            "one": {"n": 1}, "real": {"n": 1.0}, "text": {"n": "1"}, "true": {"n": True},
            "none": {"n": None}, "nothing": {}, "list": {"n": [1, {"x": None}]},
            "nested": {"n": {"x": 1, "y": 2}}, "two": {"n": 1, "m": "a' OR 1=1 --"},
            "dotted": {"n.x": 1, "$.n": 2},
        }  # fmt: skip
        store.put_many((key, 0, value) for key, value in metadata.items())
        for wanted, selected in (
            ({"n": 1}, "one real two"),
            ({"n": 1.0}, "one real two"),
            ({"n": "1"}, "text"),
            ({"n": True}, "true"),
            ({"n": None}, "none"),
            ({"n": [1, {"x": None}]}, "list"),
            ({"n": {"y": 2, "x": 1}}, "nested"),
            ({"n": {"x": 1}}, ""),
            ({"n": 1, "m": "a' OR 1=1 --"}, "two"),
            ({"m": "a"}, ""),
            ({"n.x": 1}, "dotted"),
            ({"$.n": 2}, "dotted"),
            ({"absent": None}, ""),
            ({}, " ".join(metadata)),
        ):
            found = store.list(metadata_filter=wanted)
            assert found == sorted(selected.split()), wanted
            assert store.count(metadata_filter=wanted) == len(found)
        assert store.list("t", {"n": 1}) == ["two"]

    # --- sharing ---

    def test_equal_content(self, store: BlobStore) -> None:
        """With content addressing stored once, under all its names; else once for each."""
        for name in ("a", "b", "c"):
            store.put(np.arange(50_000), key=name, metadata={"of": name})
        assert len(self.blobs(store)) == (1 if self.content_addressable else 3)
        assert [store.entry(key).metadata["of"] for key in store] == ["a", "b", "c"]
        store.delete("a")
        store.put(big(), key="b")
        assert_same(store["c"], np.arange(50_000))
        store.delete("c")
        assert len(self.blobs(store)) == 1

    # --- damage ---

    def test_a_blob_that_is_gone(self, store: BlobStore) -> None:
        """An error, never a miss; the rest works; storing anew mends it."""
        store.put(big(), key="k", metadata={"v": 1})
        store.put(big(1), key="other")
        (location,) = store.entry("k").locations
        self.poke(store, location, None)
        for call in (
            lambda: store["k"],
            lambda: store.get("k", "default"),
            lambda: store.get_many(["k"]),
        ):
            with pytest.raises(IntegrityError) as caught:
                call()
            assert (caught.value.key, caught.value.location) == ("k", location)
        assert (store.exists("k"), "k" in store) == (False, True)
        assert store.get_metadata("k")["metadata"] == {"v": 1}  # type: ignore[index]
        assert [(p.kind, p.key) for p in store.verify().problems] == [("missing", "k")]
        assert store["other"] == big(1)
        store.put(big(), key="k")
        assert store["k"] == big()

    @pytest.mark.parametrize("name", ["bytes", "text", "array", "frame", "arrays", "big object"])
    def test_a_blob_that_is_altered(self, store: BlobStore, name: str) -> None:
        """Cut short, grown, emptied or with one bit flipped: an error, never a wrong value."""
        value = {"x": big(), "y": 1} if name == "big object" else VALUES[name]()
        store.put(value, key="k")
        whole = self.blobs(store)
        if store.entry("k").inline:
            pytest.skip("it lies in the index")
        for location, data in whole.items():
            bad = bytearray(data)
            bad[len(bad) // 3] ^= 4
            for damaged in (bytes(bad), data[:-1], data[: len(data) // 2], data + b"\0", b""):
                self.poke(store, location, damaged)
                with pytest.raises(IntegrityError) as caught:
                    store.get("k", "default")
                assert (caught.value.key, caught.value.location) == ("k", location)
                assert not store.verify(deep=True).ok
            self.poke(store, location, data)
        assert_same(store["k"], value)

    # --- life ---

    def test_opening_again(self, store: BlobStore) -> None:
        """A second handle sees what the first did, at once, and the other way round."""
        store.put(big(), key="a", metadata={"v": 1})
        with self.again(store) as second:
            assert (second["a"], second.entry("a").metadata) == (big(), {"v": 1})
            second.put("b", key="b")
            second.update_metadata("a", {"v": 2})
            if self.shares:
                assert (store["b"], store.entry("a").metadata) == ("b", {"v": 2})
                store.delete("a")
                assert (second.get("a"), second.list()) == (None, ["b"])
            else:
                self.check(second)

    def test_closing(self, store: BlobStore) -> None:
        """May be done twice; every call after it says so."""
        store.put(1, key="k")
        store.close()
        store.close()
        for call in (
            lambda: store.put(1),
            lambda: store.get("k"),
            lambda: store["k"],
            store.list,
            lambda: len(store),
            lambda: store.delete("k"),
            lambda: store.exists("k"),
            lambda: store.get_metadata("k"),
            lambda: store.update_metadata("k", {}),
            lambda: store.query("x = 1"),
            lambda: store.best("x"),
            lambda: store.update_many("x = 1", {}),
            store.to_frame,
            store.clear,
            store.verify,
            store.gc,
            lambda: store.put_many([("k", 1)]),
            store.__enter__,
        ):
            with pytest.raises(ClosedError):
                call()
        with self.again(store) as second:
            assert second["k"] == 1

    def test_a_pickled_copy(self, store: BlobStore) -> None:
        """Works on the same store; a store that has no second handle refuses to be pickled."""
        if not self.picklable:
            with pytest.raises((BlobStoreError, TypeError, pickle.PicklingError)):
                pickle.dumps(store)
            return
        store.put(big(), key="a")
        with pickle.loads(pickle.dumps(store)) as second:
            assert second["a"] == big()
            second.put(2, key="b")
            assert store["b"] == 2

    def test_files_and_streams(self, store: BlobStore, tmp_path: Path) -> None:
        """A file goes in and comes out as it was, in one piece or as a stream."""
        source, target = tmp_path / "in", tmp_path / "out"
        source.write_bytes(big() * 20)
        target.write_bytes(b"old")
        store.put(big(), key="first")  # whatever folder that makes
        there = sorted(tmp_path.iterdir())
        assert store.put_file(source, key="k", metadata={"v": 1}) == "k"
        assert store["k"] == big() * 20
        assert store.get_file("k", target).read_bytes() == big() * 20
        with store.open("k") as stream:
            assert stream.read(10) == big()[:10]
            stream.seek(-10, 2)
            assert stream.read() == big()[-10:]
        with pytest.raises(KeyNotFoundError):
            store.get_file("absent", target)
        assert sorted(tmp_path.iterdir()) == there
        assert target.read_bytes() == big() * 20

    def test_threads(self, store: BlobStore) -> None:
        """Eight threads on own and shared keys lose nothing, and see only whole values."""
        start = threading.Barrier(8)

        def work(number: int) -> None:
            start.wait()
            for i in range(6):
                seed = number * 10 + i
                store.put(big(seed), key="shared", metadata={"seed": seed})
                store.put({"i": i}, key=f"own/{number}/{i}", metadata={"by": number})
                store.update_metadata(f"own/{number}/{i}", {"again": i})
                assert store[f"own/{number}/{i}"] == {"i": i}
                assert len(store["shared"]) == 40_000

        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(work, number) for number in range(8)]:
                future.result()
        assert store.list("own/") == sorted(f"own/{n}/{i}" for n in range(8) for i in range(6))
        for n in range(8):
            assert len(store.list(metadata_filter={"by": n})) == 6
            assert store.list(metadata_filter={"by": n, "again": 5}) == [f"own/{n}/5"]
        shared = store.entry("shared")
        assert shared.version == 48
        assert store["shared"] == big(shared.metadata["seed"])
