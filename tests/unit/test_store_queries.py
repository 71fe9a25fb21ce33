"""What a BlobStore is asked, and what it deletes and changes by condition."""

from __future__ import annotations

import math
import random
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from blobstore import BlobStore, F, JsonBackend, SqlBackend
from blobstore.changing import BATCH
from blobstore.errors import (
    ClosedError,
    ConflictError,
    InvalidInputError,
    InvalidKeyError,
    InvalidMetadataError,
    InvalidQueryError,
    NotSupportedError,
)

RUNS = {
    "a/1": {"loss": 0.5, "model": "cnn", "params": {"lr": 0.1, "layers": 3}, "tags": ["x", 1]},
    "a/2": {"loss": 0.25, "model": "mlp", "params": {"lr": 0.01}, "done": True},
    "a/3": {"loss": None, "model": "cnn", "note": "diverged"},
    "b/1": {"loss": 2, "model": "cnn", "done": False, "size": "large"},
    "b/2": {"loss": "n/a"},
    "b/3": {},
}


@pytest.fixture(params=["json", "sqlite"])
def store(request, tmp_path):
    with BlobStore(tmp_path / "store", backend=request.param) as store:
        store.put_many((key, {"of": key}, metadata) for key, metadata in RUNS.items())
        yield store


def keys(entries):
    return [entry.key for entry in entries]


# --- query, keys, count, exists


def test_the_three_spellings_find_the_same(store):
    python = (F("loss") < 1) & ~(F("model") == "mlp")
    mapping = {"loss": {"$lt": 1}, "$not": {"model": "mlp"}}
    text = "loss < 1 and not model = 'mlp'"
    for where in (python, mapping, text):
        assert keys(store.query(where)) == ["a/1"]
        assert list(store.keys(where)) == ["a/1"]
        assert store.count(where) == 1
        assert store.exists(where=where) is True


def test_without_a_condition_everything_comes_in_order_of_keys(store):
    assert keys(store.query()) == keys(store.query({})) == [*RUNS]
    assert keys(store.query(prefix="b/")) == ["b/1", "b/2", "b/3"]
    assert keys(store.query(prefix="")) == [*RUNS]
    assert [entry.metadata for entry in store.query()] == [*RUNS.values()]
    assert (store.count(), store.count(prefix="a/"), store.count({}, prefix="c")) == (6, 3, 0)


def test_order(store):
    by_loss = ["a/2", "a/1", "b/1", "b/2", "a/3", "b/3"]
    assert keys(store.query(order_by="loss")) == by_loss
    backwards = ["b/1", "a/1", "a/2", "b/2", "a/3", "b/3"]  # missing and null last either way
    for order in ("-loss", F("loss").desc(), ["-loss"], (F("loss").desc(), "@key")):
        assert keys(store.query(order_by=order)) == backwards
        assert list(store.keys(order_by=order)) == backwards
    assert keys(store.query(order_by=["model", "-loss"])) == [
        *("b/1", "a/1", "a/3"), "a/2", *("b/2", "b/3"),
    ]  # fmt: skip
    assert keys(store.query(order_by="-@key", limit=2)) == ["b/3", "b/2"]
    assert keys(store.query("done exists", order_by=F("done"))) == ["b/1", "a/2"]


def test_pages(store):
    for order in (None, "loss", "-loss", ["model", "-@key"]):
        whole = keys(store.query(order_by=order))
        for size in (1, 2, 5, 6, 7):
            found, last = [], None
            while page := list(store.query(order_by=order, limit=size, after=last)):
                found += keys(page)
                last = page[-1]
            assert found == whole
    assert keys(store.query(after="a/3")) == ["b/1", "b/2", "b/3"]
    assert keys(store.query(after="a/25", limit=1)) == ["a/3"]  # a key need not be there
    assert keys(store.query("loss exists", after=store.entry("b/1"))) == ["b/2"]
    assert list(store.keys(prefix="a/", after="a/1")) == ["a/2", "a/3"]
    assert keys(store.query(limit=0)) == []


