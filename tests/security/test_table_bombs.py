"""Tables that a few bytes stand for are refused before they take the memory."""

from __future__ import annotations

import contextlib
import io
import itertools
import sqlite3

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore import AutoStore, BlobStore
from blobstore.errors import ConfigError, DecodeError, IntegrityError
from blobstore.handlers import ipc_growth
from blobstore.handlers.dense import dense_bytes
from blobstore.handlers.parquet_growth import check_file, check_growth
from blobstore.handlers.parquet_pages import DATA, DATA_V2, pages
from blobstore.importing import import_folder
from blobstore.limits import UNLIMITED
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.streams import BytesSource, MemorySink
from blobstore.trust import Trust

MIB = 1 << 20
KEY, OTHER = bytes(32), b"x" * 32
ROWS = 20_000


def parquet_file(table, **options) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file


def mixed_table() -> pa.Table:
    rng = np.random.default_rng(0)
    pairs = pa.map_(pa.string(), pa.string())
    return pa.table(
        {
            "noise": rng.normal(size=ROWS),
            "flag": rng.integers(0, 2, ROWS).astype(bool),
            "equal": ["x" * 100] * ROWS,
            "unlike": [str(number) for number in range(ROWS)],
            "list": [["y" * 100] * 3] * ROWS,
            "struct": [{"k": "z" * 50}] * ROWS,
            "map": pa.array([[("k", "v" * 100)]] * ROWS, pairs),
            "nothing": pa.nulls(ROWS, pa.string()),
            "decimal": pa.array([None] * ROWS, pa.decimal128(30, 2)),
        }
    )


# --- Parquet --------------------------------------------------------------------------------------

