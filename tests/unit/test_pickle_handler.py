"""The pickle handler: buffers out of band, what is refused, what is damaged or not here."""

from __future__ import annotations

import gc
import io
import pickle
import random
import struct
import sys
import threading
import tracemalloc
import types
import weakref

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore import BlobStore, codecs
from blobstore.digest import new_digest
from blobstore.errors import (
    DecodeError,
    InvalidInputError,
    UnsupportedTypeError,
)
from blobstore.handlers import pickle as pickles
from blobstore.handlers.pickle import MAGIC, PickleHandler
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.streams import BytesSource, MemorySink
from blobstore.trust import EVERYTHING


def stored(obj, codec="none"):
    """The bytes that the handler writes, and the codec that it really used."""
    plan = PickleHandler().plan(obj, WriteOptions(codec))
    (part,) = plan.parts
    with MemorySink() as sink:
        part.write(sink)
    return sink.content, part.encoding().codec


def read(data, codec="none"):
    part = StoredPart("data", BytesSource(data), codec, "pickle", 1, EVERYTHING)
    return PickleHandler().read({"data": part}, {})


def round_trip(obj, codec="none"):
    return read(*stored(obj, codec))


class Model:
    def __init__(self, **fields):
        self.__dict__.update(fields)


def big(seed=1, shape=(100, 200)):
    return np.random.default_rng(seed).standard_normal(shape)


# --- round trips ---------------------------------------------------------------------------------

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.dates()
)
OBJECTS = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.frozensets(st.integers() | st.text())
    ),
    max_leaves=20,
)


def typed(obj):
    """Tell 1, True and 1.0 apart, all the way down."""
    if isinstance(obj, list | tuple):
        return type(obj), [typed(item) for item in obj]
    if isinstance(obj, dict):
        return type(obj), [(typed(k), typed(v)) for k, v in obj.items()]
    return type(obj), repr(obj) if isinstance(obj, float | complex) else obj


@given(OBJECTS, st.sampled_from(codecs.NAMES))
def test_any_object_comes_back(obj, codec):
    assert typed(round_trip(obj, codec)) == typed(obj)


def test_a_small_object_is_a_plain_pickle():
    data, codec = stored([1, 2, 3])
    assert codec == "none"
    assert pickle.loads(data) == [1, 2, 3]


def test_identities_inside_are_kept():
    shared = [1]
    obj = {"a": shared, "b": shared}
    obj["self"] = obj
    loaded = round_trip(obj)
    assert loaded["a"] is loaded["b"]
    assert loaded["self"] is loaded


# --- buffers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", codecs.NAMES)
def test_large_buffers_stand_behind_the_pickle(codec):
    model = Model(weights=big(), bias=np.arange(5.0), raw=bytearray(b"ab" * 50_000), name="m")
    data, used = stored(model, codec)
    plain = codecs.get(used).decompress(data)
    magic, length, count = struct.unpack_from("<8sQI", plain)
    assert magic == MAGIC
    sizes = struct.unpack_from(f"<{count}Q", plain, 20)
    assert model.weights.nbytes in sizes
    assert len(plain) == 20 + 8 * count + length + sum(sizes)
    assert length < 120_000
    loaded = read(data, used)
    assert np.array_equal(loaded.weights, model.weights)
    assert (loaded.raw, loaded.name) == (model.raw, "m")


def test_loaded_arrays_are_writable_and_their_own():
    model = Model(large=big(), small=np.arange(5.0), again=None)
    model.again = model.large
    data, used = stored(model)
    one, other = read(data, used), read(data, used)
    for array in (one.large, one.small):
        assert array.flags.writeable
        array[...] = 7
    assert one.again is one.large
    assert np.array_equal(other.large, model.large)
    assert np.array_equal(model.large, big())


@pytest.mark.parametrize("size", [10, 20_000])
def test_arrays_that_may_not_be_written_to_stay_so_or_become_writable(size):
    array = np.arange(float(size))
    array.flags.writeable = False
    model = round_trip(Model(array=array))
    assert np.array_equal(model.array, array)


class Square(np.ndarray):
    """A subclass without anything of its own."""


ODD_ARRAYS = {
    "strided": big()[::2, ::3],
    "reversed": big()[::-1],
    "transposed": big().T,
    "fortran": np.asfortranarray(big()),
    "broadcast": np.broadcast_to(np.arange(20_000.0), (3, 20_000)),
    "objects": np.array([None, "a", [1]] * 5000, object),
    "masked": np.ma.masked_less(big(), 0),
    "subclass": big().view(Square),
    "records": np.rec.fromarrays([np.arange(9000), np.arange(9000.0)], names="a,b"),
    "empty": np.empty((0, 5)),
    "big-endian": big().astype(">f8"),
    "times": np.arange(20_000).astype("M8[s]"),
    "booleans": big() > 0,
    "dimensions": np.ones((2,) * 12),
}


