"""Each example and each sentence on a class of the three Object Store documents, import names aside.

The examples with buckets run against a real server; their ``async with`` lines are run with the
asyncio versions of other stores, too.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import logging
import sqlite3
import zipfile

import pytest

import blobstore

STORES = ["DictStore", "FilesystemStore", "HashdirStore", "SqliteStore", "ZipStore"]


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(name: str) -> blobstore.ObjectStore:
    """One of the stores, in the folder of the test."""
    cls = getattr(blobstore, name)
    return cls() if name == "DictStore" else cls(f"./{name}")


def contents(store) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.keys()}  # noqa: SIM118 - a store is no dictionary


# --- Design --------------------------------------------------------------------------------------


def test_the_interface():
    from blobstore import ObjectStore

    with pytest.raises(TypeError, match="abstract"):
        ObjectStore()
    for name in ("get", "put", "exists", "delete", "keys"):
        assert callable(getattr(ObjectStore, name))


@pytest.mark.parametrize("name", STORES)
def test_every_store_has_it(name):
    with make(name) as store:
        assert isinstance(store, blobstore.ObjectStore)
        store.put("my_object_key", b"my object data")
        assert store.get("my_object_key") == b"my object data"
        assert store.exists("my_object_key")
        if name != "HashdirStore":
            assert list(store.keys()) == ["my_object_key"]
        store.delete("my_object_key")
        assert not store.exists("my_object_key")


# --- Usage ---------------------------------------------------------------------------------------


def test_usage_of_the_first_document(tmp_path):
    from blobstore import FilesystemStore

    store = FilesystemStore(str(tmp_path / "path/to/storage/directory"))

    # Store an object
    store.put("my_object_key", b"my object data")

    # Retrieve an object
    data = store.get("my_object_key")
    assert data == b"my object data"

    # Check if an object exists
    exists = store.exists("my_object_key")
    assert exists is True

    # Delete an object
    store.delete("my_object_key")

    # List all object keys (if supported by the implementation)
    keys = store.keys()
    assert list(keys) == []


def test_usage_of_the_later_documents():
    from blobstore import FilesystemStore

    store = FilesystemStore("./path/to/storage/directory")
    store.put("my_object_key", b"older data")
    store.put("another", b"1")

    # Retrieve an object
    data = store.get("my_object_key")
    assert data == b"older data"

    # Check if an object exists
    exists = store.exists("my_object_key")
    assert exists is True

    # Store an object (if supported by the implementation)
    store.put("my_object_key", b"my object data")
    assert store.get("my_object_key") == b"my object data"

    # Delete an object (if supported by the implementation)
    store.delete("my_object_key")

    # List all object keys (if supported by the implementation)
    keys = list(store.keys())
    assert keys == ["another"]

    keys = []
    for key in store.keys():  # noqa: SIM118 - as in the document
        keys.append(key)
    assert keys == ["another"]


def test_a_missing_object_is_a_key_error():
    store = blobstore.FilesystemStore("./empty")
    for call in (store.get, store.delete):
        with pytest.raises(KeyError):
            call("my_object_key")
    assert store.exists("my_object_key") is False


@pytest.mark.parametrize("name", ["SqliteStore", "ZipStore"])
def test_stateful_stores_are_context_managers(name):
    cls = getattr(blobstore, name)

    with cls("./db.file") as store:
        store.put("my_object_key", b"my object data")
        data = store.get("my_object_key")

    assert data == b"my object data"
    with cls("./db.file") as store:
        assert store.get("my_object_key") == b"my object data"


@pytest.mark.parametrize("name", ["AsyncSqliteStore", "AsyncFilesystemStore", "AsyncHashdirStore"])
def test_asyncio(name):
    import blobstore.aio

    cls = getattr(blobstore.aio, name)

    async def main():
        async with cls("./storage") as store:
            await store.put("my_object_key", b"my object data")
            data = await store.get("my_object_key")
            assert data == b"my object data"
            assert await store.exists("my_object_key")
            await store.delete("my_object_key")
            with pytest.raises(KeyError):
                await store.get("my_object_key")

    asyncio.run(main())


# --- Implementations -----------------------------------------------------------------------------


def test_dict_store_is_a_dictionary_in_memory(tmp_path):
    from blobstore import DictStore

    store = DictStore()
    store.put("key", b"data")
    assert store.get("key") == b"data"
    assert list(tmp_path.iterdir()) == []


def test_filesystem_store_has_keys_that_are_paths(tmp_path):
    from blobstore import FilesystemStore

    store = FilesystemStore("./root")
    store.put("images/cats/1.png", b"meow")
    assert (tmp_path / "root/images/cats/1.png").read_bytes() == b"meow"
    (tmp_path / "root/images/dog.png").write_bytes(b"woof")
    assert store.get("images/dog.png") == b"woof"


def test_hashdir_store_has_a_hashed_directory_structure(tmp_path):
    from blobstore import HashdirStore

    store = HashdirStore("./root")
    for number in range(300):
        store.put(f"key{number}", str(number).encode())
    name = hashlib.sha256(b"key7").hexdigest()
    path = tmp_path / "root" / name[:2] / name[2:4] / name[4:6] / name[6:]
    assert path.read_bytes() == b"7"
    fullest = max(
        sum(entry.is_file() for entry in folder.iterdir())
        for folder in (tmp_path / "root").rglob("*")
        if folder.is_dir()
    )
    assert fullest < 5, "too many files in a single directory"


def test_sqlite_store_keeps_keys_and_data_in_a_table():
    from blobstore import SqliteStore

    with SqliteStore("./db.sqlite") as store:
        store.put("my_object_key", b"my object data")
    database = sqlite3.connect("./db.sqlite")
    rows = [
        row
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for row in database.execute(f'SELECT * FROM "{table}"')
    ]
    database.close()
    (row,) = [row for row in rows if "my_object_key" in row]
    assert b"my object data" in row


def test_zip_store_makes_zip_files():
    from blobstore import ZipStore

    with ZipStore("./objects.zip") as store:
        store.put("a/b.txt", b"data")
    with zipfile.ZipFile("./objects.zip") as archive:
        assert archive.read("a/b.txt") == b"data"
        assert archive.testzip() is None


# --- Utilities: several stores -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MirroringStore", "FanoutStore"])
def test_mirroring_store_replicates_operations(name):
    from blobstore import DictStore, FilesystemStore

    children = [DictStore(), FilesystemStore("./mirror")]
    store = getattr(blobstore, name)(children)
    store.put("key", b"data")
    assert [child.get("key") for child in children] == [b"data", b"data"]
    assert store.get("key") == b"data"
    assert list(store.keys()) == ["key"]
    store.delete("key")
    assert not any(child.exists("key") for child in children)


def test_caching_store_uses_a_faster_store_for_a_slower_one():
    from blobstore import CachingStore, DictStore

    class SlowStore(DictStore):
        reads = 0

        def get(self, key):
            self.reads += 1
            return super().get(key)

        def source(self, key):
            self.reads += 1
            return super().source(key)

    main_store, cache_store = SlowStore(), DictStore()
    main_store.put("key", b"data")
    store = CachingStore(main_store, cache_store)
    assert [store.get("key") for _ in range(5)] == [b"data"] * 5
    assert main_store.reads == 1
    store.put("key", b"new")
    assert (store.get("key"), main_store._find("key").data) == (b"new", b"new")
    store.delete("key")
    assert not cache_store.exists("key")
    assert not store.exists("key")


# --- Utilities: access, events, logs -------------------------------------------------------------


def test_readonly_store_is_without_put_and_delete():
    from blobstore import DictStore, ReadonlyStore

    beneath = DictStore()
    beneath.put("key", b"data")
    store = ReadonlyStore(beneath)
    for call in (lambda: store.put("key", b"x"), lambda: store.delete("key")):
        with pytest.raises(NotImplementedError):
            call()
    assert (store.get("key"), store.exists("key"), list(store.keys())) == (b"data", True, ["key"])


def test_writeonly_store_is_without_get_exists_and_key_listing():
    from blobstore import DictStore, WriteonlyStore

    beneath = DictStore()
    store = WriteonlyStore(beneath)
    store.put("key", b"data")
    for call in (lambda: store.get("key"), lambda: store.exists("key"), lambda: list(store.keys())):
        with pytest.raises(NotImplementedError):
            call()
    assert beneath.get("key") == b"data"
    store.delete("key")
    assert not beneath.exists("key")


def test_notifying_store_has_handlers_of_changes_and_puts():
    from blobstore import DictStore, NotifyingStore

    class Full(DictStore):
        def put(self, key, data):
            if key == "too much":
                raise OSError("the disk is full")
            super().put(key, data)

    seen = []
    store = NotifyingStore(Full())
    store.on_change(lambda store, action, key, error: seen.append(("change", action, key, error)))
    store.on_put(lambda store, key, error: seen.append(("put", key, error)))
    store.on_delete(lambda store, key, error: seen.append(("delete", key, error)))
    store.put("key", b"data")
    assert seen == [("change", "put", "key", None), ("put", "key", None)]
    seen.clear()
    store.delete("key")
    assert seen == [("change", "delete", "key", None), ("delete", "key", None)]
    seen.clear()
    with pytest.raises(OSError, match="the disk is full") as caught:
        store.put("too much", b"data")
    assert seen == [("change", "put", "too much", caught.value), ("put", "too much", caught.value)]


def test_logging_store_logs(caplog):
    from blobstore import DictStore, LoggingStore

    logger = logging.getLogger("document")
    with caplog.at_level(logging.INFO, logger="document"):
        store = LoggingStore(DictStore(), "my store", logger)
        store.put("key", b"data")
        store.get("key")
        store.delete("key")
    assert caplog.messages == ["my store put key", "my store get key", "my store delete key"]
    assert {record.name for record in caplog.records} == {"document"}
    caplog.clear()
    with caplog.at_level(logging.INFO):
        LoggingStore(DictStore()).put("key", b"data")
    assert [(r.name, r.levelname, r.message) for r in caplog.records] == [
        ("root", "INFO", "store put key")
    ]


def test_exception_logging_store_logs_exceptions(caplog):
    from blobstore import DictStore, ExceptionLoggingStore

    store = ExceptionLoggingStore(DictStore())
    with caplog.at_level(logging.ERROR):
        assert store.get("absent") is None
        assert store.delete("absent") is False
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert all("absent" in message for message in caplog.messages)


# --- Utilities: values ---------------------------------------------------------------------------


def test_text_encoding_store_takes_text():
    from blobstore import DictStore, TextEncodingStore

    for encoding, stored in (("utf-8", b"caf\xc3\xa9"), ("latin-1", b"caf\xe9")):
        beneath = DictStore()
        store = TextEncodingStore(beneath, encoding)
        store.put("key", "café")
        assert store.get("key") == "café"
        assert beneath.get("key") == stored
    assert TextEncodingStore(DictStore()).put("key", "utf-8 by default") is None


def test_gzip_store_compresses():
    from blobstore import DictStore, GzipStore

    beneath = DictStore()
    store = GzipStore(beneath)
    store.put("key", b"data" * 1000)
    assert store.get("key") == b"data" * 1000
    stored = beneath.get("key")
    assert gzip.decompress(stored) == b"data" * 1000
    assert len(stored) < 100
    beneath.put("by others", gzip.compress(b"data"))
    assert store.get("by others") == b"data"


def test_buffer_store_takes_and_gives_files():
    from blobstore import BufferStore, DictStore

    beneath = DictStore()
    store = BufferStore(beneath)
    store.put("key", io.BytesIO(b"data"))
    assert beneath.get("key") == b"data"
    file = store.get("key")
    assert isinstance(file, io.BytesIO)
    assert file.read(2) == b"da"
    file.seek(0)
    assert file.read() == b"data"


def test_base64_store_encodes():
    from blobstore import Base64Store, DictStore

    beneath = DictStore()
    store = Base64Store(beneath)
    store.put("key", bytes(range(256)))
    assert store.get("key") == bytes(range(256))
    assert beneath.get("key") == base64.b64encode(bytes(range(256)))


# --- Utilities: keys -----------------------------------------------------------------------------


def test_key_validating_store_asks_a_validator():
    from blobstore import DictStore, KeyValidatingStore

    def validator(key):
        if not key.startswith("good"):
            raise KeyError(key)

    store = KeyValidatingStore(DictStore(), validator)
    store.put("good key", b"data")
    assert store.get("good key") == b"data"
    for call in (
        lambda: store.put("bad", b""),
        lambda: store.get("bad"),
        lambda: store.delete("bad"),
    ):
        with pytest.raises(KeyError):
            call()
    assert list(store.keys()) == ["good key"]


def test_regex_validating_store_uses_a_regex():
    from blobstore import DictStore, RegexValidatingStore

    store = RegexValidatingStore(DictStore(), r"[a-z]+/\d{4}")
    store.put("run/2024", b"data")
    for key in ("run", "run/24", "run/2024/and more"):
        with pytest.raises(KeyError):
            store.put(key, b"data")
    assert list(store.keys()) == ["run/2024"]


def test_url_validating_store_takes_urls():
    from blobstore import DictStore, UrlValidatingStore

    store = UrlValidatingStore(DictStore())
    store.put("https://example.org/a?b=1", b"data")
    for key in ("no url", "ftp://example.org/x", "http:", "https://"):
        with pytest.raises(KeyError):
            store.put(key, b"data")
    assert list(store.keys()) == ["https://example.org/a?b=1"]


def test_prefix_store_puts_a_prefix_before_keys():
    from blobstore import DictStore, PrefixStore

    beneath = DictStore()
    beneath.put("other/x", b"not ours")
    store = PrefixStore(beneath, "ours/")
    store.put("key", b"data")
    assert contents(beneath) == {"other/x": b"not ours", "ours/key": b"data"}
    assert contents(store) == {"key": b"data"}


def test_hash_prefix_store_puts_a_hash_before_keys():
    from blobstore import DictStore, HashPrefixStore

    beneath = DictStore()
    store = HashPrefixStore(beneath)
    store.put("key", b"data")
    assert list(beneath.keys()) == [hashlib.sha256(b"key").hexdigest()[:8] + "/key"]
    assert contents(store) == {"key": b"data"}


def test_url_encoding_store_encodes_and_preserves_the_hierarchy():
    from blobstore import DictStore, UrlEncodingStore

    beneath = DictStore()
    store = UrlEncodingStore(beneath)
    store.put("path/with spaces/and#special&chars", b"data")
    assert list(beneath.keys()) == ["path/with%20spaces/and%23special%26chars"]
    assert contents(store) == {"path/with spaces/and#special&chars": b"data"}


# --- Utilities: functions ------------------------------------------------------------------------


def two_stores():
    source, target = blobstore.DictStore(), blobstore.FilesystemStore("./target")
    for key, data in {"a": b"1", "b/c": b"2", "changed": b"new"}.items():
        source.put(key, data)
    for key, data in {"changed": b"old", "extra": b"3"}.items():
        target.put(key, data)
    return source, target


def test_sync_stores_makes_contents_identical():
    from blobstore import sync_stores

    source, target = two_stores()
    sync_stores(source, target)
    assert contents(target) == contents(source) | {"extra": b"3"}
    sync_stores(source, target, delete=True)
    assert contents(target) == contents(source)


def test_copy_store_copies_a_store_into_another():
    from blobstore import copy_store

    source, target = two_stores()
    copy_store(source, target, overwrite=False)
    assert contents(target) == contents(source) | {"extra": b"3", "changed": b"old"}
    copy_store(source, target)
    assert contents(target) == contents(source) | {"extra": b"3"}


def test_clear_store_removes_all_data():
    from blobstore import clear_store

    _, target = two_stores()
    clear_store(target)
    assert contents(target) == {}


def test_asyncio_versions_of_the_utilities():
    from blobstore.aio import (
        AsyncCachingStore,
        AsyncDictStore,
        AsyncFanoutStore,
        AsyncFilesystemStore,
        async_clear_store,
        async_copy_store,
        async_sync_stores,
    )

    async def listed(store):
        keys = store.keys()
        return [key async for key in keys]

    async def main():
        target = AsyncFilesystemStore("./target")
        async with (
            AsyncFanoutStore([AsyncDictStore(), AsyncDictStore()]) as source,
            AsyncCachingStore(target, AsyncDictStore()) as store,
        ):
            await source.put("a", b"1")
            await source.put("b", b"2")
            await async_copy_store(source, store)
            assert await target.get("a") == b"1"
            await source.put("a", b"new")
            await source.delete("b")
            await async_sync_stores(source, store, delete=True)
            assert await listed(target) == ["a"]
            assert await store.get("a") == b"new"
            await async_clear_store(store)
            assert await listed(store) == []

    asyncio.run(main())


# --- YAML configuration --------------------------------------------------------------------------


FIRST_BLOCK = """
stores:
  store1:
    type: DictStore

  readonly_store:
    type: ReadonlyStore
    base: store1

