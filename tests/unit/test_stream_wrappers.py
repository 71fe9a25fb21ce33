"""Wrappers that change bytes: any pieces, any range, whatever is done to what they stored."""

from __future__ import annotations

import gzip
import io
import itertools
import random
import struct
import tempfile
import zlib
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.errors import (
    BlobStoreError,
    ConfigError,
    IntegrityError,
    InvalidInputError,
    NotSupportedError,
    UnavailableError,
)
from blobstore.streams import MemorySink
from blobstore.testing.object_store import peak_memory
from blobstore.wrappers import stream
from blobstore.wrappers.base64 import Base64Store
from blobstore.wrappers.blocks import BLOCK, BlockEncoder, Layout
from blobstore.wrappers.checksum import ChecksumStore
from blobstore.wrappers.compress import GzipStore, Lz4Store, ZstdStore
from blobstore.wrappers.encrypt import EncryptingStore
from blobstore.wrappers.stream import Encoder, StreamTransformer, StreamTransformingStore
from blobstore.wrappers.text import TextEncodingStore

NOISE = random.Random(7).randbytes(3 * BLOCK + 5)
TEXT = b"".join(b"line %d of a text that shrinks\n" % n for n in range(20_000))
KEY = bytes(range(32))

WRAPPERS = {
    "gzip": GzipStore,
    "zstd": ZstdStore,
    "lz4": Lz4Store,
    "base64": Base64Store,
    "xxh3": ChecksumStore,
    "blake3": lambda store: ChecksumStore(store, "blake3"),
    "encrypt": lambda store: EncryptingStore(store, KEY),
}
COMPRESSORS = ["gzip", "zstd", "lz4"]
SEALERS = ["xxh3", "blake3", "encrypt"]
DETERMINISTIC = [*COMPRESSORS, "base64"]

every_wrapper = pytest.mark.parametrize("name", WRAPPERS)
every_compressor = pytest.mark.parametrize("name", COMPRESSORS)
every_sealer = pytest.mark.parametrize("name", SEALERS)


def make(name):
    return WRAPPERS[name](DictStore())


def readings(store, size):
    """Ways to read all of an object."""
    return [
        lambda: store.get("key"),
        lambda: _read(store.open("key")),
        lambda: b"".join(_pieces(store.open("key"), 7)),
        lambda: store.get_range("key", 0, size),
        lambda: store.get_range("key", 0, size + 1),
        lambda: _read_source(store.source("key")),
    ]


def _read(file):
    with file:
        return file.read()


def _pieces(file, size):
    with file:
        while piece := file.read(size):
            yield piece


def _read_source(source):
    with source:
        return source.read()


# --- any pieces, any range -----------------------------------------------------------------------

some_data = st.builds(
    lambda base, size: base[:size],
    st.sampled_from([NOISE, TEXT]),
    st.integers(0, 40) | st.integers(0, 3 * BLOCK) | st.sampled_from([BLOCK, 2 * BLOCK]),
)


@every_wrapper
@given(data=some_data, cuts=st.lists(st.integers(0, 3 * BLOCK), max_size=6))
@example(data=NOISE[: 2 * BLOCK], cuts=[BLOCK - 1, BLOCK, BLOCK + 1])
@example(data=b"", cuts=[])
def test_any_pieces_read_back(name, data, cuts):
    with make(name) as store:
        store.put("whole", data)
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        with store.writer("key") as sink:
            for start, stop in itertools.pairwise(edges):
                sink.write(data[start:stop])
        stored, other = (store.store.get(key) for key in ("key", "whole"))
        assert len(stored) == len(other)
        if name in DETERMINISTIC:
            assert stored == other
        assert store.get("key") == data
        assert store.stat("key").size == len(data)