def test_going_on_after_an_entry_that_is_gone_or_changed(store):
    first = next(store.query(order_by="loss"))
    store.update_metadata(first.key, {"loss": 7})
    assert keys(store.query(order_by="loss", after=first))[:3] == ["a/1", "b/1", "a/2"]
    store.delete(first.key)
    assert keys(store.query(order_by="loss", after=first)) == ["a/1", "b/1", "b/2", "a/3", "b/3"]


def test_exists_by_key_or_by_condition(store):
    assert store.exists("a/1")
    assert not store.exists("a/")
    assert store.exists(prefix="a/")
    assert not store.exists(prefix="c/")
    assert not store.exists(where="loss > 100")
    assert not store.exists(where={"model": "mlp"}, prefix="b/")
    assert store.exists(where={})
    for both in ({"where": "loss > 1"}, {"prefix": "a"}):
        with pytest.raises(InvalidInputError, match="not both"):
            store.exists("a/1", **both)
    with pytest.raises(InvalidKeyError):
        store.exists()


def test_keys_without_arguments_is_the_view_of_a_mapping(store):
    view = store.keys()
    assert (len(view), "a/1" in view, list(view)) == (6, True, [*RUNS])
    assert view & {"a/1", "x"} == {"a/1"}
    store.delete("a/1")
    assert len(view) == 5


def test_a_filter_and_a_condition_must_both_hold(store):
    assert store.count("loss exists", metadata_filter={"model": "cnn"}) == 3
    assert store.count("loss > 1", metadata_filter={"model": "cnn"}) == 1
    assert store.count(metadata_filter={}) == 6
    assert store.list(metadata_filter={"params.lr": 0.1}) == []  # names are literal there


