"""Digests of logical content, and checksums of stored bytes.

A *checksum* tells whether stored bytes are what was stored: BLAKE3 where reading them may run
code, XXH3-128 elsewhere, written with its algorithm's name in front.

A *digest* names content: BLAKE3 (or SHA-256) of a canonical stream that depends on the type, the
schema and the values, not on how they were laid out in memory, compressed, or written. Equal
digests mean equal objects; equal objects of classes that we do not know may differ in digest,
which costs sharing and nothing else.

The canonical stream, version 1, is a run of items. Each item is a one-byte tag, then for atoms
the length of the content as 8 bytes (little endian) and the content. Containers give their number
of items the same way and then the items; sets sort theirs by digest. Lists and tuples of 16 items
or more that are all floats, all integers of 64 bits or all strings are packed. An object with an
identity (a mutable container, or one that hashes by identity) that was met before is a reference
to its number of appearance. Objects of other classes are the tag ``o`` and what their
``__reduce_ex__(5)`` gives.
"""

from __future__ import annotations

import array
import copyreg
import functools
import hashlib
import pickle
import struct
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Any

from blobstore.errors import ConfigError, UnsupportedTypeError
from blobstore.streams import Buffer, Hasher

ALGORITHMS = ("blake3", "sha256")
_MAX_DEPTH = 200
_PACKED_FROM = 16


def new_digest(algorithm: str = "blake3") -> Hasher:
    """Start a digest of logical content.

    Raises
    ------
    ConfigError
        The algorithm is neither "blake3" nor "sha256".
    """
    if algorithm == "blake3":
        return _blake3()
    if algorithm == "sha256":
        return hashlib.sha256()
    raise ConfigError(f"there is no digest {algorithm!r}: choose one of {', '.join(ALGORITHMS)}")


def new_checksum(*, executable: bool) -> Hasher:
    """Start a checksum of stored bytes; cryptographic if reading them may run code."""
    if executable:
        return _blake3()
    import xxhash

    return xxhash.xxh3_128()


def checksum_text(hasher: Hasher, *, executable: bool) -> str:
    """The checksum as the index keeps it."""
    return f"{'blake3' if executable else 'xxh3-128'}:{hasher.hexdigest()}"


def checksum_like(text: str) -> tuple[Hasher, bool]:
    """A fresh hasher of the algorithm that `text` names, and whether it is cryptographic."""
    executable = text.startswith("blake3:")
    return new_checksum(executable=executable), executable


def is_cryptographic(checksum: str) -> bool:
    """Whether nobody can make other bytes that have this checksum."""
    return checksum.startswith("blake3:")


def checksum_of(data: Buffer, like: str) -> str:
    """The checksum of bytes in memory, by the algorithm that `like` names."""
    if like.startswith("blake3:"):
        return f"blake3:{_blake3_class()(data).hexdigest()}"
    hasher = new_checksum(executable=False)
    hasher.update(data)
    return checksum_text(hasher, executable=False)


@functools.cache
def _blake3_class() -> Callable[..., Hasher]:
    from blake3 import blake3

    return blake3


def _blake3() -> Hasher:
    return _blake3_class()()