@pytest.mark.parametrize("name", ODD_ARRAYS)
def test_arrays_of_every_kind_inside_objects(name):
    array = ODD_ARRAYS[name]
    for obj in (Model(array=array), array):
        loaded = round_trip(obj, "lz4")
        loaded = loaded.array if isinstance(obj, Model) else loaded
        assert type(loaded) is type(array)
        assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
        assert loaded.tolist() == array.tolist()


def test_frames_inside_objects():
    frame = pd.DataFrame({"a": np.arange(20_000.0), "b": ["x", "y"] * 10_000})
    pd.testing.assert_frame_equal(round_trip(Model(frame=frame)).frame, frame)


@pytest.mark.parametrize("size", [pickles._OUT_OF_BAND - 1, pickles._OUT_OF_BAND])
def test_the_size_from_which_buffers_are_apart(size):
    data, _ = stored(bytearray(random.Random(1).randbytes(size)))
    array, _ = stored(np.frombuffer(bytearray(size), "u1"))
    assert array.startswith(MAGIC) is (size == pickles._OUT_OF_BAND)
    assert read(data) == bytearray(random.Random(1).randbytes(size))


class Lends:
    """Gives a view of its own memory to the pickle, whatever its shape."""

    def __init__(self, view):
        self.view = view

    def __reduce_ex__(self, protocol):
        return bytes, (pickle.PickleBuffer(self.view),)


def test_buffers_of_odd_shapes():
    data = bytes(range(256)) * 1000
    assert round_trip(Lends(memoryview(data))) == data
    assert round_trip(Lends(memoryview(data).cast("I", [64, 1000]))) == data
    with pytest.raises(UnsupportedTypeError):
        stored(Lends(memoryview(data)[::2]))
    with pytest.raises(UnsupportedTypeError):
        stored(pickle.PickleBuffer(memoryview(data)[::2]))


def test_neither_writing_nor_reading_holds_a_buffer_twice():
    array = np.random.default_rng(1).integers(0, 255, 32 << 20, dtype="u1")
    model = Model(array=array)

    class Discard(MemorySink):
        def write(self, data):
            return len(data)

    tracemalloc.start()
    try:
        (part,) = PickleHandler().plan(model, WriteOptions("lz4")).parts
        part.write(Discard())
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        data, codec = stored(model)
        source = BytesSource(data)
        tracemalloc.reset_peak()
        start = tracemalloc.get_traced_memory()[0]
        loaded = pickles.load(StoredPart("data", source, codec, "pickle", 1, EVERYTHING))
        assert tracemalloc.get_traced_memory()[1] - start < array.nbytes + (8 << 20)
    finally:
        tracemalloc.stop()
    assert np.array_equal(loaded.array, array)


def test_nothing_lingers_after_a_load():
    data, codec = stored(Model(array=big()))
    gc.disable()
    try:
        model = read(data, codec)
        watched = weakref.ref(model), weakref.ref(model.array)
        del model
        assert [ref() for ref in watched] == [None, None]
    finally:
        gc.enable()


def test_nothing_lingers_after_planning():
    model = Model(array=big())
    watched = weakref.ref(model)
    gc.disable()
    try:
        plan = PickleHandler().plan(model, WriteOptions())
        plan.parts[0].digest(new_digest())
        with MemorySink() as sink:
            plan.parts[0].write(sink)
        del plan, model
        assert watched() is None
    finally:
        gc.enable()


# --- what is refused -----------------------------------------------------------------------------


def local_class():
    class Local:
        pass

    return Local


class Refuses:
    def __reduce__(self):
        raise TypeError("not me")


REFUSED = {
    "lambda": lambda: lambda: 0,
    "local class": local_class,
    "instance of one": lambda: local_class()(),
    "local function": lambda: local_class.__code__ and (lambda x: x),
    "lock": threading.Lock,
    "generator": lambda: (i for i in range(3)),
    "module": lambda: sys,
    "frame": sys._getframe,
    "view": lambda: memoryview(b"abc"),
    "deep": lambda: deep(100_000),
    "refuses": Refuses,
    "socket": lambda: io.TextIOWrapper(io.BytesIO()),
    "code": lambda: local_class.__code__,
    "proxy": lambda: types.MappingProxyType({}),
}


def deep(levels):
    obj = []
    for _ in range(levels):
        obj = [obj]
    return obj


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("inside", [False, True])
def test_what_pickle_does_not_take(name, inside):
    obj = REFUSED[name]()
    obj = Model(field=[obj]) if inside else obj
    with pytest.raises(UnsupportedTypeError) as caught:
        PickleHandler().plan(obj, WriteOptions())
    assert type(obj).__qualname__ in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("content_addressable", [False, True])