@every_wrapper
@given(
    data=some_data,
    ranges=st.lists(
        st.tuples(st.integers(0, 3 * BLOCK + 9), st.integers(0, 2 * BLOCK)), max_size=4
    ),
)
def test_any_range_is_a_slice(name, data, ranges):
    with make(name) as store:
        store.put("key", data)
        with store.open("key") as file, store.source("key") as source:
            for start, count in ranges:
                wanted = data[start:][:count]
                assert store.get_range("key", start, start + count) == wanted
                assert source.read_range(start, start + count) == wanted
                file.seek(start)
                assert file.read(count) == wanted
                assert file.seek(0, io.SEEK_END) == len(data)


@every_wrapper
def test_ranges_far_behind_the_end(name):
    with make(name) as store:
        store.put("key", NOISE)
        assert store.get_range("key", 1 << 80, 1 << 90) == b""
        with store.open("key") as file:
            file.seek(len(NOISE) + 10)
            assert file.read() == b""
            with pytest.raises(ValueError, match="seek"):
                file.seek(-len(NOISE) - 1000, io.SEEK_END)
            file.seek(2)
            assert file.read(3) == NOISE[2:5]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_equal_data_is_stored_as_equal_bytes(name):
    with make(name) as one, make(name) as two:
        one.put("a", TEXT)
        two.put("b", TEXT)
        assert one.store.get("a") == two.store.get("b")


@every_wrapper
def test_pieces_may_be_any_buffers(name):
    with make(name) as store:
        with store.writer("key") as sink:
            for piece in (b"ab", bytearray(b"cd"), memoryview(b"fe")[::-1], b"", memoryview(b"gh")):
                sink.write(piece)
        assert store.get("key") == b"abcdefgh"


# --- what was done to what is stored -------------------------------------------------------------


@every_sealer
@pytest.mark.parametrize("data", [b"twenty bytes or so..", b""], ids=["small", "empty"])
def test_no_flipped_bit_goes_unnoticed(name, data):
    with make(name) as store:
        store.put("key", data)
        stored = store.store.get("key")
        for bit in range(len(stored) * 8):
            store.store.put("key", flipped(stored, bit))
            for read in readings(store, len(data) or 1)[: 6 if bit % 8 == 0 else 1]:
                with pytest.raises(IntegrityError) as caught:
                    read()
                assert caught.value.location == "key"
                assert "'key'" in str(caught.value)


@every_compressor
def test_no_flipped_bit_gives_a_wrong_value(name):
    data = TEXT[:3000]
    with make(name) as store:
        store.put("key", data)
        stored = store.store.get("key")
        noticed = 0
        for bit in range(len(stored) * 8):
            store.store.put("key", flipped(stored, bit))
            try:
                assert store.get("key") == data  # a bit that says nothing about the data
            except IntegrityError:
                noticed += 1
        assert noticed > len(stored) * 8 * 0.98 - 60


@pytest.mark.parametrize("name", [*COMPRESSORS, *SEALERS])
@pytest.mark.parametrize("data", [TEXT[:900], b""], ids=["small", "empty"])
def test_no_cut_goes_unnoticed(name, data):
    with make(name) as store:
        store.put("key", data)
        stored = store.store.get("key")
        for size in range(len(stored)):
            store.store.put("key", stored[:size])
            ways = readings(store, len(data))
            for read in (ways[0], ways[1], ways[2], ways[4], ways[5]):
                with pytest.raises(IntegrityError) as caught:
                    read()
                assert caught.value.location == "key"


@pytest.mark.parametrize("name", [*COMPRESSORS, *SEALERS])
@pytest.mark.parametrize("junk", [b"x", b"junk", b"\0" * 15, b"\0\0j", bytes(range(64))], ids=repr)
def test_what_was_added_does_not_go_unnoticed(name, junk):
    with make(name) as store:
        store.put("key", TEXT[:900])
        store.store.put("key", store.store.get("key") + junk)
        if name == "gzip" and not junk.strip(b"\0"):
            assert store.get("key") == TEXT[:900]  # gzip itself ignores zeros
            return
        for read in readings(store, 900)[:3]:
            with pytest.raises(IntegrityError):
                read()