CODECS = ("none", "snappy", "gzip", "brotli", "zstd", "lz4")
ENCODINGS = (None, "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_every_page_is_seen_and_its_size(codec, version, encoding):
    options = {}
    if encoding:
        options = {
            "use_dictionary": False,
            "column_encoding": {"equal": encoding, "unlike": encoding},
        }
    file = parquet_file(
        mixed_table(),
        compression=codec,
        data_page_version=version,
        data_page_size=20_000,
        row_group_size=ROWS // 2 + 1,
        **options,
    )
    facts = pq.ParquetFile(file).metadata
    for group, leaf in itertools.product(range(facts.num_row_groups), range(facts.num_columns)):
        chunk = facts.row_group(group).column(leaf)
        found = list(pages(file, chunk))
        values = sum(page.values for page in found if page.kind in (DATA, DATA_V2))
        assert values == chunk.num_values
        # What the footer counts besides are the headers.
        size = sum(page.size for page in found)
        heads = chunk.total_uncompressed_size - size
        assert heads < 700 * len(found)
        assert heads > -100 - size // 100  # noise is a little larger compressed than as it is


texts = st.text(max_size=30) | st.none()
columns = st.one_of(
    st.lists(texts, min_size=1, max_size=5).map(lambda x: pa.array(x, pa.string())),
    st.lists(st.lists(texts, max_size=4) | st.none(), min_size=1, max_size=5).map(
        lambda x: pa.array(x, pa.list_(pa.string()))
    ),
    st.lists(st.integers(-5, 5) | st.none(), min_size=1, max_size=5).map(
        lambda x: pa.array(x, pa.int64())
    ),
    st.lists(st.fixed_dictionaries({"a": texts}) | st.none(), min_size=1, max_size=5).map(
        lambda x: pa.array(x, pa.struct([("a", pa.string())]))
    ),
    st.lists(st.booleans() | st.none(), min_size=1, max_size=5).map(
        lambda x: pa.array(x, pa.bool_())
    ),
)


@given(
    columns,
    st.integers(1, 3000),
    st.sampled_from(CODECS),
    st.sampled_from(["1.0", "2.0"]),
    st.sampled_from(ENCODINGS),
)
def test_a_table_is_refused_if_it_takes_more_and_read_if_it_takes_less(
    column, times, codec, version, encoding
):
    """Repeated a few thousand times, so that dictionaries and run lengths have their say."""
    table = pa.table({"c": pa.chunked_array([column] * times).combine_chunks()})
    options = {}
    if encoding and pa.types.is_string(column.type):
        options = {"use_dictionary": False, "column_encoding": {"c": encoding}}
    file = parquet_file(table, compression=codec, data_page_version=version, **options)
    size = pq.ParquetFile(file).read().get_total_buffer_size()
    check_file(file, 4 * size + 1000)
    if size > 2000:
        with pytest.raises(DecodeError, match="max_decompressed_bytes"):
            check_file(file, size // 3)


def test_only_what_is_read_counts():
    table = pa.table({"big": ["x" * 1000] * ROWS, "a": [1] * ROWS, "a.b": ["y" * 1000] * ROWS})
    file = parquet_file(table, row_group_size=ROWS // 4)
    parquet = pq.ParquetFile(file)
    check_growth(parquet, file, range(4), ["a"], 30 * MIB)
    with pytest.raises(DecodeError):
        check_growth(parquet, file, range(4), ["a", "big"], 30 * MIB)
    check_growth(parquet, file, [1], ["a", "big"], 30 * MIB)


@pytest.mark.parametrize(
    "values",
    [
        pa.nulls(1, pa.list_(pa.string())).take(pa.array([0] * 2_000_000)),
        pa.array([[None] * 2_000_000]),
        pa.array([["x" * 1000] * 20_000]),
        pa.array([b"x" * 1000] * 20_000, pa.binary(1000)),
        pa.array([7] * 2_000_000),
    ],
    ids=[
        "null lists",
        "a list of nulls",
        "a list of texts",
        "fixed bytes",
        "numbers",
    ],
)
def test_what_a_few_bytes_stand_for(values):
    file = parquet_file(pa.table({"c": values}), compression="zstd")
    assert len(file.getvalue()) < 100_000
    with pytest.raises(DecodeError, match="max_decompressed_bytes"):
        check_file(file, 4_000_000)
    check_file(file, 100 * MIB)
    check_file(file, UNLIMITED)


def test_nested_text_with_shared_beginnings():
    table = pa.table({"c": [["x" * 1000] * 3] * 1000})
    options = {"use_dictionary": False, "column_encoding": {"c.list.element": "DELTA_BYTE_ARRAY"}}
    file = parquet_file(table, **options)
    check_file(file, 2 << 30)
    with pytest.raises(DecodeError, match="DELTA_BYTE_ARRAY"):
        check_file(file, MIB)


def test_a_page_that_asks_for_more_than_the_footer_says():
    """The head of a page is believed by readers, so it is what counts."""
    table = pa.table({"c": np.zeros(100, int)})
    file = parquet_file(table, use_dictionary=False, compression="zstd")
    data = file.getvalue()
    chunk = pq.ParquetFile(file).metadata.row_group(0).column(0)
    start = chunk.data_page_offset
    (page,) = pages(file, chunk)
    honest = b"\x15\x00\x15" + varint(page.size)  # type: data; uncompressed size
    assert data[start:].startswith(honest)
    hostile = data[:start] + b"\x15\x00\x15" + varint((1 << 31) - 1) + data[start + len(honest) :]
    with pytest.raises(DecodeError, match="max_decompressed_bytes"):
        check_file(io.BytesIO(hostile), 1 << 30)


def varint(number: int) -> bytes:
    number, found = number * 2, bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


@given(st.data())
def test_damaged_heads_of_pages_are_no_crash(data):
    """Whatever the bytes are, the answer is a number of pages or `DecodeError`, and soon."""
    file = parquet_file(pa.table({"c": ["a", "b", "a", None] * 50, "l": [[1], [], None, [2]] * 50}))
    content = bytearray(file.getvalue())
    facts = pq.ParquetFile(file).metadata.row_group(0)
    chunk = facts.column(data.draw(st.integers(0, 1)))
    start = chunk.dictionary_page_offset
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(start, start + chunk.total_compressed_size - 1))
        content[place] = data.draw(st.integers(0, 255))
    try:
        found = sum(1 for _ in pages(io.BytesIO(bytes(content)), chunk))
    except DecodeError:
        return
    assert found <= len(content)


# --- Arrow files ----------------------------------------------------------------------------------


def ipc_file(table, codec) -> io.BytesIO:
    file = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=codec, unify_dictionaries=True)
    with pa.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=ROWS // 3)
    return file


def all_buffers(table) -> int:
    """Bytes of what is in an Arrow file without compression."""
    return len(ipc_file(table, None).getvalue())


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
def test_an_arrow_file_is_measured(codec):
    table = mixed_table()
    table = table.append_column("category", table["equal"].combine_chunks().dictionary_encode())
    table = table.append_column("view", table["unlike"].cast(pa.string_view()))
    file, size = ipc_file(table, codec), all_buffers(table)
    ipc_growth.check_growth(file, size)
    with pytest.raises(DecodeError, match="max_decompressed_bytes"):
        ipc_growth.check_growth(file, int(size * 0.9))
    ipc_growth.check_growth(file, UNLIMITED)


@given(st.data())
def test_damaged_arrow_files_are_no_crash(data):
    file = ipc_file(pa.table({"c": ["a", "b", "a", None] * 50}), "zstd")
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        ipc_growth.check_growth(io.BytesIO(bytes(content)), 1 << 30)


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"ARROW1\0\0" + bytes(50) + b"ARROW1"])
def test_what_is_no_arrow_file(content):
    with pytest.raises(DecodeError):
        ipc_growth.check_growth(io.BytesIO(content), MIB)


