"""Object stores around object stores, each imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blobstore.registry import load

if TYPE_CHECKING:
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
    "Base64Store": "base64",
    "BufferStore": "text",
    "CachingStore": "cache",
    "ChecksumStore": "checksum",
    "DataTransformer": "transform",
    "EncryptingStore": "encrypt",
    "ExceptionLoggingStore": "log",
    "FanoutStore": "mirror",
    "GzipStore": "compress",
    "HashPrefixStore": "prefix",
    "IdentityStore": "base",
    "JsonStore": "text",
    "KeyTransformer": "key_transform",
    "KeyTransformingStore": "key_transform",
    "KeyValidatingStore": "validate",
    "LoggingStore": "log",
    "Lz4Store": "compress",
    "MirroringStore": "mirror",
    "NotifyingStore": "notify",
    "PrefixStore": "prefix",
    "ReadonlyStore": "access",
    "RegexRoutingStore": "routing",
    "RegexValidatingStore": "validate",
    "RetryingStore": "retry",
    "StreamTransformer": "stream",
    "StreamTransformingStore": "stream",
    "TextEncodingStore": "text",
    "TransformingStore": "transform",
    "UrlEncodingStore": "url_encoding",
    "UrlValidatingStore": "validate",
    "WrapperStore": "base",
    "WriteonlyStore": "access",
    "ZstdStore": "compress",
}

__all__ = [*_HOME]  # noqa: PLE0604 - strings, by construction


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load(f"{__name__}.{_HOME[name]}:{name}")
