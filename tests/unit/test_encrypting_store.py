"""EncryptingStore: keys, what stays hidden, what is bound to what, and the change of keys."""

from __future__ import annotations

import base64
import copy
import os
import pickle
import subprocess
import sys
import traceback

import pytest

from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.errors import (
    ClosedError,
    ConfigError,
    IntegrityError,
    InvalidKeyError,
    NotSupportedError,
)
from blobstore.protocols import Capabilities
from blobstore.testing.object_store import peak_memory
from blobstore.wrappers.encrypt import EncryptingStore
from blobstore.wrappers.encryption_keys import EncryptionKey

OLD = bytes(range(32))
NEW = bytes(range(100, 132))


@pytest.fixture
def beneath():
    with DictStore() as store:
        yield store


# --- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 24, 32])
def test_one_key_in_all_its_forms(beneath, size):
    secret = bytes(range(0xE0, 0xE0 + 32))[:size]  # has both of the odd characters of base64
    EncryptingStore(beneath, secret).put("key", b"data")
    text = base64.b64encode(secret).decode()
    forms = [
        secret,
        bytearray(secret),
        text,
        text.rstrip("="),
        f" {text}\n",
        base64.urlsafe_b64encode(secret).decode(),
        EncryptionKey(secret),
        EncryptionKey(text),
    ]
    for form in forms:
        assert EncryptingStore(beneath, form).get("key") == b"data"


@pytest.mark.parametrize(
    "wrong",
    [b"", b"x" * 15, b"x" * 33, "", "not base64!", "QUJD", "ä" * 24, None, 5, ["x" * 32], {}],
    ids=repr,
)
def test_what_is_no_key(beneath, wrong):
    for make in (
        lambda: EncryptingStore(beneath, wrong),
        lambda: EncryptingStore(beneath, OLD, old_keys=[wrong]),
        lambda: EncryptionKey(wrong),
    ):
        with pytest.raises(ConfigError, match="16, 24 or 32"):
            make()


@pytest.mark.parametrize("keys", [OLD, base64.b64encode(OLD).decode(), EncryptionKey(OLD)])
def test_old_keys_are_a_list(beneath, keys):
    with pytest.raises(ConfigError, match="brackets"):
        EncryptingStore(beneath, NEW, old_keys=keys)


@pytest.mark.parametrize("keys", [None, 5])
def test_old_keys_that_are_no_list(beneath, keys):
    with pytest.raises(ConfigError, match="a list of keys"):
        EncryptingStore(beneath, NEW, old_keys=keys)


@pytest.mark.parametrize("text", [OLD[:16].hex(), OLD[:16].hex().upper() + "\n"])
def test_hexadecimal_is_not_taken_for_base64(text):
    with pytest.raises(ConfigError, match="hexadecimal") as caught:
        EncryptionKey(text)
    assert text[:8] not in str(caught.value)


def test_an_almost_right_key_is_not_repeated():
    wrong = base64.b64encode(OLD).decode()[:-3] + "*!?"
    with pytest.raises(ConfigError) as caught:
        EncryptionKey(wrong)
    shown = "".join(traceback.format_exception(caught.value))
    assert wrong[:8] not in shown
    assert caught.value.__cause__ is None


def test_generated_keys_differ():
    keys = {EncryptingStore.generate_key() for _ in range(10)}
    assert len(keys) == 10
    assert {len(base64.b64decode(key, validate=True)) for key in keys} == {32}


def test_keys_are_compared_by_value_and_never_shown():
    one, same, other = EncryptionKey(OLD), EncryptionKey(OLD), EncryptionKey(NEW)
    assert one == same != other
    assert hash(one) == hash(same)
    assert one != OLD
    assert one.id == same.id != other.id
    assert one.id not in (OLD.hex(), base64.b64encode(OLD).decode())
    for copied in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert copied == one
        assert copied.id == one.id
    for shown in (repr(one), str(one), f"{one}", f"{[one]}"):
        assert not reveals(shown, OLD)


def reveals(text, secret):
    forms = (secret.hex(), base64.b64encode(secret).decode()[:40], repr(secret)[2:30])
    return any(form in text for form in forms)


def test_no_repr_and_no_error_shows_a_key(beneath):
    store = EncryptingStore(beneath, NEW, old_keys=[OLD])
    store.put("key", b"data")
    shown = [repr(store), repr(store.transformer), str(vars(store))]
    for damaged in (b"x" * 100, beneath.get("key")[:-1]):
        beneath.put("key", damaged)
        with pytest.raises(IntegrityError) as caught:
            store.get("key")
        shown.append("".join(traceback.format_exception(caught.value)))
    for text in shown:
        assert not reveals(text, OLD)
        assert not reveals(text, NEW)


