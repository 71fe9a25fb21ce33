"""Read options: what `get(key, **options)` may ask of a handler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blobstore.errors import InvalidInputError
from blobstore.protocols import Handler


def refuse_options(handler: Handler, options: Mapping[str, Any], *known: str) -> None:
    """Refuse options that a handler does not have.

    Raises
    ------
    InvalidInputError
        One of `options` is not among `known`.
    """
    if not options:
        return
    unknown = sorted(set(options) - set(known))
    if unknown:
        has = f"knows {', '.join(known)}" if known else "has none"
        raise InvalidInputError(
            f"unknown read option {', '.join(map(repr, unknown))}: an object stored by the "
            f"{handler.name!r} handler {has}"
        )
