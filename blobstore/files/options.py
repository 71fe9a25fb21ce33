"""What the formats have in common: read options, and errors in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blobstore.errors import (
    BlobStoreError,
    DecodeError,
    HandlerError,
    InvalidInputError,
    from_os_error,
)
from blobstore.protocols.file_format import FileContext
from blobstore.streams import Sink


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


def wanted_names(options: Mapping[str, Any], context: FileContext, option: str = "names") -> Any:
    """Give the list of names that an option holds; None where it is not given.

    Raises
    ------
    InvalidInputError
        It is no list of texts: a text, for instance, whose letters would be taken for names.
    """
    names = options.get(option)
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidInputError(f"{option} must be a list of names, not {names!r}", key=context.key)
    names = list(names)
    if not all(isinstance(name, str) for name in names):
        raise InvalidInputError(f"{option} must be a list of names, not {names!r}", key=context.key)
    return names


@contextlib.contextmanager
def writing(context: FileContext) -> Iterator[None]:
    """Say in our words why the operating system let a library not write its file.

    Raises
    ------
    StorageError
        `PermissionDeniedError` and `OutOfSpaceError` among them.
    """
    try:
        yield
    except OSError as exc:
        raise from_os_error(exc, f"writing {context.key!r}", location=context.key) from exc


@contextlib.contextmanager
def lent(sink: Sink, context: FileContext) -> Iterator[Path]:
    """Lend the file of a sink to a library.

    It is made, and empty: so what keeps it from being made is told here, whatever the library makes
    of it.
    """
    with writing(context):
        path = sink.path()
        path.touch(exist_ok=False)
        yield path


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
