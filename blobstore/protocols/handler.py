"""Handler: objects to parts and back; and the plans and parts in between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar, NamedTuple

from blobstore.errors import NotSupportedError
from blobstore.streams import Hasher, Sink, Source
from blobstore.trust import NOTHING, Trust


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a handler is to encode.

    Attributes
    ----------
    codec : {"lz4", "zstd", "gzip", "blosclz", "none"}
    level : int
        1 (fastest) to 9 (smallest).
    inline_max_bytes : int
        Parts up to this many stored bytes end up in the index, where no other tool reads them: a
        handler may then prefer a format that is quick to a format that is open.
    """

    codec: str = "lz4"
    level: int = 3
    inline_max_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a part's bytes look on disk: the codec really used, and the extension of the file."""

    codec: str
    extension: str


class PlannedPart(ABC):
    """One part of an object about to be stored. Nothing is encoded before `write`.

    Attributes
    ----------
    name : str
        Unique within the plan.
    handler, format_version : str, int
        The format of the bytes (a dictionary's parts may be of another handler than itself).
    size_hint : int
        About how many bytes there are before compression.
    executable : bool
        Whether reading it may run code (pickle); such bytes get a cryptographic checksum.
    """

    name: str = "data"
    handler: str
    format_version: int = 1
    size_hint: int
    executable: bool = False

    @abstractmethod
    def digest(self, hasher: Hasher) -> None:
        """Feed the logical content, in a canonical form, to `hasher`; asked for at most once."""

    @abstractmethod
    def encoding(self) -> Encoding:
        """Decide codec and extension, on a sample where that needs the data; always the same."""

    @property
    def is_packed(self) -> bool:
        """Whether reading it may take much more memory than there are stored bytes."""
        return self.encoding().codec != "none"

    @abstractmethod
    def write(self, sink: Sink) -> None:
        """Encode into `sink`. Repeatable, for a retry; must not change the object."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How an object will be stored.

    Attributes
    ----------
    data_type : str
        "array", "dataframe", "object" ...: what users see and filter by.
    info : mapping
        JSON values that say what it is (dtype, shape, columns). Only facts of this object that
        may differ between entries sharing the same blobs are needed to read it back; all else
        needed for that is inside the blobs.
    parts : tuple of PlannedPart
    """

    data_type: str
    info: Mapping[str, Any]
    parts: tuple[PlannedPart, ...]


class StoredPart(NamedTuple):
    """One part as a handler gets it for reading; its checksum was verified.

    Attributes
    ----------
    name : str
    source : Source
    codec, handler, format_version : str, str, int
        What the blob was written with.
    trust : Trust
        What its bytes may have imported and run. A handler that has `runs_code` asks it before it
        looks up a class or function that the bytes name.
    """

    name: str
    source: Source
    codec: str
    handler: str
    format_version: int
    trust: Trust = NOTHING


class Handler(ABC):
    """Turns objects of some types into parts, and parts back into equal objects of those types.

    Attributes
    ----------
    name : str
        Kept in the index; stable, and never given to another format.
    format_version : int
        The newest format that it writes; it reads all up to this one.
    priority : int
        Of two handlers that can handle an object the higher one does.
    type_names : tuple of str
        Exact types by ``module.qualname``, compared without importing anything; "*" is any type
        (but not the files of `put_file`).
    base_names : tuple of str
        Types in the same way, of which subclasses are meant as well; "dataclasses.dataclass" stands
        for every class that this decorator made.
    runs_code : bool
        Whether `read` may run code that the stored bytes name: unpickle, or import a class and
        make an object of it. Entries of such handlers are signed, and what their parts may name
        is in `StoredPart.trust`. The parts that it is read from are planned as `executable`.
    """

    name: ClassVar[str]
    format_version: ClassVar[int] = 1
    priority: ClassVar[int] = 0
    type_names: ClassVar[tuple[str, ...]]
    base_names: ClassVar[tuple[str, ...]] = ()
    runs_code: ClassVar[bool] = False

    @abstractmethod
    def can_handle(self, obj: Any) -> bool:
        """Whether `obj`, of a matching type, comes back from `read` equal and of its type.

        May leave costly looks to `plan`, which then raises `UnsupportedTypeError`, and the next
        handler is asked.
        """

    @abstractmethod
    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Decide how to store `obj`; writes nothing, and copies nothing large."""

    @abstractmethod
    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Rebuild the object.

        Raises
        ------
        DecodeError
            The parts are whole, but not what this handler writes.
        """

    def open(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any]) -> BinaryIO:
        """Open the object as a file: by default the bytes of its only part, as they are stored."""
        if len(parts) != 1:
            raise NotSupportedError(
                f"an object of {len(parts)} parts is not one file: use get() to load it"
            )
        (part,) = parts.values()
        return part.source.open()
