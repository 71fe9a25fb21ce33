"""Signatures, by which a reader knows what it stored itself; and the keys that they are made with.

A signature is a keyed BLAKE3 hash of a *statement*: a versioned text that begins with the lengths of
all fields, so that no two entries have the same. It binds store, key, commit, handler, type, info,
metadata, and of each part its name, checksum and format; not the location, which may be another
where a blob is shared, nor what the index counts (id, version, times).

Keys are 32 random bytes each. They are in the file ``blobstore/signing.keys`` in the user's
configuration folder, one a line in hexadecimal, or in the variable ``BLOBSTORE_SIGNING_KEY``,
separated by commas. The first signs, all verify.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from blobstore.entry import Entry, EntryDraft
from blobstore.errors import ConfigError

logger = logging.getLogger(__name__)

VARIABLE = "BLOBSTORE_SIGNING_KEY"
KEY_BYTES = 32
_LOCK_SECONDS = 10.0
_SCHEME = "b3"


class Key(NamedTuple):
    """One signing key, and the short name by which signatures refer to it."""

    secret: bytes
    id: str


def make_key(secret: bytes) -> Key:
    """Give a secret its name.

    Examples
    --------
    >>> make_key(bytes(32)).id
    '2ada83c1'
    """
    from blake3 import blake3

    return Key(secret, blake3(secret).hexdigest()[:8])


class _Decimals(dict[int, str]):
    """Numbers as text; small ones at hand, since there are many in every statement."""

    def __missing__(self, number: int) -> str:
        return str(number)


_DECIMALS = _Decimals((number, str(number)) for number in range(1 << 10))


def statement(store_id: str, key: str, commit_id: str, entry: Entry | EntryDraft) -> bytes:
    """What is signed: the lengths of all fields that say what an entry is, and then the fields."""
    fields = [
        store_id, key, commit_id, entry.handler, entry.data_type, entry.info_text,
        entry.metadata_text,
    ]  # fmt: skip
    for name, blob, _ in entry.parts:
        fields += (name, blob.checksum, blob.codec, blob.handler, str(blob.format_version))
    sizes = ",".join([_DECIMALS[len(field)] for field in fields])
    text = f"blobstore:entry:1:{sizes}:{''.join(fields)}"
    return text.encode("utf-8", "surrogatepass")  # handlers may note names with lone surrogates


class Keyring:
    """The keys of one user, read when they are first needed.

    Parameters
    ----------
    keys : iterable of (bytes or str), optional
        Instead of the user's: 32 bytes each, or their hexadecimal form.

    Raises
    ------
    ConfigError
        One of `keys` is no key.

    Examples
    --------
    >>> Keyring([bytes(32)]).signing_key().id
    '2ada83c1'
    """

    def __init__(self, keys: Iterable[bytes | str] | None = None) -> None:
        self._given = None if keys is None else _given(keys)
        self._keys: dict[str, Key] = {}
        self._first: Key | None = None
        self._facts: object = None
        if self._given is not None:
            self._take(self._given)

    def signing_key(self) -> Key | None:
        """The key to sign with, made if there is none; None, with a warning, if it cannot be.

        Raises
        ------
        ConfigError
            The file of keys is not what it has to be; nothing is signed with it.
        """
        if self._first is None:
            self._load()
            if self._first is None:
                try:
                    self._take(_make_file(key_file()))
                except OSError as exc:
                    _warn_unsigned(str(exc))
        return self._first

    def find(self, key_id: str) -> Key | None:
        """The key that a signature names, or None. Looks for new ones, if it is not known yet.

        Raises
        ------
        ConfigError
            The file of keys is not what it has to be.
        """
        found = self._keys.get(key_id)
        if found is None and self._given is None:
            self._load()
            found = self._keys.get(key_id)
        return found

    def _load(self) -> None:
        """Read variable or file again, if they changed."""
        if self._given is not None:
            return
        text = os.environ.get(VARIABLE)
        if text:
            if text != self._facts:
                self._take(parse(text.split(","), f"the variable {VARIABLE}"))
                self._facts = text
            return
        path = key_file()
        try:
            facts = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as exc:
            raise ConfigError(f"the signing keys {path} cannot be read: {exc.strerror}") from exc
        seen = (facts.st_mtime_ns, facts.st_ino, facts.st_size, facts.st_ctime_ns)
        if seen != self._facts:
            self._take(read_file(path))
            self._facts = seen

    def _take(self, keys: Sequence[Key]) -> None:
        self._keys = {key.id: key for key in reversed(keys)}
        self._first = keys[0] if keys else None


class Signer:
    """Signs and verifies the entries of one store.

    Parameters
    ----------
    store_id : str
    keyring : Keyring

    Examples
    --------
    >>> signer = Signer("store", Keyring([bytes(32)]))
    >>> draft = EntryDraft("k", "pickle", "object", "{}", "{}", (), 0, now_us=1)
    >>> signer.sign(draft, "k", "commit").split(":")[:2]
    ['b3', '2ada83c1']
    """

    def __init__(self, store_id: str, keyring: Keyring) -> None:
        self._store_id = store_id
        self._keyring = keyring

    def sign(self, entry: Entry | EntryDraft, key: str, commit_id: str) -> str | None:
        """The signature of an entry as it will be; None where there is no key to sign with."""
        by = self._keyring.signing_key()
        if by is None:
            return None
        return f"{_SCHEME}:{by.id}:{self._mac(by, entry, key, commit_id)}"

    def can_sign(self) -> bool:
        """Whether there is a key to sign with."""
        return self._keyring.signing_key() is not None

    def doubt(self, entry: Entry) -> str | None:
        """Why an entry is not the reader's own; None if it is."""
        if entry.signature is None:
            return "it is not signed"
        scheme, _, rest = entry.signature.partition(":")
        key_id, _, mac = rest.partition(":")
        if scheme != _SCHEME or not mac:
            return "its signature is of a kind that is not known here"
        try:
            by = self._keyring.find(key_id)
        except ConfigError as exc:
            return f"its signature could not be checked, because {exc}"
        if by is None:
            return f"it is signed by a key that is not yours ({key_id})"
        if not hmac.compare_digest(mac, self._mac(by, entry, entry.key, entry.commit_id)):
            return (
                "its signature does not match: the entry, or what it refers to, was changed since "
                "it was signed"
            )
        return None

    def renew(self, old: Entry, new: Entry) -> str | None:
        """The signature of what an entry was turned into: only of what was the reader's own."""
        if old.signature is None or self.doubt(old) is not None:
            return None
        return self.sign(new, new.key, new.commit_id)

    def _mac(self, by: Key, entry: Entry | EntryDraft, key: str, commit_id: str) -> str:
        text = statement(self._store_id, key, commit_id, entry)
        digest: str = _blake3()(text, key=by.secret).hexdigest()
        return digest


