"""Stores of text, of JSON and of open files pass the suite, over memory and over files."""

from __future__ import annotations

import enum
import io
import json
import sys
from collections import OrderedDict
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.errors import (
    ConfigError,
    IntegrityError,
    InvalidInputError,
    StorageError,
    UnavailableError,
)
from blobstore.testing.object_store import peak_memory
from blobstore.testing.value_store import ValueStoreSuite
from blobstore.wrappers.checksum import ChecksumStore
from blobstore.wrappers.compress import GzipStore
from blobstore.wrappers.encrypt import EncryptingStore
from blobstore.wrappers.text import BufferStore, JsonStore, TextEncodingStore
from blobstore.wrappers.transform import TransformingStore


class OverFiles:
    def make_store(self, tmp_path):
        return self.wrap(FilesystemStore(tmp_path / "root"))


class Suite(ValueStoreSuite):
    def wrap(self, store):
        raise NotImplementedError

    def make_store(self, tmp_path):
        return self.wrap(DictStore())


# --- text ----------------------------------------------------------------------------------------


class TestTextEncodingStore(Suite):
    values = ("text", "", "Grüße\r\n\0\ufeff", "\U0001f600" * 1000)
    wrong_values = (b"bytes", None, 5, ["x"], "\ud800", io.StringIO("x"))
    damaged = (b"\xff", b"gr\xfc\xdfe", b"\xc3")

    def wrap(self, store):
        return TextEncodingStore(store)


class TestTextEncodingStoreOverFiles(OverFiles, TestTextEncodingStore):
    pass


class TestTextInLatin1(TestTextEncodingStore):
    values = ("Grüße", "text")
    wrong_values = (b"bytes", None, "€", "\U0001f600")
    damaged = ()

    def wrap(self, store):
        return TextEncodingStore(store, encoding="latin-1")


class TestTextOverAStack(TestTextEncodingStore):
    damaged = ()

    def wrap(self, store):
        return TextEncodingStore(GzipStore(EncryptingStore(ChecksumStore(store), bytes(32))))


def test_text_is_stored_in_its_encoding():
    for encoding in ("utf-8", "latin-1", "utf-16-le", "cp1252", "UTF8", "utf_8_sig", "shift_jis"):
        with TextEncodingStore(DictStore(), encoding) as store:
            store.put("key", "abc")
            assert store.store.get("key") == "abc".encode(encoding)
            assert store.get("key") == "abc"
            assert f"encoding={encoding!r}" in repr(store)
            assert store.capabilities.values == "text"


@pytest.mark.parametrize(
    "wrong", ["utf-9", "rot13", "base64", "hex", "undefined", "", "a\0b", None, 8, b"utf-8"]
)
def test_encodings_that_are_none(wrong):
    with pytest.raises(ConfigError, match="encoding"):
        TextEncodingStore(DictStore(), wrong)


@pytest.mark.parametrize(
    ("encoding", "text"), [("shift_jis", "100 ¥"), ("raw_unicode_escape", r"\u0041"), ("idna", "ß")]
)
def test_text_that_an_encoding_would_change_is_refused(encoding, text):
    with TextEncodingStore(DictStore(), encoding) as store:
        with pytest.raises(InvalidInputError, match="same text"):
            store.put("key", text)
        assert list(store.keys()) == []


@given(
    text=st.text(), encoding=st.sampled_from(["utf-8", "utf-16", "utf-32", "utf-8-sig", "cp932"])
)
def test_text_comes_back_or_is_refused(text, encoding):
    with TextEncodingStore(DictStore(), encoding) as store:
        try:
            store.put("key", text)
        except InvalidInputError:
            assert not store.exists("key")
        else:
            assert store.get("key") == text


# --- JSON ----------------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 1


class Name(str):
    __slots__ = ()


class Point(NamedTuple):
    x: int
    y: int


def nested(depth):
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


circular: list[object] = []
circular.append(circular)


