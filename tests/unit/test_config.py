"""Stores from YAML and mappings: what is built, and what is said of descriptions that are wrong."""

from __future__ import annotations

import asyncio
import copy
import importlib.metadata
import logging
import pickle
import sys
import threading
import types
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from blobstore import BlobStore, registry
from blobstore.aio import AsyncObjectStore
from blobstore.backends import DictStore, FilesystemStore
from blobstore.config import StoreFactory, variables
from blobstore.config.yaml_document import parse_yaml
from blobstore.errors import (
    BlobStoreError,
    ClosedError,
    ConfigError,
    InvalidInputError,
    MissingDependencyError,
    StorageError,
)
from blobstore.registry import register_store, store_types
from blobstore.wrappers.base import IdentityStore, WrapperStore

MEMORY = {"type": "DictStore"}


@pytest.fixture(autouse=True)
def fresh_names(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(store_types, "_registered", {})
    monkeypatch.setattr(registry.object_stores, "_registered", {})


@pytest.fixture
def write(tmp_path):
    """Write a file of stores."""

    def write(text, name="stores.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def build(stores, main=None, **options):
    return StoreFactory({"stores": stores, "main": main or next(iter(stores))}, **options).build()


def children(mirror):
    found = mirror.children
    return list(found.values()) if isinstance(found, Mapping) else list(found)


def refused(stores, *words, main=None, **options):
    """The message, which has all those words and names the source."""
    with pytest.raises(ConfigError) as caught:
        build(stores, main, **options)
    message = str(caught.value)
    assert message.startswith("the mapping"), message
    for word in words:
        assert word in message, message
    return caught.value


# --- the document's examples ---------------------------------------------------------------------


def test_the_first_example_of_the_document(write):
    path = write(
        """
stores:
  store1:
    type: DictStore

  readonly_store:
    type: ReadonlyStore
    base: store1

main: readonly_store

"""
    )
    with StoreFactory(path).build() as store:
        assert type(store).__name__ == "ReadonlyStore"
        assert type(store.store) is DictStore
        with pytest.raises(NotImplementedError):
            store.put("key", b"x")


DOCUMENT = """
stores:
  filesystem_store:
    type: FilesystemStore
    config:
      root_path: {root}
  hash_prefix_store:
    type: HashPrefixStore
    base: filesystem_store
  backup_store:
    type: DictStore
  text_encoding_store:
    type: TextEncodingStore
    base: backup_store
  caching_store:
    type: CachingStore
    base:
      main_store: hash_prefix_store
      cache_store: backup_store
  mirror_store:
    type: MirroringStore
    base:
      - caching_store
      - text_encoding_store
main: mirror_store
"""


def test_the_whole_document_in_one_file(write, tmp_path):
    """Its mirror is over bytes and over text: no value suits both, but it is built."""
    path = write(DOCUMENT.format(root=tmp_path / "root"))
    factory = StoreFactory(path)
    with factory.build() as mirror:
        cache, text = children(mirror)
        assert text.store is cache.cache_store  # one name, one store
        assert type(cache.main_store).__name__ == "HashPrefixStore"
    with factory.build("caching_store") as cache:
        cache.put("key", b"value")
        assert cache.main_store.get("key") == b"value"
    assert factory.names == (
        "filesystem_store", "hash_prefix_store", "backup_store", "text_encoding_store",
        "caching_store", "mirror_store",
    )  # fmt: skip
    assert factory.main == "mirror_store"
    assert repr(factory) == f"StoreFactory({str(path)!r}, main='mirror_store')"


def test_every_type_that_is_listed_exists():
    for name in store_types.names():
        assert store_types.get(name).__name__ in (name, "MirroringStore")


# --- building ------------------------------------------------------------------------------------


def test_each_build_gives_new_stores():
    factory = StoreFactory({"stores": {"a": MEMORY}, "main": "a"})
    one, other = factory.build(), factory.build()
    one.put("key", b"1")
    assert not other.exists("key")
    one.close()
    assert not other.exists("key")


def test_a_file_that_changes_later_does_not_matter(write):
    path = write("stores: {a: {type: DictStore}}\nmain: a")
    factory = StoreFactory(path)
    path.unlink()
    assert type(factory.build()) is DictStore
    assert type(factory.build("a")) is DictStore


def test_a_base_that_is_used_twice_is_one_store():
    stores = {
        "top": {"type": "MirroringStore", "base": ["left", "right"]},
        "left": {"type": "IdentityStore", "base": "shared"},
        "right": {"type": "IdentityStore", "base": "shared"},
        "shared": MEMORY,
    }
    with build(stores) as store:
        left, right = children(store)
        assert left is not right
        assert left.store is right.store


def test_bases_by_parameter_may_be_lists_and_mappings():
    """Whatever the constructor takes: no type is known to the factory."""
    stores = {
        "top": {"type": "MirroringStore", "base": {"children": {"one": "a", "two": "b"}}},
        "list": {"type": "MirroringStore", "base": {"children": ["a", "b"]}},
        "routes": {
            "type": "RegexRoutingStore",
            "base": {"routes": {"[.]png$": "a", "": "b"}},
        },
        "a": MEMORY,
        "b": MEMORY,
    }
    assert build(stores).names == ("one", "two")
    assert len(children(build(stores, "list"))) == 2
    with build(stores, "routes") as store:
        store.put("x.png", b"1")
        store.put("x", b"2")
        assert sorted(store.keys()) == ["x", "x.png"]


def test_bases_may_be_described_in_place():
    stores = {
        "top": {
            "type": "CachingStore",
            "base": {
                "main_store": {"type": "IdentityStore", "base": {"type": "DictStore"}},
                "cache_store": "memory",
            },
        },
        "memory": MEMORY,
        "list": {"type": "MirroringStore", "base": [{"type": "DictStore"}, "memory"]},
    }
    with build(stores) as store:
        assert type(store.main_store.store) is DictStore
        assert store.main_store.store is not store.cache_store
    with build(stores, "list") as store:
        assert len({*children(store)}) == 2


def test_empty_entries_are_as_good_as_none(write):
    path = write("stores:\n  a:\n    type: DictStore\n    config:\n    base:\nmain: a\n")
    assert type(StoreFactory(path).build()) is DictStore
    assert type(build({"a": {**MEMORY, "config": {}, "base": {}}})) is DictStore


def test_what_was_given_is_never_changed():
    given = {
        "stores": {
            "a": {"type": "FilesystemStore", "config": {"root_path": "${HOME:-x}"}},
            "b": {"type": "MirroringStore", "base": ["a", {"type": "IdentityStore", "base": "a"}]},
        },
        "main": "b",
    }
    before = copy.deepcopy(given)
    factory = StoreFactory(given)
    factory.build()
    factory.build()
    assert given == before
    given["stores"]["b"]["base"].clear()
    given["stores"].clear()
    assert len(children(factory.build())) == 2


def test_what_a_constructor_does_to_its_arguments_stays_with_it():
    @register_store
    class Greedy(DictStore):
        def __init__(self, options):
            super().__init__()
            self.first = options["list"].pop()
            options["seen"] = True

    factory = StoreFactory(
        {"stores": {"a": {"type": "Greedy", "config": {"options": {"list": [1]}}}}, "main": "a"}
    )
    assert factory.build().first == factory.build().first == 1


def test_objects_of_python_are_handed_on():
    """A mapping may hold what YAML cannot."""
    refuse = {"bad"}.__contains__
    stores = {
        "a": {"type": "KeyValidatingStore", "base": "b", "config": {"validator": refuse}},
        "b": MEMORY,
    }
    with build(stores) as store, pytest.raises(KeyError):
        store.put("good", b"a validator that says no")


def test_other_entries_at_the_top_are_left_alone(write):
    path = write(
        """
x-files: &files {type: FilesystemStore}
stores:
  a: {<<: *files, config: {root_path: a}}
  b: {<<: *files, config: {root_path: b}}
  both: {type: MirroringStore, base: [a, b]}
main: both
log: {level: DEBUG}
"""
    )
    with StoreFactory(path).build() as store:
        assert [child.root_path.name for child in children(store)] == ["a", "b"]


def test_relative_paths_start_at_the_working_directory(write, tmp_path, monkeypatch):
    path = write("stores: {a: {type: FilesystemStore, config: {root_path: x/y}}}\nmain: a")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with StoreFactory(path).build() as store:
        assert store.root_path == tmp_path / "elsewhere/x/y"


def test_factories_can_be_pickled(write, tmp_path):
    factory = pickle.loads(pickle.dumps(StoreFactory(write(DOCUMENT.format(root=tmp_path)))))
    assert factory.main == "mirror_store"
    with factory.build("text_encoding_store") as store:
        assert type(store.store) is DictStore


def test_a_deep_stack():
    stores = {f"s{n}": {"type": "IdentityStore", "base": f"s{n + 1}"} for n in range(300)}
    store = build({**stores, "s300": MEMORY})
    for _ in range(300):
        store = store.store
    assert type(store) is DictStore


def test_threads_build_from_one_factory(write, tmp_path):
    factory = StoreFactory(write(DOCUMENT.format(root=tmp_path / "root")))
    barrier = threading.Barrier(2)

    def run(_):
        barrier.wait()
        return [factory.build() for _ in range(20)]

    with ThreadPoolExecutor(2) as pool:
        built = [store for stores in pool.map(run, range(2)) for store in stores]
    caches = {id(children(store)[0].cache_store) for store in built}
    assert len(caches) == len(built) == 40
    for store in built:
        store.close()


@given(data=st.data())
def test_random_graphs_are_built_each_name_once(data):
    count = data.draw(st.integers(1, 12))
    stores, beneath = {}, {}
    for number in range(count):
        bases = data.draw(st.lists(st.integers(0, number - 1), max_size=4)) if number else []
        beneath[f"s{number}"] = [f"s{base}" for base in bases]
        if not bases:
            stores[f"s{number}"] = MEMORY
        elif len(bases) == 1:
            stores[f"s{number}"] = {"type": "IdentityStore", "base": f"s{bases[0]}"}
        else:
            stores[f"s{number}"] = {"type": "Many", "base": [f"s{base}" for base in bases]}
    order = data.draw(st.permutations(sorted(stores)))
    main = data.draw(st.sampled_from(order))
    factory = StoreFactory({"stores": {name: stores[name] for name in order}, "main": main})
    with registered(Many):
        top = factory.build()
    seen = {}
    ends = [(main, top)]
    while ends:
        name, store = ends.pop()
        assert seen.setdefault(name, store) is store
        below = getattr(store, "children", None) or [getattr(store, "store", None)]
        assert len(beneath[name]) == len([one for one in below if one is not None])
        ends.extend(zip(beneath[name], below, strict=False))
    assert len({id(store) for store in seen.values()}) == len(seen)


class Many(DictStore):
    def __init__(self, children):
        super().__init__()
        self.children = children


class registered:
    """Classes that have a name for a while."""

    def __init__(self, *classes):
        self.classes = classes

    def __enter__(self):
        for cls in self.classes:
            register_store(cls)

    def __exit__(self, *exc_info):
        for cls in self.classes:
            del store_types._registered[cls.__name__]


# --- closing -------------------------------------------------------------------------------------


class Watched(DictStore):
    made: list[str]
    closed: list[str]

    def __init__(self, name):
        super().__init__()
        self.name = name
        Watched.made.append(name)

    def close(self):
        if not self._closed:
            Watched.closed.append(self.name)
        super().close()


class Failing(DictStore):
    error: BaseException = ConfigError("it fails")

    def __init__(self, children):
        raise self.error


@pytest.fixture
def watched():
    Watched.made, Watched.closed = [], []
    register_store(Watched)
    register_store(Failing)
    return Watched


def three(top="Failing"):
    return {
        "top": {"type": top, "base": ["a", "wrapped"]},
        "a": {"type": "Watched", "config": {"name": "a"}},
        "wrapped": {"type": "IdentityStore", "base": "b"},
        "b": {"type": "Watched", "config": {"name": "b"}},
    }


def test_what_was_made_is_closed_if_a_later_store_cannot_be(watched):
    refused(three(), "store 'top'", "it fails")
    assert sorted(watched.closed) == sorted(watched.made) == ["a", "b"]
    watched.closed.clear()
    build(three("MirroringStore")).close()
    assert sorted(watched.closed) == ["a", "b"]


def test_what_cannot_be_closed_does_not_hide_the_reason(watched, caplog):
    @register_store
    class Stuck(Watched):
        def close(self):
            super().close()
            raise StorageError("stuck")

    stores = three()
    stores["b"]["type"] = "Stuck"
    with caplog.at_level(logging.WARNING, logger="blobstore"):
        refused(stores, "it fails")
    assert sorted(watched.closed) == ["a", "b"]
    assert "stuck" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("away"), ZeroDivisionError()])
