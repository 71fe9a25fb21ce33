"""Which files may run code when they are read: those that bear the reader's own signature.

Files of open formats run nothing. A pickle, and a PyTorch file that holds more than tensors, are
signed when they are written, by the user's key (`blobstore.signing`): a keyed BLAKE3 hash of the
name in the store and the BLAKE3 of the content. The signature stands where other tools do not mind
it: behind the end of a pickle, and in the comment of a zip file.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from blobstore.errors import BlobStoreError, ConfigError, StorageError, UntrustedTypeError
from blobstore.limits import MAX_DECOMPRESSED, UNLIMITED, check_limit
from blobstore.protocols import ObjectStore
from blobstore.protocols.file_format import FileContext
from blobstore.signing import Key, Keyring
from blobstore.streams import CHUNK, Buffer, Hasher, Sink, Source, as_contiguous
from blobstore.trust import EVERYTHING, Trust, TypePatterns

_TRAILER = re.compile(rb"\nblobstore-signature:1:b3:([0-9a-f]{8}):([0-9a-f]{64})\n")
_MARK = b"\nblobstore-signature:"
SIZE = len("\nblobstore-signature:1:b3:12345678:\n") + 64
"""Bytes of a signature in a file."""

SIGNED = (".pkl", ".pickle", ".pt", ".pth", ".skops")
"""Extensions of files that are signed."""

_MODES = ("signed", "allow", "deny")


class FileTrust:
    """What a store lets its files do.

    Parameters
    ----------
    mode : {"signed", "allow", "deny"}
    trusted_types : iterable of str
    signing_keys : iterable, optional
    max_decompressed : int
        Bytes that a file may grow to; see `blobstore.limits`. With "allow" there is no limit.

    Attributes
    ----------
    limits : Trust
        What a file that is not the reader's own may do, and grow to.

    Raises
    ------
    ConfigError
        One of them is wrong.
    """

    def __init__(
        self,
        mode: str = "signed",
        trusted_types: Iterable[str] = (),
        signing_keys: Iterable[bytes | str] | None = None,
        max_decompressed: int = MAX_DECOMPRESSED,
    ) -> None:
        if mode not in _MODES:
            raise ConfigError(f"pickle must be one of {', '.join(_MODES)}, not {mode!r}")
        self.mode = mode
        self.types = TypePatterns(trusted_types)
        asked = check_limit(max_decompressed)
        limit = UNLIMITED if mode == "allow" else asked
        self.limits = Trust(types=self.types, max_decompressed=limit)
        self._keyring = Keyring(signing_keys)

    @staticmethod
    def of(context: FileContext) -> FileTrust:
        """That of the store whose file it is; one that trusts nothing where there is none."""
        trust = context.trust
        return trust if isinstance(trust, FileTrust) else FileTrust()

    def growth_limit(self, stored: int) -> int:
        """How many bytes a file of `stored` bytes may become when it is decompressed."""
        return self.limits.growth_limit(stored)

    def check_allowed(self, key: str, what: str) -> None:
        """Refuse what may run code where the store says so.

        Raises
        ------
        UntrustedTypeError
        """
        if self.mode == "deny":
            raise UntrustedTypeError(
                f"{key!r} is {what}, and the store was opened with pickle='deny'", key=key
            )

    # --- writing ---

    def signature(self, key: str, digest: str) -> bytes:
        """The bytes that follow the content of a file; none where there is no key to sign with."""
        by = self._keyring.signing_key()
        if by is None:
            return b""
        return f"\nblobstore-signature:1:b3:{by.id}:{_mac(by, key, digest)}\n".encode()

    def copy(self, objects: ObjectStore, source: str, target: str) -> bool:
        """Copy a file that is the reader's own, signed anew for its new name; whether it was."""
        zipped = not source.lower().endswith((".pkl", ".pickle"))
        with objects.source(source) as stored:
            if self.doubt(stored, source, zipped=zipped) is not None:
                return False
            size = stored.size - SIZE
            signed = stored.read_range(size, stored.size)
            with stored.open() as file, objects.writer(target, stored.size) as sink:
                hasher = _ContentHasher(size if zipped else None)
                while chunk := file.read(min(CHUNK, size - file.tell())):
                    hasher.update(chunk)
                    sink.write(chunk)
                # Signed anew is only what was signed, not what somebody wrote there meanwhile.
                if self._doubt(signed, source, hasher.hexdigest) is not None:
                    raise StorageError(
                        f"{source!r} was changed while it was copied: try again", key=source
                    )
                sink.write(self.signature(target, hasher.hexdigest()))
        return True

    # --- reading ---

    def trust_in(
        self, source: Source, key: str, what: str = "a pickle", *, zipped: bool = False
    ) -> Trust:
        """What a file may do."""
        self.check_allowed(key, what)
        if self.mode == "allow":
            return EVERYTHING
        reason = self.doubt(source, key, zipped=zipped)
        return EVERYTHING if reason is None else replace(self.limits, reason=reason)

    def require(self, source: Source, key: str, what: str, exc: Exception) -> None:
        """Insist that a file may run code.

        Raises
        ------
        UntrustedTypeError
        """
        self.check_allowed(key, what)
        if self.mode == "allow":
            return
        reason = self.doubt(source, key, zipped=True)
        if reason is not None:
            raise UntrustedTypeError(
                f"{key!r} is {what}, whose code would run, and is not trusted: {reason}. Load only "
                "its tensors, get the writer's signing key, or open the store with pickle='allow'",
                key=key,
            ) from exc

    def doubt(self, source: Source, key: str, *, zipped: bool) -> str | None:
        """Why a file is not the reader's own; None if it is."""
        content = source.size - SIZE

        def digest() -> str:
            hasher = _ContentHasher(content if zipped else None)
            with source.open() as file:
                while chunk := file.read(min(CHUNK, content - file.tell())):
                    hasher.update(chunk)
            return hasher.hexdigest()

        return self._doubt(source.read_range(max(content, 0), source.size), key, digest)

    def _doubt(self, trailer: bytes, key: str, digest: Callable[[], str]) -> str | None:
        found = _TRAILER.fullmatch(trailer)
        if found is None:
            if _MARK in trailer:
                return "its signature is damaged"
            return "it is not signed"
        key_id, mac = (part.decode() for part in found.groups())
        try:
            by = self._keyring.find(key_id)
        except ConfigError as exc:
            return f"its signature could not be checked, because {exc}"
        if by is None:
            return f"it is signed by a key that is not yours ({key_id})"
        if not hmac.compare_digest(mac, _mac(by, key, digest())):
            return (
                "its signature does not match: its content or name was changed, or it was damaged, "
                "since it was signed"
            )
        return None


