"""Handlers of Arrow and polars pass the suite."""

from __future__ import annotations

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from blobstore.handlers.arrow_tables import ArrowHandler
from blobstore.testing.handler import HandlerSuite

RNG = np.random.default_rng(11)
ROWS = 3000
TABLE = pa.table(
    {
        "id": pa.array(range(ROWS), pa.int32()),
        "noise": pa.array(RNG.standard_normal(ROWS)),
        "name": pa.array([None if i % 7 == 0 else f"n{i % 50}" for i in range(ROWS)]),
        "when": pa.array(np.arange(ROWS).astype("M8[us]"), pa.timestamp("us", "Europe/Paris")),
        "lists": pa.array([None if i % 5 == 0 else [i] * (i % 4) for i in range(ROWS)]),
        "rec": pa.array([{"a": i, "b": [str(i)]} if i % 3 else None for i in range(ROWS)]),
    }
)


class TestArrowHandler(HandlerSuite):
    def make_handler(self):
        return ArrowHandler()

    def objects(self):
        schema = pa.schema(
            [pa.field("x", pa.int8(), nullable=False, metadata={"unit": "m"})], {"owner": "me"}
        )
        words = pa.array(["b", "a", "b", None])
        return {
            "table": TABLE,
            "no rows": TABLE.slice(0, 0),
            "no columns": pa.table({}),
            "metadata": pa.table([pa.array([1, 2], pa.int8())], schema=schema),
            "twice": pa.Table.from_arrays([words, words], names=["w", "w"]),
            "dotted": pa.table({"a": words, "a.b": words, "": words}),
            "sliced": TABLE.slice(1000, 700),
            "dictionary": pa.table({"w": words.dictionary_encode(), "n": [1, 2, 3, 4]}),
            "seconds": pa.table({"t": pa.array([2**60, None], pa.timestamp("s"))}),
            "batch": TABLE.to_batches()[0],
            "array": pa.array([1, None, 3]),
            "nulls": pa.nulls(5),
            "structs": TABLE["rec"].chunk(0),
            "dictionary array": words.dictionary_encode(),
            "runs": pa.array([1, 1, 1, 2], pa.run_end_encoded(pa.int32(), pa.int64())),
            "chunked": pa.chunked_array([[1, 2], [], [3]]),
            "no chunks": pa.chunked_array([], pa.string()),
            "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12).reshape(3, 2, 2)),
        }

    def equal(self, one, other):
        if type(one) is not type(other):
            return False
        if isinstance(one, pa.Table | pa.RecordBatch):
            return one.equals(other, check_metadata=True)
        return one.type == other.type and one.equals(other)

    def same(self):
        words = pa.array(["b", "a", "b", None])
        return {
            "chunks": (
                pa.chunked_array([words]),
                pa.chunked_array([words.slice(0, 1), words.slice(1)]),
            ),
            "slices": (
                TABLE.slice(10, 50),
                pa.concat_tables([TABLE.slice(10, 50)]).combine_chunks(),
            ),
        }

    def different(self):
        ones = pa.array([1, 1, 1])
        table = pa.table({"x": ones})
        words = pa.array(["b", "a"])
        spelt = [
            pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array(["a", "b"])),
            pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["b", "a"])),
        ]
        return {
            "kinds": (ones, pa.chunked_array([ones])),
            "table and batch": (table, table.to_batches()[0]),
            "types": (ones, ones.cast("int32")),
            "names": (table, pa.table({"y": ones})),
            "metadata": (table, table.replace_schema_metadata({"a": "b"})),
            "values": (words, words.take(pa.array([1, 0]))),
            "dictionaries": (spelt[0], spelt[1]),
            "encoding": (words, words.dictionary_encode()),
        }

    def refused(self):
        return {"no table": [1], "scalar": pa.scalar(1)}


try:
    import polars as pl
except ModuleNotFoundError:
    pl = None


