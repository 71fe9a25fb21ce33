"""What a caller gave to a store, checked and brought into the form that the parts below want."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from blobstore import digest
from blobstore import metadata as _metadata
from blobstore.commit import Request
from blobstore.entry import Entry
from blobstore.errors import ConfigError, InvalidInputError
from blobstore.keys import validate_key
from blobstore.protocols import Expected, ObjectStore
from blobstore.query import Query, parse_filter
from blobstore.reading import Pickle


def check_inline(asked: object) -> None:
    """Refuse an `inline_max_bytes` that is no number of bytes."""
    if type(asked) is not int or asked < 0:
        raise ConfigError(f"inline_max_bytes must be a number of bytes, 0 or more, not {asked!r}")


def check_inline_allowed(asked: int | None, objects: ObjectStore) -> None:
    """Refuse to keep values in an index that does not encrypt, beside objects that are."""
    if asked and objects.capabilities.encrypted:
        raise ConfigError(
            f"inline_max_bytes={asked} would keep values in the index, in the clear, beside "
            f"{objects!r}, which encrypts: leave it out"
        )


def check_local_cache(path: object, max_bytes: object) -> Path | None:
    """Where copies of blobs are to be kept, or None; a relative path is resolved once.

    Raises
    ------
    ConfigError
        It is no path, or the limit is no number of bytes.
    """
    if type(max_bytes) is not int or max_bytes <= 0:
        raise ConfigError(f"local_cache_bytes must be a number of bytes, not {max_bytes!r}")
    if path is None:
        return None
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"local_cache must be the path of a folder, not {path!r}")
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError) as exc:
        raise ConfigError(f"local_cache {text!r} is no usable path: {exc}") from exc


def check_local_cache_allowed(objects: ObjectStore) -> None:
    """Refuse to keep copies in the clear of what is encrypted."""
    if objects.capabilities.encrypted:
        raise ConfigError(
            f"local_cache would keep copies in the clear of what {objects!r} encrypts: leave it "
            "out, and put a CachingStore beneath the store that encrypts"
        )


def check_pickle(asked: object) -> Pickle:
    """Refuse what is no way to load pickles."""
    for known in get_args(Pickle):
        if asked == known:
            return cast("Pickle", asked)
    raise ConfigError(f"pickle must be one of {', '.join(get_args(Pickle))}, not {asked!r}")


def digest_algorithm(asked: object) -> str | None:
    """The algorithm of content addressing, or None where that is off."""
    if asked is False or asked is None:
        return None
    algorithm = "blake3" if asked is True else asked
    if not isinstance(algorithm, str):
        raise ConfigError(
            f"content_addressable must be True, False or one of {', '.join(digest.ALGORITHMS)}, "
            f"not {asked!r}"
        )
    digest.new_digest(algorithm)
    return algorithm


def expected_of(*, overwrite: bool, if_version: int | Entry | None) -> Expected:
    """What a put expects of its key."""
    if if_version is None:
        return "any" if overwrite else "absent"
    if not overwrite:
        raise InvalidInputError("overwrite=False and if_version exclude each other: give one")
    if isinstance(if_version, bool) or not isinstance(if_version, int | Entry):
        raise InvalidInputError(f"if_version must be an int or an Entry, not {if_version!r}")
    return if_version


def request_of(number: int, item: Sequence[Any]) -> Request:
    """One item of `put_many`, checked."""
    if not isinstance(item, tuple | list) or len(item) not in (2, 3):
        raise InvalidInputError(
            f"item {number} must be (key, data) or (key, data, metadata), not {item!r:.80}"
        )
    key, data, *rest = item
    metadata = rest[0] if rest else None
    return Request(data, None if key is None else validate_key(key), _metadata.to_text(metadata))


def query_of(prefix: str | None, metadata_filter: Mapping[str, Any] | None) -> Query:
    """What `list` and `count` select."""
    if prefix is not None and not isinstance(prefix, str):
        raise InvalidInputError(f"prefix must be a str or None, not {prefix!r}")
    query = Query(prefix=prefix or "")
    return replace(query, equal=parse_filter(metadata_filter)) if metadata_filter else query
