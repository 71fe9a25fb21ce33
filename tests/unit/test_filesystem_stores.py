"""What files bring with them: links, modes, full disks, power cuts, and others in the same folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from blobstore.backends.blob.file_tree import DRAFTS
from blobstore.backends.blob.filesystem import (
    FilesystemBlobBackend,
    FilesystemStore,
    MissingBlobError,
)
from blobstore.errors import (
    ConfigError,
    IncompatibleStoreError,
    InvalidInputError,
    InvalidKeyError,
    KeyNotFoundError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)
from blobstore.testing.object_store import in_fork, in_threads

STORES = [FilesystemStore, FilesystemBlobBackend]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "place" / "root"


@pytest.fixture
def store(root):
    return FilesystemStore(root)


@pytest.fixture
def backend(root):
    return FilesystemBlobBackend(root)


@pytest.fixture(params=STORES, ids=lambda cls: cls.__name__)
def either(request, root):
    return request.param(root)


def path_of(store, key):
    if isinstance(store, FilesystemStore):
        return store.root_path / key
    return store.base_dir / key[: store.shard_chars] / key


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def all_calls(store, key):
    """Every way to touch one key."""

    def write():
        with store.writer(key) as sink:
            sink.write(b"evil")

    return [
        lambda: store.get(key),
        lambda: store.get_range(key, 0, 1),
        lambda: store.open(key),
        lambda: store.source(key),
        lambda: store.stat(key),
        lambda: store.exists(key),
        lambda: store.local_path(key),
        lambda: store.put(key, b"evil"),
        lambda: store.put_if_absent(key, b"evil"),
        lambda: store.copy("fine", key),
        lambda: store.copy(key, "fine"),
        lambda: store.delete(key),
        lambda: store.delete_many([key]),
        lambda: store.sync([key]),
        write,
    ]


# --- nothing leads out ---------------------------------------------------------------------------

BAD_KEYS = [
    "", "/", ".", "..", "/etc/passwd", "../victim", "a/../../victim", "a/..", "./a", "a/.", "a//b",
    "a/", "nul\0", "\0", "a/\0/b", "lone\udcff",
]  # fmt: skip


@pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
def test_keys_that_are_no_paths_below_the_root(store, root, key):
    store.put("fine", b"")
    victim = root.parent / "victim"
    victim.write_bytes(b"precious")
    for number, call in enumerate(all_calls(store, key)):
        with pytest.raises(InvalidKeyError):
            call()
            pytest.fail(f"call {number} accepted {key!a}")
    assert victim.read_bytes() == b"precious"
    assert files_below(root.parent) == ["root/fine", "victim"]


@pytest.mark.parametrize(
    "key",
    ["", ".", "..", "...", "..x", "a b", "ünï", "nul\0", "a\n", "a/b", "ab/ab%", "\udcff"],
    ids=ascii,
)
def test_ids_that_are_none(backend, root, key):
    with pytest.raises(InvalidKeyError):
        backend.write_blob(key, b"evil")
    with pytest.raises(InvalidKeyError):
        backend.put_if_absent(key, b"evil")
    with pytest.raises(InvalidKeyError):
        backend.writer(key)
    assert not root.exists()


def test_a_dot_as_shard_is_refused(root):
    backend = FilesystemBlobBackend(root, 1)
    with pytest.raises(InvalidKeyError):
        backend.put(".hidden", b"")
    FilesystemBlobBackend(root, 3).put("..x", b"1")
    assert files_below(root) == ["..x/..x"]


def test_backend_paths_outside(backend, root):
    backend.write_blob("fine", b"")
    victim = root.parent / "victim"
    victim.write_bytes(b"precious")
    sibling = Path(f"{root}-2/vi/victim")
    sibling.parent.mkdir(parents=True)
    sibling.write_bytes(b"precious")
    for path in (
        str(victim),
        str(sibling),
        f"{root}/../victim",
        f"{root}/fi/../../victim",
        f"{root}/fi/./fine",
        f"{root}//fi/fine",
        "../victim",
        "fi/../../victim",
        "/",
        f"{root}/",
        str(root),
        f"{root}/fi/\0",
    ):
        for call in (
            backend.read_blob, backend.delete_blob, backend.exists, backend.get_size,
            backend.read_blob_stream, backend.get, backend.delete, backend.source, backend.stat,
            backend.local_path, lambda p: backend.copy(p, "new"),
        ):  # fmt: skip
            with pytest.raises(InvalidKeyError):
                call(path)
    assert victim.read_bytes() == sibling.read_bytes() == b"precious"
    assert files_below(root) == ["fi/fine"]


def test_linked_files_are_refused(either, root):
    either.put("fine", b"fine")
    victim = root.parent / "victim"
    victim.write_bytes(b"precious")
    link = path_of(either, "link")
    link.parent.mkdir(exist_ok=True)
    for target in (victim, path_of(either, "fine"), root.parent / "nothing"):
        link.symlink_to(target)
        for number, call in enumerate(all_calls(either, "link")):
            with pytest.raises(InvalidKeyError, match="symbolic link"):
                call()
                pytest.fail(f"call {number} went through the link")
        assert list(either.keys()) == ["fine"]
        assert link.is_symlink()
        link.unlink()
    assert victim.read_bytes() == b"precious"
    assert not (root.parent / "nothing").exists()
    assert list(either.leftovers()) == []


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_linked_folders_are_refused(store, root, depth):
    store.put("fine", b"fine")
    outside = root.parent / "outside"
    (outside / "sub/sub").mkdir(parents=True)
    for folder in (outside, outside / "sub", outside / "sub/sub"):
        (folder / "victim").write_bytes(b"precious")
    before = files_below(outside)
    segments = ["d1", "d2", "d3"][:depth]
    parent = root.joinpath(*segments[:-1])
    parent.mkdir(parents=True, exist_ok=True)
    (parent / segments[-1]).symlink_to(outside)
    for tail in ("victim", "new", "sub/victim", "sub/sub/victim", "sub/new/new"):
        key = "/".join((*segments, tail))
        for number, call in enumerate(all_calls(store, key)):
            with pytest.raises(InvalidKeyError, match="symbolic link"):
                call()
                pytest.fail(f"call {number} went through the link to {key}")
    assert list(store.keys()) == ["fine"]
    assert list(store.keys("/".join(segments) + "/")) == []
    assert list(store.keys("/".join(segments) + "/sub/v")) == []
    assert files_below(outside) == before
    assert (outside / "victim").read_bytes() == b"precious"


def test_linked_shards_are_refused(backend, root):
    backend.put("fine", b"fine")
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "abc").write_bytes(b"precious")
    (root / "ab").symlink_to(outside)
    for key in ("abc", str(root / "ab/abc"), "ab/abc", "abnew"):
        for call in (backend.read_blob, backend.exists, backend.delete_blob, backend.get_size):
            with pytest.raises(InvalidKeyError, match="symbolic link"):
                call(key)
    for number, call in enumerate(all_calls(backend, "abnew")):
        with pytest.raises(InvalidKeyError, match="symbolic link"):
            call()
            pytest.fail(f"call {number} went through the link")
    assert list(backend.keys()) == ["fine"]
    assert list(backend.keys("ab")) == []
    assert files_below(outside) == ["abc"]


def test_linked_drafts_folder_is_refused(either, root):
    outside = root.parent / "outside"
    outside.mkdir(parents=True)
    root.mkdir()
    (root / DRAFTS).symlink_to(outside)
    with pytest.raises(IncompatibleStoreError, match="temporary files"):
        either.put("key", b"x")
    with pytest.raises(IncompatibleStoreError, match="temporary files"):
        either.leftovers()
    assert files_below(outside) == []


def test_folder_swapped_for_a_link_while_a_writer_works(store, root):
    store.put("d/old", b"")
    outside = root.parent / "outside"
    outside.mkdir()
    with pytest.raises(InvalidKeyError), store.writer("d/new") as sink:
        sink.write(b"x")
        (root / "d").rename(root / "e")
        (root / "d").symlink_to(outside)
    assert files_below(outside) == []


@pytest.mark.parametrize("cls", STORES)
def test_the_root_itself_may_be_a_link(cls, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = cls(tmp_path / "link")
    store.put("abc", b"1")
    assert store.get("abc") == b"1"
    assert list(store.keys()) == ["abc"]
    if cls is FilesystemBlobBackend:
        assert store.read_blob(str((tmp_path / "real/ab/abc").resolve())) == b"1"


# --- what is an object ---------------------------------------------------------------------------


def test_folders_are_no_objects(store):
    store.put("a/b/c", b"1")
    for key in ("a", "a/b"):
        assert not store.exists(key)
        assert store.local_path(key) is None
        for call in (store.get, store.delete, store.stat, store.open, store.source):
            with pytest.raises(KeyNotFoundError):
                call(key)
        with pytest.raises(InvalidKeyError, match="folder"):
            store.put(key, b"")
        with pytest.raises(InvalidKeyError, match="folder"):
            store.put_if_absent(key, b"")
    for key in ("a/b/c/d", "a/b/c/d/e"):
        assert not store.exists(key)
        with pytest.raises(KeyNotFoundError):
            store.get(key)
        with pytest.raises(InvalidKeyError, match="below it"):
            store.put(key, b"")
    assert list(store.keys()) == ["a/b/c"]
    assert list(store.leftovers()) == []


def test_emptied_folders_go(store, root):
    store.put("a/b/c", b"1")
    store.put("a/d", b"2")
    store.delete("a/b/c")
    assert not (root / "a/b").exists()
    store.put("a/b", b"3")
    store.delete_many(["a/b", "a/d"])
    store.put("a", b"4")
    assert store.get("a") == b"4"


@pytest.mark.parametrize("key", ["n" * 256, "ü" * 200, "d/" * 2100 + "x", "ok/" + "n" * 300 + "/x"])
def test_names_that_are_too_long(store, root, key):
    store.put("ok/x", b"")
    assert store.exists(key) is False
    assert store.local_path(key) is None
    for call in (store.get, store.delete, store.stat, store.source):
        with pytest.raises(KeyNotFoundError):
            call(key)
    with pytest.raises(InvalidKeyError, match="too long"):
        store.put(key, b"")
    with pytest.raises(InvalidKeyError, match="too long"):
        store.put_if_absent(key, b"")
    with pytest.raises(InvalidKeyError, match="too long"), store.writer(key) as sink:
        sink.write(b"")
    assert list(store.keys()) == ["ok/x"]
    assert list(store.leftovers()) == []


def test_ids_that_are_too_long(backend):
    assert backend.exists("n" * 300) is False
    with pytest.raises(InvalidKeyError, match="too long"):
        backend.write_blob("n" * 300, b"")


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_special_files_are_no_objects(either, root, kind, monkeypatch):
    either.put("xfine", b"")
    path = path_of(either, "xpipe")
    path.parent.mkdir(exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        monkeypatch.chdir(path.parent)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    assert not either.exists("xpipe")
    for call in (either.get, either.delete, either.open):
        with pytest.raises(KeyNotFoundError):
            call("xpipe")
    with pytest.raises(InvalidKeyError):
        either.put("xpipe", b"")
    assert list(either.keys()) == ["xfine"]


def test_names_that_are_not_utf8_are_left_out(either, root):
    either.put("xfine", b"")
    bad = os.fsencode(path_of(either, "xfine").parent) + b"/x\xff"
    with open(bad, "wb"):
        pass
    assert list(either.keys()) == ["xfine"]


def test_root_is_made_by_the_first_put(either, root):
    assert not either.exists("key")
    assert list(either.keys()) == []
    assert list(either.leftovers()) == []
    either.remove_leftover("put-" + "0" * 32)
    either.delete_many(["key"])
    either.sync(["key"])
    for call in (either.get, either.delete, either.stat):
        with pytest.raises(KeyNotFoundError):
            call("key")
    assert not root.parent.exists()
    either.put("key", b"")
    assert root.is_dir()


def test_root_that_vanishes_is_made_again(either, root):
    either.put("key", b"1")
    root.rename(root.parent / "moved")
    assert not either.exists("key")
    either.put("key", b"2")
    assert either.get("key") == b"2"
    assert type(either)(root.parent / "moved").get("key") == b"1"


@pytest.mark.parametrize("place", ["root", "above"])
def test_a_file_where_the_folder_should_be(either, root, place):
    root.parent.parent.mkdir(exist_ok=True)
    if place == "root":
        root.parent.mkdir()
        root.write_bytes(b"I was here first")
    else:
        root.parent.write_bytes(b"I was here first")
    wanted = IncompatibleStoreError if place == "root" else StorageError
    for call in (lambda: either.put("key", b""), lambda: either.put_if_absent("key", b"")):
        with pytest.raises(wanted, match=str(root.parent)):
            call()
    if place == "root":
        for call in (either.get, either.exists, either.delete, either.keys):
            with pytest.raises(IncompatibleStoreError, match="is a file"):
                call("key")
        assert root.read_bytes() == b"I was here first"


def test_relative_roots_stay_where_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store, backend = FilesystemStore("s"), FilesystemBlobBackend(Path("b/../b"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    store.put("key", b"")
    assert backend.write_blob("key", b"") == str(tmp_path / "b/ke/key")
    assert (tmp_path / "s/key").is_file()


# --- temporary files -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", [DRAFTS, f"{DRAFTS}/x", f"{DRAFTS}/put-{'0' * 32}"])
def test_temporary_files_are_no_keys(store, key):
    store.put("fine", b"")
    for call in all_calls(store, key):
        with pytest.raises(InvalidKeyError, match="temporary files"):
            call()
    assert list(store.keys()) == ["fine"]
    assert list(store.keys(DRAFTS[:5])) == []
    assert list(store.keys(f"{DRAFTS}/")) == []


def test_active_writers_are_not_listed(either, root):
    either.put("a", b"")
    with either.writer("new.pkl.lz4") as sink:
        sink.write(b"x" * 500_000)
        assert list(either.keys()) == ["a"]
        assert list(either.leftovers()) == []  # it is being written
    assert list(either.leftovers()) == []
    assert sorted(either.keys()) == ["a", "new.pkl.lz4"]


def test_leftovers_tell_what_they_are(either):
    with either.writer("new.lz4") as sink:
        sink.path().write_bytes(b"x" * 500_000)
        (left,) = either.leftovers()
        assert left.name.startswith("put-")
        assert left.name.endswith(".lz4")
        assert left.size == 500_000
        assert left.modified.utcoffset() == timedelta(0)
        assert abs(left.modified - datetime.now(UTC)) < timedelta(hours=1)


def test_lent_paths_keep_the_extension(either):
    with either.writer("array.b2nd") as sink:
        path = sink.path()
        assert path.suffix == ".b2nd"
        assert path.parent.is_dir()
        path.write_bytes(b"frame")
    assert either.get("array.b2nd") == b"frame"


def test_a_lent_path_is_used_once(either):
    with either.writer("key") as sink:
        sink.path().write_bytes(b"x")
        with pytest.raises(InvalidInputError, match="twice"):
            sink.path()
        with pytest.raises(InvalidInputError, match="twice"):
            sink.write(b"more")
    with pytest.raises(InvalidInputError, match="twice"):
        sink.write(b"late")
    assert either.get("key") == b"x"


@pytest.mark.parametrize("made", ["folder", "link"])
def test_what_was_lent_must_become_a_file(either, root, made):
    victim = root.parent / "victim"
    root.parent.mkdir()
    victim.write_bytes(b"precious")
    with pytest.raises(InvalidKeyError), either.writer("key") as sink:
        path = sink.path()
        if made == "folder":
            path.mkdir()
            (path / "inner").write_bytes(b"")
        else:
            path.symlink_to(victim)
    assert list(either.leftovers()) == []
    assert victim.read_bytes() == b"precious"
    assert not either.exists("key")


def test_only_our_leftovers_are_removed(either, root):
    either.put("key", b"kept")
    folder = root / DRAFTS
    mine, others = folder / f"put-{'ab' * 16}.pkl", folder / "put-something-else"
    mine.write_bytes(b"123")
    others.write_bytes(b"")
    os.utime(mine, (10, 10))
    (left,) = either.leftovers()
    assert (left.name, left.size, left.modified.timestamp()) == (mine.name, 3, 10)
    for name in (others.name, "../key", f"../{DRAFTS}/{mine.name}", str(mine), "", mine.name + "/"):
        with pytest.raises(InvalidKeyError, match="no temporary file of ours"):
            either.remove_leftover(name)
    either.remove_leftover(left.name)
    either.remove_leftover(left.name)
    assert list(either.leftovers()) == []
    assert others.exists()
    assert either.get("key") == b"kept"


@pytest.mark.parametrize("cls", STORES)
def test_chosen_tmp_dir(cls, tmp_path):
    store = cls(tmp_path / "root", tmp_dir=tmp_path / "deep/tmp")
    with store.writer("key") as sink:
        path = sink.path()
        assert path.parent == tmp_path / "deep/tmp"
        path.write_bytes(b"x")
    assert store.get("key") == b"x"
    assert files_below(tmp_path / "deep") == []
    assert [p.name for p in (tmp_path / "root").iterdir()] in (["key"], ["ke"])


def test_tmp_dir_inside_the_root_is_reserved(tmp_path):
    store = FilesystemStore(tmp_path, tmp_dir=tmp_path / "work/tmp")
    store.put("work/ok", b"")
    for key in ("work", "work/tmp", "work/tmp/x"):
        with pytest.raises(InvalidKeyError):
            store.put(key, b"")
    assert list(store.keys()) == ["work/ok"]
    backend = FilesystemBlobBackend(tmp_path / "b", 3, tmp_dir=tmp_path / "b/tmp")
    backend.put("key", b"")
    with pytest.raises(InvalidKeyError, match="tmp_dir"):
        backend.put("tmpfile", b"")
    (tmp_path / "b/tmp/tmpfile").write_bytes(b"")
    assert list(backend.keys()) == ["key"]


def test_tmp_dir_on_another_file_system(either, monkeypatch):
    def replace(*args, **options):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ConfigError, match="different file systems"):
        either.put("key", b"")
    assert list(either.leftovers()) == []


@pytest.mark.parametrize("cls", STORES)
def test_constructor_arguments(cls, tmp_path):
    for wrong in ("", "nul\0", b"bytes", 5, None):
        with pytest.raises(ConfigError):
            cls(wrong)
    with pytest.raises(ConfigError, match="tmp_dir"):
        cls(tmp_path, tmp_dir=tmp_path / "x" / "..")
    with pytest.raises(ConfigError, match="tmp_dir"):
        cls(tmp_path, tmp_dir=5)


@pytest.mark.parametrize("wrong", [0, 9, -1, 2.0, "2", None, True])
def test_shard_chars_are_one_to_eight(tmp_path, wrong):
    with pytest.raises(ConfigError, match="shard_chars"):
        FilesystemBlobBackend(tmp_path, wrong)


def test_killed_in_mid_write(either, root):
    either.put("key", b"old")
    script = f"""
