"""Every wrapper, over a store in memory and over files, so that what it costs can be told from both."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.contenders import Contender

NewStore = Callable[[], Any]


class Wrapped(Contender):
    """A wrapper, or none.

    Attributes
    ----------
    small, streams : ObjectStore
        The wrapper over a DictStore, and over files.
    beneath, files : ObjectStore
        What is wrapped, for wrappers that cannot write or read.
    """

    ours = True
    wrap: ClassVar[Callable[[NewStore], Any]]
    key_form: ClassVar[str] = "{}"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.made: list[Any] = []
        self.small = type(self).wrap(self._in_memory)
        self.beneath, first_file_store = self.made[0], len(self.made)
        self.streams = type(self).wrap(self._in_files)
        self.files = self.made[first_file_store]

    def _in_memory(self) -> Any:
        from blobstore import DictStore

        self.made.append(DictStore())
        return self.made[-1]

    def _in_files(self) -> Any:
        from blobstore import FilesystemStore

        self.made.append(FilesystemStore(self.folder / f"files-{len(self.made)}"))
        return self.made[-1]

    @property
    def has_streams(self) -> bool:
        return self.small.capabilities.values == "bytes" and self.key_form == "{}"

    def key(self, key: str) -> str:
        return self.key_form.format(key)

    def value(self, content: bytes) -> Any:
        """What this store takes for so many bytes."""
        return content

    def content(self, value: Any) -> Any:
        """The bytes of a value again."""
        return value

    def close(self) -> None:
        self.small.close()
        self.streams.close()


class OfText(Wrapped):
    def value(self, content: bytes) -> Any:
        return content.decode("latin-1").translate(_PRINTABLE)


class OfJson(Wrapped):
    note = "values are a dict of 90 numbers, 1 KiB as text"

    def value(self, content: bytes) -> Any:
        numbers = memoryview(content[: 90 * 4]).cast("I").tolist()
        return {"numbers": [number % 10**9 for number in numbers]}

    def content(self, value: Any) -> Any:
        return json.dumps(value)


class OfBuffers(Wrapped):
    def value(self, content: bytes) -> Any:
        return io.BytesIO(content)

    def content(self, value: Any) -> Any:
        return value.getvalue()


_PRINTABLE = {number: 32 + number % 95 for number in range(256)}


def _in(name: str, *arguments: Any, **options: Any) -> Callable[[NewStore], Any]:
    """Wrap a new store in a class of blobstore, which is imported then."""

    def wrap(new: NewStore) -> Any:
        import blobstore

        return getattr(blobstore, name)(new(), *arguments, **options)

    return wrap


def _bare(new: NewStore) -> Any:
    return new()


def _encrypting(new: NewStore) -> Any:
    from blobstore import EncryptingStore

    return EncryptingStore(new(), EncryptingStore.generate_key())


def _logging(new: NewStore) -> Any:
    from blobstore import LoggingStore

    logger = logging.getLogger("benchmark")
    if not logger.handlers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(logging.StreamHandler(io.StringIO()))
    return LoggingStore(new(), "store", logger)


def _notifying(new: NewStore) -> Any:
    from blobstore import NotifyingStore

    store = NotifyingStore(new())
    store.on_change(lambda *_: None)
    return store


def _transforming(new: NewStore) -> Any:
    from blobstore import DataTransformer, TransformingStore

    return TransformingStore(new(), DataTransformer())


def _key_transforming(new: NewStore) -> Any:
    from blobstore import KeyTransformer, KeyTransformingStore

    return KeyTransformingStore(new(), KeyTransformer())


def _routing(new: NewStore) -> Any:
    from blobstore import RegexRoutingStore

    return RegexRoutingStore(routes=[("^a", new()), ("", new())])


def _key_validating(new: NewStore) -> Any:
    from blobstore import KeyValidatingStore

    return KeyValidatingStore(new(), bool)


def _mirroring(new: NewStore) -> Any:
    from blobstore import MirroringStore

    return MirroringStore([new(), new()])


def _caching(new: NewStore) -> Any:
    from blobstore import CachingStore, DictStore

    return CachingStore(new(), DictStore())


def _mirrored_stack(new: NewStore) -> Any:
    from blobstore import EncryptingStore, MirroringStore, PrefixStore, ZstdStore

    secret = EncryptingStore.generate_key()
    return MirroringStore(
        [ZstdStore(EncryptingStore(PrefixStore(new(), "ann/"), secret)) for _ in range(2)]
    )


def _cached_stack(new: NewStore) -> Any:
    from blobstore import CachingStore, DictStore

    return CachingStore(_mirrored_stack(new), DictStore())


def _of(
    wrap: Callable[[NewStore], Any], base: type[Wrapped] = Wrapped, **options: Any
) -> type[Contender]:
    return type(base.__name__, (base,), {"wrap": staticmethod(wrap), **options})


_STACK = "Mirroring of two times Zstd(Encrypting(Prefix(store)))"

WRAPPER_CONTENDERS: dict[str, type[Contender]] = {
    "bare": _of(_bare, note="DictStore for small objects, FilesystemStore for streams"),
    "IdentityStore": _of(_in("IdentityStore")),
    "PrefixStore": _of(_in("PrefixStore", "ann/")),
    "HashPrefixStore": _of(_in("HashPrefixStore")),
    "UrlEncodingStore": _of(_in("UrlEncodingStore")),
    "KeyTransformingStore": _of(_key_transforming),
    "RegexRoutingStore": _of(_routing, note="two routes, of which the second is taken"),
    "KeyValidatingStore": _of(_key_validating),
    "RegexValidatingStore": _of(_in("RegexValidatingStore", r"[\w/-]+")),
    "UrlValidatingStore": _of(_in("UrlValidatingStore"), key_form="https://example.org/{}",
                              note="no streams: URLs are no paths of files"),
    "ReadonlyStore": _of(_in("ReadonlyStore")),
    "WriteonlyStore": _of(_in("WriteonlyStore")),
    "NotifyingStore": _of(_notifying, note="one handler that does nothing"),
    "LoggingStore": _of(_in("LoggingStore"), note="level WARNING, the default: nothing is logged"),
    "LoggingStore INFO": _of(_logging, note="each call is a line, into memory"),
    "ExceptionLoggingStore": _of(_in("ExceptionLoggingStore", reraise=True)),
    "RetryingStore": _of(_in("RetryingStore"), note="nothing fails; a stream is spooled, to be sent again"),
    "GzipStore": _of(_in("GzipStore")),
    "ZstdStore": _of(_in("ZstdStore")),
    "Lz4Store": _of(_in("Lz4Store")),
    "EncryptingStore": _of(_encrypting),
    "ChecksumStore": _of(_in("ChecksumStore")),
    "Base64Store": _of(_in("Base64Store")),
    "TransformingStore": _of(_transforming, note="a transformer that changes nothing; one object in memory"),
    "TextEncodingStore": _of(_in("TextEncodingStore"), OfText),
    "JsonStore": _of(_in("JsonStore"), OfJson),
    "BufferStore": _of(_in("BufferStore"), OfBuffers),
    "CachingStore": _of(_caching, note="a cache in memory: gets are hits"),
    "MirroringStore": _of(_mirroring, note="two stores, so twice the work of a put"),
    "mirrored stack": _of(_mirrored_stack, note=_STACK),
    "cached stack": _of(_cached_stack, note=f"Caching of the mirrored stack ({_STACK}), in memory: gets are hits"),
}  # fmt: skip
