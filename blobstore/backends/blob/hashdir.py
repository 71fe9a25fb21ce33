"""Objects as files that are named by the hash of their keys, in folders of even size."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace

from blobstore.backends.blob.filesystem import FilesystemStore, KeyedName
from blobstore.errors import ConfigError, NotSupportedError
from blobstore.keys import encode_key
from blobstore.protocols import Capabilities

_DIGITS = 64  # of a SHA-256 in hexadecimal


class HashdirStore(FilesystemStore):
    """Objects as files below a folder, each at the SHA-256 of its key: ``2c/f2/4d/ba5fb0...``.

    Any text is a key, of any length, and no folder gets much fuller than the others. What a file's
    key was cannot be told from its name: such a store cannot list.

    Parameters
    ----------
    root_path : str or path
        Made by the first put; may itself be a symbolic link.
    width : int
        How many hexadecimal digits name a folder.
    depth : int
        How many folders there are on the way to a file; the rest of the digits is its name.
    fsync : bool
        Whether a put returns only when it would survive a power cut.
    tmp_dir : str or path, optional
        For files being written, on the same file system; by default a hidden folder in the root.

    Raises
    ------
    ConfigError
        A parameter is wrong, or the folders take all of the 64 digits.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = HashdirStore(folder.name)
    >>> store.put("hello", b"world")
    >>> store.get("hello"), str(store.local_path("hello")).removeprefix(folder.name)[:14]
    (b'world', '/2c/f2/4d/ba5f')
    >>> folder.cleanup()
    """

    def __init__(
        self,
        root_path: str | os.PathLike[str],
        width: int = 2,
        depth: int = 3,
        *,
        fsync: bool = False,
        tmp_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, value, least in (("width", width, 1), ("depth", depth, 0)):
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} must be an int of at least {least}, not {value!r}")
        if width * depth >= _DIGITS:
            raise ConfigError(
                f"{depth} folders of {width} digits leave none of the {_DIGITS} for the file: "
                "choose a smaller width or depth"
            )
        super().__init__(root_path, fsync=fsync, tmp_dir=tmp_dir)
        self.width = width
        self.depth = depth
        refuse_tmp_dir(
            self, re.compile(f"[0-9a-f]{{{width if depth else _DIGITS}}}", re.IGNORECASE)
        )

    @property
    def capabilities(self) -> Capabilities:
        """All there are, but listing."""
        return replace(super().capabilities, list=False)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Not to be had: a hash does not tell its key."""
        self._check_open()
        raise NotSupportedError(
            "a HashdirStore cannot list: its files are named by hashes, which do not tell the keys. "
            "Use a FilesystemStore, or a HashPrefixStore around one"
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self.root_path)!r}, width={self.width}, "
            f"depth={self.depth})"
        )

    def _name(self, key: str) -> KeyedName:
        self._check_open()
        digest = hashlib.sha256(encode_key(key)).hexdigest()
        split = self.width * self.depth
        folders = [digest[start : start + self.width] for start in range(0, split, self.width)]
        name = KeyedName((*folders, digest[split:]))
        name.key = key
        return name


def refuse_tmp_dir(store: FilesystemStore, folders: re.Pattern[str]) -> None:
    """Refuse temporary files that lie where objects would.

    Parameters
    ----------
    store : FilesystemStore
    folders : pattern
        What names right below the root are for objects.

    Raises
    ------
    ConfigError
    """
    drafts = store._tree.drafts.path  # noqa: SLF001 - of the class that this one extends
    inside, _, path = drafts.partition(f"{store.root_path}/")
    if not inside and folders.fullmatch(path.partition("/")[0]):
        raise ConfigError(f"tmp_dir={drafts!r} is where objects would lie: choose another")