import sys
from blobstore.backends.blob.filesystem import {type(either).__name__}
store = {type(either).__name__}({str(root)!r})
with store.writer("key") as sink:
    sink.write(b"x" * 1_000_000)
    print("half", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert either.get("key") == b"old"
    assert list(either.keys()) == ["key"]
    (left,) = either.leftovers()
    assert left.size > 0
    either.remove_leftover(left.name)
    assert list(either.leftovers()) == []


# --- the operating system says no ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["put", "put_if_absent", "writer", "small writes", "copy", "path"])
def test_full_disk(either, root, how):
    big = b"x" * 300_000
    either.put("key", b"old")
    either.put("big", big)
    target = "key" if how != "put_if_absent" else "new"

    def write(pieces):
        with either.writer(target) as sink:
            for piece in pieces:
                sink.write(piece)

    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(OutOfSpaceError) as caught:
            if how == "put":
                either.put(target, big)
            elif how == "put_if_absent":
                either.put_if_absent(target, big)
            elif how == "writer":
                write([big])
            elif how == "small writes":
                write([b"y" * 1000] * 120)  # fails when the buffer goes to disk at the end
            elif how == "copy":
                either.copy("big", target)
            else:
                with either.writer(target) as sink:
                    try:
                        sink.path().write_bytes(big)
                    except OSError as exc:  # by the library that was lent the path
                        raise OutOfSpaceError("full") from exc
        assert caught.value.__cause__.errno == errno.EFBIG
        assert either.get("key") == b"old"
        either.put("small", b"fits")

    in_fork(child)
    assert either.get("key") == b"old"
    assert not either.exists("new")
    assert sorted(either.keys()) == ["big", "key", "small"]
    assert list(either.leftovers()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_errors_at_each_step_leave_nothing(root, monkeypatch, call, code):
    store = FilesystemStore(root, fsync=True)
    store.put("d/key", b"old")

    def fail(*args, **options):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError) as caught:
            store.put("d/key", b"new")
    assert isinstance(caught.value, OutOfSpaceError) is (code != errno.EIO)
    assert store.get("d/key") == b"old"
    assert list(store.leftovers()) == []


def test_unwritable_folder(tmp_path):
    base = tmp_path / "jail"
    FilesystemStore(base / "s").put("d/key", b"old")
    FilesystemBlobBackend(base / "b").put("key", b"old")
    for folder in (base, *(p for p in base.rglob("*") if p.is_dir())):
        folder.chmod(0o555)

    def child():
        prefix = str(base)
        if os.getuid() == 0:  # nothing is unwritable for root: become nobody, inside the folder
            os.chroot(base)
            os.chdir("/")
            os.setgid(65534)
            os.setuid(65534)
            prefix = ""
        for store, key in (
            (FilesystemStore(f"{prefix}/s"), "d/key"),
            (FilesystemBlobBackend(f"{prefix}/b"), "key"),
        ):
            assert store.get(key) == b"old"
            assert list(store.keys()) == [key]
            for call in (
                lambda s=store, k=key: s.put(k, b"new"),
                lambda s=store, k=key: s.delete(k),
                lambda s=store, k=key: s.copy(k, "other"),
                lambda s=store: s.put_if_absent("other", b"new"),
            ):
                with pytest.raises(PermissionDeniedError) as caught:
                    call()
                assert isinstance(caught.value.__cause__, PermissionError)
            assert store.get(key) == b"old"

    try:
        in_fork(child)
    finally:
        for folder in (base, *(p for p in base.rglob("*") if p.is_dir())):
            folder.chmod(0o755)


def test_unreadable_is_not_missing(either, root, monkeypatch):
    either.put("key", b"")
    real = os.open

    def denied(path, flags, *args, **options):
        if str(path).endswith("ke" if isinstance(either, FilesystemBlobBackend) else "root"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", denied)
    for call in (either.get, either.exists, either.stat, either.delete):
        with pytest.raises(PermissionDeniedError, match=str(root)):
            call("key")
    with pytest.raises(PermissionDeniedError):
        list(either.keys())


# --- modes, descriptors, power cuts --------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077, 0])
def test_modes_follow_the_umask(either, root, mask):
    before = os.umask(mask)
    try:
        either.put("put", b"")
        with either.writer("writer") as sink:
            sink.write(b"")
        with either.writer("path") as sink:
            sink.path().write_bytes(b"")
        either.copy("put", "copy")
        either.put_if_absent("absent", b"")
    finally:
        os.umask(before)
    for key in ("put", "writer", "path", "copy", "absent"):
        path = path_of(either, key)
        assert path.stat().st_mode & 0o7777 == 0o666 & ~mask, key
        assert path.parent.stat().st_mode & 0o7777 == 0o777 & ~mask
    assert root.stat().st_mode & 0o7777 == 0o777 & ~mask


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_lost(either, root):
    either.put("key", b"1")
    path_of(either, "link").parent.mkdir(exist_ok=True)
    path_of(either, "link").symlink_to("x")
    before = open_descriptors()
    for call in (
        lambda: either.put("key", b"2"),
        lambda: either.get("key"),
        lambda: either.get("absent"),
        lambda: either.get("link"),
        lambda: either.put("link", b""),
        lambda: either.put("n" * 300, b""),
        lambda: either.put_if_absent("key", b""),
        lambda: either.delete("absent"),
        lambda: either.copy("key", "link"),
        lambda: either.copy("absent", "key"),
        lambda: next(either.keys()),
        lambda: list(either.keys()),
        lambda: either.stat("key"),
        lambda: either.sync(["key", "absent"]),
        lambda: either.open("key").close(),
        lambda: either.source("key").close(),
        lambda: either.writer("key").abort(),
        lambda: list(either.leftovers()),
        lambda: either.delete("key"),
    ):
        with contextlib.suppress(KeyNotFoundError, InvalidKeyError):
            call()
        assert open_descriptors() == before


@pytest.fixture
def journal(monkeypatch):
    """What reaches the disk, in order: (call, path)."""
    events = []
    fsync, replace, mkdir, link = os.fsync, os.replace, os.mkdir, os.link

    def record(call, path):
        events.append((call, os.path.normpath(path)))

    def below(descriptor, name):
        return os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), name)

    def fake_fsync(descriptor):
        record("fsync", below(descriptor, ""))
        fsync(descriptor)

    def fake_replace(source, target, *, src_dir_fd, dst_dir_fd):
        replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        record("move", below(dst_dir_fd, target))

    def fake_link(source, target, *, src_dir_fd, dst_dir_fd, follow_symlinks):
        link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=False)
        record("move", below(dst_dir_fd, target))

    def fake_mkdir(path, mode=0o777, *, dir_fd=None):
        mkdir(path, mode, dir_fd=dir_fd)
        record("mkdir", path if dir_fd is None else below(dir_fd, path))

    monkeypatch.setattr(os, "fsync", fake_fsync)
    monkeypatch.setattr(os, "replace", fake_replace)
    monkeypatch.setattr(os, "link", fake_link)
    monkeypatch.setattr(os, "mkdir", fake_mkdir)
    return events


