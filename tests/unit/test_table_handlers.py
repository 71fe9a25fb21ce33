"""Arrow and polars: round trips of anything, and reading no more than was asked for."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest
from counting import CountingSource
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore import BlobStore
from blobstore.errors import DecodeError, InvalidInputError
from blobstore.handlers.arrow_tables import ArrowHandler
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.registry import HandlerSet
from blobstore.streams import BytesSource, MemorySink
from blobstore.testing.handler import digests, read, write

INT = st.integers(-(2**31), 2**31 - 1)
TYPES = [
    (pa.int32(), INT),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.bool_(), st.booleans()),
    (pa.float16(), st.floats(width=16, allow_nan=False)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.string(), st.text(max_size=4)),
    (pa.large_string(), st.text(max_size=4)),
    (pa.string_view(), st.text(max_size=20)),
    (pa.binary(), st.binary(max_size=4)),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.date32(), st.dates()),
    (pa.date64(), st.dates()),
    (pa.time32("s"), st.times().map(lambda x: x.replace(microsecond=0))),
    (pa.timestamp("s"), INT),
    (pa.timestamp("ns", "UTC"), st.integers(-(2**62), 2**62)),
    (pa.duration("ms"), INT),
    (pa.decimal128(12, 2), st.decimals(-1000, 1000, places=2)),
    (pa.list_(pa.int32()), st.lists(st.none() | INT, max_size=3)),
    (pa.list_view(pa.int32()), st.lists(st.none() | INT, max_size=3)),
    (pa.list_(pa.int32(), 2), st.lists(st.none() | INT, min_size=2, max_size=2)),
    (
        pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string()))]),
        st.fixed_dictionaries(
            {"a": st.none() | INT, "b": st.none() | st.lists(st.text(max_size=2), max_size=2)}
        ),
    ),
    (
        pa.map_(pa.string(), pa.int32()),
        st.lists(st.tuples(st.text(max_size=2), st.none() | INT), max_size=3),
    ),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a", "b", "c"])),
    (pa.run_end_encoded(pa.int32(), pa.string()), st.sampled_from(["a", "b"])),
    (pa.null(), st.none()),
]
NAMES = st.text(max_size=3)
OPTIONS = st.builds(WriteOptions, st.sampled_from(["lz4", "zstd", "gzip", "none"]))


@st.composite
def tables(draw):
    rows = draw(st.integers(0, 20))
    columns, fields = [], []
    for kind, values in draw(st.lists(st.sampled_from(TYPES), max_size=5)):
        data = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        array = pa.array(data, plain)
        columns.append(array.cast(kind) if plain is not kind else array)
        metadata = draw(st.none() | st.dictionaries(NAMES, NAMES, max_size=2))
        fields.append(pa.field(draw(NAMES), kind, metadata=metadata))
    metadata = draw(st.none() | st.dictionaries(NAMES, NAMES, max_size=2))
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata))
    if rows and draw(st.booleans()):
        cut = draw(st.integers(0, rows))
        return pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    return table


def lists(table):
    return [column.to_pylist() for column in table.columns]


def trip(handler, obj, options=WriteOptions(), **read_options):  # noqa: B008
    plan = handler.plan(obj, options)
    return read(handler, plan, write(plan), **read_options)


@settings(max_examples=60)
@given(tables(), OPTIONS)
def test_any_table_comes_back(table, options):
    found = trip(ArrowHandler(), table, options)
    assert found.schema.equals(table.schema, check_metadata=True)
    assert lists(found) == lists(table)
    assert found.num_rows == table.num_rows or not table.num_columns
    found.validate(full=True)


@settings(max_examples=40)
@given(tables(), st.data())
def test_columns_and_rows_are_those_of_the_table(table, data):
    rows = data.draw(st.slices(table.num_rows))
    names = table.column_names
    columns = data.draw(st.lists(st.sampled_from(names), max_size=3, unique=True)) if names else []
    wanted = [place for name in columns for place, known in enumerate(names) if known == name]
    found = trip(ArrowHandler(), table, columns=columns, rows=rows)
    places = range(*rows.indices(table.num_rows))
    assert found.schema.equals(table.select(wanted).schema)
    expected = [[values[place] for place in places] for values in lists(table)]
    assert lists(found) == [expected[place] for place in wanted]
    assert lists(trip(ArrowHandler(), table, rows=rows)) == expected


@settings(max_examples=30)
@given(tables())
def test_a_digest_is_of_what_a_table_says(table):
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)]).unify_dictionaries()
    whole = chunked.combine_chunks()
    handler = ArrowHandler()
    kinds = [field.type for field in table.schema]
    if any(pa.types.is_run_end_encoded(kind) for kind in kinds):
        return
    assert digests(handler.plan(chunked, WriteOptions())) == digests(
        handler.plan(whole, WriteOptions())
    )


LARGE = 2_000_000


@pytest.fixture(scope="module")
def large_table():
    rng = np.random.default_rng(3)
    return pa.table({name: rng.standard_normal(LARGE) for name in "abcd"})


def counted(handler, obj, **options):
    """What was read, and how many bytes of how many that took."""
    plan = handler.plan(obj, WriteOptions())
    (content,) = write(plan).values()
    source = CountingSource(content)
    part = plan.parts[0]
    stored = StoredPart("data", source, part.encoding().codec, part.handler, 1)
    found = handler.read({"data": stored}, plan.info, **options)
    return found, source.count, len(content)


def as_dictionary(table):
    """What no Parquet file holds as it is."""
    return table.append_column("e", pa.array(["x"] * table.num_rows).dictionary_encode())


@pytest.mark.parametrize("shape", [lambda table: table, as_dictionary], ids=["parquet", "arrow"])
def test_only_the_wanted_columns_are_read(large_table, shape):
    table = shape(large_table)
    found, count, size = counted(ArrowHandler(), table, columns=["c"])
    assert found.equals(large_table.select(["c"]))
    assert count < size * 0.27


@pytest.mark.parametrize("shape", [lambda table: table, as_dictionary], ids=["parquet", "arrow"])
def test_only_the_wanted_rows_are_read(large_table, shape, monkeypatch):
    monkeypatch.setattr("blobstore.handlers.parquet.ROW_GROUP_BYTES", 8 << 20)
    table = shape(large_table)
    found, count, size = counted(ArrowHandler(), table, rows=slice(-5, None), columns=["a"])
    assert found.equals(large_table.select(["a"]).slice(LARGE - 5))
    assert count < size * 0.12


def test_a_store_reads_columns(tmp_path, large_table):
    with BlobStore(tmp_path / "s", verify_on_read=False) as store:
        store.put(large_table.slice(0, 1000), key="k")
        assert store.get("k", columns=["b", "a"], rows=slice(10, 12)).equals(
            large_table.select(["b", "a"]).slice(10, 2)
        )
        with pytest.raises(InvalidInputError, match="no column 'z'"):
            store.get("k", columns=["z"])
        with pytest.raises(InvalidInputError, match="must be a slice"):
            store.get("k", rows=3)
        with pytest.raises(InvalidInputError, match="list of names"):
            store.get("k", columns="a")


def test_an_extension_type_that_nobody_knows_is_no_plain_type():
    class Celsius(pa.ExtensionType):
        def __init__(self):
            super().__init__(pa.float64(), "blobstore.celsius")

        def __arrow_ext_serialize__(self):
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage, serialized):
            return cls()

    pa.register_extension_type(Celsius())
    try:
        array = pa.ExtensionArray.from_storage(Celsius(), pa.array([20.5]))
        plan = ArrowHandler().plan(array, WriteOptions())
        stored = write(plan)
        assert read(ArrowHandler(), plan, stored).equals(array)
    finally:
        pa.unregister_extension_type("blobstore.celsius")
    with pytest.raises(DecodeError, match=r"blobstore\.celsius"):
        read(ArrowHandler(), plan, stored)


def test_arrays_have_no_columns():
    with pytest.raises(InvalidInputError, match="no columns"):
        trip(ArrowHandler(), pa.array([1]), columns=["a"])
    assert trip(ArrowHandler(), pa.array([1, 2, 3]), rows=slice(None, None, -2)).to_pylist() == [
        3,
        1,
    ]


def test_a_file_of_another_length_is_refused():
    plan = ArrowHandler().plan(pa.table({"x": [1, 2]}), WriteOptions())
    (content,) = write(plan).values()
    part = StoredPart("data", BytesSource(content), "lz4", "arrow", 1)
    with pytest.raises(DecodeError, match="2 rows"):
        ArrowHandler().read({"data": part}, {**plan.info, "rows": 3})


def test_every_array_class_is_found():
    for array in (pa.array([1]), pa.array(["a"]), pa.array([[1]]), pa.nulls(1)):
        assert HandlerSet().plan(array, WriteOptions()).handler.name == "arrow"


# --- polars --------------------------------------------------------------------------------------

pl = pytest.importorskip("polars")

from polars.testing import assert_frame_equal  # noqa: E402
from polars.testing.parametric import dataframes  # noqa: E402

from blobstore.handlers.polars import PolarsHandler  # noqa: E402


@settings(max_examples=60)
@given(
    dataframes(
        max_cols=5,
        max_size=20,
        excluded_dtypes=[pl.Object, pl.Int128, pl.UInt128],
    ),
    OPTIONS,
)
def test_any_frame_comes_back(frame, options):
    found = trip(PolarsHandler(), frame, options)
    assert found.schema == frame.schema
    assert_frame_equal(found, frame, check_exact=True)
    digest = digests(PolarsHandler().plan(frame, options))
    assert digests(PolarsHandler().plan(found, options)) == digest


def test_a_lazy_frame_is_computed_and_comes_back_lazy(tmp_path):
    with BlobStore(tmp_path) as store:
        lazy = pl.DataFrame({"x": [1, 2, 3]}).lazy().filter(pl.col("x") > 1)
        store.put(lazy, key="k")
        found = store["k"]
        assert isinstance(found, pl.LazyFrame)
        assert found.select(pl.col("x").sum()).collect().item() == 5
        assert store.get("k", columns=["x"], rows=slice(1)).collect().height == 1


def test_polars_reads_only_the_wanted_columns():
    frame = pl.DataFrame({name: np.random.default_rng(1).random(500_000) for name in "abcd"})
    found, count, size = counted(PolarsHandler(), frame, columns=["b"])
    assert found.equals(frame.select("b"))
    assert count < size * 0.27


def test_any_tool_reads_the_file(tmp_path):
    frame = pl.DataFrame({"when": [datetime.date(2024, 1, 1)], "word": ["a"]})
    with MemorySink() as sink:
        PolarsHandler().plan(frame, WriteOptions()).parts[0].write(sink)
    (tmp_path / "x.parquet").write_bytes(sink.content)
    assert pl.read_parquet(tmp_path / "x.parquet").equals(frame)


def test_without_polars_a_frame_says_what_to_install(tmp_path):
    import subprocess
    import sys

    with BlobStore(tmp_path) as store:
        store.put(pl.DataFrame({"x": [1]}), key="k")
    code = f"""
import sys
sys.modules["polars"] = None
from blobstore import BlobStore, MissingDependencyError
with BlobStore({str(tmp_path)!r}) as store:
    try:
        store["k"]
    except MissingDependencyError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "blobstore[polars]" in done.stdout
