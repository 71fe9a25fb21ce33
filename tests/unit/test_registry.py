"""Registries: names, other packages, what is missing, and who stores what."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import types

import numpy as np
import pytest

from blobstore import BlobStore, registry
from blobstore.backends import DictStore
from blobstore.errors import (
    ConfigError,
    DecodeError,
    MissingDependencyError,
    UnsupportedTypeError,
)
from blobstore.handlers.stream import StreamPart, read_stream
from blobstore.protocols import Handler, MetadataBackend, ObjectStore, Plan, WriteOptions
from blobstore.registry import HandlerSet, Registry, load, register_store


@pytest.fixture
def module():
    """A module of another package, to hang things into."""
    made = types.ModuleType("blobstore_test_plugin")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


@pytest.fixture
def offers(monkeypatch):
    """Say what installed packages offer: (group, name, value)."""

    def offer(*points):
        def entry_points(*, group):
            return [importlib.metadata.EntryPoint(n, v, g) for g, n, v in points if g == group]

        monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)

    return offer


@pytest.fixture
def stores():
    return Registry(
        "blob backend", "blobstore.object_stores", ObjectStore, {"memory": DICT, "late": LATE}
    )


DICT = "blobstore.backends.blob.memory:DictStore"
LATE = "blobstore_test_absent:Nothing"
GROUP = "blobstore.object_stores"


class Store(DictStore):
    """An object store of somebody else."""


# --- loading -------------------------------------------------------------------------------------


def test_load():
    assert load(DICT) is DictStore
    with pytest.raises(ModuleNotFoundError):
        load("blobstore.nothing_here:X")
    with pytest.raises(AttributeError):
        load("blobstore.keys:nothing_here")


def write_module(tmp_path, monkeypatch, code):
    (tmp_path / "blobstore_test_leaf.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "blobstore_test_leaf", raising=False)
    return "blobstore_test_leaf:Thing"


@pytest.mark.parametrize("library", sorted(registry._EXTRA_OF))
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, library):
    target = write_module(tmp_path, monkeypatch, f"import {library}.sub\nclass Thing: ...")
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(MissingDependencyError) as caught:
        load(target)
    assert isinstance(caught.value, ImportError)
    assert f"blobstore[{registry._EXTRA_OF[library]}]" in str(caught.value)
    assert repr(library) in str(caught.value)
    assert isinstance(caught.value.__cause__, ImportError)


def test_every_extra_that_is_named_exists():
    text = importlib.metadata.metadata("blobstore").get_all("Provides-Extra")
    assert {*registry._EXTRA_OF.values()} <= {*text}


def test_other_import_errors_pass_unmasked(tmp_path, monkeypatch):
    target = write_module(tmp_path, monkeypatch, "import blobstore_test_absent")
    with pytest.raises(ModuleNotFoundError, match="blobstore_test_absent") as caught:
        load(target)
    assert not isinstance(caught.value, MissingDependencyError)
    target = write_module(tmp_path, monkeypatch, "raise ImportError('a broken build')")
    with pytest.raises(ImportError, match="a broken build") as caught:
        load(target)
    assert not isinstance(caught.value, MissingDependencyError)


def test_a_library_that_is_installed_but_too_old_is_not_called_missing(tmp_path, monkeypatch):
    """It would send the user to install what is there."""
    monkeypatch.setitem(sys.modules, "yaml", types.ModuleType("yaml"))
    target = write_module(tmp_path, monkeypatch, "from yaml import of_a_later_version")
    with pytest.raises(ImportError, match="of_a_later_version") as caught:
        load(target)
    assert not isinstance(caught.value, MissingDependencyError)


# --- names ---------------------------------------------------------------------------------------


def test_built_in_names(stores, offers):
    offers()
    assert stores.get("memory") is DictStore
    assert [*stores.names()] == ["late", "memory"]
    assert [*stores.third_party()] == []
    with pytest.raises(ModuleNotFoundError):
        stores.get("late")  # only now
    with pytest.raises(ConfigError, match="known are 'late', 'memory'"):
        stores.get("nothing")


def test_registering(stores, offers):
    offers()
    stores.register("mine", Store)
    assert stores.get("mine") is Store
    assert [*stores.names()] == ["late", "memory", "mine"]
    assert [*stores.third_party()] == ["mine"]
    for name in ("mine", "memory", "late"):
        with pytest.raises(ConfigError, match="already"):
            stores.register(name, Store)
    assert stores.get("memory") is DictStore


@pytest.mark.parametrize("wrong", [int, Store(), None, "text", MetadataBackend])
def test_what_does_not_implement_the_interface(stores, wrong):
    with pytest.raises(ConfigError, match="ObjectStore"):
        stores.register("mine", wrong)


def test_entry_points(stores, offers, module):
    module.Theirs = type("Theirs", (DictStore,), {})
    offers((GROUP, "theirs", "blobstore_test_plugin:Theirs"), ("other", "x", "y:Z"))
    assert [*stores.names()] == ["late", "memory", "theirs"]
    assert [*stores.third_party()] == ["theirs"]
    assert stores.get("theirs") is module.Theirs
    assert stores.get("theirs") is module.Theirs
    assert [*stores.names()] == ["late", "memory", "theirs"]


def test_entry_points_are_not_looked_up_for_built_in_names(stores, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", None)
    assert stores.get("memory") is DictStore


def test_an_entry_point_of_the_wrong_kind(stores, offers, module):
    module.Theirs = int
    offers((GROUP, "theirs", "blobstore_test_plugin:Theirs"))
    with pytest.raises(ConfigError, match="subclass of ObjectStore"):
        stores.get("theirs")


def test_an_entry_point_that_needs_what_is_missing(stores, offers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    target = write_module(tmp_path, monkeypatch, "import obstore\nclass Thing: ...")
    offers((GROUP, "theirs", target))
    with pytest.raises(MissingDependencyError, match=r"blobstore\[s3\]"):
        stores.get("theirs")


def test_two_packages_that_offer_one_name(stores, offers):
    offers((GROUP, "theirs", "one:A"), (GROUP, "theirs", "two:B"))
    with pytest.raises(ConfigError, match=r"one:A and two:B"):
        stores.get("theirs")


def test_a_package_that_offers_a_built_in_name(stores, offers):
    offers((GROUP, "memory", "one:A"))
    with pytest.raises(ConfigError, match="uninstall"):
        [*stores.names()]
    offers((GROUP, "memory", DICT))  # itself: harmless
    assert [*Registry("x", GROUP, ObjectStore, {"memory": DICT}).names()] == ["memory"]


def test_one_package_listed_twice_is_no_clash(stores, offers, module):
    """As happens where it is installed in two places on the path."""
    module.Theirs = type("Theirs", (DictStore,), {})
    value = "blobstore_test_plugin:Theirs"
    offers((GROUP, "theirs", value), (GROUP, "theirs", value))
    assert stores.get("theirs") is module.Theirs


@pytest.mark.parametrize("used_before", [False, True])
def test_registering_a_name_that_a_package_offers(stores, offers, module, used_before):
    module.Theirs = type("Theirs", (DictStore,), {})
    offers((GROUP, "theirs", "blobstore_test_plugin:Theirs"))
    if used_before:
        stores.get("theirs")
    with pytest.raises(ConfigError, match="already"):
        stores.register("theirs", Store)
    assert stores.get("theirs") is module.Theirs


# --- handlers ------------------------------------------------------------------------------------


class Thing:
    def __init__(self, text):
        self.text = text

    def __eq__(self, other):
        return isinstance(other, Thing) and self.text == other.text

    __hash__ = None


class ThingHandler(Handler):
    name = "thing"
    type_names = (f"{Thing.__module__}.{Thing.__qualname__}",)

    def can_handle(self, obj):
        return type(obj) is Thing and obj.text != "not me"

    def plan(self, obj, options):
        if obj.text == "too much":
            raise UnsupportedTypeError("too much for me")
        data = obj.text.encode()
        part = StreamPart(
            self.name, "data", (data,), options, extension=".thing", digest=lambda h: h.update(data)
        )
        return Plan("thing", {}, (part,))

    def read(self, parts, info, **options):
        return Thing(read_stream(parts["data"]).decode())


def variant(name, *, priority=0, types=ThingHandler.type_names):
    return type(
        f"Handler{name}", (ThingHandler,), {"name": name, "priority": priority, "type_names": types}
    )()


@pytest.fixture
def plugins(offers, module, monkeypatch):
    """A fresh registry of handlers, and packages that offer some."""

    def install(**classes):
        for name, cls in classes.items():
            setattr(module, name, cls)
        offers(
            *(
                ("blobstore.handlers", cls.name, f"blobstore_test_plugin:{name}")
                for name, cls in classes.items()
            )
        )
        fresh = Registry(
            "handler", "blobstore.handlers", Handler, registry.handler_classes._builtin
        )
        monkeypatch.setattr(registry, "handler_classes", fresh)
        return fresh

    install()
    return install


def chosen(handlers, obj):
    return handlers.plan(obj, WriteOptions()).handler.name


BUILTIN = {
    "bytes": b"x",
    "bytearray": bytearray(b"x"),
    "str": "x",
    "numpy": np.zeros(3),
    "mapping": {"a": np.zeros(10_000)},
    "pickle": {"a": 1},
}


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_handlers(plugins, name):
    assert chosen(HandlerSet(), BUILTIN[name]) == name
    assert HandlerSet().by_name(name).name == name


def test_an_own_handler(plugins):
    handlers = HandlerSet([ThingHandler()])
    assert chosen(handlers, Thing("a")) == "thing"
    assert chosen(handlers, Thing("not me")) == "pickle"
    assert chosen(handlers, Thing("too much")) == "pickle"
    assert isinstance(handlers.by_name("thing"), ThingHandler)


def test_only_the_exact_type_counts(plugins):
    asked = []

    class Asked(ThingHandler):
        def can_handle(self, obj):
            asked.append(type(obj))
            return super().can_handle(obj)

    handlers = HandlerSet([Asked()])
    for obj in (1, "x", SubThing("a"), [Thing("a")]):
        assert chosen(handlers, obj) != "thing"
    assert asked == []
    chosen(handlers, Thing("a"))
    assert asked == [Thing]


class SubThing(Thing):
    pass


def test_priority_decides(plugins):
    low, high = variant("low", priority=-5), variant("high", priority=5)
    for order in ([low, high], [high, low]):
        assert chosen(HandlerSet(order), Thing("a")) == "high"
    lowest = variant("lowest", priority=-2000)
    assert chosen(HandlerSet([lowest]), Thing("a")) == "pickle"
    names = [handler.name for handler in HandlerSet([low, lowest, high]).candidates(Thing)]
    assert names == ["high", "low", "pickle", "lowest"]


def test_own_ones_come_before_built_in_ones_of_the_same_priority(plugins):
    class Texts(ThingHandler):
        name = "texts"
        type_names = ("builtins.str",)

        def can_handle(self, obj):
            return obj.startswith("mine")

        def plan(self, obj, options):
            return super().plan(Thing(obj), options)

    handlers = HandlerSet([Texts()])
    assert chosen(handlers, "mine") == "texts"
    assert chosen(handlers, "theirs") == "str"
    below = type("Below", (Texts,), {"name": "below", "priority": -1})()
    assert chosen(HandlerSet([below]), "mine") == "str"


def test_a_handler_of_any_type(plugins):
    class Anything(ThingHandler):
        name = "anything"
        type_names = ("*",)
        priority = -1

        def can_handle(self, obj):
            return True

        def plan(self, obj, options):
            return super().plan(Thing(str(obj)), options)

    handlers = HandlerSet([Anything()])
    assert chosen(handlers, "text") == "str"
    assert chosen(handlers, 5) == chosen(handlers, Thing("a")) == "anything"


def test_handlers_of_other_packages(plugins):
    plugins(Theirs=ThingHandler)
    handlers = HandlerSet()
    assert chosen(handlers, Thing("a")) == "thing"
    assert chosen(handlers, Thing("not me")) == "pickle"
    assert chosen(handlers, "text") == "str"
    assert isinstance(handlers.by_name("thing"), ThingHandler)
    own = variant("own")
    assert chosen(HandlerSet([own]), Thing("a")) == "own"  # before theirs


def test_handlers_registered_for_the_process(plugins):
    fresh = plugins()
    fresh.register("thing", ThingHandler)
    assert chosen(HandlerSet(), Thing("a")) == "thing"


def test_a_handler_registered_late(plugins):
    handlers = HandlerSet()
    assert chosen(handlers, Thing("a")) == "pickle"
    handlers.register(ThingHandler())
    assert chosen(handlers, Thing("a")) == "thing"


def test_names_of_handlers_are_their_own(plugins):
    handlers = HandlerSet([ThingHandler()])
    with pytest.raises(ConfigError, match="'thing'"):
        handlers.register(ThingHandler())
    for name in ("pickle", "numpy", "str"):
        with pytest.raises(ConfigError, match=repr(name)):
            HandlerSet([variant(name)])
    plugins(Theirs=ThingHandler)
    with pytest.raises(ConfigError, match="'thing'"):
        HandlerSet([ThingHandler()])
    for wrong in (ThingHandler, 5, None):
        with pytest.raises(ConfigError):
            HandlerSet([wrong])


def test_a_handler_that_is_not_here(plugins):
    with pytest.raises(DecodeError, match="'thing', which is not here"):
        HandlerSet().by_name("thing")


def test_a_package_whose_handler_cannot_be_loaded_breaks_nobody_else(
    plugins, tmp_path, monkeypatch
):
    """One broken plug-in is no reason that a store keeps nothing at all."""
    monkeypatch.setitem(sys.modules, "polars", None)
    target = write_module(tmp_path, monkeypatch, "import polars\nclass Thing: ...")
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda *, group: [importlib.metadata.EntryPoint("frames", target, group)],
    )
    assert chosen(HandlerSet(), "text") == "str"
    assert chosen(HandlerSet(), Thing("a")) == "pickle"


def test_the_reason_of_the_last_one_asked_is_given(plugins):
    with pytest.raises(UnsupportedTypeError, match="lambda"):
        HandlerSet().plan(lambda: 0, WriteOptions())

    handlers = HandlerSet([variant("strict", priority=-3000)])
    with pytest.raises(UnsupportedTypeError):
        handlers.plan(lambda: 0, WriteOptions())


def test_what_a_store_keeps_by_a_handler_it_reads_by_it(plugins, tmp_path):
    with BlobStore(tmp_path, handlers=[ThingHandler()]) as store:
        store.put(Thing("a"), key="k")
        assert store.entry("k").handler == "thing"
        assert store["k"] == Thing("a")
        assert store.get_metadata("k")["data_type"] == "thing"
    with BlobStore(tmp_path) as store:
        with pytest.raises(DecodeError, match="thing"):
            store.get("k")
        store.register_handler(ThingHandler())
        assert store["k"] == Thing("a")
    plugins(Theirs=ThingHandler)
    with BlobStore(tmp_path) as store:
        assert store["k"] == Thing("a")


def test_nothing_is_imported_to_find_out():
    code = (
        "import sys, blobstore.registry as r\n"
        "from blobstore.protocols import WriteOptions\n"
        "assert r.HandlerSet().plan('text', WriteOptions()).handler.name == 'str'\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'blosc2', 'sqlalchemy'} & {*sys.modules}\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- types of stores -----------------------------------------------------------------------------


@pytest.fixture
def types_(monkeypatch, offers):
    """The registry of store types, without what other tests and packages put there."""
    offers()
    monkeypatch.setattr(registry.store_types, "_registered", {})
    monkeypatch.setattr(registry.store_types, "_offered", None)
    monkeypatch.setattr(registry.object_stores, "_registered", {})
    monkeypatch.setattr(registry.object_stores, "_offered", None)
    return registry.store_types


def test_store_types_are_the_names_of_classes(types_):
    assert types_.get("DictStore") is DictStore
    assert {"GzipStore", "ZipStore", "RegexRoutingStore"} <= {*types_.names()}
    assert "memory" not in types_.names()
    assert types_.find("Nothing") is None
    with pytest.raises(ConfigError, match="store type named 'Nothing'"):
        types_.get("Nothing")


def test_registering_a_store_by_its_class(types_):
    @register_store
    class Mine(DictStore):
        pass

    @register_store()
    class Called(DictStore):
        pass

    @register_store(name="other")
    class Named(DictStore):
        pass

    assert [types_.get(name) for name in ("Mine", "Called", "other")] == [Mine, Called, Named]
    assert types_.find("Named") is None
    assert isinstance(Mine(), DictStore)


def test_names_of_stores_that_are_taken(types_):
    register_store(Store)
    with pytest.raises(ConfigError, match="'Store' already"):
        register_store(Store)
    with pytest.raises(ConfigError, match="'DictStore' already"):
        register_store(DictStore)
    with pytest.raises(ConfigError, match="'GzipStore' already"):
        register_store(Store, name="GzipStore")
    assert types_.get("Store") is Store
    register_store(Store, name="again")
    assert types_.get("again") is Store


@pytest.mark.parametrize("wrong", [int, Store(), "text", MetadataBackend])
def test_registering_what_is_no_store(types_, wrong):
    with pytest.raises(ConfigError, match="ObjectStore"):
        register_store(wrong)
    with pytest.raises(ConfigError, match="ObjectStore"):
        register_store(name="x")(wrong)


@pytest.mark.parametrize("name", ["", 5, b"x"])
def test_names_of_stores_are_texts(types_, name):
    with pytest.raises(ConfigError, match="text"):
        register_store(Store, name=name)


def test_what_a_package_offers_has_its_name_in_both(types_, offers, module):
    module.Theirs = type("Theirs", (DictStore,), {})
    offers((GROUP, "redis", "blobstore_test_plugin:Theirs"))
    assert types_.get("redis") is registry.object_stores.get("redis") is module.Theirs


def test_names_for_blob_stores(types_):
    assert registry.object_stores.get("memory") is DictStore
    assert {"filesystem", "memory", "sqlite", "zip"} <= {*registry.object_stores.names()}
