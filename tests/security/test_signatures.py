"""What is signed is bound in every field; only what verifies is unpickled, or signed anew."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import sqlite3
import uuid
from pathlib import Path

import numpy as np
import pytest

from blobstore import BlobStore, UntrustedTypeError
from blobstore.backends.metadata.snapshot import _checksum_text
from blobstore.entry import EntryDraft
from blobstore.errors import BlobStoreError, IntegrityError
from blobstore.maintenance import gc
from blobstore.protocols import Put
from security import attacks
from security.attacks import plant, ran

MINE, THEIRS, OTHER = bytes(range(32)), bytes(32), b"\1" * 32
BACKENDS = ["json", "sqlite"]
HERE = f"{__name__}.Model"


class Model:
    """A class of the user's own: to load it is to run its code."""

    loaded = 0

    def __init__(self, weight=1.0):
        self.weight = weight

    def __eq__(self, other):
        return type(other) is Model and vars(self) == vars(other)

    __hash__ = None

    def __setstate__(self, state):
        Model.loaded += 1
        vars(self).update(state)


@pytest.fixture(autouse=True)
def importable(monkeypatch, tmp_path):
    """Under --import-mode=importlib a test module is not found by its name."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Model, "loaded", 0)


def _this():
    import types

    module = types.ModuleType(__name__)
    module.Model, module.Point = Model, Point
    return module


def opened(path, backend=None, keys=(MINE,), **options):
    return BlobStore(path, backend, signing_keys=keys, **options)


def refused(store, key="k"):
    """The message with which an object is refused; nothing of it ran."""
    before = Model.loaded
    with pytest.raises(UntrustedTypeError) as caught:
        store.get(key)
    assert Model.loaded == before
    assert caught.value.key == key
    return str(caught.value)


# --- what works without asking -------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("addressed", [False, True])
def test_what_you_stored_yourself_just_works(tmp_path, backend, addressed):
    """With the defaults, also in another process's store object."""
    with BlobStore(tmp_path / "s", backend, content_addressable=addressed) as store:
        store["k"] = Model(2.0)
        store["big"] = {"m": Model(3.0), "w": np.arange(20_000.0)}
        key = store.put(Model(4.0))
        assert store["k"] == Model(2.0)
        with pickle.loads(pickle.dumps(store)) as same:
            assert same["k"] == Model(2.0)
    with BlobStore(tmp_path / "s") as store:
        assert store["k"] == Model(2.0)
        assert store["big"]["m"] == Model(3.0)
        assert store[key] == Model(4.0)
        assert all(store.entry(k).signature for k in store)


def test_what_runs_no_code_is_not_signed(tmp_path):
    with BlobStore(tmp_path) as store:
        store.put_many([("a", np.arange(3)), ("t", "text"), ("b", b"bytes")])
        assert [store.entry(key).signature for key in "atb"] == [None] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_others_plain_data_loads_and_classes_do_not(tmp_path, backend):
    plain = {"a": [1, 2.5, None], "when": uuid.UUID(int=5), "w": np.arange(5.0)}
    with opened(tmp_path, backend, (THEIRS,)) as store:
        store.put_many([("k", Model()), ("plain", plain), ("array", np.arange(3))])
    with opened(tmp_path) as store:
        assert "signed by a key that is not yours" in refused(store)
        assert store["array"].sum() == 3
        found = store["plain"]
        assert found["a"] == plain["a"]
        assert found["when"] == plain["when"]
        assert found["w"].tolist() == plain["w"].tolist()


def test_the_message_names_the_type_and_the_ways_on(tmp_path):
    with opened(tmp_path, keys=(THEIRS,)) as store:
        store["k"] = Model()
    with opened(tmp_path) as store:
        message = refused(store)
        for part in (HERE, "'k'", "BLOBSTORE_SIGNING_KEY", f"trusted_types=['{HERE}']", "'allow'"):
            assert part in message
    # Each of which works:
    for options in (
        {"keys": (MINE, THEIRS)},
        {"trusted_types": [HERE]},
        {"trusted_types": [f"{__name__.partition('.')[0]}.*"]},
        {"pickle": "allow"},
    ):
        with opened(tmp_path, **options) as store:
            assert store["k"] == Model()


