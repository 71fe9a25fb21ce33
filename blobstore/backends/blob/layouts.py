"""How keys become names of files: by path, or by id in sharded folders."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from blobstore.backends.blob.path_errors import Name
from blobstore.errors import InvalidKeyError, KeyNotFoundError
from blobstore.keys import require_str

MARKER = ".blobstore-id"
"""The blob that says which index a backend belongs to: beside the shards, and not listed."""

_BLOB_ID = re.compile(r"[A-Za-z0-9._-]+")


def path_name(key: str, is_reserved: Callable[[Name], bool]) -> Name:
    """Take a key apart that is a relative path.

    Raises
    ------
    InvalidKeyError
        It is no such path, or in the way of the temporary files.

    Examples
    --------
    >>> path_name("runs/1/log.txt", lambda name: False)
    ('runs', '1', 'log.txt')
    """
    name = tuple(require_str(key).split("/"))
    if not all(map(is_segment, name)):
        raise InvalidKeyError(
            f"the key {key!a} is no path below the root: it needs segments of UTF-8 separated "
            "by single slashes, none of them empty, '.' or '..'",
            location=key,
        )
    if is_reserved(name):
        raise InvalidKeyError(
            f"the key {key!r} is where temporary files are kept: choose another", location=key
        )
    return name


class ShardLayout:
    """Ids in folders that are named by how the ids begin.

    Parameters
    ----------
    root : str
    shard_chars : int
    is_reserved : callable
        Whether a name is in the way of the temporary files.

    Examples
    --------
    >>> layout = ShardLayout("/blobs", 2, lambda name: False)
    >>> layout.name("abc123"), layout.find("/blobs/ab/abc123")
    (('ab', 'abc123'), ('ab', 'abc123'))
    """

    def __init__(self, root: str, shard_chars: int, is_reserved: Callable[[Name], bool]) -> None:
        self._root = root
        self._shard_chars = shard_chars
        self._is_reserved = is_reserved

    def name(self, blob_id: str) -> Name:
        """Where a blob of this id belongs.

        Raises
        ------
        InvalidKeyError
            It is no id.
        """
        if require_str(blob_id) == MARKER:
            return (MARKER,)
        shard = blob_id[: self._shard_chars]
        if not _BLOB_ID.fullmatch(blob_id) or shard in {".", ".."}:
            raise InvalidKeyError(
                f"{blob_id!a} is no blob id: it needs letters, digits, '.', '_' and '-' only, and "
                "more than dots where it names its folder",
                location=blob_id,
            )
        if self._is_reserved((shard, blob_id)):
            raise InvalidKeyError(
                f"blob ids that begin with {shard!r} collide with tmp_dir: choose another tmp_dir",
                location=blob_id,
            )
        return (shard, blob_id)

    def find(self, blob_path: str | os.PathLike[str]) -> Name:
        """Where the blob lies that is meant by an id, a path below the root, or an absolute path.

        Raises
        ------
        InvalidKeyError
            The path is not inside the root.
        KeyNotFoundError
            It is, but no blob can be there.
        """
        path = os.fspath(blob_path) if isinstance(blob_path, os.PathLike) else blob_path
        if "/" not in require_str(path):
            return self.name(path)
        name = tuple(self._below_root(path).split("/"))
        if not all(map(is_segment, name)):
            raise self._outside(path)
        if not self.is_at_home(name):
            raise KeyNotFoundError(
                f"{path!r} is not where blobs of {self._root} lie", location=path
            )
        return name

    def is_at_home(self, name: Name) -> bool:
        """Whether a file of this name is a blob: an id in the folder of its shard, or the marker."""
        if name == (MARKER,):
            return True
        return (
            len(name) == 2
            and name[0] == name[1][: self._shard_chars]
            and _BLOB_ID.fullmatch(name[1]) is not None
            and not self._is_reserved(name)
        )

    def _below_root(self, path: str) -> str:
        if not path.startswith("/"):
            return path
        # Callers may have resolved the path that they were given.
        for root in (self._root, os.path.realpath(self._root)):
            if path.startswith(root + "/"):
                return path[len(root) + 1 :]
        raise self._outside(path)

    def _outside(self, path: str) -> InvalidKeyError:
        return InvalidKeyError(
            f"{path!a} is not inside {self._root}: give the id of a blob, or the path that "
            "write_blob answered",
            location=path,
        )


def is_segment(segment: str) -> bool:
    """Whether a string can be the name of a file or folder, and of nothing else."""
    if segment in {"", ".", ".."} or "\0" in segment:
        return False
    try:
        segment.encode()
    except UnicodeEncodeError:
        return False
    return True