def test_whatever_ends_a_build_closes_what_was_made(watched, monkeypatch, error):
    monkeypatch.setattr(Failing, "error", error)
    with pytest.raises(type(error)):
        build(three())
    assert sorted(watched.closed) == ["a", "b"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "Nothing"},
        {"type": "Watched"},
        {"type": "Watched", "config": {"nme": 1}},
        {"type": "Watched", "config": {"name": "${BLOBSTORE_NOT_SET}"}},
        {"type": "IdentityStore"},
    ],
)
def test_nothing_is_made_before_everything_is_checked(watched, wrong):
    stores = {**three("MirroringStore"), "bad": wrong}
    stores["top"]["base"].append("bad")
    refused(stores, "store 'bad'")
    assert watched.made == []


# --- BlobStore -----------------------------------------------------------------------------------


def test_a_blob_store_over_described_stores(tmp_path):
    stores = {
        "experiments": {
            "type": "BlobStore",
            "base": "packed",
            "config": {
                "cache_dir": str(tmp_path / "experiments"),
                "backend": "sqlite",
                "compression": "zstd",
                "compression_level": "${BLOBSTORE_TEST_LEVEL:-7}",
                "content_addressable": "${BLOBSTORE_TEST_ADDRESSED:-true}",
            },
        },
        "packed": {"type": "IdentityStore", "base": "files"},
        "files": {"type": "FilesystemStore", "config": {"root_path": str(tmp_path / "files")}},
    }
    store = build(stores)
    assert type(store) is BlobStore
    key = store.put({"a": 1}, metadata={"f1": 0.5})
    assert len(key) == 64
    assert store.list(metadata_filter={"f1": 0.5}) == [key]
    objects = store._objects
    assert type(objects) is IdentityStore
    store.close()
    with pytest.raises(ClosedError):  # nobody else could close it
        objects.exists("x")
    with build(stores) as store:
        assert store[key] == {"a": 1}


