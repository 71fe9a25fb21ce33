"""Objects as files whose names any file system takes: the keys in base32."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator

from blobstore.backends.blob.filesystem import FilesystemStore, KeyedName
from blobstore.backends.blob.hashdir import refuse_tmp_dir
from blobstore.keys import encode_key, require_str

_PIECE = 248
"""Characters of base32 in one name: the most whole groups of eight that 255 bytes hold."""

_MORE = "-"
"""Ends the name of a folder, and is no character of base32: so no file has the name of a folder."""

_EMPTY = "_"
"""The file of the empty key, whose base32 would be no name."""

_FOLDER = re.compile(f"[A-Z2-7]{{{_PIECE}}}{_MORE}")


class SafeFilesystemStore(FilesystemStore):
    """Objects as files below a folder, named by the base32 of their keys: any text is a key.

    Keys that differ in case or in how their accents are composed stay apart on every file system,
    and none is in the way of another. "=" at the end of a name is written as "_". A key of more
    than 155 bytes is continued in folders, each with 248 characters of its name and a "-". (Names
    that Windows keeps for devices, such as "CON" or "COM2", are base32 of no text.) Keys of about
    2,300 bytes and more are `InvalidKeyError`: their paths are too long for the system.

    Parameters
    ----------
    root_path : str or path
        Made by the first put; may itself be a symbolic link.
    fsync : bool
        Whether a put returns only when it would survive a power cut.
    tmp_dir : str or path, optional
        For files being written, on the same file system; by default a hidden folder in the root.

    Raises
    ------
    ConfigError
        A path is none, or `tmp_dir` lies where objects would.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = SafeFilesystemStore(folder.name)
    >>> store.put("../Ünsafe?", b"1")
    >>> list(store.keys()), store.local_path("../Ünsafe?").name
    (['../Ünsafe?'], 'FYXC7Q44NZZWCZTFH4______')
    >>> folder.cleanup()
    """

    def __init__(
        self,
        root_path: str | os.PathLike[str],
        *,
        fsync: bool = False,
        tmp_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(root_path, fsync=fsync, tmp_dir=tmp_dir)
        refuse_tmp_dir(self, re.compile(f"[A-Z2-7_]+{_MORE}?", re.IGNORECASE))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys, folder by folder; files that are not named like ours are left out."""
        self._check_open()
        # The root is read now: errors come from the call.
        return self._find(require_str(prefix), self._tree.listing(()))

    def _name(self, key: str) -> KeyedName:
        self._check_open()
        return _name_of(key)

    def _find(self, prefix: str, listing: tuple[list[str], list[str]]) -> Iterator[str]:
        stem = _stem(prefix)
        pending: list[tuple[str, ...]] = []
        above: tuple[str, ...] = ()
        while True:
            files, folders = listing
            for leaf in files:
                key = _key_of((*above, leaf))
                if key is not None and key.startswith(prefix):
                    yield key
            start = stem[len(above) * _PIECE :][:_PIECE]
            pending += [
                (*above, n) for n in folders if _FOLDER.fullmatch(n) and n.startswith(start)
            ]
            if not pending:
                return
            above = pending.pop()
            listing = self._tree.listing(above)


def _name_of(key: str) -> KeyedName:
    text = base64.b32encode(encode_key(key)).decode().replace("=", "_") or _EMPTY
    *folders, leaf = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    name = KeyedName((*(folder + _MORE for folder in folders), leaf))
    name.key = key
    return name


def _key_of(name: tuple[str, ...]) -> str | None:
    """The key that has this name; None if none has."""
    text = "".join(part.removesuffix(_MORE) for part in name)
    try:
        key = "" if text == _EMPTY else base64.b32decode(text.replace("_", "=")).decode()
    except (binascii.Error, ValueError):  # not ASCII, no base32, or base32 of what is no text
        return None
    return key if _name_of(key) == name else None


def _stem(prefix: str) -> str:
    """What the base32 of every key with this prefix begins with."""
    try:
        data = prefix.encode()
    except UnicodeEncodeError:  # no key begins like that
        return ""
    return base64.b32encode(data).decode()[: len(data) * 8 // 5]
