"""The folder of a store: who may open it, and what is never done to it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from blobstore import BlobStore, folder
from blobstore.backends import DictStore, FilesystemBlobBackend, JsonBackend, SqlBackend
from blobstore.errors import (
    ConfigError,
    IncompatibleStoreError,
    IntegrityError,
    KeyNotFoundError,
    StorageError,
)
from blobstore.folder import (
    DESCRIPTION,
    FORMAT,
    MARKER,
    Description,
    claim,
    open_index,
    open_objects,
    prepare,
    read_description,
)
from blobstore.keys import is_location
from blobstore.protocols import Capabilities


def opened(root, backend=None, *, readonly=False):
    """Open and close an index; what the folder said of it."""
    index, described = open_index(root, backend, fsync=False, readonly=readonly)
    store_id = index.store_id
    if index is not backend:
        index.close()
    assert described.store_id == store_id
    return described


def describe(root, **changes):
    path = root / DESCRIPTION
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, **changes}))


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path):
    return prepare(tmp_path / "store", readonly=False)


# --- the place -----------------------------------------------------------------------------------


def test_a_folder_is_made_and_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = prepare("a/b/../c", readonly=False)
    assert made == tmp_path.resolve() / "a" / "c"
    assert made.is_dir()
    assert prepare(Path("a/c"), readonly=False) == made
    link = tmp_path / "link"
    link.symlink_to(made)
    assert prepare(link, readonly=True) == made
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare("~/a/c", readonly=True) == made


def test_a_folder_to_be_read_only_is_not_made(tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        prepare(tmp_path / "nowhere", readonly=True)
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError):
        prepare(tmp_path / "file", readonly=True)


class BytesPath:
    def __fspath__(self):
        return b"name"


@pytest.mark.parametrize(
    "wrong", ["", None, 5, b"name", ["a"], "a\0b", "~nobody-of-that-name/x", BytesPath()], ids=type
)
def test_what_is_no_path(tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        prepare(wrong, readonly=False)
    assert [*tmp_path.iterdir()] == []


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_bytes(b"theirs")
    for place in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(StorageError, match="file"):
            prepare(place, readonly=False)
    assert (tmp_path / "file").read_bytes() == b"theirs"


def test_a_loop_of_links(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises((ConfigError, StorageError)):
        prepare(tmp_path / "a", readonly=False)


# --- a new store ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "kind"), [(None, "json"), ("json", "json"), ("sqlite", "sqlite")]
)
def test_a_new_store_is_described(root, backend, kind):
    described = opened(root, backend)
    assert described == Description(FORMAT, FORMAT, described.store_id, kind, described.created_by)
    assert len(described.store_id) == 32
    assert read_description(root) == described
    written = json.loads((root / DESCRIPTION).read_text())
    assert (written["format"], written["index"]) == (FORMAT, kind)
    assert not [path for path in root.iterdir() if path.name.startswith(f".{DESCRIPTION}")]


@pytest.mark.parametrize("kind", ["json", "sqlite"])
@pytest.mark.parametrize("again", [None, "same"])
def test_opening_again_takes_what_is_there(root, kind, again):
    first = opened(root, kind)
    assert opened(root, kind if again else None) == first
    assert opened(root, readonly=True) == first


def test_the_other_kind_is_refused_and_nothing_made(root):
    opened(root, "sqlite")
    before = contents(root)
    with pytest.raises(ConfigError, match="'sqlite'"):
        opened(root, "json")
    assert contents(root).keys() == before.keys()


@pytest.mark.parametrize("wrong", ["xml", "", "JSON", 5, b"json", JsonBackend])
def test_unknown_kinds(root, wrong):
    with pytest.raises(ConfigError):
        opened(root, wrong)
    assert contents(root) == {}


def test_an_index_elsewhere(root, tmp_path):
    with JsonBackend(tmp_path / "index") as index:
        described = opened(root, index)
        assert described.index == "elsewhere"
        assert opened(root, index) == described  # and it was not closed
        for backend in (None, "json", "sqlite"):
            with pytest.raises(ConfigError, match="elsewhere"):
                opened(root, backend)
    with JsonBackend(tmp_path / "another") as other:
        with pytest.raises(IncompatibleStoreError, match=described.store_id):
            opened(root, other)
        assert other.get("k") is None  # not closed, as it was given
    assert read_description(root) == described


def test_an_index_by_url(root, tmp_path):
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    described = opened(root, url)
    assert described.index == "elsewhere"
    assert opened(root, url) == described
    with pytest.raises(IncompatibleStoreError):
        opened(root, f"sqlite:///{tmp_path / 'another.db'}")
    with pytest.raises(ConfigError, match="elsewhere"):
        opened(root, None)


def test_an_instance_of_the_index_in_the_folder(root):
    """It is found again by name: that it was given as an instance once is no reason."""
    with JsonBackend(root) as index:
        described = opened(root, index)
    assert described.index == "json"
    assert opened(root, None) == described
    with JsonBackend(root) as index:
        assert opened(root, index) == described


def test_an_index_is_closed_when_its_folder_is_anothers(root, tmp_path, monkeypatch):
    opened(root, "json")
    describe(root, store_id="0" * 32)
    closed = []
    original = JsonBackend.close
    monkeypatch.setattr(JsonBackend, "close", lambda self: (closed.append(1), original(self)))
    with pytest.raises(IncompatibleStoreError, match="0" * 32):
        opened(root)
    assert closed


# --- two at once ---------------------------------------------------------------------------------

CREATE = """
import sys
from pathlib import Path
from blobstore.folder import open_index, open_objects, claim
root, backend = Path(sys.argv[1]), sys.argv[2]
sys.stdin.readline()
index, described = open_index(root, backend, fsync=False, readonly=False)
claim(open_objects(root, None, fsync=False, readonly=False)[1], described.store_id)
print(index.store_id, described.store_id, described.index)
index.close()
"""


@pytest.mark.parametrize("backend", ["json", "sqlite"])
def test_processes_that_make_a_store_at_once_agree(root, backend):
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, str(root), backend],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for maker in makers:
        maker.stdin.write("go\n")
        maker.stdin.flush()
    done = [(*maker.communicate(timeout=60), maker.returncode) for maker in makers]
    assert {code for *_, code in done} == {0}, done
    assert len({out for out, *_ in done}) == 1
    store_id, described_id, kind = done[0][0].split()
    assert (described_id, kind) == (store_id, backend)
    assert opened(root).store_id == store_id


def test_threads_that_make_a_store_at_once_agree(root):
    meeting = threading.Barrier(8, timeout=20)
    found = []

    def make():
        meeting.wait()
        found.append(opened(root))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({*found}) == 1


def test_whoever_describes_first_wins(root, monkeypatch):
    """The description is never replaced, whatever the loser thought."""
    theirs = {"format": 1, "least_reader": 1, "store_id": "f" * 32, "index": "json"}
    text = json.dumps({**theirs, "created_by": "another"})
    link = os.link

    def late(source, target):
        Path(target).write_text(text)
        link(source, target)

    monkeypatch.setattr(folder.os, "link", late)
    with pytest.raises(IncompatibleStoreError):
        opened(root, "json")
    assert (root / DESCRIPTION).read_text() == text
    assert not [path for path in root.iterdir() if path.name.startswith(".blobstore.json")]


# --- damaged, newer, foreign ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b'{"format": 1', b"\0" * 200, b"not json", b'"a" "b"'],
    ids=repr,
)
def test_a_damaged_description(root, data):
    opened(root)
    (root / DESCRIPTION).write_bytes(data)
    before = contents(root)
    with pytest.raises(IntegrityError, match=DESCRIPTION.replace(".", r"\.")):
        opened(root)
    assert contents(root) == before


def test_a_description_that_nests_without_end(root):
    opened(root)
    (root / DESCRIPTION).write_text("[" * 100_000)
    with pytest.raises((IntegrityError, IncompatibleStoreError)):
        opened(root)


@pytest.mark.parametrize("text", ["[]", "{}", "null", "5", '{"format": 1}', '"text"'])
def test_a_description_of_another_program(root, text):
    (root / DESCRIPTION).write_text(text)
    with pytest.raises(IncompatibleStoreError, match=r"blobstore\.json"):
        opened(root)
    assert contents(root) == {Path(DESCRIPTION): text.encode()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("least_reader", "1"),
        ("least_reader", None),
        ("store_id", 5),
        ("store_id", None),
        ("index", None),
        ("index", ["json"]),
        ("index", {}),
        ("index", "xml"),
    ],
    ids=repr,
)
def test_a_description_with_a_wrong_field(root, name, value):
    opened(root)
    describe(root, **{name: value})
    with pytest.raises((IncompatibleStoreError, ConfigError)):
        opened(root)


def test_a_newer_store_is_refused_and_left_alone(root):
    opened(root)
    describe(root, format=9, least_reader=9, created_by="blobstore 99.0", surprise=[1])
    before = contents(root)
    for backend in (None, "json"):
        with pytest.raises(IncompatibleStoreError, match=r"blobstore 99\.0"):
            opened(root, backend)
    assert contents(root) == before


def test_a_newer_store_that_we_can_read(root):
    opened(root)
    describe(root, format=9, least_reader=FORMAT, surprise=[1])
    assert opened(root).format == 9
    assert json.loads((root / DESCRIPTION).read_text())["surprise"] == [1]


@pytest.mark.parametrize("kind", ["json", "sqlite"])
def test_an_index_that_is_gone_is_never_made_anew(root, kind):
    opened(root, kind)
    for path in root.glob("cache_metadata*"):
        path.unlink()
    for backend in (None, kind):
        with pytest.raises(IntegrityError, match="gone"):
            opened(root, backend)
    assert {*contents(root)} == {Path(DESCRIPTION)}


@pytest.mark.parametrize("kind", ["json", "sqlite"])
def test_a_description_that_is_gone_is_written_from_the_index(root, kind):
    described = opened(root, kind)
    (root / DESCRIPTION).unlink()
    assert opened(root, readonly=True).store_id == described.store_id
    assert not (root / DESCRIPTION).exists()
    assert opened(root) == described
    assert read_description(root) == described


def two_indexes(root, tmp_path):
    opened(root, "json")
    other = prepare(tmp_path / "other", readonly=False)
    opened(other, "sqlite")
    for path in other.glob("cache_metadata*"):
        path.rename(root / path.name)


def test_two_indexes_and_no_description(root, tmp_path):
    described = opened(root, "json")
    two_indexes(root, tmp_path)
    (root / DESCRIPTION).unlink()
    with pytest.raises(ConfigError, match="backend="):
        opened(root)
    assert opened(root, "json") == described  # as the message asks for


def test_two_indexes_and_a_description(root, tmp_path):
    described = opened(root, "json")
    two_indexes(root, tmp_path)
    assert opened(root) == described
    with pytest.raises(ConfigError):
        opened(root, "sqlite")


def test_a_description_that_cannot_be_read(root):
    opened(root)
    (root / DESCRIPTION).unlink()
    (root / DESCRIPTION).mkdir()
    with pytest.raises(StorageError, match="reading"):
        opened(root)


# --- the blobs -----------------------------------------------------------------------------------


def opened_objects(root, blob_backend, *, fsync=False):
    found, objects = open_objects(root, blob_backend, fsync=fsync, readonly=False)
    assert found == root
    return objects


def test_object_stores_by_name_and_instance(root):
    with opened_objects(root, None) as objects:
        assert type(objects) is FilesystemBlobBackend
        assert objects.base_dir == root / "blobs"
    with opened_objects(root, "filesystem", fsync=True) as objects:
        assert type(objects) is FilesystemBlobBackend
    with opened_objects(root, "memory") as objects:
        assert type(objects) is DictStore
        assert opened_objects(root, objects) is objects


@pytest.mark.parametrize("url", ["s3://", "s3://b!", "zip://", "memory://host", "sqlite:///x?y=1"])
def test_a_refused_url_leaves_no_folder(tmp_path, url):
    with pytest.raises(ConfigError):
        BlobStore(tmp_path / "new", blob_backend=url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["", "disk", 5, DictStore, b"memory", "ftp://host/x", "://"])
def test_unknown_object_stores(root, wrong):
    with pytest.raises(ConfigError):
        open_objects(root, wrong, fsync=False, readonly=False)


def test_blobs_are_claimed_once():
    with DictStore() as objects:
        claim(objects, "a" * 32)
        assert objects.get(MARKER) == b"a" * 32
        assert not is_location(MARKER)
        claim(objects, "a" * 32)
        with pytest.raises(IncompatibleStoreError, match="a" * 32) as caught:
            claim(objects, "b" * 32)
        assert caught.value.location == MARKER
        assert objects.get(MARKER) == b"a" * 32


def test_of_two_that_claim_at_once_one_wins():
    class Late(DictStore):
        """Somebody else is first between the look and the claim."""

        def put_if_absent(self, key, data):
            super().put_if_absent(key, b"b" * 32)
            return super().put_if_absent(key, data)

    with Late() as objects, pytest.raises(IncompatibleStoreError, match="b" * 32):
        claim(objects, "a" * 32)


@pytest.mark.parametrize("damaged", [b"", b"\xff\0", b"a" * 31])
def test_a_damaged_marker_is_nobodys(damaged):
    with DictStore() as objects:
        objects.put(MARKER, damaged)
        with pytest.raises(IncompatibleStoreError):
            claim(objects, "a" * 32)
        assert objects.get(MARKER) == damaged


def test_a_marker_that_cannot_be_kept_is_no_claim():
    """A store that forgets what it was given must not pass for one that is ours."""

    class Forgets(DictStore):
        def put_if_absent(self, key, data):
            return True

    with Forgets() as objects, pytest.raises(StorageError):
        claim(objects, "a" * 32)


def test_a_store_that_cannot_list_needs_no_marker():
    class Unlisted(DictStore):
        @property
        def capabilities(self):
            return Capabilities(list=False)

    with Unlisted() as objects:
        claim(objects, "a" * 32)
        claim(objects, "b" * 32)
        with pytest.raises(KeyNotFoundError):
            objects.get(MARKER)


def test_moving_the_folder_changes_nothing(root, tmp_path):
    described = opened(root, "sqlite")
    moved = root.rename(tmp_path / "moved")
    assert opened(moved) == described
    assert str(tmp_path) not in (moved / DESCRIPTION).read_text()
    with SqlBackend(moved / "cache_metadata.db") as index:
        assert opened(moved, index) == described


@pytest.mark.parametrize(
    "options",
    [{"backend": "mysql"}, {"backend": 5}, {"blob_backend": "floppy"}, {"blob_backend": 5},
     {"blob_backend": "floppy://x"}, {"blob_backend": "s3://key:secret@bucket"},
     {"compression": "rar"}, {"inline_max_bytes": -1}],
    ids=str,
)  # fmt: skip
def test_a_wrong_argument_makes_no_folder(tmp_path, options):
    with pytest.raises(ConfigError):
        BlobStore(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_file_system_without_hard_links_can_have_a_store(tmp_path, monkeypatch):
    def link(*args, **options):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    with BlobStore(tmp_path) as store:
        store.put(b"x" * 10_000, key="k")
    with BlobStore(tmp_path) as store:
        assert store["k"] == b"x" * 10_000
    assert {path.name for path in tmp_path.iterdir()} >= {"blobstore.json", "cache_metadata.json"}
    assert not [*tmp_path.glob(".blobstore.json*")]