@pytest.mark.parametrize("how", ["put", "writer", "path", "copy", "put_if_absent"])
def test_order_of_a_synced_write(tmp_path, journal, how):
    root = tmp_path / "new/root"
    store = FilesystemStore(root, fsync=True)
    if how == "copy":
        store.put("source", b"x")
        journal.clear()
    if how == "put":
        store.put("a/b/key", b"x")
    elif how == "put_if_absent":
        assert store.put_if_absent("a/b/key", b"x")
    elif how == "copy":
        store.copy("source", "a/b/key")
    else:
        with store.writer("a/b/key") as sink:
            if how == "writer":
                sink.write(b"x")
            else:
                sink.path().write_bytes(b"x")
    move = journal.index(("move", f"{root}/a/b/key"))
    temporary = [path for call, path in journal[:move] if call == "fsync" and "/put-" in path]
    assert len(temporary) == 1
    assert journal[move + 1] == ("fsync", f"{root}/a/b")
    for number, (call, path) in enumerate(journal):
        if call == "mkdir":  # the folder above it is synced next
            assert journal[number + 1] == ("fsync", os.path.dirname(path))
    made = [path for call, path in journal if call == "mkdir"]
    assert [p for p in made if DRAFTS not in p][-2:] == [f"{root}/a", f"{root}/a/b"]
    assert (str(root) in made) is (how != "copy")