def test_deny_loads_no_pickle_whoever_signed_it(tmp_path):
    with opened(tmp_path, pickle="deny") as store:
        store["k"] = Model()
        store["a"] = np.arange(3)
        assert store["a"].sum() == 3
        assert "pickle='deny'" in refused(store)


def test_trusted_types_are_kept_by_a_pickled_store(tmp_path):
    with opened(tmp_path, keys=(THEIRS,)) as store:
        store["k"] = Model()
    with opened(tmp_path, trusted_types=[HERE]) as store, pickle.loads(pickle.dumps(store)) as same:
        assert same["k"] == Model()


# --- every field that is bound -------------------------------------------------------------------


def in_json(path, change):
    """Edit the document, and its checksum, with the store closed."""
    document = next(path.glob("cache_metadata.json"))
    data = document.read_bytes()
    body, mark, _ = data.rpartition(b',\n  "checksum": "')
    changed = change(body.decode())
    assert changed != body.decode()
    document.write_bytes(
        changed.encode() + mark + _checksum_text(changed.encode()).encode() + b'"\n}\n'
    )


def in_sqlite(path, statement, *values):
    with sqlite3.connect(path / "cache_metadata.db") as connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


def edit(pattern, new):
    return lambda text: re.sub(pattern, new, text, count=1)


ALTERED = {
    "key": (edit('"k": {"id"', '"other": {"id"'), ("UPDATE entries SET key='other'",)),
    "commit_id": (
        edit('"commit_id":"[0-9a-f]{4}', '"commit_id":"0000'),
        ("UPDATE entries SET commit_id='0000'",),
    ),
    "data_type": (
        edit('"data_type":"object"', '"data_type":"model"'),
        ("UPDATE entries SET data_type='model'",),
    ),
    "info": (
        edit('"info":{', '"info":{"x":1,'),
        ("""UPDATE entries SET info='{"x":1}'""",),
    ),
    "metadata": (
        edit('"metadata":{"good":false}', '"metadata":{"good":true}'),
        ("""UPDATE entries SET metadata='{"good":true}'""",),
    ),
    "metadata, its spelling": (
        edit('"metadata":{"good":false}', '"metadata_text":"{\\\\"good\\\\": false}"'),
        ("""UPDATE entries SET metadata='{"good": false}'""",),
    ),
    "part's handler": (
        edit('("codec":"none",)"handler":"pickle"', r'\1"handler":"other"'),
        ("UPDATE blobs SET handler='other'",),
    ),
    "part's format version": (
        edit('"format_version":1,"created_us"', '"format_version":2,"created_us"'),
        ("UPDATE blobs SET format_version=2",),
    ),
    "signature, a digit": (
        edit('"signature":"b3:([0-9a-f]{8}):....', r'"signature":"b3:\1:0000'),
        ("UPDATE entries SET signature=substr(signature,1,12)||'0000'||substr(signature,17)",),
    ),
    "signature, cut": (
        edit('"signature":"(b3:[0-9a-f]{8}:[0-9a-f]{8})[0-9a-f]*"', r'"signature":"\1"'),
        ("UPDATE entries SET signature=substr(signature,1,20)",),
    ),
}
REASONS = {
    "removed": (
        edit(',"signature":"[^"]*"', ""),
        ("UPDATE entries SET signature=NULL",),
        "not signed",
    ),
    "of another key": (
        edit('"signature":"b3:[0-9a-f]{8}', '"signature":"b3:12345678'),
        ("UPDATE entries SET signature='b3:12345678'||substr(signature,12)",),
        "signed by a key that is not yours (12345678)",
    ),
    "of another kind": (
        edit('"signature":"b3:', '"signature":"rsa:'),
        ("UPDATE entries SET signature='rsa:'||substr(signature,4)",),
        "of a kind that is not known",
    ),
    "empty": (
        edit('"signature":"[^"]*"', '"signature":""'),
        ("UPDATE entries SET signature=''",),
        "of a kind that is not known",
    ),
}


def alter(path, backend, in_document, in_database):
    if backend == "json":
        in_json(path, in_document)
    else:
        in_sqlite(path, *in_database)


def stored(path, backend, obj=None, **options):
    with opened(path, backend, inline_max_bytes=0, compression="none", **options) as store:
        store.put(Model() if obj is None else obj, key="k", metadata={"good": False})
        assert store.get("k") == (Model() if obj is None else obj)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("field", ALTERED)