@pytest.mark.parametrize(
    ("value", "size"),
    [(["x" * 100], 104), ([7], 12), ([[1, 2, 3]], 32), ([{"a": "bb"}], 14), ([None], 4)],
)
def test_dictionaries_count_as_often_as_they_are_referred_to(value, size):
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(value))
    assert dense_bytes(column) == pytest.approx(1000 * size, rel=0.5)
    lists = pa.ListArray.from_arrays(pa.array(range(0, 1001, 10), pa.int32()), column)
    assert dense_bytes(lists) == pytest.approx(1000 * size, rel=0.5)


# --- stores ---------------------------------------------------------------------------------------


def frames():
    """A table of each kind that takes 20 MB, or 40 MB, and next to nothing in a file."""
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    equal = ["x" * 1000] * ROWS
    category = pl.DataFrame({"c": [[1] * 100]}).to_arrow()["c"].combine_chunks()
    places = pa.array([0] * ROWS, pa.int32())
    yield "pandas", pd.DataFrame({"c": equal})
    yield "polars", pl.DataFrame({"c": equal})
    yield "arrow", pa.table({"c": equal})
    yield (
        "arrow file",
        pa.table({"c": np.zeros(5 * MIB), "": np.zeros(5 * MIB)}).rename_columns(["c", "c"]),
    )
    yield "dictionary", pa.table({"c": pa.DictionaryArray.from_arrays(places, category)})


@pytest.mark.parametrize("name", ["pandas", "polars", "arrow", "arrow file"])
def test_a_store_refuses_what_grows_too_much(tmp_path, name):
    frame = dict(frames())[name]
    with BlobStore(tmp_path, compression="zstd", signing_keys=[KEY]) as store:
        store["table"] = frame
        assert store.entry("table").size < 60_000
    limited = BlobStore(tmp_path, signing_keys=[OTHER], max_decompressed_bytes=MIB)
    with limited as store, pytest.raises(DecodeError, match="max_decompressed_bytes") as caught:
        store["table"]
    assert caught.value.key == "table"
    generous = BlobStore(tmp_path, signing_keys=[OTHER], max_decompressed_bytes=200 * MIB)
    with generous as store:
        assert type(store["table"]) is type(frame)
    with BlobStore(tmp_path, pickle="allow", max_decompressed_bytes=MIB) as store:
        assert store["table"].shape == frame.shape


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow"])
def test_categories_count_as_they_are_in_memory(tmp_path, kind):
    """A text for each row would take 20 MB; there is a number for each instead."""
    equal = ["x" * 1000] * ROWS
    if kind == "pandas":
        frame = pytest.importorskip("pandas").DataFrame({"c": equal}).astype("category")
    elif kind == "polars":
        pl = pytest.importorskip("polars")
        frame = pl.DataFrame({"c": equal}, schema={"c": pl.Categorical})
    else:
        frame = pa.table({"c": pa.array(equal).dictionary_encode()})
    with BlobStore(tmp_path, signing_keys=[KEY]) as store:
        store["table"] = frame
    with BlobStore(tmp_path, signing_keys=[OTHER], max_decompressed_bytes=MIB) as store:
        assert type(store["table"]) is type(frame)
    pq.write_table(pa.table({"c": pa.array(equal).dictionary_encode()}), tmp_path / "c.parquet")
    with AutoStore(tmp_path, max_decompressed_bytes=MIB) as files:
        assert len(files.load("c", library="pyarrow" if kind == "arrow" else kind)) == ROWS


def test_a_column_of_text_that_lies_in_a_dictionary_is_written_out():
    """In pandas a text is a text, whatever the Arrow schema of the file says."""
    pd = pytest.importorskip("pandas")
    from blobstore.handlers.pandas import PandasHandler

    handler = PandasHandler()
    (planned,) = handler.plan(pd.DataFrame({"c": ["x" * 1000] * ROWS}), WriteOptions()).parts
    with MemorySink() as sink:
        planned.write(sink)
    honest = pq.ParquetFile(io.BytesIO(sink.content))
    text = honest.read()["c"]
    crafted = pa.table({"c": text.cast(pa.dictionary(pa.int32(), text.type))})
    file = io.BytesIO()
    with pq.ParquetWriter(file, crafted.schema) as writer:
        writer.write_table(crafted)
        writer.add_key_value_metadata({b"blobstore": honest.metadata.metadata[b"blobstore"]})

    def read(trust):
        part = StoredPart("data", BytesSource(file.getvalue()), "lz4", "pandas", 1, trust)
        return handler.read({"data": part}, {})

    with pytest.raises(DecodeError, match="max_decompressed_bytes"):
        read(Trust(max_decompressed=MIB))
    assert len(read(Trust())) == ROWS