def test_unsynced_writes_sync_nothing(either, journal):
    either.put("key", b"")
    with either.writer("other") as sink:
        sink.write(b"")
    assert [event for event in journal if event[0] == "fsync"] == []


def test_sync(either, root, journal):
    either.put("key1", b"")
    either.put("key2", b"")
    journal.clear()
    either.sync(["key1", "absent", "key2"])
    synced = [path for _, path in journal]
    folders = [str(root), str(root.parent)]
    if isinstance(either, FilesystemBlobBackend):
        folders.insert(0, str(root / "ke"))
    files = [str(path_of(either, key)) for key in ("key1", "key2")]
    assert synced == files + folders


def test_file_systems_that_do_not_sync_folders(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store = FilesystemStore(tmp_path / "root", fsync=True)
    store.put("a/b", b"1")
    store.sync(["a/b"])
    assert store.get("a/b") == b"1"


# --- at the same time ----------------------------------------------------------------------------


def test_put_survives_deletes_of_its_folder(store):
    def work(number):
        for turn in range(150):
            key = f"a/b/c{number % 2}/{number}"
            store.put(key, bytes([turn]))
            assert store.get(key) == bytes([turn])
            store.delete(key)

    in_threads(work, 4)
    assert list(store.keys()) == []
    assert [p.name for p in store.root_path.iterdir()] == [DRAFTS]


def test_put_whose_folder_goes_just_before_the_move(store, root, monkeypatch):
    real = os.replace
    gone = []

    def replace(source, target, **options):
        if len(gone) < 3:
            (root / "a/b").rmdir()
            (root / "a").rmdir()
            gone.append(target)
        real(source, target, **options)

    monkeypatch.setattr(os, "replace", replace)
    store.put("a/b/key", b"x")
    assert gone == ["key"] * 3
    assert store.get("a/b/key") == b"x"


def test_draft_that_somebody_removed(store, root):
    removed = pytest.raises(UnavailableError, match="removed by somebody else")
    with removed, store.writer("key") as sink:
        sink.write(b"x")
        for path in (root / DRAFTS).glob("put-*"):
            path.unlink()
    assert not store.exists("key")


def test_put_whose_drafts_folder_goes(store, root):
    store.put("key", b"1")
    (root / DRAFTS).rmdir()
    store.put("key", b"2")
    assert store.get("key") == b"2"


def race(work, count):
    """Fork children that run ``work(number)`` at once; returns for each whether it was true."""
    gate, opened = os.pipe()
    pids = []
    for number in range(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads; the child has none
            pid = os.fork()
        if pid == 0:
            status = 2
            try:
                os.close(opened)
                os.read(gate, 1)  # returns when the parent closes the other end
                status = 0 if work(number) else 1
            finally:
                os._exit(status)
        pids.append(pid)
    os.close(gate)
    os.close(opened)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert set(statuses) <= {0, 1}
    return [status == 0 for status in statuses]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_put_if_absent_between_processes(either, links, monkeypatch):
    if not links:

        def link(*args, **options):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    for attempt in range(5):
        key = f"key{attempt}"
        won = race(lambda number, key=key: either.put_if_absent(key, b"%d" % number), 4)
        assert sum(won) == 1
        assert either.get(key) == b"%d" % won.index(True)
    assert list(either.leftovers()) == []
    assert len(list(either.keys())) == 5


def test_copy_goes_on_where_the_kernel_stops(either, monkeypatch):
    data = bytes(range(256)) * 1000
    either.put("key", data)
    real = os.copy_file_range
    calls = []

    def copy_file_range(source, target, count):
        calls.append(count)
        if len(calls) > 1:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(source, target, 1000)

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    either.copy("key", "other")
    assert calls == [len(data), len(data) - 1000]
    assert either.get("other") == data


def test_writes_that_the_kernel_takes_in_part(either, monkeypatch):
    data = bytes(range(256)) * 10
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, view: real(fd, view[:700]))
    either.put("key", data)
    either.put("view", memoryview(data))
    monkeypatch.undo()
    assert either.get("key") == either.get("view") == data


def test_reads_that_the_kernel_gives_in_part(either, monkeypatch):
    data = bytes(range(256)) * 10
    either.put("key", data)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, offset: real(fd, min(count, 700), offset))
    assert either.get("key") == data
    assert either.get_range("key", 100, 2000) == data[100:2000]


