"""The handlers here pass the suite."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import random

import numpy as np
import pandas as pd
import pytest

from blobstore.handlers.file import FileHandler, LocalFile
from blobstore.handlers.mapping import MappingHandler
from blobstore.handlers.numpy import NumpyHandler
from blobstore.handlers.pandas import PandasHandler
from blobstore.handlers.pickle import PickleHandler
from blobstore.handlers.text import BytearrayHandler, BytesHandler, StrHandler
from blobstore.testing.handler import HandlerSuite

RNG = np.random.default_rng(7)
NOISE = RNG.standard_normal((130, 101))
WALK = RNG.integers(-3, 4, 200_000).cumsum()
RECORD = np.dtype([("x", "<f4"), ("when", "<M8[ms]"), ("name", "<U5"), ("at", "i2", (2, 2))])


def same_array(one, other):
    return (
        type(one) is type(other) is np.ndarray
        and one.dtype == other.dtype
        and one.shape == other.shape
        and np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()
    )


class TestNumpyHandler(HandlerSuite):
    def make_handler(self):
        return NumpyHandler()

    def objects(self):
        return {
            "noise": NOISE.copy(),
            "walk": WALK.copy(),
            "number": np.array(2.5),
            "nothing": np.empty((3, 0, 2), "f4"),
            "zeros": np.zeros((200, 300)),
            "fortran": np.asfortranarray(WALK.reshape(400, 500)),
            "strided": WALK.reshape(100, 2000)[::-3, 5::7],
            "big-endian": WALK[:5000].astype(">i4"),
            "text": np.array(["", "a", "süß\0x"] * 500),
            "bytes": np.array([b"", b"a", b"abc"] * 500),
            "times": WALK[:3000].astype("M8[us]"),
            "record": np.ones(2000, RECORD),
            "booleans": WALK % 3 == 0,
        }

    def equal(self, one, other):
        return same_array(one, other)

    def spoil(self, obj):
        obj[...] = np.ones((), obj.dtype)

    def same(self):
        square = WALK[:90_000].reshape(300, 300)
        return {
            "memory order": (square, np.asfortranarray(square)),
            "strides": (WALK[::2], WALK[::2].copy()),
            "broadcast": (np.broadcast_to(WALK[:10], (5, 10)), np.tile(WALK[:10], (5, 1))),
        }

    def different(self):
        ones = np.ones(12)
        return {
            "shape": (ones.reshape(3, 4), ones.reshape(4, 3)),
            "dimensions": (ones, ones[None]),
            "dtype": (np.zeros(4, "i4"), np.zeros(4, "f4")),
            "byte order": (np.zeros(4, "<i4"), np.zeros(4, ">i4")),
            "unit": (np.zeros(4, "M8[s]"), np.zeros(4, "M8[ms]")),
            "values": (ones, np.arange(12.0)),
            "transposed": (WALK[:90_000].reshape(300, 300), WALK[:90_000].reshape(300, 300).T),
            "sign of zero": (np.array([0.0]), np.array([-0.0])),
            "field names": (np.zeros(2, [("a", "i4")]), np.zeros(2, [("b", "i4")])),
            "nothing": (np.empty((0, 2)), np.empty((0, 3))),
        }

    def refused(self):
        return {
            "objects": np.array([None, 1]),
            "masked": np.ma.array([1, 2], mask=[0, 1]),
            "record array": np.rec.array([(1, 2.0)]),
            "objects in fields": np.zeros(2, [("a", "O")]),
            "text of any length": np.array(["a"], np.dtypes.StringDType()),
            "dimensions": np.zeros((1,) * 9),
            "metadata": np.zeros(2, np.dtype("f4", metadata={"unit": "m"})),
            "no array": 3.0,
        }


class TestBytesHandler(HandlerSuite):
    def make_handler(self):
        return BytesHandler()

    def objects(self):
        return {
            "empty": b"",
            "one": b"x",
            "text": b"to be stored " * 20_000,
            "noise": random.Random(3).randbytes(200_000),
        }

    def different(self):
        return {"values": (b"a", b"b"), "zeros": (b"\0", b"\0\0")}

    def refused(self):
        return {"text": "a", "bytearray": bytearray(b"a"), "view": memoryview(b"a")}


class TestBytearrayHandler(HandlerSuite):
    def make_handler(self):
        return BytearrayHandler()

    def objects(self):
        return {"empty": bytearray(), "text": bytearray(b"to be stored " * 20_000)}

    def spoil(self, obj):
        obj.clear()

    def refused(self):
        return {"bytes": b"a"}


class TestStrHandler(HandlerSuite):
    def make_handler(self):
        return StrHandler()

    def objects(self):
        return {
            "empty": "",
            "plain": "to be stored\r\n" * 10_000,
            "any": "süß \0 \U0001f600 \u2028",
            "surrogate": "\udc80 of a file name",
        }

    def different(self):
        return {"values": ("a", "b"), "composed": ("\u00e9", "e\u0301")}

    def refused(self):
        return {"bytes": b"a", "subclass": type("Text", (str,), {})("a")}


@dataclasses.dataclass
class Model:
    weights: np.ndarray
    name: str


class TestPickleHandler(HandlerSuite):
    def make_handler(self):
        return PickleHandler()

    def objects(self):
        return {
            "none": None,
            "number": 10**40,
            "list": [1, 2.5, "three", b"four", None, (5,)],
            "set": {("a", 1), ("b", 2)},
            "values": [decimal.Decimal("1.10"), datetime.timedelta(days=2), 1 + 2j, range(3)],
            "large": list(range(50_000)),
            "buffers": Model(NOISE.copy(), "noise"),
            "objects": np.array([None, "a", 1.5], object),
        }

    def equal(self, one, other):
        if type(one) is not type(other):
            return False
        if isinstance(one, Model):
            return one.name == other.name and same_array(one.weights, other.weights)
        return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other

    def same(self):
        return {"sets": ({"a", "b", "c"}, {"c", "b", "a"}), "dicts": ({"a": 1}, {"a": 1})}

    def different(self):
        return {
            "bool and number": ([True], [1]),
            "tuple and list": ((1,), [1]),
            "arrays inside": ([np.zeros(3)], [np.zeros(3, "f4")]),
        }

    def refused(self):
        return {"function": lambda: None, "generator": (x for x in ())}


class TestMappingHandler(HandlerSuite):
    def make_handler(self):
        return MappingHandler()

    def objects(self):
        return {
            "flat": {"w": NOISE.copy(), "epoch": 3},
            "nested": {"model": {"layers": [NOISE.copy(), (WALK.copy(), "x")]}, "small": [1.5]},
        }

    def equal(self, one, other):
        if type(one) is not type(other):
            return False
        if isinstance(one, np.ndarray):
            return same_array(one, other)
        if isinstance(one, dict):
            return list(one) == list(other) and all(self.equal(one[k], other[k]) for k in one)
        if isinstance(one, list | tuple):
            return len(one) == len(other) and all(map(self.equal, one, other))
        return one == other

    def spoil(self, obj):
        obj.clear()

    def different(self):
        return {
            "array": ({"w": NOISE}, {"w": NOISE + 1}),
            "rest": ({"w": NOISE, "epoch": 1}, {"w": NOISE, "epoch": 2}),
        }

    def refused(self):
        return {"small": {"a": 1}, "list": [1], "set": {1}}


class TestPandasHandler(HandlerSuite):
    def make_handler(self):
        return PandasHandler()

    def objects(self):
        text = pd.Series(["a", None, "süß"] * 700, name="text")
        index = pd.MultiIndex.from_product([["x", "y"], range(50)], names=["letter", None])
        return {
            "numbers": pd.DataFrame(NOISE, columns=[f"c{i}" for i in range(101)]),
            "mixed": pd.DataFrame(
                {
                    "i": WALK[:3000],
                    "t": pd.date_range("2024", periods=3000, freq="h", tz="UTC"),
                    "c": pd.Categorical(["u", "v", "w"] * 1000),
                }
            ),
            "series": text,
            "index": pd.Series(range(100), index=index),
            "empty": pd.DataFrame(),
        }

    def equal(self, one, other):
        if type(one) is not type(other):
            return False
        check = pd.testing.assert_frame_equal
        if isinstance(one, pd.Series):
            check = pd.testing.assert_series_equal
        try:
            check(one, other, check_freq=False)
        except AssertionError:
            return False
        return True

    def different(self):
        frame = pd.DataFrame({"a": [1, 2]})
        return {
            "column names": (frame, frame.rename(columns={"a": "b"})),
            "dtype": (frame, frame.astype("int32")),
            "index": (frame, frame.set_index(pd.Index([3, 4]))),
            "values": (frame, frame + 1),
        }

    def refused(self):
        return {"subclass": type("Frame", (pd.DataFrame,), {})({"a": [1]}), "dict": {"a": 1}}


@pytest.fixture
def stored_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"to be stored " * 20_000)
    return path


def test_the_file_handler_gives_the_content(stored_file):
    from blobstore.protocols import WriteOptions
    from blobstore.testing.handler import digests, read, write

    handler, same = FileHandler(), BytesHandler()
    plan = handler.plan(LocalFile(stored_file), WriteOptions())
    content = stored_file.read_bytes()
    assert read(handler, plan, write(plan)) == content
    assert digests(plan) == digests(same.plan(content, WriteOptions()))
