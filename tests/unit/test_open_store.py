"""open_store: paths, URLs, files and mappings."""

from __future__ import annotations

import os
import re
import sqlite3
import zipfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore import BlobStore, registry
from blobstore.backends import DictStore, FilesystemStore
from blobstore.backends.blob.urls import StoreUrl
from blobstore.config import StoreFactory, open_store
from blobstore.errors import BlobStoreError, ConfigError, StorageError
from blobstore.registry import register_store, store_types
from blobstore.wrappers.base import IdentityStore

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def fresh_names(monkeypatch, tmp_path):
    """What a test registers is gone after it; and relative paths are in its folder."""
    monkeypatch.setattr(store_types, "_registered", {})
    monkeypatch.setattr(registry.object_stores, "_registered", {})
    monkeypatch.chdir(tmp_path)


def kind(store):
    with store:
        return type(store).__name__


def refused(what, *words, **options):
    with pytest.raises(ConfigError) as caught:
        open_store(what, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return caught.value


# --- files and mappings --------------------------------------------------------------------------

STORES = "stores: {a: {type: DictStore}, b: {type: IdentityStore, base: a}}\nmain: b\n"


@pytest.mark.parametrize("name", ["stores.yaml", "stores.yml", "STORES.YAML"])
@pytest.mark.parametrize("form", [str, Path, lambda name: f"./{name}"])
def test_yaml_files(name, form):
    Path(name).write_text(STORES)
    assert kind(open_store(form(name))) == "IdentityStore"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_yaml_blocks_of_the_documents_are_opened(page):
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        Path("stores.yaml").write_text(block, encoding="utf-8")
        with open_store("stores.yaml") as store:
            store.put(key="key", data=b"value" * 1000)  # an ObjectStore's order, or a BlobStore's
            assert store.get("key") == b"value" * 1000
        for name in StoreFactory("stores.yaml").names:
            StoreFactory("stores.yaml").build(name).close()


def test_a_class_that_an_installed_package_offers(tmp_path, monkeypatch):
    site = tmp_path / "site"
    info = site / "blobstore_test_tape-1.dist-info"
    info.mkdir(parents=True)
    (site / "blobstore_test_tape.py").write_text(
        "from blobstore import DictStore\n\n\n"
        "class TapeStore(DictStore):\n"
        "    def __init__(self, speed: int = 1):\n"
        "        super().__init__()\n"
        "        self.speed = speed\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: blobstore-test-tape\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[blobstore.object_stores]\nTapeStore = blobstore_test_tape:TapeStore\n"
    )
    monkeypatch.syspath_prepend(site)
    for names in (store_types, registry.object_stores):
        monkeypatch.setattr(names, "_offered", None)  # looked up once in each process
    monkeypatch.setenv("BLOBSTORE_TEST_SPEED", "7")
    Path("stores.yaml").write_text(
        """
stores:
  packed: {type: GzipStore, base: tape}
  tape: {type: TapeStore, config: {speed: "${BLOBSTORE_TEST_SPEED}"}}
main: packed
"""
    )
    with open_store("stores.yaml") as store:
        assert kind(store.store) == "TapeStore"
        assert store.store.speed == 7


def test_a_blob_store_from_a_yaml_file(monkeypatch):
    monkeypatch.setenv("BLOBSTORE_TEST_CODEC", "zstd")
    Path("stores.yaml").write_text(
        """
stores:
  experiments:
    type: BlobStore
    base: safe
    config:
      cache_dir: ./experiments
      backend: sqlite
      compression: ${BLOBSTORE_TEST_CODEC}
      compression_level: ${BLOBSTORE_TEST_LEVEL:-7}
      content_addressable: true
  safe:
    type: EncryptingStore
    base: disk
    config: {key: "${BLOBSTORE_TEST_KEY:-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=}"}
  disk: {type: FilesystemStore, config: {root_path: ./disk}}
main: experiments
""",
        encoding="utf-8",
    )
    with open_store("stores.yaml") as store:
        assert type(store) is BlobStore
        key = store.put("text " * 10_000, metadata={"f1": 0.5})
        assert store.get_metadata(key)["metadata"] == {"f1": 0.5}
    with open_store(Path("stores.yaml")) as store:
        assert store[key] == "text " * 10_000
    written = [path for path in Path("disk").rglob("*") if path.is_file()]
    assert any(path.suffixes == [".txt", ".zst"] for path in written)
    assert not any(b"text" in path.read_bytes() for path in written)


def test_yaml_files_that_are_wrong():
    refused("absent.yaml", "absent.yaml", "no such file")
    Path("stores.yaml").write_text(STORES)
    refused("stores.yaml", "'root_path'", "under 'config'", root_path="x")
    Path("bad.yaml").write_text("main: x")
    refused("bad.yaml", "bad.yaml", "'stores'")
    Path("imports.yaml").write_text("stores: {a: {type: x.Y}}\nmain: a")
    refused("imports.yaml", "allow_import=True")
    refused("imports.yaml", "'x'", allow_import=True)


def test_a_folder_that_is_called_like_a_yaml_file():
    Path("folder.yaml").mkdir()
    assert kind(open_store("folder.yaml")) == "FilesystemStore"


def test_mappings():
    assert kind(open_store({"stores": {"a": {"type": "DictStore"}}, "main": "a"})) == "DictStore"
    assert kind(open_store({"type": "DictStore"})) == "DictStore"
    nested = {"type": "IdentityStore", "base": {"type": "DictStore"}}
    with open_store(nested) as store:
        assert type(store) is IdentityStore
        assert type(store.store) is DictStore
    refused({"type": "DictStore"}, "'x'", "under 'config'", x=1)
    refused({}, "'stores'")
    refused({"type": "blobstore.backends.blob.memory.DictStore"}, "allow_import")
    allowed = open_store({"type": "blobstore.backends.blob.memory.DictStore"}, allow_import=True)
    assert kind(allowed) == "DictStore"


# --- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [str, Path])
def test_a_new_path_is_a_folder_of_files(form, tmp_path):
    with open_store(form("data")) as store:
        assert type(store) is FilesystemStore
        store.put("a/b", b"1")
    assert Path("data/a/b").read_bytes() == b"1"
    with open_store(form("./data/")) as store:
        assert store.get("a/b") == b"1"
        assert store.root_path == tmp_path / "data"


def test_a_folder_that_is_there():
    Path("data").mkdir()
    Path("data/file").write_bytes(b"1")
    with open_store("data") as store:
        assert list(store.keys()) == ["file"]


def test_a_folder_with_a_blob_store():
    with BlobStore("data", backend="sqlite") as store:
        store["k"] = [1]
    with open_store("data") as store:
        assert type(store) is BlobStore
        assert store["k"] == [1]
    with open_store("data", readonly=True) as store, pytest.raises(NotImplementedError):
        store["k"] = 2


@pytest.mark.parametrize("name", ["x.zip", "X.ZIP"])
def test_zips(name):
    with open_store(name) as store:
        assert type(store).__name__ == "ZipStore"
        store.put("a", b"1")
    assert zipfile.is_zipfile(name)
    with open_store(name) as store:
        assert store.get("a") == b"1"
    Path(name).rename("renamed")
    assert kind(open_store("renamed")) == "ZipStore"


@pytest.mark.parametrize("name", ["x.db", "x.sqlite", "x.sqlite3", "X.DB"])
def test_databases(name):
    with open_store(name) as store:
        assert type(store).__name__ == "SqliteStore"
        store.put("a", b"1")
    with sqlite3.connect(name) as database:
        assert database.execute("select count(*) from sqlite_master").fetchone()[0]
    database.close()
    Path(name).rename("renamed")
    with open_store("renamed") as store:
        assert store.get("a") == b"1"


def test_an_empty_database_file():
    """It is for SqliteStore to say what that means."""
    Path("x.db").touch()
    with pytest.raises(BlobStoreError, match=r"x\.db is empty") as caught:
        open_store("x.db")
    assert caught.value.__notes__ == ["while building open_store('x.db')"]


def test_files_that_are_no_store():
    Path("notes.txt").write_text("text")
    Path("empty").touch()
    for name in ("notes.txt", "empty", "/dev/null"):
        refused(name, name, "neither a zip")
    Path("folder").mkdir()
    with pytest.raises((ConfigError, StorageError)):
        open_store("notes.txt/below").put("key", b"1")


def test_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with open_store("~/data") as store:
        assert store.root_path == tmp_path / "home/data"
    refused("~nobody-of-that-name/data", "home")


@pytest.mark.parametrize("what", [None, 5, "", b"x", "a\0b", ["x"], DictStore()])
def test_what_is_no_store(what):
    refused(what, "a path, a URL or a mapping")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_folders_that_cannot_be_looked_into():
    Path("closed").mkdir(mode=0)
    with pytest.raises(StorageError):
        open_store("closed/below/x")


def test_paths_that_are_too_long():
    with pytest.raises(StorageError, match="too long"):
        open_store("x" * 5000)


def test_options_of_paths():
    with open_store("data", tmp_dir="scratch") as store:
        store.put("a", b"1")
    assert Path("scratch").is_dir()
    refused("data", "open_store('data')", "'tmp_dr'", "did you mean 'tmp_dir'?", tmp_dr="x")
    refused("data", "'root_path'", root_path="y")
    refused("data", "tmp_dir", tmp_dir=5)


# --- URLs ----------------------------------------------------------------------------------------


def test_memory():
    assert kind(open_store("memory://")) == "DictStore"
    assert kind(open_store("MEMORY://")) == "DictStore"
    for url in ("memory://x", "memory:///x", "memory:///", "memory://#x"):
        refused(url, "memory://")
    refused("memory://?x=1", "'x'")


@pytest.mark.parametrize(
    ("scheme", "name", "attribute"),
    [
        ("file", "data", "FilesystemStore"),
        ("sqlite", "x.db", "SqliteStore"),
        ("zip", "x.zip", "ZipStore"),
    ],
)
@pytest.mark.parametrize("form", ["{}://{}/{}", "{}:///{}/{}", "{}://localhost{}/{}"])
def test_files_by_url(tmp_path, scheme, name, attribute, form):
    url = form.format(scheme, tmp_path, name)
    with open_store(url) as store:
        assert type(store).__name__ == attribute
        store.put("a", b"1")
    assert (tmp_path / name).exists()
    with open_store(f"{scheme}:///./{name}") as store:  # the same, from the working directory
        assert store.get("a") == b"1"


def test_relative_urls(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with open_store("file:///../beside") as store:
        assert store.root_path == tmp_path / "beside"
    with open_store("file:///./x") as store:
        assert store.root_path == tmp_path / "below/x"
    with open_store("file:///.") as store:
        assert store.root_path == tmp_path / "below"
    with open_store("file:///..") as store:
        assert store.root_path == tmp_path


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("a%20b", "a b"),
        ("%C3%BC", "ü"),
        ("ü b", "ü b"),
        ("a%23b%3Fc", "a#b?c"),
        ("100%25", "100%"),
        ("a+b", "a+b"),
        ("%7Ex", "~x"),
        ("a;b=c", "a;b=c"),
        ("a//b", "a/b"),
        ("a%2Fb", "a/b"),
    ],
)
def test_percent_encoding(tmp_path, written, name):
    with open_store(f"file://{tmp_path}/{written}") as store:
        assert store.root_path == tmp_path / name


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1))
def test_any_name_can_be_encoded(name):
    from urllib.parse import quote

    assert StoreUrl.of(f"file:///x/{quote(name, safe='')}", "{}").path() == f"/x/{name}"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file://host/path", ["three slashes", "file:///"]),
        ("sqlite://x.db", ["three slashes", "sqlite:///"]),
        ("file://", ["no path"]),
        ("zip:///", ["no path"]),
        ("file:///a#b", ["%23"]),
        ("file:///a#", ["%23"]),
        ("file:///a%FF", ["UTF-8"]),
        ("file:///a%00", ["a"]),
        ("file:///a\nb", ["control"]),
        ("file://[x/y", ["no URL"]),
        ("file:///a?fsync", ["?name=value"]),
        ("file:///a?fsync=true&fsync=true", ["'fsync'", "twice"]),
        ("file:///a?fsinc=true", ["'fsinc'", "did you mean 'fsync'?"]),
        ("file:///a?fsync=perhaps", ["'fsync'", "true or false"]),
        ("file:///a?root_path=b", ["'root_path'", "twice"]),
        ("s3://key:secret@bucket/prefix", ["s3://bucket/prefix", "credentials"]),
        ("fiel:///a", ["'fiel'", "did you mean 'file'?"]),
        ("http://host/x", ["'http'"]),
        ("my path://x", ["known are"]),
        ("://x", ["known are"]),
    ],
)
def test_urls_that_are_wrong(url, words):
    refused(url, "open_store(", *words)