def test_files_are_stamped_finer_than_the_clock_of_the_kernel(either, monkeypatch):
    # Else a file that gets the inode of one deleted in the same tick would have its etag, too.
    ticks = iter(range(10**18, 10**18 + 10))
    monkeypatch.setattr(time, "time_ns", lambda: next(ticks))
    either.put("put", b"")
    with either.writer("written") as sink:
        sink.write(b"")
    with either.writer("lent") as sink:
        sink.path().write_bytes(b"")
    either.copy("put", "copied")
    keys = ("put", "written", "lent", "copied")
    stamps = [path_of(either, key).stat().st_mtime_ns for key in keys]
    assert stamps == [10**18 + n for n in range(4)]
    assert len({either.stat(key).etag for key in keys}) == 4


def test_without_links_a_lock_is_held_from_the_look_to_the_move(either, root, monkeypatch):
    def link(*args, **options):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    real = os.replace
    blocked = []

    def replace(*args, **options):
        with open(root / DRAFTS / "put-if-absent.lock", "rb") as other:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            blocked.append(True)
        real(*args, **options)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "replace", replace)
    assert either.put_if_absent("key", b"1")
    assert not either.put_if_absent("key", b"2")
    assert blocked == [True]
    with open(root / DRAFTS / "put-if-absent.lock", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert list(either.leftovers()) == []


def test_lent_source_path_survives_deletion(either):
    either.put("key", b"data")
    with either.source("key") as source, source.path() as path:
        either.delete("key")
        assert path.read_bytes() == b"data"


# --- the blob backend ----------------------------------------------------------------------------


@pytest.mark.parametrize(("chars", "blob_id", "file"), [
    (2, "abc123.b2nd", "ab/abc123.b2nd"),
    (3, "abc123", "abc/abc123"),
    (8, "abc", "abc/abc"),
    (1, "a", "a/a"),
    (2, ".blobstore-id", ".blobstore-id"),
])  # fmt: skip
def test_where_blobs_lie(root, chars, blob_id, file):
    backend = FilesystemBlobBackend(root, chars)
    path = backend.write_blob(blob_id, b"data")
    assert path == str(root / file)
    assert type(path) is str
    assert (root / file).read_bytes() == b"data"
    for name in (path, Path(path), blob_id, file):
        assert backend.exists(name) is True
        assert backend.read_blob(name) == b"data"
        assert backend.get_size(name) == 4
        with backend.read_blob_stream(name) as stream:
            assert stream.read() == b"data"
    assert list(backend.keys()) == ([] if blob_id.startswith(".") else [blob_id])
    assert backend.delete_blob(path) is True
    assert backend.delete_blob(path) is False
    assert backend.exists(path) is False


def test_absent_blobs(backend, root):
    backend.put("abc", b"")
    for path in ("absent", "ab/absent", str(root / "ab/absent"), str(root / "other.txt"), "zz/abc"):
        assert backend.exists(path) is False
        assert backend.delete_blob(path) is False
        assert backend.local_path(path) is None
        for call in (backend.read_blob, backend.get_size, backend.read_blob_stream):
            with pytest.raises(FileNotFoundError) as caught:
                call(path)
            assert isinstance(caught.value, KeyNotFoundError)
        for call in (backend.get, backend.delete, backend.stat, backend.source, backend.open):
            with pytest.raises(KeyNotFoundError):
                call(path)


def test_missing_blob_errors_travel(backend):
    with pytest.raises(MissingBlobError) as caught:
        backend.read_blob("absent")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.location) == (str(caught.value), "absent")
    assert "absent" in str(copy)