def test_facts_of_the_entry_can_be_asked_for(store):
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    assert store.count(F("@created_at") > now - hour) == 6
    assert store.count(F("@created_at") > (now + hour).replace(tzinfo=None)) == 0
    assert store.count(F("@updated_at") >= date(2000, 1, 1)) == 6
    assert store.count({"@key": {"$like": "%/1"}}) == 2
    assert store.count("@version = 1 and @size > 0") == 6
    store.update_metadata("a/1", {"more": 1})
    assert list(store.keys("@version > 1")) == ["a/1"]


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"where": 5}, InvalidQueryError, "dict or a str"),
        ({"where": "loss <"}, InvalidQueryError, "expected"),
        ({"where": ""}, InvalidQueryError, "expected"),
        ({"where": {"loss": {"$near": 1}}}, InvalidQueryError, "near"),
        ({"where": F("loss")}, InvalidQueryError, "no condition"),
        ({"where": "@nothing = 1"}, InvalidQueryError, "@nothing"),
        ({"where": {"loss": math.nan}}, InvalidQueryError, "NaN"),
        ({"prefix": 5}, InvalidInputError, "prefix"),
        ({"prefix": b"a"}, InvalidInputError, "prefix"),
        ({"order_by": 5}, InvalidQueryError, "order_by"),
        ({"order_by": "@nothing"}, InvalidQueryError, "@nothing"),
        ({"order_by": ["loss", F("a") > 1]}, InvalidQueryError, "order_by"),
        ({"limit": -1}, InvalidInputError, "limit"),
        ({"limit": True}, InvalidInputError, "limit"),
        ({"limit": 2.0}, InvalidInputError, "limit"),
        ({"after": 5}, InvalidInputError, "after"),
        ({"after": ""}, InvalidKeyError, "key"),
        ({"after": "a/1", "order_by": "loss"}, InvalidInputError, "Entry"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(store, wrong, error, says):
    for method in (store.query, store.keys):
        with pytest.raises(error, match=says):
            method(**wrong)  # nothing is asked of the iterator


def test_python_that_looks_like_a_condition_is_refused(store):
    with pytest.raises(InvalidQueryError, match="&"):
        store.query(F("loss") > 1 and F("loss") < 2)
    with pytest.raises(InvalidQueryError, match="between"):
        store.query(0 < F("loss") < 1)


def test_limits_may_be_numpys_only_as_python_numbers(store):
    with pytest.raises(InvalidInputError, match="limit"):
        store.query(limit=np.int64(3))


# --- best


def test_best(store):
    assert store.best("loss").key == "a/2"
    assert store.best("loss", mode="max").key == "b/1"  # a number, though there is text
    assert store.best("loss", where={"model": "cnn"}).key == "a/1"
    assert store.best("loss", "max", where="model = 'cnn'", prefix="a/").key == "a/1"
    assert store.best(F("params.lr")).key == "a/2"
    assert store.best("@key", "max").key == "b/3"


def test_the_best_of_text_and_booleans(store):
    assert store.best("model", "max").key == "a/2"
    assert store.best("done").key == "b/1"
    assert store.best("loss", where="@key = 'b/2'").key == "b/2"


def test_no_best_without_a_value_that_has_an_order(store):
    assert store.best("nothing") is None
    assert store.best("tags") is None  # arrays have none
    assert store.best("params") is None
    assert store.best("loss", where="@key = 'a/3'") is None  # null
    assert store.best("loss", prefix="nowhere") is None


def test_of_equals_the_first_key_is_best(store):
    store.put(1, key="a/0", metadata={"loss": 0.25})
    store.put(1, key="z", metadata={"loss": 2.0})
    assert (store.best("loss").key, store.best("loss", "max").key) == ("a/0", "b/1")


@pytest.mark.parametrize("mode", ["highest", None, "MAX", 1])
def test_a_wrong_mode(store, mode):
    with pytest.raises(InvalidInputError, match="mode"):
        store.best("loss", mode)


# --- distinct, aggregate


def test_distinct(store):
    assert store.distinct("model") == ["cnn", "mlp"]
    assert store.distinct("loss") == [0.25, 0.5, 2, "n/a", None]
    assert store.distinct("done") == [False, True]
    assert store.distinct("params.lr", where="model = 'cnn'") == [0.1]
    assert store.distinct("model", prefix="b/") == ["cnn"]
    assert store.distinct("nothing") == []
    assert store.distinct("tags") == [["x", 1]]
    assert store.distinct("@version") == [1]
    (created, *_) = store.distinct("@created_at")
    assert created == store.entry("a/1").created_at


def test_equal_numbers_are_one_value_whichever_comes_first(tmp_path):
    values = [1.0, 1, True, "1", 2, 2.0, 0, -0.0, 0.0, [1], [1.0], {"a": 1}, {"a": 1.0}, None]
    for number in range(3):
        random.Random(number).shuffle(values)
        with BlobStore(tmp_path / f"{number}", backend="json") as store:
            store.put_many((f"{n}", n, {"v": v}) for n, v in enumerate(values))
            found = store.distinct("v")
            assert repr(found) == "[0, 1, 2, '1', True, [1], {'a': 1}, None]"
            assert [group.count for group in store.aggregate(by="v")] == [3, 2, 2, 1, 1, 2, 2, 1]
            (group,) = store.aggregate("v")
            assert (repr(group.min), repr(group.max), group.sum) == ("0", "2", 6)


def test_aggregate_of_all(store):
    (group,) = store.aggregate("loss")
    assert (group.by, group.count, group.numbers) == ({}, 6, 3)
    assert (group.min, group.max, group.sum) == (0.25, 2, 2.75)
    assert group.mean == pytest.approx(2.75 / 3, abs=0)
    (only_counted,) = store.aggregate()
    assert (only_counted.count, only_counted.numbers, only_counted.sum) == (6, 0, None)
    (of_nothing,) = store.aggregate("loss", prefix="nowhere")
    assert (of_nothing.count, of_nothing.min, of_nothing.mean) == (0, None, None)


def test_aggregate_by_groups(store):
    groups = store.aggregate("loss", by="model")
    assert [(g.by, g.count, g.numbers, g.min, g.max, g.sum) for g in groups] == [
        ({"model": "cnn"}, 3, 2, 0.5, 2, 2.5),
        ({"model": "mlp"}, 1, 1, 0.25, 0.25, 0.25),
        ({}, 2, 0, None, None, None),  # no model: "n/a" is no number
    ]
    two = store.aggregate(by=["model", F("done")], where="model exists")
    assert [(g.by, g.count) for g in two] == [
        ({"model": "cnn", "done": False}, 1),
        ({"model": "cnn"}, 2),
        ({"model": "mlp", "done": True}, 1),
    ]
    assert store.aggregate("loss", by="model", prefix="nowhere") == []
    assert [g.by for g in store.aggregate(by="params.lr", prefix="a/")] == [
        {"params.lr": 0.01}, {"params.lr": 0.1}, {},
    ]  # fmt: skip


def test_a_null_and_no_value_are_two_groups(store):
    groups = store.aggregate(by="loss", where="not loss >= 0")
    assert [(g.by, g.count) for g in groups] == [({"loss": "n/a"}, 1), ({"loss": None}, 1), ({}, 1)]


def test_times_come_out_as_times(store):
    (group,) = store.aggregate("@created_at")
    times = [store.entry(key).created_at for key in RUNS]
    assert (group.min, group.max, group.numbers, group.sum) == (min(times), max(times), 6, None)
    assert group.min <= group.mean <= group.max
    sizes = store.aggregate("@size")[0]
    assert sizes.sum == sum(entry.size for entry in store.query())
    assert isinstance(sizes.sum, int)


def test_sums_are_exact_and_do_not_depend_on_the_order(tmp_path):
    values = [0.1] * 10 + [1e16, 1.0, -1e16, 1e-320, 5e-324, 2**70, -(2**70), 1e300, -1e300]
    exact = sum(map(Fraction, values))
    for number in range(3):
        random.Random(number).shuffle(values)
        with BlobStore(tmp_path / f"{number}", backend="json") as store:
            store.put_many((f"{n}", n, {"v": v}) for n, v in enumerate(values))
            (group,) = store.aggregate("v")
            assert group.sum == float(exact)
            assert group.mean == float(exact / len(values))
            assert (group.min, group.max) == (-1e300, 1e300)
            (whole,) = store.aggregate("v", where="v > 1e20 and v < 1e22")
            assert (whole.sum, type(whole.sum)) == (2**70, int)


def test_sums_beyond_floats(tmp_path):
    with BlobStore(tmp_path, backend="json") as store:
        store.put_many((f"{n}", n, {"v": v}) for n, v in enumerate([1e308, 1e308]))
        (group,) = store.aggregate("v")
        assert (group.sum, group.mean) == (math.inf, 1e308)
        store.update_many("v exists", {"v": -(10**400)})
        (group,) = store.aggregate("v")
        assert (group.sum, group.mean) == (-2 * 10**400, -math.inf)


@pytest.mark.parametrize("wrong", [5, [5], [None], "@nothing", "a..b"])
def test_wrong_fields_are_refused(store, wrong):
    with pytest.raises(InvalidInputError):
        store.aggregate(by=wrong)
    if not isinstance(wrong, list):
        for method in (store.distinct, store.best, store.aggregate, store.create_index):
            with pytest.raises(InvalidInputError):
                method(wrong)


# --- frames

SYSTEM = ["key", "data_type", "size", "version", "created_at", "updated_at"]


def test_a_frame_of_all(store):
    frame = store.to_frame()
    assert [*frame.columns] == [
        *SYSTEM, "loss", "model", "params.lr", "params.layers", "tags", "done", "note",
        "metadata.size",
    ]  # fmt: skip
    assert [*frame["key"]] == [*RUNS]
    assert [*frame.index] == [*range(6)]
    assert [*frame["size"]] == [entry.size for entry in store.query()]
    assert [*frame["created_at"]] == [entry.created_at for entry in store.query()]
    assert str(frame["created_at"].dt.tz) == "UTC"
    assert frame["done"].dtype == "boolean"
    assert frame["params.lr"].dtype == "Float64"
    assert frame["params.layers"].dtype == "Int64"
    assert frame["loss"].dtype == object  # numbers and text
    assert frame["tags"][0] == ["x", 1]
    assert frame.loc[1, "params.lr"] == 0.01
    assert frame["loss"].isna().tolist() == [False, False, True, False, False, True]
    assert frame["metadata.size"].dropna().tolist() == ["large"]


def test_a_frame_of_some(store):
    frame = store.to_frame("loss < 1", order_by="loss", columns=["key", "loss", "nothing"])
    assert [*frame.columns] == ["key", "loss", "nothing"]
    assert frame["key"].tolist() == ["a/2", "a/1"]
    assert frame["loss"].dtype == "float64"
    assert frame["nothing"].isna().all()
    assert [*store.to_frame(prefix="b/", limit=2)["key"]] == ["b/1", "b/2"]


def test_a_frame_of_nothing(store):
    frame = store.to_frame(prefix="nowhere")
    assert (len(frame), [*frame.columns]) == (0, SYSTEM)
    assert [*store.to_frame("loss > 99", columns=["loss", "key"]).columns] == ["loss", "key"]
    assert frame["size"].dtype == "int64"
    assert str(frame["created_at"].dt.tz) == "UTC"


def test_columns_that_would_have_one_name_are_kept_apart(store):
    store.clear()
    store.put_many(
        [
            ("k1", 1, {"a": {"b": 1}, "a.b": 2, "key": 3, "metadata": {"key": 4, "x": 5}}),
            ("k2", 2, {"metadata.key": 6, "metadata": {"metadata": {"key": 7}}, "": 8, "`": 9}),
        ]
    )
    frame = store.to_frame()
    assert frame.iloc[0].dropna().to_dict() == {
        **{name: frame[name][0] for name in SYSTEM},
        "a.b": 1, "`a.b`": 2, "metadata.key": 3, "metadata.metadata.key": 4, "metadata.x": 5,
    }  # fmt: skip
    assert frame.iloc[1].dropna().to_dict() == {
        **{name: frame[name][1] for name in SYSTEM},
        "`metadata.key`": 6, "metadata.metadata.metadata.key": 7, "``": 8, "````": 9,
    }  # fmt: skip


def test_the_columns_of_a_frame_are_named_as_in_queries(store):
    store.clear()
    store.put(1, key="k", metadata={"odd name": {"a.b": 1, "`": {"and": 2}}, "ok": {"é_1": 3}})
    names = [name for name in store.to_frame().columns if name not in SYSTEM]
    assert len(names) == 3
    for name in names:
        assert list(store.keys(f"{name} >= 1")) == ["k"], name
        assert store.best(name).key == "k"


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], "int64"),
        ([1, None], "Int64"),
        ([2**62 + 1, None], "Int64"),
        ([1.5, 2.0], "float64"),
        ([1.0, 2.0], "float64"),
        ([1, 2.5], "float64"),
        ([1, 2.5, None], "Float64"),
        ([True, False], "bool"),
        ([True, None], "boolean"),
        ([True, 1], "object"),
        ([1, "1"], "object"),
        ([2**70, 1], "object"),
        ([2**53 + 1, 0.5], "object"),
        ([[1], {}], "object"),
        ([None, None], "object"),
    ],
)
def test_types_of_columns(tmp_path, values, dtype):
    with BlobStore(tmp_path, backend="json") as store:
        store.put_many((f"{n}", n, {"v": v}) for n, v in enumerate(values))
        column = store.to_frame()["v"]
    assert column.dtype == dtype
    assert column.isna().tolist() == [value is None for value in values]
    assert [a for a in column if a is not pd.NA] == [v for v in values if v is not None]