def test_a_blob_store_of_its_own(tmp_path):
    config = {"cache_dir": str(tmp_path / "x"), "blob_backend": "memory"}
    with build({"a": {"type": "BlobStore", "config": config}}) as store:
        store["k"] = 1
        assert store["k"] == 1
    refused({"a": {"type": "BlobStore", "config": {"compression": "zip"}}}, "store 'a'", "zip")
    refused(
        {"a": {"type": "IdentityStore", "base": {"type": "BlobStore", "config": config}}}, "'a'"
    )


def test_a_blob_backend_may_be_left_open(tmp_path):
    with BlobStore(tmp_path / "x", blob_backend=DictStore()):
        pass
    stores = {
        "a": {
            "type": "BlobStore",
            "base": "b",
            "config": {"cache_dir": str(tmp_path / "y"), "close_blob_backend": False},
        },
        "b": MEMORY,
    }
    store = build(stores)
    store.close()
    assert list(store._objects.keys())


# --- variables -----------------------------------------------------------------------------------


def folder(path):
    return {"a": {"type": "FilesystemStore", "config": {"root_path": path}}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${DIR}", "/data"),
        ("${DIR}/x", "/data/x"),
        ("/x${DIR}/${OTHER}", "/x/data/other"),
        ("/${NOT_SET:-default}", "/default"),
        ("/${EMPTY:-default}", "/default"),
        ("/x${EMPTY}", "/x"),
        ("/${NOT_SET:-}x", "/x"),
        ("/${NOT_SET:-a:-b}", "/a:-b"),
        ("${NOT_SET:-${DIR}/y}", "/data/y"),
        ("/${OTHER:-${NOT_SET}}", "/other"),  # a default that is not needed is not asked for
        ("/${NOT_SET:-{a}}b", "/{a}b"),
        ("/$${DIR}", "/${DIR}"),
        ("/$$${OTHER}", "/$other"),
        ("/$$$${DIR}", "/$${DIR}"),
        ("/$DIR $$ $", "/$DIR $$ $"),
        ("/{}}{", "/{}}{"),
        ("/${NOT_SET:-$${x}}", "/${x}"),
        ("/ü${NOT_SET:-ß}", "/üß"),
    ],
)
def test_variables(monkeypatch, text, value):
    for name, content in {"DIR": "/data", "OTHER": "other", "EMPTY": ""}.items():
        monkeypatch.setenv(name, content)
    monkeypatch.delenv("NOT_SET", raising=False)
    with build(folder(text)) as store:
        assert store.root_path == Path(value)


@pytest.mark.parametrize(
    "text",
    ["${", "${}", "${1x}", "${A", "${A:-", "${A:?no}", "${A-b}", "${ A }", "${A:-${B}", "${Ä}"],
)
def test_what_is_no_variable(text):
    error = refused(folder(text), "store 'a'", "config.root_path", "$${")
    assert text not in str(error) or text == "${"


def test_nested_defaults_are_bounded():
    refused(folder("${A:-" * 5000), "store 'a'", "nested")


def test_values_of_variables_are_not_looked_into(monkeypatch):
    monkeypatch.setenv("BLOBSTORE_TEST", "/${HOME}/$${x}")
    with build(folder("${BLOBSTORE_TEST}")) as store:
        assert store.root_path == Path("/${HOME}/$${x}")


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("config.root_path", {"root_path": "x/${NOT_SET_HERE}"}),
        ("config.root_path.b[1]", {"root_path": {"b": ["x", "${NOT_SET_HERE}"]}}),
    ],
)
def test_a_variable_that_is_not_set(write, monkeypatch, field, config):
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    described = {"stores": {"a": {"type": "FilesystemStore", "config": config}}, "main": "a"}
    path = write(yaml.safe_dump(described))
    factory = StoreFactory(path)  # read when it is built
    with pytest.raises(ConfigError) as caught:
        factory.build()
    for part in (str(path), "store 'a'", field, "'NOT_SET_HERE'", "${NOT_SET_HERE:-"):
        assert part in str(caught.value)


def test_variables_are_read_at_each_build(monkeypatch):
    factory = StoreFactory({"stores": folder("${BLOBSTORE_TEST}"), "main": "a"})
    for path in ("/one", "/two"):
        monkeypatch.setenv("BLOBSTORE_TEST", path)
        with factory.build() as store:
            assert str(store.root_path) == path