def test_errors_do_not_show_passwords():
    error = refused("fiel://user:hunter22@host/path?token=hunter23", "fiel://host/path")
    assert "hunter" not in str(error)
    assert "hunter" not in str(refused("fiel://user:hunter22@[x/path", "fiel://..."))
    error = refused("fiel://user:hunter22@h\u2100/path", "fiel://...", "no URL")
    assert "hunter" not in str(error)
    assert error.__cause__ is None


class Typed(DictStore):
    def __init__(
        self, root: str = "", number: int = 0, share: float = 0, where: Path = Path(), text=""
    ):
        super().__init__()
        self.given = (root, number, share, where, text)

    @classmethod
    def from_url(cls, url, **options):
        if "bad" in options:
            raise TypeError(f"{url} with bad={options['bad']!r}")
        return cls(url, **options)


def test_options_in_the_query(tmp_path):
    url = f"file://{tmp_path}/x?fsync=yes&tmp_dir={tmp_path}/a%20b"
    with open_store(url) as store:
        store.put("a", b"1")
    assert (tmp_path / "a b").is_dir()
    with open_store(f"file://{tmp_path}/x", tmp_dir="scratch") as store:
        store.put("a", b"1")
    assert Path("scratch").is_dir()
    refused(f"file://{tmp_path}/x?fsync=true", "'fsync'", "twice", fsync=True)