def test_an_altered_field_is_refused_with_the_reason(tmp_path, backend, field):
    stored(tmp_path, backend)
    alter(tmp_path, backend, *ALTERED[field])
    with opened(tmp_path) as store:
        assert "does not match" in refused(store, "other" if field == "key" else "k")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", REASONS)
def test_an_altered_signature_is_refused_with_the_reason(tmp_path, backend, what):
    in_document, in_database, reason = REASONS[what]
    stored(tmp_path, backend)
    alter(tmp_path, backend, in_document, in_database)
    with opened(tmp_path) as store:
        assert reason in refused(store)


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_store_id_is_refused(tmp_path, backend):
    """As when entries of one store are copied into another."""
    stored(tmp_path / "a", backend)
    with (
        opened(tmp_path / "a") as one,
        opened(tmp_path / "b", backend, inline_max_bytes=0) as other,
    ):
        entry = one.entry("k")
        (part,) = entry.parts
        other._objects.put(part.blob.location, one._objects.get(part.blob.location))
        draft = EntryDraft(
            "k", entry.handler, entry.data_type, entry.info_text, entry.metadata_text,
            entry.parts, entry.size, 1, entry.signature,
        )  # fmt: skip
        other._index.commit([Put(draft)], entry.commit_id)
        assert other.entry("k").signature == entry.signature
        assert "does not match" in refused(other)
        assert one["k"] == Model()


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_bytes_with_their_checksum_are_refused(tmp_path, backend):
    """The blob and its row are altered together, as whoever writes to both can do."""
    stored(tmp_path, backend)
    from blake3 import blake3

    payload = attacks.PROVEN["os.system"]
    with opened(tmp_path) as store:
        location = store.entry("k").locations[0]
        size = store.entry("k").size
    payload += b"\0" * (size - len(payload))
    assert len(payload) == size
    (blob,) = (tmp_path / "blobs").rglob(location)
    blob.write_bytes(payload)
    with opened(tmp_path) as store, pytest.raises(IntegrityError):
        store.get("k")  # before its signature is even looked at
    checksum = f"blake3:{blake3(payload).hexdigest()}"
    alter(
        tmp_path,
        backend,
        edit('"checksum":"blake3:[0-9a-f]*"', f'"checksum":"{checksum}"'),
        ("UPDATE blobs SET checksum=?", checksum),
    )
    with opened(tmp_path) as store:
        assert "does not match" in refused(store)
        assert not ran()
    with opened(tmp_path, pickle="allow") as store:
        store.get("k")
    assert ran()  # so it was the signature that kept it from running


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("in_document", "in_database"),
    [
        (edit('"handler":"pickle","data_type"', '"handler":"mapping","data_type"'),
         ("UPDATE entries SET handler='mapping'",)),
        (edit('"parts":\\[{"name":"data"', '"parts":[{"name":"skeleton"'),
         ("UPDATE parts SET name='skeleton'",)),
        (edit('"codec":"none"', '"codec":"gzip"'), ("UPDATE blobs SET codec='gzip'",)),
    ],
    ids=["handler", "part's name", "part's codec"],
)  # fmt: skip
def test_what_changes_how_it_is_read_runs_nothing(tmp_path, backend, in_document, in_database):
    """There the reading fails before it comes to names."""
    stored(tmp_path, backend)
    alter(tmp_path, backend, in_document, in_database)
    with opened(tmp_path) as store:
        assert "does not match" in store._signer.doubt(store.entry("k"))
        with pytest.raises(BlobStoreError):
            store.get("k")
        assert Model.loaded == 1  # by the test itself, before


def test_a_signed_handler_does_not_make_a_weak_checksum_trusted(tmp_path):
    """Only what a cryptographic checksum binds is run, whoever signed it."""
    import xxhash

    with opened(tmp_path, inline_max_bytes=0) as store:
        plant(store, "k", attacks.PROVEN["os.system"])
        entry = store.entry("k")
        (part,) = entry.parts
        payload = store._objects.get(part.blob.location)
        weak = part.blob._replace(
            location=part.blob.location.replace(".pkl", ".pickle"),
            checksum=f"xxh3-128:{xxhash.xxh3_128(payload).hexdigest()}",
        )
        store._objects.put(weak.location, payload)
        draft = EntryDraft("k", "pickle", "object", "{}", "{}", (part._replace(blob=weak),), 1, 1)
        draft = draft._replace(signature=store._signer.sign(draft, "k", "c" * 32))
        store._index.commit([Put(draft)], "c" * 32)
        assert store._signer.doubt(store.entry("k")) is None
        refused(store)
        assert not ran()