def test_variables_of_stores_that_are_not_built_need_not_be_set():
    stores = {"a": MEMORY, "b": folder("${NOT_SET_HERE}")["a"]}
    assert type(build(stores)) is DictStore


def test_variables_in_bases(monkeypatch):
    stores = {
        "top": {"type": "IdentityStore", "base": "${BLOBSTORE_TEST:-memory}"},
        "memory": MEMORY,
        "file": folder("/x")["a"],
        "pair": {"type": "MirroringStore", "base": ["memory", "${BLOBSTORE_TEST:-file}"]},
    }
    assert type(build(stores).store) is DictStore
    monkeypatch.setenv("BLOBSTORE_TEST", "file")
    assert type(build(stores).store) is FilesystemStore
    monkeypatch.setenv("BLOBSTORE_TEST", "top")
    refused(stores, "store 'top', base", "stands on itself", "top -> top")
    monkeypatch.setenv("BLOBSTORE_TEST", "hunter22")
    error = refused(stores, "store 'pair', base[1]", "${BLOBSTORE_TEST:-file}", main="pair")
    assert "hunter22" not in str(error)


class Typed(DictStore):
    def __init__(
        self,
        number: int = 0,
        share: float = 0.0,
        flag: bool = False,
        where: Path = Path(),
        text: str = "",
        some: int | None = 5,
        mixed: bool | str = False,
        anything=None,
        old: Optional[int] = None,  # noqa: UP045 - as older code has it
        nested=None,
    ):
        super().__init__()
        self.given = {name: value for name, value in vars().items() if name != "self"}
        del self.given["__class__"]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("number", "12", 12),
        ("number", "-3", -3),
        ("share", "0.5", 0.5),
        ("share", "1", 1.0),
        ("flag", "true", True),
        ("flag", "No", False),
        ("flag", "0", False),
        ("flag", "on", True),
        ("where", "/x", Path("/x")),
        ("text", "12", "12"),
        ("text", "", ""),
        ("some", "7", 7),
        ("some", "", None),
        ("old", "7", 7),
        ("old", "", None),
        ("mixed", "true", True),
        ("mixed", "sha256", "sha256"),
        ("anything", "12", "12"),
    ],
)
def test_texts_of_variables_become_what_the_constructor_asks_for(monkeypatch, name, text, value):
    register_store(Typed)
    monkeypatch.setenv("BLOBSTORE_TEST", text)
    for written in ("${BLOBSTORE_TEST}", f"${{BLOBSTORE_NOT_SET:-{text}}}"):
        got = build({"a": {"type": "Typed", "config": {name: written}}}).given[name]
        assert got == value
        assert type(got) is type(value)


def test_what_is_written_in_the_file_is_left_as_it_is():
    register_store(Typed)
    config = {"number": "12", "share": "x", "nested": {"a": ["${BLOBSTORE_NOT_SET:-5}", 5]}}
    given = build({"a": {"type": "Typed", "config": config}}).given
    assert given["number"] == "12"
    assert given["share"] == "x"
    assert given["nested"] == {"a": ["5", 5]}


@pytest.mark.parametrize(
    ("name", "text"),
    [("number", "1.5"), ("number", ""), ("share", "half"), ("flag", "maybe"), ("some", "hunter22")],
)
def test_texts_that_cannot_be_what_is_asked_for(monkeypatch, name, text):
    register_store(Typed)
    monkeypatch.setenv("BLOBSTORE_TEST", text)
    stores = {"a": {"type": "Typed", "config": {name: "${BLOBSTORE_TEST}"}}}
    error = refused(stores, "store 'a'", f"config.{name}", "Typed needs")
    assert text == "" or text not in str(error)


# --- secrets -------------------------------------------------------------------------------------


class Secretive(DictStore):
    """Says in its errors what it was given."""

    def __init__(self, password, kind=ConfigError):
        raise kind(f"the password {password!r} is wrong, {password}!")


SECRETS = ["hunter22", "x", "9", 'it\'s "quoted"\\n', "a\nb", "${NAME}", "ßecret"]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("kind", [ConfigError, InvalidInputError, TypeError, ValueError])
def test_errors_of_constructors_do_not_show_values_of_variables(monkeypatch, secret, kind):
    register_store(Secretive)
    monkeypatch.setenv("BLOBSTORE_TEST_SECRET", secret)
    config = {"password": "${BLOBSTORE_TEST_SECRET}", "kind": kind}
    error = refused({"a": {"type": "Secretive", "config": config}}, "store 'a'")
    text = str(error).removeprefix("the mapping, store 'a', config.password: ")
    shown = "${BLOBSTORE_TEST_SECRET}"
    assert text in (
        f"the password '{shown}' is wrong, {shown}!",
        f'the password "{shown}" is wrong, {shown}!',
    )
    assert error.__cause__ is error.__context__ is None  # a traceback would show it


def test_errors_without_secrets_keep_their_cause(monkeypatch):
    register_store(Secretive)
    monkeypatch.setenv("BLOBSTORE_TEST_SECRET", "hunter22")
    error = refused({"a": {"type": "Secretive", "config": {"password": "public"}}}, "'public'")
    assert isinstance(error.__cause__, ConfigError)


def test_secrets_of_a_base_are_not_shown_by_what_stands_on_it(monkeypatch):
    @register_store
    class Shows(WrapperStore):
        def __init__(self, store):
            raise TypeError(f"{store!r} is not good")

    monkeypatch.setenv("BLOBSTORE_TEST_SECRET", "/hunter22")
    stores = {"a": {"type": "Shows", "base": "b"}, "b": folder("${BLOBSTORE_TEST_SECRET}")["a"]}
    error = refused(stores, "FilesystemStore('${BLOBSTORE_TEST_SECRET}') is not good")
    assert "hunter" not in str(error)


def test_redacting_leaves_other_words_alone():
    assert variables.redact("not 9, but 1999", {"$N": "9"}) == "not $N, but 1999"
    assert variables.redact("ab abc", {"$LONG": "abcde", "$EMPTY": ""}) == "ab abc"
    nested = variables.redact("secret-long and secret", {"$A": "secret", "$B": "secret-long"})
    assert nested == "$B and $A"
    assert variables.redact("one two", {"two": "one", "one": "two"}) == "two one"


