"""What a reader lets stored bytes do: nothing, name certain types, or everything.

Trust lives with the reader, never in what is read. A `Trust` is worked out for each entry (see
`blobstore.reading`) and goes with its parts to the handler, which asks it before it looks up
anything that the bytes name.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from blobstore.errors import ConfigError, UntrustedTypeError
from blobstore.limits import MAX_DECOMPRESSED, UNLIMITED, allowed_growth

_CLOSED_TEXT = """
    __builtin__ _codecs _ctypes _frozen_importlib _frozen_importlib_external _imp _interpreters _io
    _operator _pickle _posixsubprocess _socket _thread _xxsubinterpreters asyncio atexit bdb builtins
    cProfile cloudpickle code codecs codeop commands concurrent copyreg ctypes dill distutils doctest
    ensurepip faulthandler gc importlib inspect io linecache logging mailcap marshal multiprocessing
    nt ntpath operator os pdb pickle pickletools pip pkgutil platform posix posixpath profile pty
    pydoc runpy setuptools shelve shutil signal site smtplib socket sqlite3 ssl subprocess sys
    sysconfig tempfile test threading timeit trace tracemalloc types unittest urllib venv webbrowser
    winreg xmlrpc zipimport
    joblib.externals joblib.load joblib.numpy_pickle numpy.distutils numpy.f2py numpy.load
    numpy.lib._npyio_impl numpy.lib.npyio numpy.testing pandas.core.computation pandas.eval
    pandas.io.pickle pandas.read_pickle torch.hub torch.jit torch.load torch.package
    torch.serialization torch.storage torch.utils.cpp_extension torch.utils.data torch.utils.model_zoo
"""
_CLOSED = frozenset(_CLOSED_TEXT.split())
"""Modules, and functions elsewhere, that are never trusted by name: they run what they are given."""

_OF_MAIN = "__main__"


class TypePatterns:
    """Names of types, as a reader trusts them.

    Parameters
    ----------
    patterns : iterable of str
        ``module.qualname``, where ``*`` and ``?`` stand for characters: ``"sklearn.*"``. The first
        word is always spelled out.

    Raises
    ------
    ConfigError
        A pattern would open everything, or what runs code whatever it is called with.

    Notes
    -----
    A pickle may call what is trusted, function or class, with any arguments. So name as little as
    will do, and no package that has a function which runs what it is given.

    Examples
    --------
    >>> TypePatterns(["sklearn.*", "shop.models.Basket"]).match("sklearn.svm._classes.SVC")
    True
    >>> TypePatterns(["*"])
    Traceback (most recent call last):
    ...
    blobstore.errors.ConfigError: trusted_types cannot have '*', which is every type there is: name a package ('sklearn.*'), or say pickle='allow'
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        if isinstance(patterns, str):
            raise ConfigError(
                f"trusted_types must be a list of patterns, not the string {patterns!r}: [{patterns!r}]"
            )
        given: Any = patterns
        if not isinstance(given, Iterable):
            raise ConfigError(f"trusted_types must be a list of patterns, not {given!r}")
        self.patterns = tuple(_checked(pattern) for pattern in patterns)
        texts = [fnmatch.translate(pattern) for pattern in self.patterns]
        self._matches = re.compile("|".join(texts)).match if texts else None

    def match(self, name: str) -> bool:
        """Whether one of the patterns is for this name, and the name is not closed for all."""
        if self._matches is None or self._matches(name) is None:
            return False
        return not is_closed(name)

    def __repr__(self) -> str:
        return f"TypePatterns({list(self.patterns)!r})"


def is_closed(name: str) -> bool:
    """Whether nothing of the module of `name` is ever trusted by name.

    Examples
    --------
    >>> is_closed("os.system"), is_closed("__main__.Model"), is_closed("collections.Counter")
    (True, False, False)
    """
    words = name.split(".")
    if words[0] == _OF_MAIN:  # classes of a notebook or script; what it imported is found out
        return False
    return any(".".join(words[:n]) in _CLOSED for n in range(1, 1 + min(len(words), 3)))


def _checked(pattern: object) -> str:
    if not isinstance(pattern, str):
        raise ConfigError(f"trusted_types must hold strings, not {pattern!r}")
    first, dot, rest = pattern.partition(".")
    if not first or any(character in first for character in "*?["):
        raise ConfigError(
            f"trusted_types cannot have {pattern!r}, which is every type there is: name a package "
            "('sklearn.*'), or say pickle='allow'"
        )
    if not dot or not rest:
        raise ConfigError(
            f"trusted_types has {pattern!r}, which is no name of a type: write 'module.Type', or "
            f"'{first}.*' for all of a package"
        )
    if is_closed(pattern):
        raise ConfigError(
            f"trusted_types cannot have {pattern!r}: what is in {first!r} can run any code. If you "
            "trust whoever wrote the store that far, say pickle='allow'"
        )
    return pattern


NO_TYPES = TypePatterns()


@dataclass(frozen=True, slots=True)
class Trust:
    """What the bytes of one entry may do.

    Attributes
    ----------
    everything : bool
        They are the reader's own (signed), or it said to trust all.
    types : TypePatterns
        Types that they may name besides those that are harmless.
    reason : str
        Why it is not everything.
    max_decompressed : int
        Bytes that a part may grow to; see `blobstore.limits`. Does not hold for `everything`.

    Examples
    --------
    >>> Trust(types=TypePatterns(["shop.*"])).allows("shop.Basket")
    True
    """

    everything: bool = False
    types: TypePatterns = NO_TYPES
    reason: str = "it was read without asking who wrote it"
    max_decompressed: int = MAX_DECOMPRESSED

    def allows(self, name: str) -> bool:
        """Whether the bytes may have the type ``module.qualname`` imported and made."""
        return self.everything or self.types.match(name)

    def growth_limit(self, stored: int) -> int:
        """How many bytes `stored` bytes may become when they are decompressed.

        Examples
        --------
        >>> Trust(max_decompressed=1000).growth_limit(10), EVERYTHING.growth_limit(10) == UNLIMITED
        (2560, True)
        """
        return UNLIMITED if self.everything else allowed_growth(stored, self.max_decompressed)

    def require(self, name: str) -> None:
        """Insist on `allows`.

        Raises
        ------
        UntrustedTypeError
            Names the type, why the entry is not trusted, and the three ways on.

        Examples
        --------
        >>> Trust(reason="it is not signed").require("shop.Basket")
        Traceback (most recent call last):
        ...
        blobstore.errors.UntrustedTypeError: it needs shop.Basket, whose code would run, and its entry is not trusted: it is not signed. If you know who wrote it: get their signing key (BLOBSTORE_SIGNING_KEY, or a line in the key file); or name the type, trusted_types=['shop.Basket']; or open the store with pickle='allow', which runs whatever is in it
        """
        if not self.allows(name):
            raise UntrustedTypeError(self.refusal(name))

    def refusal(self, name: str) -> str:
        """Say why ``module.qualname`` is refused, and what can be done."""
        because = f"and its entry is not trusted: {self.reason}"
        if is_closed(name):
            return (
                f"it asks for {name}, of a module that can run any code, {because}. Nothing of it was "
                "run. Only pickle='allow' would load it, and run whatever is in it"
            )
        return (
            f"it needs {name}, whose code would run, {because}. If you know who wrote it: get their "
            "signing key (BLOBSTORE_SIGNING_KEY, or a line in the key file); or name the type, "
            f"trusted_types=[{name!r}]; or open the store with pickle='allow', which runs whatever "
            "is in it"
        )


EVERYTHING = Trust(everything=True, reason="")
NOTHING = Trust()
