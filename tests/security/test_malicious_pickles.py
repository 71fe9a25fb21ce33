"""Malicious pickles run nothing with default settings, and are refused as what they are."""

from __future__ import annotations

import contextlib
import datetime
import fractions
import pathlib
import pickle
import tracemalloc
import uuid
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from blobstore import BlobStore, UntrustedTypeError
from blobstore.errors import BlobStoreError, ConfigError, DecodeError
from blobstore.handlers.unpickling import load_untrusted
from blobstore.trust import Trust, TypePatterns
from security import attacks
from security.attacks import MARKER, PROVEN, UNPROVEN, plant, ran

NUMPY = attacks.numpy_attacks()
EVERY = PROVEN | UNPROVEN | NUMPY


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", PROVEN)
def test_the_attack_works_on_plain_pickle(name):
    if "harmless module" in name and not hasattr(pathlib, "os"):
        pytest.skip("pathlib is a package since Python 3.13")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kept = pickle.loads(PROVEN[name])
            if hasattr(kept, "wait"):
                kept.wait()
            elif hasattr(kept, "connection"):
                kept.connection.close()
            elif hasattr(kept, "read"):
                kept.read()
                kept.close()  # which waits for the process, that would else be found unclosed later
        except Exception:
            pass  # what counts is what happened before
        finally:
            kept = None
    assert ran()


@pytest.mark.parametrize("name", EVERY)
def test_the_unpickler_runs_nothing(name):
    with pytest.raises(Exception) as caught:
        load_untrusted(EVERY[name], Trust(reason="it is not signed"))
    assert not isinstance(caught.value, SystemExit | KeyboardInterrupt)
    assert not ran()
    if name in PROVEN or name in NUMPY:
        assert isinstance(caught.value, UntrustedTypeError)


@pytest.mark.parametrize("handler", ["pickle", "mapping"])
@pytest.mark.parametrize("pickle_policy", ["signed", "deny"])
@pytest.mark.parametrize("backend", ["json", "sqlite"])
def test_a_store_runs_nothing(tmp_path, backend, pickle_policy, handler):
    with BlobStore(tmp_path / "store", backend) as store:
        for name, payload in EVERY.items():
            plant(store, name, payload, handler=handler)
    with BlobStore(tmp_path / "store", pickle=pickle_policy) as store:
        assert len(store) == len(EVERY)
        for name in store:
            with pytest.raises(BlobStoreError) as caught:
                store.get(name)
            assert isinstance(caught.value, UntrustedTypeError | DecodeError), name
            assert caught.value.key == name
            assert not ran(), name
        assert store.verify(deep=True).ok  # which decodes nothing
        assert not ran()


def test_the_same_store_is_run_by_whoever_says_so(tmp_path):
    """So the planted entries are what an attacker would plant."""
    with BlobStore(tmp_path / "store", "sqlite") as store:
        plant(store, "k", PROVEN["os.system"])
    with BlobStore(tmp_path / "store", pickle="allow") as store:
        assert store.get("k") == 0
        assert ran()


def test_an_extension_code_that_this_process_knows():
    payload = attacks.registered_extension()
    try:
        assert pickle.loads(payload) == 0
        assert ran()
        attacks.registered_extension()
        with pytest.raises(UntrustedTypeError):
            load_untrusted(payload, Trust())
        assert not ran()
        # Nor does what was looked up here end up in the cache.
        assert pickle.loads(payload) == 0
        assert ran()
    finally:
        attacks.forget_extension()


def test_no_class_or_function_is_altered():
    for name in ("class attribute", "class attribute of a frame", "function attribute"):
        with pytest.raises(UntrustedTypeError):
            load_untrusted(UNPROVEN[name], Trust())
    assert not hasattr(fractions.Fraction, "hacked")
    assert not hasattr(pd.DataFrame, "hacked")
    assert not hasattr(np._core.numeric._frombuffer, "hacked")


def test_that_a_class_could_be_altered():
    body = (
        attacks.stacked("fractions", "Fraction")
        + attacks.args(b"N", attacks.value({"hacked": 1}))
        + b"b"
    )
    try:
        pickle.loads(attacks.whole(body))
        assert fractions.Fraction.hacked == 1
    finally:
        del fractions.Fraction.hacked


@pytest.mark.parametrize("name", NUMPY)
def test_numpy_takes_nothing_on_faith(name):
    with pytest.raises(UntrustedTypeError):
        load_untrusted(NUMPY[name], Trust())


def _altered(obj, old: bytes, new: bytes) -> bytes:
    data = pickle.dumps(obj, 5)
    assert data.count(old) == 1, data.count(old)
    return data.replace(old, new)


def test_a_category_that_there_is_not():
    codes = np.array([3, 5, 4, 3, 5, 4, 3], "i1")
    cat = pd.Categorical.from_codes(codes, categories=list("abcdef"))
    data = _altered(cat, codes.tobytes(), b"\x03\x05\x04\x03\x7f\x04\x03")
    with pytest.raises(UntrustedTypeError, match="category"):
        load_untrusted(data, Trust())
    assert list(load_untrusted(pickle.dumps(cat), Trust())) == list(cat)


