"""Stores that take some keys only."""

from __future__ import annotations

import re
import urllib.parse
from typing import TYPE_CHECKING, Any

from blobstore.errors import ConfigError, RejectedKeyError
from blobstore.protocols import ObjectStore
from blobstore.wrappers.key_transform import KeyTransformer, KeyTransformingStore

if TYPE_CHECKING:
    from collections.abc import Callable

_SCHEMES = ("http", "https")


class KeyValidatingStore(KeyTransformingStore):
    """Takes only the keys that a validator has nothing against.

    Every method that takes a key asks it first; a key that it is against is `RejectedKeyError`,
    which is a `KeyError` and a `ValueError`. Objects beneath with such keys are not listed.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.
    validator : callable
        Called with the key. Against it are `KeyError`, `ValueError`, and the answer False; any
        other answer is for it.

    Raises
    ------
    ConfigError
        The validator cannot be called.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> def no_blanks(key):
    ...     if " " in key:
    ...         raise KeyError("no blanks, please")
    >>> store = KeyValidatingStore(DictStore(), no_blanks)
    >>> store.put("a b", b"1")
    Traceback (most recent call last):
    ...
    blobstore.errors.RejectedKeyError: the key 'a b' is not taken here: no blanks, please
    """

    def __init__(self, store: ObjectStore, validator: Callable[[str], object]) -> None:
        super().__init__(store, _Validation(validator))


class RegexValidatingStore(KeyValidatingStore):
    """Takes only the keys that a regular expression matches from beginning to end.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.
    pattern : str or compiled pattern

    Raises
    ------
    ConfigError
        The pattern is none.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = RegexValidatingStore(DictStore(), "run-[0-9]+")
    >>> store.put("run-7", b"1")
    >>> store.put("run-7b", b"1")
    Traceback (most recent call last):
    ...
    blobstore.errors.RejectedKeyError: the key 'run-7b' is not taken here: it does not match run-[0-9]+
    """

    def __init__(self, store: ObjectStore, pattern: str | re.Pattern[str]) -> None:
        self.pattern = compiled(pattern)
        super().__init__(store, _FullMatch(self.pattern))

    def _shown(self) -> dict[str, Any]:
        return {"pattern": self.pattern.pattern}


class UrlValidatingStore(KeyValidatingStore):
    """Takes only keys that are addresses on the web: http or https, with a host, without blanks.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = UrlValidatingStore(DictStore())
    >>> store.put("https://example.org/x?y=1", b"1")
    >>> store.put("http:", b"1")
    Traceback (most recent call last):
    ...
    blobstore.errors.RejectedKeyError: the key 'http:' is not taken here: it names no host
    """

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store, _check_url)


class _Validation(KeyTransformer):
    """Changes no key, and refuses some."""

    def __init__(self, validator: Callable[[str], object]) -> None:
        if not callable(validator):
            raise ConfigError(f"a validator must be callable with a key, not {validator!r}")
        self._validator = validator

    def transform_key(self, key: str) -> str:
        try:
            answer = self._validator(key)
        except (KeyError, ValueError) as exc:
            reason = exc.args[0] if exc.args else type(exc).__name__
            raise _rejected(key, reason) from exc
        if answer is False:
            raise _rejected(key, "the validator says no")
        return key

    def transform_prefix(self, prefix: str) -> str:
        return prefix


class _FullMatch:
    """A class, not a closure: it can be pickled."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def __call__(self, key: str) -> None:
        if self._pattern.fullmatch(key) is None:
            raise ValueError(f"it does not match {self._pattern.pattern}")


def compiled(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    """Compile a regular expression of text.

    Raises
    ------
    ConfigError
        It is none.
    """
    try:
        found = re.compile(pattern)
    except (re.error, TypeError) as exc:
        raise ConfigError(f"{pattern!r} is no regular expression: {exc}") from exc
    if not isinstance(found.pattern, str):
        raise ConfigError(f"{pattern!r} matches bytes, and keys are text: leave the b away")
    return found


def _check_url(key: str) -> None:
    # The parser takes off blanks and line ends before it looks at the rest.
    if any(each.isspace() or each < " " or each == "\x7f" for each in key):
        raise ValueError("an address has no blanks and no control characters")
    parts = urllib.parse.urlsplit(key)
    if parts.scheme not in _SCHEMES:
        raise ValueError("it begins with neither http:// nor https://")
    if not parts.hostname:
        raise ValueError("it names no host")
    _ = parts.port  # ValueError if it is no number of a port


def _rejected(key: str, reason: object) -> RejectedKeyError:
    return RejectedKeyError(f"the key {key!r} is not taken here: {reason}", location=key)
