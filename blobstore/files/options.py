"""What the formats have in common: read options, and errors in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from blobstore.errors import BlobStoreError, DecodeError, HandlerError, InvalidInputError
from blobstore.protocols.file_format import FileContext


def refuse_options(context: FileContext, options: Mapping[str, Any], *known: str) -> None:
    """Refuse read options that a format does not have.

    Raises
    ------
    InvalidInputError
    """
    unknown = sorted(options.keys() - set(known))
    if unknown:
        has = f"knows {', '.join(known)}" if known else "has none"
        raise InvalidInputError(
            f"unknown read option {', '.join(map(repr, unknown))}: a {context.extension} file {has}",
            key=context.key,
        )


@contextlib.contextmanager
def reading(context: FileContext, *errors: type[Exception]) -> Iterator[None]:
    """Say of errors of a library that the file is not what its name says."""
    try:
        yield
    except HandlerError as exc:
        if exc.key is not None:
            raise
        raise type(exc)(f"{context.key!r} cannot be read: {exc}", key=context.key) from exc
    except BlobStoreError:
        raise
    except errors as exc:
        raise DecodeError(
            f"{context.key!r} cannot be read as a {context.extension} file: {exc}. Rename it if it is "
            "of another kind, or replace it",
            key=context.key,
        ) from exc
