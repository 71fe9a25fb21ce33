"""Signing keys: where they are, who may see them, how they are made and changed; statements."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore import BlobStore, signing
from blobstore.entry import Blob, EntryDraft, Part
from blobstore.errors import ConfigError, UntrustedTypeError
from blobstore.signing import (
    VARIABLE,
    Keyring,
    Signer,
    key_file,
    parse,
    read_file,
    rotate,
    statement,
)


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    """A user without any keys yet."""
    folder = tmp_path / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    monkeypatch.delenv(VARIABLE, raising=False)
    signing._warn_unsigned.cache_clear()
    return folder


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# --- the file ------------------------------------------------------------------------------------


def test_it_is_below_the_users_configuration(tmp_path, monkeypatch):
    assert key_file() == tmp_path / "config/blobstore/signing.keys"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert key_file() == tmp_path / "home/.config/blobstore/signing.keys"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert key_file() == tmp_path / "home/.config/blobstore/signing.keys"


def test_it_is_made_when_it_is_first_needed(tmp_path):
    with BlobStore(tmp_path / "s") as store:
        store["a"] = b"bytes"
        assert store["a"] == b"bytes"
        assert not key_file().exists()
        store["p"] = {"plain": 1}
        assert key_file().exists()
    (line,) = key_file().read_text().splitlines()
    assert len(bytes.fromhex(line)) == 32
    assert mode(key_file()) == 0o600
    assert mode(key_file().parent) == 0o700
    assert {p.name for p in key_file().parent.iterdir()} == {"signing.keys", "signing.keys.lock"}


def test_reading_makes_no_key(tmp_path, monkeypatch):
    with BlobStore(tmp_path / "s", signing_keys=[bytes(32)]) as store:
        store["p"] = {"plain": 1}
    with BlobStore(tmp_path / "s", readonly=True) as store:
        assert store["p"] == {"plain": 1}
    assert not key_file().parent.exists()


def test_a_umask_that_lets_everybody_in_does_not(tmp_path):
    before = os.umask(0)
    try:
        Keyring().signing_key()
    finally:
        os.umask(before)
    assert mode(key_file()) == 0o600
    assert mode(key_file().parent) == 0o700


def test_processes_that_make_it_at_once_agree(config):
    code = "from blobstore.signing import Keyring; print(Keyring().signing_key().secret.hex())"
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    answers = {child.communicate(timeout=60)[0].strip() for child in children}
    assert all(child.returncode == 0 for child in children)
    assert answers == {key_file().read_text().strip()}


def test_threads_that_make_it_at_once_agree():
    rings = [Keyring() for _ in range(8)]
    start = threading.Barrier(8)
    found = []

    def make(ring):
        start.wait()
        found.append(ring.signing_key())

    threads = [threading.Thread(target=make, args=(ring,)) for ring in rings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o777])
def test_a_file_that_others_can_read_or_write_is_refused(tmp_path, bits):
    Keyring().signing_key()
    key_file().chmod(bits)
    with pytest.raises(ConfigError, match="chmod 600"):
        Keyring().signing_key()
    with BlobStore(tmp_path / "s") as store, pytest.raises(ConfigError, match="chmod 600"):
        store["p"] = {"plain": 1}
    with pytest.raises(ConfigError, match="chmod 600"):
        rotate()


def test_a_folder_that_others_can_write_is_refused():
    Keyring().signing_key()
    key_file().parent.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod 700"):
        Keyring().signing_key()
    key_file().unlink()
    with pytest.raises(ConfigError, match="chmod 700"):
        Keyring().signing_key()
    assert not key_file().exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_belongs_to_another_user_is_refused(what):
    Keyring().signing_key()
    os.chown(key_file() if what == "file" else key_file().parent, 12345, -1)
    with pytest.raises(ConfigError, match="12345"):
        Keyring().signing_key()


def test_a_refused_file_is_a_reason_when_reading(tmp_path):
    """Plain data is read all the same."""
    with BlobStore(tmp_path / "s") as store:
        store.put_many([("plain", {"a": 1}), ("thing", threading.BrokenBarrierError)])
        assert store["thing"] is threading.BrokenBarrierError
    key_file().chmod(0o644)
    with BlobStore(tmp_path / "s") as store:
        assert store["plain"] == {"a": 1}
        with pytest.raises(UntrustedTypeError, match=r"could not be checked, .*chmod 600"):
            store["thing"]


def test_a_link_to_a_file_of_ones_own_is_fine(tmp_path):
    key_file().parent.mkdir(parents=True, mode=0o700)
    real = tmp_path / "dotfiles"
    real.write_text("ab" * 32 + "\n")
    real.chmod(0o600)
    key_file().symlink_to(real)
    assert Keyring().signing_key().secret == b"\xab" * 32


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"# nothing\n", b"ab" * 31, b"ab" * 33, b"xy" * 32, b"\xff" * 64,
                b"ab" * 32 + b"\nnonsense\n"]
)  # fmt: skip
def test_a_file_of_no_keys_is_refused_and_not_shown(content):
    key_file().parent.mkdir(parents=True, mode=0o700)
    key_file().write_bytes(content)
    key_file().chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        Keyring().signing_key()
    assert "abab" not in str(caught.value)
    assert "xyxy" not in str(caught.value)


def test_comments_and_empty_lines_are_passed_over():
    keys = parse(["# mine, 2024", "", f"  {'ab' * 32}  ", "cd" * 32], "here")
    assert [key.secret for key in keys] == [b"\xab" * 32, b"\xcd" * 32]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_without_a_place_for_a_key_objects_are_stored_unsigned(tmp_path, config, caplog):
    config.mkdir(mode=0o500)
    _stores_unsigned(tmp_path, caplog)


def test_where_the_configuration_is_a_file(tmp_path, config, caplog):
    config.write_text("not a folder")
    _stores_unsigned(tmp_path, caplog)


def test_a_user_without_a_home(tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(signing.Path, "home", no_home)
    _stores_unsigned(tmp_path, caplog)


def _stores_unsigned(tmp_path, caplog):
    with BlobStore(tmp_path / "s") as store:
        store["a"] = {"plain": 1}
        store["b"] = {"plain": 2}
        assert store["a"] == {"plain": 1}
        assert store.entry("a").signature is None
    warnings = [record.getMessage() for record in caplog.records if "signature" in record.message]
    assert len(warnings) == 1
    assert "XDG_CONFIG_HOME" in warnings[0]


# --- rotation, and the variable ------------------------------------------------------------------


def test_after_a_rotation_old_signatures_still_verify(tmp_path):
    with BlobStore(tmp_path / "s") as store:
        store["old"] = threading.BrokenBarrierError
        first = store.entry("old").signature.split(":")[1]
        new = rotate()
        store["still"] = threading.BrokenBarrierError  # an open store goes on with its key
    with BlobStore(tmp_path / "s") as store:
        store["new"] = threading.BrokenBarrierError
        names = [store.entry(key).signature.split(":")[1] for key in ("old", "new")]
        assert names == [first, new]
        for key in store:
            assert store[key] is threading.BrokenBarrierError
    assert len(read_file(key_file())) == 2
    assert mode(key_file()) == 0o600


def test_an_open_store_learns_of_a_new_key(tmp_path):
    with BlobStore(tmp_path / "s") as reader, BlobStore(tmp_path / "s") as writer:
        reader["a"] = {"x": 1}
        assert reader["a"] == {"x": 1}
        rotate()
        fresh = BlobStore(tmp_path / "s")
        fresh["b"] = threading.BrokenBarrierError
        assert reader["b"] is threading.BrokenBarrierError
        assert writer["b"] is threading.BrokenBarrierError
        fresh.close()


def test_old_keys_can_be_dropped(tmp_path):
    with BlobStore(tmp_path / "s") as store:
        store.put_many([("plain", {"a": 1}), ("thing", threading.BrokenBarrierError)])
    rotate(drop_old=True)
    with BlobStore(tmp_path / "s") as store:
        assert store["plain"] == {"a": 1}
        with pytest.raises(UntrustedTypeError, match="not yours"):
            store["thing"]


def test_the_variable_takes_the_place_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{'ab' * 32},{'cd' * 32}")
    ring = Keyring()
    assert ring.signing_key().secret == b"\xab" * 32
    assert ring.find(signing.make_key(b"\xcd" * 32).id) is not None
    assert not key_file().exists()
    with pytest.raises(ConfigError, match=VARIABLE):
        rotate()
    monkeypatch.setenv(VARIABLE, "ab" * 31)
    with pytest.raises(ConfigError, match=VARIABLE) as caught:
        Keyring().signing_key()
    assert "abab" not in str(caught.value)


@pytest.mark.parametrize(
    "keys", [[], [b"short"], ["ab" * 31], ["xy" * 32], [3], [None], "ab" * 32, bytes(32)]
)
def test_given_keys_that_are_none(tmp_path, keys):
    with pytest.raises(ConfigError):
        BlobStore(tmp_path / "s", signing_keys=keys)


def test_keys_may_be_given_as_bytes_or_text(tmp_path):
    with BlobStore(tmp_path, signing_keys=[b"\xab" * 32]) as store:
        store["t"] = threading.BrokenBarrierError
    with BlobStore(tmp_path, signing_keys=["cd" * 32, "AB" * 32]) as store:
        assert store["t"] is threading.BrokenBarrierError
    assert not key_file().exists()


# --- statements ----------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
PARTS = st.lists(
    st.builds(
        lambda name, checksum, codec, handler, version: Part(
            name, Blob("where", 1, checksum, codec, handler, version)
        ),
        TEXT, TEXT, TEXT, TEXT, st.integers(0, 3),
    ),
    max_size=3,
).map(tuple)  # fmt: skip
DRAFTS = st.builds(
    EntryDraft, key=TEXT, handler=TEXT, data_type=TEXT, info_text=TEXT, metadata_text=TEXT,
    parts=PARTS, size=st.just(1), now_us=st.just(1),
)  # fmt: skip


def _signed(store_id, key, commit_id, draft):
    parts = [(p.name, p.blob.checksum, p.blob.codec, p.blob.handler, p.blob.format_version)
             for p in draft.parts]  # fmt: skip
    texts = (draft.handler, draft.data_type, draft.info_text, draft.metadata_text)
    return store_id, key, commit_id, texts, parts


@given(TEXT, TEXT, TEXT, DRAFTS, TEXT, TEXT, TEXT, DRAFTS)
def test_equal_statements_are_of_equal_entries(s1, k1, c1, d1, s2, k2, c2, d2):
    same = _signed(s1, k1, c1, d1) == _signed(s2, k2, c2, d2)
    assert (statement(s1, k1, c1, d1) == statement(s2, k2, c2, d2)) == same


@given(st.lists(TEXT, min_size=2, max_size=2), st.integers(0, 8))
def test_text_cannot_wander_from_field_to_field(texts, cut):
    joined = "".join(texts)
    one = EntryDraft("k", joined[:cut], joined[cut:], "{}", "{}", (), 1, 1)
    other = EntryDraft("k", *texts, "{}", "{}", (), 1, 1)
    same = (joined[:cut], joined[cut:]) == tuple(texts)
    assert (statement("s", "k", "c", one) == statement("s", "k", "c", other)) == same


def test_a_statement_never_changes():
    """Signatures of older versions have to verify for ever."""
    draft = EntryDraft(
        "runs/ü", "pickle", "object", '{"type":"x"}', '{"a":1}',
        (Part("data", Blob("here", 3, "blake3:00", "lz4", "pickle", 1)),), 3, 1,
    )  # fmt: skip
    wanted = (
        'blobstore:entry:1:5,6,6,6,6,12,7,4,9,3,6,1:storeruns/ücommitpickleobject{"type":"x"}{"a":1}'
        "datablake3:00lz4pickle1"
    )
    assert statement("store", "runs/ü", "commit", draft) == wanted.encode()
    signed = Signer("store", Keyring([bytes(32)])).sign(draft, "runs/ü", "commit")
    assert signed == (
        "b3:2ada83c1:af32b3f1fe2f44d9957c5607455c23a2fb1e2e4253a1166ddefce84f9cf83178"
    )