def test_text_columns_hold_text(store):
    column = store.to_frame()["model"]
    assert pd.api.types.is_string_dtype(column)
    assert column.dropna().tolist() == ["cnn", "mlp", "cnn", "cnn"]
    assert pd.api.types.is_string_dtype(store.to_frame("model exists")["model"])


def test_a_field_that_is_an_object_here_and_a_value_there(tmp_path):
    with BlobStore(tmp_path, backend="json") as store:
        store.put_many([("1", 1, {"a": {"b": 1}}), ("2", 2, {"a": 5}), ("3", 3, {"a": {}})])
        frame = store.to_frame(columns=["a", "a.b"])
    assert frame["a.b"].dropna().to_dict() == {0: 1}
    assert frame["a"].dropna().to_dict() == {1: 5, 2: {}}


@pytest.mark.parametrize("wrong", ["loss", 5, ["loss", 5], [None]])
def test_wrong_columns(store, wrong):
    with pytest.raises(InvalidInputError, match="columns"):
        store.to_frame(columns=wrong)


# --- delete_many, update_many


def test_deleting_by_condition(store):
    would = store.delete_many(where="loss > 0.3", dry_run=True)
    assert would == ["a/1", "b/1"]
    assert len(store) == 6
    assert store.delete_many(where="loss > 0.3") == 2
    assert store.list() == ["a/2", "a/3", "b/2", "b/3"]
    assert store.delete_many(where={"model": "cnn"}, prefix="b/") == 0
    assert store.delete_many(prefix="b/") == 2
    assert store.list() == ["a/2", "a/3"]
    assert store.verify(deep=True).ok
    assert store.gc(grace=0).items == ()


