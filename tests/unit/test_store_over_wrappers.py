"""What BlobStore asks of an object store that it is given, and who closes it."""

from __future__ import annotations

import pytest

from blobstore import (
    BlobStore,
    ClosedError,
    ConfigError,
    DictStore,
    ExceptionLoggingStore,
    GzipStore,
    ReadonlyStore,
    TextEncodingStore,
    WriteonlyStore,
)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TextEncodingStore(DictStore()), "bytes"),
        (lambda: WriteonlyStore(DictStore()), "cannot be read"),
        (lambda: ReadonlyStore(DictStore()), "readonly=True"),
        (lambda: ExceptionLoggingStore(DictStore()), "swallows errors"),
        (lambda: GzipStore(ExceptionLoggingStore(DictStore())), "swallows errors"),
    ],
)
def test_stores_that_cannot_keep_blobs_are_refused(tmp_path, make, words):
    with pytest.raises(ConfigError, match=words):
        BlobStore(tmp_path / "store", blob_backend=make())
    assert not (tmp_path / "store" / "blobstore.json").exists()


def test_a_readonly_store_over_readonly_objects(tmp_path):
    objects = DictStore()
    with BlobStore(tmp_path, blob_backend=objects) as store:
        store.put(b"x" * 10_000, key="k")
    with BlobStore(tmp_path, blob_backend=ReadonlyStore(objects), readonly=True) as store:
        assert store["k"] == b"x" * 10_000


@pytest.mark.parametrize("closes", [False, True])
def test_who_closes_the_object_store(tmp_path, closes):
    objects = DictStore()
    BlobStore(tmp_path, blob_backend=objects, close_blob_backend=closes).close()
    if closes:
        with pytest.raises(ClosedError):
            objects.exists("k")
    else:
        assert objects.exists(".blobstore-id")


def test_an_object_store_is_left_open_where_opening_fails(tmp_path):
    objects = DictStore()
    with pytest.raises(ConfigError):
        BlobStore(tmp_path, backend="tape", blob_backend=objects, close_blob_backend=True)
    assert not objects.exists("k")
