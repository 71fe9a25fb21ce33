"""What a key is, and the names that are made up: blob locations, commit ids, temporary files.

A key belongs to the caller: it is kept as it is and never used as a path. A location belongs to
us: 128 random bits in hexadecimal, a dot and the extension of the format.
"""

from __future__ import annotations

import os
import re

from blobstore.errors import InvalidKeyError

MAX_KEY_BYTES = 2048

_LOCATION = re.compile(r"[0-9a-f]{32}(\.[a-z0-9]+)*")


def validate_key(key: object) -> str:
    """Return `key` unchanged, or say why it cannot be one.

    Parameters
    ----------
    key : object
        To be a `str` of 1 to 2,048 bytes in UTF-8, of any characters but NUL.

    Raises
    ------
    InvalidKeyError
        Not a string, empty, too long, with NUL, or with a lone surrogate.

    Examples
    --------
    >>> validate_key("runs/2024 ü/../model")
    'runs/2024 ü/../model'
    >>> validate_key("")
    Traceback (most recent call last):
    ...
    blobstore.errors.InvalidKeyError: a key cannot be empty: give at least one character
    """
    if not isinstance(key, str):
        raise InvalidKeyError(
            f"a key must be a str, not {type(key).__name__}: convert it first, for instance str(key)"
        )
    if key.isascii():
        size = len(key)
    else:
        try:
            size = len(key.encode("utf-8"))
        except UnicodeEncodeError as exc:
            raise InvalidKeyError(
                f"the key {key!a} has a lone surrogate at position {exc.start}, which UTF-8 cannot "
                "hold: decode file names with errors='replace', or choose another key",
                key=key,
            ) from exc
    if size == 0:
        raise InvalidKeyError("a key cannot be empty: give at least one character", key=key)
    if size > MAX_KEY_BYTES:
        raise InvalidKeyError(
            f"the key {key[:40]!r}... has {size} bytes in UTF-8, at most {MAX_KEY_BYTES} are "
            "allowed: shorten it, and put the rest into the metadata",
            key=key,
        )
    if "\0" in key:
        raise InvalidKeyError(
            f"the key {key!r} contains NUL, which no database keeps: remove it", key=key
        )
    # A plain str: a subclass could change under us, and would be pickled as itself.
    return key if type(key) is str else str.__str__(key)


def require_str(key: object) -> str:
    """Return the key of an object store unchanged, if it is a string.

    Raises
    ------
    InvalidKeyError
    """
    if not isinstance(key, str):
        raise InvalidKeyError(f"a key must be a str, not {type(key).__name__}")
    return key


def encode_key(key: str) -> bytes:
    """The UTF-8 of the key of an object store, for those that need it.

    Raises
    ------
    InvalidKeyError
        It has none: a lone surrogate, or no string at all.

    Examples
    --------
    >>> len(encode_key("ü"))
    2
    """
    try:
        return require_str(key).encode()
    except UnicodeEncodeError as exc:
        raise InvalidKeyError(f"the key {key!a} is no text: it has no UTF-8", location=key) from exc


def random_id() -> str:
    """128 random bits as 32 hexadecimal digits: for locations, commit ids and generated keys."""
    return os.urandom(16).hex()


def new_location(extension: str) -> str:
    """Make up a location that was never used before.

    Parameters
    ----------
    extension : str
        With its dot, or empty: ``".b2nd"``, ``".pkl.lz4"``.

    Examples
    --------
    >>> is_location(new_location(".pkl.lz4"))
    True
    """
    return random_id() + extension


def is_location(name: str) -> bool:
    """Whether `name` has the form of our locations; anything else in a store is not ours.

    Examples
    --------
    >>> is_location("report.parquet")
    False
    """
    return _LOCATION.fullmatch(name) is not None


def successor(prefix: str) -> str | None:
    """The smallest string, by code point, above every string that starts with `prefix`.

    None where there is none. With it a literal prefix becomes a range, which any ordered index
    serves, and in which no character has a special meaning.

    Examples
    --------
    >>> successor("run_%")
    'run_&'
    """
    for end in range(len(prefix), 0, -1):
        code = ord(prefix[end - 1]) + 1
        if 0xD800 <= code <= 0xDFFF:
            code = 0xE000  # surrogates are no characters, and no database stores them
        if code <= 0x10FFFF:
            return prefix[: end - 1] + chr(code)
    return None