def test_deleting_keys(store):
    assert store.delete_many(["b/3", "x", "a/1", "b/3"], dry_run=True) == ["b/3", "a/1"]
    assert store.delete_many(iter(["b/3", "x", "a/1", "b/3"])) == 2
    assert store.delete_many([], dry_run=True) == []
    assert len(store) == 4


def test_more_than_one_batch(store):
    many = 2 * BATCH + 7
    store.put_many((f"m/{n}", n, {"n": n}) for n in range(many))
    assert store.update_many("n >= 10", {"seen": True}) == many - 10
    assert store.count("seen = true") == many - 10
    assert store.delete_many(where="seen = true") == many - 10
    assert store.count(prefix="m/") == 10


@pytest.mark.parametrize("nothing", [{}, {"where": None}, {"where": {}}, {"prefix": ""}])
def test_everything_is_not_deleted_or_changed_by_a_slip(store, nothing):
    for dry_run in (False, True):
        with pytest.raises(InvalidInputError, match="clear"):
            store.delete_many(dry_run=dry_run, **nothing)
    with pytest.raises(InvalidInputError, match="@size >= 0"):
        store.update_many(nothing.get("where"), {"x": 1}, prefix=nothing.get("prefix"))
    assert store.count("x exists") == 0
    assert len(store) == 6


