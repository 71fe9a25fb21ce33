"""Sinks and sources: how bytes move, whole or not at all, and what is left behind."""

from __future__ import annotations

import array
import hashlib
import io
import os
import random
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.digest import new_checksum
from blobstore.errors import InvalidInputError, KeyNotFoundError, StorageError
from blobstore.streams import (
    CHUNK,
    BytesSource,
    FileSource,
    HashingSink,
    MemorySink,
    RangeReader,
    Sink,
    Source,
    as_contiguous,
    copy_stream,
    hash_file,
)

DATA = random.Random(1).randbytes(10_000)


@pytest.fixture(autouse=True)
def spools(tmp_path, monkeypatch):
    """Temporary files go here, and none may be left."""
    folder = tmp_path / "spools"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert [*folder.rglob("*")] == []


# --- buffers -------------------------------------------------------------------------------------

GRID = np.arange(24, dtype="<i4").reshape(4, 6)
BUFFERS = {
    "bytes": b"abc",
    "bytearray": bytearray(b"abc"),
    "memoryview": memoryview(b"abc"),
    "strided": memoryview(b"abcdef")[::2],
    "reversed": memoryview(b"abc")[::-1],
    "ints": array.array("i", [1, 2, 3]),
    "signed": memoryview(b"abc").cast("b"),
    "characters": memoryview(b"abc").cast("c"),
    "booleans": memoryview(np.array([True, False])),
    "grid": memoryview(GRID),
    "columns": memoryview(GRID.T),
    "cut grid": memoryview(GRID[1:3, ::2]),
    "structured": memoryview(np.zeros(3, [("a", "i4"), ("b", "u1")])),
    "number": memoryview(np.array(5.0)),
    "nothing": b"",
    "no rows": memoryview(np.zeros((0, 3))),
    "no columns": memoryview(np.zeros((3, 0))),
    "array": GRID,
}


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_are_shown_as_a_run_of_bytes(name):
    buffer = BUFFERS[name]
    expected = memoryview(buffer).tobytes()
    shown = as_contiguous(buffer)
    assert bytes(shown) == expected
    assert len(shown) == len(expected)


@pytest.mark.parametrize("name", BUFFERS)
@pytest.mark.parametrize("executable", [True, False])
def test_buffers_of_every_kind_are_hashed_and_written(name, executable):
    buffer = BUFFERS[name]
    expected = memoryview(buffer).tobytes()
    hasher, inner = new_checksum(executable=executable), MemorySink()
    with HashingSink(inner, hasher) as sink:
        assert sink.write(buffer) == len(expected)
    assert (inner.content, sink.size) == (expected, len(expected))
    whole = new_checksum(executable=executable)
    whole.update(expected)
    assert hasher.hexdigest() == whole.hexdigest()


def test_contiguous_buffers_are_not_copied():
    data = bytearray(100)
    for buffer in (data, memoryview(data)[10:20], memoryview(data).cast("I")):
        shown = as_contiguous(buffer)
        data[12] ^= 1
        assert shown.obj is data
    assert as_contiguous(DATA) is DATA


@pytest.mark.parametrize("wrong", ["text", 5, None, [1], object(), 1.5], ids=type)
def test_what_is_no_buffer(wrong):
    with pytest.raises(InvalidInputError, match=type(wrong).__name__):
        as_contiguous(wrong)
    with pytest.raises(InvalidInputError):
        MemorySink().write(wrong)


# --- sinks ---------------------------------------------------------------------------------------


def test_a_sink_ends_in_bytes():
    published = []

    def publish(data):
        published.append(data)
        return "there"

    with MemorySink(publish) as sink:
        assert sink.write(b"ab") == 2
        assert sink.write(bytearray(b"c")) == 1
        assert published == []
    assert (published, sink.content, sink.location) == ([b"abc"], b"abc", "there")


def test_a_sink_keeps_no_reference_to_a_buffer():
    buffer = bytearray(b"first")
    with MemorySink() as sink:
        sink.write(buffer)
        buffer[:] = b"other"
        sink.write(memoryview(buffer))
    buffer.clear()
    assert sink.content == b"firstother"


def test_nothing_written_is_nothing():
    with MemorySink() as sink:
        pass
    assert sink.content == b""