def test_foreign_files_are_not_listed(backend, root):
    backend.put("abc", b"")
    backend.put("a", b"")
    backend.put(".blobstore-id", b"0" * 32)
    (root / "ab/sub").mkdir()
    for name in ("README", "ab/other", "ab/a b", "ab/ab~", "ab/sub/abx", "a/ab", DRAFTS + "/x"):
        (root / name).write_bytes(b"")
    (root / "xy").write_bytes(b"a file named like a shard")
    assert sorted(backend.keys()) == ["a", "abc"]
    assert list(backend.keys("ab")) == ["abc"]
    assert list(backend.keys(".blob")) == []
    for name in ("README", "ab/other", "ab/sub/abx", "a/ab"):
        assert not backend.exists(str(root / name))


def test_shards_that_vanish_while_listing(backend, root):
    for n in range(10):
        backend.put(f"{n}{n}x", b"")
    found = []
    for key in backend.keys():  # noqa: SIM118
        found.append(key)
        for shard in root.glob("[0-9][0-9]"):
            if shard.name != key[:2]:
                for file in shard.iterdir():
                    file.unlink()
                shard.rmdir()
    assert len(found) == 1


def test_streams(backend, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"head" + b"x" * 3_000_000)
    with open(source, "rb") as stream:
        stream.read(4)
        path = backend.write_blob_stream("abc", stream)
    assert backend.read_blob(path) == b"x" * 3_000_000