class TestJsonStore(Suite):
    values = (
        {"a": [1, 2.5, True, None, "ü\U0001f600\0"], "": {"b": {}}},
        [],
        None,
        False,
        0,
        1.0,
        -0.0,
        "",
        10**4000,
        1e308,
        5e-324,
        nested(100),
        {"z": 1, "a": 2},
    )
    wrong_values = (
        (1, 2),
        {1: "a"},
        {None: 1},
        {"a": {True: 1}},
        [float("nan")],
        float("inf"),
        -float("inf"),
        b"bytes",
        {1, 2},
        object(),
        {"x": [0, {"y": (1,)}]},
        "\ud800",
        {"\udfff": 1},
        "\ud83d\ude00",  # two halves, which JSON would give back as one character
        Colour.RED,
        Name("x"),
        {Name("x"): 1},
        Point(1, 2),
        OrderedDict(a=1),
        10**5000,
        nested(101),
        circular,
    )
    damaged = (
        b"", b"{", b'{"a":1', b"nul", b"[1,]", b"\xff", b'"\xff"', b"NaN", b"[Infinity]",
        b"-Infinity", b"1e999", b"1 2", b"'a'", b"[" * 100_000, b'{"a":1}junk', b"9" * 5000,
    )  # fmt: skip

    def wrap(self, store):
        return JsonStore(store)


class TestJsonStoreOverFiles(OverFiles, TestJsonStore):
    pass


class TestJsonStoreOverText(TestJsonStore):
    def wrap(self, store):
        return JsonStore(TextEncodingStore(store, "utf-16"), indent=2)

    damaged = tuple(
        each.decode().encode("utf-16") for each in TestJsonStore.damaged if each.isascii()
    )


class TestJsonStoreOverTextOverFiles(OverFiles, TestJsonStoreOverText):
    pass


def test_json_is_stored_as_others_read_it():
    value = {"b": ["ü", 1.5], "a": None}
    with JsonStore(DictStore()) as store:
        store.put("key", value)
        assert store.store.get("key") == '{"b":["ü",1.5],"a":null}'.encode()
        assert store.capabilities.values == "any"
    with JsonStore(DictStore(), indent=2) as store:
        store.put("key", value)
        assert store.store.get("key") == json.dumps(value, indent=2, ensure_ascii=False).encode()
        assert repr(store) == "JsonStore(DictStore(), indent=2)"
    with JsonStore(TextEncodingStore(DictStore(), "utf-16-le")) as store:
        store.put("key", value)
        assert store.store.get("key") == '{"b":["ü",1.5],"a":null}'
        store.store.store.put("key", ' [ 1 ,\t"\\u00fc" ]\r\n'.encode("utf-16-le"))
        assert store.get("key") == [1, "ü"]


def test_the_message_names_the_place():
    with JsonStore(DictStore()) as store:
        for value, words in (
            ({"a": [0, {"b": (1,)}]}, r'\["a"\]\[1\]\["b"\] is a tuple'),
            ({"a": {7: 1}}, r'\["a"\] has the name 7, a int'),
            ([float("nan")], r"value\[0\] is nan"),
            ([["\ud800"]], r"value\[0\]\[0\] has a lone surrogate"),
        ):
            with pytest.raises(InvalidInputError, match=words):
                store.put("key", value)


def test_json_needs_bytes_or_text_beneath():
    with pytest.raises(ConfigError, match="bytes or of text"):
        JsonStore(BufferStore(DictStore()))
    with pytest.raises(ConfigError, match="object store"):
        JsonStore({})
    for wrong in (-1, True, "  ", 1.5):
        with pytest.raises(ConfigError, match="indent"):
            JsonStore(DictStore(), indent=wrong)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(value=json_values, indent=st.none() | st.integers(0, 3), text=st.booleans())
def test_any_json_value(value, indent, text):
    beneath = TextEncodingStore(DictStore()) if text else DictStore()
    with JsonStore(beneath, indent=indent) as store:
        store.put("key", value)
        assert repr(store.get("key")) == repr(value)


def test_deep_json_from_elsewhere_is_read_or_refused():
    with JsonStore(DictStore()) as store:
        depth = sys.getrecursionlimit() * 300
        store.store.put("key", b"[" * depth + b"]" * depth)
        with pytest.raises(IntegrityError, match="no JSON"):
            store.get("key")


# --- open files ----------------------------------------------------------------------------------


class Pipe(io.RawIOBase):
    """A file that cannot seek, and that gives what it has."""

    def __init__(self, pieces):
        self.pieces = list(pieces)

    def readable(self):
        return True

    def read(self, size=-1):
        return self.pieces.pop(0) if self.pieces else b""


class NotReady(Pipe):
    def read(self, size=-1):
        return None