def test_keys_and_a_condition_exclude_each_other(store):
    for also in ({"where": "loss > 1"}, {"prefix": "b"}, {"where": {}}, {"prefix": ""}):
        with pytest.raises(InvalidInputError, match="not both"):
            store.delete_many(["a/1"], **also)
    with pytest.raises(InvalidInputError, match="where="):
        store.delete_many("loss > 0.3")
    with pytest.raises(InvalidKeyError):
        store.delete_many(["a/1", ""])
    assert len(store) == 6


def test_updating_by_condition(store):
    assert store.update_many("model = 'cnn'", {"params": {"new": 1}, "seen": np.True_}) == 3
    assert store.entry("a/1").metadata == {**RUNS["a/1"], "params": {"new": 1}, "seen": True}
    assert store.entry("a/2").metadata == RUNS["a/2"]
    assert store.entry("a/1").version == 2
    assert store["a/1"] == {"of": "a/1"}
    assert store.update_many(F("seen") == True, {"only": 1}, prefix="b/", replace=True) == 1  # noqa: E712
    assert store.entry("b/1").metadata == {"only": 1}
    assert store.update_many("loss > 100", {"x": 1}) == 0
    with pytest.raises(InvalidMetadataError):
        store.update_many("loss > 0", {"x": {1}})
    with pytest.raises(InvalidQueryError):
        store.update_many("loss >", {"x": 1})


