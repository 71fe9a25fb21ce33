"""Which format a file has: chosen by extension for reading, by object and extension for writing.

A format's module is imported when the first object or file of it is met, so a table here says
beforehand what each is for.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from blobstore.errors import ConfigError, MissingDependencyError, StorageError
from blobstore.files.adapter import HandlerFormat
from blobstore.protocols import DataHandler
from blobstore.protocols.file_format import FileFormat
from blobstore.registry import file_formats, load

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Lazy:
    """A built-in format before it is imported.

    Attributes
    ----------
    target : str
        "module:Class" below `blobstore.files`.
    extensions : tuple of str
    priority : int
    library : str
        The top-level module that must have been imported for such an object to exist; "" where any
        object may be one.
    """

    target: str
    extensions: tuple[str, ...]
    priority: int
    library: str = ""


_TEXT = (".txt", ".html", ".htm", ".md", ".rst", ".log", ".xml", ".svg", ".sql", ".py")
_BYTES = (".bin", ".dat", ".raw", ".gz", ".zst", ".lz4", ".xz", ".zip", ".tar", ".pdf")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_BUILTIN = (
    _Lazy("frames:ParquetFormat", (".parquet", ".pq"), 70),
    _Lazy("frames:CsvFormat", (".csv", ".tsv"), 65),
    _Lazy("sparse:SparseFormat", (".sparse.npz", ".sparse"), 60, "scipy"),
    _Lazy("images:ImageFormat", _IMAGES, 60, "PIL"),
    _Lazy("torch:TorchFormat", (".pt", ".pth"), 60, "torch"),
    _Lazy("netcdf:NetcdfFormat", (".nc",), 58, "xarray"),
    _Lazy("safetensors:SafetensorsFormat", (".safetensors",), 55, "torch"),
    _Lazy("text:TextFormat", _TEXT, 50),
    _Lazy("text:BytesFormat", _BYTES, 50),
    _Lazy("numpy:NpyFormat", (".npy",), 50, "numpy"),
    _Lazy("numpy:NpzFormat", (".npz",), 45, "numpy"),
    _Lazy("json:JsonLinesFormat", (".jsonl", ".ndjson"), 40),
    _Lazy("json:JsonFormat", (".json",), 30),
    _Lazy("json:YamlFormat", (".yaml", ".yml"), 30),
    _Lazy("models:PydanticFormat", (".pydantic.json",), 25, "pydantic"),
    _Lazy("skops:SkopsFormat", (".skops",), 22, "sklearn"),
    _Lazy("models:DataclassFormat", (".dataclass.json",), 20),
    _Lazy("pickle:PickleFormat", (".pkl", ".pickle"), 0),
)


class Formats:
    """The formats of one store: the built-in ones, and those that were registered.

    Attributes
    ----------
    extensions : frozenset of str
        In lower case.
    spellings : tuple of str
        All of them in lower case and in capitals, as names of files have them.
    """

    extensions: frozenset[str]
    spellings: tuple[str, ...]

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._registered: tuple[FileFormat, ...] = _of_packages()
        self._loaded: dict[str, FileFormat] = {}
        self._note_extensions()

    def _note_extensions(self) -> None:
        lazy = (extension for each in _BUILTIN for extension in each.extensions)
        added = (extension for each in self._registered for extension in each.extensions)
        self.extensions = frozenset([*lazy, *added])
        # As names of files have them.
        self.spellings = tuple(
            spelling for known in sorted(self.extensions) for spelling in (known, known.upper())
        )

    def register(self, handler: DataHandler | FileFormat) -> None:
        """Add a format of one's own, asked before the built-in ones.

        Raises
        ------
        ConfigError
            It is none, or one of that name is registered.
        """
        given: Any = handler
        added = given if isinstance(given, FileFormat) else _adapted(given)
        with self._lock:
            if any(added.name == other.name for other in self._registered):
                raise ConfigError(
                    f"a handler named {added.name!r} is registered already: unregister it first"
                )
            together = [*self._registered, added]
            self._registered = tuple(sorted(together, key=lambda f: -f.priority))
            self._note_extensions()

    def unregister(self, handler: type[Any] | DataHandler | FileFormat) -> bool:
        """Remove a format by its class or itself; whether it was there."""
        with self._lock:
            left = tuple(f for f in self._registered if not _is(f, handler))
            removed = len(left) < len(self._registered)
            self._registered = left
            self._note_extensions()
        return removed

    def for_object(self, obj: Any) -> Iterator[FileFormat]:
        """Formats that may write an object where the key names no extension, best first."""
        name = f"{type(obj).__module__}.{type(obj).__qualname__}"
        for each in self._registered:
            if not each.by_name_only and each.can_handle(obj):
                yield each
        for lazy in _BUILTIN:
            if lazy.library and lazy.library not in sys.modules:
                continue
            each = self._load(lazy)
            takes = "*" in each.type_names or name in each.type_names
            if takes and not each.by_name_only and each.can_handle(obj):
                yield each

    def for_writing(self, obj: Any, extension: str, key: str) -> FileFormat:
        """The format of an extension that takes an object.

        Raises
        ------
        StorageError
            There is none.
        """
        found = [each for each in self._of(extension) if each.can_handle(obj)]
        if not found:
            cls = type(obj)
            raise StorageError(
                f"an object of type {cls.__module__}.{cls.__qualname__} cannot be written as a "
                f"{extension} file: leave the extension out, and one that holds it is chosen",
                key=key,
            )
        return found[0]

    def for_reading(self, extension: str, key: str) -> FileFormat:
        """The format that reads files of an extension.

        Raises
        ------
        StorageError
            There is none.
        """
        for each in self._of(extension):
            return each
        raise StorageError(
            f"{key!r} has an extension that no handler reads: register one for {extension!r}",
            key=key,
        )

    def _of(self, extension: str) -> Iterator[FileFormat]:
        for each in self._registered:
            if isinstance(each, HandlerFormat):
                if each.handler.can_handle_extension(extension):
                    yield each
            elif extension in each.extensions:
                yield each
        for lazy in _BUILTIN:
            if extension in lazy.extensions:
                yield self._load(lazy)

    def _load(self, lazy: _Lazy) -> FileFormat:
        found = self._loaded.get(lazy.target)
        if found is None:
            found = self._loaded[lazy.target] = load(f"blobstore.files.{lazy.target}")()
        return found


def _of_packages() -> tuple[FileFormat, ...]:
    """What installed packages offer as entry points ``blobstore.file_formats``, best first."""
    found = []
    for name in file_formats.third_party():
        try:
            found.append(file_formats.get(name)())
        except MissingDependencyError as exc:
            # What other files are read by must not depend on it.
            logger.warning("the file format %r is left out: %s", name, exc)
    return tuple(sorted(found, key=lambda each: -each.priority))


def built_in() -> Iterable[tuple[str, tuple[str, ...]]]:
    """Where each built-in format is, and its extensions."""
    return [(lazy.target, lazy.extensions) for lazy in _BUILTIN]


def _adapted(given: Any) -> FileFormat:
    if not isinstance(given, DataHandler):
        raise ConfigError(f"a handler must be a DataHandler or a FileFormat, not {given!r}")
    return HandlerFormat(given)


def _is(each: FileFormat, handler: Any) -> bool:
    known = (each, type(each), getattr(each, "handler", None), type(getattr(each, "handler", None)))
    return any(handler is one for one in known)
