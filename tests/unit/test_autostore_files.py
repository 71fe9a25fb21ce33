"""AutoStore: values that formats would change, files that are damaged, and places that refuse."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import enum
import functools
import os
import zoneinfo
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from blobstore import (
    CachingStore,
    DictStore,
    ExceptionLoggingStore,
    FilesystemStore,
    RegexValidatingStore,
    TextEncodingStore,
)
from blobstore.autostore import AutoStore, StorageError
from blobstore.autostore.errors import StoragePermissionError
from blobstore.autostore.formats import built_in
from blobstore.errors import (
    BlobStoreError,
    ConfigError,
    DecodeError,
    InvalidInputError,
    InvalidKeyError,
    OutOfSpaceError,
    UnsupportedTypeError,
    UntrustedTypeError,
)
from blobstore.files.trust import SIZE, FileTrust, ZipSigner
from blobstore.streams import MemorySink


@pytest.fixture
def store(tmp_path):
    with AutoStore(tmp_path / "data") as store:
        yield store


def files(store):
    return sorted(store.list_files())


# --- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [extensions[0] for _, extensions in built_in()])
def test_a_value_that_an_extension_does_not_take_is_an_error_of_ours(store, extension):
    """Also where it has no truth value, or none of the methods of what the format takes."""
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    values = [np.ones(3), pd.DataFrame({"a": [1]}), pd.Series([1, 2]), "text", b"x", [1], 5, dict]
    for value in values:
        with contextlib.suppress(BlobStoreError):
            store["k" + extension] = value


def test_fields_out_of_order_go_to_pickle(store):
    dtype = np.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [8, 0]})
    store["a"] = np.ones(2, dtype)
    assert files(store) == ["a.pkl"]
    assert store["a"].dtype == dtype


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype((np.record, [("a", "i4")])),
        np.dtype([("q", np.dtype((np.record, [("a", "i4")])))]),
        np.dtype([("q", np.dtype("i4", metadata={"unit": "m"}))]),
        np.dtype([("q", (np.dtype((np.record, [("a", "i4")])), (2,)))]),
    ],
)
def test_what_equality_of_types_leaves_out_is_kept(store, dtype):
    def told(one):
        inner = [told(field[0]) for field in (one.fields or {}).values()]
        return one.type, one.metadata and dict(one.metadata), one.subdtype and told(one.base), inner

    store["a"] = np.zeros(2, dtype)
    assert told(store["a"].dtype) == told(dtype)


@dataclasses.dataclass
class Point:
    x: int


@dataclasses.dataclass
class Lazy:
    x: int

    @functools.cached_property
    def double(self):
        return self.x * 2


def test_attributes_beside_the_fields_are_not_lost(store):
    point = Point(1)
    point.note = "kept"
    store["a"] = point
    assert store["a"].note == "kept"
    store["b"] = Point(1)
    lazy = Lazy(2)
    assert lazy.double == 4
    store["c"] = lazy
    assert files(store) == ["a.pkl", "b.dataclass.json", "c.dataclass.json"]


class Level(enum.IntEnum):
    HIGH = 1


def test_what_is_equal_and_of_another_type_is_no_json_of_pydantic(store):
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel):
        value: Any

    class Moment(pydantic.BaseModel):
        at: datetime.datetime

    globals().update(Model=Model, Moment=Moment)  # so that pickle finds them
    for cls in (Model, Moment):
        cls.__qualname__ = cls.__name__
    for value in (Level.HIGH, [{"a": Level.HIGH}], collections.OrderedDict(a=1), {Level.HIGH: 2}):
        store["a"] = Model(value=value)
        back = store["a"].value
        assert repr(back) == repr(value)
    store["a"] = Model(value={"a": [1, 2.5, None, "b", True]})
    assert files(store) == ["a.pydantic.json"]
    berlin = datetime.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    store["a"] = Moment(at=berlin)
    assert store["a"].at.tzinfo.key == "Europe/Berlin"
    store["a"] = Moment(at=berlin.astimezone(datetime.UTC))
    assert files(store) == ["a.pydantic.json"]


def test_sets_of_models_are_compared_too(store):
    pydantic = pytest.importorskip("pydantic")

    class Numbers(pydantic.BaseModel):
        some: frozenset[int]
        pair: tuple[int, str]

    store["a"] = Numbers(some={1, 2}, pair=(1, "a"))
    assert files(store) == ["a.pydantic.json"]
    assert store.load("a", cls=Numbers) == Numbers(some={1, 2}, pair=(1, "a"))


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pd.DataFrame(),
        pd.DataFrame({"a": np.array(["\ud800"], dtype=object)}, dtype=object),
    ],
)
def test_frames_that_lines_of_text_would_change_are_refused(store, frame):
    store["k.csv"] = pd.DataFrame({"old": [1]})
    with pytest.raises(StorageError, match="csv"):
        store["k.csv"] = frame
    assert list(store["k"].columns) == ["old"]


def test_a_frame_of_polars_without_columns_is_refused(store):
    pl = pytest.importorskip("polars")
    with pytest.raises(StorageError, match="without columns"):
        store["k.csv"] = pl.DataFrame()


def test_line_ends_in_texts_of_a_csv(store):
    frame = pd.DataFrame({"a": ["x\ry", "x\r\ny", "x\ny", "z"], "b": [1, 2, 3, 4]})
    store["k.csv"] = frame
    back = store.load("k", library="pandas")
    assert list(back["a"]) == list(frame["a"])
    assert list(back["b"]) == [1, 2, 3, 4]


def test_columns_of_a_csv_in_the_order_that_was_asked_for(store):
    store["k.csv"] = pd.DataFrame({"a": [1], "b": [2], "c": [3]})
    assert list(store.load("k", library="pandas", columns=["c", "a"]).columns) == ["c", "a"]
    for columns in (["a", "zz"], "a", [1], 5):
        with pytest.raises(InvalidInputError, match="column"):
            store.load("k", library="pandas", columns=columns)


def test_only_polars_is_lazy(store):
    store["k"] = pd.DataFrame({"a": [1]})
    store["c.csv"] = pd.DataFrame({"a": [1]})
    for key in ("k", "c"):
        with pytest.raises(InvalidInputError, match="lazy"):
            store.load(key, lazy=True, library="pandas")


def test_what_a_picture_says_of_itself_is_kept(store):
    Image = pytest.importorskip("PIL.Image")
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    image.getexif()[0x0112] = 6  # turned on its side
    image.info.update(icc_profile=b"colours" * 10, dpi=(300, 300))
    for extension in (".png", ".jpg", ".webp"):
        store["k" + extension] = image
        back = store["k"]
        assert back.getexif()[0x0112] == 6
        assert back.info["icc_profile"] == b"colours" * 10
    store["k.png"] = image
    assert [round(number) for number in store["k"].info["dpi"]] == [300, 300]
    image.info["exif"], image._exif = b"no notes of a camera", None
    store["k"] = image  # which are passed on as they are
    assert store["k"].getpixel((0, 0)) == (1, 2, 3)
    image.info["dpi"] = "many"
    with pytest.raises(StorageError, match="cannot be written"):
        store["k.png"] = image


@pytest.mark.parametrize(
    ("extension", "mode"), [(".bmp", "RGBA"), (".webp", "I;16"), (".gif", "F"), (".gif", "I;16")]
)
def test_pictures_that_a_format_would_cut_down_are_refused(store, extension, mode):
    Image = pytest.importorskip("PIL.Image")
    with pytest.raises(StorageError, match="would lose"):
        store["k" + extension] = Image.new(mode, (2, 2))


def test_a_picture_that_is_cut_short_is_an_error_of_ours(store):
    Image = pytest.importorskip("PIL.Image")
    import io

    content = io.BytesIO()
    Image.effect_noise((99, 99), 3).save(content, "PNG")
    with pytest.raises(UnsupportedTypeError, match="truncated"):
        store["k"] = Image.open(io.BytesIO(content.getvalue()[:3000]))


def test_safetensors_takes_what_it_gives_back(store):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    for tensors in ({"__metadata__": torch.ones(1)}, {"a": torch.ones(1, dtype=torch.complex128)}):
        with pytest.raises(StorageError):
            store["k.safetensors"] = tensors
    store["k.safetensors"] = {"ab": torch.ones(1), "a": torch.ones(2)}
    assert list(store.load("k", names=["ab"])) == ["ab"]
    for names in (["zz"], "ab", 5, [1]):
        with pytest.raises(InvalidInputError):
            store.load("k", names=names)
    with pytest.raises(DecodeError):
        store.load("k", map_location="cuda:99")


def test_names_of_arrays_are_a_list(store):
    store["k"] = {"ab": np.ones(1), "a": np.ones(2)}
    with pytest.raises(InvalidInputError, match="list of names"):
        store.load("k", names="ab")


def test_scripted_modules_are_refused_in_our_words(store):
    torch = pytest.importorskip("torch")

    class Scripted(torch.nn.Module):
        def __reduce_ex__(self, protocol):
            raise RuntimeError("as PyTorch says of modules that torch.jit made")

    with pytest.raises(StorageError, match="as PyTorch says"):
        store["k.pt"] = Scripted()


# --- damage -----------------------------------------------------------------------------------------


def test_a_damaged_module_is_told_from_one_of_somebody_else(store, tmp_path):
    torch = pytest.importorskip("torch")
    store["k"] = torch.nn.Linear(2, 2)
    path = tmp_path / "data" / "k.pt"
    whole = path.read_bytes()
    inside = whole.index(b"torch.nn.modules.linear")
    for content in (
        whole[:inside] + bytes([whole[inside] ^ 1]) + whole[inside + 1 :],
        whole[: len(whole) // 2],
        whole[: -SIZE // 2],
        whole[:20],
        b"\0" + whole[1:],
    ):
        path.write_bytes(content)
        with pytest.raises(DecodeError, match=r"k\.pt"):
            store["k"]
    path.write_bytes(whole)
    for stranger in (
        AutoStore(tmp_path / "data", signing_keys=[b"y" * 32]),
        AutoStore(tmp_path / "data", pickle="deny"),
    ):
        with pytest.raises(UntrustedTypeError):
            stranger["k"]


def test_a_damaged_signature_is_called_so(store, tmp_path):
    store["k"] = {Point}
    path = tmp_path / "data" / "k.pkl"
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(UntrustedTypeError, match="signature is damaged"):
        store["k"]


def test_a_compressed_zip_of_somebody_else_is_not_read_to_its_end(store, tmp_path):
    """Whether it is damaged is not found out at the cost of what it may grow to."""
    torch = pytest.importorskip("torch")
    import zipfile

    store["k"] = torch.nn.Linear(2, 2)
    path = tmp_path / "data" / "k.pt"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises((UntrustedTypeError, DecodeError)):
        store["k"]


@pytest.mark.parametrize(
    "sizes", [[1] * 40, [40], [2] * 20, [3, 1, 1, 30, 1, 2, 1, 1], [0, 39, 0, 1]]
)
def test_a_zip_is_signed_alike_however_it_is_written(sizes):
    content = bytes(range(1, 39)) + b"\0\0"
    pieces = [content[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    trust = FileTrust(signing_keys=[b"x" * 32])
    with MemorySink() as sink:
        signer = ZipSigner(sink, trust, "k")
        assert [signer.write(piece) for piece in pieces] == sizes
        signer.finish()
    assert sink.content[:38] == content[:38]
    assert int.from_bytes(sink.content[38:40], "little") == SIZE == len(sink.content) - 40
    from blobstore.streams import BytesSource

    assert trust.doubt(BytesSource(sink.content), "k", zipped=True) is None


class _Full(DictStore):
    """A disk that is full after some bytes."""

    def writer(self, key, size_hint=None):
        class Sink(MemorySink):
            left = 300

            def write(self, data):
                type(self).left -= len(data)
                if self.left < 0:
                    raise OutOfSpaceError("the disk is full")
                return super().write(data)

        return Sink(lambda data: self.put(key, data))


def test_a_full_disk_is_not_what_pytorch_makes_of_it():
    torch = pytest.importorskip("torch")
    store = AutoStore(_Full())
    with pytest.raises(OutOfSpaceError):
        store["k"] = torch.ones(10)
    assert files(store) == []


# --- places -----------------------------------------------------------------------------------------


def test_no_key_is_only_dots(store):
    store["..json"] = {"a": 1}
    store["x"] = 1
    assert sorted(store) == ["..json", "x"]
    assert dict(store) == {"..json": {"a": 1}, "x": 1}
    store.clear()
    assert files(store) == []


def test_files_whose_names_are_no_keys_are_left_out():
    objects = DictStore()
    for name in ("a\\b.json", "a//b.json", "/c.json", "d/../e.json", "..json", "ok.json"):
        objects.put(name, b"1")
    store = AutoStore(objects)
    assert sorted(store) == ["ok"]
    assert all(key in store for key in store)
    store.clear()


def test_drafts_of_a_store_in_a_folder_inside_are_no_keys(tmp_path):
    with AutoStore(tmp_path / "inner") as inner:
        inner["a"] = 1
    (tmp_path / "inner" / ".blobstore-tmp" / ("put-" + "0" * 32 + ".json")).write_text("{")
    outer = AutoStore(tmp_path)
    assert list(outer) == ["inner/a"]
    assert list(outer.list_files("**")) == ["inner/a.json"]
    with pytest.raises(InvalidKeyError, match="temporary"):
        outer["inner/.blobstore-tmp/put-" + "0" * 32]


def test_what_killed_writers_left_is_removed_by_the_next(tmp_path):
    with AutoStore(tmp_path) as store:
        store["a"] = 1
    old, new = (tmp_path / ".blobstore-tmp" / f"put-{c * 32}.pt" for c in "01")
    for path in (old, new):
        path.write_bytes(b"PK")
    os.utime(old, (1, 1))
    with AutoStore(tmp_path) as store:
        store["a"]
        assert old.exists()  # a reader changes nothing
        store["b"] = 2
    assert not old.exists()
    assert new.exists()  # its writer may still be there


@pytest.mark.parametrize("kind", ["torch", "skops", "pickle"])
def test_what_is_to_be_signed_is_never_lent(tmp_path, monkeypatch, kind):
    """A file that a library fills by its path lies unsigned, and unlocked, until it is done."""
    from blobstore.backends.blob.file_streams import FileSink

    def lend(_self):
        raise AssertionError("lent")

    monkeypatch.setattr(FileSink, "path", lend)
    store = AutoStore(tmp_path)
    if kind == "torch":
        value = pytest.importorskip("torch").nn.Linear(1, 1)
    elif kind == "skops":
        pytest.importorskip("skops")
        value = pytest.importorskip("sklearn.linear_model").LinearRegression()
    else:
        value = {1, 2}
    name = store.put("k", value)
    assert type(store["k"]) is type(value)
    assert name == {"torch": "k.pt", "skops": "k.skops", "pickle": "k.pkl"}[kind]


def test_a_store_that_denies_pickles_writes_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    store = AutoStore(tmp_path, pickle="deny")
    store["k"] = {"a": torch.arange(3)}
    assert store["k"]["a"].tolist() == [0, 1, 2]
    assert AutoStore(tmp_path)["k"]["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["npz", "csv", "polars", "image", "sparse", "safetensors"])
def test_a_folder_that_may_not_be_written_is_an_error_of_ours(store, tmp_path, monkeypatch, kind):
    """What libraries make of it differs: PermissionError, RuntimeError, errors of their own."""
    needed = {
        "polars": "polars",
        "image": "PIL.Image",
        "sparse": "scipy.sparse",
        "safetensors": "torch",
    }
    library = pytest.importorskip(needed[kind]) if kind in needed else None
    key, value = {
        "npz": lambda: ("k.npz", {"a": np.ones(2)}),
        "csv": lambda: ("k.csv", pd.DataFrame({"a": [1]})),
        "polars": lambda: ("k.csv", library.DataFrame({"a": [1]})),
        "image": lambda: ("k.png", library.new("L", (1, 1))),
        "sparse": lambda: ("k", library.csr_array(np.eye(2))),
        "safetensors": lambda: ("k.safetensors", {"a": library.ones(1)}),
    }[kind]()
    store["k"] = "old"

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "touch", refuse)
        with pytest.raises(StoragePermissionError, match="writing"):
            store[key] = value
    assert store["k"] == "old"
    assert files(store) == ["k.txt"]
    store[key] = value
    assert len(files(store)) == 1


# --- writers at once --------------------------------------------------------------------------------


class _Busy(FilesystemStore):
    """Another writer acts at the worst moment."""

    def __init__(self, root):
        super().__init__(root)
        self.meanwhile = None

    def _act(self):
        act, self.meanwhile = self.meanwhile, None
        if act is not None:
            act()

    def writer(self, key, size_hint=None):
        self._act()
        return super().writer(key, size_hint)

    def copy(self, source, target):
        super().copy(source, target)
        self._act()


def test_what_another_writer_stores_while_one_writes_is_not_deleted(tmp_path):
    """Even if it is a file of the name that was there before."""
    objects = _Busy(tmp_path)
    store, other = AutoStore(objects), AutoStore(tmp_path)
    store["k"] = {"old": 1}
    objects.meanwhile = lambda: other.put("k", {"theirs": 2})
    store["k"] = "mine"
    assert files(store) == ["k.json", "k.txt"]
    assert store["k"] == "mine"
    del store["k.txt"]
    assert store["k"] == {"theirs": 2}
    store["k"] = "both before"
    assert files(store) == ["k.txt"]


def test_what_another_writer_stores_while_one_moves_is_not_deleted(tmp_path):
    objects = _Busy(tmp_path)
    store, other = AutoStore(objects), AutoStore(tmp_path)
    store["k"] = {"old": 1}
    objects.meanwhile = lambda: other.put("k", {"new": 2})
    store.move("k", "moved")
    assert (store["moved"], store["k"]) == ({"old": 1}, {"new": 2})
    store.move("k", "moved")
    assert dict(store) == {"moved": {"new": 2}}


def test_moving_takes_all_files_of_a_key(store, tmp_path):
    store["k"] = {"new": 1}
    (tmp_path / "data" / "k.txt").write_text("left by another tool")
    os.utime(tmp_path / "data" / "k.txt", (1, 1))
    store.move("k", "moved")
    assert files(store) == ["moved.json"]


class _OneCase(DictStore):
    """Names in capitals are those in small letters, as on macOS."""

    def __init__(self):
        super().__init__()
        self.etag = 0

    @property
    def capabilities(self):
        return dataclasses.replace(super().capabilities, local_files=True)

    def exists(self, key):
        return super().exists(key.lower())

    def stat(self, key):
        return super().stat(key.lower())

    def delete(self, key):
        super().delete(key.lower())

    def delete_many(self, keys):
        super().delete_many([key.lower() for key in keys])

    def source(self, key):
        return super().source(key.lower())


def test_where_capitals_are_no_other_names_nothing_is_lost():
    store = AutoStore(_OneCase())
    for number in range(3):
        store["k"] = {"n": number}
    assert store["k"] == {"n": 2}
    store["k"] = "text"
    assert store["k"] == "text"
    assert files(store) == ["k.txt"]


def test_a_file_that_is_replaced_while_it_is_looked_for_exists(tmp_path):
    class Switching(FilesystemStore):
        def __init__(self, root):
            super().__init__(root)
            self.asked = set()

        def exists(self, key):
            before = key in self.asked
            self.asked.add(key)
            return before and super().exists(key)

        def existing(self, keys):
            return {key for key in keys if self.exists(key)}

    AutoStore(tmp_path)["k"] = 1
    assert "k" in AutoStore(Switching(tmp_path))


def test_files_are_looked_for_together(tmp_path):
    objects = FilesystemStore(tmp_path)
    objects.put("a/b.json", b"1")
    objects.put("c.json", b"1")
    (tmp_path / "d.json").mkdir()
    names = ["a/b.json", "a/b.txt", "c.json", "d.json", "no/e.json", "c.json/f.json", "x" * 300]
    assert objects.existing(names) == {"a/b.json", "c.json"}
    (tmp_path / "link.json").symlink_to(tmp_path / "c.json")
    with pytest.raises(InvalidKeyError, match="link"):
        objects.existing(["link.json"])
    with pytest.raises(InvalidKeyError):
        objects.existing(["../up.json"])


# --- copies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.arange(3), {Point}, {"a": 1}], ids=repr)
def test_a_damaged_copy_is_no_damaged_file(value):
    main, cache = DictStore(), DictStore()
    store = AutoStore(CachingStore(main, cache))
    name = store.put("k", value)
    store["k"]
    for key in list(cache.keys()):
        cache.put(key, b"\x81damaged")
    assert repr(store["k"]) == repr(value)
    main.put(name, b"\x81damaged")
    store.invalidate_cache()
    with pytest.raises(DecodeError):
        store["k"]


def test_dropping_copies_drops_no_files(tmp_path):
    for objects in (DictStore(), FilesystemStore(tmp_path), CachingStore(DictStore(), DictStore())):
        store = AutoStore(objects)
        store["k"] = 1
        store.invalidate_cache("k")
        store.invalidate_cache()
        assert store["k"] == 1


def test_notes_of_datasets_keep_their_types(store):
    xr = pytest.importorskip("xarray")
    plain = {"level": 3, "share": 1.5, "unit": "m", "ends": np.ones(2)}
    for notes, extension in (
        (plain, ".nc"),
        ({"a": True}, ".pkl"),
        ({"a": [1, 2]}, ".pkl"),
        ({"a": np.int32(1)}, ".pkl"),
    ):
        array = xr.DataArray([1.0], dims="x", coords={"x": ("x", [0.5], notes)}, attrs=notes)
        for value in (array, xr.Dataset({"v": array}), xr.Dataset(attrs=notes)):
            assert store.put("k", value) == "k" + extension
            back = store["k"]
            assert back.identical(value)
            for told, meant in ((back.attrs, value.attrs), *_notes_of_x(back, value)):
                assert {n: type(v) for n, v in told.items()} == {
                    n: type(v) for n, v in meant.items()
                }


def test_a_note_by_our_own_name_is_no_mark_of_ours(store):
    xr = pytest.importorskip("xarray")
    value = xr.Dataset(attrs={"blobstore_array": "1"})
    assert store.put("k", value) == "k.pkl"
    assert store["k"].identical(value)


def _notes_of_x(back, value):
    return [(back["x"].attrs, value["x"].attrs)] if "x" in value.coords else []


# --- stores beneath -----------------------------------------------------------------------------------


def test_stores_that_cannot_be_relied_on_are_refused(tmp_path):
    """An outage would look like a miss; or there are no bytes to make a file of."""
    for wrong in (ExceptionLoggingStore(DictStore()), TextEncodingStore(DictStore())):
        with pytest.raises(ConfigError):
            AutoStore(wrong)
    with pytest.raises(ConfigError, match="fsync"):
        AutoStore(f"file://{tmp_path}?fsync=true")


def test_a_store_that_takes_some_names_only(tmp_path):
    store = AutoStore(RegexValidatingStore(FilesystemStore(tmp_path), "[a-z]+[.][a-z]+"))
    store["k"] = 1
    assert store["k"] == 1
    assert "k.JSON" in store
    assert "K" not in store
    with pytest.raises(InvalidKeyError):
        store["K"] = 1


def test_threads_may_store_one_picture_that_was_only_opened(store):
    """Pillow reads the pixels when they are first asked for, of which two threads make a mess."""
    import io
    import threading

    Image = pytest.importorskip("PIL.Image")
    content = io.BytesIO()
    Image.effect_noise((300, 300), 50).save(content, "PNG")
    pixels = Image.open(io.BytesIO(content.getvalue())).tobytes()
    failed = []

    def write(image, key):
        try:
            store[key] = image
        except Exception as exc:
            failed.append(exc)

    for turn in range(8):
        image = Image.open(io.BytesIO(content.getvalue()))
        threads = [
            threading.Thread(target=write, args=(image, f"{turn}/{number}")) for number in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    assert all(store[key].tobytes() == pixels for key in store)


@pytest.mark.parametrize("name", ["trusted_types", "signing_keys"])
def test_what_is_trusted_comes_in_a_list(tmp_path, name):
    with pytest.raises(ConfigError, match=name):
        AutoStore(tmp_path, **{name: 5})


def test_a_damaged_file_is_nothing_that_another_store_clears():
    """Only a cache is asked to forget its copy: elsewhere `clear` may mean the objects themselves."""

    class Clearing(DictStore):
        def clear(self, key=None):
            self.delete_many([key] if key is not None else list(self.keys()))

        def expire(self):
            self.clear()
            return 1

    objects = Clearing()
    store = AutoStore(objects)
    objects.put("k.json", b"{ damaged")
    with pytest.raises(DecodeError):
        store["k"]
    store.invalidate_cache()
    store.invalidate_cache("k")
    assert store.cleanup_cache() == 0
    assert objects.get("k.json") == b"{ damaged"