def test_updating_what_the_condition_is_about(store):
    assert store.update_many("loss >= 0", {"loss": -1}) == 3
    assert store.count("loss = -1") == 3


class Meddler:
    """Somebody who changes entries between the look and the commit."""

    def __init__(self, index, change):
        self.index, self.change, self.calls = index, change, 0

    def commit(self, operations, commit_id):
        self.calls += 1
        self.change(self.calls, operations)
        return type(self.index).commit(self.index, operations, commit_id)


@pytest.fixture(params=["json", "sqlite"])
def meddled(request, tmp_path, monkeypatch):
    """A store, and a function that has another handle change it before a commit."""
    path = tmp_path / "store"
    with BlobStore(path, backend=request.param) as store, BlobStore(path) as other:
        store.put_many((f"k{n}", n, {"n": n}) for n in range(10))

        def meddle(change):
            index = {"json": JsonBackend, "sqlite": SqlBackend}[request.param]
            mine = store._index
            assert type(mine) is index
            monkeypatch.setattr(mine, "commit", Meddler(mine, lambda *a: change(other, *a)).commit)
            return store

        yield meddle


def test_what_was_changed_meanwhile_is_looked_at_again(meddled):
    def change(other, call, operations):
        if call == 1:
            other.update_metadata("k2", {"n": 100})  # no longer matches
            other.update_metadata("k3", {"more": 1})  # still does
            other.delete("k4")
            other.put("new", key="k5", metadata={"n": -5})  # another object that matches, too
            other.delete("k6")
            other.put("new", key="k6", metadata={})  # one that does not

    store = meddled(change)
    assert store.delete_many(where="n < 9") == 6  # k0, k1, k3, k5, k7, k8
    assert store.list() == ["k2", "k6", "k9"]
    assert store["k6"] == "new"
    assert store.entry("k2").metadata == {"n": 100}


def test_updates_are_not_lost_and_do_not_undo_others(meddled):
    def change(other, call, operations):
        if call == 1:
            other.update_metadata("k2", {"n": 100})
            other.update_metadata("k3", {"mine": 1})

    store = meddled(change)
    assert store.update_many("n < 9", {"small": True}) == 8
    assert store.entry("k2").metadata == {"n": 100}
    assert store.entry("k3").metadata == {"n": 3, "mine": 1, "small": True}


def test_one_that_changes_all_the_time_does_not_hold_up_the_others(meddled):
    def change(other, call, operations):
        if any(operation.key == "k5" for operation in operations):
            other.update_metadata("k5", {"call": call})

    store = meddled(change)
    with pytest.raises(ConflictError) as caught:
        store.delete_many(where="n < 9")
    assert caught.value.key == "k5"
    assert store.list() == ["k5", "k9"]