@every_wrapper
@pytest.mark.parametrize("foreign", [b"p", b"plain bytes, of no wrapper", NOISE], ids=len)
def test_foreign_objects(name, foreign):
    with make(name) as store:
        store.store.put("key", foreign)
        for read in readings(store, 9):
            with pytest.raises(IntegrityError, match="'key'"):
                read()


@every_compressor
def test_who_reads_on_after_damage_is_told_again(name):
    with make(name) as store:
        store.put("key", TEXT)
        store.store.put("key", store.store.get("key")[:-1])
        with store.open("key") as file:
            for _ in range(3):
                with pytest.raises(IntegrityError):
                    while file.read(100_000):
                        pass
            file.seek(0)
            assert file.read(10) == TEXT[:10]


@every_sealer
class TestBlocks:
    """An object of four blocks, the last of five bytes."""

    @pytest.fixture
    def store(self, name):
        with make(name) as store:
            store.put("key", NOISE)
            yield store

    def cut(self, store):
        layout = store.transformer.layout
        stored = store.store.get("key")
        edges = [0, *(layout.stored_at(n) for n in range(4)), len(stored)]
        return [stored[a:b] for a, b in itertools.pairwise(edges)]

    @pytest.mark.parametrize("order", ["02134", "01243", "01324", "01134", "0123", "01233", "0124"])
    def test_blocks_in_another_order(self, store, order):
        parts = self.cut(store)
        store.store.put("key", b"".join(parts[int(n)] for n in order))
        with pytest.raises(IntegrityError):
            store.get("key")
        with pytest.raises(IntegrityError), store.open("key") as file:
            while file.read(1000):
                pass

    def test_blocks_of_another_object(self, store):
        parts = self.cut(store)
        store.put("key", NOISE)  # the same data again: an older version's block is foreign, too
        others = self.cut(store)
        store.store.put("key", b"".join([parts[0], others[1], *parts[2:]]))
        with pytest.raises(IntegrityError, match=r"block 0 .*'key'"):
            store.get_range("key", 5, 6)
        assert store.get_range("key", BLOCK, 2 * BLOCK) == NOISE[BLOCK : 2 * BLOCK]

    def test_a_range_is_verified_by_what_it_touches(self, store):
        parts = self.cut(store)
        parts[2] = flipped(parts[2], 3)
        store.store.put("key", b"".join(parts))
        assert store.get_range("key", 0, BLOCK) == NOISE[:BLOCK]
        assert store.get_range("key", 2 * BLOCK, 1 << 40) == NOISE[2 * BLOCK :]
        for start, stop in ((BLOCK, BLOCK + 1), (0, BLOCK + 1), (2 * BLOCK - 1, 2 * BLOCK)):
            with pytest.raises(IntegrityError, match=r"block 1 \(of 4\) of the object 'key'"):
                store.get_range("key", start, stop)

    def test_who_is_told_the_end_can_rely_on_it(self, store):
        store.store.put("key", b"".join(self.cut(store)[:3]))  # two whole blocks: a valid size
        assert store.get_range("key", 0, 10) == NOISE[:10]
        for start, stop in (
            (2 * BLOCK, 2 * BLOCK + 5),
            (2 * BLOCK - 1, 2 * BLOCK + 1),
            (0, 1 << 40),
        ):
            with pytest.raises(IntegrityError):
                store.get_range("key", start, stop)
        with store.source("key") as source, pytest.raises(IntegrityError):
            source.read_range(3 * BLOCK, 4 * BLOCK)
        with store.open("key") as file, pytest.raises(IntegrityError):
            file.seek(0, io.SEEK_END)
            file.read(1)

    def test_a_cut_inside_of_a_seal_has_no_size(self, store):
        store.store.put("key", b"".join(self.cut(store)[:4]) + b"1234")
        for ask in (store.stat, store.open, store.source):
            with pytest.raises(IntegrityError, match="cut off"):
                ask("key")

    def test_ranges_read_what_they_touch(self, name, tmp_path):
        class Counting(DictStore):
            read = 0

            def open(self, key):
                outer = self

                class File(io.BytesIO):
                    def read(self, size=-1):
                        data = super().read(size)
                        outer.read += len(data)
                        return data

                return File(self.get(key))

        with WRAPPERS[name](Counting()) as store:
            store.put("key", NOISE)
            block = BLOCK + 16
            for start, stop, blocks in ((5, 6, 1), (BLOCK - 1, BLOCK + 1, 2), (0, BLOCK, 1)):
                store.store.read = 0
                assert store.get_range("key", start, stop) == NOISE[start:stop]
                assert store.store.read == store.transformer.layout.header + blocks * block
            store.store.read = 0
            with store.open("key") as file:
                for at in range(0, BLOCK, 1000):
                    file.seek(at)
                    assert file.read(100) == NOISE[at : at + 100]
            assert store.store.read == store.transformer.layout.header + block


