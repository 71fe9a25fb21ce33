"""Which keys can be names in a zip file: those that no program extracts to the wrong place."""

from __future__ import annotations

import re

from blobstore.backends.blob.layouts import is_segment
from blobstore.errors import InvalidKeyError
from blobstore.keys import require_str

MAX_NAME_BYTES = 0xFFFF
"""What the zip format has room for."""

_DRIVE = re.compile(r"[A-Za-z]:")


def is_safe(name: str) -> bool:
    r"""Whether a name is a relative path that stays below the folder it is extracted to.

    On any system: a backslash separates folders on some, a letter and a colon name a drive, and
    blanks around dots are dropped.

    Examples
    --------
    >>> is_safe("runs/1/log.txt"), is_safe("../x"), is_safe("a\\..\\..\\x"), is_safe("C:x")
    (True, False, False, False)
    """
    if not all(map(is_segment, name.split("/"))) or _DRIVE.match(name) or name[0] == "\\":
        return False
    if "." not in name:
        return True
    return not any(part.strip(" ") in {".", ".."} for part in re.split(r"[/\\]", name))


def check_key(key: object) -> str:
    """Return `key` unchanged, if an object can have it.

    Raises
    ------
    InvalidKeyError
        It is no string, or no path that is safe to extract.
    """
    text = require_str(key)
    if not text or not is_safe(text):
        raise InvalidKeyError(
            f"the key {text!a} is no name for a zip file: it needs segments of UTF-8 separated by "
            "single slashes, none of them empty, '.' or '..', and nothing that another system "
            "would take for a drive or the way out of a folder",
            location=text,
        )
    return text


def encode_key(key: str) -> bytes:
    """The name of a key in the file.

    Raises
    ------
    InvalidKeyError
        It is too long for the zip format.
    """
    name = key.encode()
    if len(name) > MAX_NAME_BYTES:
        raise InvalidKeyError(
            f"the key {key[:60]!r}... has {len(name)} bytes in UTF-8, and a zip file has room for "
            f"{MAX_NAME_BYTES}: shorten it",
            location=key,
        )
    return name
