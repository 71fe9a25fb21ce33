"""A store whose keys are percent-encoded, so that they are harmless in paths and addresses."""

from __future__ import annotations

import urllib.parse

from blobstore.errors import InvalidKeyError
from blobstore.keys import encode_key
from blobstore.protocols import ObjectStore
from blobstore.wrappers.key_transform import KeyTransformer, KeyTransformingStore

_EMPTY = "%"
"""What an empty segment becomes: nothing else is encoded as a percent sign alone."""

# What percent-encoding leaves as it is, and a folder does not take as a name: the two that lead
# elsewhere, and where a FilesystemStore keeps its temporary files.
_NO_NAMES = {".": "%2E", "..": "%2E%2E", ".blobstore-tmp": "%2Eblobstore-tmp"}


class UrlEncodingTransformer(KeyTransformer):
    """Percent-encodes each segment between slashes.

    Segments that are no names of files are encoded too: "." and "..", ".blobstore-tmp" (a folder of
    `FilesystemStore`), and the empty one, which becomes "%".

    Examples
    --------
    >>> transform = UrlEncodingTransformer().transform_key
    >>> transform("path/with spaces/and#special&chars")
    'path/with%20spaces/and%23special%26chars'
    >>> transform("../a//b")
    '%2E%2E/a/%/b'
    """

    def transform_key(self, key: str) -> str:
        """Encode a key; `InvalidKeyError` for what has no UTF-8."""
        encode_key(key)
        return "/".join(map(_encoded, key.split("/")))

    def reverse_transform_key(self, key: str) -> str:
        """Decode a key; `KeyError` or `ValueError` for what is not encoded as here."""
        found = "/".join(map(_decoded, key.split("/")))
        if self.transform_key(found) != key:
            raise KeyError(key)
        return found

    def transform_prefix(self, prefix: str) -> str:
        """Encode a prefix, as far as it tells how keys that begin with it are encoded."""
        try:
            encode_key(prefix)
        except InvalidKeyError:  # no key begins like that, so any prefix will do
            return ""
        *whole, last = prefix.split("/")
        if any(name.startswith(last) for name in _NO_NAMES):  # it may become one of them, or not
            last = ""
        return "".join(_encoded(segment) + "/" for segment in whole) + (last and _encoded(last))


class UrlEncodingStore(KeyTransformingStore):
    """Percent-encodes keys, segment by segment; slashes are kept.

    Over files every text is a key then, and none leads out of the folder, as long as an encoded
    segment has no more than 255 characters, and no key lies "below" another one (``"a"`` and
    ``"a/b"``), which the store beneath refuses. A `SafeFilesystemStore` has neither limit, and
    names that nobody can read.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = UrlEncodingStore(DictStore())
    >>> store.put("what is this?", b"1")
    >>> list(store.keys()), list(store.store.keys())
    (['what is this?'], ['what%20is%20this%3F'])
    """

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store, UrlEncodingTransformer())


def _encoded(segment: str) -> str:
    if segment == "":
        return _EMPTY
    return _NO_NAMES.get(segment) or urllib.parse.quote(segment, safe="")


def _decoded(segment: str) -> str:
    return "" if segment == _EMPTY else urllib.parse.unquote(segment, errors="strict")
