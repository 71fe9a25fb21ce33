"""Keys of an AutoStore, and the names of the files that hold them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from functools import lru_cache

from blobstore.backends.blob.file_tree import DRAFTS
from blobstore.errors import InvalidInputError, InvalidKeyError
from blobstore.keys import encode_key


def key_text(key: object) -> str:
    """The text of a key, which may also be given as a relative path.

    Raises
    ------
    InvalidKeyError
        It is neither text nor path, empty, or leads out of the store.

    Examples
    --------
    >>> from pathlib import Path
    >>> key_text(Path("runs") / "7" / "scores")
    'runs/7/scores'
    >>> key_text("../up")
    Traceback (most recent call last):
    ...
    blobstore.errors.InvalidKeyError: '../up' is no key: a key is a relative path without empty, '.' or '..' parts
    """
    text = os.fspath(key) if isinstance(key, os.PathLike) else key
    if not isinstance(text, str):
        raise InvalidKeyError(f"a key is text or a relative path, not {type(key).__name__}")
    encode_key(text)
    parts = text.split("/")
    if "\\" in text or "\0" in text or any(part in ("", ".", "..") for part in parts):
        raise InvalidKeyError(
            f"{text!r} is no key: a key is a relative path without empty, '.' or '..' parts",
            key=text,
        )
    if DRAFTS in parts:
        raise InvalidKeyError(
            f"{text!r} is where a store keeps temporary files: choose another key", key=text
        )
    return text


def is_key(text: str) -> bool:
    """Whether a file of another tool, or of a store in a folder inside, has a name that is a key.

    Examples
    --------
    >>> is_key("runs/7"), is_key("runs//8"), is_key("inner/.blobstore-tmp/put-0a1b")
    (True, False, False)
    """
    try:
        key_text(text)
    except InvalidKeyError:
        return False
    return True


def split(name: str, extensions: Collection[str]) -> tuple[str, str]:
    """Divide a name into key and extension; only known extensions are some, the longest first.

    Other tools write some in capitals (IMG_7.JPG), so these are extensions too. What is left of the
    name can be a key, so neither nothing nor "." or "..".

    Examples
    --------
    >>> split("m.sparse.npz", {".npz", ".sparse.npz"}), split("model.v1", {".npz"})
    (('m', '.sparse.npz'), ('model.v1', ''))
    >>> split("IMG_7.JPG", {".jpg"}), split("Notes.Jpg", {".jpg"})
    (('IMG_7', '.jpg'), ('Notes.Jpg', ''))
    >>> split("folder/.json", {".json"})
    ('folder/.json', '')
    >>> split("..json", {".json"}), split("a/...json", {".json"})
    (('..json', ''), ('a/...json', ''))
    """
    last = name.rpartition("/")[2]
    start = last.find(".", 1)
    while start != -1:
        found = last[start:]
        lower = found.lower()
        known = lower in extensions and found in (lower, lower.upper())
        if known and last[:start] not in (".", ".."):
            return name[: -len(found)], lower
        start = last.find(".", start + 1)
    return name, ""


@lru_cache(maxsize=256)
def glob(pattern: str, *, anywhere: bool) -> re.Pattern[str]:
    """A shell pattern for paths: ``*`` and ``?`` stay within a folder, ``**`` does not.

    Parameters
    ----------
    pattern : str
    anywhere : bool
        Whether a pattern without a slash means files of any folder.

    Examples
    --------
    >>> bool(glob("*.json", anywhere=True).fullmatch("runs/7/a.json"))
    True
    >>> bool(glob("runs/*.json", anywhere=True).fullmatch("runs/7/a.json"))
    False
    """
    said = pattern
    if anywhere and "/" not in said:
        said = "**/" + said
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^]]+\])", said)
    try:
        return re.compile("".join(map(_piece, parts)), re.DOTALL)
    except re.error as exc:
        raise InvalidInputError(f"{pattern!r} is no pattern: {exc.msg}") from exc


def _piece(part: str) -> str:
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if part in known:
        return known[part]
    if part.startswith("[") and part.endswith("]") and len(part) > 2:
        inside = re.sub(r"([\\^\[&~|])", r"\\\1", part[1:-1])
        return f"(?!/)[^{inside[1:]}]" if inside.startswith("!") else f"(?!/)[{inside}]"
    return re.escape(part)
