"""NumPy arrays: exact round trips, frames that Blosc2 itself opens, bounded memory."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from blobstore import codecs
from blobstore.digest import new_digest
from blobstore.errors import (
    DecodeError,
    InvalidInputError,
    OutOfSpaceError,
    UnsupportedTypeError,
)
from blobstore.handlers import b2nd, grid
from blobstore.handlers.dtypes import dtype_text, padding, parse_dtype
from blobstore.handlers.numpy import NumpyHandler, update_digest
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.streams import BytesSource, MemorySink, Source

HANDLER = NumpyHandler()
RNG = np.random.default_rng(11)
NOISE = RNG.standard_normal(400_000)
STEPS = RNG.integers(-3, 4, 600_000).cumsum()


def put(array, codec="lz4", level=3, inline=0):
    plan = HANDLER.plan(array, WriteOptions(codec, level, inline))
    with MemorySink() as sink:
        plan.parts[0].write(sink)
    return plan, sink.content


def get(plan, data, **options):
    source = data if isinstance(data, Source) else BytesSource(data)
    part = StoredPart("data", source, plan.parts[0].encoding().codec, "numpy", 1)
    return HANDLER.read({"data": part}, plan.info, **options)


def assert_exact(result, array):
    assert type(result) is np.ndarray
    assert dtype_text(result.dtype) == dtype_text(array.dtype)
    assert result.dtype.isalignedstruct == array.dtype.isalignedstruct
    assert result.shape == array.shape
    unused = padding(array.dtype)
    bits = [np.ascontiguousarray(a).reshape(-1).view("u1").copy() for a in (result, array)]
    for raw in bits if unused is not None else ():
        raw.reshape(-1, array.itemsize)[:, unused] = 0
    assert bits[0].tobytes() == bits[1].tobytes()
    assert result.flags.writeable
    assert result.flags.aligned
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    assert result.flags.f_contiguous if fortran else result.flags.c_contiguous


def open_with_blosc2(data, tmp_path):
    path = tmp_path / "array.b2nd"
    path.write_bytes(data)
    return blosc2.open(path)


def digest(array):
    hasher = new_digest()
    HANDLER.plan(array, WriteOptions()).parts[0].digest(hasher)
    return hasher.hexdigest()


LAYOUTS = {
    "number": np.array(7, "u2"),
    "empty": np.empty(0),
    "no rows": np.empty((0, 5), "i2"),
    "no columns": np.empty((5, 0, 2), "M8[s]"),
    "one chunk": STEPS[:1000],
    "several chunks": np.tile(STEPS, 2),
    "noise": NOISE,
    "long rows": np.tile(STEPS, 3).reshape(3, -1),
    "long rows of noise": np.tile(NOISE, 2).reshape(2, 4, -1),
    "odd rows": NOISE[:399_999].reshape(3, -1),
    "zeros": np.zeros(1_200_000, "f4"),
    "zeros first": np.r_[np.zeros(600_000), NOISE[:100_000].round(1)],
    "one value": np.full(700_000, 2.5),
    "fortran": np.asfortranarray(STEPS.reshape(1000, 600)),
    "transposed": STEPS.reshape(50, 40, 300).transpose(2, 0, 1),
    "strided": STEPS.reshape(1000, 600)[::-3, 7::5],
    "broadcast": np.broadcast_to(STEPS[:1000], (700, 1000)),
    "read-only": np.frombuffer(STEPS.tobytes(), "i8"),
    "eight dimensions": STEPS[:48].reshape(1, 2, 3, 1, 2, 1, 2, 2),
}

DTYPES = [
    *"?bBhHiIlLqQefdgFDG",
    *(">i2", ">f8", ">c16", ">U3", ">M8[ns]", ">g"),
    *("S1", "S7", "S300", "U1", "U9", "U200", "V3", "V8"),
    *("M8[D]", "M8[25us]", "M8[ns]", "m8[s]", "m8"),
    [("x", "f4"), ("y", ">i8")],
    [("x", "i1"), ("sub", "f4", (2, 3)), ("deep", [("t", "M8[s]"), ("s", "U3")])],
    [(("title", "x"), "i4"), ("no'quote\"s", "i2")],
    {"names": ["b", "a"], "formats": ["i4", "i2"], "offsets": [8, 2], "itemsize": 17},
    {"names": ["whole", "low"], "formats": ["u4", "u2"], "offsets": [0, 0]},
    [("x", "V3000")],
]


class TestRoundTrips:
    @pytest.mark.parametrize("codec", codecs.NAMES)
    @pytest.mark.parametrize("name", LAYOUTS)
    def test_every_layout_here_and_in_plain_blosc2(self, name, codec, tmp_path):
        array = LAYOUTS[name]
        plan, data = put(array, codec)
        assert_exact(get(plan, data), array)
        opened = open_with_blosc2(data, tmp_path)
        assert opened.dtype == array.dtype
        assert opened.shape == array.shape
        assert np.array_equal(opened[...], array)
        if array.ndim and array.shape[0] > 3:
            assert np.array_equal(opened[2:4], array[2:4])
        assert dict(plan.info) == {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "order": "F" if name == "fortran" else "C",
            "nbytes": array.nbytes,
        }

    @pytest.mark.parametrize("codec", ["zstd", "none"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_dtype(self, dtype, codec, tmp_path):
        raw = RNG.integers(0, 2, 3000 * np.dtype(dtype).itemsize, dtype="u1")
        array = raw.view(dtype)
        plan, data = put(array, codec)
        assert_exact(get(plan, data), array)
        opened = open_with_blosc2(data, tmp_path)
        assert opened.dtype == array.dtype
        assert_exact(opened[...], array)
        assert_exact(get(plan, data, rows=slice(5, None, -2)), array[5::-2])

    def test_aligned_structs(self, tmp_path):
        array = np.ones(10, np.dtype([("a", "i1"), ("b", "f8")], align=True))
        plan, data = put(array)
        assert_exact(get(plan, data), array)
        assert np.array_equal(open_with_blosc2(data, tmp_path)[...], array)

    def test_bits_of_nan_and_the_sign_of_zero(self):
        bits = np.array([0x7FF8000000000123, 0xFFF0000000000001, 1 << 63, 0], "u8")
        array = np.tile(bits, 1000).view("f8")
        for codec in codecs.NAMES:
            plan, data = put(array, codec)
            assert np.array_equal(get(plan, data).view("u8"), array.view("u8"))

    def test_the_result_owns_its_memory(self):
        plan, data = put(STEPS[:100], inline=1 << 13)
        for stored in (data, put(STEPS[:100])[1]):
            first = get(plan, stored)
            first[:] = -1
            assert np.array_equal(get(plan, stored), STEPS[:100])

    def test_one_blob_serves_both_memory_orders(self):
        square = STEPS[:250_000].reshape(500, 500)
        fortran = np.asfortranarray(square)
        plan = HANDLER.plan(fortran, WriteOptions())
        assert_exact(get(plan, put(square)[1]), fortran)
        plan = HANDLER.plan(square, WriteOptions())
        assert_exact(get(plan, put(fortran)[1]), square)


@pytest.fixture(scope="class")
def small_chunks():
    """Chunks so small that arrays of some hundred bytes have many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "CHUNK_PACKED", 256)
        patch.setattr(grid, "CHUNK_PLAIN", 128)
        patch.setattr(grid, "BLOCK", 64)
        patch.setattr(grid, "_INNER", 96)
        patch.setattr(grid, "_TILE", 3)
        yield