# --- changes that sign anew ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inline", [0, None])
def test_copies_moves_and_metadata_stay_loadable(tmp_path, backend, inline):
    with opened(tmp_path, backend, inline_max_bytes=inline) as store:
        store.put(Model(5.0), key="k", metadata={"a": 1})
        store.copy("k", "copy")
        store.copy("k", "copy")  # onto another
        assert store.update_metadata("copy", {"b": 2})
        assert store.update_metadata("copy", {"c": 3}, replace=True)
        store.move("copy", "moved")
        store["k"] = Model(6.0)
        assert store["moved"] == Model(5.0)
        assert store["k"] == Model(6.0)
        assert store.entry("moved").metadata == {"c": 3}
        gc(store._index, store._objects, dry_run=False, grace=0.0)
    with opened(tmp_path) as store:
        assert store["moved"] == Model(5.0)
        assert store.verify(deep=True).ok


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", ["copy", "move", "update_metadata"])
def test_what_did_not_verify_is_never_signed(tmp_path, backend, change):
    with opened(tmp_path, backend, (THEIRS,)) as store:
        store["k"] = Model()
    with opened(tmp_path) as store:
        plant(store, "planted", attacks.PROVEN["os.system"])
        for key in ("k", "planted"):
            if change == "update_metadata":
                store.update_metadata(key, {"x": 1})
            else:
                getattr(store, change)(key, "new")
                key = "new"
            assert store.entry(key).signature is None
            with pytest.raises(UntrustedTypeError, match="not signed"):
                store.get(key)
        assert not ran()
        store.gc(dry_run=False, grace=0.0)
        store.verify(deep=True)
        assert all(entry.signature is None or "b3:" in entry.signature
                   for entry in map(store.entry, store))  # fmt: skip
        with pytest.raises(UntrustedTypeError):
            store.get("new" if change != "update_metadata" else "k")


def test_a_copy_by_another_takes_nothing_from_the_owner(tmp_path):
    with opened(tmp_path, keys=(THEIRS,)) as store:
        store["k"] = Model()
    with opened(tmp_path) as store:
        store.copy("k", "mine")
    with opened(tmp_path, keys=(THEIRS,)) as store:
        assert store["k"] == Model()


@pytest.mark.parametrize("backend", BACKENDS)
def test_concurrent_metadata_changes_lose_nothing(tmp_path, backend):
    from concurrent.futures import ThreadPoolExecutor

    with opened(tmp_path, backend) as store:
        store["k"] = Model()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: store.update_metadata("k", {f"n{n}": n}), range(40)))
        assert store.entry("k").metadata == {f"n{n}": n for n in range(40)}
        assert store["k"] == Model()


def test_put_many_signs_each(tmp_path):
    with opened(tmp_path, "sqlite") as store:
        store.put_many([("a", Model(1)), ("b", Model(2)), ("c", {"m": Model(3)})])
        assert store.get_many(["a", "b", "c"]) == {
            "a": Model(1), "b": Model(2), "c": {"m": Model(3)},
        }  # fmt: skip


# --- content addressing --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [10, 3_000_000])
def test_pickles_are_shared_by_their_bytes(tmp_path, backend, size):
    """Whoever stored them first, and under which key."""
    obj = {"m": Model(), "data": np.random.default_rng(1).bytes(size)}
    options = {"content_addressable": True, "inline_max_bytes": 0}
    with opened(tmp_path, backend, (THEIRS,), **options) as store:
        store["a"] = obj
    with opened(tmp_path, **options) as store:
        store["b"] = obj
        store["c"] = obj
        assert store.stats()["blobs"] == 1
        assert store["b"] == store["c"] == obj
        refused(store, "a")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_planted_blob_is_not_signed_for_its_digest(tmp_path, backend):
    """An attacker's row says that its blob has the digest of what the reader is about to store."""
    options = {"content_addressable": True, "inline_max_bytes": 0, "compression": "none"}
    with opened(tmp_path, backend, **options) as store:
        store["k"] = Model()
        (blob,) = store._index.blobs()
        payload = attacks.PROVEN["os.system"]
        plant(store, "planted", payload)
        (planted,) = (b for b in store._index.blobs() if b.digest is None)
        store._objects.put(blob.location, payload)

    # Its own row is altered to the attacker's bytes, with their checksum, under the old digest.
    def swap(text):
        return text.replace(blob.checksum, planted.checksum).replace(
            f'"size":{blob.size},"checksum":"{planted.checksum}"',
            f'"size":{planted.size},"checksum":"{planted.checksum}"',
        )

    alter(
        tmp_path, backend, swap,
        ("UPDATE blobs SET checksum=?, size=? WHERE location=?", planted.checksum, planted.size,
         blob.location),
    )  # fmt: skip
    with opened(tmp_path, **options) as store:
        assert store._index.find_digests([blob.digest])[blob.digest].checksum == planted.checksum
        store["again"] = Model()
        assert store["again"] == Model()
        refused(store)
        assert not ran()


