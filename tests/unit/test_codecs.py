"""Codecs: round trips, streams, seeking, what is cut off or foreign, and bounded memory."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import random
import subprocess
import sys
import tracemalloc

import lz4.frame
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore import codecs
from blobstore.codecs import MIN_SAVING, NAMES, choose, decoding, get, validate
from blobstore.errors import ConfigError, DecodeError

MIB = 1 << 20
PACKING = [name for name in NAMES if name != "none"]
SIZES = [0, 1, 15, 16, 17, 1000, 1 << 15, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 333]


def sample(kind, size):
    """Bytes that shrink a lot, somewhat, or not at all."""
    if kind == "noise":
        return random.Random(size).randbytes(size)
    if kind == "zeros":
        return bytes(size)
    words = np.random.default_rng(size).integers(0, 1 << 60, 50)
    return words[np.random.default_rng(1).integers(0, 50, size // 8 + 1)].tobytes()[:size]


def packed_in_pieces(codec, data, level, cuts):
    compressor = codec.compressor(level)
    pieces, last = [], 0
    for cut in (*sorted(cuts), len(data)):
        pieces.append(compressor.compress(memoryview(data)[last:cut]))
        last = cut
    return b"".join([*pieces, compressor.flush()])


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["noise", "zeros", "words"])
def test_round_trips_of_every_size_and_level(name, kind):
    codec = get(name)
    for size in SIZES:
        data = sample(kind, size)
        for level in range(1, 10) if size <= 1000 else (1, 9 if kind == "zeros" else 4):
            once = codec.compress(data, level)
            assert type(once) is bytes
            assert codec.decompress(once) == data
            streamed = packed_in_pieces(codec, data, level, [size // 3, size // 2])
            assert codec.decompress(streamed) == data
            for stored in (once, streamed):
                with codec.reader(io.BytesIO(stored)) as stream:
                    assert stream.read() == data


@settings(max_examples=60)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 9),
    st.binary(max_size=3000) | st.builds(lambda a, n: a * n, st.binary(max_size=20), st.just(500)),
    st.lists(st.integers(0, 10_000), max_size=5),
    st.lists(st.integers(0, 4000), max_size=5),
)
def test_streaming_is_the_same_as_at_once(name, level, data, cuts, reads):
    codec = get(name)
    stored = packed_in_pieces(codec, data, level, [min(cut, len(data)) for cut in cuts])
    assert codec.decompress(stored) == codec.decompress(codec.compress(data, level)) == data
    with codec.reader(io.BytesIO(stored)) as stream:
        got = b"".join(stream.read(count) for count in reads)
        assert got == data[: sum(reads)]
        assert got + stream.read() == data
        assert stream.read() == stream.read(5) == b""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_buffers_of_every_kind(name, kind):
    codec = get(name)
    data = kind(b"abc" * 1000)
    assert codec.decompress(codec.compress(data, 3)) == b"abc" * 1000
    compressor = codec.compressor(3)
    assert codec.decompress(compressor.compress(data) + compressor.flush()) == b"abc" * 1000


@pytest.mark.parametrize("name", NAMES)
def test_what_was_taken_in_may_change_afterwards(name):
    codec = get(name)
    buffer = bytearray(b"first" * 1000)
    compressor = codec.compressor(3)
    out = compressor.compress(buffer)
    buffer[:] = b"other" * 1000
    out += compressor.compress(buffer) + compressor.flush()
    assert codec.decompress(out) == b"first" * 1000 + b"other" * 1000


@pytest.mark.parametrize("name", NAMES)
def test_equal_data_gives_equal_bytes(name):
    codec, data = get(name), sample("words", 50_000)
    assert codec.compress(data, 3) == codec.compress(bytes(bytearray(data)), 3)


@pytest.mark.parametrize("name", ["lz4", "gzip"])
def test_levels_trade_size_for_time(name):
    codec, data = get(name), b"".join(b"%d," % (i * i) for i in range(20_000))
    assert len(codec.compress(data, 9)) < len(codec.compress(data, 1)) < len(data)


def test_other_tools_read_what_is_written_and_the_other_way_round():
    data = sample("words", 300_000)
    for level in (1, 9):
        assert lz4.frame.decompress(get("lz4").compress(data, level)) == data
        assert gzip.decompress(get("gzip").compress(data, level)) == data
        assert zstandard.ZstdDecompressor().decompress(get("zstd").compress(data, level)) == data
    assert get("lz4").decompress(lz4.frame.compress(data)) == data
    assert get("gzip").decompress(gzip.compress(data)) == data
    assert get("zstd").decompress(zstandard.ZstdCompressor().compress(data)) == data


# --- readers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_seeking(name):
    codec, data = get(name), sample("words", 3 * MIB + 5)
    with codec.reader(io.BytesIO(codec.compress(data, 1))) as stream:
        assert stream.seekable()
        assert stream.readable()
        assert stream.tell() == 0
        assert stream.read(10) == data[:10]
        assert (stream.seek(2 * MIB), stream.tell()) == (2 * MIB, 2 * MIB)
        assert stream.read(7) == data[2 * MIB : 2 * MIB + 7]
        assert stream.seek(3) == 3  # back
        assert stream.read(5) == data[3:8]
        assert stream.seek(100, io.SEEK_CUR) == 108
        assert stream.read(4) == data[108:112]
        assert stream.seek(-12, io.SEEK_CUR) == 100
        assert stream.read(4) == data[100:104]
        assert stream.seek(0, io.SEEK_END) == len(data)
        assert stream.read(1) == b""
        assert stream.seek(-5, io.SEEK_END) == len(data) - 5
        assert stream.read() == data[-5:]
        assert stream.seek(0) == 0
        assert stream.read() == data


@settings(max_examples=60)
@given(
    st.sampled_from(NAMES),
    st.lists(
        st.tuples(st.just("read"), st.integers(0, 5000))
        | st.tuples(st.just("seek"), st.integers(0, 20_000))
        | st.tuples(st.just("ahead"), st.integers(0, 3000))
        | st.tuples(st.just("end"), st.integers(-20_000, 0)),
        max_size=12,
    ),
)
def test_a_reader_behaves_as_a_file_does(name, steps):
    data = sample("words", 20_000)
    codec = get(name)
    oracle = io.BytesIO(data)
    with codec.reader(io.BytesIO(codec.compress(data, 1))) as stream:
        for step, number in steps:
            if step == "read":
                assert stream.read(number) == oracle.read(number)
            elif step == "ahead":
                number = min(number, len(data) - oracle.tell())
                assert stream.seek(number, io.SEEK_CUR) == oracle.seek(number, io.SEEK_CUR)
            else:
                whence = io.SEEK_END if step == "end" else io.SEEK_SET
                assert stream.seek(number, whence) == oracle.seek(number, whence)
            assert stream.tell() == oracle.tell()


@pytest.mark.parametrize("name", NAMES)
def test_a_position_is_not_negative(name):
    """Either it is refused, or it is the start, as other files have it: never anywhere else."""
    codec = get(name)
    for offset, whence in ((-1, io.SEEK_SET), (-11, io.SEEK_CUR), (-301, io.SEEK_END)):
        with codec.reader(io.BytesIO(codec.compress(b"abc" * 100, 3))) as stream:
            assert stream.read(10) == b"abcabcabca"
            with contextlib.suppress(ValueError, OSError):
                assert stream.seek(offset, whence) == 0
                assert stream.tell() == 0
                assert stream.read(4) == b"abca"


@pytest.mark.parametrize("name", NAMES)
def test_reading_into_buffers_and_lines(name):
    codec = get(name)
    stored = codec.compress(b"one\ntwo\nthree" * 100, 3)
    with codec.reader(io.BytesIO(stored)) as stream:
        buffer = bytearray(6)
        assert stream.readinto(buffer) == 6
        assert buffer == b"one\ntw"
        assert stream.readline() == b"o\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_asks_the_raw_stream_for_bytes_only(name):
    """Raw streams may give fewer bytes than they were asked for."""

    class Slow(io.RawIOBase):
        def __init__(self, data):
            self.inner = io.BytesIO(data)

        def readable(self):
            return True

        def seekable(self):
            return True

        def readinto(self, buffer):
            return self.inner.readinto(memoryview(buffer)[:777])

        def seek(self, *args):
            return self.inner.seek(*args)

        def tell(self):
            return self.inner.tell()

    codec, data = get(name), sample("words", 2 * MIB)
    with io.BufferedReader(Slow(codec.compress(data, 1))) as raw, codec.reader(raw) as stream:
        assert stream.read() == data


@pytest.mark.parametrize("name", PACKING)
def test_a_bomb_is_read_in_pieces(name):
    """1 GiB of zeros, of which no more than a few MiB are ever held."""
    codec = get(name)
    size = 1 << 30 if name in ("zstd", "lz4") else 1 << 28
    compressor = codec.compressor(1)
    block = bytes(16 * MIB)
    stored = b"".join(compressor.compress(block) for _ in range(size // len(block)))
    stored += compressor.flush()
    tracemalloc.start()
    try:
        buffer, total = bytearray(MIB), 0
        with codec.reader(io.BytesIO(stored)) as stream:
            start = tracemalloc.get_traced_memory()[0]
            while count := stream.readinto(buffer):
                total += count
        assert total == size
        assert tracemalloc.get_traced_memory()[1] - start < 8 * MIB
    finally:
        tracemalloc.stop()


# --- cut off, foreign, damaged -------------------------------------------------------------------


def failing(name, work):
    """What work raises within `decoding`, if anything."""
    try:
        with decoding(name, "this part"):
            work()
    except DecodeError as exc:
        return exc
    return None


def ways(name, data):
    codec = get(name)
    return {
        "at once": lambda: codec.decompress(data),
        "as a stream": lambda: codec.reader(io.BytesIO(data)).read(),
    }


@pytest.mark.parametrize("name", PACKING)
@pytest.mark.parametrize("way", ["at once", "as a stream"])
@pytest.mark.parametrize("streamed", [False, True])
def test_every_cut_is_noticed(name, way, streamed):
    codec, data = get(name), sample("words", 3000)
    whole = packed_in_pieces(codec, data, 3, [100]) if streamed else codec.compress(data, 3)
    missed = [
        cut for cut in range(len(whole)) if failing(name, ways(name, whole[:cut])[way]) is None
    ]
    assert missed == []


@pytest.mark.parametrize("name", PACKING)
@pytest.mark.parametrize("way", ["at once", "as a stream"])
def test_cuts_between_blocks_are_noticed(name, way):
    codec = get(name)
    compressor = codec.compressor(1)
    whole, ends = b"", []
    for i in range(5):
        whole += compressor.compress(sample("noise", MIB + i)[:MIB])
        ends.append(len(whole))
    whole += compressor.flush()
    assert failing(name, ways(name, whole)[way]) is None
    cuts = {cut for cut in ends if 0 < cut < len(whole)}
    missed = [cut for cut in cuts if failing(name, ways(name, whole[:cut])[way]) is None]
    assert missed == []


@pytest.mark.parametrize("name", PACKING)
@pytest.mark.parametrize("way", ["at once", "as a stream"])
@pytest.mark.parametrize("tail", [b"garbage!", b"\xff" * 40, b"\x01"], ids=len)
def test_what_hangs_behind_is_noticed(name, way, tail):
    whole = get(name).compress(sample("words", 3000), 3)
    assert isinstance(failing(name, ways(name, whole + tail)[way]), DecodeError)


GARBAGE = [b"garbage" * 10, bytes(100), b"\xff" * 100, b"\x1f", bz2.compress(b"x" * 99)]


@pytest.mark.parametrize("name", PACKING)
@pytest.mark.parametrize("way", ["at once", "as a stream"])
def test_garbage_is_noticed(name, way):
    others = [get(other).compress(b"abc" * 1000, 3) for other in PACKING if other != name]
    for garbage in (*GARBAGE, *others):
        error = failing(name, ways(name, garbage)[way])
        assert error is not None
        assert name in str(error) or "Blosc2" in str(error)


FLIP = """
import io, random, sys
from blobstore.codecs import decoding, get
from blobstore.errors import DecodeError
name = sys.argv[1]
codec = get(name)
whole = codec.compress(b"".join(b"%d," % (i * i) for i in range(3000)), 3)
chance = random.Random(5)
for n in range(400):
    bad = bytearray(whole)
    for _ in range(1 + n % 3):
        at = chance.randrange(40) if n % 2 else chance.randrange(len(bad))
        bad[at] = chance.randrange(256)
    for work in (lambda: codec.decompress(bytes(bad)), lambda: codec.reader(io.BytesIO(bad)).read()):
        try:
            with decoding(name, "x"):
                work()
        except DecodeError:
            pass
