"""A `DataHandler` in a `BlobStore`: what it stores, who reads it, and what it may do wrong."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import tempfile
import threading
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blobstore import AutoStore, BlobStore, DataHandler
from blobstore.backends import DictStore
from blobstore.errors import (
    BlobStoreError,
    ConfigError,
    DecodeError,
    HandlerError,
    IntegrityError,
    InvalidInputError,
    OutOfSpaceError,
    StorageError,
    UnsupportedTypeError,
    UntrustedTypeError,
)
from blobstore.keys import is_location
from blobstore.protocols import Handler, WriteOptions
from blobstore.protocols.data_handler import is_extension
from blobstore.registry import HandlerSet, Registry, as_handler, handler_classes

MIB = 1 << 20


class LogHandler(DataHandler):
    """Lists of events, as users of the older library write such a class."""

    def can_handle_extension(self, extension):
        return extension.lower() == ".log"

    def can_handle_data(self, data):
        return isinstance(data, list) and all(
            isinstance(item, dict) and "timestamp" in item for item in data
        )

    def read_from_file(self, file_path, file_extension):
        with open(file_path) as f:
            return [json.loads(line) for line in f if line.strip()]

    def write_to_file(self, data, file_path, file_extension):
        file_path.parent.mkdir(parents=True, exist_ok=True)
        with open(file_path, "w") as f:
            f.writelines(json.dumps(entry) + "\n" for entry in data)

    @property
    def extensions(self):
        return [".log"]

    @property
    def priority(self):
        return 15


class PlainLogs(LogHandler):
    """The same; it says that its files run nothing."""

    name = "plainlogs"
    runs_code = False


EVENTS = [{"timestamp": 1, "what": "start"}, {"timestamp": 2, "what": "end"}]


def many(seed=0, count=400):
    """Events that do not shrink, in a file of more than a MiB."""
    rng = random.Random(seed)
    return [{"timestamp": n, "what": rng.randbytes(3000).hex()} for n in range(count)]


def variant(base=PlainLogs, **attributes):
    return type("Variant", (base,), {"name": "variant", **attributes})


def blobs(store):
    return [path for path in (store.path / "blobs").rglob("*.*") if path.name[0] != "."]


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary files go; looked at when the test is over."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    gc.collect()
    assert [*folder.iterdir()] == []


@pytest.fixture(params=["json-files", "sqlite-files", "memory", "zip", "sqlite-sqlite"])
def arguments(request, tmp_path, temporary):
    made = {
        "json-files": {"backend": "json"},
        "sqlite-files": {"backend": "sqlite"},
        "memory": {"blob_backend": DictStore()},
        "zip": {"backend": "sqlite", "blob_backend": "zip"},
        "sqlite-sqlite": {"backend": "sqlite", "blob_backend": "sqlite"},
    }
    return {"cache_dir": tmp_path / "store", **made[request.param]}


# --- in and out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [LogHandler, PlainLogs])
@pytest.mark.parametrize("shared", [False, True])
def test_in_every_store(arguments, cls, shared):
    with BlobStore(**arguments, handlers=[cls()], content_addressable=shared) as store:
        store.put(EVENTS, key="runs/1.txt", metadata={"a": 1})
        store.put(many(), key="large")
        store["number"] = 5
        assert store["runs/1.txt"] == EVENTS
        assert store["large"] == many()
        assert store.get_many(["runs/1.txt", "number"]) == {"runs/1.txt": EVENTS, "number": 5}
        assert store.entry("number").handler == "pickle"
        described = store.get_metadata("runs/1.txt")
        assert described["handler"] == cls.__name__.lower()
        assert described["data_type"] == "object"
        assert described["info"] == {
            "extension": ".log",
            "type": "builtins.list",
            "class": f"{__name__}.{cls.__name__}",
        }
        with store.open("large") as file:  # the file that the class wrote
            assert [json.loads(line) for line in file] == many()
        store.copy("runs/1.txt", "copy")
        store.move("large", "moved")
        store.update_metadata("copy", {"b": 2})
        assert store["copy"] == EVENTS
        assert store["moved"] == many()
        assert store.verify(deep=True).ok
        store.put([{"timestamp": 3}], key="copy")
        assert store["copy"] == [{"timestamp": 3}]
        assert store["runs/1.txt"] == EVENTS


@pytest.mark.parametrize("cls", [LogHandler, PlainLogs])
def test_the_class_itself_will_do(tmp_path, cls):
    with BlobStore(tmp_path, handlers=[cls]) as store:
        store["a"] = EVENTS
        assert store["a"] == EVENTS
    with BlobStore(tmp_path) as store:
        store.register_handler(cls)
        assert store["a"] == EVENTS


def test_a_class_that_is_no_subclass(tmp_path):
    """It was made for another library of the same interface."""
    cls = type("Older", (), {k: v for k, v in vars(LogHandler).items() if k != "__dict__"})
    cls.__abstractmethods__ = frozenset()
    assert not any(base is DataHandler for base in cls.__mro__)
    with BlobStore(tmp_path, handlers=[cls]) as store:
        store["a"] = EVENTS
        assert (store["a"], store.entry("a").handler) == (EVENTS, "older")


def test_what_pays_is_compressed(tmp_path):
    with BlobStore(tmp_path, handlers=[PlainLogs], compression="zstd") as store:
        store["shrinks"] = EVENTS * 20_000
        store["small"] = EVENTS * 20
        store["noise"] = many()
        codecs = {key: store.entry(key).parts[0].blob.codec for key in store}
        assert codecs == {"shrinks": "zstd", "small": "zstd", "noise": "zstd"}  # hexadecimal
        assert {path.name[32:] for path in blobs(store)} == {".log.zst"}
        assert store["shrinks"] == EVENTS * 20_000
        assert store["small"] == EVENTS * 20


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_what_does_not_is_stored_as_it_is(tmp_path, size):
    content = random.Random(1).randbytes(size)

    class Bytes(PlainLogs):
        def can_handle_data(self, data):
            return type(data) is bytes

        def write_to_file(self, data, file_path, file_extension):
            file_path.write_bytes(data)

        def read_from_file(self, file_path, file_extension):
            return file_path.read_bytes()

    with BlobStore(tmp_path, handlers=[Bytes]) as store:
        store["a"] = content
        assert store.entry("a").parts[0].blob.codec == "none"
        (path,) = blobs(store)
        assert path.read_bytes() == content
        assert path.name.endswith(".log")
        assert store["a"] == content


@pytest.mark.parametrize(
    ("extension", "ends"),
    [
        (".log", ".log"),
        (".tar.gz", ".tar.gz"),
        (".my-log", ".bin"),
        (".ü", ".bin"),
        (".a b", ".bin"),
        ("." + "x" * 60, ".bin"),
        (".LOG", ".log"),
    ],
)
def test_extensions_that_locations_show(tmp_path, extension, ends):
    """What is stored under a name that is not ours would never be collected."""
    cls = variant(extensions=[extension], can_handle_extension=lambda self, e: True)
    with BlobStore(tmp_path, handlers=[cls], compression="none") as store:
        store["a"] = EVENTS
        (location,) = store.entry("a").locations
        assert is_location(location)
        assert location.endswith(ends)
        assert store["a"] == EVENTS
        assert store.get_metadata("a")["info"]["extension"] == extension.lower()


def test_the_extension_that_was_written_is_the_one_that_is_read(tmp_path):
    seen = []

    class Seen(PlainLogs):
        extensions = (".log", ".old")

        def can_handle_extension(self, extension):
            return extension in (".log", ".old")

        def read_from_file(self, file_path, file_extension):
            seen.append((file_path.suffix, file_extension))
            return super().read_from_file(file_path, file_extension)

    with BlobStore(tmp_path, handlers=[Seen]) as store:
        store["a"] = EVENTS
    Seen.extensions = (".old", ".log")
    with BlobStore(tmp_path, handlers=[Seen]) as store:
        store["b"] = EVENTS
        assert store["a"] == store["b"] == EVENTS
    assert seen == [(".log", ".log"), (".old", ".old")]


def test_none_can_be_stored(tmp_path):
    cls = variant(
        can_handle_data=lambda self, data: data is None,
        write_to_file=lambda self, data, path, extension: path.write_text(""),
        read_from_file=lambda self, path, extension: None,
    )
    with BlobStore(tmp_path, handlers=[cls]) as store:
        store["a"] = None
        assert store.entry("a").handler == "variant"
        assert store["a"] is None


def test_read_options_are_refused(tmp_path):
    with BlobStore(tmp_path, handlers=[PlainLogs]) as store:
        store["a"] = EVENTS
        with pytest.raises(InvalidInputError, match="'columns'"):
            store.get("a", columns=["timestamp"])


# --- who is asked --------------------------------------------------------------------------------


def test_priority_decides():
    def chosen(*priorities):
        handlers = [variant(name=f"p{p}", priority=p) for p in priorities]
        return HandlerSet(handlers).plan(EVENTS, WriteOptions()).handler.name

    assert chosen(1, 15, 3) == "p15"
    assert chosen(0) == "p0"  # before the built-in ones of the same
    assert chosen(-1) == "p-1"  # plain lists are pickled, and pickle comes last
    assert chosen(-2000) == "pickle"
    text = variant(can_handle_data=lambda self, data: isinstance(data, str), priority=-1)
    assert HandlerSet([text]).plan("text", WriteOptions()).handler.name == "str"


def test_one_that_refuses_leaves_it_to_the_next(tmp_path):
    class Refuses(PlainLogs):
        def write_to_file(self, data, file_path, file_extension):
            raise UnsupportedTypeError("too many")

    with BlobStore(tmp_path, handlers=[Refuses]) as store:
        store["a"] = EVENTS
        assert store.entry("a").handler == "pickle"


def test_files_are_none_of_its_business(tmp_path):
    """One that takes everything is not asked about what `put_file` means."""
    cls = variant(can_handle_data=lambda self, data: True)
    (tmp_path / "report.txt").write_text("as it is")
    with BlobStore(tmp_path / "store", handlers=[cls]) as store:
        store.put_file(tmp_path / "report.txt", "report")
        assert store.entry("report").handler == "file"
        assert store["report"] == b"as it is"


def test_names():
    assert as_handler(LogHandler).name == "loghandler"
    assert as_handler(variant(name=" Old Name ")).name == "old name"
    for wrong in ("", " ", 5, b"x"):
        with pytest.raises(ConfigError, match=r"Variant\.name"):
            as_handler(variant(name=wrong))
    with pytest.raises(ConfigError, match="'pickle'"):
        HandlerSet([variant(name="Pickle")])
    with pytest.raises(ConfigError, match="'loghandler'"):
        HandlerSet([LogHandler, LogHandler()])


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"extensions": []}, r"Variant\.extensions"),
        ({"extensions": None}, r"Variant\.extensions"),
        ({"extensions": ".log"}, r"Variant\.extensions"),
        ({"extensions": ["log"]}, r"Variant\.extensions"),
        ({"extensions": ["./../log"]}, r"Variant\.extensions"),
        ({"extensions": [".a\0"]}, r"Variant\.extensions"),
        ({"extensions": ["." + "x" * 200]}, r"Variant\.extensions"),
        ({"priority": "high"}, r"Variant\.priority"),
        ({"priority": None}, r"Variant\.priority"),
        ({"extensions": [".txt"]}, r"Variant\.can_handle_extension refuses '\.txt'"),
        ({"can_handle_extension": lambda self: True}, r"Variant\.can_handle_extension .* failed"),
        ({"__init__": lambda self, folder: None}, "give an instance"),
    ],
)
def test_classes_that_cannot_be_used(tmp_path, attributes, said):
    """They are refused before there is a folder."""
    with pytest.raises(ConfigError, match=said):
        BlobStore(tmp_path / "store", handlers=[variant(**attributes)])
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("wrong", [None, 5, "LogHandler", int, object(), DataHandler, Handler])
def test_what_is_no_handler(tmp_path, wrong):
    with BlobStore(tmp_path) as store:
        with pytest.raises(ConfigError):
            store.register_handler(wrong)
        store["a"] = 1


@pytest.mark.parametrize("how", ["instance", "class of an instance", "class"])
def test_unregistering(tmp_path, how):
    given = LogHandler if how == "class" else LogHandler()
    named = given if how != "class of an instance" else LogHandler
    with BlobStore(tmp_path) as store:
        store.register_handler(given)
        store["a"] = EVENTS
        assert store.unregister_handler(named) is True
        assert store.unregister_handler(named) is False
        store["b"] = EVENTS
        assert store.entry("b").handler == "pickle"
        with pytest.raises(DecodeError, match="'loghandler', which is not here"):
            store.get("a")
        store.register_handler(LogHandler)
        assert store["a"] == EVENTS


def test_a_handler_of_streams_is_unregistered_too():
    class Plain(Handler):
        name = "plain"
        type_names = ("*",)
        can_handle = plan = read = lambda self, *args: False

    handlers = HandlerSet([Plain])
    assert handlers.given == (Plain,)
    assert handlers.by_name("plain").name == "plain"
    assert handlers.unregister(Plain)
    assert handlers.given == ()
    with pytest.raises(DecodeError):
        handlers.by_name("plain")


# --- other processes -----------------------------------------------------------------------------


def test_a_store_without_it_says_which_one_is_missing(tmp_path):
    with BlobStore(tmp_path, handlers=[LogHandler]) as store:
        store["a"] = EVENTS
    with BlobStore(tmp_path) as store:
        with pytest.raises(DecodeError, match=r"'a' cannot be loaded: .*'loghandler'") as caught:
            store.get("a", default=None)
        assert caught.value.key == "a"
        assert store.get_metadata("a")["info"]["class"] == f"{__name__}.LogHandler"
        assert store.verify(deep=True).ok
        assert store.copy("a", "b") == "b"
        store.update_metadata("b", {"x": 1})
        store.register_handler(LogHandler())
        assert store["a"] == store["b"] == EVENTS


def test_another_class_of_that_name(tmp_path):
    """It is asked whether it reads such files, before it is given one."""
    with BlobStore(tmp_path, handlers=[PlainLogs]) as store:
        store["a"] = EVENTS
    other = variant(
        name="plainlogs",
        extensions=[".txt"],
        can_handle_extension=lambda self, e: e == ".txt",
        read_from_file=lambda self, path, extension: pytest.fail("it was asked"),
    )
    with (
        BlobStore(tmp_path, handlers=[other]) as store,
        pytest.raises(DecodeError, match=r"\.log file by .*PlainLogs, and .*Variant"),
    ):
        store.get("a")


SECOND = """
import sys
sys.path[:0] = [{tests!r}]
from test_data_handler import BlobStore, LogHandler, EVENTS
with BlobStore({folder!r}, handlers=[LogHandler]) as store:
    assert store["a"] == EVENTS
    store["b"] = EVENTS
