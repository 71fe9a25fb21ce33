"""What a BlobStore answers to queries, and changes by them, as a part of `BlobStoreSuite`.

Answers are written out, or follow from the dictionary of what was stored; that all indexes agree on
every condition is for `blobstore.testing.metadata_backend` to show.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from blobstore.errors import InvalidInputError, InvalidQueryError, NotSupportedError
from blobstore.query import F
from blobstore.store import BlobStore

RUNS: dict[str, dict[str, Any]] = {
    "r/1": {"loss": 0.5, "model": "cnn", "params": {"lr": 0.1}, "tags": ["final", 1]},
    "r/2": {"loss": 0.25, "model": "mlp", "params": {"lr": 0.01}, "done": True},
    "r/3": {"loss": None, "model": "cnn", "params": 7},
    "s/1": {"loss": 2, "model": "cnn\0", "done": False, "size": "large"},
    "s/2": {"loss": "n/a", "odd name.é": [1, {"x": None}]},
    "s/3": {},
}

CONDITIONS: list[tuple[Any, str]] = [
    (None, "r/1 r/2 r/3 s/1 s/2 s/3"),
    ({}, "r/1 r/2 r/3 s/1 s/2 s/3"),
    ("loss < 1", "r/1 r/2"),
    (F("loss") >= 0.5, "r/1 s/1"),
    ({"loss": {"$between": [0.25, 0.5]}}, "r/1 r/2"),
    ("not loss < 1", "r/3 s/1 s/2 s/3"),
    ("loss is null or loss = 'n/a'", "r/3 s/2"),
    ("loss != 2", "r/1 r/2"),
    ({"loss": None}, "r/3"),
    (~F("loss").exists(), "s/3"),
    ({"params.lr": {"$in": [0.1, 1]}}, "r/1"),
    ("params = 7", "r/3"),
    ({"params": {"lr": 0.01}}, "r/2"),
    (F("tags").contains("final") & (F("model") == "cnn"), "r/1"),
    ("model startswith 'cnn'", "r/1 r/3 s/1"),
    ({"model": "cnn\0"}, "s/1"),
    ("model like '_l%'", "r/2"),
    ("done = false", "s/1"),
    ("done = 0", ""),
    ("`odd name.é` exists", "s/2"),
    ("size = 'large'", "s/1"),
    ("@key like 's/%' and @version = 1", "s/1 s/2 s/3"),
    ("@data_type = 'array'", "r/1"),
]
ORDERS: list[tuple[Any, str]] = [
    (None, "r/1 r/2 r/3 s/1 s/2 s/3"),
    ("-@key", "s/3 s/2 s/1 r/3 r/2 r/1"),
    ("loss", "r/2 r/1 s/1 s/2 r/3 s/3"),
    (F("loss").desc(), "s/1 r/1 r/2 s/2 r/3 s/3"),
    (["done", "-loss"], "s/1 r/2 r/1 s/2 r/3 s/3"),
    (["model", "-@key"], "r/3 r/1 s/1 r/2 s/3 s/2"),
]
"""What is asked, and the keys of what is found."""


class StoreQueries:
    """Tests of what a store is asked; `BlobStoreSuite` has them."""

    def fill(self, store: BlobStore) -> None:
        """Store `RUNS`, one of them as a blob of its own."""
        store.put_many((key, {"of": key}, metadata) for key, metadata in RUNS.items())
        store.put(np.arange(20_000), key="r/1", metadata=RUNS["r/1"])

    def test_conditions(self, store: BlobStore) -> None:
        """The entries, keys and number of what matches, of all and of those with a prefix."""
        self.fill(store)
        for where, found in CONDITIONS:
            wanted = found.split()
            below = [key for key in wanted if key.startswith("s/")]
            assert {entry.key: entry.metadata for entry in store.query(where)} == {
                key: RUNS[key] for key in wanted
            }, where
            assert [entry.key for entry in store.query(where)] == wanted, where
            assert [entry.key for entry in store.query(where, prefix="s/")] == below, where
            assert [*store.keys(where, prefix="s/")] == below, where
            assert store.count(where) == len(wanted), where
            assert store.count(where, prefix="s/") == len(below), where
            assert store.exists(where=where, prefix="s/") is bool(below), where

    def test_orders_and_pages(self, store: BlobStore) -> None:
        """Whole, cut off, and page by page behind the last entry."""
        self.fill(store)
        for order, found in ORDERS:
            wanted = found.split()
            assert [entry.key for entry in store.query(order_by=order)] == wanted, order
            assert [*store.keys(order_by=order, limit=4)] == wanted[:4], order
            for size in (1, 4):
                seen: list[str] = []
                last = None
                while page := [*store.query(order_by=order, limit=size, after=last)]:
                    seen += [entry.key for entry in page]
                    last = page[-1]
                assert seen == wanted, order

    def test_times(self, store: BlobStore) -> None:
        """Aware, naive (which is UTC), or as text."""
        self.fill(store)
        now = datetime.now(UTC)
        for moment in (now - timedelta(hours=1), "2020-01-01", datetime(2020, 1, 1)):  # noqa: DTZ001
            assert store.count(F("@created_at") > moment) == len(RUNS)
            assert store.count(F("@updated_at") < moment) == 0

    def test_the_best(self, store: BlobStore) -> None:
        """Lowest or highest; None where nothing has an order."""
        self.fill(store)
        keys = [
            entry and entry.key
            for entry in (
                store.best("loss"),
                store.best("loss", mode="max"),
                store.best(F("params.lr"), "max"),
                store.best("loss", where="model = 'cnn'"),
                store.best("loss", prefix="s/3"),
                store.best("tags"),
            )
        ]
        assert keys == ["r/2", "s/1", "r/1", "r/1", None, None]

    def test_values_and_groups(self, store: BlobStore) -> None:
        """Each value once and in order; sums of numbers alone."""
        self.fill(store)
        assert store.distinct("loss") == [0.25, 0.5, 2, "n/a", None]
        assert store.distinct("model", prefix="r/") == ["cnn", "mlp"]
        assert store.distinct("done") == [False, True]
        (total,) = store.aggregate("loss")
        assert (total.count, total.numbers) == (6, 3)
        assert (total.min, total.max, total.sum, total.mean) == (0.25, 2, 2.75, 2.75 / 3)
        groups = store.aggregate("loss", by="model", where="loss exists")
        assert [(group.by, group.count, group.sum) for group in groups] == [
            ({"model": "cnn"}, 2, 0.5),
            ({"model": "cnn\0"}, 1, 2),
            ({"model": "mlp"}, 1, 0.25),
            ({}, 1, None),
        ]

    def test_a_frame(self, store: BlobStore) -> None:
        """One row each, in order; nested metadata in columns."""
        self.fill(store)
        frame = store.to_frame("loss < 3", order_by="loss")
        assert frame["key"].tolist() == ["r/2", "r/1", "s/1"]
        assert frame["loss"].tolist() == [0.25, 0.5, 2.0]
        assert frame["params.lr"].dropna().tolist() == [0.01, 0.1]
        assert frame["metadata.size"].dropna().tolist() == ["large"]
        assert frame["size"].tolist() == [store.entry(key).size for key in frame["key"]]
        assert [*store.to_frame(prefix="none", columns=["loss"]).columns] == ["loss"]

    def test_deleting_by_condition(self, store: BlobStore) -> None:
        """What matches, its blobs too, and nothing else; a dry run only tells."""
        self.fill(store)
        assert store.delete_many(where="loss < 1", dry_run=True) == ["r/1", "r/2"]
        assert store.count() == 6
        assert store.delete_many(where="loss < 1") == 2
        assert store.delete_many(where={"loss": {"$exists": True}}, prefix="s/") == 2
        assert store.list() == ["r/3", "s/3"]
        with pytest.raises(InvalidInputError):
            store.delete_many()
        assert store.count() == 2

    def test_changing_by_condition(self, store: BlobStore) -> None:
        """What matches, and nothing else; objects stay."""
        self.fill(store)
        assert store.update_many("loss < 1", {"loss": 5, "seen": True}) == 2
        assert store.entry("r/1").metadata == {**RUNS["r/1"], "loss": 5, "seen": True}
        assert store["r/1"].shape == (20_000,)
        assert store.entry("s/1").metadata == RUNS["s/1"]
        assert store.update_many({"seen": True}, {"new": None}, prefix="r/2", replace=True) == 1
        assert store.entry("r/2").metadata == {"new": None}
        assert [*store.keys("seen exists")] == ["r/1"]

    def test_indexes_change_no_answer(self, store: BlobStore) -> None:
        """Where there are any, they are told of, and go away again."""
        self.fill(store)
        questions: list[Callable[[], Any]] = [
            lambda: [entry.key for entry in store.query("loss < 3", order_by="-loss")],
            lambda: [entry.key for entry in store.query(order_by="loss")],
            lambda: store.count("not loss = 2"),
            lambda: store.distinct("loss"),
        ]
        before = [question() for question in questions]
        try:
            index = store.create_index("loss")
        except NotSupportedError:
            assert (store.indexes(), store.drop_index("loss")) == ([], False)
            assert store.explain("loss < 3").scans
            return
        assert store.create_index(F("loss")) == index
        assert store.indexes() == [index]
        assert store.explain("loss < 3", order_by="-loss").indexes == (index,)
        assert [question() for question in questions] == before
        store.put(1, key="r/0", metadata={"loss": -1})
        assert store.best("loss").key == "r/0"  # type: ignore[union-attr]
        store.delete("r/0")
        assert store.drop_index("loss") is True
        assert (store.indexes(), store.drop_index("loss")) == ([], False)
        assert [question() for question in questions] == before

    def test_wrong_questions(self, store: BlobStore) -> None:
        """Refused at the call, and by every method."""
        for call in (
            lambda: store.query("loss <"),
            lambda: store.count({"loss": {"$near": 1}}),
            lambda: store.keys(order_by="a..b"),
            lambda: store.best("@nothing"),
            lambda: store.distinct("a..b"),
            lambda: store.aggregate(by="a..b"),
            lambda: store.to_frame("loss <"),
            lambda: store.delete_many(where="loss <"),
            lambda: store.update_many("loss <", {}),
            lambda: store.create_index("a..b"),
            lambda: store.explain("loss <"),
        ):
            with pytest.raises(InvalidQueryError):
                call()
