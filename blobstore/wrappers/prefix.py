"""Stores that put something in front of each key: a prefix of one's own, or a hash of the key."""

from __future__ import annotations

import hashlib
from typing import Any

from blobstore.errors import ConfigError
from blobstore.keys import encode_key
from blobstore.protocols import ObjectStore
from blobstore.wrappers.key_transform import KeyTransformer, KeyTransformingStore

_DIGITS = 64  # of a SHA-256 in hexadecimal


class PrefixTransformer(KeyTransformer):
    """Puts the same text in front of each key.

    Parameters
    ----------
    prefix : str
        Literal: no separator is added.

    Raises
    ------
    ConfigError
        It is no string.

    Examples
    --------
    >>> PrefixTransformer("runs/").transform_key("1"), PrefixTransformer("a").transform_prefix("b")
    ('runs/1', 'ab')
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = _require_text("prefix", prefix)

    def transform_key(self, key: str) -> str:
        """Put the prefix in front."""
        return self.prefix + key

    def reverse_transform_key(self, key: str) -> str:
        """Take the prefix off; `KeyError` where there is none."""
        if not key.startswith(self.prefix):
            raise KeyError(key)
        return key[len(self.prefix) :]

    def transform_prefix(self, prefix: str) -> str:
        """Put one prefix in front of the other."""
        return self.prefix + prefix


class PrefixStore(KeyTransformingStore):
    """A part of another store: the objects whose keys begin alike, without that beginning.

    Objects with other keys are not seen, not listed and not touched. The prefix is literal: put
    the separator into it. A key is not interpreted here; over files, ``"../x"`` is refused by the
    store beneath.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.
    prefix : str

    Raises
    ------
    ConfigError
        A parameter is wrong.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> everything = DictStore()
    >>> everything.put("other/x", b"0")
    >>> mine = PrefixStore(everything, "mine/")
    >>> mine.put("x", b"1")
    >>> list(mine.keys()), sorted(everything.keys())
    (['x'], ['mine/x', 'other/x'])
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        super().__init__(store, PrefixTransformer(prefix))
        self.prefix = prefix

    def _shown(self) -> dict[str, Any]:
        return {"prefix": self.prefix}


class HashPrefixTransformer(KeyTransformer):
    """Puts the beginning of a key's SHA-256 in front of it.

    Parameters
    ----------
    hash_length : int
        1 to 64 hexadecimal digits.
    separator : str
        Between hash and key.

    Raises
    ------
    ConfigError
        A parameter is wrong.

    Examples
    --------
    >>> HashPrefixTransformer().transform_key("hello")
    '2cf24dba/hello'
    """

    def __init__(self, hash_length: int = 8, separator: str = "/") -> None:
        if type(hash_length) is not int or not 1 <= hash_length <= _DIGITS:
            raise ConfigError(
                f"hash_length must be an int from 1 to {_DIGITS}, not {hash_length!r}"
            )
        self.hash_length = hash_length
        self.separator = _require_text("separator", separator)

    def transform_key(self, key: str) -> str:
        """Put the hash in front; `InvalidKeyError` for what has no UTF-8 to hash."""
        digest = hashlib.sha256(encode_key(key)).hexdigest()
        return digest[: self.hash_length] + self.separator + key

    def reverse_transform_key(self, key: str) -> str:
        """Take the hash off; `KeyError` where it is not that of the rest."""
        found = key[self.hash_length + len(self.separator) :]
        if self.transform_key(found) != key:
            raise KeyError(key)
        return found


class HashPrefixStore(KeyTransformingStore):
    """Spreads keys evenly: each has the beginning of its SHA-256 in front, ``"2cf24dba/hello"``.

    For stores that are slow where many keys begin alike. Objects beneath that have no such hash
    in front are not listed. A listing by prefix looks through all keys of the store beneath.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.
    hash_length : int
        1 to 64 hexadecimal digits.
    separator : str
        Between hash and key.

    Raises
    ------
    ConfigError
        A parameter is wrong.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = HashPrefixStore(DictStore(), hash_length=4, separator="-")
    >>> store.put("hello", b"1")
    >>> list(store.keys()), list(store.store.keys())
    (['hello'], ['2cf2-hello'])
    """

    def __init__(self, store: ObjectStore, hash_length: int = 8, separator: str = "/") -> None:
        super().__init__(store, HashPrefixTransformer(hash_length, separator))
        self.hash_length = hash_length
        self.separator = separator

    def _shown(self) -> dict[str, Any]:
        return {"hash_length": self.hash_length, "separator": self.separator}


def _require_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a str, not {value!r}")
    return value
