"""What NumPy parses is parsed again where the interpreter lost count, and nothing else is."""

from __future__ import annotations

import ast

import numpy as np
import pytest

from blobstore import AutoStore, BlobStore
from blobstore.ast_race import parsing_again

MISMATCH = "AST constructor recursion depth mismatch (before=96, after=91)"


@pytest.fixture
def lose_count(monkeypatch):
    """Have the next call of `ast.literal_eval` fail as it does in CPython, now and then."""
    due = []
    original = ast.literal_eval

    def evaluate(text):
        if due:
            raise SystemError(due.pop())
        return original(text)

    monkeypatch.setattr(ast, "literal_eval", evaluate)
    return lambda: due.append(MISMATCH)


RECORD = np.zeros(3, [("a", "<i4"), ("b", "<f8")])


@pytest.mark.parametrize("name", ["npy", "npz", "sparse"])
def test_files_of_numpy(tmp_path, lose_count, name):
    data = {"npy": RECORD, "npz": {"one": RECORD}}.get(name)
    if data is None:
        data = pytest.importorskip("scipy.sparse").eye(3, format="lil")
    with AutoStore(tmp_path) as store:
        store["key"] = data
        lose_count()
        with pytest.raises(SystemError):
            ast.literal_eval("1")
        lose_count()
        found = store["key"]
        assert ast.literal_eval("1") == 1  # the fault was met
        if name == "npy":
            lose_count()
            assert np.array_equal(store.load("key", rows=slice(1)), RECORD[:1])
    assert repr(found) == repr(data)


def test_dtypes_in_the_index(tmp_path, lose_count):
    with BlobStore(tmp_path) as store:
        store["record"] = RECORD
        lose_count()
        assert np.array_equal(store["record"], RECORD)
        assert ast.literal_eval("1") == 1


def test_another_error_is_not_tried_again():
    calls = []

    def failing():
        calls.append(1)
        raise SystemError("bad argument to internal function")

    with pytest.raises(SystemError, match="internal function"):
        parsing_again(failing)
    assert len(calls) == 1


def test_it_ends():
    def failing():
        raise SystemError(MISMATCH)

    with pytest.raises(SystemError, match="mismatch"):
        parsing_again(failing)
