"""Any Python object, by pickle protocol 5.

Large buffers (arrays inside models, for instance) are kept out of the pickle and stored behind
it, so that neither writing nor reading holds them twice. A stream without such buffers is a plain
pickle. One with them starts with the 8 bytes ``BLOBPKL1``, then, little endian, the length of the
pickle (8 bytes), the number of buffers (4 bytes) and the length of each (8 bytes), then the pickle
and the buffers. Source: PEP 574.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from blobstore import codecs
from blobstore.digest import Canonical
from blobstore.errors import BlobStoreError, DecodeError, UnsupportedTypeError
from blobstore.handlers.options import refuse_options
from blobstore.handlers.stream import StreamPart, open_stream, read_stream
from blobstore.protocols import Handler, Plan, StoredPart, WriteOptions
from blobstore.registry import make_handler
from blobstore.streams import CHUNK, Buffer, Hasher
from blobstore.trust import Trust

MAGIC = b"BLOBPKL1"
_PROTOCOL = 5
_OUT_OF_BAND = 1 << 16
_REFUSALS = (pickle.PicklingError, TypeError, AttributeError, RecursionError)
"""What pickle raises for objects that it cannot take; AttributeError for local classes."""

_CANONICAL_BY = {
    "numpy.ndarray": "numpy",
    "pandas.DataFrame": "pandas",
    "pandas.Series": "pandas",
    "pandas.core.frame.DataFrame": "pandas",
    "pandas.core.series.Series": "pandas",
}
"""Types with a canonical form of their own, also inside other objects -> the handler that has it."""


class PickleHandler(Handler):
    """The last resort: every object that pickle takes.

    Examples
    --------
    >>> PickleHandler().plan(1 + 2j, WriteOptions()).data_type
    'object'
    """

    name = "pickle"
    priority = -1000
    type_names = ("*",)
    runs_code = True

    def can_handle(self, obj: Any) -> bool:
        """Say yes; `plan` finds out."""
        return True

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Pickle the object, once; large buffers are not copied."""
        pieces = dump(obj)
        part = StreamPart(
            self.name,
            "data",
            pieces,
            options,
            extension=".pkl",
            digest=lambda hasher: digest_object(hasher, obj, pieces),
            executable=True,
        )
        cls = type(obj)
        return Plan("object", {"type": f"{cls.__module__}.{cls.__qualname__}"}, (part,))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Unpickle, as far as the part is trusted."""
        refuse_options(self, options)
        return load(parts["data"])


def dump(obj: Any) -> list[Buffer]:
    """Pickle `obj` into pieces that make up the stream.

    Raises
    ------
    UnsupportedTypeError
        Pickle does not take it (functions without a name, open files, locks ...).
    """
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _OUT_OF_BAND:
            return True
        buffers.append(raw)
        return False

    try:
        pickled = pickle.dumps(obj, protocol=_PROTOCOL, buffer_callback=keep_in_band)
    except _REFUSALS as exc:
        raise UnsupportedTypeError(
            f"an object of type {type(obj).__module__}.{type(obj).__qualname__} cannot be stored: "
            f"{exc}. Store what it is made of (its state, its parameters), or give the store a "
            "handler for it"
        ) from exc
    return frame(pickled, buffers)


def frame(pickled: bytes, buffers: Sequence[memoryview]) -> list[Buffer]:
    """Put a header before a pickle that has buffers apart."""
    if not buffers:
        return [pickled]
    sizes = [buffer.nbytes for buffer in buffers]
    header = struct.pack(f"<8sQI{len(sizes)}Q", MAGIC, len(pickled), len(sizes), *sizes)
    return [header, pickled, *buffers]


def load(part: StoredPart, resolve: Callable[[Any], Any] | None = None) -> Any:
    """Unpickle a stream written by `dump`, whose checksum was verified, as far as it is trusted.

    Parameters
    ----------
    part : StoredPart
        Its `trust` decides what the pickle may do; see `blobstore.handlers.unpickling`.
    resolve : callable, optional
        Gives the object that a persistent id stands for.

    Raises
    ------
    UntrustedTypeError
        It names what is neither harmless nor trusted.
    DecodeError
        It needs a class or module that is not here, or is no such stream.
    """
    try:
        if part.source.size <= CHUNK:
            return _load_bytes(read_stream(part), part.trust, resolve)
        with codecs.decoding(part.codec, f"part {part.name!r}"), open_stream(part) as stream:
            return _load_stream(stream, part.trust, resolve)
    except (ImportError, AttributeError) as exc:
        raise DecodeError(
            f"the stored object needs something that is not here: {exc}. Install or import the "
            "code that defines its class, as it was when the object was stored"
        ) from exc
    except BlobStoreError:
        raise
    except Exception as exc:
        # Unpickling runs the code of the object's class, which may raise anything at all.
        raise DecodeError(f"the stored object cannot be unpickled: {exc!r}") from exc


def _load_bytes(data: bytes, trust: Trust, resolve: Callable[[Any], Any] | None) -> Any:
    if data.startswith(MAGIC):
        return _load_stream(io.BytesIO(data), trust, resolve)
    return _unpickle(data, None, trust, resolve)


def _load_stream(stream: BinaryIO, trust: Trust, resolve: Callable[[Any], Any] | None) -> Any:
    """Read all bytes before any is unpickled: their checksum is compared at the end."""
    start = stream.read(len(MAGIC))
    if start != MAGIC:
        return _unpickle(start + stream.read(), None, trust, resolve)
    length, count = struct.unpack("<QI", stream.read(12))
    sizes = struct.unpack(f"<{count}Q", stream.read(8 * count))
    pickled = _exactly(stream, length)
    buffers = [_exactly(stream, size) for size in sizes]
    return _unpickle(pickled, buffers, trust, resolve)


def _unpickle(
    data: bytes | bytearray,
    buffers: list[bytearray] | None,
    trust: Trust,
    resolve: Callable[[Any], Any] | None,
) -> Any:
    if not trust.everything:
        from blobstore.handlers.unpickling import load_untrusted

        return load_untrusted(data, trust, buffers=buffers, resolve=resolve)
    if resolve is None:
        return pickle.loads(data, buffers=buffers)
    return _Resolving(io.BytesIO(data), buffers, resolve).load()


class _Resolving(pickle.Unpickler):
    """Gets the objects that persistent ids stand for from `resolve`."""

    def __init__(
        self, file: BinaryIO, buffers: list[bytearray] | None, resolve: Callable[[Any], Any]
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._resolve = resolve

    def persistent_load(self, pid: Any) -> Any:
        return self._resolve(pid)


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    """Read into fresh, writable memory that the loaded object will own."""
    try:
        buffer = bytearray(size)
    except (MemoryError, OverflowError) as exc:
        raise DecodeError(f"the stream says that {size} bytes follow, too many to hold") from exc
    view, done = memoryview(buffer), 0
    while done < size:
        count = stream.readinto(view[done : done + CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"{size - done} bytes are missing at the end")
        done += count
    return buffer


def digest_object(hasher: Hasher, obj: Any, pieces: Sequence[Buffer]) -> None:
    """Feed the content of any object: canonical where possible, else as it was pickled."""
    walk = hasher_like(hasher)
    try:
        Canonical(walk, known_types).add(obj)
    except (UnsupportedTypeError, RecursionError):
        hasher.update(b"blobstore:pickle:1\0")
        for piece in pieces:
            hasher.update(memoryview(piece).cast("B"))
    else:
        hasher.update(b"blobstore:object:1\0")
        hasher.update(bytes.fromhex(walk.hexdigest()))


def hasher_like(hasher: Hasher) -> Hasher:
    """A fresh hasher for a walk that may have to be given up half-way."""
    from blobstore.digest import new_digest

    return new_digest("sha256" if "sha" in getattr(hasher, "name", "") else "blake3")


def known_types(obj: Any, hasher: Hasher) -> bool:
    """Hook for `Canonical`: arrays and frames inside other objects, by their own handlers."""
    cls = type(obj)
    name = _CANONICAL_BY.get(f"{cls.__module__}.{cls.__qualname__}")
    if name is None:
        return False
    handler = make_handler(name)
    if not handler.can_handle(obj):
        return False
    try:
        plan = handler.plan(obj, WriteOptions())
    except UnsupportedTypeError:
        return False
    hasher.update(plan.data_type.encode() + b"\0")
    for part in plan.parts:
        part.digest(hasher)
    return True
