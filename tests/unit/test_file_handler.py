"""Files: streamed in and out in bounded memory, and what happens if they change or go."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc

import pytest

from blobstore import BlobStore, codecs
from blobstore.digest import new_digest
from blobstore.errors import (
    IntegrityError,
    InvalidInputError,
    KeyNotFoundError,
    PermissionDeniedError,
    StorageError,
)
from blobstore.handlers.file import FileHandler, LocalFile
from blobstore.handlers.text import BytesHandler
from blobstore.protocols import WriteOptions
from blobstore.streams import MemorySink

MIB = 1 << 20


def noise(seed, size=1000):
    return random.Random(seed).randbytes(size)


@pytest.fixture
def store(tmp_path):
    with BlobStore(tmp_path / "store", content_addressable=True) as store:
        yield store


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "report.txt"
    path.write_bytes(noise(1))
    return path


def blobs(store):
    return [path for path in (store.path / "blobs").rglob("*.*") if path.name[0] != "."]


# --- in and out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", codecs.NAMES)
@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 15, (1 << 15) + 1, MIB, 3 * MIB + 17])
@pytest.mark.parametrize("repeat", [b"", b"abc"], ids=["noise", "text"])
def test_comes_back_by_every_way(tmp_path, codec, size, repeat):
    content = (repeat * size)[:size] if repeat else noise(1, size)
    (tmp_path / "in").write_bytes(content)
    with BlobStore(tmp_path / "store", compression=codec) as store:
        store.put_file(tmp_path / "in", "k", {"a": 1})
        assert store["k"] == content
        with store.open("k") as stream:
            assert stream.read() == content
        out = tmp_path / "out"
        out.write_bytes(b"what was there before" * 10)
        assert store.get_file("k", out) == out
        assert out.read_bytes() == content
        described = store.get_metadata("k")
    assert described["data_type"] == "file"
    assert described["info"] == {"name": "in", "nbytes": size}
    assert described["metadata"] == {"a": 1}


@pytest.mark.parametrize("kind", [str, os.fspath, lambda path: path])
def test_paths_of_every_kind(store, file, kind):
    assert store.put_file(kind(file), "k") == "k"
    assert store.get_file("k", kind(file.with_name("copy"))).read_bytes() == noise(1)


def test_names_of_every_kind(store, tmp_path):
    for name in ("süß \n\t'\"", "-rf", ".hidden", "a" * 200):
        path = tmp_path / name
        path.write_bytes(name.encode())
        store.put_file(path, "k")
        assert store.entry("k").info["name"] == name
        assert store["k"] == name.encode()


def test_a_link_to_a_file_is_its_content(store, file):
    link = file.with_name("link")
    link.symlink_to(file)
    store.put_file(link, "k")
    assert store["k"] == noise(1)


def test_the_file_itself_stays_as_it_is(store, file):
    before = file.stat()
    store.put_file(file, "k")
    after = file.stat()
    assert (before.st_mtime_ns, before.st_size, before.st_ino) == (
        after.st_mtime_ns,
        after.st_size,
        after.st_ino,
    )


# --- memory --------------------------------------------------------------------------------------

SPARSE = """
import resource, sys
from blobstore import BlobStore
folder, codec, shared = sys.argv[1:]
with BlobStore(folder + "/store", compression=codec, content_addressable=shared == "yes") as store:
    store.put_file(folder + "/small", "small")
    store.get_file("small", folder + "/out")
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store.put_file(folder + "/sparse", "k")
    store.get_file("k", folder + "/out")
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in KiB, as Linux does")
@pytest.mark.parametrize(("codec", "shared"), [("lz4", "yes"), ("zstd", "no"), ("none", "no")])
def test_a_file_larger_than_memory_is_streamed(tmp_path, codec, shared):
    size = 100 * MIB
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"here")
    (tmp_path / "small").write_bytes(bytes(3 * MIB))
    done = subprocess.run(
        [sys.executable, "-c", SPARSE, str(tmp_path), codec, shared],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24
    with (tmp_path / "out").open("rb") as out:
        assert out.seek(0, os.SEEK_END) == size
        out.seek(size // 2 - 1)
        assert out.read(6) == b"\0here\0"


@pytest.mark.parametrize("codec", ["gzip", "blosclz"])
def test_the_handler_holds_a_few_pieces_at_most(tmp_path, codec):
    path = tmp_path / "large"
    path.write_bytes(bytes(16 * MIB))

    class Discard(MemorySink):
        def write(self, data):
            return len(data)

    (part,) = FileHandler().plan(LocalFile(path), WriteOptions(codec, 1)).parts
    tracemalloc.start()
    try:
        part.digest(new_digest())
        part.encoding()
        part.write(Discard())
        assert tracemalloc.get_traced_memory()[1] < 5 * MIB
    finally:
        tracemalloc.stop()


# --- sharing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [noise(1), b"abc" * 50_000, b""], ids=["noise", "text", "none"])
def test_a_file_shares_its_blob_with_equal_bytes(store, tmp_path, content):
    path = tmp_path / "f"
    path.write_bytes(content)
    store.put(content, key="bytes")
    store.put_file(path, "file")
    store.put(bytearray(content), key="bytearray")
    assert len({store.entry(key).locations for key in store}) == 1
    assert len(blobs(store)) == 1
    assert store["file"] == store["bytes"] == store["bytearray"] == content
    assert type(store["bytearray"]) is bytearray
    store.delete_many(["bytes", "bytearray"])
    with store.open("file") as stream:
        assert stream.read() == content
    store.delete("file")
    assert blobs(store) == []


def test_its_digest_is_that_of_the_bytes(file):
    found = set()
    for handler, obj in ((FileHandler(), LocalFile(file)), (BytesHandler(), noise(1))):
        hasher = new_digest()
        handler.plan(obj, WriteOptions()).parts[0].digest(hasher)
        found.add(hasher.hexdigest())
    assert len(found) == 1


def test_a_generated_key_is_of_the_content(store, file, tmp_path):
    other = tmp_path / "another name"
    other.write_bytes(noise(1))
    key = store.put_file(file)
    assert store.put_file(other) == key
    other.write_bytes(noise(2))
    assert store.put_file(other) != key


# --- files that change, go, or never were --------------------------------------------------------


def test_a_file_that_changes_while_it_is_stored_never_passes_for_what_it_was(store, file):
    """Its digest was taken before: whoever stores the old content must not get the new one."""
    original = store._objects.writer

    def writer(*args, **kwargs):
        file.write_bytes(noise(2))
        return original(*args, **kwargs)

    store._objects.writer = writer
    try:
        store.put_file(file, "file")
    except StorageError:
        assert "file" not in store
    del store._objects.writer
    store.put(noise(1), key="old")
    assert store["old"] == noise(1)
    if "file" in store:
        assert store["file"] in (noise(1), noise(2))


def test_a_file_that_grows_while_it_is_stored(store, file):
    """As a log does; digest and content must still be of one state."""
    original = store._objects.writer

    def writer(*args, **kwargs):
        with file.open("ab") as log:
            log.write(b"one more line\n")
        return original(*args, **kwargs)

    store._objects.writer = writer
    try:
        store.put_file(file, "file")
    except StorageError:
        assert "file" not in store
    del store._objects.writer
    store.put(noise(1), key="old")
    assert store["old"] == noise(1)


@pytest.mark.parametrize("step", ["plan", "digest", "encoding", "write"])
def test_a_file_that_is_gone(file, step):
    """At whatever step that is noticed, the error is ours and names the file."""
    if step == "plan":
        file.unlink()
        with pytest.raises(StorageError, match=r"report\.txt"):
            FileHandler().plan(LocalFile(file), WriteOptions())
        return
    (part,) = FileHandler().plan(LocalFile(file), WriteOptions()).parts
    if step == "write":
        part.encoding()
    file.unlink()
    with pytest.raises(StorageError, match=r"report\.txt") as caught:
        if step == "digest":
            part.digest(new_digest())
        elif step == "encoding":
            part.encoding()
        else:
            part.write(MemorySink())
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_what_is_no_file(store, tmp_path):
    store.put(b"x", key="k")
    before = blobs(store)
    with pytest.raises(StorageError, match="nowhere"):
        store.put_file(tmp_path / "nowhere", "k")
    with pytest.raises(StorageError, match="reading the file"):
        store.put_file(tmp_path, "k")
    assert store["k"] == b"x"
    assert blobs(store) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(store, tmp_path):
    """It has no size, and nothing could be read from it twice."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    caught = []

    def put():
        try:
            store.put_file(pipe, "k")
        except InvalidInputError as exc:
            caught.append(exc)

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    thread.join(2)
    hangs = thread.is_alive()
    while thread.is_alive():  # it waits for somebody to write: let it go
        end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        thread.join(0.1)
        os.close(end)
        thread.join(0.1)
    assert not hangs
    assert len(caught) == 1


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(store, file):
    file.chmod(0)
    with pytest.raises(PermissionDeniedError):
        store.put_file(file, "k")


# --- get_file ------------------------------------------------------------------------------------


def test_a_target_is_replaced_whole_or_not_at_all(store, file, tmp_path):
    store.put_file(file, "k")
    (path,) = blobs(store)
    path.write_bytes(noise(1)[:-1] + b"?")
    out = tmp_path / "out"
    out.write_bytes(b"precious")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(IntegrityError):
        store.get_file("k", out)
    assert out.read_bytes() == b"precious"
    assert sorted(tmp_path.iterdir()) == before


def test_targets_that_cannot_be(store, file, tmp_path):
    store.put_file(file, "k")
    for wrong in (tmp_path / "no" / "such" / "folder", tmp_path, file / "below a file"):
        with pytest.raises(StorageError, match="writing"):
            store.get_file("k", wrong)
    with pytest.raises(KeyNotFoundError):
        store.get_file("nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on the size of files")
def test_a_target_that_is_full(store, tmp_path):
    store.put(noise(1, 3 * MIB), key="k")
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(StorageError):
            store.get_file("k", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
