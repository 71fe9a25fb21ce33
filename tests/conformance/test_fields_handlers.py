"""Handlers of dataclasses and pydantic models pass the suite; classes are imported only on trust."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import json
import pathlib
import subprocess
import sys
import uuid
import zoneinfo
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore import BlobStore, UntrustedTypeError
from blobstore.errors import BlobStoreError, DecodeError
from blobstore.handlers import tree
from blobstore.handlers.fields import DataclassHandler, PydanticHandler
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.registry import HandlerSet
from blobstore.streams import BytesSource
from blobstore.testing.handler import HandlerSuite, write
from blobstore.testing.handler import read as read_trusted
from blobstore.trust import EVERYTHING, NOTHING, Trust, TypePatterns

pydantic = pytest.importorskip("pydantic")

NOISE = np.random.default_rng(2).standard_normal((120, 100))


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Inner:
    rate: float = 0.1
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Anything:
    value: Any = None
    inner: Inner | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    name: str
    size: tuple[int, ...] = ()
    count: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass
class Cached:
    x: int

    @cached_property
    def twice(self):
        return self.x * 2


@dataclasses.dataclass
class OfList(list):
    x: int = 0


@dataclasses.dataclass
class Reduced:
    x: int = 0

    def __reduce__(self):
        return Reduced, (self.x,)


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True, extra="allow")
    lr: float = 0.1
    name: str = pydantic.Field(default="", alias="label")
    colour: Colour = Colour.RED
    inner: Inner | None = None
    weights: Any = None
    parent: Model | None = None
    _secret: int = 3


class Strict(pydantic.BaseModel, frozen=True):
    many: dict[int, set[int]] = pydantic.Field(default_factory=dict)


def same(one, other):
    """Equal all the way down, types included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, pydantic.BaseModel):
        state, others = one.__getstate__(), other.__getstate__()
        return all(same(state[name], others[name]) for name in state)
    if isinstance(one, dict):
        return [*one] == [*other] and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other) if isinstance(one, float) else one == other


class TestDataclassHandler(HandlerSuite):
    def make_handler(self):
        return DataclassHandler()

    def objects(self):
        return {
            "plain": Anything({"a": [1, 2.5, None, "x"]}, Inner(0.5, ["t"])),
            "frozen": Frozen("n", (1, 2)),
            "array": Anything(NOISE.copy()),
            "small": Anything([np.arange(5), np.float32(2.5), np.dtype("<f4")]),
            "frame": Anything(pd.DataFrame({"x": [1, 2], "y": ["a", None]})),
            "times": Anything(
                [
                    dt.datetime(2024, 5, 1, 3, fold=1),
                    dt.datetime(2024, 5, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")),
                    dt.datetime(2024, 5, 1, tzinfo=dt.UTC),
                    dt.time(1, 2, 3, 4, tzinfo=dt.timezone(dt.timedelta(hours=-3, seconds=7))),
                    dt.date(1, 1, 1),
                    dt.timedelta(-1, 3, 7),
                ]
            ),
            "odd": Anything(
                [float("nan"), -0.0, 1j, 2**5000, b"\0", bytearray(b"x"), {1: (2,)}, {3, 1, 2}]
            ),
            "others": Anything(
                (
                    decimal.Decimal("1.20"),
                    fractions.Fraction(-(7**9000), 3**9000),
                    uuid.UUID(int=7),
                    pathlib.Path("a/b"),
                    pathlib.PurePosixPath("/x"),
                    Colour.BLUE,
                    [Colour.BLUE, Rights.READ, frozenset("ab")],
                    {"$": "tuple", "v": []},
                    "\udc80",
                )
            ),
        }

    def equal(self, one, other):
        return same(one, other)

    def spoil(self, obj):
        if isinstance(obj, Anything):
            obj.value = "spoilt"

    def same(self):
        return {
            "sets": (Anything({"a", "b", "c"}), Anything({"c", "b", "a"})),
            "memory": (Anything(NOISE), Anything(np.asfortranarray(NOISE))),
        }

    def different(self):
        return {
            "class": (Inner(), Frozen("")),
            "value": (Inner(0.5), Inner(0.25)),
            "type": (Anything(1), Anything(True)),
            "tuple": (Anything([1]), Anything((1,))),
            "array": (Anything(NOISE), Anything(NOISE + 1)),
            "small array": (Anything(np.arange(3)), Anything(np.arange(1, 4))),
            "zero": (Anything(0.0), Anything(-0.0)),
        }

    def refused(self):
        cached = Cached(3)
        cached.twice  # noqa: B018
        shared = [1]
        return {
            "class": Inner,
            "another object": Anything(object()),
            "more than fields": cached,
            "comes twice": Anything([shared, shared]),
            "derived": OfList(),
            "says itself": Reduced(),
            "local": dataclasses.make_dataclass("Local", ["x"])(1),
            "no member": Anything(Rights.READ | Rights.WRITE),
            "unknown zone": Anything(
                dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(1 / 24), "X"))
            ),
        }


