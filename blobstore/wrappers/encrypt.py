"""A store that encrypts: what is beneath cannot be read, nor altered unnoticed, without the key."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from blobstore.entry import ObjectStat
from blobstore.errors import (
    BlobStoreError,
    ConfigError,
    IntegrityError,
    KeyNotFoundError,
)
from blobstore.keys import require_str
from blobstore.protocols import ObjectStore
from blobstore.streams import Buffer, copy_stream
from blobstore.wrappers.blocks import BlockTransformer, Layout, Sealer, read_exactly
from blobstore.wrappers.encryption_keys import ID_SIZE, EncryptionKey
from blobstore.wrappers.stream import StreamTransformingStore

_MAGIC = b"BSenc\x01"
"""What a stored object begins with: five letters, and the version of this format."""

_ID_END = len(_MAGIC) + ID_SIZE
_SALT = 32
_TAG = 16
_SUBKEY_FOR = b"blobstore encryption: AES-256-GCM of one object"


class EncryptingTransformer(BlockTransformer):
    """Encrypts objects under the first of some keys, and decrypts what any of them encrypted.

    A header of 46 bytes: ``BSenc``, the version (1), the id of the key (8 bytes), and 32 random
    bytes. From the key and the latter comes, by HKDF-SHA256 (RFC 5869), a key for this object
    alone. With it each block is sealed by AES-256-GCM (NIST SP 800-38D); the nonce is the number
    of the block (11 bytes, big-endian) and 1 if it is the last or else 0 (1 byte), so none comes
    twice under one key, however many objects there are. Associated data of each block are the
    header and the name of the object.

    Parameters
    ----------
    keys : list of EncryptionKey
    """

    keyed: ClassVar[bool] = True
    encrypts: ClassVar[bool] = True
    layout: ClassVar[Layout] = Layout(header=_ID_END + _SALT, overhead=_TAG)

    def __init__(self, keys: list[EncryptionKey]) -> None:
        self.current = keys[0]
        self._by_id = {key.id: key for key in reversed(keys)}

    def start(self, key: str) -> tuple[bytes, Sealer]:
        """Make a header, and what encrypts under it."""
        salt = secrets.token_bytes(_SALT)
        header = _MAGIC + bytes.fromhex(self.current.id) + salt
        return header, _GcmSealer(self.current, header, _name(key))

    def resume(self, header: bytes, key: str) -> Sealer:
        """Read a header."""
        key_id = self.key_id(header, key)
        found = self._by_id.get(key_id)
        if found is None:
            raise IntegrityError(
                f"the object {key!r} cannot be decrypted: this store has no key with this id "
                f"({key_id}). Give the key that it was written with in old_keys",
                location=key,
            )
        return _GcmSealer(found, header, _name(key))

    def key_id(self, header: bytes, key: str) -> str:
        """Tell under which key an object is."""
        if len(header) != self.layout.header or not header.startswith(_MAGIC):
            raise IntegrityError(
                f"the object {key!r} is damaged at its beginning, or was not written through "
                "an EncryptingStore: restore it from a copy, or read it from the store beneath",
                location=key,
            )
        return header[len(_MAGIC) : _ID_END].hex()


class _GcmSealer:
    """A `Sealer` that encrypts."""

    def __init__(self, key: EncryptionKey, header: bytes, name: bytes) -> None:
        derive = HKDF(algorithm=SHA256(), length=32, salt=header[_ID_END:], info=_SUBKEY_FOR)
        self._cipher = AESGCM(derive.derive(key.secret()))
        self._bound = header + name

    def seal(self, index: int, last: bool, data: Buffer, /) -> bytes:
        return self._cipher.encrypt(_nonce(index, last), data, self._bound)

    def open(self, index: int, last: bool, data: bytes, /) -> bytes | None:
        try:
            return self._cipher.decrypt(_nonce(index, last), data, self._bound)
        except InvalidTag:
            return None


class EncryptingStore(StreamTransformingStore):
    """Encrypts objects (AES-256-GCM), and notices whatever is done to what is stored.

    An altered bit, a cut or longer object, exchanged blocks, an object that was moved to another
    key: each is an `IntegrityError` when a read touches it. Streams and ranges work, and hold no
    more than a few blocks of 64 KiB.

    Not hidden are the keys of the objects, their sizes, and when they were written. Nor does the
    store notice that an object is gone, or is again what it once was under the same key. Who asks a
    sink or a source for a `path` gets the plain bytes in a temporary file, in a folder that only
    this user can enter, and that goes when the sink or the source is closed.

    Parameters
    ----------
    store : ObjectStore
        Keeps bytes; taken over: it is closed with this one.
    key : bytes or str or EncryptionKey
        What objects are written under: 16, 24 or 32 bytes, their base64, as in an environment
        variable, or a key. This is no passphrase: use `generate_key`.
    old_keys : iterable of bytes or str or EncryptionKey
        What else objects may have been written under.

    Raises
    ------
    ConfigError
        A key is none, or the store keeps other values than bytes.

    Notes
    -----
    A pickled store holds its keys, so that it works in other processes: keep the pickled bytes as
    you keep the keys. Neither `repr` nor an error shows them.

    Keys do not have to be changed for the amount that they encrypted, as each object has a key of
    its own. For one that got known: give the new one as `key`, that one in `old_keys`, and `rotate`.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = EncryptingStore(DictStore(), EncryptingStore.generate_key())
    >>> store.put("key", b"secret")
    >>> store.get("key"), b"secret" in store.store.get("key")
    (b'secret', False)
    """

    transformer: EncryptingTransformer

    def __init__(
        self,
        store: ObjectStore,
        key: bytes | str | EncryptionKey,
        *,
        old_keys: Iterable[bytes | str | EncryptionKey] = (),
    ) -> None:
        if isinstance(old_keys, bytes | bytearray | memoryview | str | EncryptionKey):
            raise ConfigError("old_keys is a list of keys, not a key: put it in brackets")
        if not isinstance(old_keys, Iterable):
            raise ConfigError(f"old_keys is a list of keys, not {type(old_keys).__name__}")
        keys = [EncryptionKey.of(each) for each in (key, *old_keys)]
        super().__init__(store, EncryptingTransformer(keys))

    @staticmethod
    def generate_key() -> str:
        """Make a random key of 256 bits, as base64: keep it where secrets are kept."""
        return EncryptionKey.generate()

    def _shown(self) -> dict[str, Any]:
        return {"key": self.transformer.current}

    def rotate(self, prefix: str = "") -> int:
        """Encrypt anew what is not under the current key, piece by piece.

        May be broken off and called again: what is done is left alone. Readers see the old or the
        new bytes, which are of the same object. An object that somebody else writes at that time
        is left to them, as far as times and etags of the store beneath tell: best let nobody write.

        Parameters
        ----------
        prefix : str
            Only keys that start with it.

        Returns
        -------
        int
            How many objects were encrypted anew.

        Raises
        ------
        NotSupportedError
            The store beneath cannot list.
        BlobStoreError
            Of the first object that could not be had; the others were seen to nevertheless.
        """
        count = failures = 0
        first: BlobStoreError | None = None
        for key in self.keys(prefix):
            try:
                count += self._rotate_one(key)
            except KeyNotFoundError:  # somebody removed it meanwhile
                continue
            except BlobStoreError as exc:
                failures += 1
                first = first or exc
        if first is not None:
            first.add_note(f"{failures} objects could not be encrypted anew; {count} were")
            raise first
        return count

    def _rotate_one(self, key: str) -> bool:
        while True:
            before = self.store.stat(key)
            with self.store.open(key) as file:
                header = read_exactly(file, self.transformer.layout.header)
            if self.transformer.key_id(header, key) == self.transformer.current.id:
                return False
            if self._encrypt_anew(key, before):
                return True

    def _encrypt_anew(self, key: str, before: ObjectStat) -> bool:
        """Write an object that is still what it was; False if it is not."""
        sink = self.writer(key)
        try:
            with self.open(key) as reader:
                copy_stream(reader, sink)
            if unchanged := self.store.stat(key) == before:
                sink.commit()
        finally:
            sink.abort()  # which does nothing to what was committed
        return unchanged


def _nonce(index: int, last: bool) -> bytes:
    return index.to_bytes(11, "big") + bytes([last])


def _name(key: object) -> bytes:
    return require_str(key).encode("utf-8", "surrogatepass")