@given(
    st.lists(
        st.one_of(
            st.text("ab$ü ", min_size=1, max_size=6).map(lambda text: (text, text)),
            st.sampled_from([("${A}", "value"), ("${B:-x y}", "x y"), ("${B:-${A}}", "value")]),
        ),
        max_size=8,
    )
)
def test_templates_are_put_together_piece_by_piece(pieces):
    """Dollars only mean something in front of a brace, so none may end a piece here."""
    pieces = [(f"{text}.", f"{value}.") for text, value in pieces]
    text, value = ("".join(part) for part in zip(*pieces, strict=True)) if pieces else ("", "")
    assert variables.render(variables.parse(text), {"A": "value"}, {}) == value
    assert variables.has_variables(text) == ("${" in text)


@given(st.text("ab$${}:-", max_size=30))
def test_any_text_is_a_template_or_an_error(text):
    try:
        rendered = variables.render(variables.parse(text), {"a": "A", "b": "B"}, {})
    except ConfigError:
        assert "${" in text
    else:
        assert "${" in text or rendered == text


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["'stores'", "nothing"]),
        ("- a", ["a list"]),
        ("just text", ["a text"]),
        ("stores: {a: {type: DictStore}}", ["'main'"]),
        ("stores: {a: {type: DictStore}}\nmain:", ["'main'"]),
        ("main: a", ["'stores'"]),
        ("stores:\nmain: a", ["'stores'"]),
        ("stores: {}\nmain: a", ["stores", "a mapping"]),
        ("stores: [a]\nmain: a", ["stores", "a list"]),
        ("stores: {a: {type: DictStore}}\nmain: b", ["main", "'b'", "known are 'a'"]),
        ("stores: {memory: {type: DictStore}}\nmain: memroy", ["did you mean 'memory'?"]),
        ("stores: {a: {type: DictStore}}\nmain: [a]", ["main", "a list"]),
        ("stores: {a: {type: ''}}\nmain: a", ["store 'a', type", "missing"]),
        ("stores: {1: {type: DictStore}}\nmain: 1", ["stores", "1", "quotes"]),
        ("stores: {on: {type: DictStore}}\nmain: on", ["True", "quotes"]),
        ("stores: {'': {type: DictStore}}\nmain: ''", ["stores", "''"]),
        ("stores: {a: DictStore}\nmain: a", ["store 'a'", "a text"]),
        ("stores: {a: }\nmain: a", ["store 'a'", "nothing"]),
        ("stores: {a: {base: b}}\nmain: a", ["store 'a', type", "missing"]),
        ("stores: {a: {type: 5}}\nmain: a", ["store 'a', type", "int"]),
        ("stores: {a: {type: [x]}}\nmain: a", ["store 'a', type", "a list"]),
        ("stores: {a: {type: DictStore, bse: b}}\nmain: a", ["'a', bse", "did you mean 'base'?"]),
        ("stores: {a: {type: X, root_path: b}}\nmain: a", ["'a', root_path", "under 'config'"]),
        ("stores: {a: {type: DictStore, 5: b}}\nmain: a", ["'a', 5"]),
        ("stores: {a: {type: X, base: 5}}\nmain: a", ["'a', base", "int"]),
        ("stores: {a: {type: X, base: [b, null]}}\nmain: a", ["'a', base[1]", "nothing"]),
        ("stores: {a: {type: X, base: {store: 5}}}\nmain: a", ["'a', base.store", "int"]),
        ("stores: {a: {type: X, base: {5: a}}}\nmain: a", ["'a', base", "5"]),
        ("stores: {a: {type: X, config: [b]}}\nmain: a", ["'a', config", "a list"]),
        ("stores: {a: {type: X, config: {5: b}}}\nmain: a", ["'a', config", "5"]),
        (
            "stores: {a: {type: X, base: {type: Y, config: 5}}}\nmain: a",
            ["'a', base.config", "int"],
        ),
        ("stores: {a: {type: IdentityStore, base: b}}\nmain: a", ["'a', base", "'b'", "'a'"]),
        ("stores: {a: {type: IdentityStore, base: A}}\nmain: a", ["did you mean 'a'?"]),
        ("stores: {a: {type: DictStore}, b: {type: X, base: [c]}}\nmain: a", ["'b', base", "'c'"]),
    ],
)
def test_files_that_do_not_describe_stores(write, text, words):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        StoreFactory(path)
    assert str(caught.value).startswith(str(path))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stores: {a: [}\nmain: a", ["line 1"]),
        ("stores:\n  a: {type: DictStore}\n  a: {type: X}\nmain: a", ["line 3", "'a'", "twice"]),
        ("stores:\n  a: {type: X, type: Y}\nmain: a", ["line 2", "'type'", "twice"]),
        ("main: a\nstores: {}\nmain: b", ["line 3", "'main'", "twice"]),
        ("a: *nothing", ["line 1", "nothing"]),
        ("a: !!python/object/apply:os.system ['x']", ["line 1"]),
        ("a: !!python/name:os.system", ["line 1"]),
        ("a: !!set {b, c}", ["line 1", "set"]),
        ("a: !own b", ["line 1", "own"]),
        ("a: b\n---\nc: d", ["line 2"]),
        ("{a: b}: c", ["line 1", "text"]),
        ("[a]: c", ["line 1", "text"]),
        ("a: 2024-02-31", ["line 1", "timestamp"]),
        ("a: !!timestamp b", ["line 1", "timestamp"]),
        ("a: !!bool b", ["line 1", "bool"]),
        ("a: !!int ''", ["line 1", "int"]),
        ("a: !!seq b", ["line 1", "seq"]),
        ("? !!map a\n: b", ["line 1", "map"]),
        ("? !!set a\n: b", ["line 1", "set"]),
        ("main: 0x" + "f" * 6000, ["line 1", "int"]),
        ("? 0x" + "f" * 6000 + "\n: b", ["line 1", "int"]),
        ("\n\na: &a [*a]", ["nested"]),
        ("[" * 5000, ["nested"]),
        ("a: &a {b: 1}\nc: {<<: 5}", ["line 2", "<<"]),
        ("a: \x00", ["YAML"]),
        ("\ta: b", ["line 1"]),
    ],
)
def test_files_that_are_no_yaml(write, text, words):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        StoreFactory(path)
    assert str(caught.value).startswith(str(path))
    for word in words:
        assert word in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"stores: \xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"x\.yaml.*YAML"):
        StoreFactory(tmp_path / "x.yaml")