def slices(length):
    bound = st.none() | st.integers(-length - 2, length + 2)
    return st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, 3, 7, -1, -2, -5]))


@st.composite
def arrays(draw):
    shape = draw(npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=17))
    dtype = draw(st.sampled_from(["u1", "<i4", ">f8", "S3", "U11", "M8[s]", "V100"]))
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    high = draw(st.sampled_from([1, 3, 256]))
    raw = np.random.default_rng(draw(st.integers(0, 99))).integers(0, high, size, dtype="u1")
    # Code points have to be such.
    raw = raw.astype("<u4").view("u1")[: len(raw)] if dtype.startswith("U") else raw
    array = raw.view(dtype).reshape(shape)
    axes = draw(st.permutations(range(array.ndim)))
    return array.transpose(axes)[draw(slices(array.shape[axes[0]]))]


@pytest.mark.usefixtures("small_chunks")
class TestManyChunks:
    @given(arrays(), st.sampled_from(codecs.NAMES), st.data())
    @settings(max_examples=150)
    def test_whole_and_by_rows(self, array, codec, data):
        plan, stored = put(array, codec)
        assert_exact(get(plan, stored), array)
        rows = data.draw(slices(len(array)))
        order = plan.info["order"]
        assert_exact(get(plan, stored, rows=rows), np.array(array[rows], order=order))

    @given(arrays(), st.sampled_from(["lz4", "none"]))
    @settings(max_examples=60)
    def test_blosc2_reads_them(self, tmp_path_factory, array, codec):
        _, stored = put(array, codec)
        opened = open_with_blosc2(stored, tmp_path_factory.mktemp("b2nd"))
        assert opened.shape == array.shape
        # By bytes: random floats are now and then not a number, which equals nothing.
        assert opened[...].tobytes() == array.tobytes()

    @given(arrays())
    @settings(max_examples=60)
    def test_through_a_file_it_is_the_same(self, array):
        plan, stored = put(array, "zstd")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(b2nd, "_IN_MEMORY", -1)
            _, filed = put(array, "zstd")
        assert filed == stored
        assert_exact(get(plan, filed), array)

    @given(arrays())
    @settings(max_examples=60)
    def test_the_digest_ignores_the_layout(self, array):
        assert digest(array) == digest(np.ascontiguousarray(array).reshape(array.shape))


