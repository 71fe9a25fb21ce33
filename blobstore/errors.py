"""Every error that blobstore raises on purpose.

The tree is grouped by what a caller would do next::

    BlobStoreError              anything below; has .key, .location, .retryable
    ├── KeyNotFoundError        (KeyError)        there is no such key: take a default, or give up
    ├── KeyExistsError          (KeyError)        the key is taken: choose another, or overwrite
    ├── ConflictError                             somebody was faster: read again, then retry
    ├── ClosedError             (ValueError)      the store was closed: open it again
    ├── InvalidInputError       (ValueError)      the call is wrong: mend it
    │   ├── InvalidKeyError
    │   │   └── RejectedKeyError (KeyError)       a validating store does not take this key
    │   ├── InvalidMetadataError
    │   ├── InvalidQueryError
    │   └── ConfigError
    ├── MissingDependencyError  (ImportError)     install the extra that is named
    ├── NotSupportedError       (NotImplementedError)  this store cannot do it: ask `capabilities` first
    ├── IntegrityError                            stored bytes are not what was stored: restore, or delete
    ├── HandlerError                              this object, or these bytes, cannot be converted
    │   ├── UnsupportedTypeError (TypeError)
    │   ├── DecodeError
    │   └── UntrustedTypeError
    └── StorageError                              the disk, the server or the network said no
        ├── IncompatibleStoreError                what is there is not ours, or newer than we are
        ├── PermissionDeniedError
        ├── OutOfSpaceError
        ├── MirrorError                           some of a mirror's stores did it, others could not
        └── UnavailableError                      retryable; .outcome says whether a change may have landed
            └── LostDraftError                    somebody removed the temporary file of a write: write again

Foreign exceptions are translated once, at the edge of the backend that met them, with ``raise ... from``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Literal

Outcome = Literal["failed", "unknown"]


class BlobStoreError(Exception):
    """Base of all errors that blobstore raises on purpose.

    Parameters
    ----------
    message : str
        What happened, where, and what to try.
    key : str, optional
        The key that was asked for.
    location : str, optional
        Where the object store keeps, or should keep, the bytes.

    Examples
    --------
    >>> BlobStoreError("nothing there", key="model").key
    'model'
    """

    retryable: bool = False

    def __init__(
        self, message: str, *, key: str | None = None, location: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.location = location

    def __str__(self) -> str:
        # KeyError's own __str__ would show the repr of the message.
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders in pools; keyword-only attributes travel as state.
        return (type(self), (self.message,), self.__dict__)


class KeyNotFoundError(BlobStoreError, KeyError):
    """There is no such key."""


class KeyExistsError(BlobStoreError, KeyError):
    """The key is taken and the call said not to overwrite."""


class ConflictError(BlobStoreError):
    """The entry is not at the version that the call expected."""


class ClosedError(BlobStoreError, ValueError):
    """The store was closed before the call."""


class InvalidInputError(BlobStoreError, ValueError):
    """An argument is wrong; nothing was written."""


class InvalidKeyError(InvalidInputError, TypeError):
    """The key is not one: wrong type, empty, too long, or holds what no store can keep."""


class RejectedKeyError(InvalidKeyError, KeyError):
    """A store that validates keys does not take this one."""


class InvalidMetadataError(InvalidInputError, TypeError):
    """The metadata is not JSON; the message names the path inside it."""


class InvalidQueryError(InvalidInputError):
    """The filter or query cannot be understood."""


class ConfigError(InvalidInputError, TypeError):
    """A constructor argument or a configuration file is wrong."""


class MissingDependencyError(BlobStoreError, ImportError):
    """An optional library is not installed; the message names the extra."""


class NotSupportedError(BlobStoreError, NotImplementedError):
    """This store cannot do what was asked; its `capabilities` say so."""


class IntegrityError(BlobStoreError):
    """Stored bytes are missing, cut short or altered. Never reported as a miss."""


class HandlerError(BlobStoreError):
    """An object cannot be stored, or stored bytes cannot be turned into an object."""


class UnsupportedTypeError(HandlerError, TypeError):
    """No handler can store an object of this type; nothing was stored."""


class DecodeError(HandlerError):
    """The bytes are what was stored, but they cannot be decoded here."""


class UntrustedTypeError(HandlerError):
    """Loading would run code that the reader does not trust."""


class StorageError(BlobStoreError):
    """The disk, the database, the server or the network refused."""


class IncompatibleStoreError(StorageError):
    """What is at this place belongs to another program, another store or a newer version."""


class PermissionDeniedError(StorageError):
    """The operating system or the server does not allow it."""


class OutOfSpaceError(StorageError):
    """The disk, the quota or the file size limit is reached; what was stored before is intact."""


class MirrorError(StorageError):
    """Some of a mirror's stores did what was asked, others could not.

    Attributes
    ----------
    failures : dict of str to Exception
        Name of each store that failed -> its error.
    succeeded : tuple of str
        Names of those that did it.
    """

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        location: str | None = None,
        failures: Mapping[str, Exception] | None = None,
        succeeded: Iterable[str] = (),
    ) -> None:
        super().__init__(message, key=key, location=location)
        self.failures = dict(failures or {})
        self.succeeded = tuple(succeeded)


class UnavailableError(StorageError):
    """The store cannot be reached now, or is locked by somebody else for too long.

    Attributes
    ----------
    outcome : {"failed", "unknown"}
        "failed": nothing was changed. "unknown": the change may have landed.
    """

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        location: str | None = None,
        outcome: Outcome = "failed",
    ) -> None:
        super().__init__(message, key=key, location=location)
        self.outcome: Outcome = outcome


class LostDraftError(UnavailableError):
    """The temporary file of a write was removed before it was published; write again."""


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def from_os_error(exc: OSError, what: str, *, location: str | None = None) -> StorageError:
    """Translate an error of the operating system.

    Parameters
    ----------
    exc : OSError
        What the operating system said.
    what : str
        What was being done, and where: "writing /data/blobs/ab/ab12.pkl".
    location : str, optional
        The location in the object store, if there is one.

    Returns
    -------
    StorageError
        To be raised ``from exc``: out of space, permission denied, or the general one.

    Examples
    --------
    >>> from_os_error(OSError(28, "No space left on device"), "writing x").__class__.__name__
    'OutOfSpaceError'
    """
    reason = exc.strerror or str(exc)
    if exc.errno in _NO_SPACE:
        return OutOfSpaceError(
            f"{what} failed: {reason}. Free some space (gc() lists what can go), then try again; "
            "what was stored before is intact.",
            location=location,
        )
    if exc.errno in _DENIED:
        return PermissionDeniedError(
            f"{what} failed: {reason}. Check owner and mode of the folder, "
            "or open the store with readonly=True.",
            location=location,
        )
    return StorageError(f"{what} failed: {reason}.", location=location)