def test_a_kept_entry_of_another_is_replaced_and_keeps_its_metadata(tmp_path):
    options = {"content_addressable": True, "inline_max_bytes": 0}
    with opened(tmp_path, keys=(THEIRS,), **options) as store:
        key = store.put(Model(), metadata={"by": "them"})
        assert store.put(Model()) == key
        version = store.entry(key).version
        assert version == 1
    with opened(tmp_path, **options) as store:
        refused(store, key)
        assert store.put(Model()) == key
        assert store[key] == Model()
        assert store.entry(key).metadata == {"by": "them"}
        assert store.put(Model()) == key
        assert store.entry(key).version == 2
        assert json.loads(store.entry(key).metadata_text) == {"by": "them"}


def test_equal_content_of_equal_writers_stays_one_entry(tmp_path):
    with opened(tmp_path, content_addressable=True) as store:
        keys = {store.put(Model()) for _ in range(3)}
        keys |= set(store.put_many([(None, Model()), (None, Model())]))
        assert len(keys) == len(store) == 1
        assert store.entry(*keys).version == 1


# --- behind the store's back ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inline", [0, None])
def test_update_many_signs_what_was_yours_and_nothing_else(tmp_path, backend, inline):
    with opened(tmp_path, backend, (THEIRS,), inline_max_bytes=inline) as store:
        store.put(Model(), key="theirs", metadata={"n": 1})
    with opened(tmp_path, inline_max_bytes=inline) as store:
        store.put_many([("mine", Model(2.0), {"n": 1}), ("array", np.arange(3), {"n": 1})])
        plant(store, "planted", attacks.PROVEN["os.system"])
        assert store.update_many("@size >= 0", {"seen": True}) == 4
        assert store.update_many("n = 1", {"n": 2}, replace=True) == 3
        assert store["mine"] == Model(2.0)
        assert {key for key in store if store.entry(key).signature} == {"mine"}
        refused(store, "theirs")
        refused(store, "planted")
        assert store.delete_many(where="n = 2") == 3
        assert not ran()


@pytest.mark.parametrize("backend", BACKENDS)
def test_metadata_altered_by_another_is_not_signed_by_your_next_change(tmp_path, backend):
    """Neither that of another key's owner, nor that of somebody who edits the index."""
    stored(tmp_path, backend)
    with opened(tmp_path, keys=(THEIRS,)) as store:
        store.update_metadata("k", {"by": "them"})
    with opened(tmp_path) as store:
        store.update_metadata("k", {"by": "me"})
        store.copy("k", "copy")
        assert store.entry("k").signature is store.entry("copy").signature is None
        refused(store)
        store.delete("copy")
        store.put(Model(), key="k", metadata={"good": False})
    alter(tmp_path, backend, *ALTERED["metadata"])
    with opened(tmp_path) as store:
        store.update_metadata("k", {"by": "me"})
        assert "not signed" in refused(store)