def test_what_is_described_in_place_of_a_name_is_not_shown(write):
    path = write("stores: {a: {type: DictStore}}\nmain: {type: X, config: {key: hunter22}}")
    with pytest.raises(ConfigError, match=r"main: .*a mapping") as caught:
        StoreFactory(path)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("merge", [False, True])
def test_alias_bombs_are_refused(write, merge):
    lines = ["a0: &a0 {k0: v}" if merge else "a0: &a0 [x, x]"]
    for n in range(1, 60):
        before = f"*a{n - 1}"
        many = ", ".join([before] * 9)
        lines.append(f"a{n}: &a{n} {{<<: [{many}]}}" if merge else f"a{n}: &a{n} [{many}]")
    with pytest.raises(ConfigError, match="aliases"):
        StoreFactory(write("\n".join(lines)))


def test_mappings_that_hold_themselves():
    loop = {"type": "IdentityStore"}
    loop["base"] = loop
    refused({"a": loop}, "nested")
    endless = []
    endless.append(endless)
    refused({"a": {"type": "MirroringStore", "base": endless}}, "nested")
    refused({"a": {"type": "DictStore", "config": {"x": endless}}}, "config.x", "nested")
    wide = [[]] * 10
    for _ in range(10):
        wide = [wide] * 10
    refused({"a": {"type": "DictStore", "config": {"x": wide}}}, "100,000")


def test_yaml_as_it_is_read():
    assert parse_yaml(b"") is None
    assert parse_yaml("ä: [ß, 1, 1.5, true, null, 2024-01-01]".encode())["ä"][:2] == ["ß", 1]
    assert parse_yaml("a: b".encode("utf-16")) == {"a": "b"}
    assert parse_yaml(b"a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n")["b"] == {"p": 1, "q": 3}
    twice = parse_yaml(b"x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz: {c: 3, <<: [*x, *y]}")
    assert twice["z"] == {"a": 1, "b": 1, "c": 3}
    assert parse_yaml(b"separator: =") == {"separator": "="}
    shared = parse_yaml(b"a: &x [1]\nb: *x")
    assert shared["a"] is not shared["b"]


@pytest.mark.parametrize("what", [None, 5, b"x.yaml", ["a"], object()])
def test_what_is_no_description(what):
    with pytest.raises(ConfigError, match="a path or a mapping"):
        StoreFactory(what)


def test_files_that_are_not_there(tmp_path):
    for path in (tmp_path / "absent.yaml", str(tmp_path / "no/folder.yaml")):
        with pytest.raises(ConfigError, match="no such file") as caught:
            StoreFactory(path)
        assert str(path) in str(caught.value)
    for path in (tmp_path, "\0"):
        with pytest.raises(ConfigError, match=r"no file|no path"):
            StoreFactory(path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no file"):
        StoreFactory(tmp_path / "file/below.yaml")


def test_files_that_cannot_be_read():
    with pytest.raises(StorageError, match="too long"):
        StoreFactory("x" * 5000)


def test_yaml_that_is_not_installed(write, monkeypatch):
    path = write("stores: {a: {type: DictStore}}\nmain: a")
    monkeypatch.delitem(sys.modules, "blobstore.config.yaml_document")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependencyError, match=r"blobstore\[yaml\]"):
        StoreFactory(path)
    assert type(build({"a": MEMORY})) is DictStore


@pytest.mark.parametrize("name", ["nothing", 5, ""])
def test_building_a_store_that_is_not_described(name):
    factory = StoreFactory({"stores": {"a": MEMORY}, "main": "a"})
    with pytest.raises(ConfigError, match="the mapping: there is no store"):
        factory.build(name)


def test_circles():
    wrapper = {"type": "IdentityStore"}
    stores = {
        "a": {**wrapper, "base": "b"},
        "b": {**wrapper, "base": "c"},
        "c": {**wrapper, "base": "a"},
        "fine": MEMORY,
    }
    error = refused(stores, "stands on itself", "base", main="fine")  # found though not asked for
    assert any(
        chain in str(error)
        for chain in ("a -> b -> c -> a", "b -> c -> a -> b", "c -> a -> b -> c")
    )
    refused({"a": {**wrapper, "base": "a"}}, "store 'a', base", "a -> a")
    refused({"a": {**wrapper, "base": {**wrapper, "base": "a"}}}, "stands on itself", "a, base")
    refused({"a": {"type": "MirroringStore", "base": ["b", "a"]}, "b": MEMORY}, "a -> a")


def test_types_that_are_unknown():
    refused({"a": {"type": "DctStore"}}, "store 'a', type", "'DctStore'", "'DictStore'?")
    refused({"a": {"type": "dictstore"}}, "'DictStore'?")
    refused({"a": {"type": "AsyncDictStor"}}, "'AsyncDictStore'?")
    refused({"a": {"type": "Zebra"}}, "store 'a', type", "@register_store")
    refused({"a": {"type": "memory"}}, "'memory'")
    refused({"a": {"type": "ObjectStore"}})
    refused({"a": {"type": "StreamTransformingStore"}})


def test_configs_that_do_not_fit():
    refused({"a": {"type": "FilesystemStore"}}, "store 'a', config", "'root_path'", "missing")
    refused(
        {"a": {"type": "FilesystemStore", "config": {"rot_path": "x"}}},
        "store 'a', config", "'rot_path'", "did you mean 'root_path'?",
    )  # fmt: skip
    refused({"a": {"type": "FilesystemStore", "config": {"root_path": 5}}}, "store 'a'", "5")
    refused(
        {"a": {"type": "FilesystemBlobBackend", "config": {"base_dir": "x", "shard_chars": 99}}},
        "store 'a'", "shard_chars", "99",
    )  # fmt: skip
    refused({"a": {"type": "DictStore", "config": {"x": 1}}}, "config", "'x'", "there are none")