def growth_limit(context: FileContext, stored: int) -> int:
    """How many bytes a file of `stored` bytes may become, as its store says."""
    return FileTrust.of(context).growth_limit(stored)


class ZipSigner:
    """A file as far as makers of zip files write to one, which signs what goes through it.

    Nothing is written twice, nor lies anywhere unsigned: the last two bytes, which are the length
    of the comment, are held back until the signature that becomes the comment is known.

    Parameters
    ----------
    sink : Sink
    trust : FileTrust
    key : str
        Name of the file in its store.

    Attributes
    ----------
    failure : Exception or None
        What the sink refused with. Libraries that write through native code lose it on the way.
    """

    failure: Exception | None = None

    def __init__(self, sink: Sink, trust: FileTrust, key: str) -> None:
        self._sink = sink
        self._trust = trust
        self._key = key
        self._hasher = new_hasher()
        self._held = b""

    def write(self, data: Buffer, /) -> int:
        """Pass on all but the last two bytes so far."""
        given = view = memoryview(as_contiguous(data))
        if len(view) < 2:
            view = memoryview(self._held + view)
        else:
            self._pass_on(memoryview(self._held))
        self._pass_on(view[:-2])
        self._held = bytes(view[-2:])
        return len(given)

    def flush(self) -> None:
        """Do nothing; PyTorch insists."""

    def finish(self) -> None:
        """Write the signature, unless the file has a comment already."""
        self._hasher.update(self._held)
        trailer = self._trust.signature(self._key, self._hasher.hexdigest())
        if trailer and self._held == b"\0\0":
            self._held = len(trailer).to_bytes(2, "little") + trailer
        self._sink.write(self._held)

    def _pass_on(self, data: memoryview) -> None:
        if not data:
            return
        self._hasher.update(data)
        try:
            self._sink.write(data)
        except (BlobStoreError, OSError) as exc:
            self.failure = exc
            raise


class _ContentHasher:
    """Hashes content as it was when it was signed: a zip file had a comment of no length then.

    Parameters
    ----------
    size : int or None
        Of the content of a zip file, whose last two bytes are the length of the comment.
    """

    def __init__(self, size: int | None) -> None:
        self._hasher = new_hasher()
        self._left = size

    def update(self, chunk: bytes) -> None:
        if self._left is not None:
            keep = max(0, self._left - 2)
            self._left -= len(chunk)
            chunk = chunk[:keep] + bytes(max(0, len(chunk) - keep))
        self._hasher.update(chunk)

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


def new_hasher() -> Hasher:
    """What content is hashed by."""
    from blobstore.digest import new_digest

    return new_digest("blake3")


def without_signature(data: bytes) -> bytes:
    """Content without the signature behind it, if there is one."""
    return data[:-SIZE] if _TRAILER.fullmatch(data[-SIZE:]) else data


def _mac(by: Key, key: str, digest: str) -> str:
    from blake3 import blake3

    name = key.encode()
    statement = b"blobstore:file:1:%d:%b:%b" % (len(name), name, digest.encode())
    found: str = blake3(statement, key=by.secret).hexdigest()
    return found