"""


def test_a_second_process(tmp_path):
    folder = tmp_path / "store"
    with BlobStore(folder, handlers=[LogHandler()]) as store:
        store["a"] = EVENTS
        code = SECOND.format(tests=str(Path(__file__).parent), folder=str(folder))
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert store["b"] == EVENTS
        assert store.get_metadata("b")["info"]["class"] == "test_data_handler.LogHandler"


@pytest.mark.parametrize("given", [LogHandler, LogHandler()], ids=["class", "instance"])
def test_pickled_copies_have_it(tmp_path, given):
    with BlobStore(tmp_path) as store:
        store.register_handler(given)
        store["a"] = EVENTS
        with pickle.loads(pickle.dumps(store)) as copy:
            assert copy["a"] == EVENTS
        store.unregister_handler(LogHandler)
        with pickle.loads(pickle.dumps(store)) as copy, pytest.raises(DecodeError):
            copy.get("a")


def _read_in_child(store):
    return store["a"]


def test_a_copy_in_another_process(tmp_path):
    with BlobStore(tmp_path, handlers=[LogHandler]) as store:
        store["a"] = EVENTS
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(_read_in_child, (store,)) == EVENTS
            pool.close()
            pool.join()


def test_threads(tmp_path, temporary):
    with BlobStore(tmp_path / "store", handlers=[LogHandler()]) as store:

        def work(n):
            events = [{"timestamp": n}] * (1 + n) + (many(n) if n % 4 == 0 else [])
            store[f"k{n}"] = events
            return store[f"k{n}"] == events

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(24)))
        keys = store.put_many((f"m{n}", [{"timestamp": n}]) for n in range(50))
        assert store.get_many(keys) == {f"m{n}": [{"timestamp": n}] for n in range(50)}


def test_a_forked_child_leaves_the_files_of_its_parent(temporary):
    plan = as_handler(PlainLogs).plan(many(), WriteOptions())
    (folder,) = temporary.iterdir()
    child = os.fork()
    if child == 0:
        del plan
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert [path.name for path in folder.iterdir()] == ["object.log"]
    del plan


# --- packages ------------------------------------------------------------------------------------


@pytest.fixture
def offered(monkeypatch):
    """Let an installed package offer handlers: names and classes."""
    from blobstore import registry

    def offer(**classes):
        fresh = Registry(
            "handler", "blobstore.handlers", (Handler, DataHandler), handler_classes._builtin
        )
        monkeypatch.setattr(fresh, "_offered", {n: f"{__name__}:{n}" for n in classes})
        monkeypatch.setattr(registry, "load", lambda target: loaded(target, classes))
        monkeypatch.setattr(registry, "handler_classes", fresh)

    real = registry.load

    def loaded(target, classes):
        module, _, name = target.partition(":")
        return classes[name] if module == __name__ else real(target)

    return offer


def test_an_entry_point(tmp_path, offered):
    offered(loghandler=LogHandler)
    with BlobStore(tmp_path) as store:
        store["a"] = EVENTS
        assert store.entry("a").handler == "loghandler"
        assert store["a"] == EVENTS
        with pytest.raises(ConfigError, match="'loghandler' already"):
            store.register_handler(LogHandler)
    with BlobStore(tmp_path) as store:
        assert store["a"] == EVENTS


def test_an_entry_point_of_another_name_is_refused(tmp_path, offered):
    """What it stored would be looked for under a name that nobody offers."""
    offered(logs=LogHandler)
    with (
        BlobStore(tmp_path) as store,
        pytest.raises(ConfigError, match=r"entry point 'logs' .* 'loghandler'"),
    ):
        store.put(EVENTS, key="a")


def test_an_entry_point_that_is_no_handler(tmp_path, offered):
    offered(number=int)
    with (
        BlobStore(tmp_path) as store,
        pytest.raises(ConfigError, match="subclass of Handler or DataHandler"),
    ):
        store.put(EVENTS, key="a")


# --- trust ---------------------------------------------------------------------------------------


def others(tmp_path, cls):
    """A store that somebody else wrote."""
    with BlobStore(tmp_path, handlers=[cls], signing_keys=["7" * 64]) as store:
        store["a"] = EVENTS
        store["large"] = many()
    return {"cache_dir": tmp_path, "handlers": [cls]}


def test_it_reads_what_the_reader_signed_or_trusts(tmp_path):
    arguments = others(tmp_path, LogHandler)
    name = f"{__name__}.LogHandler"
    with BlobStore(**arguments) as store:
        for key in store:
            with pytest.raises(UntrustedTypeError, match=name):
                store.get(key)
    for more in (
        {"signing_keys": ["7" * 64]},
        {"pickle": "allow"},
        {"trusted_types": [name]},
    ):
        with BlobStore(**arguments, **more) as store:
            assert (store["a"], store["large"]) == (EVENTS, many())
    with BlobStore(**arguments, pickle="deny", signing_keys=["7" * 64]) as store:
        with pytest.raises(UntrustedTypeError, match="loghandler"):
            store.get("a")
        assert store.get_metadata("a")["handler"] == "loghandler"


def test_its_code_is_not_run_on_what_is_not_trusted(tmp_path):
    class Watched(LogHandler):
        def read_from_file(self, file_path, file_extension):
            pytest.fail("it was run")

    with BlobStore(**others(tmp_path, Watched)) as store, pytest.raises(UntrustedTypeError):
        store.get("a")


def test_one_that_runs_no_code_reads_everybodys(tmp_path):
    arguments = others(tmp_path, PlainLogs)
    for mode in ("signed", "deny", "allow"):
        with BlobStore(**arguments, pickle=mode) as store:
            assert (store["a"], store["large"]) == (EVENTS, many())


def test_bytes_that_may_run_code_have_a_cryptographic_checksum(tmp_path):
    with BlobStore(tmp_path, handlers=[LogHandler, PlainLogs]) as store:
        store["a"] = EVENTS  # by the first of the same priority
        assert store.entry("a").parts[0].blob.checksum.startswith("blake3:")
        assert store.entry("a").signature
        store.unregister_handler(LogHandler)
        store["b"] = EVENTS
        assert store.entry("b").parts[0].blob.checksum.startswith("xxh3")
        assert not store.entry("b").signature


def test_an_extension_that_leads_elsewhere_is_no_extension(tmp_path):
    """An entry says what it is, and somebody else may have written it."""
    handler = as_handler(variant(can_handle_extension=lambda self, extension: True))
    for extension in ("/../../x.log", "./x", "..", "", None, 5, ".a\0b", ".a/b.log"):
        assert not is_extension(extension)
        with pytest.raises(DecodeError, match="with the extension"):
            handler.read({"data": None}, {"extension": extension})


def test_the_stored_bytes_are_not_in_its_reach(tmp_path):
    """It may open its file for writing, or make others beside it."""

    class Careless(PlainLogs):
        def read_from_file(self, file_path, file_extension):
            found = super().read_from_file(file_path, file_extension)
            file_path.with_suffix(".idx").write_text("index")
            with open(file_path, "r+b") as file:
                file.write(b"XXXX")
            file_path.unlink()
            return found

    with BlobStore(tmp_path / "b", handlers=[Careless], compression="none") as store:
        store["a"], store["large"] = EVENTS, many()
        for _ in range(2):
            assert (store["a"], store["large"]) == (EVENTS, many())
        assert store.verify(deep=True).ok
        assert len(blobs(store)) == 2
    with AutoStore(tmp_path / "a") as store:
        store.register_handler(Careless())
        store["a"] = EVENTS
        assert store["a"] == store["a"] == EVENTS


def test_damage_is_noticed_before_it_reads(tmp_path):
    class Watched(PlainLogs):
        def read_from_file(self, file_path, file_extension):
            pytest.fail("it was run")

    with BlobStore(tmp_path, handlers=[Watched], compression="none") as store:
        store["a"], store["large"] = EVENTS, many()
        for path in blobs(store):
            data = bytearray(path.read_bytes())
            data[20] ^= 1
            path.write_bytes(data)
        for key in ("a", "large"):
            with pytest.raises(IntegrityError):
                store.get(key)


# --- content addressing --------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [LogHandler, PlainLogs])
@pytest.mark.parametrize("large", [False, True])
def test_equal_files_are_stored_once(tmp_path, cls, large):
    events = many() if large else EVENTS
    with BlobStore(tmp_path, handlers=[cls], content_addressable=True) as store:
        key = store.put(events)
        assert store.put([*events]) == key
        store.put(events, key="named")
        assert len(blobs(store)) == 1
        other = store.put([*events, {"timestamp": 9}])
        assert other != key
        assert store[key] == store["named"] == events
        assert store[other] == [*events, {"timestamp": 9}]


def test_what_is_not_the_same_is_never_shared(tmp_path):
    """The same bytes of another class, under another extension, or as bytes."""
    txt = variant(
        extensions=[".txt"],
        can_handle_extension=lambda self, e: e in (".txt", ".log"),
        read_from_file=lambda self, path, extension: [extension],
    )
    log = variant(txt, extensions=[".log"])
    keys, found = [], []
    for cls in (PlainLogs, LogHandler, txt, log):
        with BlobStore(tmp_path, handlers=[cls], content_addressable=True) as store:
            keys.append(store.put(EVENTS))
            found.append(store[keys[-1]])
            with store.open(keys[-1]) as file:
                content = file.read()
    with BlobStore(tmp_path, content_addressable=True) as store:
        keys.append(store.put(content))
        assert len(blobs(store)) == 5
    assert found == [EVENTS, EVENTS, [".txt"], [".log"]]
    assert len(set(keys)) == 5


@pytest.mark.parametrize("base", [LogHandler, PlainLogs])
def test_a_writer_that_never_writes_the_same_shares_nothing(tmp_path, base):
    class Stamped(base):
        name = "stamped"
        count = 0

        def write_to_file(self, data, file_path, file_extension):
            type(self).count += 1
            super().write_to_file([{"timestamp": self.count}, *data], file_path, file_extension)

        def read_from_file(self, file_path, file_extension):
            return super().read_from_file(file_path, file_extension)[1:]

    with BlobStore(tmp_path, handlers=[Stamped], content_addressable=True) as store:
        for events in (EVENTS, many()):
            keys = [store.put(events) for _ in range(3)]
            assert len(set(keys)) == 3
            assert all(store[key] == events for key in keys)
        assert Stamped.count == 6  # once each: what is digested is what is stored


# --- what goes wrong -----------------------------------------------------------------------------


def raising(exc):
    def raises(self, *args):
        raise exc

    return raises


def writes(function):
    return lambda self, data, path, extension: function(path)


def zip_beside(path):
    with zipfile.ZipFile(str(path) + ".zip", "w"):
        pass


WRONG_WRITERS = {
    "raises": (raising(KeyError("what")), r"Variant\.write_to_file on .*list.* KeyError\('what'\)"),
    "no such file": (raising(FileNotFoundError(2, "gone")), r"Variant\.write_to_file on .* failed"),
    "nothing": (writes(lambda path: None), "made no file .*: there is nothing in that folder"),
    "elsewhere": (writes(zip_beside), r"made no file .*: there is 'object\.log\.zip'"),
    "a folder": (writes(lambda path: path.mkdir()), r"made no file .*: there is 'object\.log'"),
    "a link to nothing": (writes(lambda path: path.symlink_to("nowhere")), "made no file"),
    "two files": (
        writes(lambda path: [path.with_suffix(e).touch() for e in (".log", ".idx")]),
        r"left 'object\.idx' beside its file, which would be lost",
    ),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", WRONG_WRITERS)
def test_writers_that_go_wrong(tmp_path, temporary, name, shared):
    write, said = WRONG_WRITERS[name]
    cls = variant(write_to_file=write)
    with BlobStore(tmp_path / "s", handlers=[cls], content_addressable=shared) as store:
        store["other"] = 1
        before = blobs(store)
        with pytest.raises(HandlerError, match=said) as caught:
            store.put(EVENTS, key="a")
        assert not isinstance(caught.value, UnsupportedTypeError)  # no other handler took it
        with pytest.raises(HandlerError):
            store.put_many([("b", "text"), ("a", EVENTS)])
        del caught
        assert ([*store], blobs(store)) == (["other"], before)


def test_a_file_that_cannot_be_read(tmp_path, temporary):
    def write(path):
        path.write_text("x")
        path.chmod(0)

    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    with BlobStore(tmp_path / "s", handlers=[variant(write_to_file=writes(write))]) as store:
        with pytest.raises(StorageError, match="what Variant wrote"):
            store.put(EVENTS, key="a")
        assert [*store] == []


def test_a_folder_that_was_taken_away(tmp_path, temporary):
    cls = variant(write_to_file=writes(lambda path: path.parent.rmdir()))
    with BlobStore(tmp_path / "s", handlers=[cls]) as store:
        with pytest.raises(StorageError, match="what Variant wrote"):
            store.put(EVENTS, key="a")
        assert [*store] == []


@pytest.mark.parametrize("method", ["write_to_file", "read_from_file"])
def test_a_full_disk_is_called_that(tmp_path, temporary, method):
    with BlobStore(tmp_path / "s", handlers=[variant()]) as store:
        store["a"] = EVENTS
    cls = variant(**{method: raising(OSError(errno.ENOSPC, "No space left on device"))})
    with (
        BlobStore(tmp_path / "s", handlers=[cls]) as store,
        pytest.raises(OutOfSpaceError, match=rf"Variant\.{method}"),
    ):
        store["b"] = EVENTS
        store.get("a")


def test_no_temporary_folder(tmp_path, monkeypatch):
    with BlobStore(tmp_path / "s", handlers=[variant()]) as store:
        store["a"] = EVENTS
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        with pytest.raises(StorageError, match="temporary folder for Variant"):
            store["b"] = EVENTS
        with pytest.raises(StorageError, match="temporary folder for Variant"):
            store.get("a")


def test_a_copy_that_cannot_be_made(tmp_path, monkeypatch):
    from blobstore.handlers import data_handler

    def full(stream, out):
        raise OSError(errno.ENOSPC, "No space left on device")

    with BlobStore(tmp_path / "s", handlers=[variant()]) as store:
        store["a"] = EVENTS
        monkeypatch.setattr(data_handler, "copy_stream", full)
        with pytest.raises(OutOfSpaceError, match="temporary file"):
            store.get("a")


READERS = {
    "raises": (raising(ValueError("no log")), r"read_from_file on a \.log file failed: ValueErr"),
    "its own file is not there": (raising(FileNotFoundError(2, "gone")), "FileNotFoundError"),
    "nothing": (lambda self, path, extension: None, "returned None for a stored builtins.list"),
}


@pytest.mark.parametrize("name", READERS)
def test_readers_that_go_wrong(tmp_path, temporary, name):
    read, said = READERS[name]
    with BlobStore(tmp_path / "s", handlers=[variant(read_from_file=read)]) as store:
        store["a"] = EVENTS
        with pytest.raises(DecodeError, match=said) as caught:
            store.get("a", default=0)
        assert "Variant" in str(caught.value)
        assert caught.value.key == "a"


def test_our_errors_and_the_interpreters_pass(tmp_path):
    for exc in (MemoryError(), KeyboardInterrupt(), StorageError("of another store")):
        with BlobStore(tmp_path, handlers=[variant(write_to_file=raising(exc))]) as store:
            with pytest.raises(type(exc)):
                store["a"] = EVENTS
            assert [*store] == []


def test_one_that_fails_to_say_no(tmp_path):
    """It is asked about everything; where it fails, nobody knows what it would have said."""
    cls = variant(can_handle_data=lambda self, data: data.shape[0] == 3)
    with BlobStore(tmp_path, handlers=[cls]) as store:
        with pytest.raises(HandlerError, match=r"Variant\.can_handle_data on .*'int'"):
            store["a"] = 5
        assert [*store] == []


def test_one_that_fails_to_say_what_it_reads(tmp_path):
    with BlobStore(tmp_path, handlers=[PlainLogs()]) as store:
        store["a"] = EVENTS
    handler = PlainLogs()
    with BlobStore(tmp_path, handlers=[handler]) as store:
        handler.can_handle_extension = lambda: True
        with pytest.raises(DecodeError, match=r"PlainLogs\.can_handle_extension"):
            store.get("a")


# --- memory --------------------------------------------------------------------------------------


class Zeros(PlainLogs):
    """Files of as many bytes as a number says."""

    name = "zeros"

    def can_handle_data(self, data):
        return type(data) is int

    def write_to_file(self, data, file_path, file_extension):
        with open(file_path, "wb") as file:
            chunk = random.Random(1).randbytes(MIB)
            file.writelines(chunk for _ in range(data))

    def read_from_file(self, file_path, file_extension):
        return file_path.stat().st_size // MIB


@pytest.mark.parametrize("codec", ["none", "gzip"])
def test_large_files_are_not_held_in_memory(tmp_path, temporary, codec):
    with BlobStore(tmp_path / "s", handlers=[Zeros], compression=codec) as store:
        store["warm"] = 2
        assert store["warm"] == 2
        tracemalloc.start()
        try:
            store["a"] = 48
            assert store["a"] == 48
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 16 * MIB


def test_nothing_of_a_failed_put_is_left(tmp_path, temporary):
    class Full(DictStore):
        def put(self, key, data):
            if key != ".blobstore-id":
                raise StorageError("full")
            super().put(key, data)

    with BlobStore(tmp_path / "s", blob_backend=Full(), handlers=[Zeros]) as store:
        for size in (0, 3):
            with pytest.raises(StorageError, match="full"):
                store.put(size, key="a")
        assert [*store] == []


def test_errors_do_not_keep_threads(tmp_path):
    before = threading.active_count()
    with (
        BlobStore(tmp_path, handlers=[variant(write_to_file=raising(ValueError()))]) as store,
        pytest.raises(BlobStoreError),
    ):
        store.put_many((f"{n}", EVENTS) for n in range(20))
    assert threading.active_count() == before
