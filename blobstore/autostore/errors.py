"""Errors in the words of the older AutoStore, within our tree."""

from __future__ import annotations

from blobstore.errors import KeyNotFoundError, PermissionDeniedError, StorageError, UnavailableError


class StorageFileNotFoundError(StorageError, KeyNotFoundError):
    """There is no file of that key; also a `KeyError`."""


StoragePermissionError = PermissionDeniedError
StorageConnectionError = UnavailableError