class TestGrid:
    @given(
        npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=300),
        st.sampled_from([1, 3, 8, 400, 5000, 1 << 20]),
        st.booleans(),
    )
    def test_runs_cover_everything_once(self, shape, itemsize, packed):
        made = (grid.Grid.packed if packed else grid.Grid.plain)(shape, itemsize)
        position = 0
        for number in range(min(made.count, 500)):
            run = made.run(number)
            assert run.start == position
            assert 0 < run.nbytes <= made.chunk_bytes
            position += run.nbytes
        if made.count <= 500:
            assert position == int(np.prod(shape, dtype=object)) * itemsize
        assert made.chunk_bytes <= max(itemsize, grid.CHUNK_PACKED)
        assert made.chunk_bytes % max(1, made.block_bytes) == 0

    @pytest.mark.parametrize("length", [131_073, 200_000, 1_000_003, 8_388_607])
    def test_plain_chunks_waste_next_to_nothing(self, length):
        made = grid.Grid.plain((length,), 8)
        assert made.count * made.chunk_bytes <= length * 8 * 1.001

    @pytest.mark.parametrize("rows", [3, 5, 7, 11, 13])
    def test_nor_if_rows_are_large(self, rows):
        made = grid.Grid.plain((9, rows, 400_000), 1)
        assert made.count * made.chunk_bytes <= 9 * rows * 400_000 * 1.05

    def test_the_header_is_what_blosc2_writes(self):
        array = NOISE[:1000].astype("f4")
        theirs = blosc2.asarray(
            array,
            chunks=(600,),
            blocks=(200,),
            cparams={
                "codec": blosc2.Codec.LZ4,
                "clevel": 5,
                "filters": [blosc2.Filter.SHUFFLE],
                "nthreads": 1,
            },
            dparams={"nthreads": 1},
            contiguous=True,
        )
        coding = b2nd.Coding("lz4", 5, 1)
        made = grid.Grid((1000,), 4, 0, 600, 200)
        frame = b2nd.Frame(made, "<f4", coding, theirs.schunk.cbytes)
        assert theirs.to_cframe().startswith(frame.header)
        assert b2nd.Frame.parse(frame.header) == frame