class Recorder(FilesystemBlobBackend):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.calls = []

    def write_blob(self, blob_id, data):
        self.calls.append(("write", blob_id, data))
        return super().write_blob(blob_id, data)

    def read_blob(self, blob_path):
        self.calls.append(("read", blob_path))
        return super().read_blob(blob_path)


def test_overridden_writing_is_really_called(root):
    backend = Recorder(root)
    backend.put("put", bytearray(b"1"))
    with backend.writer("writer") as sink:
        sink.write(b"2")
        sink.write(b"3")
    with backend.writer("path") as sink:
        sink.path().write_bytes(b"4")
    assert backend.put_if_absent("absent", b"5")
    assert not backend.put_if_absent("absent", b"6")
    backend.copy("put", "copy")
    backend.write_blob_stream("stream", io.BytesIO(b"1"))
    written = [call[1:] for call in backend.calls if call[0] == "write"]
    assert written == [
        ("put", b"1"), ("writer", b"23"), ("path", b"4"), ("absent", b"5"), ("copy", b"1"),
        ("stream", b"1"),
    ]  # fmt: skip
    assert all(type(data) is bytes for _, data in written)
    assert sink.location == "path"


def test_overridden_reading_is_really_called(root):
    backend = Recorder(root)
    backend.put("key", b"12345")
    backend.calls.clear()
    assert backend.get("key") == b"12345"
    assert backend.get_range("key", 1, 3) == b"23"
    with backend.open("key") as file:
        assert file.read() == b"12345"
    with backend.source("key") as source:
        assert source.read() == b"12345"
    assert backend.stat("key").size == 5
    assert backend.local_path("key") is None
    assert backend.calls == [("read", "key")] * 5