def test_a_pickled_store_works_in_another_process(tmp_path):
    with EncryptingStore(FilesystemStore(tmp_path / "root"), NEW, old_keys=[OLD]) as store:
        store.put("key", b"data")
        (tmp_path / "store").write_bytes(pickle.dumps(store))
        code = (
            "import pickle, sys\n"
            "with pickle.load(open(sys.argv[1], 'rb')) as store:\n"
            "    store.put('answer', store.get('key') * 2)\n"
        )
        subprocess.run([sys.executable, "-c", code, tmp_path / "store"], check=True, timeout=60)
        assert store.get("answer") == b"datadata"


# --- what is stored ------------------------------------------------------------------------------


def test_capabilities(beneath):
    capabilities = EncryptingStore(beneath, OLD).capabilities
    assert capabilities.encrypted
    assert capabilities.ranges
    assert capabilities.conditional_writes


def test_nothing_is_to_be_seen_beneath(beneath):
    store = EncryptingStore(beneath, OLD)
    secret = b"the secret words " * 9000
    store.put("a-name", secret)
    with store.writer("b-name") as sink:
        sink.write(secret)
    assert store.put_if_absent("c-name", secret) is True
    assert store.put_if_absent("c-name", b"other") is False
    store.copy("a-name", "d-name")
    stored = [beneath.get(key) for key in beneath.keys()]  # noqa: SIM118
    assert len(stored) == 4
    for each in stored:
        assert b"secret" not in each
        assert OLD[:8] not in each
        assert b"name" not in each
    assert store.get("c-name") == store.get("d-name") == secret


def test_no_two_objects_share_a_stream(beneath):
    store = EncryptingStore(beneath, OLD)
    zeros = bytes(200_000)
    stored = []
    for key in ("a", "a", "b", "b"):  # the same again, too
        store.put(key, zeros)
        stored.append(beneath.get(key))
    pieces = [each[at : at + 16] for each in stored for at in range(46, len(each), 16)]
    assert len(set(pieces)) == len(pieces)
    assert len({each[14:46] for each in stored}) == 4


def test_an_object_is_bound_to_its_key(beneath):
    store = EncryptingStore(beneath, OLD)
    store.put("a", b"pay ten")
    store.put("b", b"pay ten thousand")
    one, other = beneath.get("a"), beneath.get("b")
    beneath.put("a", other)
    beneath.put("b", one)
    beneath.copy("a", "c")
    for key in ("a", "b", "c"):
        for read in (store.get, lambda key: store.get_range(key, 0, 1)):
            with pytest.raises(IntegrityError) as caught:
                read(key)
            assert caught.value.location == key
    beneath.put("a", one)
    beneath.put("b", other)
    assert (store.get("a"), store.get("b")) == (b"pay ten", b"pay ten thousand")


def test_the_bound_key_cannot_run_into_what_is_bound_beside_it(beneath):
    store = EncryptingStore(beneath, OLD)
    for key in ("", "k", "\0", "\ud800", "ключ"):
        store.put(key, key.encode("utf-8", "replace"))
        assert store.get(key) == key.encode("utf-8", "replace")


@pytest.mark.parametrize("wrong", [None, 5, b"bytes"], ids=repr)
def test_wrong_names(beneath, wrong):
    store = EncryptingStore(beneath, OLD)
    for call in (lambda: store.put(wrong, b""), lambda: store.put_if_absent(wrong, b"")):
        with pytest.raises(InvalidKeyError):
            call()


def test_what_was_not_encrypted_is_not_read(beneath):
    store = EncryptingStore(beneath, OLD)
    for plain in (b"", b"plain", b"plain" * 1000, b"BSenc\x01", b"BSenc\x02" + bytes(100)):
        beneath.put("key", plain)
        for read in (store.get, store.open, lambda key: store.source(key).read()):
            with pytest.raises(IntegrityError, match="not written through an EncryptingStore"):
                read("key")


# --- other keys ----------------------------------------------------------------------------------


def test_a_wrong_key_is_a_clear_error(beneath):
    EncryptingStore(beneath, OLD).put("key", b"data")
    stranger = EncryptingStore(beneath, NEW)
    for read in (stranger.get, stranger.open, lambda key: stranger.source(key).read()):
        with pytest.raises(IntegrityError, match="no key with this id") as caught:
            read("key")
        assert EncryptionKey(OLD).id in str(caught.value)
        assert "old_keys" in str(caught.value)
    assert stranger.exists("key")


def test_an_id_does_not_make_a_key(beneath):
    EncryptingStore(beneath, OLD).put("key", b"data")
    stored = beneath.get("key")
    forged = stored[:6] + bytes.fromhex(EncryptionKey(NEW).id) + stored[14:]
    beneath.put("key", forged)
    with pytest.raises(IntegrityError, match="block 0"):
        EncryptingStore(beneath, NEW, old_keys=[OLD]).get("key")


