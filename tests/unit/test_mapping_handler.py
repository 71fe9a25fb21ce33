"""Dictionaries of arrays: what is split off, what stays, and how it comes back."""

from __future__ import annotations

import collections
import gc
import io
import pickle
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore.digest import new_digest
from blobstore.errors import DecodeError, InvalidInputError, UnsupportedTypeError
from blobstore.handlers import mapping
from blobstore.handlers.mapping import LARGE, MappingHandler
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.registry import HandlerSet
from blobstore.streams import BytesSource, MemorySink
from blobstore.trust import EVERYTHING


def big(seed=1, shape=(90, 100)):
    return np.random.default_rng(seed).standard_normal(shape)


def write(obj, codec="lz4"):
    plan = MappingHandler().plan(obj, WriteOptions(codec))
    parts = {}
    for part in plan.parts:
        with MemorySink() as sink:
            part.write(sink)
        parts[part.name] = StoredPart(
            part.name,
            BytesSource(sink.content),
            part.encoding().codec,
            part.handler,
            part.format_version,
            EVERYTHING,
        )
    return parts, plan.info


def round_trip(obj):
    return MappingHandler().read(*write(obj))


def digests(obj):
    found = {}
    for part in MappingHandler().plan(obj, WriteOptions()).parts:
        hasher = new_digest()
        part.digest(hasher)
        found[part.name] = hasher.hexdigest()
    return found