main: readonly_store

"""

# Of the block after it, the store of another type: buckets are told of elsewhere.
CONFIG_BLOCK = """
  async_store:
    type: AsyncFilesystemStore
    config:
      root_path: ./async
"""

CACHING_BLOCK = """
  caching_store:
    type: CachingStore
    base:
      main_store: hash_prefix_store
      cache_store: backup_store
"""

MIRRORING_BLOCK = """
  mirror_store:
    type: MirroringStore
    base:
      - caching_store
      - text_encoding_store
"""

# What the blocks above name, and the document does not show.
NAMED = """
  hash_prefix_store:
    type: HashPrefixStore
    base: store1

  backup_store:
    type: FilesystemStore
    config:
      root_path: ./backup

  text_encoding_store:
    type: TextEncodingStore
    base: store2
    config:
      encoding: latin-1

  store2:
    type: DictStore
"""


@pytest.fixture
def factory(tmp_path):
    from blobstore import StoreFactory

    stores, main = FIRST_BLOCK.split("main:")
    path = tmp_path / "stores.yaml"
    path.write_text(
        stores + CONFIG_BLOCK + CACHING_BLOCK + MIRRORING_BLOCK + NAMED + "\nmain:" + main,
        encoding="utf-8",
    )
    return StoreFactory(str(path))


def test_the_first_block_as_it_stands(tmp_path):
    from blobstore import StoreFactory

    path = tmp_path / "stores.yaml"
    path.write_text(FIRST_BLOCK, encoding="utf-8")
    for _ in range(2):
        with StoreFactory(path).build() as store:
            assert isinstance(store, blobstore.ReadonlyStore)
            assert isinstance(store.store, blobstore.DictStore)


def test_main_is_built_by_default(factory):
    with factory.build() as store:
        assert isinstance(store, blobstore.ReadonlyStore)
        with pytest.raises(NotImplementedError):
            store.put("key", b"data")
        assert list(store.keys()) == []


def test_config_holds_initialization_parameters(factory, tmp_path):
    async def main():
        async with factory.build("async_store") as store:
            await store.put("my_object_key", b"my object data")
            return await store.get("my_object_key")

    assert asyncio.run(main()) == b"my object data"
    assert (tmp_path / "async/my_object_key").read_bytes() == b"my object data"


def test_caching_stores_have_two_bases(factory, tmp_path):
    with factory.build("caching_store") as store:
        assert isinstance(store, blobstore.CachingStore)
        store.put("key", b"data")
        assert store.get("key") == b"data"
        assert isinstance(store.store, blobstore.HashPrefixStore)
        assert store.store.get("key") == b"data"
        assert (tmp_path / "backup/key").exists()


def test_mirroring_stores_have_a_list_of_bases(factory):
    with factory.build("mirror_store") as store:
        assert isinstance(store, blobstore.MirroringStore)
        caching, text = store.children.values()
        assert isinstance(caching, blobstore.CachingStore)
        assert isinstance(text, blobstore.TextEncodingStore)
        # One child takes bytes, the other text: what both can do is look, list and delete.
        assert not store.exists("key")
        assert list(store.keys()) == []
        caching.put("key", b"data")
        text.put("key", "café")
        assert store.exists("key")
        store.delete("key")
        assert not caching.exists("key")
        assert not text.exists("key")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("main: readonly_store", "stores"),
        ("stores:\n  store1:\n    type: DictStore\n", "main"),
        ("stores:\n  store1:\n    config: {}\nmain: store1\n", "type"),
        ("stores:\n  store1:\n    type: NoStore\nmain: store1\n", "NoStore"),
        ("stores:\n  store1:\n    type: ReadonlyStore\nmain: store1\n", "base"),
        ("stores:\n  store1:\n    type: ReadonlyStore\n    base: nobody\nmain: store1\n", "nobody"),
    ],
)
def test_what_a_file_must_have(tmp_path, wrong, told):
    from blobstore import ConfigError, StoreFactory

    path = tmp_path / "stores.yaml"
    path.write_text(wrong, encoding="utf-8")
    with pytest.raises(ConfigError, match=told):
        StoreFactory(str(path)).build()


# --- BucketStore and AsyncBucketStore ------------------------------------------------------------


@pytest.fixture
def s3_client(s3_server):
    return s3_server.client


def test_async_bucket_store_of_the_first_document(s3_client, s3_bucket):
    from blobstore.aio import AsyncBucketStore

    async def main():
        async with AsyncBucketStore(s3_client, s3_bucket) as store:
            await store.put("my_object_key", b"my object data")
            return await store.get("my_object_key")

    assert asyncio.run(main()) == b"my object data"
    # The client that was passed in is not closed.
    found = s3_client.get_object(Bucket=s3_bucket, Key="my_object_key")
    assert found["Body"].read() == b"my object data"


def test_async_bucket_store_of_the_third_document(s3_server, s3_bucket):
    from blobstore.aio import AsyncBucketStore

    async def main():
        async with AsyncBucketStore(
            bucket_name=s3_bucket,
            endpoint_url=s3_server.endpoint,
            s3_access_key=s3_server.access_key,
            s3_secret_key=s3_server.secret_key,
        ) as store:
            await store.put("my_object_key", b"my object data")
            data = await store.get("my_object_key")
            keys = store.keys()
            assert [key async for key in keys] == ["my_object_key"]
        return data

    assert asyncio.run(main()) == b"my object data"


@pytest.mark.parametrize(
    "form",
    ["(bucket, client)", "bucket_name=, client=", "endpoint_url=", "s3_url="],
)
def test_bucket_store_is_made_in_all_documented_ways(form, s3_server, s3_client, s3_bucket):
    from blobstore import BucketStore

    keys = {"s3_access_key": s3_server.access_key, "s3_secret_key": s3_server.secret_key}
    make = {
        "(bucket, client)": lambda: BucketStore(s3_bucket, s3_client),
        "bucket_name=, client=": lambda: BucketStore(bucket_name=s3_bucket, client=s3_client),
        "endpoint_url=": lambda: BucketStore(
            bucket_name=s3_bucket, endpoint_url=s3_server.endpoint, **keys
        ),
        "s3_url=": lambda: BucketStore(bucket_name=s3_bucket, s3_url=s3_server.endpoint, **keys),
    }[form]

    store = make()
    store.put("my_object_key", b"my object data")
    with make() as store:
        assert store.get("my_object_key") == b"my object data"
        assert store.exists("my_object_key")
        store.delete("my_object_key")
        with pytest.raises(KeyError):
            store.get("my_object_key")


def test_keys_of_a_bucket_are_a_generator(s3_client, s3_bucket):
    import inspect

    from blobstore import BucketStore

    store = BucketStore(s3_bucket, s3_client)
    store.put("a/1", b"1")
    store.put("b", b"2")

    # For S3 stores, store.keys() returns a Generator to support S3 pagination.
    assert inspect.isgenerator(store.keys())
    # To list all object keys
    keys = []
    for key in store.keys():  # noqa: SIM118 - as in the document
        keys.append(key)  # noqa: PERF402
    assert sorted(keys) == ["a/1", "b"]
    assert list(store.keys(prefix="a")) == ["a/1"]


def test_the_yaml_example_with_a_bucket(tmp_path):
    from blobstore import StoreFactory

    path = tmp_path / "stores.yaml"
    path.write_text(
        """
stores:
  async_store:
    type: AsyncBucketStore
    config:
      endpoint_url: http://test
      s3_access_key: X
      s3_secret_key: Y
      bucket_name: test-bucket
main: async_store
"""
    )
    store = StoreFactory(path).build()
    assert repr(store) == "AsyncBucketStore('test-bucket', endpoint_url='http://test')"
