"""AutoStore, row by row of the contract."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import pickle
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from blobstore import DictStore, FilesystemStore
from blobstore.autostore import (
    AutoStore,
    DataHandler,
    StorageError,
    StorageFileNotFoundError,
)
from blobstore.errors import (
    ClosedError,
    ConfigError,
    DecodeError,
    HandlerError,
    InvalidInputError,
    InvalidKeyError,
    UnsupportedTypeError,
)


@pytest.fixture
def store(tmp_path):
    with AutoStore(tmp_path / "data") as store:
        yield store


def files(store):
    return sorted(store.list_files())


@dataclasses.dataclass
class Inner:
    rate: float = 0.5


@dataclasses.dataclass
class Settings:
    name: str
    layers: list
    inner: Inner = dataclasses.field(default_factory=Inner)


class Anything:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return type(other) is type(self) and self.value == other.value

    __hash__ = None


# --- places ---------------------------------------------------------------------------------------


def test_a_relative_place_is_fixed_at_construction(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = AutoStore("./data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store["a"] = [1]
    assert (tmp_path / "data" / "a.json").exists()


@pytest.mark.parametrize("make", [str, Path, lambda path: f"file://{path}"])
def test_places(tmp_path, make):
    with AutoStore(make(tmp_path / "data")) as store:
        store["a"] = {"x": 1}
    assert json.loads((tmp_path / "data" / "a.json").read_text()) == {"x": 1}


@pytest.mark.parametrize("wrong", [None, "", 5, "ftp://host/x", b"data"])
def test_wrong_places(wrong):
    with pytest.raises(ValueError):
        AutoStore(wrong)


def test_an_object_store_of_ones_own_stays_open():
    objects = DictStore()
    with AutoStore(objects) as store:
        store["a"] = "text"
    assert objects.get("a.txt") == b"text"


def test_a_closed_store_says_so(store):
    store.close()
    store.close()
    for call in (
        lambda: store["a"],
        lambda: store.put("a", 1),
        lambda: list(store),
        lambda: "a" in store,
        lambda: store.get_metadata("a"),
        lambda: list(store.list_files()),
        store.cleanup_cache,
    ):
        with pytest.raises(ClosedError):
            call()


# --- types ----------------------------------------------------------------------------------------

VALUES = [
    pytest.param({"key": "value", "n": [1, 2.5, None, True]}, ".json", id="dict"),
    pytest.param([1, "zwei", [3.0]], ".json", id="list"),
    pytest.param([], ".json", id="empty list"),
    pytest.param([{"event": "start"}, {"event": "end", "n": 1}], ".jsonl", id="list of dicts"),
    pytest.param("Grüße\r\n🎉", ".txt", id="text"),
    pytest.param(b"\x00\xff", ".bin", id="bytes"),
    pytest.param(7, ".json", id="int"),
    pytest.param(None, ".json", id="None"),
    pytest.param(False, ".json", id="bool"),
    pytest.param({1: "int keys"}, ".pkl", id="int keys"),
    pytest.param((1, 2), ".pkl", id="tuple"),
    pytest.param({"s": {1, 2}}, ".pkl", id="set inside"),
    pytest.param({"nan": math.inf}, ".pkl", id="infinity"),
    pytest.param(datetime(2024, 5, 1, tzinfo=UTC), ".pkl", id="datetime"),
    pytest.param(bytearray(b"x"), ".pkl", id="bytearray"),
    pytest.param("lone \ud800", ".pkl", id="surrogate"),
    pytest.param(Anything([1]), ".pkl", id="object"),
]


@pytest.mark.parametrize(("value", "extension"), VALUES)
def test_types_choose_their_extension_and_come_back(store, value, extension):
    store["k"] = value
    assert files(store) == ["k" + extension]
    for key in ("k", "k" + extension):
        loaded = store[key]
        assert loaded == value
        assert type(loaded) is type(value)
        assert key in store
    assert list(store.keys()) == ["k"]


ARRAYS = [
    np.arange(12, dtype="f4").reshape(3, 4),
    np.array(3.5),
    np.array([], dtype="i8"),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.array(["a", "bc"]),
    np.array(["2024-05-01"], dtype="M8[ns]"),
    np.zeros(2, dtype=[("a", "i4"), ("b", "f8", (2,))]),
]


@pytest.mark.parametrize("array", ARRAYS, ids=repr)
def test_arrays(store, array):
    store["a"] = array
    assert files(store) == ["a.npy"]
    loaded = store["a"]
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype == array.dtype
    assert loaded.flags.writeable
    assert loaded.flags.f_contiguous == array.flags.f_contiguous


def test_rows_of_an_array(store):
    store["a"] = np.arange(100).reshape(50, 2)
    np.testing.assert_array_equal(store.load("a", rows=slice(3, 5)), [[6, 7], [8, 9]])


def test_arrays_by_name(store):
    arrays = {"x": np.ones(3), "file": np.arange(2), "ü/y": np.zeros((2, 2), "f4")}
    store["a"] = arrays
    assert files(store) == ["a.npz"]
    loaded = store["a"]
    assert type(loaded) is dict
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
    assert set(store.load("a", names=["x"])) == {"x"}


def test_arrays_of_objects_are_never_unpickled_from_npy(store, tmp_path):
    store["fine"] = np.array([None, "a"], dtype=object)
    assert files(store) == ["fine.pkl"]
    np.save(tmp_path / "data" / "evil.npy", np.array([{}], dtype=object))
    with pytest.raises(DecodeError):
        store["evil"]


def test_pandas_frames(store):
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=pd.Index([5, 7], name="i"))
    store["f"] = frame
    assert files(store) == ["f.parquet"]
    pd.testing.assert_frame_equal(store["f"], frame)
    assert list(store.load("f", columns=["a"]).columns) == ["a"]


def test_frames_that_parquet_does_not_hold_go_to_pickle(store):
    frame = pd.DataFrame({"a": [object(), object()]}).map(lambda _: (1, {2}))
    store["f"] = frame
    assert files(store) == ["f.pkl"]
    pd.testing.assert_frame_equal(store["f"], frame)


def test_a_csv_by_name(store):
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    store["f.csv"] = frame
    assert files(store) == ["f.csv"]
    loaded = store.load("f", library="pandas")
    pd.testing.assert_frame_equal(loaded, frame)


def test_dataclasses(store):
    settings = Settings("a", [1, 2], Inner(0.1))
    store["s"] = settings
    assert files(store) == ["s.dataclass.json"]
    assert store["s"] == dataclasses.asdict(settings)
    assert store.load("s", cls=Settings) == settings
    with pytest.raises(InvalidInputError, match="dataclass"):
        store.load("s", cls=dict)


def test_a_dataclass_that_json_does_not_hold(store):
    store["s"] = Settings("a", [(1, 2)])
    assert files(store) == ["s.pkl"]
    assert store["s"] == Settings("a", [(1, 2)])


@dataclasses.dataclass
class Nested:
    one: Inner | None
    many: list[Inner]
    named: dict[str, Inner]
    derived: int = dataclasses.field(init=False, default=0)


@dataclasses.dataclass
class Loose:
    many: list


@dataclasses.dataclass
class Counted:
    count: int

    def __post_init__(self):
        self.count += 1


@dataclasses.dataclass
class Initial:
    value: int
    start: dataclasses.InitVar[int] = 0
    needed: dataclasses.InitVar[int | None] = None

    def __post_init__(self, start, needed):
        if needed is None:
            raise RuntimeError("needed")


@dataclasses.dataclass
class Named(dict):
    name: str = ""


def test_dataclasses_in_lists_dictionaries_and_unions(store):
    value = Nested(Inner(0.1), [Inner(0.2)], {"a": Inner(0.3)})
    value.derived = 7
    store["k"] = value
    assert files(store) == ["k.dataclass.json"]
    assert store.load("k", cls=Nested) == value
    store["k"] = Nested(None, [], {})
    assert store.load("k", cls=Nested) == Nested(None, [], {})


@pytest.mark.parametrize(
    "value", [Loose([Inner()]), Counted(1), Initial(1, 2, 3), Loose([(1, 2)]), Named("x")]
)
def test_dataclasses_that_their_fields_do_not_give_back_go_to_pickle(store, value):
    store["k"] = value
    assert files(store) == ["k.pkl"]
    back = store["k"]
    assert type(back) is type(value)
    assert vars(back) == vars(value)
    with pytest.raises(StorageError):
        store["k.dataclass.json"] = value


def test_what_is_no_pydantic_model(store, tmp_path):
    store["x"] = 1
    (tmp_path / "data" / "m.pydantic.json").write_text("{}")
    with pytest.raises(InvalidInputError, match="pydantic model"):
        store.load("m", cls=int)


def test_an_index_is_not_dropped_silently(store):
    frame = pd.DataFrame({"a": [1, 2, 3]})
    store["t.csv"] = frame[frame["a"] > 1]
    assert store.load("t", library="pandas")["a"].tolist() == [2, 3]
    for index in (pd.Index(["x", "y", "z"]), pd.Index([1, 2, 3], name="n")):
        with pytest.raises(StorageError, match="reset_index"):
            store["t.csv"] = frame.set_index(index)
    assert store.load("t", library="pandas")["a"].tolist() == [2, 3]


def test_frames_that_csv_cannot_say(store):
    pl = pytest.importorskip("polars")
    with pytest.raises(StorageError, match=r"\.csv"):
        store["t.csv"] = pl.DataFrame({"a": [[1], [2]]})


@pytest.mark.parametrize("extension", [".npy", ".npz", ".sparse.npz", ".nc", ".parquet", ".pt"])
def test_damage_anywhere_is_a_decode_error_or_harmless(store, tmp_path, extension):
    if extension == ".sparse.npz":
        value = pytest.importorskip("scipy.sparse").lil_array(np.eye(3))
    elif extension == ".nc":
        value = pytest.importorskip("xarray").Dataset({"a": ("x", np.ones(3))})
    elif extension == ".pt":
        value = pytest.importorskip("torch").ones(3)
    else:
        named = {".npz": {"a": np.ones(3)}, ".npy": np.ones(3)}
        value = named.get(extension, pd.DataFrame({"a": [1]}))
    store["k"] = value
    path = tmp_path / "data" / f"k{extension}"
    good, random = path.read_bytes(), np.random.default_rng(7)
    for turn in range(120):
        bad = bytearray(good)
        for _ in range(3):
            bad[random.integers(len(bad))] = random.integers(256)
        path.write_bytes(bad[: random.integers(len(bad))] if turn % 2 else bad)
        with contextlib.suppress(HandlerError):
            store["k"]


def _header(shape):
    file = io.BytesIO()
    head = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)
    return file.getvalue()


@pytest.mark.parametrize("length", [10**15, 10**25])
def test_arrays_beyond_all_memory(store, tmp_path, length):
    store["x"] = 1
    (tmp_path / "data" / "a.npy").write_bytes(_header((length,)) + bytes(24))
    with pytest.raises(DecodeError):
        store["a"]


@pytest.mark.parametrize("name", ["a.npz", "a.sparse.npz"])
def test_arrays_that_grow_too_much(tmp_path, name):
    pytest.importorskip("scipy")
    store = AutoStore(tmp_path / "data", max_decompressed_bytes=1 << 20)
    store["x"] = 1
    np.savez_compressed(tmp_path / "data" / "b.npz", a=np.zeros(1 << 16))
    assert store["b"]["a"].nbytes == 1 << 19
    np.savez_compressed(tmp_path / "data" / "big.npz", a=np.zeros(1 << 20))
    (tmp_path / "data" / "big.npz").rename(tmp_path / "data" / name)
    with pytest.raises(DecodeError, match="attack on memory"):
        store["a"]


def test_rows_are_a_slice(store):
    store["a"] = np.ones(3)
    with pytest.raises(InvalidInputError, match="slice"):
        store.load("a", rows="abc")


def test_clearing_reads_nothing(store, tmp_path):
    store["a"], store["b/c"] = 1, "text"
    (tmp_path / "data" / "theirs.pkl").write_bytes(b"damaged")
    store.clear()
    assert files(store) == []


def test_frames_of_a_picture_are_not_lost_silently(store, tmp_path):
    image = pytest.importorskip("PIL.Image")
    one, two = image.new("L", (4, 4)), image.new("L", (4, 4), 200)
    one.save(tmp_path / "moving.gif", save_all=True, append_images=[two])
    with image.open(tmp_path / "moving.gif") as moving:
        with pytest.raises(StorageError, match="2 frames"):
            store["k"] = moving
        with pytest.raises(StorageError, match="2 frames"):
            store["k.gif"] = moving
        store["k"] = moving.copy()
    assert files(store) == ["k.png"]


def test_arrow_tables(store, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"a": pa.array([1, None], pa.int16()), "b": pa.array(["x", "y"])})
    for value in (table, table.replace_schema_metadata({"by": "me"}), table.slice(0, 0)):
        store["k"] = value
        assert files(store) == ["k.parquet"]
        back = store["k"]
        assert type(back) is pa.Table
        assert back.equals(value)
        assert back.schema.equals(value.schema, check_metadata=True)
    store["k"] = table
    assert store.load("k", columns=["b"]).equals(table.select(["b"]))
    assert isinstance(store.load("k", library="pandas"), pd.DataFrame)
    store["k"] = pa.table({"a": pa.array(["x", "x"]).dictionary_encode()})
    assert files(store) == ["k.pkl"]  # Parquet would number the values anew
    pq.write_table(table, tmp_path / "data" / "theirs.parquet")
    with pytest.raises(InvalidInputError, match="no column 'zz'"):
        store.load("theirs", columns=["zz"], library="pyarrow")


def test_a_pickle_of_large_arrays_is_not_held_twice(store):
    import tracemalloc

    value = ("no dictionary", np.arange(1 << 22), b"x" * (1 << 22))
    store["warm"] = (1,)
    tracemalloc.start()
    try:
        store["k"] = value
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 22
    back = store["k"]
    assert back[0] == value[0]
    assert back[2] == value[2]
    np.testing.assert_array_equal(back[1], value[1])
    store["k"] = value = (np.asfortranarray(np.arange(1 << 16).reshape(256, 256)), None)
    np.testing.assert_array_equal(store["k"][0], value[0])
    assert store["k"][0].flags.f_contiguous


def test_names_that_are_not_there(store):
    pl = pytest.importorskip("polars")
    store["t.csv"], store["z"] = pl.DataFrame({"a": [1]}), {"a": np.ones(1)}
    with pytest.raises(InvalidInputError, match="no array 'b'"):
        store.load("z", names=["b"])
    with pytest.raises(InvalidInputError, match="columns"):
        store.load("t", columns=["b"], library="polars")


class Unwilling:
    def __reduce__(self):
        raise RuntimeError("not me")


def test_an_object_that_refuses_to_be_pickled(store):
    store["k"] = 1
    with pytest.raises(UnsupportedTypeError, match="not me"):
        store["k"] = Unwilling()
    assert store["k"] == 1


class _TakenForStale(DictStore):
    """In which another writer deletes `victim`, its twin, just when its own file is deleted."""

    victim = ""

    def delete_many(self, keys):
        keys, victim = list(keys), self.victim
        self.victim = ""
        return super().delete_many([*keys, victim] if keys and victim else keys)


@pytest.mark.parametrize("how", ["put", "copy"])
def test_two_writers_that_delete_the_file_of_each_other_leave_one(how):
    objects = _TakenForStale()
    store = AutoStore(objects)
    store["k"], store["other"] = "theirs", {"mine": 1}
    objects.victim = "k.json"
    if how == "put":
        store["k"] = {"mine": 1}
    else:
        store.copy("other", "k")
    assert objects.victim == ""
    assert store["k"] == {"mine": 1}


def test_patterns_that_are_none(store):
    store["^a"], store["b"] = 1, 2
    with pytest.raises(InvalidInputError, match="no pattern"):
        list(store.list_files("[z-a]*"))
    assert list(store.list_files("[^]a*")) == ["^a.json"]


def test_pydantic(store):
    pydantic = pytest.importorskip("pydantic")
    Model = pydantic.create_model("Model", name=(str, ...), when=(datetime, ...))
    model = Model(name="a", when=datetime(2024, 5, 1, tzinfo=UTC))
    store["m"] = model
    assert files(store) == ["m.pydantic.json"]
    assert store["m"]["name"] == "a"
    assert store.load("m", cls=Model) == model


def test_yaml_by_name(store):
    store["c.yaml"] = {"b": [1, 2], "a": "ü: x"}
    assert files(store) == ["c.yaml"]
    assert store["c"] == {"b": [1, 2], "a": "ü: x"}


def test_yaml_runs_nothing(store, tmp_path):
    store["x"] = 1
    evil = "!!python/object/apply:os.mkdir [" + json.dumps(str(tmp_path / "evil")) + "]"
    (tmp_path / "data" / "c.yaml").write_text(evil)
    with pytest.raises(DecodeError):
        store["c"]
    assert not (tmp_path / "evil").exists()


def test_sparse(store):
    sparse = pytest.importorskip("scipy.sparse")
    for layout in ("csr", "csc", "coo", "bsr", "dia", "dok", "lil"):
        for kind in ("matrix", "array"):
            made = getattr(sparse, f"{layout}_{kind}")(np.eye(3))
            store["m"] = made
            assert files(store) == ["m.sparse.npz"]
            loaded = store["m"]
            assert type(loaded) is type(made)
            assert loaded.dtype == made.dtype
            np.testing.assert_array_equal(loaded.toarray(), made.toarray())


def test_images(store):
    Image = pytest.importorskip("PIL.Image")
    image = Image.fromarray(np.arange(48, dtype="u1").reshape(4, 4, 3))
    store["i"] = image
    store["j.jpg"] = image
    assert files(store) == ["i.png", "j.jpg"]
    np.testing.assert_array_equal(np.asarray(store["i"]), np.asarray(image))
    assert store["j"].size == (4, 4)
    store["again"] = store["i"]  # what was loaded can be stored
    assert "again.png" in files(store)


def test_torch(store):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 3)
    store["state"] = model.state_dict()
    store["tensor"] = torch.arange(3)
    store["model"] = model
    assert files(store) == ["model.pt", "state.pt", "tensor.pt"]
    assert torch.equal(store["state"]["weight"], model.weight)
    assert torch.equal(store["tensor"], torch.arange(3))
    assert torch.equal(store["model"].weight, model.weight)


def test_torch_modules_of_somebody_else_run_nothing(store, tmp_path):
    torch = pytest.importorskip("torch")
    from blobstore.errors import UntrustedTypeError

    store["mine"] = torch.nn.Linear(2, 3)
    torch.save(torch.nn.Linear(2, 3), tmp_path / "data" / "theirs.pt")
    torch.save({"weights": torch.ones(2)}, tmp_path / "data" / "tensors.pt")
    assert torch.equal(store["tensors"]["weights"], torch.ones(2))
    with pytest.raises(UntrustedTypeError, match="not signed"):
        store["theirs"]
    store.copy("mine", "copy")
    assert type(store["copy"]) is torch.nn.Linear
    (tmp_path / "data" / "other.pt").write_bytes((tmp_path / "data" / "mine.pt").read_bytes())
    with pytest.raises(UntrustedTypeError, match="does not match"):
        store["other"]


def test_safetensors_by_name(store):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    tensors = {"a": torch.ones(2, 3), "b": torch.arange(4).bfloat16()}
    store["t.safetensors"] = tensors
    assert files(store) == ["t.safetensors"]
    loaded = store["t"]
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert list(store.load("t", names=["b"])) == ["b"]
    with pytest.raises(StorageError):
        store["t.safetensors"] = {"a": torch.ones(4, 4).t()[1:], "b": torch.ones(2)}
    assert files(store) == ["t.safetensors"]


def test_estimators(store, tmp_path):
    pytest.importorskip("skops")
    from sklearn.linear_model import LogisticRegression

    from blobstore.errors import UntrustedTypeError

    model = LogisticRegression(C=0.5).fit(np.eye(4), [0, 1, 0, 1])
    store["model"] = model
    assert files(store) == ["model.skops"]
    loaded = store["model"]
    assert type(loaded) is LogisticRegression
    np.testing.assert_array_equal(loaded.coef_, model.coef_)
    store.move("model", "best")
    np.testing.assert_array_equal(store["best"].coef_, model.coef_)
    with AutoStore(tmp_path / "data", pickle="deny") as other, pytest.raises(UntrustedTypeError):
        other["best"]


def test_xarray(store):
    xr = pytest.importorskip("xarray")
    field = xr.DataArray(
        np.arange(6.0).reshape(2, 3), dims=("y", "x"), coords={"x": [1.0, 2.0, 3.0]}, name="t"
    )
    for value in (field, field.rename(None), field.to_dataset(), field.assign_attrs(unit="K")):
        store["f"] = value
        assert files(store) == ["f.nc"]
        assert type(store["f"]) is type(value)
        assert store["f"].identical(value)
    whole = xr.DataArray(np.arange(3), dims="x")  # 64 bits, which NetCDF 3 does not have
    store["f"] = whole
    assert files(store) == ["f.pkl"]
    assert store["f"].identical(whole)


# --- keys and extensions ----------------------------------------------------------------------------


def test_only_known_extensions_are_extensions(store):
    store["model.v1"] = {"v": 1}
    store["model.v2"] = {"v": 2}
    assert store["model.v1"] == {"v": 1}
    assert store["model.v2"] == {"v": 2}
    assert sorted(store) == ["model.v1", "model.v2"]


def test_a_key_has_one_file(store):
    store["a"] = {"old": 1}
    store["a"] = "new"
    assert store["a"] == "new"
    assert files(store) == ["a.txt"]
    store["a.json"] = {"newer": 1}
    assert store["a"] == {"newer": 1}
    assert files(store) == ["a.json"]
    with pytest.raises(KeyError):
        store["a.txt"]


def test_a_value_that_does_not_fit_its_extension_leaves_the_old_file(store):
    store["a"] = {"x": 1}
    with pytest.raises(StorageError, match=r"\.parquet"):
        store["a.parquet"] = {"x": 1}
    with pytest.raises(StorageError):
        store["a.json"] = {1, 2}
    assert store["a"] == {"x": 1}
    assert files(store) == ["a.json"]


def test_what_nothing_holds_is_refused_and_leaves_the_old_file(store):
    store["a"] = 1
    with pytest.raises(UnsupportedTypeError):
        store["a"] = threading.Lock()
    assert store["a"] == 1
    assert files(store) == ["a.json"]


def test_a_write_that_fails_leaves_nothing(store, monkeypatch):
    from blobstore.files import text

    store["a"] = "old"

    def fail(self, obj, sink, context):
        sink.write(b"half")
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(text.TextFormat, "write", fail)
    with pytest.raises(RuntimeError):
        store["a"] = "new"
    monkeypatch.undo()
    assert store["a"] == "old"
    assert files(store) == ["a.txt"]


@pytest.mark.parametrize(
    "key", ["", "../x", "a/../b", "/etc/passwd", "a//b", "a/", ".", "a\\b", "x\0y"]
)
@pytest.mark.parametrize("place", ["folder", "memory"])
def test_nothing_leads_out(tmp_path, key, place):
    store = AutoStore(tmp_path / "data" if place == "folder" else DictStore())
    store["inside"] = 1
    for call in (
        lambda: store.put(key, 1),
        lambda: store[key],
        lambda: key in store,
        lambda: store.copy("inside", key),
        lambda: store.move("inside", key),
        lambda: store.copy(key, "x"),
        lambda: store.get_metadata(key),
        lambda: store.__delitem__(key),
    ):
        with pytest.raises(InvalidKeyError):
            call()
    assert list(store) == ["inside"]


def test_links_do_not_lead_out(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text("1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(outside)
    store = AutoStore(tmp_path / "data")
    assert list(store) == []
    with pytest.raises(InvalidKeyError, match="link"):
        store["link/secret"]
    with pytest.raises(InvalidKeyError, match="link"):
        store["link/new"] = 1
    assert [path.name for path in outside.iterdir()] == ["secret.json"]


@pytest.mark.parametrize("key", [5, None, b"a", 1.5])
def test_keys_are_text_or_paths(store, key):
    with pytest.raises(InvalidKeyError):
        store[key] = 1


def test_paths_are_keys(store):
    store[Path("runs") / "7"] = {"a": 1}
    assert store["runs/7"] == {"a": 1}
    assert Path("runs/7.json") in store


def test_misses(store):
    for call in (
        lambda: store["no"],
        lambda: store["no.json"],
        lambda: store.get_metadata("no"),
        lambda: store.copy("no", "b"),
        lambda: store.move("no", "b"),
        lambda: store.__delitem__("no"),
    ):
        with pytest.raises(StorageFileNotFoundError) as caught:
            call()
        assert isinstance(caught.value, StorageError)
        assert isinstance(caught.value, KeyError)
    assert "no" not in store
    assert store.get("no") is None
    assert store.get("no", 5) == 5


def test_folders_are_no_keys(store):
    store["dir/a"] = 1
    store["dir/b"] = 2
    assert "dir" not in store
    with pytest.raises(KeyError):
        del store["dir"]
    assert sorted(store) == ["dir/a", "dir/b"]


def test_deleting_takes_one_key(store):
    store["run.json"] = 1
    store["run.json.bak/x"] = 2
    store["run/x"] = 3
    del store["run"]
    assert sorted(store) == ["run.json.bak/x", "run/x"]


@pytest.mark.parametrize("place", ["disk", "objects"])
def test_every_listed_key_is_found(tmp_path, place):
    objects = FilesystemStore(tmp_path) if place == "disk" else DictStore()
    store = AutoStore(objects)
    names = ["IMG_7.JSON", "data.csv.gz", "b.json.txt", "x.dataclass.json", "archive.tar.gz"]
    for name in names:
        objects.put(name, b"{}")
    assert sorted(store) == ["IMG_7", "archive.tar", "b.json", "data.csv", "x"]
    assert store["IMG_7"] == store["IMG_7.JSON"] == store["x"] == {}
    assert store["data.csv"] == store["data.csv.gz"] == b"{}"
    assert store["b.json"] == "{}"
    assert all(key in store for key in store)
    store.copy("IMG_7", "IMG_7")
    store.move("IMG_7", "IMG_8")
    assert "IMG_8.JSON" in files(store)
    store["IMG_8"] = "no twin is left"
    assert [name for name in files(store) if name.startswith("IMG")] == ["IMG_8.txt"]
    for key in list(store):
        del store[key]
    assert files(store) == []


@pytest.mark.parametrize("place", ["disk", "objects"])
def test_an_extension_in_capitals_finds_what_it_wrote(tmp_path, place):
    store = AutoStore(FilesystemStore(tmp_path) if place == "disk" else DictStore())
    store["x.JSON"] = {"a": 1}
    assert store["x.JSON"] == store["x"] == {"a": 1}
    assert files(store) == ["x.json"]


@pytest.mark.parametrize("place", ["disk", "objects"])
def test_a_key_and_an_extension_never_make_another_extension(tmp_path, place):
    store = AutoStore(FilesystemStore(tmp_path) if place == "disk" else DictStore())
    store["x.dataclass"] = {"a": 1}
    assert list(store) == ["x.dataclass"]
    assert store["x.dataclass"] == {"a": 1}
    assert "x" not in store
    store["y"] = {"a": 2}
    with pytest.raises(StorageError, match="another extension"):
        store.copy("y", "z.pydantic")


def test_a_key_that_others_store_again_under_other_types_is_never_missing(tmp_path):
    store, stop, kinds = AutoStore(tmp_path), threading.Event(), ["text", {"a": 1}, b"bytes"]
    store["k"] = kinds[0]

    def write():
        while not stop.is_set():
            for value in kinds:
                store["k"] = value
                stop.wait(0.005)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert store["k"] in kinds
            assert store.get_metadata("k").size
    finally:
        stop.set()
        writer.join()


def test_length_iteration_and_keys_agree(store):
    for key in ("my_data", "folder/other", "z.v1"):
        store[key] = {"k": key}
    assert sorted(store) == sorted(store.keys()) == ["folder/other", "my_data", "z.v1"]
    assert len(store) == 3
    assert dict(store.items())["my_data"] == {"k": "my_data"}


def test_files_of_other_tools_are_read(store, tmp_path):
    root = tmp_path / "data"
    root.mkdir(exist_ok=True)
    (root / "page.html").write_text("<p>")
    (root / "rows.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    np.savez(root / "arrays.npz", x=np.ones(2))
    pd.DataFrame({"a": [1]}).to_parquet(root / "frame.parquet")
    (root / "unknown.xyz").write_text("?")
    assert store["page"] == "<p>"
    assert store["rows"] == [{"a": 1}, {"a": 2}]
    assert store["arrays"]["x"].sum() == 2
    pd.testing.assert_frame_equal(store["frame"], pd.DataFrame({"a": [1]}))
    assert sorted(store) == ["arrays", "frame", "page", "rows"]
    assert "unknown.xyz" in files(store)


def test_damaged_files_say_so(store, tmp_path):
    store["a"] = 1
    for name in ("a.json", "b.npy", "c.npz", "d.jsonl", "e.parquet", "f.pkl", "g.yaml"):
        (tmp_path / "data" / name).write_bytes(b"\x81\x00{")
        with pytest.raises(DecodeError, match=name[0]):
            store[name]


def test_of_several_files_of_a_key_the_newest_is_read(store, tmp_path):
    import os

    store["a"] = {"x": 1}
    (tmp_path / "data" / "a.txt").write_text("later")
    os.utime(tmp_path / "data" / "a.json", (1, 1))
    assert store["a"] == "later"
    assert list(store) == ["a"]
    os.utime(tmp_path / "data" / "a.txt", (0, 0))
    assert store["a"] == {"x": 1}
    store["a"] = b"one again"
    assert files(store) == ["a.bin"]


def test_two_writers_of_a_key_lose_nothing(tmp_path):
    store = AutoStore(tmp_path / "data")
    values = [{"a": 1}, "text", b"bytes", np.arange(3)]

    def write(value):
        for _ in range(30):
            store["k"] = value

    threads = [threading.Thread(target=write, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "k" in store
    store["k"]
    store["k"] = "last"
    assert files(store) == ["k.txt"]


# --- files ------------------------------------------------------------------------------------------


def test_metadata(store):
    store["a"] = {"x": 1}
    found = store.get_metadata("a")
    assert found.size == (store._objects.stat("a.json").size)
    assert abs(found.modified_time - datetime.now(UTC)) < timedelta(minutes=1)
    assert found.content_type == "application/json"
    assert found.etag
    assert found.extra["name"] == "a.json"


def test_copy_and_move(store):
    store["a"] = {"x": 1}
    store["b"] = "old value of another type"
    store.copy("a", "b")
    assert store["b"] == {"x": 1}
    assert files(store) == ["a.json", "b.json"]
    store.move("a", "dir/model.v1")
    assert files(store) == ["b.json", "dir/model.v1.json"]
    store.move("b", "b")
    store.copy("b", "b.json")
    assert store["b"] == {"x": 1}
    with pytest.raises(StorageError, match="extension"):
        store.copy("b", "c.parquet")
    assert files(store) == ["b.json", "dir/model.v1.json"]


def test_a_copied_pickle_is_still_trusted(store):
    store["a"] = Anything(1)
    store.copy("a", "b")
    store.move("a", "c")
    assert store["b"] == store["c"] == Anything(1)


def test_list_files(store):
    for key in ("a", "runs/1/scores", "runs/2/scores", "runs/2/deep/scores"):
        store[key] = [1]
    store["runs/1/log"] = "x"
    assert sorted(store.list_files("*.txt")) == ["runs/1/log.txt"]
    assert sorted(store.list_files("runs/*/scores.json")) == [
        "runs/1/scores.json",
        "runs/2/scores.json",
    ]
    assert max(store.list_files("runs/**/scores.json")) == "runs/2/scores.json"
    assert len(list(store.list_files("runs/**/scores.json"))) == 3
    assert list(store.list_files("*", recursive=False)) == ["a.json"]
    assert sorted(store.list_files("runs/[!1]/*.json")) == ["runs/2/scores.json"]
    with pytest.raises(InvalidInputError):
        store.list_files("")


def test_unknown_options_are_refused(store):
    store["a"] = [1]
    with pytest.raises(InvalidInputError, match="columns"):
        store.load("a", columns=["x"])


# --- handlers and backends ----------------------------------------------------------------------------


class UpperHandler(DataHandler):
    extensions = [".upper"]  # noqa: RUF012
    priority = 15

    def can_handle_extension(self, extension):
        return extension.lower() == ".upper"

    def can_handle_data(self, data):
        return isinstance(data, str) and data.isupper()

    def read_from_file(self, file_path, file_extension):
        assert file_path.suffix == file_extension == ".upper"
        return file_path.read_text().upper()

    def write_to_file(self, data, file_path, file_extension):
        file_path.parent.mkdir(parents=True, exist_ok=True)
        file_path.write_text(data.lower())


def test_a_handler_of_ones_own(store, tmp_path):
    store.register_handler(UpperHandler())
    store["a"] = "LOUD"
    store["b"] = "quiet"
    assert files(store) == ["a.upper", "b.txt"]
    assert (tmp_path / "data" / "a.upper").read_text() == "loud"
    assert store["a"] == "LOUD"
    with pytest.raises(ConfigError, match="registered already"):
        store.register_handler(UpperHandler())
    with AutoStore(tmp_path / "data") as other:  # it is this store's alone
        assert list(other) == ["b"]
    assert store.unregister_handler(UpperHandler) is True
    assert store.unregister_handler(UpperHandler) is False
    assert list(store) == ["b"]


def test_a_format_of_an_installed_package(tmp_path, monkeypatch):
    import sys
    import types

    from blobstore import registry
    from blobstore.autostore import FileFormat

    class Tally(FileFormat):
        name = "tally"
        extensions = (".tally",)
        priority = 100

        def can_handle(self, obj):
            return type(obj) is int

        def write(self, obj, sink, context):
            sink.write(b"|" * obj)

        def read(self, source, context, **options):
            return source.size

    module = types.ModuleType("blobstore_test_tally")
    module.Tally = Tally
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry.file_formats, "_offered", {"tally": "blobstore_test_tally:Tally"})
    monkeypatch.setattr(registry.file_formats, "_registered", {})
    with AutoStore(tmp_path / "data") as store:
        store["n"] = 5
        assert (tmp_path / "data" / "n.tally").read_text() == "|||||"
        assert store["n"] == 5


@pytest.mark.parametrize("wrong", [None, object(), UpperHandler, "handler"])
def test_what_is_no_handler(store, wrong):
    with pytest.raises(ConfigError):
        store.register_handler(wrong)


def test_backends_by_scheme(tmp_path):
    def open_under(uri, config):
        return FilesystemStore(tmp_path / uri.partition("://")[2])

    AutoStore.register_backend("mine", open_under)
    try:
        assert {"mine", "file", "s3"} <= set(AutoStore.get_supported_backends())
        with AutoStore("mine://sub") as store:
            store["a"] = 1
        assert (tmp_path / "sub" / "a.json").exists()
        with pytest.raises(ConfigError, match="already"):
            AutoStore.register_backend("mine", lambda uri, config: None)
    finally:
        assert AutoStore.unregister_backend("mine")
    assert not AutoStore.unregister_backend("mine")
    with pytest.raises(ConfigError, match="mine"):
        AutoStore("mine://sub")


def test_a_backend_may_be_a_class_of_object_stores(tmp_path):
    class Mine(FilesystemStore):
        @classmethod
        def from_url(cls, url):
            return cls(tmp_path / url.partition("://")[2])

    AutoStore.register_backend("mine", Mine)
    try:
        with AutoStore("mine://sub") as store:
            store["a"] = 1
    finally:
        AutoStore.unregister_backend("mine")
    assert (tmp_path / "sub" / "a.json").exists()


# --- trust --------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.mkdir, (Path(self.marker),))


def test_a_pickle_of_somebody_else_runs_nothing(store, tmp_path):
    store["mine"] = Anything(1)
    data = pickle.dumps(Evil(tmp_path / "ran"))
    (tmp_path / "data" / "theirs.pkl").write_bytes(data)
    from blobstore.errors import UntrustedTypeError

    with pytest.raises(UntrustedTypeError):
        store["theirs"]
    assert not (tmp_path / "ran").exists()
    assert store["mine"] == Anything(1)


def test_a_pickle_of_somebody_else_with_plain_values_loads(store, tmp_path):
    store["x"] = 1
    (tmp_path / "data" / "theirs.pkl").write_bytes(pickle.dumps({"a": (1, {2})}))
    assert store["theirs"] == {"a": (1, {2})}


def test_our_pickles_are_read_by_pickle(store, tmp_path):
    store["k"] = (1, {2})
    with (tmp_path / "data" / "k.pkl").open("rb") as file:
        assert pickle.load(file) == (1, {2})


def test_a_signature_is_of_one_key_and_content(store, tmp_path):
    from blobstore.errors import UntrustedTypeError

    store["a"] = Anything(1)
    signed = (tmp_path / "data" / "a.pkl").read_bytes()
    (tmp_path / "data" / "b.pkl").write_bytes(signed)
    with pytest.raises(UntrustedTypeError):
        store["b"]
    (tmp_path / "data" / "a.pkl").write_bytes(signed.replace(b"value", b"valuf"))
    with pytest.raises(UntrustedTypeError):
        store["a"]


def test_pickles_can_be_denied_and_allowed(tmp_path):
    from blobstore.errors import UntrustedTypeError

    with AutoStore(tmp_path / "data") as store:
        store["a"] = (1, 2)
        store["plain"] = [1]
    (tmp_path / "data" / "b.pkl").write_bytes(pickle.dumps(Anything(2)))
    with AutoStore(tmp_path / "data", pickle="deny") as store:
        assert store["plain"] == [1]
        with pytest.raises(UntrustedTypeError, match="deny"):
            store["a"]
        with pytest.raises(UntrustedTypeError, match="deny"):
            store["new"] = (1, 2)
    with AutoStore(tmp_path / "data", pickle="allow") as store:
        assert store["b"] == Anything(2)
    name = f"{Anything.__module__}.Anything"
    with AutoStore(tmp_path / "data", trusted_types=[name]) as store:
        assert store["b"] == Anything(2)
    with pytest.raises(ConfigError):
        AutoStore(tmp_path / "data", pickle="maybe")


class _Swapped(FilesystemStore):
    """Whose files somebody overwrites in place, once they have been read `after` times."""

    after = 1
    other = b""

    def source(self, key, **options):
        source = super().source(key, **options)
        reads, store = [0], self

        class Swapped(type(source)):
            def _next(self):
                reads[0] += 1
                if reads[0] > store.after and store.other:
                    Path(store.root_of_test, key).write_bytes(store.other)

            def open(self):
                self._next()
                return super().open()

            def read(self):
                self._next()
                return super().read()

        source.__class__ = Swapped
        return source


@pytest.mark.parametrize("extension", [".pkl", ".pt"])
@pytest.mark.parametrize("how", ["load", "copy"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_what_is_loaded_or_signed_is_what_was_checked(tmp_path, extension, how, after):
    objects = _Swapped(tmp_path / "data")
    objects.root_of_test = tmp_path / "data"
    mine, theirs = Anything(1), Evil(tmp_path / "ran")
    if extension == ".pt":
        torch = pytest.importorskip("torch")
        mine = [Anything(1), torch.ones(2)]
    store = AutoStore(objects)
    store["k" + extension] = mine
    signed = (tmp_path / "data" / ("k" + extension)).read_bytes()
    if extension == ".pt":
        torch.save(theirs, tmp_path / "evil")
        evil = (tmp_path / "evil").read_bytes()
    else:
        evil = pickle.dumps(theirs)
    objects.after, objects.other = after, evil + bytes(max(0, len(signed) - len(evil) - 107))
    objects.other += signed[-107:]
    with contextlib.suppress(StorageError, HandlerError):
        if how == "load":
            store.load("k")
        else:
            store.copy("k", "copied")
    objects.other = b""
    if "copied" in store:
        with contextlib.suppress(HandlerError):
            store.load("copied")
    assert not (tmp_path / "ran").exists()


def test_torch_objects_that_pickle_does_not_take(store):
    torch = pytest.importorskip("torch")
    with pytest.raises(UnsupportedTypeError, match="cannot be"):
        store["k"] = {"t": torch.ones(2), "lock": threading.Lock()}
    with pytest.raises(StorageError, match="cannot save"):
        store["k.pt"] = {"t": torch.ones(2), "lock": threading.Lock()}
    assert files(store) == []


def test_modules_are_denied_where_they_could_not_be_read(tmp_path):
    torch = pytest.importorskip("torch")
    from blobstore.errors import UntrustedTypeError

    with AutoStore(tmp_path / "data", pickle="deny") as store:
        store["weights"] = torch.nn.Linear(2, 2).state_dict()
        assert set(store["weights"]) == {"weight", "bias"}
        with pytest.raises(UntrustedTypeError, match="deny"):
            store["module"] = torch.nn.Linear(2, 2)
        assert files(store) == ["weights.pt"]


def test_a_damaged_torch_file_says_so_even_if_all_is_allowed(tmp_path):
    pytest.importorskip("torch")
    with AutoStore(tmp_path / "data", pickle="allow") as store:
        store["x"] = 1
        (tmp_path / "data" / "bad.pt").write_bytes(b"garbage" * 10)
        with pytest.raises(DecodeError, match=r"bad\.pt"):
            store["bad"]