def test_bases_that_do_not_fit():
    refused({"a": {"type": "IdentityStore"}}, "store 'a', base", "'store'", "missing")
    refused({"a": {"type": "MirroringStore"}}, "store 'a', base", "'children'", "missing")
    refused({"a": {"type": "MirroringStore", "base": []}}, "store 'a', base", "'children'")
    refused(
        {"a": {"type": "CachingStore", "base": {"main_store": "b"}}, "b": MEMORY}, "'cache_store'"
    )
    refused({"a": {"type": "DictStore", "base": "b"}, "b": MEMORY}, "store 'a', base", "DictStore")
    refused({"a": {"type": "DictStore", "base": ["b"]}, "b": MEMORY}, "store 'a', base", "list")
    refused({"a": {"type": "IdentityStore", "base": ["b"]}, "b": MEMORY}, "'a', base", "store")
    refused(
        {"a": {"type": "CachingStore", "base": {"main_store": "b", "cash_store": "b"}}, "b": MEMORY},
        "store 'a', base", "'cash_store'", "did you mean 'cache_store'?",
    )  # fmt: skip
    refused(
        {"a": {"type": "IdentityStore", "base": "b", "config": {"store": "b"}}, "b": MEMORY},
        "store 'a', config", "'store'", "already",
    )  # fmt: skip
    refused(
        {"a": {"type": "IdentityStore", "config": {"store": "b"}}, "b": MEMORY}, "store 'a'", "'b'"
    )