"""


@pytest.mark.parametrize("name", PACKING)
def test_damage_gives_no_other_error_and_never_a_crash(name):
    """In a process of its own: a library may well run out of its memory."""
    done = subprocess.run(
        [sys.executable, "-c", FLIP, name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_decoding_lets_other_errors_pass():
    for name in NAMES:
        for error in (KeyError("x"), OSError(5, "disk"), KeyboardInterrupt()):
            with pytest.raises(type(error)) as caught, decoding(name, "x"):
                raise error
            assert caught.value is error
        with decoding(name, "x"):
            pass


def test_decoding_says_what():
    with pytest.raises(DecodeError, match="part 'data'") as caught, decoding("zstd", "part 'data'"):
        get("zstd").decompress(b"garbage!")
    assert isinstance(caught.value.__cause__, zstandard.ZstdError)


# --- choosing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKING)
def test_choose(name):
    for size in (100, 10_000, 100_000, 3 * MIB):
        assert choose(name, 3, [sample("zeros", size)]) == name
        assert choose(name, 3, [sample("noise", size)]) == "none"
    assert choose(name, 3, []) == "none"
    assert choose(name, 3, [b"", b""]) == "none"
    assert choose("none", 3, [bytes(1000)]) == "none"


def test_choose_needs_a_saving():
    noise = sample("noise", 20_000)
    for share, expected in ((0.05, "none"), (0.2, "zstd")):
        data = noise[: int(20_000 * (1 - share))] + bytes(int(20_000 * share))
        assert choose("zstd", 3, [data]) == expected
    assert MIN_SAVING == 0.1


@pytest.mark.parametrize("name", PACKING)
def test_choose_never_compresses_all_of_large_data(name, monkeypatch):
    codec = get(name)
    seen = []
    original = codec.compress

    def counted(data, level):
        seen.append(len(data))
        return original(data, level)

    monkeypatch.setattr(codec, "compress", counted, raising=False)
    monkeypatch.setattr(codec, "compressor", None, raising=False)
    choose(name, 9, [bytes(64 * MIB)])
    choose(name, 9, [bytes(MIB)] * 64)
    choose(name, 9, [bytes(10)] * 100_000)
    assert max(seen) <= 128 << 10
    assert len(seen) == 3


@given(st.lists(st.integers(0, 200_000), max_size=8))
def test_samples_are_stretches_of_the_data(sizes):
    pieces = [memoryview(sample("noise", size)) for size in sizes]
    whole = b"".join(pieces)
    taken = [bytes(stretch) for stretch in codecs._samples(pieces)]
    total = sum(map(len, taken))
    if len(whole) <= 128 << 10:
        assert b"".join(taken) == whole
    else:
        assert total == 128 << 10
        assert b"".join(taken).startswith(whole[:1000])
        assert b"".join(taken).endswith(whole[-1000:])
    assert all(stretch in whole for stretch in taken)


def test_choose_looks_all_over_the_data():
    """A short header decides nothing, nor does a piece of its own of noise."""
    noise = sample("noise", 4 * MIB)
    assert choose("lz4", 3, [noise[:30_000], bytes(4 * MIB)]) == "lz4"
    assert choose("lz4", 3, [bytes(4 * MIB), noise[:30_000]]) == "lz4"
    assert choose("lz4", 3, [bytes(1000), noise]) == "none"
    assert choose("lz4", 3, [memoryview(bytes(800)).cast("d")]) == "lz4"


# --- names and levels ----------------------------------------------------------------------------


def test_names():
    assert {get(name).name for name in NAMES} == {*NAMES}
    extensions = [get(name).extension for name in NAMES]
    assert len({*extensions}) == len(NAMES)
    assert all(x == "" or x.startswith(".") for x in extensions)


@pytest.mark.parametrize("wrong", ["LZ4", "", "brotli", None, 3, ["lz4"], b"lz4"])
def test_unknown_names(wrong):
    with pytest.raises(ConfigError):
        get(wrong)
    with pytest.raises(ConfigError):
        validate(wrong, 3)


@pytest.mark.parametrize("wrong", [0, 10, -1, True, 3.0, "3", None])
def test_wrong_levels(wrong):
    with pytest.raises(ConfigError, match="compression_level"):
        validate("lz4", wrong)
    assert validate("lz4", 9) == ("lz4", 9)
