"""Tables that no writer would write: whoever made them knows how they are checked."""

from __future__ import annotations

import io
import itertools
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blobstore import AutoStore
from blobstore.errors import DecodeError
from blobstore.handlers import ipc_growth, parquet_growth
from blobstore.handlers.dense import leaf_types, object_bytes
from blobstore.handlers.parquet_growth import check_file
from blobstore.handlers.parquet_pages import DICTIONARY, Page, longest_text
from blobstore.protocols import StoredPart
from blobstore.streams import BytesSource
from blobstore.trust import Trust
from tests.security import parquet_by_hand as by_hand
from tests.security.parquet_by_hand import I32, I64

MIB = 1 << 20
ROWS = 20_000
LIMIT = "max_decompressed_bytes"
POOLS: list[pa.MemoryPool] = []
"""Kept, since what was taken from them may be given back late."""

# --- Parquet: what readers take in ways of their own ----------------------------------------------


def repeated_text(text=b"x" * 1000, *, rows=ROWS, converted=by_hand.UTF8, head=(), body=(), **how):
    """A text in a dictionary, to which all rows refer."""
    references = by_hand.levels(1, rows) + b"\1" + by_hand.run(0, rows)
    pages = [
        by_hand.dictionary_page(by_hand.sized(text), how.pop("entries", 1)),
        by_hand.data_page(references, rows, how.pop("encoding", 8), head=head, body=body),
    ]
    nodes = [by_hand.element("a", by_hand.BYTE_ARRAY, converted=converted)]
    return by_hand.parquet(nodes, by_hand.BYTE_ARRAY, ["a"], pages, rows, **how)


def refused(data, limit=MIB, match=LIMIT):
    """Whether a file is refused, and nothing much is taken for it meanwhile."""
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    POOLS.append(pool)
    pa.set_memory_pool(pool)
    try:
        with pytest.raises((DecodeError, pa.ArrowInvalid), match=match):
            check_file(io.BytesIO(data), limit)
    finally:
        pa.set_memory_pool(usual)
    return pool.max_memory() < 16 * limit


def test_a_file_made_by_hand_is_read():
    table = pq.ParquetFile(io.BytesIO(repeated_text())).read()
    assert table["a"].nbytes > ROWS * 1000
    assert refused(repeated_text())
    check_file(io.BytesIO(repeated_text()), 40 * MIB)


@pytest.mark.parametrize(
    "facts",
    [
        {"body": [(2, I64, by_hand.PLAIN)]},  # readers skip a field of another type
        {"body": [(2 + (1 << 16), I32, 8)], "encoding": by_hand.PLAIN},  # is field 2, in 16 bits
        {"body": [(2, I32, 8)], "encoding": by_hand.PLAIN},
        {"head": [(2, I64, 10)]},
        {"head": [(1, I32, 1)]},
        {"head": [(9, I32, 1 << 40)]},
    ],
    ids=["other type", "wrapped", "twice", "size twice", "kind twice", "too many bits"],
)
def test_headers_of_pages_that_say_two_things(facts):
    data = repeated_text(**facts)
    assert pq.ParquetFile(io.BytesIO(data)).metadata.num_rows == ROWS
    refused(data, match="header of a Parquet page")


def test_a_header_of_very_many_fields_takes_no_time():
    many = b"\x19" + b"\xf8" + by_hand.varint(MIB) + bytes(MIB)  # a list of empty texts
    content = many + by_hand.data_page(bytes(16), 2)
    nodes = [by_hand.element("a", by_hand.INT64)]
    data = by_hand.parquet(nodes, by_hand.INT64, ["a"], [content], 2)
    refused(data, match="too many fields")


def test_columns_in_one_place_are_not_read_as_often_as_they_are_told_of():
    page = by_hand.data_page(by_hand.levels(1, 1000) + bytes(8000), 1000)
    nodes = [by_hand.element("a", by_hand.INT64)]
    data = by_hand.parquet(nodes, by_hand.INT64, ["a"], [page], 1000, groups=100)
    assert pq.ParquetFile(io.BytesIO(data)).read().num_rows == 100_000
    refused(data, 100 * MIB, match="larger than the file")


@pytest.mark.parametrize("entries", [1 << 28, (1 << 31) - 1])
def test_a_dictionary_of_more_entries_than_it_has(entries):
    assert refused(repeated_text(b"x", rows=10, entries=entries))