class TestUnsupported:
    @pytest.mark.parametrize(
        "dtype",
        [
            "O",
            [("a", "O")],
            [("a", [("b", "O", (2,))])],
            np.dtype("f8", metadata={"a": 1}),
            [("a", np.dtype("f8", metadata={"a": 1}))],
            np.dtype((np.record, [("a", "i4")])),
            np.dtypes.StringDType(),
            [],
            f"S{(8 << 20) + 1}",
        ],
        ids=str,
    )
    def test_dtypes(self, dtype):
        array = np.zeros(2, dtype)
        assert HANDLER.can_handle(array)
        with pytest.raises(UnsupportedTypeError):
            HANDLER.plan(array, WriteOptions())
        hasher = new_digest()
        assert update_digest(hasher, array) is False
        assert hasher.hexdigest() == new_digest().hexdigest()

    def test_one_dtype_does_not_spoil_another_that_equals_it(self):
        odd = np.dtype("f8", metadata={"a": 1})
        assert odd == np.dtype("f8")
        with pytest.raises(UnsupportedTypeError):
            dtype_text(odd)
        assert dtype_text(np.dtype("f8")) == np.dtype("f8").str


class TestEncoding:
    def test_noise_is_stored_as_it_is(self):
        plan, data = put(NOISE)
        assert plan.parts[0].encoding().codec == "none"
        assert len(data) < NOISE.nbytes * 1.01
        assert NOISE[:1000].tobytes() in data

    @pytest.mark.parametrize("codec", ["lz4", "zstd", "gzip", "blosclz"])
    def test_what_shrinks_is_compressed(self, codec):
        plan, data = put(STEPS, codec)
        assert plan.parts[0].encoding().codec == codec
        assert len(data) < STEPS.nbytes / 4

    @pytest.mark.parametrize(("codec", "level"), [("lz4", 4), ("zstd", 1), ("gzip", 3)])
    def test_weights_shrink_with_their_bits_shuffled(self, codec, level):
        weights = (NOISE * 0.02).astype("f4")
        plan, data = put(weights, codec, level)
        assert plan.parts[0].encoding().codec == codec
        assert len(data) < weights.nbytes * 0.9

    @pytest.mark.parametrize("codec", ["lz4", "blosclz"])
    @pytest.mark.parametrize("level", [1, 3])
    def test_the_fastest_methods_have_to_save_a_quarter(self, codec, level):
        weights = (NOISE * 0.02).astype("f4")
        assert put(weights, codec, level)[0].parts[0].encoding().codec == "none"
        for share, expected in ((0.2, "none"), (0.35, codec)):
            array = NOISE.reshape(-1, 1000).copy()
            array[:, : int(share * 1000)] = 0
            assert put(array, codec, level)[0].parts[0].encoding().codec == expected

    @pytest.mark.parametrize("nbytes", [1 << 16, 1 << 18, 1 << 20, 1 << 23])
    def test_small_arrays_have_small_samples(self, nbytes, monkeypatch):
        sizes = []
        real = blosc2.compress2
        monkeypatch.setattr(
            blosc2, "compress2", lambda raw, **kw: sizes.append(len(raw)) or real(raw, **kw)
        )
        HANDLER.plan(np.resize(NOISE, nbytes // 8), WriteOptions()).parts[0].encoding()
        assert max(sizes) <= min(max(1 << 15, nbytes // 8), 1 << 17)

    def test_a_compressed_frame_is_read_whatever_is_said_of_it(self):
        plan, data = put(STEPS)
        part = StoredPart("data", BytesSource(data), "none", "numpy", 1)
        assert_exact(HANDLER.read({"data": part}, plan.info), STEPS)

    def test_text_does_not_pay_for_empty_bytes(self):
        array = np.array([str(n) for n in range(20_000)], "U40")
        _, data = put(array)
        assert len(data) < array.nbytes / 20

    @pytest.mark.parametrize("order", ["C", "F", "strided"])
    def test_the_decision_costs_a_sample(self, order, monkeypatch):
        array = np.resize(STEPS, (4096, 512))
        array = array[::-1, ::2] if order == "strided" else np.asarray(array, order=order)
        sizes = []
        real = blosc2.compress2
        monkeypatch.setattr(
            blosc2, "compress2", lambda raw, **kw: sizes.append(len(raw)) or real(raw, **kw)
        )
        part = HANDLER.plan(array, WriteOptions("zstd", 9)).parts[0]
        assert part.encoding() == part.encoding()
        assert 0 < sum(sizes) <= 2 * (160 << 10)  # two filters

    def test_zstd_means_the_same_levels_as_elsewhere(self):
        levels = {
            level: b2nd.candidates(np.dtype("f8"), "zstd", level)[0].level for level in (1, 5, 9)
        }
        # Blosc2 gives Zstandard twice its own level less one.
        assert {level: 2 * own - 1 for level, own in levels.items()} == {1: 1, 5: 5, 9: 9}


class TestSmallParts:
    def test_numpy_reads_them(self):
        array = np.asfortranarray(STEPS[:60].reshape(6, 10))
        plan, data = put(array, inline=4096)
        assert plan.parts[0].encoding().extension == ".npy"
        assert plan.parts[0].encoding().codec == "none"
        assert np.array_equal(np.load(io.BytesIO(data), allow_pickle=False), array)
        assert_exact(get(plan, data), array)
        assert_exact(get(plan, data, rows=slice(None, None, 2)), np.asfortranarray(array[::2]))

    @pytest.mark.parametrize("array", [np.array(1.5), np.empty((0, 3)), np.array(["ü"])], ids=str)
    def test_odd_ones(self, array):
        plan, data = put(array, inline=4096)
        assert np.array_equal(np.load(io.BytesIO(data)), array)
        assert_exact(get(plan, data), array)

    def test_only_if_all_of_it_fits(self):
        fits = HANDLER.plan(np.zeros(1008), WriteOptions(inline_max_bytes=8192)).parts[0]
        large = HANDLER.plan(np.zeros(1009), WriteOptions(inline_max_bytes=8192)).parts[0]
        assert fits.encoding().extension == ".npy"
        assert large.encoding().extension == ".b2nd"
        with MemorySink() as sink:
            fits.write(sink)
        assert len(sink.content) == 8192

    def test_damage(self):
        plan, data = put(np.arange(10), inline=4096)
        for damaged in (data[:-1], data + b"x", data.replace(b"<i8", b"<f8"), data[:40]):
            with pytest.raises(DecodeError):
                get(plan, damaged)


class CountingSource(BytesSource):
    """Counts what is read from it."""

    def __init__(self, data):
        super().__init__(data)
        self.count = 0

    def open(self):
        source = self

        class File(io.BytesIO):
            def read(self, size=-1):
                data = super().read(size)
                source.count += len(data)
                return data

            def readinto(self, buffer):
                count = super().readinto(buffer)
                source.count += count
                return count

        return File(self._data)


class TestRows:
    @pytest.mark.parametrize("codec", ["lz4", "none"])
    def test_only_their_chunks_are_read(self, codec):
        array = np.resize(STEPS, (20_000, 128))
        plan, data = put(array, codec)
        source = CountingSource(data)
        assert_exact(get(plan, source, rows=slice(9_000, 9_100)), array[9_000:9_100])
        assert source.count < max(len(data) / 3, 120_000)

    @pytest.mark.parametrize("rows", [3, (0, 2), slice("a"), slice(0, 4, 0), [1]])
    def test_only_slices(self, rows):
        plan, data = put(STEPS[:10])
        with pytest.raises(InvalidInputError):
            get(plan, data, rows=rows)

    def test_a_number_has_no_rows(self):
        plan, data = put(np.array(1))
        with pytest.raises(InvalidInputError, match="no rows"):
            get(plan, data, rows=slice(1))

    def test_none_is_all(self):
        plan, data = put(STEPS)
        assert_exact(get(plan, data, rows=None), STEPS)


class TestDigest:
    def test_padding_counts_for_nothing(self):
        dtype = np.dtype([("a", "i1"), ("b", "f8")], align=True)
        one, other = np.zeros(100, dtype), np.full(100 * dtype.itemsize, 0xAB, "u1").view(dtype)
        for field in dtype.names:
            one[field] = other[field] = np.arange(100)
        assert digest(one) == digest(other) == digest(other[::-1][::-1])
        assert put(one)[1] == put(other)[1]

    def test_padding_of_extended_precision(self):
        one = np.arange(5, dtype="g")
        other = np.full(one.nbytes, 0xCD, "u1").view("g")
        unused = padding(one.dtype)
        if unused is None:
            pytest.skip("long doubles have no padding here")
        values = np.setdiff1d(np.arange(one.itemsize), unused)
        raws = [a.view("u1").reshape(5, -1) for a in (one, other)]
        raws[1][:, values] = raws[0][:, values]
        assert np.array_equal(one, other)
        assert digest(one) == digest(other)

    def test_it_is_the_same_in_every_release(self):
        array = np.arange(6, dtype="<i4").reshape(2, 3)
        assert digest(array) == GOLDEN_DIGEST
        hasher = new_digest()
        assert update_digest(hasher, array) is True
        assert hasher.hexdigest() == GOLDEN_DIGEST

    def test_only_arrays(self):
        assert update_digest(new_digest(), [1, 2]) is False
        assert update_digest(new_digest(), np.float64(1)) is False
        assert update_digest(new_digest(), np.ma.array([1])) is False


GOLDEN_DIGEST = "b97b32c181f9b1c24714dd99523e46d70829ac9a7baaeae3a646376fdfe10e73"


class TestDamage:
    @pytest.mark.parametrize(
        "info",
        [
            {"dtype": "<f8"},
            {"shape": [10, 1]},
            {"shape": [9]},
            {"shape": "10"},
            {"shape": [10.0]},
            {"shape": [-10]},
            {"dtype": 5},
            {"dtype": "O"},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("inline", [0, 4096])
    def test_another_array_than_the_index_says(self, info, inline):
        plan, data = put(np.arange(10, dtype="<i8"), inline=inline)
        part = StoredPart("data", BytesSource(data), "none", "numpy", 1)
        with pytest.raises(DecodeError):
            HANDLER.read({"data": part}, {**plan.info, **info})

    @pytest.mark.parametrize("name", ["dtype", "shape", "order"])
    def test_incomplete_info(self, name):
        plan, data = put(np.arange(10))
        part = StoredPart("data", BytesSource(data), "none", "numpy", 1)
        info = {key: value for key, value in plan.info.items() if key != name}
        with pytest.raises(DecodeError, match=name):
            HANDLER.read({"data": part}, info)
        with pytest.raises(DecodeError, match="data"):
            HANDLER.read({}, plan.info)

    @pytest.mark.parametrize("text", ["|O", "O", "object", "[('a', 'O')]", "f8,f8", "<f9", "{", ""])
    def test_no_dtype_with_objects_comes_out_of_a_frame(self, text):
        with pytest.raises(DecodeError):
            parse_dtype(text)
        frame = b2nd.Frame(grid.Grid((2,), 8, 0, 2, 2), text, b2nd.PLAIN, 48)
        data = frame.header + b2nd.plain_header(frame.grid) + bytes(range(16)) + frame.tail([0])
        with pytest.raises(DecodeError):
            b2nd.FrameReader(io.BytesIO(data), len(data))

    @pytest.mark.parametrize("data", [b"", b"\x93", b"\x93NUMPY", bytes(300), b"\x9e\xa8b2frame\0"])
    def test_no_frame_at_all(self, data):
        plan, _ = put(STEPS)
        with pytest.raises(DecodeError):
            get(plan, data)

    def test_a_frame_of_another_writer(self):
        plan, _ = put(STEPS)
        with pytest.raises(DecodeError, match="not written by blobstore"):
            get(plan, blosc2.asarray(STEPS).to_cframe())

    @pytest.mark.parametrize("codec", ["lz4", "none"])
    def test_every_byte_around_the_chunks_is_checked(self, codec):
        plan, data = put(STEPS[:2000] if codec == "lz4" else NOISE[:2000], codec)
        header = int.from_bytes(data[11:15], "big")
        level, width = 27, 79  # say how the chunks were made, which reading does not need
        for position in {*range(header), *range(len(data) - 75, len(data))} - {level, width}:
            damaged = bytearray(data)
            damaged[position] ^= 0x40
            with pytest.raises(DecodeError):
                get(plan, bytes(damaged))

    def test_sizes_in_a_chunk_are_checked_before_it_is_decompressed(self):
        plan, data = put(STEPS[:2000])
        start = int.from_bytes(data[11:15], "big")
        for offset in (0, 3, 4, 7, 12, 15, 16, 31):
            damaged = bytearray(data)
            damaged[start + offset] ^= 0x80
            with pytest.raises(DecodeError, match="chunk 0"):
                get(plan, bytes(damaged))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_to_be_full(monkeypatch):
    monkeypatch.setattr(b2nd, "_IN_MEMORY", 0)

    class FullSink(MemorySink):
        def path(self):
            return Path("/dev/full")

    with pytest.raises(OutOfSpaceError):
        HANDLER.plan(STEPS, WriteOptions()).parts[0].write(FullSink())


MEMORY = """
import resource, sys
import numpy as np
from blobstore.handlers.numpy import NumpyHandler
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.streams import FileSource, MemorySink, Sink
from pathlib import Path

what, kind, order, path = sys.argv[1:]
unit = 1 if sys.platform == "darwin" else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

class FileSink(MemorySink):
    file = None
    def write(self, data):
        self.file = self.file or open(path, "wb")
        return self.file.write(data)
    def path(self):
        return Path(path)
    def commit(self):
        if self.file:
            self.file.close()

shape, handler = (2048, 8192), NumpyHandler()
plan = handler.plan(np.arange(200_000), WriteOptions())
with MemorySink() as sink:
    plan.parts[0].write(sink)
array = np.empty(shape if what == "put" else (0, 0), order=order)
for start in range(0, array.size, 1 << 18):
    flat = array.reshape(-1, order="A")[start : start + (1 << 18)]
    if kind == "noise":
        flat[:] = np.random.default_rng(start).standard_normal(flat.shape)
    else:
        flat[:] = np.arange(start, start + flat.size) // 9
before = peak()
if what == "put":
    plan = handler.plan(array, WriteOptions("lz4"))
    import hashlib
    plan.parts[0].digest(hashlib.sha1())
    with FileSink() as sink:
        plan.parts[0].write(sink)
else:
    info = {"dtype": "<f8", "shape": list(shape), "order": order, "nbytes": 0}
    with FileSource(Path(path)) as source:
        result = handler.read({"data": StoredPart("data", source, "", "numpy", 1)}, info)
    before += result.nbytes
print((peak() - before) / 2**20)
"""


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_memory_is_bounded(kind, order, tmp_path):
    def added(what):
        command = [sys.executable, "-c", MEMORY, what, kind, order, str(tmp_path / "a.b2nd")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return float(done.stdout)

    # The array has 128 MiB. Chunks of 4 MiB in some copies, and what the allocator keeps.
    assert added("put") < 40
    assert added("get") < 40


FORK = """
import os, sys, threading
import numpy as np
from blobstore.handlers.numpy import NumpyHandler
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.streams import BytesSource, MemorySink

handler, array = NumpyHandler(), np.arange(3_000_000) // 7

def round_trip():
    plan = handler.plan(array, WriteOptions("zstd", 1))
    with MemorySink() as sink:
        plan.parts[0].write(sink)
    part = StoredPart("data", BytesSource(sink.content), "zstd", "numpy", 1)
    return np.array_equal(handler.read({"data": part}, plan.info), array)

assert round_trip()
stop = threading.Event()
def work():
    while not stop.is_set():
        round_trip()
workers = [threading.Thread(target=work) for _ in range(2)]
if sys.argv[1] == "busy":
    for worker in workers:
        worker.start()
for _ in range(4):
    child = os.fork()
    if child == 0:
        os._exit(0 if round_trip() else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
if sys.argv[1] == "busy":
    for worker in workers:
        worker.join()
assert round_trip()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("parent", ["idle", "busy"])
def test_forked_children_work(parent):
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK, parent], timeout=120, check=True)
