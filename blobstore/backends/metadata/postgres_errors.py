"""What PostgreSQL's errors mean to a store."""

from __future__ import annotations

import psycopg

from blobstore.errors import (
    BlobStoreError,
    ConfigError,
    IntegrityError,
    InvalidInputError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)

_TRANSIENT = {
    "40001",  # serialization failure
    "40P01",  # deadlock detected
    "23505",  # unique violation: somebody else added the row after it was looked for
}


_MEANINGS: tuple[tuple[tuple[str, ...], type[BlobStoreError], str], ...] = (
    (
        tuple(_TRANSIENT),
        UnavailableError,
        "Others changed the same at the same time: try again.",
    ),
    (
        ("55P03",),
        UnavailableError,
        (
            "Another transaction holds the lock for longer than the timeout of <timeout>: try again, or "
            "open the store with a longer timeout."
        ),
    ),
    (("08", "57", "25P03", "53300", "53200"), UnavailableError, "Try again."),
    (("53100",), OutOfSpaceError, "Free some space on the server, then try again."),
    (
        ("42501", "28"),
        PermissionDeniedError,
        (
            "The user needs SELECT, INSERT, UPDATE and DELETE on the tables and USAGE on their "
            "sequence; to make them, CREATE on the schema."
        ),
    ),
    (("25006",), PermissionDeniedError, "This copy is read-only: write to the primary."),
    (
        ("XX001", "XX002"),
        IntegrityError,
        "The index is damaged: restore it from a backup.",
    ),
    (
        ("42P01", "42703"),
        StorageError,
        "Tables of the index are gone: restore them from a backup.",
    ),
    (("22", "54"), InvalidInputError, "PostgreSQL cannot hold that."),
)
"""SQLSTATEs, or the classes that they start with; what they are to us; what to try."""


def sqlstate(exc: Exception) -> str:
    """The five characters by which PostgreSQL tells errors apart, or none of them."""
    origin = getattr(exc, "orig", None) or exc
    return getattr(origin, "sqlstate", None) or ""


def is_transient(exc: Exception) -> bool:
    """Whether a transaction failed for what others did, and may succeed if done again."""
    return sqlstate(exc) in _TRANSIENT


def translated(exc: Exception, what: str, *, timeout: float) -> BlobStoreError:
    """Turn an error of the driver into ours; `what` was being done."""
    origin = getattr(exc, "orig", None) or exc
    code = sqlstate(exc)
    failed = f"{what} failed: {str(origin).strip()}"
    if not failed.endswith("."):
        failed += "."
    if not code:
        return _of_the_driver(origin, failed)
    for codes, kind, advice in _MEANINGS:
        if code.startswith(codes):
            return kind(f"{failed} {advice}".replace("<timeout>", f"{timeout:g} s"))
    return StorageError(failed)


def _of_the_driver(origin: BaseException, failed: str) -> BlobStoreError:
    """Errors without a code: from connecting, or from preparing what was to be sent."""
    if isinstance(origin, psycopg.DataError):
        return InvalidInputError(f"{failed} PostgreSQL cannot hold that.")
    if isinstance(origin, psycopg.ProgrammingError):
        return ConfigError(f"{failed} See that the URL is right.")
    # What the server says when it refuses a connection comes without its code.
    text = str(origin)
    if "authentication failed" in text or "no password supplied" in text or "no pg_hba" in text:
        return PermissionDeniedError(f"{failed} Check user and password.")
    if 'database "' in text and "does not exist" in text:
        return ConfigError(f"{failed} Make it first: CREATE DATABASE.")
    return UnavailableError(f"{failed} See that the server is there, and try again.")
