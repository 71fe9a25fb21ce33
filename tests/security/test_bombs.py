"""A few stored bytes do not take the memory of the reader."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from blobstore import BlobStore, codecs, limits
from blobstore.errors import ConfigError, DecodeError, UntrustedTypeError
from blobstore.handlers.stream import open_stream, read_stream
from blobstore.protocols import StoredPart
from blobstore.streams import BytesSource
from blobstore.trust import EVERYTHING, Trust

MIB = 1 << 20


@pytest.mark.parametrize("codec", codecs.NAMES)
def test_no_codec_grows_by_more_than_it_says(codec):
    for size in (10, 1000, MIB, 64 * MIB):
        packed = codecs.get(codec).compress(bytes(size), 9)
        assert size <= len(packed) * codecs.get(codec).max_ratio


@pytest.mark.parametrize("codec", ["gzip", "zstd", "blosclz"])
@pytest.mark.parametrize("way", ["read", "stream"])
def test_a_bomb_is_refused_before_it_is_whole(codec, way):
    size = 256 * MIB
    packed = codecs.get(codec).compress(bytes(size), 9)
    part = StoredPart("data", BytesSource(packed), codec, "bytes", 1, Trust(max_decompressed=MIB))
    assert limits.allowed_growth(len(packed), MIB) < size // 3
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="max_decompressed_bytes"):
            if way == "read":
                read_stream(part)
            else:
                with open_stream(part) as stream:
                    while stream.read(MIB):
                        pass
        assert tracemalloc.get_traced_memory()[1] < size // 2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", codecs.NAMES)
def test_what_is_trusted_may_grow(codec):
    data = bytes(3 * MIB)
    packed = codecs.get(codec).compress(data, 9)
    assert read_stream(StoredPart("d", BytesSource(packed), codec, "x", 1, EVERYTHING)) == data
    generous = Trust(max_decompressed=4 * MIB)
    assert read_stream(StoredPart("d", BytesSource(packed), codec, "x", 1, generous)) == data


def test_a_store_refuses_what_others_packed_too_well(tmp_path):
    data = {"zeros": bytes(100 * MIB)}
    with BlobStore(tmp_path, compression="zstd", signing_keys=[bytes(32)]) as store:
        store.put_many([("pickle", data), ("bytes", data["zeros"])])
    own = {"signing_keys": [bytes(32)], "max_decompressed_bytes": MIB}
    with BlobStore(tmp_path, **own) as store:
        assert store["pickle"] == data  # signed, so it has no limit
        with pytest.raises(DecodeError, match="max_decompressed_bytes") as caught:
            store["bytes"]
        assert caught.value.key == "bytes"
    other = {"signing_keys": [b"x" * 32], "max_decompressed_bytes": MIB}
    with BlobStore(tmp_path, **other) as store, pytest.raises(DecodeError, match="max_decom"):
        store["pickle"]
    with BlobStore(tmp_path, signing_keys=[b"x" * 32]) as store:
        assert store["pickle"] == data  # the usual limit is 1 GiB
    with BlobStore(tmp_path, pickle="allow", max_decompressed_bytes=MIB) as store:
        assert store["bytes"] == data["zeros"]


def test_what_hardly_shrinks_has_no_limit(tmp_path):
    data = np.random.default_rng(1).bytes(MIB) * 3
    with BlobStore(tmp_path, max_decompressed_bytes=1) as store:
        store["k"] = data
        assert store["k"] == data


@pytest.mark.parametrize("asked", [0, -1, 1.5, True, "1", None])
def test_a_limit_that_is_none(tmp_path, asked):
    with pytest.raises(ConfigError, match="max_decompressed_bytes"):
        BlobStore(tmp_path, max_decompressed_bytes=asked)


def test_an_array_beyond_the_machine_is_refused_and_read_in_parts(tmp_path, monkeypatch):
    """Zeros take next to no room when they are stored, and all of it when they are read."""
    with BlobStore(tmp_path) as store:
        store["zeros"] = np.zeros((100, MIB))
        monkeypatch.setattr(limits, "_memory", lambda: 100 * MIB)
        with pytest.raises(DecodeError, match="more than this machine has") as caught:
            store["zeros"]
        assert caught.value.key == "zeros"
        assert store.get("zeros", rows=slice(0, 5)).shape == (5, MIB)


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow"])
def test_a_table_beyond_the_machine_is_refused_and_read_in_parts(tmp_path, monkeypatch, kind):
    """A column that says one thing over and over takes next to no room in Parquet."""
    rows = 4 * MIB
    columns = {"a": np.zeros(rows, np.int64), "b": np.ones(rows, np.int64), "c": [True] * rows}
    module = pytest.importorskip("pyarrow" if kind == "arrow" else kind)
    frame = (module.table if kind == "arrow" else module.DataFrame)(columns)
    with BlobStore(tmp_path) as store:
        store["table"] = frame
        assert store.entry("table").size < 4 * MIB
        monkeypatch.setattr(limits, "_memory", lambda: 60 * MIB)
        with pytest.raises(DecodeError, match="more than this machine has") as caught:
            store["table"]
        assert caught.value.key == "table"
        assert store.get("table", columns=["a"]).shape == (rows, 1)
        if kind != "pandas":
            assert store.get("table", rows=slice(0, 5)).shape == (5, 3)


def test_an_image_of_too_many_pixels_loads_only_if_it_is_yours(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image").new("RGB", (200, 200), (1, 2, 3))
    with BlobStore(tmp_path, signing_keys=[b"x" * 32]) as store:
        store["before"] = image
        monkeypatch.setattr(limits, "MAX_IMAGE_PIXELS", 10_000)
        store["mine"] = image
        assert store["mine"] == image
        with pytest.raises(DecodeError, match="200 x 200 pixels"):
            store["before"]
    with BlobStore(tmp_path, signing_keys=[bytes(32)]) as store, pytest.raises(UntrustedTypeError):
        store["mine"]