def test_a_footer_of_more_values_than_there_are():
    page = by_hand.data_page(by_hand.levels(1, 2) + bytes(16), 2)
    empty = by_hand.data_page(bytes(200), 0)  # ends the search for more
    nodes = [by_hand.element("a", by_hand.INT64)]
    data = by_hand.parquet(nodes, by_hand.INT64, ["a"], [page], 2, values=1 << 40, after=empty)
    assert refused(data)


def test_text_that_stands_for_numbers_is_not_spread_out_to_be_counted():
    """Arrow keeps no dictionary of such, so all rows of a batch would take the length of one."""
    data = repeated_text(b"\0" * 10_000, converted=by_hand.DECIMAL)
    assert refused(data, match="Invalid BYTE_ARRAY length")


def test_texts_with_shared_beginnings_in_many_columns():
    text = pa.array(["x" * 5000]).take(pa.array([0] * 2000))
    table = pa.table({f"c{i}": text for i in range(30)})
    how = {"compression": "none", "use_dictionary": False}
    file = io.BytesIO()
    pq.write_table(
        table, file, **how, column_encoding=dict.fromkeys(table.column_names, "DELTA_BYTE_ARRAY")
    )
    assert refused(file.getvalue())


def test_values_that_are_wider_in_memory():
    """A decimal of one byte in a file has 16."""
    references = by_hand.levels(1, ROWS) + b"\1" + by_hand.run(0, ROWS)
    pages = [by_hand.dictionary_page(b"\1"), by_hand.data_page(references, ROWS, 8)]
    nodes = [by_hand.element("a", by_hand.FIXED, length=1, converted=by_hand.DECIMAL)]
    data = by_hand.parquet(nodes, by_hand.FIXED, ["a"], pages, ROWS)
    size = pq.ParquetFile(io.BytesIO(data)).read().nbytes
    assert size == 16 * ROWS
    assert refused(data, size - 1)
    check_file(io.BytesIO(data), 2 * size)


def test_lists_in_lists_have_places_of_their_own():
    depth = 48
    nodes = [
        by_hand.element("l", children=1, converted=by_hand.LISTS),
        by_hand.element("list", repetition=2, children=1),
    ] * depth
    nodes.append(by_hand.element("e", by_hand.INT32))
    page = by_hand.data_page(by_hand.levels(0, ROWS, 6) + by_hand.levels(2 * depth, ROWS, 7), ROWS)
    data = by_hand.parquet(nodes, by_hand.INT32, ["l", "list"] * depth + ["e"], [page], ROWS)
    size = pq.ParquetFile(io.BytesIO(data)).read().nbytes
    assert size > 4 * ROWS * depth
    assert refused(data, size * 3 // 4)


def test_leaves_are_those_of_the_file():
    kinds = [
        pa.null(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.list_(pa.struct({"a": pa.int8(), "b": pa.map_(pa.string(), pa.list_(pa.int8()))})),
        pa.list_(pa.int8(), 3),
        pa.fixed_shape_tensor(pa.int8(), [2, 2]),
        pa.bool8(),
        pa.uuid(),
        pa.large_list(pa.string_view()),
    ]
    table = pa.table({str(i): pa.array([], kind) for i, kind in enumerate(kinds)})
    file = io.BytesIO()
    pq.write_table(table, file)
    leaves = list(itertools.chain.from_iterable(map(leaf_types, kinds)))
    assert len(leaves) == len(pq.ParquetFile(file).schema)
    check_file(file, MIB)


def test_a_footer_that_contradicts_itself_does_not_end_the_process(tmp_path):
    """Statistics of three levels where there are four, in either of two columns."""
    lists = [[1], [], None] * 40
    file = io.BytesIO()
    pq.write_table(pa.table({"a": lists, "b": lists}), file)
    data = file.getvalue()
    (size,) = struct.unpack("<I", data[-8:-4])
    three = b"\x19\x46"  # a list of four numbers of 64 bits
    places = [i for i in range(len(data) - size, len(data)) if data[i : i + 2] == three]
    assert places
    for place in places:
        damaged = data[:place] + b"\x19\x36" + data[place + 2 :]
        (tmp_path / "t.parquet").write_bytes(damaged)
        with AutoStore(tmp_path) as store, pytest.raises(DecodeError, match=r"t\.parquet"):
            store["t"]


def test_a_file_of_no_columns_is_checked():
    file = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2]}).select([]), file)
    check_file(file, MIB)
    pq.write_table(pa.table({"a": [1, 2]}), file := io.BytesIO())
    parquet_growth.check_growth(pq.ParquetFile(file), file, [0], [], MIB)