def test_what_is_refused_leaves_nothing(tmp_path, name, content_addressable):
    with BlobStore(tmp_path, content_addressable=content_addressable) as store:
        store.put(1, key="k")
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(UnsupportedTypeError):
            store.put(REFUSED[name](), key="k")
        with pytest.raises(TypeError):
            store.put({"a": big(), "b": REFUSED[name]()}, key="new")
        assert store.list() == ["k"]
        assert store["k"] == 1
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_open_file_is_refused(tmp_path):
    with (tmp_path / "f").open("wb") as file, pytest.raises(UnsupportedTypeError):
        PickleHandler().plan(file, WriteOptions())


def test_unknown_options_are_refused():
    data, codec = stored([1])
    part = StoredPart("data", BytesSource(data), codec, "pickle", 1, EVERYTHING)
    with pytest.raises(InvalidInputError, match="rows"):
        PickleHandler().read({"data": part}, {}, rows=slice(3))


# --- what cannot be read here --------------------------------------------------------------------


@pytest.fixture
def module():
    """A module that can be taken away again."""
    made = types.ModuleType("blobstore_test_gone")
    made.Thing = type("Thing", (Model,), {"__module__": made.__name__})
    sys.modules[made.__name__] = made
    yield made
    sys.modules.pop(made.__name__, None)


@pytest.mark.parametrize("fields", [{"a": 1}, {"a": big()}], ids=["plain", "buffers"])
def test_a_class_or_module_that_is_not_here(module, fields):
    data, codec = stored(module.Thing(**fields))
    assert type(read(data, codec)) is module.Thing
    del module.Thing
    with pytest.raises(DecodeError, match="Thing"):
        read(data, codec)
    del sys.modules[module.__name__]
    with pytest.raises(DecodeError, match="blobstore_test_gone"):
        read(data, codec)


class Changed:
    """Its state was of another form when it was stored."""

    def __init__(self, state):
        self.state = state

    def __getstate__(self):
        return self.state

    def __setstate__(self, state):
        self.value = state["value"] + 1


@pytest.mark.parametrize("state", [{"other": 1}, {"value": "x"}, [1]], ids=repr)
def test_a_class_that_cannot_take_its_old_state(state):
    """Whole bytes that cannot be decoded here are a DecodeError, whatever the class raises."""
    data, codec = stored(Changed(state))
    with pytest.raises(DecodeError):
        read(data, codec)


def every_cut(data):
    return range(len(data)) if len(data) < 400 else [*range(200), *range(200, len(data), 997)]


@pytest.mark.parametrize(
    "obj", [[1, "two", {"three": 3.0}], Model(a=big(), b=[1]), Model(a=big(), c=big(2))], ids=type
)
def test_every_cut_is_noticed(obj):
    data, codec = stored(obj)
    assert codec == "none"
    for cut in every_cut(data):
        with pytest.raises(DecodeError):
            read(data[:cut])


@pytest.mark.parametrize("codec", ["lz4", "zstd", "gzip", "blosclz"])
@pytest.mark.parametrize("size", [1000, 3 << 20], ids=["small", "streamed"])
def test_cut_compressed_streams(codec, size):
    data, used = stored(Model(a=np.arange(size) // 50), codec)
    assert used == codec
    cuts = [len(data) * i // 20 for i in range(20)] + [len(data) - 1]
    for cut in cuts:
        with pytest.raises(DecodeError):
            read(data[:cut], used)


HEADERS = {
    "no header": MAGIC,
    "huge pickle": MAGIC + struct.pack("<QI", 1 << 62, 0),
    "many buffers": MAGIC + struct.pack("<QI", 10, (1 << 32) - 1),
    "huge buffer": MAGIC + struct.pack("<QIQ", 2, 1, 1 << 62) + b"N.",
    "larger than any": MAGIC + struct.pack("<QIQ", 2, 1, (1 << 64) - 1) + b"N.",
    "missing buffer": MAGIC + struct.pack("<QIQ", 2, 1, 5) + b"N.abc",
    "too few buffers": MAGIC + struct.pack("<QI", 4, 0) + b"\x80\x05\x97.",
    "nothing": b"",
    "text": b"this is no pickle at all",
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie(name):
    """Also of a length that no machine has: no memory is taken before the bytes are there."""
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            read(HEADERS[name])
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


# --- digests -------------------------------------------------------------------------------------


def digest_of(obj, algorithm="blake3"):
    (part,) = PickleHandler().plan(obj, WriteOptions()).parts
    hasher = new_digest(algorithm)
    part.digest(hasher)
    return hasher.hexdigest()


def test_digests_of_objects():
    assert digest_of(Model(a=big())) == digest_of(Model(a=np.asfortranarray(big())))
    assert digest_of(Model(a=big())) != digest_of(Model(a=big(2)))
    assert digest_of([1]) != digest_of((1,))
    assert digest_of([1], "sha256") == digest_of([1], "sha256") != digest_of([1])


def test_what_has_no_canonical_form_is_digested_as_it_was_pickled():
    deeply = deep(300)
    assert digest_of(deeply) == digest_of(deep(300))
    assert digest_of(deeply) != digest_of(deep(301))
    assert digest_of([].append) != digest_of([1].append)
