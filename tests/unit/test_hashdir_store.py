"""HashdirStore and SafeFilesystemStore: how files are named, and that no key goes astray."""

from __future__ import annotations

import base64
import hashlib
import itertools
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.backends.blob.hashdir import HashdirStore
from blobstore.backends.blob.safe_filesystem import SafeFilesystemStore
from blobstore.errors import (
    ClosedError,
    ConfigError,
    InvalidInputError,
    InvalidKeyError,
    KeyNotFoundError,
    NotSupportedError,
)

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)


def files(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


# --- HashdirStore ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "cuts"),
    [((), (2, 4, 6)), ((2, 3), (2, 4, 6)), ((1, 2), (1, 2)), ((3, 1), (3,)), ((7, 0), ()), ((63, 1), (63,))],
)  # fmt: skip
@pytest.mark.parametrize("key", ["key", "", "../../etc/passwd", "ä/\0\n", "k" * 5000])
def test_hashdir_layout(root, shape, cuts, key):
    digest = hashlib.sha256(key.encode()).hexdigest()
    wanted = "/".join(digest[a:b] for a, b in itertools.pairwise((0, *cuts, 64)))
    with HashdirStore(root, *shape) as store:
        store.put(key, b"1")
        assert files(root) == [wanted]
        assert store.local_path(key) == root / wanted
        assert store.get(key) == b"1"
        with store.open(key) as file, store.source(key) as source:
            assert file.read() == source.read() == store.get_range(key, 0, 9) == b"1"
        store.delete(key)
        assert files(root) == []


@pytest.mark.parametrize(
    "shape", [(0, 3), (-1, 3), (2, -1), (2, 32), (64, 1), ("2", 3), (2, 3.0), (True, 3), (2, None)]
)
def test_hashdir_shapes_that_are_none(root, shape):
    with pytest.raises(ConfigError):
        HashdirStore(root, *shape)
    assert not root.exists()


def test_hashdir_does_not_list(root):
    store = HashdirStore(root)
    with pytest.raises(NotSupportedError, match="FilesystemStore"):
        store.keys()
    with pytest.raises(NotImplementedError):
        store.keys("x")
    assert not store.capabilities.list
    store.close()
    with pytest.raises(ClosedError):
        store.keys()


@pytest.mark.parametrize("make", [HashdirStore, SafeFilesystemStore])
def test_errors_carry_the_key(root, make):
    key = "my key/../x"
    with make(root) as store:
        for call in (
            store.get,
            store.delete,
            store.open,
            store.source,
            store.stat,
            lambda k: store.copy(k, "t"),
        ):
            with pytest.raises(KeyNotFoundError) as caught:
                call(key)
            assert caught.value.location == key
            assert repr(key) in str(caught.value)
        store.put("there", b"")
        with pytest.raises(InvalidInputError) as caught, store.writer(key) as sink:
            sink.path()
        assert caught.value.location == key
        with store.writer(key) as sink:
            sink.write(b"1")
        assert sink.location == key


@pytest.mark.parametrize("make", [HashdirStore, SafeFilesystemStore])
@pytest.mark.parametrize("wrong", ["\ud800", "a\udcffb", None, 5, b"bytes"], ids=ascii)
def test_what_is_no_text_is_no_key(root, make, wrong):
    with make(root) as store:
        for call in (store.get, store.exists, store.delete, lambda k: store.put(k, b"")):
            with pytest.raises(InvalidKeyError):
                call(wrong)
    assert not root.exists()


@pytest.mark.parametrize("make", [HashdirStore, SafeFilesystemStore])
def test_a_folder_in_the_place_of_a_file_is_no_object(root, make):
    with make(root) as store:
        store.put("key", b"1")
        path = store.local_path("key")
        store.delete("key")
        path.mkdir(parents=True)
        assert not store.exists("key")
        with pytest.raises(InvalidKeyError):
            store.put("key", b"2")


@pytest.mark.parametrize("tmp", ["ab", "AB", "ff/deeper"])
def test_hashdir_keeps_temporary_files_out_of_the_way(root, tmp):
    with pytest.raises(ConfigError, match="choose another"):
        HashdirStore(root, tmp_dir=root / tmp)
    for shape in ((3, 1), (2, 0)):
        with HashdirStore(root, *shape, tmp_dir=root / tmp) as store:
            store.put("key", b"1")
            assert store.get("key") == b"1"


def test_hashdir_says_what_it_is(root):
    assert repr(HashdirStore(root, 1, 2)) == f"HashdirStore({str(root)!r}, width=1, depth=2)"


# --- SafeFilesystemStore --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name"),
    [("a", "ME______"), ("ab", "MFRA____"), ("abc", "MFRGG___"), ("abcd", "MFRGGZA_"), ("abcde", "MFRGGZDF"),
     ("../x", "FYXC66A_"), ("", "_"), ("CON", "INHU4___"), ("ä", "YOSA____")],
)  # fmt: skip
def test_safe_layout(root, key, name):
    with SafeFilesystemStore(root) as store:
        store.put(key, b"1")
        assert files(root) == [name]
        assert list(store.keys()) == [key]