@pytest.mark.parametrize(
    ("store", "field"),
    [
        ({"type": "GzipStore", "base": "b", "config": {"level": 99}}, "config.level"),
        ({"type": "CachingStore", "base": {"main_store": "b", "cache_store": "b"}}, "base.cache_"),
        ({"type": "MirroringStore", "base": ["b", "b"]}, "base:"),
        ({"type": "RegexRoutingStore", "base": "b", "config": {"routes": 5}}, "config.routes"),
        ({"type": "RegexRoutingStore", "base": "b", "config": {"routes": [5]}}, "config.routes"),
        ({"type": "RegexRoutingStore", "config": {"routes": {"": "b"}}}, "config.routes"),
        (
            {"type": "RegexValidatingStore", "base": "b", "config": {"pattern": "("}},
            "config.pattern",
        ),
        ({"type": "EncryptingStore", "base": "b", "config": {"key": "short"}}, "config.key"),
        (
            {"type": "TextEncodingStore", "base": "b", "config": {"encoding": "no"}},
            "config.encoding",
        ),
        ({"type": "HashdirStore", "config": {"root_path": "x", "width": 99}}, "config.width"),
        ({"type": "GzipStore", "base": "text"}, "base:"),
        ({"type": "BlobStore", "base": "text", "config": {"cache_dir": "x"}}, "base:"),
        ({"type": "BlobStore", "base": "b", "config": {"backend": "tape"}}, "config.backend"),
        ({"type": "BlobStore", "config": {"compression": "zip"}}, "config.compression"),
    ],
    ids=lambda each: each["type"] if isinstance(each, dict) else each,
)
def test_what_a_constructor_refuses_is_said_of_its_field(store, field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = {"type": "TextEncodingStore", "base": "b"}
    refused({"a": store, "b": MEMORY, "text": text}, f"the mapping, store 'a', {field}")


def test_what_a_constructor_says_of_none_of_its_arguments_is_said_of_the_store():
    @register_store
    class Undecided(DictStore):
        def __init__(self, size=1, name="", word=None):
            raise ConfigError("not today: resized 10 times, None is left")

    stores = {"a": {"type": "Undecided", "config": {"size": 0, "name": "10", "word": None}}}
    assert str(refused(stores)).startswith("the mapping, store 'a': not today")


def test_a_text_store_beneath_a_store_of_bytes():
    stores = {
        "a": {"type": "GzipStore", "base": "b"},
        "b": {"type": "TextEncodingStore", "base": "c"},
        "c": MEMORY,
    }
    refused(stores, "store 'a'", "text")


def test_errors_that_are_no_fault_of_the_description():
    @register_store
    class Away(DictStore):
        def __init__(self):
            raise StorageError("the server is away")

    with pytest.raises(StorageError, match="away") as caught:
        build({"a": {"type": "Away"}})
    assert caught.value.__notes__ == ["while building the mapping, store 'a'"]

    @register_store
    class Broken(DictStore):
        def __init__(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build({"a": {"type": "Broken"}})


# --- asyncio -------------------------------------------------------------------------------------


def test_async_stores(tmp_path):
    """Over async definitions and over others; one name is one store here too."""
    stores = {
        "top": {"type": "AsyncMirroringStore", "base": ["packed", "cached"]},
        "packed": {"type": "AsyncGzipStore", "base": "files", "config": {"limit": "${NO:-3}"}},
        "files": {"type": "FilesystemStore", "config": {"root_path": str(tmp_path / "a")}},
        "cached": {
            "type": "AsyncCachingStore",
            "base": {"main_store": "sure", "cache_store": {"type": "AsyncDictStore"}},
        },
        "sure": {"type": "ReadonlyStore", "base": "memory"},
        "memory": MEMORY,
        "plain": {"type": "AsyncIdentityStore", "base": "memory"},
    }

    async def use():
        async with build(stores, "packed") as store:
            assert store.limit == 3
            await store.put("key", b"value" * 100)
            assert await store.get("key") == b"value" * 100
        async with build(stores, "top") as store:
            assert type(store).__name__ == "AsyncMirroringStore"
            assert await store.get("key") == b"value" * 100
        async with build(stores, "plain") as store:
            assert not await store.exists("key")

    asyncio.run(use())
    assert (tmp_path / "a/key").read_bytes()[:2] == b"\x1f\x8b"
    refused({"a": {"type": "AsyncGzipStore"}}, "store 'a', base", "'store'", "missing")
    refused({"a": {"type": "AsyncFilesystemStore"}}, "config", "'root_path'", "missing")
    refused({"a": {"type": "AsyncFilesystemStore", "config": {"rot_path": "x"}}}, "'root_path'?")
    wrong = {"a": {"type": "IdentityStore", "base": "b"}, "b": {"type": "AsyncDictStore"}}
    refused(wrong, "store 'a'", "object store")


def test_async_stores_of_own_classes():
    register_store(Typed)
    store = build({"a": {"type": "AsyncTyped", "config": {"number": "${NOT_SET_HERE:-5}"}}})
    assert store.sync_store.given["number"] == 5
    asyncio.run(store.close())


class Native(AsyncObjectStore):
    """A store that is awaited by nature."""

    closed = 0

    async def get(self, key):
        return key.encode()

    async def put(self, key, data):
        pass

    async def exists(self, key):
        return True

    async def delete(self, key):
        pass

    async def keys(self, prefix=""):
        yield prefix

    async def close(self):
        Native.closed += 1


def native(top):
    return {
        "top": {"type": top, "base": ["a", "face", "wrapped"]},
        "a": {"type": f"{__name__}.Native"},
        "face": {"type": "AsyncWatched", "config": {"name": "face"}},
        "wrapped": {"type": "AsyncIdentityStore", "base": "a"},
    }


@pytest.mark.parametrize("in_loop", [False, True])
def test_async_stores_are_closed_if_a_later_one_cannot_be(watched, monkeypatch, in_loop):
    monkeypatch.setattr(Native, "closed", 0)

    async def use():
        refused(native("Failing"), "it fails", allow_import=__name__)

    if in_loop:
        asyncio.run(use())
    else:
        refused(native("Failing"), "it fails", allow_import=__name__)
    assert Native.closed == 1
    assert watched.closed == ["face"]


def test_native_async_stores():
    async def use():
        async with build(native("AsyncMirroringStore"), "wrapped", allow_import=True) as store:
            assert await store.get("key") == b"key"

    asyncio.run(use())


# --- classes -------------------------------------------------------------------------------------


def test_own_classes():
    @register_store
    class Mine(DictStore):
        pass

    @register_store(name="tape")
    class Tape(DictStore):
        pass

    assert type(build({"a": {"type": "Mine"}})) is Mine
    assert type(build({"a": {"type": "tape"}})) is Tape
    registry.object_stores.register("redis", Mine)
    assert type(build({"a": {"type": "redis"}})) is Mine


def test_packages_that_offer_the_same_name(monkeypatch):
    def entry_points(*, group):
        return [importlib.metadata.EntryPoint("tape", f"{name}:Tape", group) for name in "ab"]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    monkeypatch.setattr(store_types, "_offered", None)
    refused({"a": {"type": "tape"}}, "store 'a', type", "a:Tape and b:Tape")
    assert type(build({"a": MEMORY})) is DictStore


def test_constructors_that_do_not_say_what_they_take():
    @register_store
    class Mixed(DictStore, dict):
        __init__ = dict.__init__

        def __repr__(self):
            return "Mixed()"

        def close(self):
            pass

    made = build({"a": {"type": "Mixed", "config": {"x": 1}, "base": "b"}, "b": MEMORY})
    assert dict.__getitem__(made, "x") == 1
    assert type(dict.__getitem__(made, "store")) is DictStore


def test_constructors_that_take_anything():
    @register_store
    class Anything(DictStore):
        def __init__(self, *args, **options):
            super().__init__()
            self.options = options

    stores = {"a": {"type": "Anything", "base": "b", "config": {"x": 1}}, "b": MEMORY}
    options = build(stores).options
    assert type(options["store"]) is DictStore
    assert options["x"] == 1
    stores["a"]["base"] = ["b"]
    assert len(build(stores).options["children"]) == 1


@pytest.fixture
def package(monkeypatch):
    """A package that a dotted path can name, and what importing it did."""
    parent, module = (
        types.ModuleType("blobstore_test_shop"),
        types.ModuleType("blobstore_test_shop.own"),
    )
    parent.__path__ = []
    module.Mine = type("Mine", (DictStore,), {})
    module.Composed = type("Composed", (BlobStore,), {})
    module.NoStore = type("NoStore", (), {"__init__": lambda self: pytest.fail("it was made")})
    module.function = lambda: pytest.fail("it was called")
    for made in (parent, module):
        monkeypatch.setitem(sys.modules, made.__name__, made)
    return module


@pytest.mark.parametrize(
    "allowed",
    [
        True,
        "blobstore_test_shop",
        ["blobstore_test_shop"],
        ("x", "blobstore_test_shop.own"),
        {"blobstore_test_shop"},
    ],
)
def test_dotted_paths(package, allowed, tmp_path):
    stores = {"a": {"type": "blobstore_test_shop.own.Mine"}}
    assert type(build(stores, allow_import=allowed)) is package.Mine
    config = {"cache_dir": str(tmp_path)}
    stores = {"a": {"type": "blobstore_test_shop.own.Composed", "config": config}}
    build(stores, allow_import=allowed).close()


@pytest.mark.parametrize(
    "allowed", [False, (), "blobstore_test", "blobstore_test_shop.own.Mine", ["os"]]
)
def test_dotted_paths_that_are_not_allowed(allowed, tmp_path, monkeypatch):
    """Nothing is imported."""
    (tmp_path / "blobstore_test_trap.py").write_text("raise SystemExit('it was imported')")
    (tmp_path / "blobstore_test_shop.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("blobstore_test_shop.own.Mine", "blobstore_test_trap.X"):
        refused({"a": {"type": name}}, "store 'a', type", "allow_import=True", allow_import=allowed)


def test_dotted_paths_that_lead_nowhere(package):
    for name, word in {
        "blobstore_test_shop.own.Other": "'Other'",
        "blobstore_test_shop.absent.Mine": "blobstore_test_shop.absent",
        "blobstore_test_absent.deep.Mine": "blobstore_test_absent",
        "blobstore_test_shop.own.NoStore": "no subclass",
        "blobstore_test_shop.own.function": "no subclass",
        "os.system": "no subclass",
        "..Mine": "no dotted path",
        ".Mine": "no dotted path",
        "blobstore.protocols.Capabilities": "no subclass",
    }.items():
        refused({"a": {"type": name}}, "store 'a', type", word, allow_import=True)
    refused({"a": {"type": "blobstore.protocols.ObjectStore"}}, "store 'a'", allow_import=True)


def test_errors_of_modules_pass_unmasked(tmp_path, monkeypatch):
    (tmp_path / "blobstore_test_broken.py").write_text("import blobstore_test_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="blobstore_test_not_there"):
        build({"a": {"type": "blobstore_test_broken.X"}}, allow_import=True)
    (tmp_path / "blobstore_test_refusing.py").write_text("raise ValueError('not today')")
    with pytest.raises(ValueError, match=r"^not today$"):
        build({"a": {"type": "blobstore_test_refusing.X"}}, allow_import=True)


@pytest.mark.parametrize("wrong", [None, 5, [5], ("",), "", b"x", {"a": 1}])
def test_what_may_be_imported_is_a_bool_or_names(wrong):
    with pytest.raises(ConfigError, match="allow_import"):
        StoreFactory({"stores": {"a": MEMORY}, "main": "a"}, allow_import=wrong)


def test_config_errors_are_what_callers_catch():
    with pytest.raises(BlobStoreError):
        build({"a": {"type": "x"}})
    with pytest.raises(ValueError):
        build({"a": {"type": "x"}})