class TestPydanticHandler(HandlerSuite):
    def make_handler(self):
        return PydanticHandler()

    def objects(self):
        nested = Model(label="a", inner=Inner(0.5), parent=Model(lr=1), extra_field=[1])
        nested._secret = 9
        return {
            "defaults": Model(),
            "nested": nested,
            "array": Model(weights=NOISE.copy()),
            "strict": Strict(many={1: {2, 3}}),
        }

    def equal(self, one, other):
        return same(one, other)

    def spoil(self, obj):
        if isinstance(obj, Model):
            obj.lr = 99

    def different(self):
        return {"values": (Model(lr=1), Model(lr=2)), "set": (Model(), Model(lr=0.1))}

    def refused(self):
        class Local(pydantic.BaseModel):
            x: int = 1

        return {"local": Local(), "object": Model(weights=object())}


JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.complex_numbers(allow_nan=False, allow_infinity=False)
    | st.fractions()
    | st.uuids()
    | st.sampled_from(Colour),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.frozensets(st.integers() | st.text(), max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(JSON_LIKE)
def test_any_value_comes_back(value):
    handler = DataclassHandler()
    plan = handler.plan(Anything(value), WriteOptions())
    assert same(read_trusted(handler, plan, write(plan)).value, value)


def test_nothing_is_imported_that_is_not_trusted(tmp_path):
    with BlobStore(tmp_path) as store:
        store.put(Anything(1, Inner()), key="mine")
        assert store["mine"] == Anything(1, Inner())  # it is signed
        assert store.get_metadata("mine")["handler"] == "dataclass"
    module = Anything.__module__
    key = b"another key that is 32 bytes ok!"
    with (
        BlobStore(tmp_path, signing_keys=[key]) as store,
        pytest.raises(UntrustedTypeError, match="Anything"),
    ):
        store["mine"]
    with BlobStore(tmp_path, signing_keys=[key], trusted_types=[f"{module}.*"]) as store:
        assert store["mine"] == Anything(1, Inner())
    with (
        BlobStore(tmp_path, signing_keys=[key], trusted_types=[f"{module}.Anything"]) as store,
        pytest.raises(UntrustedTypeError, match="Inner"),
    ):
        store["mine"]
    with BlobStore(tmp_path, pickle="deny") as store, pytest.raises(UntrustedTypeError):
        store["mine"]


def read_with(trust, handler, plan):
    stored = write(plan)
    parts = {
        part.name: StoredPart(
            part.name, BytesSource(stored[part.name]), part.encoding().codec, part.handler, 1, trust
        )
        for part in plan.parts
    }
    return handler.read(parts, plan.info)


def test_a_module_is_not_imported_before_its_class_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "marker_module.py").write_text(
        "import dataclasses, pathlib\n"
        "pathlib.Path(__file__).with_suffix('.ran').touch()\n"
        "@dataclasses.dataclass\nclass Thing:\n    x: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import marker_module

    plan = DataclassHandler().plan(marker_module.Thing(), WriteOptions())
    del sys.modules["marker_module"]
    (tmp_path / "marker_module.ran").unlink()
    with pytest.raises(UntrustedTypeError, match=r"marker_module\.Thing"):
        read_with(NOTHING, DataclassHandler(), plan)
    assert not (tmp_path / "marker_module.ran").exists()
    trust = Trust(types=TypePatterns(["marker_module.Thing"]))
    assert read_with(trust, DataclassHandler(), plan).x == 1
    assert (tmp_path / "marker_module.ran").exists()


WORDS = ["America", "../x", "<f4", "1/0", "a:b", "os:system", "os:path", "enum:Enum", "numpy", "O"]
NODES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.builds(
            lambda kind, node: {"$": kind, **node},
            st.sampled_from([*tree._DECODE, *tree._DECODERS, "dataclass", "model", "enum", "?"]),
            st.dictionaries(
                st.sampled_from(
                    [
                        "v",
                        "zone",
                        "offset",
                        "dtype",
                        "class",
                        "fields",
                        "n",
                        "handler",
                        "info",
                        "data",
                    ]
                ),
                inner,
                max_size=4,
            ),
        )
    ),
    max_leaves=10,
)


