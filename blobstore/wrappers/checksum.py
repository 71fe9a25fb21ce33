"""A store that notices when what it stored is altered: checksums of each block."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Literal

import blake3
import xxhash

from blobstore.errors import ConfigError, IntegrityError
from blobstore.protocols import ObjectStore
from blobstore.streams import Buffer
from blobstore.wrappers.blocks import BlockTransformer, Layout, Sealer
from blobstore.wrappers.stream import StreamTransformingStore

Algorithm = Literal["xxh3_128", "blake3"]

_MAGIC = b"BSsum\x01"
"""What a stored object begins with: five letters, and the version of this format."""

_SUM = 16
_ID = 16
_NUMBERS: dict[str, int] = {"xxh3_128": 1, "blake3": 2}
_NAMES = {number: name for name, number in _NUMBERS.items()}


class ChecksumTransformer(BlockTransformer):
    """Adds a checksum to each block of an object.

    A header of 24 bytes: ``BSsum``, the version (1), the number of the algorithm (1: XXH3-128, 2:
    BLAKE3, of which the first 16 bytes are kept), a zero, and 16 random bytes, so that blocks of
    another object, or of an older one, are not taken for those of this one. A block is its data,
    and the checksum of header, number of the block (8 bytes, big-endian), 1 if it is the last
    or else 0 (1 byte), and data.

    Parameters
    ----------
    algorithm : {"xxh3_128", "blake3"}
        For what is written; both are read.
    """

    layout: ClassVar[Layout] = Layout(header=len(_MAGIC) + 2 + _ID, overhead=_SUM)

    def __init__(self, algorithm: Algorithm = "xxh3_128") -> None:
        if algorithm not in list(_NUMBERS):  # in a list, what cannot be hashed can be looked for
            raise ConfigError(f"algorithm must be one of {', '.join(_NUMBERS)}, not {algorithm!r}")
        self.algorithm = algorithm

    def start(self, key: str) -> tuple[bytes, Sealer]:
        """Make a header, and the sums after it."""
        header = _MAGIC + bytes([_NUMBERS[self.algorithm], 0]) + os.urandom(_ID)
        return header, _Summer(self.algorithm, header)

    def resume(self, header: bytes, key: str) -> Sealer:
        """Read a header."""
        if len(header) != self.layout.header or not header.startswith(_MAGIC):
            raise IntegrityError(
                f"the object {key!r} is damaged at its beginning, or was not written through "
                "a ChecksumStore: restore it from a copy, or read it from the store beneath",
                location=key,
            )
        algorithm = _NAMES.get(header[len(_MAGIC)])
        if algorithm is None:
            raise IntegrityError(
                f"the object {key!r} has checksums of a kind that is not known here "
                f"({header[len(_MAGIC)]}): it is damaged, or of a newer version",
                location=key,
            )
        return _Summer(algorithm, header)


class _Summer:
    """A `Sealer` that appends a checksum."""

    def __init__(self, algorithm: str, header: bytes) -> None:
        self._sum = _xxh3_128 if algorithm == "xxh3_128" else _blake3
        self._header = header

    def seal(self, index: int, last: bool, data: Buffer, /) -> bytes:
        return b"".join((data, self._sum(self._place(index, last), data)))

    def open(self, index: int, last: bool, data: bytes, /) -> bytes | None:
        content, found = data[:-_SUM], data[-_SUM:]
        return content if found == self._sum(self._place(index, last), content) else None

    def _place(self, index: int, last: bool) -> bytes:
        return self._header + index.to_bytes(8, "big") + bytes([last])


def _xxh3_128(place: bytes, data: Buffer) -> bytes:
    hasher = xxhash.xxh3_128(place)
    hasher.update(data)
    return bytes(hasher.digest())


def _blake3(place: bytes, data: Buffer) -> bytes:
    return blake3.blake3(place).update(data).digest(length=_SUM)


class ChecksumStore(StreamTransformingStore):
    """Verifies whatever is read, ranges too, against checksums that were stored with it.

    An altered bit, a cut or longer object, blocks that were exchanged or that are of another
    version of the object: each is an `IntegrityError` when a read touches it. A range is verified
    by the blocks of 64 KiB that it touches. It guards against disks and programs that fail, not
    against people: who can write beneath can also make new checksums (see `EncryptingStore`). Nor
    does it notice a whole object that was put in another's place.

    Parameters
    ----------
    store : ObjectStore
        Keeps bytes; taken over: it is closed with this one.
    algorithm : {"xxh3_128", "blake3"}
        For what is written; both are read.

    Raises
    ------
    ConfigError
        There is no such algorithm, or the store keeps other values than bytes.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = ChecksumStore(DictStore())
    >>> store.put("key", b"precious")
    >>> stored = store.store.get("key")
    >>> store.store.put("key", stored.replace(b"precious", b"Precious"))
    >>> store.get("key")
    Traceback (most recent call last):
    ...
    blobstore.errors.IntegrityError: block 0 (of 1) of the object 'key' is damaged, or not in its place: restore the object from a copy, or delete it
    """

    def __init__(self, store: ObjectStore, algorithm: Algorithm = "xxh3_128") -> None:
        super().__init__(store, ChecksumTransformer(algorithm))
        self.algorithm = algorithm

    def _shown(self) -> dict[str, Any]:
        return {"algorithm": self.algorithm}