def test_polars_writes_out_no_dictionary_beyond_the_limit(tmp_path):
    """In the file of another each row refers to one long list; in polars each has its own."""
    from blobstore.handlers.polars import _check_growth

    table = dict(frames())["dictionary"]
    with pytest.raises(DecodeError, match="max_decompressed_bytes"):
        _check_growth(table, MIB)
    _check_growth(table, 100 * MIB)


@pytest.mark.parametrize("kind", ["table", "bytes", "file"])
def test_what_is_large_is_signed_so_that_its_writer_reads_it(tmp_path, monkeypatch, kind):
    from blobstore import limits

    monkeypatch.setattr(limits, "SIGNED_FROM", 10 * MIB)
    file = tmp_path / "file.bin"
    file.write_bytes(bytes(20 * MIB))
    own = {"compression": "zstd", "signing_keys": [KEY], "max_decompressed_bytes": MIB}
    with BlobStore(tmp_path / "store", **own) as store:
        if kind == "file":
            store.put_file(file, "k")
        else:
            store["k"] = (
                pa.table({"c": ["x" * 1000] * ROWS}) if kind == "table" else bytes(20 * MIB)
            )
        store["small"] = pa.table({"c": [1, 2]})
        assert store.entry("k").signature
        assert store.entry("small").signature is None
        store.update_metadata("k", {"note": 1})
        store.copy("k", "copy")
        store.move("k", "moved")
    with BlobStore(tmp_path / "store", **own) as store:
        for key in ("moved", "copy"):
            if kind == "table":
                assert store[key].num_rows == ROWS
            else:
                with store.open(key) as stream:
                    assert sum(map(len, iter(lambda: stream.read(MIB), b""))) == 20 * MIB
            assert all(part.blob.checksum.startswith("blake3:") for part in store.entry(key).parts)
    other = BlobStore(tmp_path / "store", **{**own, "signing_keys": [OTHER]})
    with other as store, pytest.raises(DecodeError, match="max_decompressed_bytes"):
        if kind == "table":
            store["moved"]
        else:
            with store.open("moved") as stream:
                stream.read()


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_an_array_of_zeros_is_refused_if_another_stored_it(tmp_path, monkeypatch, codec):
    from blobstore import limits

    zeros = np.zeros((200, MIB // 8))  # 200 MiB
    with BlobStore(tmp_path, compression=codec, signing_keys=[KEY]) as store:
        store["small"] = zeros
        monkeypatch.setattr(limits, "SIGNED_FROM", 10 * MIB)
        store["large"] = zeros
        store["noise"] = np.random.default_rng(1).bytes(20 * MIB)
        assert store.entry("small").signature is None
        assert store.entry("large").signature
        assert store.entry("noise").signature is None
        assert store.entry("noise").parts[0].blob.checksum.startswith("xxh3")
    with BlobStore(tmp_path, signing_keys=[KEY], max_decompressed_bytes=2 * MIB) as store:
        assert store["large"].shape == zeros.shape
        assert len(store["noise"]) == 20 * MIB
        with pytest.raises(DecodeError, match="max_decompressed_bytes"):
            store["small"]
        assert store.get("small", rows=slice(100, 101)).nbytes == MIB


@pytest.mark.parametrize("inline", [0, 4 * MIB])
def test_bytes_that_were_exchanged_are_not_what_was_signed(tmp_path, monkeypatch, inline):
    """The signature lifts the limit, so the checksum that it is for has to hold, or be unasked."""
    from blobstore import limits

    monkeypatch.setattr(limits, "SIGNED_FROM", 10 * MIB)
    own = {"backend": "sqlite", "signing_keys": [KEY], "compression": "zstd"}
    with BlobStore(tmp_path, inline_max_bytes=inline, **own) as store:
        store["table"] = pa.table({"c": ["x" * 1000] * ROWS})
        store["other"] = pa.table({"c": ["y" * 1000] * ROWS})
        blobs = [store.entry(key).parts[0].blob for key in ("table", "other")]
        if not inline:
            (mine,), (theirs,) = (list(tmp_path.rglob(blob.location)) for blob in blobs)
            assert mine.stat().st_size == theirs.stat().st_size
            mine.write_bytes(theirs.read_bytes())
    if inline:
        with contextlib.closing(sqlite3.connect(tmp_path / "cache_metadata.db")) as database:
            done = database.execute(
                "UPDATE entries SET payload = (SELECT payload FROM entries"
                " WHERE CAST(key AS TEXT) = 'other') WHERE CAST(key AS TEXT) = 'table'"
            )
            assert done.rowcount == 1
            database.commit()
    own["max_decompressed_bytes"] = MIB
    with BlobStore(tmp_path, **own) as store:
        assert store["other"].num_rows == ROWS
        with pytest.raises(IntegrityError):
            store["table"]
    with BlobStore(tmp_path, verify_on_read=False, **own) as store:
        for key in ("table", "other"):
            with pytest.raises(DecodeError, match="max_decompressed_bytes"):
                store[key]


def test_known_content_that_another_stored_is_stored_again_to_be_signed(tmp_path, monkeypatch):
    from blobstore import limits

    monkeypatch.setattr(limits, "SIGNED_FROM", 10 * MIB)
    table = pa.table({"c": ["x" * 1000] * ROWS})
    how = {"content_addressable": True, "compression": "zstd", "max_decompressed_bytes": MIB}
    with BlobStore(tmp_path, signing_keys=[KEY], **how) as store:
        key = store.put(table)
    with BlobStore(tmp_path, signing_keys=[OTHER], **how) as store:
        with pytest.raises(DecodeError):
            store[key]
        assert store.put(table) == key
        assert store[key].equals(table)


def auto_files(folder):
    """Files of other tools, each of which grows to more than 4 MiB."""
    pd = pytest.importorskip("pandas")
    equal = ["x" * 1000] * ROWS
    pd.DataFrame({"c": equal}).to_parquet(folder / "pandas.parquet")
    pytest.importorskip("polars").DataFrame({"c": equal}).write_parquet(folder / "polars.parquet")
    pq.write_table(pa.table({"c": equal}), folder / "arrow.parquet")
    np.savez_compressed(folder / "arrays.npz", a=np.zeros(MIB))
    image = pytest.importorskip("PIL.Image").new("RGB", (2000, 1000))
    image.save(folder / "image.png")
    sp = pytest.importorskip("scipy.sparse")
    np.savez_compressed(
        folder / "matrix.sparse.npz",
        row=np.zeros(0, int),
        col=np.zeros(0, int),
        data=np.zeros(0),
        format=b"coo",
        shape=(100_000, 1),
        _is_array=True,
        blobstore_format=np.array(b"lil"),
    )
    assert sp.load_npz(folder / "matrix.sparse.npz").shape == (100_000, 1)
    return ["pandas", "polars", "arrow", "arrays", "image", "matrix"]


def test_an_autostore_refuses_files_that_grow_too_much(tmp_path):
    names = auto_files(tmp_path)
    with AutoStore(tmp_path, max_decompressed_bytes=MIB) as store:
        for name in names:
            with pytest.raises(DecodeError, match="max_decompressed_bytes") as caught:
                store[name]
            assert caught.value.key.startswith(name)
        for library in ("pandas", "polars", "pyarrow"):
            for name in ("pandas", "polars", "arrow"):
                with pytest.raises(DecodeError, match="max_decompressed_bytes"):
                    store.load(name, library=library)
    with AutoStore(tmp_path) as store:
        assert all(store[name] is not None for name in names)
    with AutoStore(tmp_path, pickle="allow", max_decompressed_bytes=MIB) as store:
        assert all(store[name] is not None for name in names)
    with BlobStore(tmp_path.with_name("imported")) as store:
        report = import_folder(tmp_path, store, max_decompressed_bytes=MIB)
        assert len(report.unreadable) == len(names)


def test_a_file_of_torch_that_was_compressed_by_another(tmp_path):
    torch = pytest.importorskip("torch")
    import zipfile

    torch.save({"w": torch.zeros(5 * MIB // 4)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with AutoStore(tmp_path, max_decompressed_bytes=MIB) as store:
        assert store["plain"]["w"].shape == (5 * MIB // 4,)
        with pytest.raises(DecodeError, match="max_decompressed_bytes"):
            store["bomb"]


@pytest.mark.parametrize("asked", [0, -1, 1.5, "1", None])
@pytest.mark.parametrize("mode", ["signed", "allow"])
def test_a_limit_that_is_none(tmp_path, asked, mode):
    with pytest.raises(ConfigError, match="max_decompressed_bytes"):
        AutoStore(tmp_path, pickle=mode, max_decompressed_bytes=asked)