@pytest.mark.parametrize("lent", [False, True])
@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()], ids=repr)
def test_an_error_publishes_nothing(lent, error):
    published = []
    inner = MemorySink(published.append)
    with pytest.raises(type(error)), HashingSink(inner, hashlib.sha256()) as sink:
        if lent:
            sink.path().write_bytes(b"abc")
        else:
            sink.write(b"abc")
        raise error
    assert published == []
    assert inner.content == b""


@pytest.mark.parametrize("lent", [False, True])
def test_an_error_in_publishing_leaves_nothing(lent):
    def publish(data):
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"), MemorySink(publish) as sink:
        if lent:
            sink.path().write_bytes(b"abc")
        else:
            sink.write(b"abc")


def test_a_lent_path():
    inner, hasher = MemorySink(lambda data: "there"), hashlib.sha256()
    with HashingSink(inner, hasher) as sink:
        path = sink.path()
        assert path.parent.is_dir()
        assert not path.exists()
        path.write_bytes(DATA)
    assert (inner.content, sink.size, sink.location) == (DATA, len(DATA), "there")
    assert hasher.hexdigest() == hashlib.sha256(DATA).hexdigest()


def test_a_lent_path_that_was_never_filled(spools):
    with pytest.raises(InvalidInputError), MemorySink() as sink:
        sink.path()


def test_a_failing_abort_does_not_hide_the_reason():
    class Stubborn(Sink):
        def write(self, data):
            return len(data)

        def path(self):
            raise NotImplementedError

        def commit(self):
            raise ValueError("the reason")

        def abort(self):
            raise OSError(5, "and now this")

    with pytest.raises((ValueError, OSError)) as caught, Stubborn():
        pass
    assert "the reason" in repr((caught.value, caught.value.__context__))


def test_files_are_hashed_in_pieces(tmp_path):
    data = DATA * (3 * CHUNK // len(DATA))
    (tmp_path / "f").write_bytes(data)
    hasher = hashlib.sha256()
    assert hash_file(tmp_path / "f", hasher) == len(data)
    assert hasher.hexdigest() == hashlib.sha256(data).hexdigest()


# --- sources -------------------------------------------------------------------------------------


class Plain(Source):
    """Only what has to be written."""

    def __init__(self, data):
        self._data = data
        self.size = len(data)

    def open(self):
        return io.BytesIO(self._data)


@pytest.fixture(params=["bytes", "file", "plain"])
def source(request, tmp_path):
    if request.param == "file":
        (tmp_path / "f").write_bytes(DATA)
        made = FileSource(tmp_path / "f")
    else:
        made = BytesSource(DATA) if request.param == "bytes" else Plain(DATA)
    with made:
        yield made


def test_a_source_is_read_in_every_way(source):
    assert source.size == len(DATA)
    assert source.read() == source.read() == DATA
    with source.open() as one, source.open() as other:
        assert one.seekable()
        assert one.read(10) == DATA[:10]
        assert other.read() == DATA  # each has a place of its own
        assert one.read(10) == DATA[10:20]
        assert one.seek(-5, io.SEEK_END) == len(DATA) - 5
        assert one.seek(2, io.SEEK_CUR) == len(DATA) - 3
        assert one.read() == DATA[-3:]
        assert one.read() == b""
        assert one.seek(len(DATA) + 100) == len(DATA) + 100
        assert one.read() == b""
    with source.path() as path:
        assert path.read_bytes() == DATA


@given(st.integers(0, 12_000), st.integers(0, 12_000))
def test_ranges_are_half_open_and_clipped(start, stop):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "f").write_bytes(DATA)
        with FileSource(Path(folder) / "f") as file:
            for source in (BytesSource(DATA), file, Plain(DATA)):
                assert source.read_range(start, stop) == DATA[start:stop]