def test_replaced_on_the_object_is_overridden_too(backend, monkeypatch):
    written = []
    monkeypatch.setattr(
        backend, "write_blob", lambda key, data: written.append(key) or "else/where"
    )
    with backend.writer("key") as sink:
        sink.write(b"x")
    backend.put("other", b"y")
    assert written == ["key", "other"]
    assert sink.location == "else/where"


@pytest.mark.parametrize("answer", ["s3://bucket/key", "/elsewhere/key", "zz/key"])
def test_a_location_outside_is_kept_as_it_is(root, answer):
    class Elsewhere(FilesystemBlobBackend):
        def write_blob(self, blob_id, data):
            return answer

    backend = Elsewhere(root)
    with backend.writer("key") as sink:
        sink.write(b"x")
    assert sink.location == answer
    backend.sync([answer])


def test_marker_has_one_owner(backend):
    assert backend.put_if_absent(".blobstore-id", b"mine")
    assert not backend.put_if_absent(".blobstore-id", b"yours")
    assert backend.get(".blobstore-id") == b"mine"


def test_repr_says_where(store, backend, root):
    assert repr(store) == f"FilesystemStore({str(root)!r})"
    assert repr(backend) == f"FilesystemBlobBackend({str(root)!r}, shard_chars=2)"


def test_a_folder_of_temporary_files_behind_a_link_is_no_place_for_objects(tmp_path):
    (tmp_path / "root" / "drafts").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "root" / "drafts")
    with FilesystemStore(tmp_path / "root", tmp_dir=tmp_path / "link") as store:
        store.put("key", b"1")
        with store.writer("other") as sink:
            sink.write(b"2")
            assert list(store.keys()) == ["key"]
        with pytest.raises(InvalidKeyError):
            store.put("drafts/x", b"")


@pytest.mark.parametrize("wrong", ["a\udc80\ud800", "", "a\0b", 5, b"x", None])
def test_a_root_that_is_no_path(wrong):
    with pytest.raises(ConfigError):
        FilesystemStore(wrong)


@pytest.mark.parametrize("wrong", [(None, 1), (0, "1"), (0.0, 1.0), (2, 1), (-1, 1)])
def test_wrong_ranges(tmp_path, wrong):
    with FilesystemStore(tmp_path / "root") as store:
        store.put("key", b"123")
        with pytest.raises(InvalidInputError):
            store.get_range("key", *wrong)