@given(st.integers(0, 5 * BLOCK))
def test_sizes_of_blocks_can_be_told_apart(size):
    layout = Layout(header=24, overhead=16)
    encoder = BlockEncoder(b"h" * 24, _Lengthener())
    stored = len(encoder.update(bytes(size))) + len(encoder.finish())
    assert layout.plain_size(stored) == size


@given(st.integers(-5, 3 * BLOCK))
def test_a_stored_size_has_one_plain_size_or_none(stored):
    layout = Layout(header=24, overhead=16)
    size = layout.plain_size(stored)
    if size is not None:
        blocks = max(1, -(-size // BLOCK))
        assert stored == 24 + size + 16 * blocks


class _Lengthener:
    def seal(self, index, last, data):
        return bytes(data) + b"s" * 16


def test_reading_in_steps_smaller_than_asked_for():
    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 1000) if size >= 0 else 1000)

    class SlowStore(DictStore):
        def open(self, key):
            return Slow(self.get(key))

    for wrap in WRAPPERS.values():
        with wrap(SlowStore()) as store:
            store.put("key", NOISE)
            assert _read(store.open("key")) == NOISE


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# --- compression ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [GzipStore, ZstdStore, Lz4Store])
def test_levels(kind):
    sizes = []
    words = b" ".join(random.Random(1).choices(TEXT[:3000].split(), k=20_000))
    for level in range(1, 10):
        with kind(DictStore(), level) as store:
            assert store.level == level
            assert f"level={level}" in repr(store)
            store.put("key", words)
            assert store.get("key") == words
            sizes.append(store.store.stat("key").size)
    assert sizes[8] < sizes[0] < len(words)
    for wrong in (0, 10, True, "6", None, 6.0):
        with pytest.raises(ConfigError, match=r"1 .*9"):
            kind(DictStore(), wrong)


def test_gzip_has_no_time_stamp():
    with GzipStore(DictStore()) as store:
        store.put("key", TEXT)
        assert store.store.get("key")[4:8] == bytes(4)


def test_gzip_of_several_members():
    with GzipStore(DictStore()) as store:
        parts = [gzip.compress(TEXT[:50_000]), gzip.compress(b""), gzip.compress(NOISE)]
        store.store.put("key", b"".join(parts))
        for read in readings(store, 50_000 + len(NOISE)):
            assert read() == TEXT[:50_000] + NOISE
        store.store.put("key", parts[0] + b"\0" * 100_000 + parts[2] + bytes(100_000))
        assert store.get("key") == TEXT[:50_000] + NOISE
        store.store.put("key", b"".join(parts)[:-3])
        with pytest.raises(IntegrityError, match="cut off"):
            store.get("key")