def test_long_names_go_on_in_folders(root):
    with SafeFilesystemStore(root) as store:
        for size in (155, 156, 310, 311, 2048):
            store.put("k" * size, str(size).encode())
            text = base64.b32encode(b"k" * size).decode().replace("=", "_")
            pieces = [text[n : n + 248] for n in range(0, len(text), 248)]
            path = root.joinpath(*(piece + "-" for piece in pieces[:-1]), pieces[-1])
            assert path.read_bytes() == str(size).encode()
        assert sorted(map(len, store.keys())) == [155, 156, 310, 311, 2048]
        for size in (155, 156, 310, 311, 2048):
            store.delete("k" * size)
        assert [p.name for p in root.iterdir()] == [".blobstore-tmp"]


def test_keys_that_are_too_long_for_the_system(root):
    with SafeFilesystemStore(root) as store:
        with pytest.raises(InvalidKeyError, match="too long") as caught:
            store.put("k" * 4000, b"")
        assert caught.value.location == "k" * 4000
        assert not store.exists("k" * 4000)


def test_no_base32_is_the_name_of_a_device():
    """So the older library's rule for such names never applied, and there is none here."""
    devices = ["CON", "PRN", "AUX", "NUL", *(f"{d}{n}" for d in ("COM", "LPT") for n in range(10))]
    for device in devices:
        padded = device.ljust(8, "=")
        try:
            data = base64.b32decode(padded)
        except ValueError:
            continue
        assert base64.b32encode(data).decode() != padded


def test_files_of_others_are_not_listed(root):
    with SafeFilesystemStore(root) as store:
        store.put("key", b"1")
        (root / "MFRGG---").mkdir()
        folder = root / ("A" * 248 + "-")
        folder.mkdir()
        for name in ("readme.txt", "me______", "ME_____", "MF______", "77777777", "__", "ME", "Ä"):
            (root / name).write_bytes(b"foreign")
        for name in ("_", "ME______", "MFRGG-"):
            (root / "MFRGG---" / name).write_bytes(b"foreign")
        (folder / "_").write_bytes(b"foreign")
        assert list(store.keys()) == ["key"]
        (folder / "ME______").write_bytes(b"really there")
        assert store.get("\0" * 155 + "a") == b"really there"
        assert sorted(store.keys()) == ["\0" * 155 + "a", "key"]


@pytest.mark.parametrize("tmp", ["AB", "me______", "__", "A" * 248 + "-"])
def test_safe_keeps_temporary_files_out_of_the_way(root, tmp):
    with pytest.raises(ConfigError, match="choose another"):
        SafeFilesystemStore(root, tmp_dir=root / tmp)
    assert not root.exists()


def test_listing_reads_only_the_folders_that_it_needs(root, monkeypatch):
    with SafeFilesystemStore(root) as store:
        store.put("a" * 200, b"")
        store.put("b" * 200, b"")
        seen = []
        listing = store._tree.listing
        monkeypatch.setattr(store._tree, "listing", lambda f: seen.append(f) or listing(f))
        assert list(store.keys("b" * 160)) == ["b" * 200]
        assert len(seen) == 2


@given(st.lists(KEYS, max_size=5, unique=True), st.data())
@example(["ab" * 300, "ab" * 300 + "c", "ab", ""], None)
def test_any_text_is_a_key_of_a_safe_store(tmp_path_factory, keys, data):
    # Keys that share their beginning meet in folders; names are compared without regard to case.
    keys = sorted({*keys, *(keys[0] * n for n in range(5) if keys)})
    keys = [key for key in keys if len(key.encode()) < 2300]
    with SafeFilesystemStore(tmp_path_factory.mktemp("safe")) as store:
        for key in keys:
            store.put(key, key.encode())
        assert [store.get(key) for key in keys] == [key.encode() for key in keys]
        assert sorted(store.keys()) == keys
        names = {str(store.local_path(key)).lower() for key in keys}
        assert len(names) == len(keys)
        prefixes = {""} | {key[:n] for key in keys for n in (1, len(key) // 2, len(key))}
        if data is not None:
            prefixes.add(data.draw(KEYS))
        for prefix in prefixes:
            assert sorted(store.keys(prefix)) == [k for k in keys if k.startswith(prefix)]


def test_a_prefix_without_utf8_lists_nothing(root):
    with SafeFilesystemStore(root) as store:
        store.put("key", b"")
        assert list(store.keys("\ud800")) == []
        with pytest.raises(InvalidKeyError):
            store.keys(None)


def test_safe_names_are_of_few_characters(root):
    with SafeFilesystemStore(root) as store:
        store.put("".join(map(chr, range(1, 120))), b"")
        (name,) = files(root)
        assert set(name) <= set(string.ascii_uppercase + "234567_")


def test_other_stores_of_files_name_as_before(tmp_path):
    with FilesystemStore(tmp_path / "root") as store:
        store.put("a/b", b"1")
        assert files(tmp_path / "root") == ["a/b"]
        with pytest.raises(KeyNotFoundError) as caught:
            store.get("a/c")
        assert caught.value.location == "a/c"