# --- Arrow files ----------------------------------------------------------------------------------


def arrow_file(table) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def with_blocks(data: bytes, count: int) -> bytes:
    """The same file, whose footer tells of its batch many times."""
    (size,) = struct.unpack("<i", data[-10:-6])
    footer = bytearray(data[-10 - size : -10])
    (root,) = struct.unpack_from("<I", footer)
    vtable = root - struct.unpack_from("<i", footer, root)[0]
    field = root + struct.unpack_from("<H", footer, vtable + 4 + 2 * 3)[0]
    blocks = field + struct.unpack_from("<I", footer, field)[0]
    block = bytes(footer[blocks + 4 : blocks + 28])
    footer += bytes(-(len(footer) + 4) % 8)
    struct.pack_into("<I", footer, field, len(footer) - field)
    footer += struct.pack("<I", count) + block * count
    return data[: -10 - size] + bytes(footer) + struct.pack("<i", len(footer)) + b"ARROW1"


def test_batches_keep_the_whole_that_they_are_parts_of():
    """A batch of a few bytes in a large body, which each of many batches holds."""
    text = np.random.default_rng(0).bytes(2 * MIB)
    data = arrow_file(pa.table({"a": pa.array([1], pa.int8()), "b": pa.array([text])}))
    data = data.replace(struct.pack("<q", len(text)), bytes(8), 1)  # no such buffer
    data = data.replace(struct.pack("<ii", 0, len(text)), bytes(8), 1)
    data = with_blocks(data, 100)
    assert pa.ipc.open_file(io.BytesIO(data)).read_all().to_pydict() == {
        "a": [1] * 100,
        "b": [b""] * 100,
    }
    with pytest.raises(DecodeError, match=LIMIT):
        ipc_growth.check_growth(io.BytesIO(data), 100 * MIB)
    ipc_growth.check_growth(io.BytesIO(data), 300 * MIB)


def test_long_messages_in_one_place_are_not_looked_through_again_and_again():
    wide = pa.table({f"c{i}": pa.array([1], pa.int8()) for i in range(1000)})
    data = with_blocks(arrow_file(wide), 100)
    with pytest.raises(DecodeError, match="in one place"):
        ipc_growth.check_growth(io.BytesIO(data), 100 * MIB)


# --- pandas ---------------------------------------------------------------------------------------

INT64 = {"kind": "numpy", "dtype": "int64"}
RANGE = {"kind": "range", "start": 0, "stop": 10**15, "step": 1, "name": None}
CATEGORY = {"kind": "category", "ordered": False, "categories": RANGE}


def pandas_file(column, **facts) -> bytes:
    rows = len(column)
    told = {
        "format": 1,
        "kind": "frame",
        "rows": rows,
        "columns": {"kind": "labels", "values": ["a"], "name": None},
        "types": [INT64],
        "index": {**RANGE, "stop": rows},
        "attrs": {},
        "allows_duplicate_labels": True,
    }
    table = pa.table({"a": column})
    file = io.BytesIO()
    text = json.dumps({**told, **facts}).encode()
    pq.write_table(table.replace_schema_metadata({b"blobstore": text}), file)
    return file.getvalue()


def read_pandas(data, **options):
    handler = pytest.importorskip("blobstore.handlers.pandas").PandasHandler()
    trust = Trust(max_decompressed=MIB)
    part = StoredPart("data", BytesSource(data), "none", "pandas", 1, trust)
    return handler.read({"data": part}, {}, **options)


def test_facts_made_by_hand_are_read():
    assert read_pandas(pandas_file([1, 2])).shape == (2, 1)


