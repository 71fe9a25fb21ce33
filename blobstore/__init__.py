"""Put Python objects under keys with metadata, find them again, get them back as they were.

>>> import tempfile
>>> from blobstore import BlobStore
>>> with BlobStore(tempfile.mkdtemp()) as store:
...     key = store.put({"weights": [1, 2]}, key="model", metadata={"f1": 0.9})
...     store.get("model")
{'weights': [1, 2]}

Names are imported when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blobstore.version import __version__

if TYPE_CHECKING:
    from blobstore.aio import AsyncObjectStore as AsyncObjectStore
    from blobstore.aio import to_async as to_async
    from blobstore.aio import to_sync as to_sync
    from blobstore.autostore.store import AutoStore as AutoStore
    from blobstore.backends.blob.bucket import BucketStore as BucketStore
    from blobstore.backends.blob.filesystem import FilesystemBlobBackend as FilesystemBlobBackend
    from blobstore.backends.blob.filesystem import FilesystemStore as FilesystemStore
    from blobstore.backends.blob.hashdir import HashdirStore as HashdirStore
    from blobstore.backends.blob.memory import DictStore as DictStore
    from blobstore.backends.blob.s3_blob_backend import S3BlobBackend as S3BlobBackend
    from blobstore.backends.blob.safe_filesystem import SafeFilesystemStore as SafeFilesystemStore
    from blobstore.backends.blob.sqlite import SqliteStore as SqliteStore
    from blobstore.backends.blob.zip import ZipStore as ZipStore
    from blobstore.backends.metadata.json import JsonBackend as JsonBackend
    from blobstore.backends.metadata.sql import SqlBackend as SqlBackend
    from blobstore.config import S3StorageConfig as S3StorageConfig
    from blobstore.config import StoreFactory as StoreFactory
    from blobstore.config import open_store as open_store
    from blobstore.entry import Entry as Entry
    from blobstore.errors import BlobStoreError as BlobStoreError
    from blobstore.errors import ClosedError as ClosedError
    from blobstore.errors import ConfigError as ConfigError
    from blobstore.errors import ConflictError as ConflictError
    from blobstore.errors import DecodeError as DecodeError
    from blobstore.errors import HandlerError as HandlerError
    from blobstore.errors import IncompatibleStoreError as IncompatibleStoreError
    from blobstore.errors import IntegrityError as IntegrityError
    from blobstore.errors import InvalidInputError as InvalidInputError
    from blobstore.errors import InvalidKeyError as InvalidKeyError
    from blobstore.errors import InvalidMetadataError as InvalidMetadataError
    from blobstore.errors import InvalidQueryError as InvalidQueryError
    from blobstore.errors import KeyExistsError as KeyExistsError
    from blobstore.errors import KeyNotFoundError as KeyNotFoundError
    from blobstore.errors import MirrorError as MirrorError
    from blobstore.errors import MissingDependencyError as MissingDependencyError
    from blobstore.errors import NotSupportedError as NotSupportedError
    from blobstore.errors import OutOfSpaceError as OutOfSpaceError
    from blobstore.errors import PermissionDeniedError as PermissionDeniedError
    from blobstore.errors import RejectedKeyError as RejectedKeyError
    from blobstore.errors import StorageError as StorageError
    from blobstore.errors import UnavailableError as UnavailableError
    from blobstore.errors import UnsupportedTypeError as UnsupportedTypeError
    from blobstore.errors import UntrustedTypeError as UntrustedTypeError
    from blobstore.protocols import BlobBackend as BlobBackend
    from blobstore.protocols import Capabilities as Capabilities
    from blobstore.protocols import DataHandler as DataHandler
    from blobstore.protocols import Handler as Handler
    from blobstore.protocols import MetadataBackend as MetadataBackend
    from blobstore.protocols import ObjectStore as ObjectStore
    from blobstore.query import F as F
    from blobstore.registry import register_store as register_store
    from blobstore.store import BlobStore as BlobStore
    from blobstore.transfer import clear_store as clear_store
    from blobstore.transfer import copy_store as copy_store
    from blobstore.transfer import sync_stores as sync_stores
    from blobstore.wrappers.access import ReadonlyStore as ReadonlyStore
    from blobstore.wrappers.access import WriteonlyStore as WriteonlyStore
    from blobstore.wrappers.base import IdentityStore as IdentityStore
    from blobstore.wrappers.base import WrapperStore as WrapperStore
    from blobstore.wrappers.base64 import Base64Store as Base64Store
    from blobstore.wrappers.cache import CachingStore as CachingStore
    from blobstore.wrappers.checksum import ChecksumStore as ChecksumStore
    from blobstore.wrappers.compress import GzipStore as GzipStore
    from blobstore.wrappers.compress import Lz4Store as Lz4Store
    from blobstore.wrappers.compress import ZstdStore as ZstdStore
    from blobstore.wrappers.encrypt import EncryptingStore as EncryptingStore
    from blobstore.wrappers.key_transform import KeyTransformer as KeyTransformer
    from blobstore.wrappers.key_transform import KeyTransformingStore as KeyTransformingStore
    from blobstore.wrappers.log import ExceptionLoggingStore as ExceptionLoggingStore
    from blobstore.wrappers.log import LoggingStore as LoggingStore
    from blobstore.wrappers.mirror import FanoutStore as FanoutStore
    from blobstore.wrappers.mirror import MirroringStore as MirroringStore
    from blobstore.wrappers.notify import NotifyingStore as NotifyingStore
    from blobstore.wrappers.prefix import HashPrefixStore as HashPrefixStore
    from blobstore.wrappers.prefix import PrefixStore as PrefixStore
    from blobstore.wrappers.retry import RetryingStore as RetryingStore
    from blobstore.wrappers.routing import RegexRoutingStore as RegexRoutingStore
    from blobstore.wrappers.stream import StreamTransformer as StreamTransformer
    from blobstore.wrappers.stream import StreamTransformingStore as StreamTransformingStore
    from blobstore.wrappers.text import BufferStore as BufferStore
    from blobstore.wrappers.text import JsonStore as JsonStore
    from blobstore.wrappers.text import TextEncodingStore as TextEncodingStore
    from blobstore.wrappers.transform import DataTransformer as DataTransformer
    from blobstore.wrappers.transform import TransformingStore as TransformingStore
    from blobstore.wrappers.url_encoding import UrlEncodingStore as UrlEncodingStore
    from blobstore.wrappers.validate import KeyValidatingStore as KeyValidatingStore
    from blobstore.wrappers.validate import RegexValidatingStore as RegexValidatingStore
    from blobstore.wrappers.validate import UrlValidatingStore as UrlValidatingStore

_HOME = {
    "AutoStore": "autostore.store",
    "BlobStore": "store",
    "BlobBackend": "protocols",
    "Capabilities": "protocols",
    "DataHandler": "protocols",
    "Entry": "entry",
    "F": "query",
    "Handler": "protocols",
    "MetadataBackend": "protocols",
    "ObjectStore": "protocols",
    "AsyncObjectStore": "aio",
    "S3StorageConfig": "config",
    "StoreFactory": "config",
    "clear_store": "transfer",
    "copy_store": "transfer",
    "open_store": "config",
    "register_store": "registry",
    "sync_stores": "transfer",
    "to_async": "aio",
    "to_sync": "aio",
    "BucketStore": "backends.blob.bucket",
    "DictStore": "backends.blob.memory",
    "FilesystemBlobBackend": "backends.blob.filesystem",
    "FilesystemStore": "backends.blob.filesystem",
    "HashdirStore": "backends.blob.hashdir",
    "JsonBackend": "backends.metadata.json",
    "S3BlobBackend": "backends.blob.s3_blob_backend",
    "SafeFilesystemStore": "backends.blob.safe_filesystem",
    "SqlBackend": "backends.metadata.sql",
    "SqliteStore": "backends.blob.sqlite",
    "ZipStore": "backends.blob.zip",
    "Base64Store": "wrappers.base64",
    "BufferStore": "wrappers.text",
    "CachingStore": "wrappers.cache",
    "ChecksumStore": "wrappers.checksum",
    "DataTransformer": "wrappers.transform",
    "EncryptingStore": "wrappers.encrypt",
    "ExceptionLoggingStore": "wrappers.log",
    "FanoutStore": "wrappers.mirror",
    "GzipStore": "wrappers.compress",
    "HashPrefixStore": "wrappers.prefix",
    "IdentityStore": "wrappers.base",
    "JsonStore": "wrappers.text",
    "KeyTransformer": "wrappers.key_transform",
    "KeyTransformingStore": "wrappers.key_transform",
    "KeyValidatingStore": "wrappers.validate",
    "LoggingStore": "wrappers.log",
    "Lz4Store": "wrappers.compress",
    "MirroringStore": "wrappers.mirror",
    "NotifyingStore": "wrappers.notify",
    "PrefixStore": "wrappers.prefix",
    "ReadonlyStore": "wrappers.access",
    "RegexRoutingStore": "wrappers.routing",
    "RegexValidatingStore": "wrappers.validate",
    "RetryingStore": "wrappers.retry",
    "StreamTransformer": "wrappers.stream",
    "StreamTransformingStore": "wrappers.stream",
    "TextEncodingStore": "wrappers.text",
    "TransformingStore": "wrappers.transform",
    "UrlEncodingStore": "wrappers.url_encoding",
    "UrlValidatingStore": "wrappers.validate",
    "WrapperStore": "wrappers.base",
    "WriteonlyStore": "wrappers.access",
    "ZstdStore": "wrappers.compress",
    "BlobStoreError": "errors",
    "ClosedError": "errors",
    "ConfigError": "errors",
    "ConflictError": "errors",
    "DecodeError": "errors",
    "HandlerError": "errors",
    "IncompatibleStoreError": "errors",
    "IntegrityError": "errors",
    "InvalidInputError": "errors",
    "InvalidKeyError": "errors",
    "InvalidMetadataError": "errors",
    "InvalidQueryError": "errors",
    "KeyExistsError": "errors",
    "KeyNotFoundError": "errors",
    "MirrorError": "errors",
    "MissingDependencyError": "errors",
    "NotSupportedError": "errors",
    "OutOfSpaceError": "errors",
    "PermissionDeniedError": "errors",
    "RejectedKeyError": "errors",
    "StorageError": "errors",
    "UnavailableError": "errors",
    "UnsupportedTypeError": "errors",
    "UntrustedTypeError": "errors",
}
"""Public name -> the module that has it."""

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604 - strings, by construction


def __getattr__(name: str) -> Any:
    # Modules are asked for here, too, and by the registry's own imports: they have small letters.
    if name not in _HOME and not name[:1].isupper():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from blobstore.registry import load, store_types

    if name in _HOME:
        value = load(f"{__name__}.{_HOME[name]}:{name}")
    elif name in store_types.built_in():  # a new one needs a line above for type checkers only
        value = store_types.get(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