class Canonical:
    """Writes objects into a hasher in canonical form.

    Parameters
    ----------
    hasher : Hasher
    known : callable, optional
        Asked for every object that is no plain Python value; feeds the fresh hasher it is given and
        returns True if it has a canonical form for that type (arrays, frames).

    Examples
    --------
    >>> def digest(obj):
    ...     hasher = new_digest()
    ...     Canonical(hasher).add(obj)
    ...     return hasher.hexdigest()
    >>> digest({1, 2, 3}) == digest({3, 2, 1}), digest([1]) == digest([True])
    (True, False)
    """

    def __init__(self, hasher: Hasher, known: Callable[[Any, Hasher], bool] | None = None) -> None:
        self._hasher = hasher
        self._known = known
        self._seen: dict[int, int] = {}
        self._alive: list[object] = []
        self._depth = 0

    def add(self, obj: Any) -> None:
        """Write one object.

        Raises
        ------
        UnsupportedTypeError
            Something in it has no stable form, or it is nested too deeply.
        """
        writer = _ATOMS.get(type(obj))
        if writer is not None:
            tag, content = writer(obj)
            self._atom(tag, content)
            return
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UnsupportedTypeError("nested too deeply for a canonical form")
        try:
            self._container(obj)
        finally:
            self._depth -= 1

    def _atom(self, tag: bytes, content: Buffer) -> None:
        self._hasher.update(tag + len(content).to_bytes(8, "little"))
        self._hasher.update(content)

    def _container(self, obj: Any) -> None:
        kind = type(obj)
        if kind is tuple:
            self._sequence(b"t", obj)
        elif kind is frozenset:
            self._set(b"z", obj)
        elif isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType):
            self._global(obj)
        elif isinstance(obj, PurePath):
            # Since Python 3.13 a path is pickled as the pieces that it was put together from.
            self._hasher.update(b"p")
            self._global(kind)
            self.add(str(obj))
        elif kind is pickle.PickleBuffer:
            self._atom(b"y", obj.raw())
        elif not self._met(obj):
            self._mutable(obj)

    def _mutable(self, obj: Any) -> None:
        kind = type(obj)
        if kind is list:
            self._sequence(b"l", obj)
        elif kind is dict:
            self._items(b"d", (x for pair in obj.items() for x in pair), len(obj))
        elif kind is set:
            self._set(b"s", obj)
        elif not self._by_hook(obj):
            self._reduced(obj)

    def _met(self, obj: Any) -> bool:
        """Write a reference if this very object came before: sharing is part of the content.

        Not of objects that hash by value (dates, decimals, dtypes): those are what they equal.
        """
        by_value: Any = type(obj).__hash__
        if by_value is not None and by_value is not object.__hash__:
            return False
        number = self._seen.get(id(obj))
        if number is not None:
            self._atom(b"r", number.to_bytes(8, "little"))
            return True
        self._seen[id(obj)] = len(self._seen)
        self._alive.append(obj)  # an id means something only while its object lives
        return False

    def _by_hook(self, obj: Any) -> bool:
        if self._known is None:
            return False
        hasher = _blake3()
        if not self._known(obj, hasher):
            return False
        self._atom(b"k", bytes.fromhex(hasher.hexdigest()))
        return True

    def _sequence(self, tag: bytes, items: list[Any] | tuple[Any, ...]) -> None:
        packed = _pack(items) if len(items) >= _PACKED_FROM else None
        if packed is None:
            self._items(tag, items, len(items))
            return
        self._hasher.update(tag.upper() + len(items).to_bytes(8, "little"))
        self._atom(*packed)

    def _items(self, tag: bytes, items: Iterable[Any], count: int) -> None:
        self._hasher.update(tag + count.to_bytes(8, "little"))
        for item in items:
            self.add(item)

    def _set(self, tag: bytes, items: Iterable[Any]) -> None:
        digests = sorted(self._apart(item) for item in items)
        self._atom(tag, b"".join(digests))

    def _apart(self, item: Any) -> bytes:
        """Digest of a member of a set, whose place in the stream is not known yet."""
        hasher = _blake3()
        Canonical(hasher, self._known).add(item)
        return bytes.fromhex(hasher.hexdigest())

    def _global(self, obj: Any) -> None:
        name = f"{obj.__module__}:{obj.__qualname__}"
        owner = getattr(obj, "__self__", None)
        if "<" in name or not (owner is None or isinstance(owner, types.ModuleType)):
            raise UnsupportedTypeError(f"{name} is no name that another process could look up")
        self._atom(b"g", name.encode())

    def _reduced(self, obj: Any) -> None:
        """Write an object of an unknown class as what it would be rebuilt from."""
        reducer = copyreg.dispatch_table.get(type(obj))
        try:
            reduced = reducer(obj) if reducer is not None else obj.__reduce_ex__(5)
        except (TypeError, pickle.PicklingError) as exc:
            raise UnsupportedTypeError(f"a {type(obj).__name__} cannot be taken apart") from exc
        if isinstance(reduced, str):
            self._atom(b"g", f"{type(obj).__module__}:{reduced}".encode())
            return
        function, arguments, *rest = reduced
        optional: list[Any] = [*rest, None, None, None, None]
        state, items, pairs, setter = optional[:4]
        self._hasher.update(b"o")
        self.add(function)
        self.add(arguments)
        self.add(state)
        listed: list[Any] = [] if items is None else list(items)
        paired: list[Any] = [] if pairs is None else list(pairs)
        self._sequence(b"l", listed)
        self._items(b"d", (x for pair in paired for x in pair), len(paired))
        self.add(setter)


def _pack(items: list[Any] | tuple[Any, ...]) -> tuple[bytes, bytes] | None:
    """Items of one plain type as one atom; None if they are not."""
    kinds = set(map(type, items))
    if kinds == {float}:
        return b"f", _little(array.array("d", items))
    if kinds == {int}:
        try:
            return b"i", _little(array.array("q", items))
        except OverflowError:
            return None
    if kinds == {str}:
        encoded = [item.encode("utf-8", "surrogatepass") for item in items]
        lengths = _little(array.array("q", map(len, encoded)))
        return b"u", lengths + b"".join(encoded)
    return None


def _little(values: array.array[Any]) -> bytes:
    if sys.byteorder == "big":  # the stream is the same on every machine
        values.byteswap()
    return values.tobytes()


_ATOMS: dict[type, Callable[[Any], tuple[bytes, Buffer]]] = {
    type(None): lambda _: (b"n", b""),
    bool: lambda x: (b"b", b"\1" if x else b"\0"),
    int: lambda x: (b"i", str(x).encode() if abs(x) < 1 << 64 else hex(x).encode()),
    float: lambda x: (b"f", struct.pack("<d", x)),
    complex: lambda x: (b"c", struct.pack("<dd", x.real, x.imag)),
    str: lambda x: (b"u", x.encode("utf-8", "surrogatepass")),
    bytes: lambda x: (b"y", x),
    type(...): lambda _: (b"e", b""),
    type(NotImplemented): lambda _: (b"m", b""),
}