def test_a_stream_outlives_its_source(tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    source = FileSource(tmp_path / "f")
    with source.open() as stream:
        source.close()
        (tmp_path / "f").unlink()
        assert stream.read() == DATA
    source.close()  # again


def test_a_file_stays_readable_when_it_is_replaced(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(DATA)
    with FileSource(path) as source:
        (tmp_path / "g").write_bytes(b"other")
        (tmp_path / "g").replace(path)
        assert source.read() == DATA
        assert source.read_range(5, 10) == DATA[5:10]
        path.unlink()
        with source.open() as stream:
            assert stream.read() == DATA
        if os.path.isdir("/proc/self/fd"):
            with source.path() as lent:
                assert lent.read_bytes() == DATA


class Slices(RangeReader):
    def end(self):
        return len(DATA)

    def read_range(self, start, stop):
        return DATA[start:stop]


@given(
    st.lists(st.tuples(st.integers(-50, 12_000), st.sampled_from([0, 1, 2]), st.integers(0, 99)))
)
def test_a_raw_reader_reads_like_any_other_file(moves):
    raw, model = Slices(), io.BytesIO(DATA)
    assert raw.readable()
    assert raw.seekable()
    for offset, whence, size in moves:
        if offset + (0, model.tell(), len(DATA))[whence] >= 0:
            assert raw.seek(offset, whence) == model.seek(offset, whence)
        else:
            with pytest.raises(ValueError, match="negative"):
                raw.seek(offset, whence)
        assert raw.tell() == model.tell()
        assert raw.read(size) == model.read(size)
    assert raw.readall() == model.read()
    assert raw.tell() == model.tell()


def test_a_raw_reader_reads_into_any_buffer():
    numbers = array.array("i", [0, 0])
    assert Slices().readinto(numbers) == 8
    assert numbers.tobytes() == DATA[:8]


def test_a_raw_reader_refuses_what_cannot_be():
    raw = Slices()
    with pytest.raises(ValueError, match="whence is 0, 1 or 2, not 3"):
        raw.seek(0, 3)
    raw.close()
    for call in (raw.tell, raw.readall, raw.readable, raw.seekable, lambda: raw.seek(0)):
        with pytest.raises(ValueError, match="closed file"):
            call()
    for size in (0, 1):
        with pytest.raises(ValueError, match="closed file"):
            raw.readinto(bytearray(size))


def test_a_negative_position(tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    with FileSource(tmp_path / "f") as source, source.open() as stream:
        for offset, whence in ((-1, io.SEEK_SET), (-1, io.SEEK_CUR), (-20_000, io.SEEK_END)):
            with pytest.raises(ValueError, match="negative"):
                stream.seek(offset, whence)
        assert stream.read(3) == DATA[:3]


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(DATA)
    with FileSource(path) as source:
        os.truncate(path, 100)
        assert source.read() == DATA[:100]
        assert source.read_range(50, 5000) == DATA[50:100]
        assert source.read_range(200, 5000) == b""


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        FileSource(tmp_path / "nothing")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files there")
def test_no_descriptor_is_left_open(tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with FileSource(tmp_path / "f") as source:
            source.read()
            source.open().close()
            with source.path() as path:
                path.read_bytes()
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_share_one_descriptor(tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    wrong = []
    with FileSource(tmp_path / "f") as source:

        def read(seed):
            chance = random.Random(seed)
            with source.open() as stream:
                for _ in range(200):
                    at = chance.randrange(len(DATA))
                    stream.seek(at)
                    if stream.read(50) != DATA[at : at + 50]:
                        wrong.append(at)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


# --- spools --------------------------------------------------------------------------------------


def test_a_spool_is_gone_after_the_block():
    with Plain(DATA).path() as path:
        assert path.read_bytes() == DATA
    assert not path.parent.exists()
    for error in (ValueError("x"), KeyNotFoundError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, Plain(DATA).path() as path:
            raise error
        assert caught.value is error
        assert not path.parent.exists()


def test_an_error_of_the_block_is_the_blocks_own():
    """A handler's trouble with another file is not one of the spool."""
    error = FileNotFoundError(2, "elsewhere")
    with pytest.raises(FileNotFoundError) as caught, Plain(DATA).path():
        raise error
    assert caught.value is error


def test_a_spool_that_cannot_be_written():
    class Broken(Plain):
        def open(self):
            raise OSError(5, "the disk")

    with pytest.raises(StorageError, match="temporary file"), Broken(DATA).path():
        raise AssertionError("not reached")


def test_copying(tmp_path):
    data = DATA * (2 * CHUNK // len(DATA)) + b"rest"
    with MemorySink() as sink:
        assert copy_stream(io.BytesIO(data), sink) == len(data)
    assert sink.content == data
    stream = io.BytesIO(data)
    stream.seek(5)
    with (tmp_path / "out").open("wb") as out:
        assert copy_stream(stream, out) == len(data) - 5
    assert (tmp_path / "out").read_bytes() == data[5:]
    assert copy_stream(io.BytesIO(), MemorySink()) == 0
