"""What a caller gave to a store, checked and brought into the form that the parts below want."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from blobstore import digest
from blobstore import metadata as _metadata
from blobstore.commit import Request
from blobstore.entry import Entry
from blobstore.errors import ConfigError, InvalidInputError
from blobstore.keys import validate_key
from blobstore.protocols import Expected, ObjectStore
from blobstore.query import (
    Cursor,
    Expression,
    F,
    Field,
    Order,
    Query,
    Where,
    parse,
    parse_field,
    parse_mapping,
    parse_order,
)
from blobstore.reading import Pickle

FieldName = str | F | Field
"""What names a field: ``"params.lr"``, ``"@size"``, or ``F(("odd name", "lr"))``."""

OrderBy = str | F | Order | Iterable[str | F | Order]
"""``"loss"``, ``"-loss"``, ``F("loss").desc()``, or several of those."""


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


def query_of(
    where: Where = None,
    *,
    prefix: str | None = None,
    metadata_filter: Mapping[str, Any] | None = None,
    order_by: OrderBy | None = None,
    limit: int | None = None,
    after: str | Entry | None = None,
) -> Query:
    """What is asked of the index.

    Raises
    ------
    InvalidQueryError
        A condition or an order cannot be understood.
    InvalidMetadataError
        The filter is no metadata.
    InvalidInputError
        Another argument is wrong.
    """
    if prefix is not None and not isinstance(prefix, str):
        raise InvalidInputError(f"prefix must be a str or None, not {prefix!r:.80}")
    if limit is not None and (type(limit) is not int or limit < 0):
        raise InvalidInputError(f"limit must be a number of entries, not {limit!r:.80}")
    order = parse_order(order_by)
    return Query(
        prefix=prefix or "",
        where=_both(parse(where), _literally(metadata_filter)),
        order=order,
        after=_place(order, after),
        limit=limit,
    )


def _literally(metadata_filter: Mapping[str, Any] | None) -> Expression | None:
    if metadata_filter is None:
        return None
    # Checked as metadata is: what could not be stored is refused in the same words.
    stored = json.loads(_metadata.to_text(metadata_filter))
    return parse_mapping(stored, literal=True)


def _both(one: Expression | None, other: Expression | None) -> Expression | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _place(order: tuple[Order, ...], after: str | Entry | None) -> Cursor | str | None:
    """Where an answer goes on."""
    if after is None:
        return None
    if isinstance(after, Entry):
        return Cursor.of(order, after) if order else after.key
    if not isinstance(after, str):
        raise InvalidInputError(f"after must be a key or an Entry, not {after!r:.80}")
    if order:
        raise InvalidInputError(
            f"after={after!r:.80} is a key, which tells a place only in the order of keys: with "
            "order_by, give the last Entry that you got"
        )
    return validate_key(after)


def selection_of(where: Where, prefix: str | None, *, remedy: str) -> Query:
    """What is to be deleted or changed; a selection of everything is refused, as it may be a slip."""
    query = query_of(where, prefix=prefix)
    if query.where is None and not query.prefix:
        raise InvalidInputError(
            f"neither where nor prefix selects anything less than all: {remedy}"
        )
    return query


def keys_of(keys: Iterable[str]) -> dict[str, None]:
    """Keys, each once and in order."""
    if isinstance(keys, str):
        raise InvalidInputError(
            f"keys must be several keys, not the text {keys!r:.80}: put one key into a list, and "
            "give a condition as where=..."
        )
    return {validate_key(key): None for key in keys}


def field_of(name: FieldName) -> Field:
    """A field that is named in one of the ways there are."""
    if isinstance(name, F):
        return name.field
    return name if isinstance(name, Field) else parse_field(name)


def fields_of(names: FieldName | Iterable[FieldName] | None) -> tuple[Field, ...]:
    """None, one or several fields."""
    if names is None:
        return ()
    if isinstance(names, str | F | Field):
        return (field_of(names),)
    if not isinstance(names, Iterable):
        raise InvalidInputError(f"by must be a field or several, not {names!r:.80}")
    return tuple(map(field_of, names))


def columns_of(columns: Iterable[str] | None) -> list[str] | None:
    """Names of a frame's columns, each once."""
    if columns is None:
        return None
    chosen = None if isinstance(columns, str) or not isinstance(columns, Iterable) else [*columns]
    if chosen is None or not all(isinstance(name, str) for name in chosen):
        raise InvalidInputError(f"columns must be several names, not {columns!r:.80}")
    return list(dict.fromkeys(chosen))
