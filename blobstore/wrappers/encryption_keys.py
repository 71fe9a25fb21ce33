"""Keys of encrypting stores: how they are given, and what may be told of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from typing import Final

from blobstore.errors import ConfigError

_SIZES = (16, 24, 32)
ID_SIZE: Final = 8
"""Bytes of a key's id."""

_ID_OF = b"blobstore encryption: id of a key"
_HEX = re.compile("[0-9a-fA-F]{32}")
_ADVICE = "give 16, 24 or 32 bytes, or their base64; EncryptingStore.generate_key() makes some"


class EncryptionKey:
    """A secret key. Its `repr` shows only an id, from which the key cannot be had.

    It can be pickled, so that a store can be given to another process: who has the pickled bytes
    has the key.

    Parameters
    ----------
    secret : bytes or str
        16, 24 or 32 random bytes, or their base64 (either alphabet). This is no passphrase: use
        what `generate` made, or what a key service gives.

    Attributes
    ----------
    id : str
        16 hexadecimal digits. Objects carry it, to tell which key they need.

    Raises
    ------
    ConfigError
        It is none of these; the message does not repeat it.

    Examples
    --------
    >>> EncryptionKey(bytes(32))
    EncryptionKey(id='0868679a125df091')
    >>> EncryptionKey(b"short")
    Traceback (most recent call last):
    ...
    blobstore.errors.ConfigError: a key does not have 5 bytes: give 16, 24 or 32 bytes, or their base64; EncryptingStore.generate_key() makes some
    """

    __slots__ = ("_secret", "id")

    def __init__(self, secret: bytes | str) -> None:
        self._secret = _decoded(secret)
        self.id = hmac.digest(self._secret, _ID_OF, hashlib.sha256)[:ID_SIZE].hex()

    @classmethod
    def of(cls, key: bytes | str | EncryptionKey) -> EncryptionKey:
        """Return a key as it is, or make one."""
        return key if isinstance(key, cls) else cls(key)  # type: ignore[arg-type]

    @staticmethod
    def generate() -> str:
        """Make the base64 of 32 random bytes."""
        return base64.b64encode(secrets.token_bytes(32)).decode()

    def secret(self) -> bytes:
        """The key itself."""
        return self._secret

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EncryptionKey):
            return NotImplemented
        return hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r})"


def _decoded(secret: object) -> bytes:
    if isinstance(secret, str):
        secret = _from_base64(secret)
    if not isinstance(secret, bytes | bytearray | memoryview):
        raise ConfigError(f"{type(secret).__name__} is no type of a key: {_ADVICE}")
    found = bytes(secret)
    if len(found) not in _SIZES:
        raise ConfigError(f"a key does not have {len(found)} bytes: {_ADVICE}")
    return found


def _from_base64(text: str) -> bytes:
    plain = text.strip().translate(str.maketrans("-_", "+/"))
    if _HEX.fullmatch(plain):
        # Base64 of another key, of 24 bytes. Of random keys, not one in 10 ** 15 looks like that.
        raise ConfigError(
            f"the text that was given as a key looks hexadecimal: give bytes.fromhex(it), or {_ADVICE}"
        )
    try:
        return binascii.a2b_base64(plain + "=" * (-len(plain) % 4), strict_mode=True)
    except ValueError:
        # Not chained: what the library says could show a part of it.
        raise ConfigError(f"the text that was given as a key is no base64: {_ADVICE}") from None