class TestBufferStore(Suite):
    values = (b"data", b"", bytes(range(256)) * 20_000)
    wrong_values = (b"bytes", "text", None, 5, [b"x"], io.StringIO("x"), NotReady([]))

    def wrap(self, store):
        return BufferStore(store)

    def fresh(self, value):
        return io.BytesIO(value)

    def comparable(self, value):
        assert type(value) is io.BytesIO
        assert value.tell() == 0
        assert value.seekable()
        return value.read()


class TestBufferStoreOverFiles(OverFiles, TestBufferStore):
    pass


def test_files_are_read_from_where_they_stand_and_left_open(tmp_path):
    (tmp_path / "in").write_bytes(b"0123456789")
    with BufferStore(DictStore()) as store, (tmp_path / "in").open("rb") as file:
        file.seek(4)
        store.put("key", file)
        assert file.tell() == 10
        assert not file.closed
        found = store.get("key")
        assert found.read(2) == b"45"
        found.write(b"!")  # what is given is the caller's own
        assert store.get("key").getvalue() == b"456789"
        assert store.store.get("key") == b"456789"
        store.put("pipe", Pipe([b"a", bytearray(b"b"), memoryview(b"c")]))
        assert store.get("pipe").read() == b"abc"
        file.seek(8)
        assert store.put_if_absent("absent", file) is True
        assert store.get("absent").read() == b"89"


def test_large_files_are_stored_in_pieces(tmp_path):
    with (tmp_path / "in").open("wb") as file:
        for number in range(24):
            file.write(bytes([number]) * (1 << 20))
    with BufferStore(GzipStore(FilesystemStore(tmp_path / "root"), level=1)) as store:
        with (tmp_path / "in").open("rb") as file:
            assert peak_memory(lambda: store.put("key", file)) < 6 << 20
        assert len(store.get("key").getvalue()) == 24 << 20


def test_a_file_that_fails_halfway_leaves_the_old_value(tmp_path):
    class Failing(Pipe):
        def read(self, size=-1):
            if not self.pieces:
                raise OSError("the line is dead")
            return super().read()

    class Turning(Pipe):
        def read(self, size=-1):
            return super().read() or "text"

    with BufferStore(FilesystemStore(tmp_path / "root")) as store:
        store.put("key", io.BytesIO(b"old"))
        for kind, error in ((Failing, OSError), (Turning, InvalidInputError)):
            with pytest.raises(error):
                store.put("key", kind([b"new", b"newer"]))
            with pytest.raises(error):
                store.put_if_absent("other", kind([b"new", b"newer"]))
        assert store.get("key").read() == b"old"
        assert list(store.keys()) == ["key"]
        assert list(store.leftovers()) == []


def test_writers_that_choose_another_place_are_not_used():
    class Moving(DictStore):
        def writer(self, key, size_hint=None):
            return super().writer(f"elsewhere/{key}")

    with BufferStore(Moving()) as store:
        store.put("key", io.BytesIO(b"1"))
        assert store.get("key").read() == b"1"


def test_a_put_that_failed_can_be_tried_again():
    class Flaky(DictStore):
        fails = 2

        def put(self, key, data):
            if self.fails:
                self.fails -= 1
                raise UnavailableError("not now")
            super().put(key, data)

        def put_if_absent(self, key, data):
            self.put(key, data)
            return True

    for attempt in ("put", "put_if_absent"):
        with BufferStore(Flaky()) as store:
            file = io.BytesIO(b"0123456789")
            file.seek(3)
            for _ in range(2):
                with pytest.raises(StorageError):
                    getattr(store, attempt)("key", file)
            getattr(store, attempt)("key", file)
            assert store.get("key").read() == b"3456789"


# --- the base of all of them ---------------------------------------------------------------------


def test_what_a_transformer_says_of_damage_names_the_object():
    class Picky(TransformingStore):
        knows = None

        def reverse_transform(self, data):
            raise IntegrityError("the third byte is wrong", location=self.knows)

    with Picky(DictStore()) as store:
        store.put("key", b"1")
        with pytest.raises(IntegrityError, match="'key' is damaged: the third byte") as caught:
            store.get("key")
        assert caught.value.location == "key"
        store.knows = "x"
        with pytest.raises(IntegrityError, match=r"^the third byte") as caught:
            store.get("key")
        assert caught.value.location == "x"