@functools.cache
def _blake3() -> type:
    from blake3 import blake3

    return blake3


# --- the file of keys ----------------------------------------------------------------------------


def key_file() -> Path:
    """Where the user's keys are: below ``$XDG_CONFIG_HOME``, or ``~/.config`` without it."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(base) if os.path.isabs(base) else Path.home() / ".config"  # noqa: PTH117 - of a variable that may be empty
    except RuntimeError:  # a user without a home: a place where nothing is ever made
        folder = Path(os.devnull)
    return folder / "blobstore" / "signing.keys"


def parse(lines: Iterable[str], where: str) -> list[Key]:
    """Read keys, one in each line; empty lines and those with ``#`` before them are passed over.

    Raises
    ------
    ConfigError
        A line is no key; it is not shown. Or there is none.
    """
    keys = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            keys.append(_key_of(text, f"key {number} of {where}"))
    if not keys:
        raise ConfigError(f"{where} has no signing key: remove it, and one is made")
    return keys


def read_file(path: Path) -> list[Key]:
    """Read a file of keys, if nobody else could have read or written it.

    Raises
    ------
    ConfigError
        It, or its folder, is somebody else's or open to others; or it holds what is no key.
    """
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            _check_folder(path.parent, path.parent.stat())
            content = file.read(1 << 20)
        text = content.decode("ascii")
    except OSError as exc:
        raise ConfigError(f"the signing keys {path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the signing keys {path} are no text: {exc}") from exc
    return parse(text.splitlines(), str(path))


def rotate(*, drop_old: bool = False) -> str:
    """Sign with a new key from now on; what older ones signed still verifies.

    Parameters
    ----------
    drop_old : bool
        Forget the older keys, because they may have got into other hands: what they signed then
        loads as what others wrote does, until it is stored anew.

    Returns
    -------
    str
        The short name of the new key, as signatures have it.

    Raises
    ------
    ConfigError
        Keys come from the variable, or the file cannot be used.
    """
    if os.environ.get(VARIABLE):
        raise ConfigError(f"the keys are those of {VARIABLE}: put a new one first in there")
    path = key_file()
    try:
        with _locked(path):
            old = read_file(path) if path.exists() and not drop_old else []
            new = make_key(secrets.token_bytes(KEY_BYTES))
            _write(path, [new, *old])
    except OSError as exc:
        raise ConfigError(f"the signing keys {path} cannot be written: {exc}") from exc
    return new.id


def _make_file(path: Path) -> list[Key]:
    """Make the file with a first key; where another process was faster, take its."""
    with _locked(path):
        if path.exists():
            return read_file(path)
        keys = [make_key(secrets.token_bytes(KEY_BYTES))]
        _write(path, keys)
        return keys


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Make the folder, and keep others from making or changing the file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_folder(path.parent, path.parent.stat())
    try:
        with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS, mode=0o600):
            yield
    except Timeout as exc:
        raise ConfigError(f"{path}.lock is held by another process for too long") from exc


def _write(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file, so that others see the old or the new one, whole; readable by its owner."""
    text = "".join(f"{key.secret.hex()}\n" for key in keys)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # 0600 from the start
    try:
        with open(handle, "w", encoding="ascii") as file:  # noqa: PTH123 - a descriptor
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _check_private(path: Path, facts: os.stat_result) -> None:
    _check_owner(path, facts)
    if stat.S_IMODE(facts.st_mode) & 0o077:
        raise ConfigError(
            f"the signing keys {path} can be read or written by others (mode "
            f"{stat.S_IMODE(facts.st_mode):04o}), who could sign in your name. If nobody did: chmod "
            "600; else remove the file, and a new key is made"
        )