def test_one_that_stops_matching_at_last_is_left_alone(meddled):
    def change(other, call, operations):
        if any(operation.key == "k5" for operation in operations):
            other.update_metadata("k5", {"n": 5 + call // 4})

    store = meddled(change)
    assert store.delete_many(where="n <= 5") == 5
    assert store.list() == [f"k{n}" for n in range(5, 10)]


# --- indexes


def test_a_json_index_says_that_it_scans(tmp_path):
    with BlobStore(tmp_path, backend="json") as store:
        store.put(1, key="k", metadata={"loss": 1})
        with pytest.raises(NotSupportedError, match="SqlBackend"):
            store.create_index("loss")
        assert store.indexes() == []
        assert store.drop_index("loss") is False
        explained = store.explain("loss > 1")
        assert (explained.scans, explained.indexes) == (True, ())


def test_indexes_of_a_database(tmp_path):
    with BlobStore(tmp_path, backend="sqlite") as store:
        store.put_many((f"{n:03}", n, {"params": {"lr": n % 10}, "n": n}) for n in range(200))
        before = store.explain("params.lr >= 5", order_by="params.lr", limit=10)
        assert (before.scans, before.indexes, str(before.suggestion)) == (True, (), "params.lr")
        index = store.create_index("params.lr")
        assert store.create_index(F("params.lr")) == index
        assert store.indexes() == [index]
        after = store.explain("params.lr >= 5", order_by="params.lr", limit=10)
        assert (after.scans, after.indexes, after.suggestion) == (False, (index,), None)
        found = keys(store.query("params.lr >= 5", order_by="params.lr", limit=3))
        assert found == ["005", "015", "025"]
    with BlobStore(tmp_path) as store:
        assert store.indexes() == [index]
        assert store.drop_index("params.lr") is True
        assert (store.drop_index("params.lr"), store.indexes()) == (False, [])


# --- readonly and closed stores


def test_a_readonly_store_answers_and_changes_nothing(store):
    with BlobStore(store.path, readonly=True) as readonly:
        assert keys(readonly.query("loss < 1", order_by="loss")) == ["a/2", "a/1"]
        assert readonly.best("loss").key == "a/2"
        assert readonly.distinct("model") == ["cnn", "mlp"]
        assert len(readonly.to_frame()) == 6
        assert readonly.delete_many(where="loss > 0.3", dry_run=True) == ["a/1", "b/1"]
        assert readonly.delete_many(["a/1"], dry_run=True) == ["a/1"]
        assert readonly.indexes() == []
        readonly.explain("loss < 1")
        for call in (
            lambda: readonly.delete_many(where="loss > 0.3"),
            lambda: readonly.update_many("loss > 0.3", {"x": 1}),
            lambda: readonly.create_index("loss"),
            lambda: readonly.drop_index("loss"),
        ):
            with pytest.raises(NotSupportedError, match="readonly"):
                call()
    assert len(store) == 6


def test_a_closed_store_says_so(store):
    running = store.query()
    next(running)
    view = store.keys()
    store.close()
    for call in (
        store.query,
        lambda: store.keys("loss > 1"),
        lambda: len(view),
        store.count,
        lambda: store.exists(where="loss > 1"),
        lambda: store.best("loss"),
        lambda: store.distinct("loss"),
        store.aggregate,
        store.to_frame,
        lambda: store.delete_many(prefix="a"),
        lambda: store.delete_many(prefix="a", dry_run=True),
        lambda: store.update_many("loss > 1", {}),
        lambda: store.create_index("loss"),
        lambda: store.drop_index("loss"),
        store.indexes,
        store.explain,
    ):
        with pytest.raises(ClosedError):
            call()


def test_answers_go_on_while_others_write(store):
    store.put_many((f"m/{n:04}", n, {"n": n}) for n in range(1500))
    seen = []
    for entry in store.query("n >= 0", order_by="-n"):
        seen.append(entry.metadata["n"])
        if entry.metadata["n"] % 100 == 0:
            store.delete(entry.key)
            store.put(0, key=f"m/x{entry.metadata['n']}", metadata={"n": 5000})
    assert seen == [*range(1499, -1, -1)]