@pytest.mark.parametrize(
    ("column", "facts", "message"),
    [
        ([b"x"] * 2, {"types": [{"kind": "numpy", "dtype": "S1000000"}]}, "no column of numbers"),
        (["x"] * 2, {"types": [{"kind": "numpy", "dtype": "U1000000"}]}, "no column of numbers"),
        (
            [1],
            {"types": [{"kind": "temporal", "dtype": "(1000,1000)M", "unit": "ns"}]},
            "no column of times",
        ),
        ([1, 2], {"types": [CATEGORY]}, LIMIT),
        ([1, 2], {"types": [{**CATEGORY, "categories": {**RANGE, "stop": 10**7}}]}, LIMIT),
        ([1, 2], {"columns": RANGE}, "labels and 1 columns"),
        ([1, 2], {"columns": {**RANGE, "stop": 10**30}}, "no table that blobstore wrote"),
    ],
    ids=["bytes", "text", "times", "categories", "fewer categories", "labels", "more labels"],
)
def test_facts_that_ask_for_much(column, facts, message):
    data = pandas_file(column, **facts)
    for options in ({}, {"columns": ["a"]}):
        with pytest.raises(DecodeError, match=message):
            read_pandas(data, **options)


def test_levels_of_an_index_that_ask_for_much():
    index = {"kind": "multi", "names": ["i"], "levels": [CATEGORY]}
    facts = {"types": [], "columns": {"kind": "labels", "values": [], "name": None}}
    with pytest.raises(DecodeError, match=LIMIT):
        read_pandas(pandas_file([1, 2], index=index, **facts))


def test_ranges_that_are_small_are_read():
    few = {**CATEGORY, "categories": {**RANGE, "stop": 5}}
    assert list(read_pandas(pandas_file([1, 2], types=[few]))["a"]) == [1, 2]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[]] * 50_000, pa.list_(pa.int8())),
        pa.array([{"a": 1}] * 50_000),
        pa.array([[{"a": 1}] * 50_000]),
        pa.array([[("a", 1)]] * 20_000, pa.map_(pa.string(), pa.int8())),
        pa.array([None] * 50_000, pa.decimal128(5)),
    ],
    ids=["lists", "structures", "structures in a list", "maps", "decimals"],
)
def test_an_autostore_makes_no_flood_of_objects(tmp_path, values):
    pytest.importorskip("pandas")
    pq.write_table(pa.table({"a": values}), tmp_path / "t.parquet")
    with AutoStore(tmp_path, max_decompressed_bytes=2 * MIB) as store:
        assert store.load("t", library="pyarrow").num_rows == len(values)
        with pytest.raises(DecodeError, match=LIMIT):
            store.load("t", library="pandas")
    with AutoStore(tmp_path) as store:
        assert len(store.load("t", library="pandas")) == len(values)
    assert object_bytes(values) > 2 * MIB


@pytest.mark.parametrize("notes", ["[[", "7", '{"columns": 7}', "[" * 100_000])
def test_notes_of_pandas_that_are_none(tmp_path, notes):
    pytest.importorskip("pandas")
    table = pa.table({"a": [1]}).replace_schema_metadata({b"pandas": notes.encode()})
    pq.write_table(table, tmp_path / "t.parquet")
    with AutoStore(tmp_path) as store, pytest.raises(DecodeError, match=r"t\.parquet"):
        store["t"]


# --- honest files are checked fast ----------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd"])
def test_text_of_many_values_is_not_read_to_be_checked(monkeypatch, codec):
    """A look into the dictionary tells that no text is long, however large the dictionary is."""
    names = [f"name-{i % 1500:05}" for i in range(ROWS)]
    file = io.BytesIO()
    pq.write_table(pa.table({"a": names}), file, compression=codec)
    monkeypatch.setattr(parquet_growth, "_count", lambda *_: pytest.fail("it was read"))
    check_file(file, MIB)


@pytest.mark.parametrize("entries", [0, 1, 2, 3, 1 << 20])
def test_a_look_into_a_dictionary(entries):
    data = by_hand.sized(b"short") + by_hand.sized(b"longer")
    page = Page(DICTIONARY, len(data), entries, 0, slice(3, 3 + len(data)))
    file = io.BytesIO(b"PAR" + data + b"more")
    known = {0: 0, 1: 5, 2: 6}
    assert longest_text(file, page, "UNCOMPRESSED") == known.get(entries, len(data))
    assert longest_text(file, page, "ZSTD") == len(data)
    assert longest_text(file, page, "LZ4") == len(data)