def swapped_in_json(path):
    document = next(path.glob("cache_metadata.json"))
    with opened(path) as store:
        (one,), (two,) = store.entry("k").locations, store.entry("l").locations
    assert document.read_text().count(one) >= 2

    def change(text):
        return re.sub(
            rf'("parts":[^\n]*?)({one}|{two})',
            lambda match: match[1] + (two if match[2] == one else one),
            text,
        )

    in_json(path, change)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_signed_entries_do_not_change_places(tmp_path, backend):
    """Neither their blobs, nor all that is known of them."""
    stored(tmp_path, backend)
    with opened(tmp_path, inline_max_bytes=0, compression="none") as store:
        store["l"] = Model(2.0)
        assert store["l"] == Model(2.0)
    if backend == "json":
        swapped_in_json(tmp_path)
    else:
        with sqlite3.connect(tmp_path / "cache_metadata.db") as connection:
            (a, x), (b, y) = connection.execute("SELECT entry_id, location FROM parts").fetchall()
            for entry, location in ((a, y), (b, x)):
                statement = "UPDATE parts SET location=? WHERE entry_id=?"
                assert connection.execute(statement, (location, entry)).rowcount == 1
        connection.close()
    with opened(tmp_path) as store:
        for key in "kl":
            assert "does not match" in refused(store, key)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_signed_entry_is_not_replayed_under_another_key(tmp_path, backend):
    stored(tmp_path, backend)
    with opened(tmp_path) as store:
        entry = store.entry("k")
        draft = EntryDraft(
            "replayed", entry.handler, entry.data_type, entry.info_text, entry.metadata_text,
            entry.parts, entry.size, 1, entry.signature,
        )  # fmt: skip
        store._index.commit([Put(draft)], entry.commit_id)
        assert "does not match" in refused(store, "replayed")
        store.move("replayed", "k")
        assert "not signed" in refused(store)


@dataclasses.dataclass
class Point:
    x: int = 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("handler", ["pickle", "mapping", "skops", "xarray", "bytes", "text"])
def test_a_dataclass_is_not_read_by_another_handler(tmp_path, backend, handler):
    stored(tmp_path, backend, Point(3))
    alter(
        tmp_path, backend,
        edit('"handler":"dataclass","data_type"', f'"handler":"{handler}","data_type"'),
        ("UPDATE entries SET handler=?", handler),
    )  # fmt: skip
    with opened(tmp_path) as store:
        assert "does not match" in store._signer.doubt(store.entry("k"))
        with pytest.raises(BlobStoreError):
            store.get("k")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inline", [0, None])
def test_a_commit_that_is_repeated_keeps_its_signature(tmp_path, backend, inline):
    """Its answer was lost, so the same is asked again."""
    with opened(tmp_path, backend, inline_max_bytes=inline) as store:
        commit = store._index.commit
        asked = []

        def twice(operations, commit_id):
            asked.append(commit_id)
            commit(operations, commit_id)
            return commit(operations, commit_id)

        store._index.commit = twice
        store["k"] = Model(2.0)
        store.put_many([("a", Model()), ("b", {"m": Model()})])
        store.update_metadata("k", {"a": 1})
        store.update_many("a = 1", {"b": 2})
        store.copy("k", "copy")
        store.move("copy", "moved")
        assert len(asked) == 6
        assert store.entry("k").metadata == {"a": 1, "b": 2}
        assert store.get_many(["k", "moved"]) == {"k": Model(2.0), "moved": Model(2.0)}
        assert all(store._signer.doubt(entry) is None for entry in store.query())


@pytest.mark.parametrize("policy", ["deny", "signed"])
def test_every_way_to_read_asks_first(tmp_path, policy):
    with opened(tmp_path) as store:
        store["plain"] = np.arange(3)
        plant(store, "k", attacks.PROVEN["os.system"])
    with opened(tmp_path, pickle=policy) as store:
        for read in (
            lambda: store.get("k"),
            lambda: store["k"],
            lambda: store.get_many(["plain", "k"]),
            lambda: dict(store.items()),
            lambda: store.pop("k"),
        ):
            with pytest.raises(UntrustedTypeError):
                read()
        assert "k" in store
        assert store.verify(deep=True).ok
        if policy == "signed":  # the bytes as they are are for everybody
            with store.open("k") as file:
                assert file.read() == attacks.PROVEN["os.system"]
            assert store.get_file("k", tmp_path / "f").read_bytes() == attacks.PROVEN["os.system"]
        else:
            with pytest.raises(UntrustedTypeError, match="deny"):
                store.open("k")
        assert not ran()


def test_nothing_is_left_in_the_folder(tmp_path):
    """Of the user's keys, least of all."""
    with opened(tmp_path / "s") as store:
        store["k"] = Model()
        assert MINE.hex() not in repr(store)
    for path in Path(tmp_path).rglob("*"):
        if path.is_file():
            assert MINE.hex().encode() not in path.read_bytes()