def test_gzip_with_a_name_in_it():
    stored = io.BytesIO()
    with gzip.GzipFile("name.txt", "wb", fileobj=stored, mtime=12345) as file:
        file.write(TEXT)
    with GzipStore(DictStore()) as store:
        store.store.put("key", stored.getvalue())
        assert store.get("key") == TEXT


def zstd_frames():
    plain = zstandard.ZstdCompressor(level=19, write_checksum=False).compress(TEXT[:300_000])
    skip = b"\x5f\x2a\x4d\x18" + struct.pack("<I", 70_000) + NOISE[:70_000]
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(NOISE)
    stream = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    pieces = [stream.compress(TEXT[:1000]), stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    checked = b"".join([*pieces, stream.compress(b"\0" * 900_000), stream.flush()])
    return [
        (plain, TEXT[:300_000]),
        (skip, b""),
        (unsized, NOISE),
        (checked, TEXT[:1000] + b"\0" * 900_000),
        (zstandard.compress(b"", 1), b""),
        (zstandard.compress(b"a", 1), b"a"),
    ]


def test_zstd_of_several_frames():
    stored = b"".join(frame for frame, _ in zstd_frames())
    wanted = b"".join(data for _, data in zstd_frames())
    with ZstdStore(DictStore()) as store:
        for frame, data in zstd_frames():
            store.store.put("key", frame)
            assert store.get("key") == data
        store.store.put("key", stored)
        for read in readings(store, len(wanted)):
            assert read() == wanted
        rest = len(stored) - len(zstd_frames()[-1][0])
        for size in (rest + 1, rest + 5, len(zstd_frames()[0][0]) + 7, len(stored) - 1):
            store.store.put("key", stored[:size])
            with pytest.raises(IntegrityError):
                store.get("key")


def test_zstd_that_needs_a_dictionary():
    known = zstandard.ZstdCompressionDict(TEXT[:5000])
    stored = zstandard.ZstdCompressor(dict_data=known).compress(TEXT[100:4000])
    with ZstdStore(DictStore()) as store:
        store.store.put("key", stored)
        with pytest.raises(IntegrityError, match="zstd"):
            store.get("key")


def test_lz4_of_several_frames():
    skip = b"\x50\x2a\x4d\x18" + struct.pack("<I", 5) + b"12345"
    frames = [
        lz4.frame.compress(TEXT, block_size=lz4.frame.BLOCKSIZE_MAX4MB),
        skip,
        lz4.frame.compress(NOISE, block_linked=False, content_checksum=True),
        lz4.frame.compress(b""),
    ]
    with Lz4Store(DictStore()) as store:
        store.store.put("key", b"".join(frames))
        for read in readings(store, len(TEXT + NOISE)):
            assert read() == TEXT + NOISE
        store.store.put("key", b"".join(frames)[:-1])
        with pytest.raises(IntegrityError):
            store.get("key")


def bomb(name, size):
    stream = {
        "gzip": lambda: zlib.compressobj(9, zlib.DEFLATED, 31),
        "zstd": lambda: zstandard.ZstdCompressor().compressobj(),
    }[name]()
    zeros = bytes(1 << 20)
    return b"".join([*(stream.compress(zeros) for _ in range(size >> 20)), stream.flush()])


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_what_grows_a_thousandfold_is_not_expanded_at_once(name):
    with make(name) as store:
        store.store.put("key", bomb(name, 128 << 20))
        assert store.store.stat("key").size < 140_000

        def look():
            with store.open("key") as file:
                assert file.read(10) == bytes(10)
                file.seek(100 << 20)
                assert file.read(1) == b"\0"
            assert store.get_range("key", 20 << 20, (20 << 20) + 5) == bytes(5)

        assert peak_memory(look) < 4 << 20


@every_compressor
def test_large_objects_are_spooled_into_a_file(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    piece = random.Random(3).randbytes(1 << 20)
    with WRAPPERS[name](FilesystemStore(tmp_path / "root")) as store:
        with store.writer("key") as sink:
            for _ in range(12):
                sink.write(piece)

        def look():
            with store.source("key") as source:
                assert source.size == 12 << 20
                assert source.read_range(11 << 20, 12 << 20) == piece
                with source.path() as path:
                    assert path.stat().st_size == 12 << 20

        assert peak_memory(look) < 21 << 20
        assert [path.name for path in tmp_path.iterdir()] == ["root"]


# --- base64 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stored",
    [
        b"QUJD\n", b"QUJ\n", b"QU JD", b"QUJ", b"Q", b"QUJDR", b"QUJ*", b"QUJ-", b"QUJ\xff",
        b"QQ==QUJD", b"====", b"A===", b"QUJD====", b"=QUJ", b"QR==", b"QUK=", b"QQ=D",
    ],
)  # fmt: skip
def test_what_is_no_base64(stored):
    with Base64Store(DictStore()) as store:
        store.store.put("key", stored)
        for read in readings(store, 3)[:2]:
            with pytest.raises(IntegrityError, match="base64") as caught:
                read()
            assert caught.value.location == "key"


def test_padding_between_pages_is_damage():
    with Base64Store(DictStore()) as store:
        store.put("key", NOISE)
        stored = store.store.get("key")
        page = 1 << 16  # as many characters are turned back at a time
        for at in (page - 1, page - 2):
            damaged = stored[:at] + b"=" * (page - at) + stored[page:]
            store.store.put("key", damaged)
            with pytest.raises(IntegrityError):
                store.get("key")


def test_base64_as_others_write_it():
    with Base64Store(DictStore()) as store:
        for data, stored in ((b"", b""), (b"f", b"Zg=="), (b"fo", b"Zm8="), (b"foo", b"Zm9v")):
            store.put("key", data)
            assert store.store.get("key") == stored
            assert store.stat("key").size == len(data)


# --- checksums -----------------------------------------------------------------------------------


def test_both_algorithms_are_read():
    beneath = DictStore()
    ChecksumStore(beneath, "blake3").put("key", b"1")
    assert ChecksumStore(beneath).get("key") == b"1"
    stored = beneath.get("key")
    beneath.put("key", stored[:6] + b"\x63" + stored[7:])
    with pytest.raises(IntegrityError, match=r"not known here \(99\)"):
        ChecksumStore(beneath).get("key")


@pytest.mark.parametrize("wrong", ["md5", None, ["blake3"], 1], ids=repr)
def test_wrong_algorithms(wrong):
    with pytest.raises(ConfigError, match="xxh3_128, blake3"):
        ChecksumStore(DictStore(), wrong)


def test_copies_of_checked_objects_are_made_beneath():
    class Watched(DictStore):
        copied = ()

        def copy(self, source, target):
            self.copied = (source, target)
            super().copy(source, target)

    with ChecksumStore(Watched()) as store:
        store.put("a", NOISE)
        store.copy("a", "b")
        assert store.store.copied == ("a", "b")
        assert store.get("b") == NOISE


# --- the base of all of them ---------------------------------------------------------------------


@every_wrapper
def test_they_need_bytes_beneath(name):
    with pytest.raises(ConfigError, match="bytes"):
        WRAPPERS[name](TextEncodingStore(DictStore()))
    with pytest.raises(ConfigError, match="object store"):
        WRAPPERS[name]({})


@every_wrapper
def test_copies_hold_pieces_only(name, tmp_path):
    piece = random.Random(5).randbytes(1 << 20)
    with WRAPPERS[name](FilesystemStore(tmp_path / "root")) as store:
        with store.writer("key") as sink:
            for _ in range(24):
                sink.write(piece)
        assert peak_memory(lambda: store.copy("key", "other")) < 8 << 20
        assert store.get_range("other", 23 << 20, 24 << 20) == piece


class Failing(StreamTransformer):
    def encoder(self, key) -> Encoder:
        raise InvalidInputError("not this one")

    def reader(self, raw, key):
        raise IntegrityError("nor that", location=key)


def test_what_cannot_begin_leaves_nothing(tmp_path):
    opened = []

    class Watched(FilesystemStore):
        def open(self, key):
            opened.append(super().open(key))
            return opened[-1]

    with StreamTransformingStore(Watched(tmp_path / "root"), Failing()) as store:
        with pytest.raises(InvalidInputError, match="not this one"):
            store.writer("key")
        assert list(store.keys()) == []
        assert list(store.leftovers()) == []
        store.store.put("key", b"1")
        for ask in (store.open, store.source, store.stat):
            with pytest.raises(IntegrityError, match="nor that"):
                ask("key")
        assert [file.closed for file in opened] == [True] * 3


@every_wrapper
def test_readers_close_what_is_beneath(name, tmp_path):
    opened = []

    class Watched(FilesystemStore):
        def open(self, key):
            opened.append(super().open(key))
            return opened[-1]

    with WRAPPERS[name](Watched(tmp_path / "root")) as store:
        store.put("key", NOISE)
        with store.open("key") as file:
            file.read(5)
        store.get_range("key", 1, 2)
        assert len(opened) == 2
        assert [file.closed for file in opened] == [True, True]
        with pytest.raises(ValueError, match="closed"):
            file.read(1)


# --- sinks that are misused ----------------------------------------------------------------------


def _commit_again(sink):
    sink.write(b"new")
    sink.commit()
    sink.commit()


def _write_behind_the_end(sink):
    sink.write(b"new")
    sink.commit()
    sink.write(b"more")
    sink.commit()


def _abort_first(sink):
    sink.write(b"new")
    sink.abort()
    sink.commit()


def _write_then_ask_for_a_path(sink):
    sink.write(b"new")
    sink.path().write_bytes(b"more")
    sink.commit()


def _write_beside_a_path(sink):
    sink.path().write_bytes(b"new")
    sink.write(b"more")
    sink.commit()


def _ask_for_two_paths(sink):
    sink.path().write_bytes(b"new")
    sink.path().write_bytes(b"more")
    sink.commit()


@every_wrapper
@pytest.mark.parametrize("on_files", [False, True])
@pytest.mark.parametrize(
    ("misuse", "left"),
    [
        (_commit_again, b"new"),
        (_write_behind_the_end, b"new"),
        (_abort_first, b"old"),
        (_write_then_ask_for_a_path, b"old"),
        (_write_beside_a_path, b"old"),
        (_ask_for_two_paths, b"old"),
    ],
)
def test_sinks_are_used_once(name, on_files, misuse, left, tmp_path):
    """Else an object would end in what an encoder says after its end, and be damaged."""
    beneath = FilesystemStore(tmp_path / "root") if on_files else DictStore()
    with WRAPPERS[name](beneath) as store:
        store.put("key", b"old")
        sink = store.writer("key")
        with pytest.raises(InvalidInputError, match="'key' is used twice"):
            misuse(sink)
        sink.abort()
        assert store.get("key") == left
        assert list(beneath.leftovers()) == []


# --- how much they hold --------------------------------------------------------------------------


@every_wrapper
def test_one_large_piece_is_not_held_again(name, tmp_path):
    piece = random.Random(3).randbytes(24 << 20)
    with WRAPPERS[name](FilesystemStore(tmp_path / "root")) as store:

        def write():
            with store.writer("key") as sink:
                sink.write(piece)

        assert peak_memory(write) < 6 << 20
        assert store.get_range("key", 23 << 20, 24 << 20) == piece[23 << 20 :]


@every_wrapper
def test_whole_objects_are_held_once(name, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "IN_PIECES", 2 << 20)
    piece = random.Random(3).randbytes(24 << 20)

    def read():
        with store.source("key") as source:
            source.read()

    with WRAPPERS[name](FilesystemStore(tmp_path / "root")) as store:
        # What is stored of base64 is a third larger; and a buffer grows by an eighth at a time.
        assert peak_memory(lambda: store.put("key", piece)) < 40 << 20
        assert peak_memory(lambda: store.get_range("key", 0, 24 << 20)) < 32 << 20
        assert peak_memory(read) < 32 << 20


# --- as other files ------------------------------------------------------------------------------


@every_wrapper
@given(data=some_data, steps=st.data())
def test_readers_behave_like_files_in_memory(name, data, steps):
    amounts = st.sampled_from([0, 1, 7, 8192, BLOCK - 1, BLOCK, BLOCK + 1, -1])
    places = st.sampled_from([0, 1, BLOCK - 1, BLOCK, 2 * BLOCK, len(data), len(data) + 5, 1 << 40])
    model = io.BytesIO(data)
    with make(name) as store:
        store.put("key", data)
        with store.open("key") as file:
            for _ in range(steps.draw(st.integers(1, 8))):
                what, how = steps.draw(
                    st.tuples(st.sampled_from(["read", "readline"]), st.tuples(amounts))
                    | st.tuples(st.just("seek"), st.tuples(places))
                    | st.tuples(st.just("seek"), st.tuples(st.just(0), st.sampled_from([1, 2])))
                    | st.tuples(st.just("seek"), st.tuples(st.just(9), st.sampled_from([1, 2])))
                    | st.tuples(st.just("tell"), st.just(()))
                )
                assert getattr(file, what)(*how) == getattr(model, what)(*how)


@every_wrapper
def test_an_outage_is_no_damage(name):
    class Lost(io.BytesIO):
        def read(self, size=-1):
            raise UnavailableError("the line is dead", location="key")

    class LosingStore(DictStore):
        def open(self, key):
            return Lost(self.get(key))

    with WRAPPERS[name](LosingStore()) as store:
        store.put("key", NOISE)
        with pytest.raises(UnavailableError), store.open("key") as file:
            file.read()


class MovingStore(DictStore):
    """Keeps what is written piece by piece at places of its own."""

    def writer(self, key, size_hint=None):
        place = f"at/{key}"

        def publish(data):
            self.put(place, data)
            return place

        return MemorySink(publish)


@every_wrapper
def test_places_of_their_own_beneath(name):
    with WRAPPERS[name](MovingStore()) as store:
        sink = store.writer("key")
        sink.write(b"1")
        if not store.transformer.keyed:
            sink.commit()
            assert store.get(sink.location) == b"1"
            return
        with pytest.raises(NotSupportedError, match="at/key"), sink:
            pass
        assert list(store.keys()) == []


@every_wrapper
def test_a_lent_path_goes_even_if_it_cannot_be_read(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with make(name) as store:
        with pytest.raises(BlobStoreError), store.writer("key") as sink:
            sink.path().mkdir()
        assert list(store.keys()) == []
        assert list(Path(tmp_path).iterdir()) == []


def _slowly_rising() -> bytes:
    """Eight MiB whose blocks fill what a decompressor gives at a time exactly."""
    numbers = random.Random(0)
    value = 0
    packed = bytearray()
    for _ in range(1 << 20):
        value += numbers.randrange(3)
        packed += value.to_bytes(8, "little")
    return bytes(packed)


@pytest.mark.parametrize("wrapper", [GzipStore, Lz4Store, ZstdStore])
def test_large_objects_that_compress_well(wrapper):
    data = _slowly_rising()
    store = wrapper(DictStore(), 1)
    store.put("key", data)
    assert store.get("key") == data
    with store.open("key") as file:
        assert all(file.read(len(piece)) == piece for piece in _cut(data, 100_003))
        assert file.read(1) == b""


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]