def _check_folder(path: Path, facts: os.stat_result) -> None:
    _check_owner(path, facts)
    if stat.S_IMODE(facts.st_mode) & 0o022:
        raise ConfigError(
            f"the folder of the signing keys {path} can be written by others (mode "
            f"{stat.S_IMODE(facts.st_mode):04o}): chmod 700"
        )


def _check_owner(path: Path, facts: os.stat_result) -> None:
    if hasattr(os, "geteuid") and facts.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to the user {facts.st_uid}, not to you ({os.geteuid()}): signing keys "
            f"must be your own. Set XDG_CONFIG_HOME to a folder of yours, or {VARIABLE}"
        )


def _given(keys: Iterable[bytes | str]) -> list[Key]:
    if isinstance(keys, bytes | str):
        raise ConfigError("signing_keys must be a list of keys, not a single one")
    given: Any = keys
    if not isinstance(given, Iterable):
        raise ConfigError(f"signing_keys must be a list of keys, not {type(given).__name__}")
    found = []
    for number, key in enumerate(keys, 1):
        where = f"key {number} of signing_keys"
        if isinstance(key, bytes):
            found.append(_key_of(key.hex(), where))
        elif isinstance(key, str):
            found.append(_key_of(key.strip(), where))
        else:
            raise ConfigError(f"{where} must be 32 bytes, or their hexadecimal form")
    if not found:
        raise ConfigError("signing_keys has no key: leave it out, and your own are used")
    return found


def _key_of(text: str, where: str) -> Key:
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        # Not shown: it may be a key with a digit too many.
        raise ConfigError(f"{where} must be {KEY_BYTES} bytes in hexadecimal, 64 digits")
    return make_key(secret)


@functools.cache
def _warn_unsigned(reason: str) -> None:
    logger.warning(
        "objects are stored without a signature, because no signing key could be made in %s (%s): "
        "plain data loads all the same, classes of your own only if they are trusted. Set "
        "XDG_CONFIG_HOME to a folder that can be written, or %s",
        key_file().parent,
        reason,
        VARIABLE,
    )