@pytest.mark.skipif(pl is None, reason="needs polars")
class TestPolarsHandler(HandlerSuite):
    def make_handler(self):
        from blobstore.handlers.polars import PolarsHandler

        return PolarsHandler()

    def objects(self):
        if pl is None:
            return {}
        frame = pl.from_arrow(TABLE)
        start = datetime.datetime(2024, 5, 1)
        return {
            "frame": frame,
            "nothing": pl.DataFrame(),
            "no rows": frame.clear(),
            "lazy": frame.lazy().filter(pl.col("id") > 10),
            "series": frame["name"],
            "types": pl.DataFrame(
                {
                    "cat": pl.Series(["x", None, "y"], dtype=pl.Categorical),
                    "enum": pl.Series(["b", "a", None], dtype=pl.Enum(["b", "a", "unused"])),
                    "dec": pl.Series([decimal.Decimal("1.20"), None, decimal.Decimal(3)]),
                    "when": pl.datetime_range(
                        start, start + datetime.timedelta(2), eager=True, time_zone="Asia/Tokyo"
                    ),
                    "day": [datetime.date(2024, 1, 1), None, datetime.date(1, 1, 1)],
                    "time": [datetime.time(1, 2, 3, 4), None, datetime.time(0)],
                    "for": [datetime.timedelta(1), None, datetime.timedelta(0, 0, 1)],
                    "arr": pl.Series([[1, 2], None, [3, 4]], dtype=pl.Array(pl.Int8, 2)),
                    "u8": pl.Series([1, 2, None], dtype=pl.UInt8),
                    "f32": pl.Series([1.5, float("nan"), None], dtype=pl.Float32),
                    "bin": [b"", b"\0", None],
                    "null": pl.Series([None] * 3, dtype=pl.Null),
                    "": [True, False, None],
                }
            ),
            "nested": pl.DataFrame({"s": [{"a": [1, None], "b": None}, None, {"a": [], "b": "x"}]}),
            "struct without fields": pl.DataFrame({"x": pl.Series([{}, {}], dtype=pl.Struct([]))}),
        }

    def equal(self, one, other):
        if type(one) is not type(other):
            return False
        if isinstance(one, pl.LazyFrame):
            one, other = one.collect(), other.collect()
        if isinstance(one, pl.Series):
            one, other = one.to_frame(), other.to_frame()
        return one.schema == other.schema and one.equals(other, null_equal=True)

    def same(self):
        if pl is None:
            return {}
        frame = pl.DataFrame({"x": [1, 2, 3, 4], "y": list("abca")})
        words = frame["y"]
        return {
            "chunks": (frame, pl.concat([frame[:1], frame[1:]], rechunk=False)),
            "slices": (frame[1:3], frame[1:3].clone().rechunk()),
            "categories": (
                words.cast(pl.Categorical)[1:],
                words[1:].cast(pl.Categorical),
            ),
        }

    def different(self):
        if pl is None:
            return {}
        frame = pl.DataFrame({"x": [1, 2]})
        return {
            "kind": (frame, frame["x"]),
            "lazy": (frame, frame.lazy()),
            "type": (frame, frame.cast(pl.Int32)),
            "names": (frame, frame.rename({"x": "y"})),
            "enums": (
                pl.Series(["a"], dtype=pl.Enum(["a", "b"])),
                pl.Series(["a"], dtype=pl.Enum(["a", "c"])),
            ),
            "categories": (
                pl.Series(["a"], dtype=pl.Categorical),
                pl.Series(["a"], dtype=pl.Categorical(pl.Categories("fruit"))),
            ),
            "namespaces": (
                pl.Series(["a"], dtype=pl.Categorical(pl.Categories("fruit", "a"))),
                pl.Series(["a"], dtype=pl.Categorical(pl.Categories("fruit", "b"))),
            ),
            "nothing": (pl.DataFrame({"x": [None]}), pl.DataFrame({"x": [None, None]})),
        }

    def refused(self):
        if pl is None:
            return {}
        return {
            "objects": pl.DataFrame({"x": pl.Series([object()], dtype=pl.Object)}),
            "128 bits": pl.DataFrame({"x": pl.Series([1], dtype=pl.Int128)}),
            "no frame": {"x": [1]},
        }