def test_urls_of_registered_classes():
    register_store(Typed, name="tape")
    with open_store("tape://reel/7?x=1", number=5, text="t") as store:
        assert store.given == ("tape://reel/7?x=1", 5, 0, Path(), "t")
    registry.object_stores.register("redis", Typed)
    assert open_store("REDIS://host").given[0] == "REDIS://host"
    error = refused("tape://u:hunter22@reel/7", "tape://reel/7", "the URL with bad=1", bad=1)
    assert "hunter22" not in str(error)
    refused("tape://reel", "tape://reel", "colour", colour="red")


def test_errors_of_registered_classes_do_not_show_passwords():
    class Telling(DictStore):
        @classmethod
        def from_url(cls, url):
            parts = urlsplit(url)
            raise ValueError(f"{parts.netloc}, {parts.query}, {parse_qs(parts.query)}")

    register_store(Telling, name="telling")
    url = "telling://u:hunter%4022@reel/7?token=hunter%4023"
    error = refused(url, "telling://reel/7'): u:", "@reel", "?token")
    assert "hunter" not in str(error)
    assert error.__cause__ is None


def test_urls_of_classes_that_know_none():
    register_store(type("Plain", (DictStore,), {}), name="plain")
    refused("plain://x", "plain://x", "from_url")

    class Wrong(DictStore):
        @classmethod
        def from_url(cls, url):
            return {}

    register_store(Wrong, name="wrong")
    refused("wrong://x", "wrong://x", "no object store")


def test_a_package_may_know_s3_better_than_we_do():
    register_store(Typed, name="s3")
    assert open_store("s3://bucket/x").given[0] == "s3://bucket/x"
