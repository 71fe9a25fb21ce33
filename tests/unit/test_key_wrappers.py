"""Stores that change, check and route keys: layouts, foreign keys, refusals, and that nothing collides."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.backends.blob.filesystem import FilesystemBlobBackend, FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.errors import (
    ClosedError,
    ConfigError,
    IntegrityError,
    InvalidInputError,
    InvalidKeyError,
    KeyNotFoundError,
    NotSupportedError,
    RejectedKeyError,
    UnavailableError,
)
from blobstore.protocols import BlobBackend, Capabilities, Leftover
from blobstore.streams import MemorySink
from blobstore.wrappers.base import WrapperSink, WrapperStore
from blobstore.wrappers.key_transform import KeyTransformer, KeyTransformingStore
from blobstore.wrappers.prefix import (
    HashPrefixStore,
    HashPrefixTransformer,
    PrefixStore,
    PrefixTransformer,
)
from blobstore.wrappers.routing import RegexRoutingStore
from blobstore.wrappers.url_encoding import UrlEncodingStore, UrlEncodingTransformer
from blobstore.wrappers.validate import (
    KeyValidatingStore,
    RegexValidatingStore,
    UrlValidatingStore,
)

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PATHS = st.lists(
    st.sampled_from(["", ".", "..", "...", "a", "%", "%2E", "a b", "ä", ".blobstore-tmp"]) | KEYS,
    max_size=5,
).map("/".join)


def calls_with_a_key(store):
    """Every method that takes a key, as a function of it."""
    return {
        "get": store.get,
        "put": lambda key: store.put(key, b"x"),
        "exists": store.exists,
        "delete": store.delete,
        "get_range": lambda key: store.get_range(key, 0, 1),
        "open": store.open,
        "source": store.source,
        "writer": store.writer,
        "stat": store.stat,
        "local_path": store.local_path,
        "delete_many": lambda key: store.delete_many([key]),
        "copy": lambda key: store.copy(key, "a"),
        "copy to": lambda key: store.copy("a", key),
        "put_if_absent": lambda key: store.put_if_absent(key, b"x"),
        "sync": lambda key: store.sync([key]),
    }


# --- prefixes -------------------------------------------------------------------------------------


def test_only_keys_with_the_prefix_are_ours():
    beneath = DictStore()
    for key in ("other/x", "mine", "mine/x", "mine/", "Mine/y"):
        beneath.put(key, key.encode())
    store = PrefixStore(beneath, "mine/")
    assert sorted(store.keys()) == ["", "x"]
    assert store.get("x") == b"mine/x"
    store.delete_many(store.keys())
    assert sorted(beneath.keys()) == ["Mine/y", "mine", "other/x"]


@pytest.mark.parametrize("key", ["../x", "..", "", "/x", "a/../../x"])
def test_a_prefix_does_not_lead_out_of_a_folder(tmp_path, key):
    (tmp_path / "x").write_bytes(b"outside")
    with PrefixStore(FilesystemStore(tmp_path / "root"), "a/") as store:
        for name, call in calls_with_a_key(store).items():
            if name != "copy to":
                with pytest.raises(InvalidKeyError):
                    call(key)
        assert list(store.keys("../")) == []
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_prefix_is_literal():
    beneath = DictStore()
    store = PrefixStore(PrefixStore(beneath, "a.*"), "[b")
    store.put("%c", b"")
    beneath.put("a...[b%c", b"")
    assert (sorted(beneath.keys()), list(store.keys("%"))) == (["a.*[b%c", "a...[b%c"], ["%c"])
    assert repr(store) == "PrefixStore(PrefixStore(DictStore(), prefix='a.*'), prefix='[b')"


@pytest.mark.parametrize(
    "make",
    [
        lambda: PrefixStore(DictStore(), None),
        lambda: PrefixStore(DictStore(), b"x"),
        lambda: PrefixStore({}, "x"),
        lambda: HashPrefixStore(DictStore(), 0),
        lambda: HashPrefixStore(DictStore(), 65),
        lambda: HashPrefixStore(DictStore(), "8"),
        lambda: HashPrefixStore(DictStore(), True),
        lambda: HashPrefixStore(DictStore(), 8, None),
        lambda: UrlEncodingStore(None),
        lambda: KeyTransformingStore(DictStore(), str.upper),
        lambda: KeyValidatingStore(DictStore(), "no function"),
        lambda: RegexValidatingStore(DictStore(), "(["),
        lambda: RegexValidatingStore(DictStore(), b"bytes"),
        lambda: RegexValidatingStore(DictStore(), re.compile(b"bytes")),
        lambda: RegexValidatingStore(DictStore(), None),
        lambda: RegexRoutingStore(DictStore(), [("([", DictStore())]),
        lambda: RegexRoutingStore(DictStore(), [("a", "no store")]),
        lambda: RegexRoutingStore(DictStore(), [("a", KeyTransformer)]),
        lambda: RegexRoutingStore(DictStore(), [("a",)]),
        lambda: RegexRoutingStore(DictStore(), [5]),
        lambda: RegexRoutingStore(None, [("a", KeyTransformer())]),
        lambda: RegexRoutingStore("no store"),
    ],
)
def test_wrong_parameters(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("length", [1, 8, 64])
@pytest.mark.parametrize("separator", ["/", "", "--"])
def test_hash_prefix_layout(length, separator):
    beneath = DictStore()
    store = HashPrefixStore(beneath, length, separator)
    keys = ["a/b", "", "ä", "x" * 300]
    for key in keys:
        store.put(key, b"")
    wanted = [hashlib.sha256(key.encode()).hexdigest()[:length] + separator + key for key in keys]
    assert sorted(beneath.keys()) == sorted(wanted)
    beneath.put("0" * length + separator + "a/b", b"")  # whose hash begins otherwise
    beneath.put("a", b"")
    assert sorted(store.keys()) == sorted(keys)
    assert sorted(store.keys("a")) == ["a/b"]


@pytest.mark.parametrize("foreign", ["", "a", "A/x", "b/x"])
def test_what_has_not_the_prefix_has_no_key(foreign):
    with pytest.raises(KeyError):
        PrefixTransformer("a/").reverse_transform_key(foreign)


def test_hash_prefix_defaults():
    store = HashPrefixStore(DictStore())
    assert (store.hash_length, store.separator) == (8, "/")
    assert repr(store) == "HashPrefixStore(DictStore(), hash_length=8, separator='/')"


# --- percent-encoding -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "stored"),
    [
        ("path/with spaces/and#special&chars", "path/with%20spaces/and%23special%26chars"),
        ("a-b_c.d~e", "a-b_c.d~e"),
        ("ä/%41", "%C3%A4/%2541"),
        ("a.b/.hidden/...", "a.b/.hidden/..."),
        ("../x", "%2E%2E/x"),
        ("./.", "%2E/%2E"),
        ("", "%"),
        ("/", "%/%"),
        ("a//b/", "a/%/b/%"),
        ("%", "%25"),
        (".blobstore-tmp/put-1", "%2Eblobstore-tmp/put-1"),
        ("a?b=c+d&e\\f\0g\n", "a%3Fb%3Dc%2Bd%26e%5Cf%00g%0A"),
    ],
)
def test_url_encoding_layout(key, stored):
    transformer = UrlEncodingTransformer()
    assert transformer.transform_key(key) == stored
    assert transformer.reverse_transform_key(stored) == key


@pytest.mark.parametrize(
    "foreign",
    ["a b", "%2e", "..", "", "a//b", "%61", "%C3", "%C3%A4%", "%%", "%zz", "ä", "a/.", "%2E%2E%2E"],
)
def test_what_is_not_encoded_like_ours_is_not_listed(foreign):
    beneath = DictStore()
    beneath.put(foreign, b"")
    with UrlEncodingStore(beneath) as store:
        assert list(store.keys()) == []
        with pytest.raises((KeyError, ValueError)):
            store.reverse_transform_key(foreign)


@pytest.mark.parametrize(
    ("prefix", "stored"),
    [("", ""), ("a b", "a%20b"), ("a b/", "a%20b/"), ("x/.", "x/"), ("x/..", "x/"), ("x/...", "x/..."),
     ("x/.h", "x/.h"), (".blobstore-", ""), (".blobstore-x", ".blobstore-x"), ("/", "%/"), ("./a", "%2E/a"),
     ("ä", "%C3%A4"), ("\ud800", "")],
)  # fmt: skip
def test_url_encoding_asks_for_no_more_than_it_needs(prefix, stored):
    assert UrlEncodingTransformer().transform_prefix(prefix) == stored


def test_over_long_segments_are_refused_by_the_store_beneath(tmp_path):
    with UrlEncodingStore(FilesystemStore(tmp_path)) as store:
        with pytest.raises(InvalidKeyError, match="too long") as caught:
            store.put("x/" + "ä" * 60, b"")
        assert caught.value.location == "x/" + "ä" * 60
        store.put("x/" + "ä" * 42, b"1")
        assert store.get("x/" + "ä" * 42) == b"1"


# --- properties -----------------------------------------------------------------------------------

TRANSFORMERS = [
    UrlEncodingTransformer(),
    HashPrefixTransformer(),
    HashPrefixTransformer(1, ""),
    PrefixTransformer("a/"),
    PrefixTransformer(""),
]


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=lambda t: type(t).__name__)
@given(keys=st.sets(KEYS | PATHS, max_size=6), prefix=PATHS | KEYS, data=st.data())
def test_any_text_comes_back_and_nothing_collides(transformer, keys, prefix, data):
    stored = {transformer.transform_key(key) for key in keys}
    assert len(stored) == len(keys)
    assert {transformer.reverse_transform_key(key) for key in stored} == keys
    if keys:
        key = data.draw(st.sampled_from(sorted(keys)))
        prefix = data.draw(st.just(prefix) | st.integers(0, len(key)).map(lambda n: key[:n]))
    with KeyTransformingStore(DictStore(), transformer) as store:
        for key in keys:
            store.put(key, key.encode())
        wanted = sorted(key for key in keys if key.startswith(prefix))
        assert sorted(store.keys(prefix)) == wanted
        assert all(store.get(key) == key.encode() for key in keys)


@given(PATHS | KEYS)
def test_any_text_is_a_key_over_files(tmp_path_factory, key):
    stored = UrlEncodingTransformer().transform_key(key)
    if any(len(segment) > 255 for segment in stored.split("/")):
        return
    with UrlEncodingStore(FilesystemStore(tmp_path_factory.mktemp("url"))) as store:
        store.put(key, b"1")
        assert (store.get(key), list(store.keys()), list(store.keys(key))) == (b"1", [key], [key])
        store.delete(key)
        assert list(store.keys()) == []


@pytest.mark.parametrize("make", [UrlEncodingStore, HashPrefixStore])
def test_what_has_no_utf8_is_no_key(make):
    with make(DictStore()) as store:
        for call in calls_with_a_key(store).values():
            with pytest.raises(InvalidKeyError):
                call("\ud800")
        assert list(store.keys("\ud800")) == []


# --- the base -------------------------------------------------------------------------------------


class Failing(WrapperStore):
    def get(self, key):
        raise IntegrityError("broken", location=key)

    def exists(self, key):
        raise UnavailableError("away", location="elsewhere")

    def writer(self, key, size_hint=None):
        return FailingSink(super().writer(key))


class FailingSink(WrapperSink):
    def commit(self):
        raise UnavailableError("away", location="p/key")


def test_errors_are_about_the_key_of_the_caller():
    with PrefixStore(Failing(DictStore()), "p/") as store:
        with pytest.raises(IntegrityError) as caught:
            store.get("key")
        assert caught.value.location == "key"
        with pytest.raises(UnavailableError) as caught:
            store.exists("key")
        assert caught.value.location == "elsewhere"
        with pytest.raises(UnavailableError) as caught, store.writer("key") as sink:
            sink.write(b"")
        assert caught.value.location == "key"


def test_copying_an_absent_object_names_the_source():
    with PrefixStore(DictStore(), "a/") as store, pytest.raises(KeyNotFoundError) as caught:
        store.copy("a/b", "b")
    assert caught.value.location == "a/b"


class OwnPlaces(BlobBackend):
    """Answers a path of its own."""

    def write_blob(self, blob_id, data):
        return "somewhere/" + blob_id

    def read_blob(self, blob_path):
        raise KeyError(blob_path)

    def delete_blob(self, blob_path):
        return False

    def exists(self, blob_path):
        return False


@pytest.mark.parametrize(
    "make",
    [lambda s: PrefixStore(s, "p-"), lambda s: RegexRoutingStore(routes=[("^[a-k]", s)])],
    ids=["prefix", "routing"],
)
def test_a_store_with_places_of_its_own_cannot_be_followed(make):
    with make(OwnPlaces()) as store:
        with (
            pytest.raises(NotSupportedError, match=r"places? of its own"),
            store.writer("k") as sink,
        ):
            sink.write(b"1")
        assert not store.capabilities.list
        with pytest.raises(NotSupportedError, match="OwnPlaces"):
            store.keys()


def test_what_cannot_be_followed_is_not_left_behind():
    class MovingStore(DictStore):
        def writer(self, key, size_hint=None):
            def publish(data):
                self.put(f"at/{key}", data)
                return f"at/{key}"

            return MemorySink(publish)

    with PrefixStore(MovingStore(), "p-") as store:
        with pytest.raises(NotSupportedError, match="at/p-k"), store.writer("k") as sink:
            sink.write(b"1")
        assert list(store.store.keys()) == []


def test_blobs_by_id_can_be_prefixed(tmp_path):
    with PrefixStore(FilesystemBlobBackend(tmp_path), "run-1.") as store:
        with store.writer("abc.b2nd") as sink:
            sink.write(b"1")
        assert (sink.location, store.get("abc.b2nd"), list(store.keys())) == (
            "abc.b2nd",
            b"1",
            ["abc.b2nd"],
        )
        assert (tmp_path / "ru" / "run-1.abc.b2nd").is_file()


# --- validation -----------------------------------------------------------------------------------


def test_every_method_asks_the_validator():
    asked = []

    def validator(key):
        asked.append(key)
        if key == "bad":
            raise KeyError("no bad ones")

    beneath = DictStore()
    beneath.put("bad", b"foreign")
    beneath.put("a", b"1")
    with KeyValidatingStore(beneath, validator) as store:
        for name, call in calls_with_a_key(store).items():
            asked.clear()
            with pytest.raises(RejectedKeyError, match="'bad' is not taken here: no bad ones") as e:
                call("bad")
            assert "bad" in asked, name
            assert isinstance(e.value, KeyError)
            assert isinstance(e.value, ValueError)
            assert isinstance(e.value, InvalidKeyError)
            assert e.value.location == "bad"
        assert list(store.keys()) == ["a"]
        assert beneath.get("bad") == b"foreign"


def test_what_a_validator_may_do():
    def validator(key):
        if key == "value":
            raise ValueError
        if key == "type":
            raise TypeError("a bug")
        return {"no": False, "yes": True, "empty": ""}.get(key)

    with KeyValidatingStore(DictStore(), validator) as store:
        for key in ("yes", "empty", "other"):
            store.put(key, b"")
        for key in ("value", "no"):
            with pytest.raises(RejectedKeyError):
                store.put(key, b"")
        with pytest.raises(TypeError, match="a bug"):
            store.put("type", b"")
        with pytest.raises(InvalidKeyError):
            store.put(5, b"")


def test_the_whole_key_has_to_match():
    with RegexValidatingStore(DictStore(), r"[a-z]+\.png") as store:
        store.put("cat.png", b"")
        for key in ("cat.png.exe", "x/cat.png", "cat.png\n", "", "CAT.png"):
            with pytest.raises(RejectedKeyError, match="does not match"):
                store.put(key, b"")
    with RegexValidatingStore(DictStore(), re.compile("[a-z]", re.IGNORECASE)) as store:
        store.put("Q", b"")
        assert repr(store) == "RegexValidatingStore(DictStore(), pattern='[a-z]')"


@pytest.mark.parametrize(
    "url",
    ["http://a", "https://example.org/x?y#z", "HTTPS://Example.org", "http://user@host:80/ä", "http://[::1]/"],
)  # fmt: skip
def test_addresses(url):
    with UrlValidatingStore(DictStore()) as store:
        store.put(url, b"1")
        assert (store.get(url), list(store.keys("http:"))) == (
            b"1",
            [url] * url.startswith("http:"),
        )


@pytest.mark.parametrize(
    "url",
    ["http:", "http://", "http:///path", "https:host", "ftp://host/x", "//host/x", "host", "", "javascript:1",
     "http://[::1", "http://host:port/", "http://host:99999/", " http://host", "http://host/a b", "http://ho\nst",
     "http://@/", "http://:80/", "http://host\x7f",
     "http://\u00a0/", "http://host\u2028/", "http://host/\x00"],
)  # fmt: skip
def test_what_is_no_address(url):
    with UrlValidatingStore(DictStore()) as store, pytest.raises(RejectedKeyError):
        store.put(url, b"1")


# --- routing --------------------------------------------------------------------------------------


@pytest.fixture
def routed():
    a, b, base = DictStore(), DictStore(), DictStore()
    routes = [("^a", a), (re.compile("B$", re.IGNORECASE), b), ("^x", PrefixTransformer("own/"))]
    with RegexRoutingStore(base, routes) as store:
        yield store, a, b, base


def test_the_first_pattern_that_is_found_decides(routed):
    store, a, b, base = routed
    for key in ("a", "ab", "zb", "zB", "x", "xb", "x/y"):
        store.put(key, key.encode())
    assert sorted(a.keys()) == ["a", "ab"]
    assert sorted(b.keys()) == ["xb", "zB", "zb"]
    assert sorted(base.keys()) == ["own/x", "own/x/y"]
    assert sorted(store.keys()) == ["a", "ab", "x", "x/y", "xb", "zB", "zb"]
    assert sorted(store.keys("x")) == ["x", "x/y", "xb"]


def test_only_keys_that_lead_to_where_they_lie_are_listed(routed):
    store, a, b, base = routed
    for beneath in (a, b, base):
        for key in ("a", "zb", "x", "own/x", "own/a", "nowhere"):
            beneath.put(key, b"")
    assert sorted(store.keys()) == ["a", "x", "zb"]


def test_a_key_without_a_route(routed):
    store, *_ = routed
    for beneath in routed[1:]:
        beneath.put("nowhere", b"")
    calls = calls_with_a_key(store)
    assert store.exists("nowhere") is False
    assert store.local_path("nowhere") is None
    store.delete_many(["nowhere"])
    store.sync(["nowhere"])
    for name in {*calls} - {"exists", "local_path", "delete_many", "sync"}:
        store.put("a", b"1")
        with pytest.raises(RejectedKeyError, match="add_route") as caught:
            calls[name]("nowhere")
        assert caught.value.location == "nowhere"
    assert all(beneath.exists("nowhere") for beneath in routed[1:])
    for name in ("exists", "delete_many", "sync"):
        with pytest.raises(InvalidKeyError):
            calls[name](5)


def test_routes_may_be_added(routed):
    store = routed[0]
    last = DictStore()
    store.add_route("", last)
    store.put("nowhere", b"1")
    assert last.get("nowhere") == b"1"
    store.close()
    with pytest.raises(ClosedError):
        last.get("nowhere")


def test_copies_between_stores(routed):
    store = routed[0]
    store.put("a", b"1" * 3_000_000)
    for target in ("a2", "zb", "x"):
        store.copy("a", target)
        assert store.get(target) == b"1" * 3_000_000
    with pytest.raises(KeyNotFoundError):
        store.copy("ax", "zb")
    assert store.get("zb") == b"1" * 3_000_000


def test_removals_are_grouped_by_store(routed):
    store = routed[0]
    groups = []

    class Watching(DictStore):
        def delete_many(self, keys):
            groups.append(list(keys))

    store.add_route("^1", Watching())
    store.add_route("^2", Watching())
    store.delete_many(iter(["1", "2", "1/3", "a", "2/4", "nowhere"]))
    assert sorted(groups) == [["1", "1/3"], ["2", "2/4"]]


def test_one_store_that_fails_to_remove_does_not_keep_the_others(routed):
    class Away(DictStore):
        def delete_many(self, keys):
            raise UnavailableError("away")

    store = routed[0]
    store.add_route("^1", Away())
    for keys in (["1", "a"], ["a", "1"]):
        store.put("a", b"")
        with pytest.raises(UnavailableError):
            store.delete_many(keys)
        assert not store.exists("a")


def test_put_if_absent_and_writers_go_to_the_target(routed):
    store, a, _, base = routed
    assert store.put_if_absent("a", b"1")
    assert not store.put_if_absent("a", b"2")
    with store.writer("x") as sink:
        sink.write(b"3")
    assert (a.get("a"), base.get("own/x"), sink.location) == (b"1", b"3", "x")


def test_what_a_router_can_do(tmp_path):
    files, memory = FilesystemStore(tmp_path), DictStore()
    assert RegexRoutingStore(routes={"a": files}).capabilities == files.capabilities
    assert RegexRoutingStore(routes={"a": files, "b": memory}).capabilities == memory.capabilities
    assert RegexRoutingStore().capabilities == Capabilities()

    class Text(DictStore):
        @property
        def capabilities(self):
            return Capabilities(values="text", list=False)

    mixed = RegexRoutingStore(routes={"a": files, "b": Text()})
    assert (mixed.capabilities.values, mixed.capabilities.list) == ("any", False)
    assert RegexRoutingStore(routes={"b": Text()}).capabilities.values == "text"


def test_values_that_are_no_bytes_are_copied_whole():
    class Anything(DictStore):
        @property
        def capabilities(self):
            return Capabilities(values="any")

        def put(self, key, data):
            super().put(key, repr(data).encode())

        def get(self, key):
            return eval(super().get(key))

    with RegexRoutingStore(routes={"^a": Anything(), "^b": Anything()}) as store:
        store.put("a", {"x": 1})
        store.copy("a", "b")
        assert store.get("b") == {"x": 1}


def test_a_store_in_two_routes_lists_each_key_once():
    shared = DictStore()
    with RegexRoutingStore(shared, [("^a", shared), ("^b", shared)]) as store:
        store.put("a", b"")
        store.put("b", b"")
        assert sorted(store.keys()) == ["a", "b"]


def test_all_stores_are_closed_also_when_one_fails_to():
    class Stuck(DictStore):
        def close(self):
            raise UnavailableError("stuck")

    stores = [DictStore(), Stuck(), DictStore(), DictStore()]
    router = RegexRoutingStore(stores[0], [("a", stores[1]), ("b", stores[2]), ("c", stores[3])])
    with pytest.raises(UnavailableError):
        router.close()
    for beneath in (stores[0], stores[2], stores[3]):
        with pytest.raises(ClosedError):
            beneath.get("key")
    for call in (
        router.keys,
        lambda: router.exists("z"),
        router.leftovers,
        lambda: router.get("a"),
    ):
        with pytest.raises(ClosedError):
            call()


def test_leftovers_say_whose_they_are(tmp_path):
    stores = [FilesystemStore(tmp_path / name) for name in "ab"]
    drafts = []
    for beneath in stores:
        beneath.put("key", b"")
        draft = beneath.root_path / ".blobstore-tmp" / ("put-" + "0" * 32)
        draft.write_bytes(b"left")
        drafts.append(draft)
    with RegexRoutingStore(stores[0], [("a", KeyTransformer()), ("b", stores[1])]) as store:
        found = list(store.leftovers())
        assert all(isinstance(left, Leftover) and left.size == 4 for left in found)
        assert sorted(left.name for left in found) == [f"{n}:put-{'0' * 32}" for n in (0, 1)]
        store.remove_leftover(f"1:put-{'0' * 32}")
        store.remove_leftover(f"1:put-{'0' * 32}")
        assert [draft.exists() for draft in drafts] == [True, False]
        for wrong in ("2:x", "put-0", "", "x:y", "0:../x"):
            with pytest.raises(InvalidInputError):
                store.remove_leftover(wrong)


def test_a_router_says_what_it_is():
    store = RegexRoutingStore(DictStore(), {"^a": DictStore()})
    assert repr(store) == "RegexRoutingStore({'^a': DictStore()})"