@settings(max_examples=300)
@given(NODES, st.sampled_from([NOTHING, EVERYTHING]))
def test_a_tree_of_anybody_gives_values_or_our_errors(node, trust):
    part = StoredPart("tree", BytesSource(json.dumps(node).encode()), "none", "x", 1, trust)
    with contextlib.suppress(BlobStoreError):
        tree.read_tree({"tree": part})


def test_classes_that_changed(monkeypatch):
    plan = DataclassHandler().plan(Inner(0.5), WriteOptions())
    stored = write(plan)
    handler = DataclassHandler()

    def read():
        return read_trusted(handler, plan, stored)

    def becomes(*fields):
        changed = dataclasses.make_dataclass("Inner", fields)
        changed.__module__ = __name__
        monkeypatch.setattr(sys.modules[__name__], "Inner", changed)

    becomes(("rate", float), ("tags", list), ("new", int, 7))
    assert read().new == 7
    becomes(("rate", float))
    with pytest.raises(DecodeError, match="no field 'tags' any more"):
        read()
    becomes(("rate", float), ("tags", list), ("new", int))
    with pytest.raises(DecodeError, match="new field 'new'"):
        read()
    monkeypatch.setattr(sys.modules[__name__], "Inner", int)
    with pytest.raises(DecodeError, match="something else now"):
        read()
    monkeypatch.delattr(sys.modules[__name__], "Inner")
    with pytest.raises(DecodeError, match="does not have any more"):
        read()


def test_a_model_that_changed_is_validated(monkeypatch):
    plan = PydanticHandler().plan(Strict(many={1: {2}}), WriteOptions())
    stored = write(plan)
    changed = pydantic.create_model(
        "Strict", many=(dict[int, set[int]], ...), more=(int, 5), __module__=__name__
    )
    monkeypatch.setattr(sys.modules[__name__], "Strict", changed)
    assert read_trusted(PydanticHandler(), plan, stored).more == 5
    changed = pydantic.create_model("Strict", other=(int, ...), __module__=__name__)
    monkeypatch.setattr(sys.modules[__name__], "Strict", changed)
    with pytest.raises(DecodeError, match="has changed"):
        read_trusted(PydanticHandler(), plan, stored)


def test_nothing_is_called_on_the_way():
    plan = DataclassHandler().plan(Checked(1), WriteOptions())
    Checked.calls.clear()
    assert read_trusted(DataclassHandler(), plan, write(plan)) == Checked(1)
    assert Checked.calls == [1]  # by the comparison's right side


@dataclasses.dataclass
class Checked:
    x: int
    calls = []  # noqa: RUF012

    def __post_init__(self):
        self.calls.append(self.x)


def test_what_does_not_fit_is_pickled(tmp_path):
    with BlobStore(tmp_path) as store:
        for key, obj in {"reduced": Reduced(4), "objects": Anything(value=Reduced(5))}.items():
            store.put(obj, key=key)
            assert store.get_metadata(key)["handler"] == "pickle"
            assert store[key] == obj


def test_other_objects_load_no_pydantic():
    code = """
import sys, dataclasses
sys.modules["pydantic"] = None
from blobstore.registry import HandlerSet
from blobstore.streams import BytesSource
from blobstore.protocols import StoredPart, WriteOptions
assert HandlerSet().plan(WriteOptions(), WriteOptions()).handler.name == "dataclass"
assert not {"numpy", "pandas", "pyarrow"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_who_stores_what():
    for obj, name in ((Inner(), "dataclass"), (Model(), "pydantic"), (Colour.RED, "pickle")):
        assert HandlerSet().plan(obj, WriteOptions()).handler.name == name
