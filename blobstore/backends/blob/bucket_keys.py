"""Keys of any characters as names in a bucket, and back; and where a prefix begins and ends there.

Servers and clients alter some names without a word: empty segments and those of one or two dots are
paths to them, a backslash becomes a slash, control characters do not get through XML. Only those
are escaped, so that ordinary keys keep their names:

===============================================  ==============================================
segment that is empty, as in ``a//b``, ``a/``    ``%``: ``a/%/b``, ``a/%``
segment ``.`` or ``..``                          ``%2E``, ``%2E%2E``
control character, backslash, U+FFFE, U+FFFF     ``%09``, ``%5C``, ``%EF%BF%BE``
``%`` that would be taken for one of these       ``%25``
===============================================  ==============================================
"""

from __future__ import annotations

import re
from typing import NamedTuple

from blobstore.errors import InvalidKeyError
from blobstore.keys import encode_key

MAX_NAME_BYTES = 1024
"""Of a name in a bucket, as S3, Google Cloud Storage and Azure have it."""

_ESCAPE = r"%(?:[01][0-9A-F]|7F|25|2E|5C|EF%BF%B[EF])"
_ESCAPED = re.compile(_ESCAPE)
_TO_ESCAPE = re.compile(rf"[\x00-\x1f\x7f\\\ufffe\uffff]|%(?={_ESCAPE[1:]})")
_SEGMENTS = {"": "%", "%": "%25", ".": "%2E", "..": "%2E%2E"}
_PLAIN = re.compile(r"[0-9A-Za-z_](?:[0-9A-Za-z_.-]*)")
_BEFORE = {chr(code): chr(code - 1) for code in range(ord("0") + 1, ord("z") + 1)}


def name_of(key: str, prefix: str = "") -> str:
    """The name of a key in a bucket.

    Parameters
    ----------
    key : str
    prefix : str
        Empty, or a folder with its slash.

    Raises
    ------
    InvalidKeyError
        No string, empty, with a lone surrogate, or longer than a name can be.

    Examples
    --------
    >>> name_of("runs/100%/model 1.pkl"), name_of("/a//b/../c", "team/")
    ('runs/100%/model 1.pkl', 'team/%/a/%/b/%2E%2E/c')
    """
    encoded = encode_key(key)
    if not key:
        raise InvalidKeyError(
            "a bucket has no object with an empty key: give one character", location=key
        )
    name = prefix + "/".join([_encode_segment(segment) for segment in key.split("/")])
    size = len(name) if len(encoded) == len(key) else len(name.encode())
    if size > MAX_NAME_BYTES:
        raise InvalidKeyError(
            f"the key {key[:40]!r}... takes {size} bytes in a bucket, its prefix {prefix!r} included, "
            f"and {MAX_NAME_BYTES} are allowed: shorten it, or put a HashPrefixStore around the store",
            location=key,
        )
    return name


def key_of(name: str, prefix: str = "") -> str | None:
    """The key of a name in a bucket; None if no key has it, so that somebody else wrote it.

    Examples
    --------
    >>> key_of("a/%/b"), key_of("%2E%2E"), key_of("100%"), key_of("a%2Eb")
    ('a//b', '..', '100%', None)
    """
    if not name.startswith(prefix) or len(name) == len(prefix):
        return None
    name = name[len(prefix) :]
    if "%" not in name:
        # What obstore lists is a path, and has nothing in it that had to be escaped.
        return name if _is_plain_path(name) else None
    key = "/".join(
        ["" if part == "%" else _ESCAPED.sub(_decoded, part) for part in name.split("/")]
    )
    encoded = "/".join([_encode_segment(segment) for segment in key.split("/")])
    return key if key and encoded == name else None


class Bounds(NamedTuple):
    """Where the names of all keys with a literal prefix are.

    Attributes
    ----------
    folder : str
        The folder that all of them are in, without its slash.
    after : str or None
        A name that is before all of them in any order of listing that goes by segments or bytes.
    start : str
        What the segment after the folder starts with, as far as it is certain.
    """

    folder: str
    after: str | None
    start: str

    def is_past(self, name: str) -> bool:
        """Whether all names from this one on come behind the prefix.

        Servers differ in what comes first, ``a/b`` or ``a-b``; where two names differ within their
        first segments at a character that is no slash, all of them agree.
        """
        at = len(self.folder) + 1 if self.folder else 0
        for mine, theirs in zip(self.start, name[at : at + len(self.start)], strict=False):
            if mine != theirs:
                return theirs > mine and theirs != "/"
        return False


def bounds_of(prefix: str, folder: str = "") -> Bounds:
    """Where to list for a literal prefix of keys, below the folder of a store.

    Examples
    --------
    >>> bounds_of("runs/2024-1")
    Bounds(folder='runs', after='runs/2024-0~', start='2024-1')
    """
    *parents, last = prefix.split("/")
    path = folder + "".join([_encode_segment(segment) + "/" for segment in parents])
    found = _PLAIN.match(last)
    start = found.group() if found else ""
    # An upper-case letter or digit less, and then the highest of the characters in use: whatever
    # begins with the prefix is behind it, and it is the name of no folder that has such keys.
    before = _BEFORE.get(start[-1:])
    after = None
    if before is not None and before.isalnum():
        after = f"{path}{start[:-1]}{before}~"
    return Bounds(path.rstrip("/"), after, start)


def _encode_segment(segment: str) -> str:
    if segment in _SEGMENTS:
        return _SEGMENTS[segment]
    return _TO_ESCAPE.sub(_encoded, segment)


def _encoded(match: re.Match[str]) -> str:
    return "".join([f"%{byte:02X}" for byte in match.group().encode()])


def _decoded(match: re.Match[str]) -> str:
    return bytes.fromhex(match.group().replace("%", "")).decode()


def _is_plain_path(name: str) -> bool:
    if _TO_ESCAPE.search(name):
        return False
    return not any(segment in _SEGMENTS for segment in name.split("/"))
