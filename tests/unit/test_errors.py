"""Errors: one tree, that travels between processes and says what happened."""

from __future__ import annotations

import copy
import errno
import os
import pickle

import pytest

from blobstore import errors
from blobstore.errors import (
    BlobStoreError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
    from_os_error,
)

CLASSES = sorted(
    (
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, BlobStoreError)
    ),
    key=lambda cls: cls.__name__,
)


def test_all_of_the_tree_is_looked_at():
    assert len(CLASSES) == 25
    drawn = errors.__doc__
    assert all(cls.__name__ in drawn for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_what_they_carry(cls):
    error = cls("it's gone: try again", key="k", location="l")
    assert str(error) == error.message == "it's gone: try again"  # KeyError would quote it
    assert (error.key, error.location) == ("k", "l")
    assert error.retryable is issubclass(cls, UnavailableError)
    assert "it's gone" in repr(error)
    bare = cls("x")
    assert (bare.key, bare.location) == (None, None)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_they_travel(cls, protocol):
    error = cls("gone", key="k", location="l")
    error.add_note("a note")
    if isinstance(error, UnavailableError):
        error = cls("gone", key="k", location="l", outcome="unknown")
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(again) is cls
        assert (str(again), again.args) == (str(error), error.args)
        assert vars(again) == vars(error)


BASES = {
    "KeyNotFoundError": KeyError,
    "KeyExistsError": KeyError,
    "ClosedError": ValueError,
    "InvalidInputError": ValueError,
    "InvalidKeyError": (ValueError, TypeError),
    "InvalidMetadataError": (ValueError, TypeError),
    "InvalidQueryError": ValueError,
    "ConfigError": (ValueError, TypeError),
    "MissingDependencyError": ImportError,
    "NotSupportedError": NotImplementedError,
    "UnsupportedTypeError": TypeError,
}


@pytest.mark.parametrize("name", BASES)
def test_what_they_can_be_caught_as(name):
    bases = BASES[name] if isinstance(BASES[name], tuple) else (BASES[name],)
    for base in bases:
        with pytest.raises(base):
            raise getattr(errors, name)("x")


def test_damage_and_outages_are_no_misses():
    for name in ("IntegrityError", "StorageError", "UnavailableError", "DecodeError"):
        assert not issubclass(getattr(errors, name), KeyError | LookupError)


@pytest.mark.parametrize(
    ("numbers", "cls"),
    [
        (["ENOSPC", "EDQUOT", "EFBIG"], OutOfSpaceError),
        (["EACCES", "EPERM", "EROFS"], PermissionDeniedError),
        (["EIO", "ENOENT", "EISDIR", "ENAMETOOLONG", "EMFILE", "ESTALE"], StorageError),
    ],
)
def test_errors_of_the_operating_system(numbers, cls):
    for name in numbers:
        number = getattr(errno, name)
        error = from_os_error(OSError(number, os.strerror(number)), "writing /x/y", location="l")
        assert type(error) is cls
        assert str(error).startswith(f"writing /x/y failed: {os.strerror(number)}")
        assert error.location == "l"


def test_errors_of_the_operating_system_without_a_number():
    error = from_os_error(OSError("odd"), "reading")
    assert (type(error), str(error)) == (StorageError, "reading failed: odd.")
    assert error.location is None