def test_old_keys_read_and_the_first_writes(beneath):
    EncryptingStore(beneath, OLD).put("key", b"old")
    store = EncryptingStore(beneath, NEW, old_keys=[b"x" * 16, OLD])
    assert store.get("key") == b"old"
    assert store.get_range("key", 1, 3) == b"ld"
    store.put("key", b"new")
    assert EncryptingStore(beneath, NEW).get("key") == b"new"


def test_rotate(beneath):
    old = EncryptingStore(beneath, OLD)
    values = {f"a/{n}": bytes([n]) * 100_000 * n for n in range(4)} | {"b": b"", "c": b"c"}
    for key, value in values.items():
        old.put(key, value)
    store = EncryptingStore(beneath, NEW, old_keys=[OLD])
    store.put("c", b"c")
    before = beneath.get("c")
    assert store.rotate("a/") == 4
    assert store.rotate() == 1
    assert store.rotate() == 0
    assert beneath.get("c") == before
    new = EncryptingStore(beneath, NEW)
    assert {key: new.get(key) for key in new.keys()} == values  # noqa: SIM118
    for key in values:
        with pytest.raises(IntegrityError, match="no key with this id"):
            old.get(key)


def test_rotate_goes_on_where_it_was_broken_off(beneath):
    class Interrupted(Exception):
        pass

    class Breaking(EncryptingStore):
        left = 3

        def writer(self, key, size_hint=None):
            if self.left == 0:
                raise Interrupted
            self.left -= 1
            return super().writer(key, size_hint)

    for n in range(8):
        EncryptingStore(beneath, OLD).put(f"k{n}", bytes([n]))
    with pytest.raises(Interrupted):
        Breaking(beneath, NEW, old_keys=[OLD]).rotate()
    store = EncryptingStore(beneath, NEW, old_keys=[OLD])
    assert [store.get(f"k{n}") for n in range(8)] == [bytes([n]) for n in range(8)]
    assert store.rotate() == 5


def test_rotate_does_what_it_can_and_tells_the_rest(beneath):
    for key in "abcd":
        EncryptingStore(beneath, OLD).put(key, key.encode() * 70_000)
    beneath.put("b", beneath.get("b")[:-1])
    beneath.put("c", b"plain")
    store = EncryptingStore(beneath, NEW, old_keys=[OLD])
    damaged = [beneath.get(key) for key in "bc"]
    with pytest.raises(IntegrityError) as caught:
        store.rotate()
    assert caught.value.location == "b"
    assert caught.value.__notes__ == ["2 objects could not be encrypted anew; 2 were"]
    assert [beneath.get(key) for key in "bc"] == damaged
    assert [EncryptingStore(beneath, NEW).get(key)[:1] for key in "ad"] == [b"a", b"d"]


def test_rotate_leaves_alone_what_others_do():
    class Busy(DictStore):
        """Somebody writes `a` and removes `b` when they are opened the second time."""

        opened = 0
        other = None

        def open(self, key):
            file = super().open(key)
            self.opened += 1
            if self.opened == 2:
                self.other.put("a", b"newer")
            if self.opened > 2 and key == "b" and self.exists("b"):
                self.delete("b")
            return file

    beneath = Busy()
    beneath.other = EncryptingStore(beneath, OLD)
    for key in "abc":
        beneath.other.put(key, b"older")
    store = EncryptingStore(beneath, NEW, old_keys=[OLD])
    assert store.rotate() == 2
    assert {key: store.get(key) for key in store.keys()} == {"a": b"newer", "c": b"older"}  # noqa: SIM118


def test_rotate_holds_pieces_only(tmp_path):
    piece = os.urandom(1 << 20)
    with EncryptingStore(FilesystemStore(tmp_path / "root"), OLD) as old:
        with old.writer("key") as sink:
            for _ in range(24):
                sink.write(piece)
        store = EncryptingStore(old.store, NEW, old_keys=[OLD])
        assert peak_memory(lambda: store.rotate()) < 8 << 20
        assert store.get_range("key", 23 << 20, 24 << 20) == piece
        assert list(store.leftovers()) == []


def test_rotate_where_it_cannot_be_done(beneath):
    class Unlisted(DictStore):
        @property
        def capabilities(self):
            return Capabilities(list=False)

        def keys(self, prefix=""):
            raise NotSupportedError("cannot list")

    with EncryptingStore(Unlisted(), OLD) as store, pytest.raises(NotSupportedError):
        store.rotate()
    closed = EncryptingStore(beneath, OLD)
    closed.close()
    with pytest.raises(ClosedError):
        closed.rotate()