def same(one, other):
    """Equal all the way down, types included; arrays bit by bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and (
            one.tolist() == other.tolist()
            if one.dtype == object
            else one.tobytes() == other.tobytes()
        )
    if isinstance(one, dict):
        return [*one] == [*other] and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# --- who stores what -----------------------------------------------------------------------------


def chosen(obj):
    return HandlerSet().plan(obj, WriteOptions()).handler.name


def test_only_containers_with_large_arrays():
    just = np.zeros(LARGE, "u1")
    less = np.zeros(LARGE - 1, "u1")
    assert chosen({"a": just}) == "mapping"
    assert chosen({"a": less}) == "pickle"
    for obj in ({}, {"a": 1}, {"a": [1, {"b": ()}]}, {"a": np.array(["x", None], object)}):
        assert chosen(obj) == "pickle"
    for obj in ({"a": [just]}, {"a": {"b": ({"c": [just]},)}}, {1: just}, {None: just, (1, 2): 0}):
        assert chosen(obj) == "mapping"
    for obj in ([just], (1, just), collections.OrderedDict(a=just), [{"a": (just,)}]):
        assert chosen(obj) == "mapping"
        assert same(round_trip(obj), obj)
    assert not MappingHandler().can_handle(type("D", (dict,), {})(a=just))


def test_arrays_deeper_than_it_looks_do_no_harm():
    obj = deeply = {}
    for _ in range(50):
        deeply["x"] = {}
        deeply = deeply["x"]
    deeply["x"] = big()
    assert chosen(obj) == "pickle"
    obj["a"] = big(2)
    assert chosen(obj) == "mapping"
    assert len(write(obj)[0]) == 3  # but when it is a mapping, all of them are split off
    assert same(round_trip(obj), obj)


def test_looking_costs_no_more_than_the_object_is_large(monkeypatch):
    """Containers that are met on many ways are looked at once."""
    looks = []
    original = mapping._holds_leaf

    def counted(*args, **kwargs):
        looks.append(1)
        assert len(looks) < 1000, "exponential"
        return original(*args, **kwargs)

    monkeypatch.setattr(mapping, "_holds_leaf", counted)
    nested = []
    for _ in range(6):
        nested = [nested] * 10
    assert not MappingHandler().can_handle({"a": nested})
    looped = {}
    looped["all"] = [looped] * 30
    assert not MappingHandler().can_handle(looped)


# --- round trips ---------------------------------------------------------------------------------

OBJECTS = {
    "flat": {"a": big(), "b": big(2, (100, 200)), "epoch": 3},
    "nested": {"model": {"layers": [(big(), "relu"), (big(2), None)]}, "n": [{"x": big(3)}, ()]},
    "keys": {2: big(), 1.5: 2, None: 3, (1, "a"): [4], b"b": 5, True: 6},
    "order of names": {name: big() if name == "m" else name for name in "zmab"},
    "small arrays": {"a": big(), "b": np.arange(3), "c": np.array(2.5)},
    "object array": {"a": big(), "b": np.array([None, "x", [1]] * 20_000, object)},
    "text array": {"a": np.array(["süß", ""] * 20_000)},
    "fortran": {"a": np.asfortranarray(big()), "b": big().T},
    "strided": {"a": big(1, (300, 300))[::2, ::3]},
    "big-endian": {"a": big().astype(">f8")},
    "many dimensions": {"a": np.ones((4,) * 9, "u1"), "b": big()},
    "odd values": {"a": big(), "b": {1, 2}, "c": 1 + 2j, "d": 10**30, "e": frozenset("a")},
    "a name like a part": {"skeleton": big(), "0": big(2), "data": 1},
}


@pytest.mark.parametrize("name", OBJECTS)
def test_comes_back(name):
    obj = OBJECTS[name]
    assert MappingHandler().can_handle(obj)
    assert same(round_trip(obj), obj)


def test_the_memory_order_is_kept():
    loaded = round_trip({"c": big(), "f": np.asfortranarray(big()), "t": big().T})
    assert loaded["c"].flags.c_contiguous
    assert loaded["f"].flags.f_contiguous
    assert loaded["t"].flags.f_contiguous


def test_loaded_arrays_are_writable_and_their_own():
    stored = write({"a": big(), "b": np.arange(5.0)})
    one, other = MappingHandler().read(*stored), MappingHandler().read(*stored)
    one["a"][...] = 0
    one["b"][...] = 0
    assert same(other, {"a": big(), "b": np.arange(5.0)})


LEAVES = st.sampled_from(
    [big(), big(2), np.arange(3), np.array([None], object), np.asfortranarray(big(3))]
) | st.one_of(st.integers(), st.text(), st.none(), st.floats(allow_nan=False), st.binary())
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=3) | st.integers(), TREES, max_size=4))
def test_any_tree_comes_back(tree):
    tree["large"] = big()
    loaded = round_trip(tree)
    assert same(loaded, tree)
    assert digests(loaded).keys() == digests(tree).keys()


# --- parts ---------------------------------------------------------------------------------------


def test_one_part_for_each_large_array():
    obj = {"a": big(), "b": [big(2), np.arange(3)], "c": {"d": big(3)}}
    plan = MappingHandler().plan(obj, WriteOptions())
    assert [part.name for part in plan.parts] == ["skeleton", "0", "1", "2"]
    assert [part.handler for part in plan.parts] == ["mapping", "numpy", "numpy", "numpy"]
    assert [part.executable for part in plan.parts] == [True, False, False, False]
    assert [part.encoding().extension for part in plan.parts[1:]] == [".b2nd"] * 3
    assert plan.parts[0].encoding().extension.startswith(".pkl")
    assert (plan.data_type, plan.info["length"]) == ("mapping", 3)
    assert all(len(source.source.read()) < 5000 for source in [write(obj)[0]["skeleton"]])


def test_an_array_that_is_met_twice_is_one_part_and_one_array():
    array = big()
    obj = {"a": array, "b": [array, {"c": array}], "view": array[:]}
    parts, _ = stored = write(obj)
    assert sorted(parts) == ["0", "1", "skeleton"]  # a view is another array
    loaded = MappingHandler().read(*stored)
    assert loaded["a"] is loaded["b"][0] is loaded["b"][1]["c"]
    assert loaded["view"] is not loaded["a"]


def test_other_identities_are_kept_too():
    shared = {"x": [1]}
    obj = {"a": big(), "one": shared, "two": shared}
    obj["self"] = obj
    loaded = round_trip(obj)
    assert loaded["one"] is loaded["two"]
    assert loaded["self"] is loaded


class Layer:
    def __init__(self, weights):
        self.weights = weights


def test_arrays_inside_other_objects_are_split_off_as_well():
    obj = {"a": big(), "layer": Layer(big(2))}
    parts, _ = stored = write(obj)
    assert len(parts) == 3
    assert same(MappingHandler().read(*stored)["layer"].weights, big(2))


class Fresh:
    """Makes the arrays of its state anew whenever it is asked for it."""

    def __init__(self, seeds):
        self.seeds = seeds
        self.arrays = [big(seed) for seed in seeds]

    def __getstate__(self):
        return {"seeds": self.seeds, "arrays": [array.copy() for array in self.arrays]}


def test_arrays_that_live_only_while_they_are_pickled():
    obj = {"a": big(), "fresh": [Fresh([i, i + 1]) for i in range(20)]}
    loaded = round_trip(obj)
    for i, fresh in enumerate(loaded["fresh"]):
        assert fresh.seeds == [i, i + 1]
        assert same(fresh.arrays, [big(i), big(i + 1)])
    again = {"a": big(), "fresh": [Fresh([i, i + 1]) for i in range(20)]}
    other = {"a": big(), "fresh": [Fresh([i, i + 2]) for i in range(20)]}
    assert digests(again) == digests(obj) != digests(other)


def test_what_cannot_be_pickled_is_refused():
    for wrong in (lambda: 0, (i for i in ()), memoryview(b"x")):
        with pytest.raises(UnsupportedTypeError, match="a dict cannot be stored"):
            MappingHandler().plan({"a": big(), "b": wrong}, WriteOptions())


def test_planning_leaves_the_object_alone():
    obj = {"a": big(), "b": [big(2)]}
    before = pickle.dumps(obj)
    plan = MappingHandler().plan(obj, WriteOptions())
    for part in plan.parts:
        part.digest(new_digest())
        with MemorySink() as sink:
            part.write(sink)
    assert pickle.dumps(obj) == before


# --- digests -------------------------------------------------------------------------------------


def test_equal_dictionaries_have_equal_digests():
    one = {"a": big(), "b": {"c": [big(2), "x" * 3]}}
    two = {"a": np.asfortranarray(big()), "b": {"c": [big(2), str(b"xxx", "ascii")]}}
    assert digests(one) == digests(two) == digests(round_trip(one))


def test_the_skeleton_is_the_same_whatever_the_arrays_hold():
    one, two = digests({"a": big(), "b": 1}), digests({"a": big(2), "b": 1})
    assert one["skeleton"] == two["skeleton"]
    assert one["0"] != two["0"]


DIFFERENT = [
    ({"a": big(), "b": 1}, {"a": big(), "b": True}),
    ({"a": big(), "b": 1}, {"b": 1, "a": big()}),
    ({"a": big(), "b": [1]}, {"a": big(), "b": (1,)}),
    ({"a": big(), "b": big(2)}, {"b": big(), "a": big(2)}),
    ({"a": big(), "b": np.zeros(3)}, {"a": big(), "b": np.zeros(3, "f4")}),
    ({"a": [big()]}, {"a": (big(),)}),
    ({"a": big()}, {"a": Layer(big())}),
]


@pytest.mark.parametrize("number", range(len(DIFFERENT)))
def test_different_dictionaries_have_different_skeletons(number):
    one, two = DIFFERENT[number]
    assert digests(one)["skeleton"] != digests(two)["skeleton"]


def test_one_array_twice_is_not_two_equal_arrays():
    """What is one array stays one when it is loaded, so the skeletons may not be shared."""
    array = big()
    assert (
        digests({"a": array, "b": array})["skeleton"]
        != digests({"a": big(), "b": big()})["skeleton"]
    )


# --- what is wrong -------------------------------------------------------------------------------


def test_parts_that_are_missing():
    parts, info = write({"a": big(), "b": big(2)})
    for name in ("skeleton", "0", "1"):
        with pytest.raises(DecodeError, match=name):
            MappingHandler().read({k: v for k, v in parts.items() if k != name}, info)
    notes = {k: v for k, v in info["parts"].items() if k != "1"}
    with pytest.raises(DecodeError, match="1"):
        MappingHandler().read(parts, {**info, "parts": notes})
    with pytest.raises(DecodeError):
        MappingHandler().read(parts, {})


def test_a_part_of_a_handler_that_is_not_here():
    parts, info = write({"a": big()})
    part = parts["0"]
    parts["0"] = StoredPart(part.name, part.source, part.codec, "elsewhere", 1)
    with pytest.raises(DecodeError, match="elsewhere"):
        MappingHandler().read(parts, info)


def test_a_part_that_is_another_array():
    parts, info = write({"a": big(), "b": big(2, (200, 100))})
    parts["0"], parts["1"] = parts["1"], parts["0"]
    with pytest.raises(DecodeError):
        MappingHandler().read(parts, info)


def test_a_skeleton_that_asks_for_what_is_no_part():
    parts, info = write({"a": big()})

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return "7" if obj == "x" else None

    out = io.BytesIO()
    Pickler(out, 5).dump({"a": "x"})
    parts["skeleton"] = StoredPart("skeleton", BytesSource(out.getvalue()), "none", "mapping", 1)
    with pytest.raises(DecodeError):
        MappingHandler().read(parts, info)


def test_a_cut_skeleton():
    parts, info = write({"a": big(), "b": list(range(50))}, "none")
    data = parts["skeleton"].source.read()
    for cut in range(len(data)):
        parts["skeleton"] = StoredPart("skeleton", BytesSource(data[:cut]), "none", "mapping", 1)
        with pytest.raises(DecodeError):
            MappingHandler().read(parts, info)


def test_unknown_options_are_refused():
    with pytest.raises(InvalidInputError, match="columns"):
        MappingHandler().read(*write({"a": big()}), columns=["a"])


# --- memory --------------------------------------------------------------------------------------


def test_nothing_lingers_after_a_load():
    stored = write({"a": big(), "b": [big(2)]})
    gc.disable()
    try:
        loaded = MappingHandler().read(*stored)
        watched = weakref.ref(loaded["a"]), weakref.ref(loaded["b"][0])
        del loaded
        assert [ref() for ref in watched] == [None, None]
    finally:
        gc.enable()


def test_nothing_lingers_after_writing():
    array = big()
    watched = weakref.ref(array)
    gc.disable()
    try:
        obj = {"a": array, "b": 1}
        write(obj)
        digests(obj)
        del obj, array
        assert watched() is None
    finally:
        gc.enable()


def test_nothing_lingers_after_a_refusal():
    array = big()
    watched = weakref.ref(array)
    gc.disable()
    try:
        with pytest.raises(UnsupportedTypeError):
            MappingHandler().plan({"a": array, "b": lambda: 0}, WriteOptions())
        del array
    finally:
        gc.enable()
    gc.collect()  # the traceback is a cycle
    assert watched() is None