def test_a_column_outside_of_the_frame():
    frame = pd.DataFrame({"a": [1.5, 2.5]})
    start = pickle.dumps(slice(0, 1, 1), 5)
    old = b"K\x00K\x01K\x01\x87"
    assert old in start
    for new in (b"K\x63K\x64K\x01\x87", b"K\x00K\x64K\x01\x87", b"K\x01K\x02K\x01\x87"):
        data = pickle.dumps(frame, 5)
        assert data.count(old) == 1
        with pytest.raises((UntrustedTypeError, ValueError, AssertionError)):
            load_untrusted(data.replace(old, new), Trust())


def test_text_out_of_its_bounds():
    text = pd.array(["ab", "cd"], dtype="string[pyarrow]")
    offsets = np.array([0, 2, 4], "i8").tobytes()
    for wrong in ([0, 2, 4_000_000], [0, -2, 4], [2, 0, 4]):
        data = _altered(text, offsets, np.array(wrong, "i8").tobytes())
        with pytest.raises(UntrustedTypeError, match="bounds"):
            load_untrusted(data, Trust())


def test_levels_that_are_not_there():
    index = pd.MultiIndex.from_arrays([[1, 2, 1], [7, 7, 8]])
    codes = np.array([0, 1, 0], "i1").tobytes()
    data = pickle.dumps(index, 5)
    assert codes in data
    with pytest.raises(ValueError, match="code max"):
        load_untrusted(data.replace(codes, b"\x00\x7f\x00"), Trust())


@pytest.mark.parametrize("name", ["bytearray of a size", "a bytearray beyond memory"])
def test_no_memory_is_taken_for_a_claim(name):
    tracemalloc.start()
    try:
        with pytest.raises((UntrustedTypeError, MemoryError, OverflowError, EOFError, ValueError)):
            load_untrusted(UNPROVEN[name], Trust())
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("before", [b"N0", attacks.stacked("fractions", "Fraction") + b"0"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_memo_with_a_huge_number(before, protocol):
    """For which the C unpickler makes room for all numbers below, 40 GB here."""
    bomb = attacks.whole(before + b"Nr\xff\xff\xff\x9f", protocol)
    tracemalloc.start()
    try:
        assert load_untrusted(bomb, Trust()) is None
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_comes_back(protocol):
    data = {
        "numbers": [0, -1, 255, 65536, 1 << 40, 1 << 3000, 0.1, 1 + 2j, True, None],
        "texts": ["", "a", "\u00fc" * 200, "x" * 300, "y" * 70_000],
        "bytes": [b"", b"a" * 255, b"b" * 256, b"c" * 70_000, bytearray(b"d" * 300)],
        "containers": [(), (1,), (1, 2, 3, 4), {1, 2}, frozenset({3}), {}, [[], [[]]]],
        "values": [datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC), Decimal("1.10")],
    }
    data["again"] = data["texts"]
    found = load_untrusted(pickle.dumps(data, protocol), Trust())
    assert found == data
    assert found["again"] is found["texts"]


# --- trusted types -------------------------------------------------------------------------------


def test_trust_does_not_reach_through_a_module():
    """What a trusted module imported for itself is not trusted with it."""
    everything = Trust(types=TypePatterns(["pandas.*", "numpy.*", "pathlib.*", "json.*", "uuid.*"]))
    for module, name in [
        ("pathlib", "os.system"),
        ("uuid", "os.system"),
        ("pandas.io.common", "os.system"),
        ("pandas.io.common", "os"),
        ("numpy.lib._npyio_impl", "os.system"),
        ("json.decoder", "re._compiler.compile"),
        ("json.tool", "sys.exit"),
        ("json.tool", "argparse.ArgumentParser"),
        ("numpy.testing._private.utils", "runstring"),
        ("pandas", "read_pickle"),
        ("pandas", "eval"),
        ("numpy", "load"),
    ]:
        payload = attacks.whole(
            attacks.call(attacks.stacked(module, name), attacks.text("touch marker"))
        )
        with pytest.raises((UntrustedTypeError, AttributeError)):
            load_untrusted(payload, everything)
        assert not ran()


@pytest.mark.parametrize(
    "pattern", ["*", "?*", "*.Model", "[a-z]*.x", "os.*", "os.system", "builtins.eval", "builtins.*",
                "subprocess.Popen", "sys.*", "importlib.import_module", "operator.attrgetter",
                "numpy.testing.*", "", ".", "shop", "shop.", 3, None]
)  # fmt: skip
def test_patterns_that_would_open_everything_are_refused(tmp_path, pattern):
    with pytest.raises(ConfigError):
        BlobStore(tmp_path, trusted_types=[pattern])
    assert not (tmp_path / "blobstore.json").exists()


def test_a_single_string_is_no_list_of_patterns(tmp_path):
    with pytest.raises(ConfigError, match="list"):
        BlobStore(tmp_path, trusted_types="sklearn.*")


def test_random_damage_never_runs_anything(tmp_path):
    """Flipped bytes of honest pickles: refused, or other plain data."""
    rng = np.random.default_rng(4)
    honest = pickle.dumps({"a": np.arange(5.0), "b": pd.Timestamp("2024"), "c": [uuid.UUID(int=3)]})
    for _ in range(3000):
        data = bytearray(honest)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        with contextlib.suppress(Exception):
            load_untrusted(bytes(data), Trust())
    assert not (tmp_path / MARKER).exists()
