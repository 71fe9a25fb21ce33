"""Where an AutoStore keeps its files: the object store for a path or URL."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.backends.blob.urls import StoreUrl
from blobstore.config.storage import StorageConfig
from blobstore.errors import ConfigError
from blobstore.protocols import ObjectStore
from blobstore.wrappers.base import require_bytes, require_raising

Opener = Callable[[str, "StorageConfig | None"], ObjectStore]


class S3Backend:
    """Opens ``s3://bucket/prefix/``; known from the start, so that it need not be registered.

    Examples
    --------
    >>> S3Backend.open("s3://models/team", None)
    BucketStore('models', prefix='team/')
    """

    @staticmethod
    def open(uri: str, config: StorageConfig | None) -> ObjectStore:
        """Make the store of a bucket, as `S3StorageConfig` says."""
        from blobstore.config.s3 import S3StorageConfig

        if config is None:
            config = S3StorageConfig.from_env()
        if not isinstance(config, S3StorageConfig):
            raise ConfigError(f"a bucket takes an S3StorageConfig, not {type(config).__name__}")
        return config.build(uri)


def _open_file(uri: str, _config: StorageConfig | None) -> ObjectStore:
    (path,) = _arguments(uri)
    return FilesystemStore(path)


def _open_memory(uri: str, _config: StorageConfig | None) -> ObjectStore:
    _arguments(uri)
    return DictStore()


def _arguments(uri: str) -> list[Path]:
    url = StoreUrl.of(uri, "AutoStore({!r})")
    if options := url.query():
        raise url.error(f"an AutoStore takes no {', '.join(options)} here: write the path alone")
    return url.arguments()


_BUILTIN: dict[str, Any] = {
    "file": _open_file,
    "memory": _open_memory,
    "s3": S3Backend,
    "s3a": S3Backend,
}
_registered: dict[str, Any] = {}


def register(scheme: str, backend: Any) -> None:
    """Open URLs of a scheme by a class or function of one's own.

    Parameters
    ----------
    scheme : str
        What stands before "://".
    backend : class or callable
        A class with ``open(uri, config)`` or ``from_url(uri)``, or a function of URI and config,
        that answers with an `ObjectStore`.

    Raises
    ------
    ConfigError
        The scheme is no name, or another backend has it.
    """
    given: Any = scheme
    if not isinstance(given, str) or not given.isidentifier():
        raise ConfigError(f"a scheme is a name like 's3', not {scheme!r}")
    taken = _registered.get(scheme, _BUILTIN.get(scheme))
    if taken is not None and taken is not backend:
        raise ConfigError(
            f"{scheme}:// URLs are opened by {taken!r} already: unregister that first"
        )
    if not callable(backend):
        raise ConfigError(
            f"the backend of {scheme}:// must be a class or function, not {backend!r}"
        )
    _registered[scheme] = backend


def unregister(scheme: str) -> bool:
    """Forget a scheme that was registered; whether it was."""
    return _registered.pop(scheme, None) is not None


def known() -> list[str]:
    """All schemes that can be opened."""
    return sorted({*_BUILTIN, *_registered})


def open_objects(storage_uri: object, config: StorageConfig | None) -> tuple[ObjectStore, bool]:
    """Open what a path, a URL or an instance stands for.

    Returns
    -------
    (ObjectStore, bool)
        The store, and whether it was made here, and so is to be closed by whoever asked.

    Raises
    ------
    ConfigError
        It is none of these, or of an unknown scheme.
    """
    if isinstance(storage_uri, ObjectStore):
        require_raising(require_bytes(storage_uri, "an AutoStore"), "the store")
        return storage_uri, False
    text = os.fspath(storage_uri) if isinstance(storage_uri, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise ConfigError(f"storage_uri must be a path or a URL, not {storage_uri!r}")
    scheme, found, _ = text.partition("://")
    if not found or isinstance(storage_uri, os.PathLike):
        return FilesystemStore(Path(text).expanduser().absolute()), True
    backend = _registered.get(scheme, _BUILTIN.get(scheme))
    if backend is None:
        raise ConfigError(
            f"no backend is known for {scheme}:// URLs: known are {', '.join(known())}; others by "
            "AutoStore.register_backend"
        )
    return _opener(backend)(text, config), True


def _opener(backend: Any) -> Opener:
    """What opens a URI: of an object store `from_url`, since its `open` is for objects."""
    opener: Opener = backend
    if isinstance(backend, type):
        if not issubclass(backend, ObjectStore) and hasattr(backend, "open"):
            opener = backend.open
        elif hasattr(backend, "from_url"):
            opener = lambda uri, _config: backend.from_url(uri)  # noqa: E731 - as short as it gets
    return opener
