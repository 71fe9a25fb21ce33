"""FileFormat: objects to open files and back, for stores whose files other tools read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from blobstore.streams import Sink, Source


@dataclass(frozen=True, slots=True)
class FileContext:
    """What a format may need to know of the file beside its bytes.

    Attributes
    ----------
    key : str
        The file's name in its store.
    extension : str
        By which the format was chosen, in lower case, with its dot: ".parquet".
    trust : object
        What may be unpickled; see `blobstore.files.trust`.
    """

    key: str
    extension: str
    trust: Any = None


class FileFormat(ABC):
    """Writes objects of some types as files that any tool reads, and reads such files.

    Attributes
    ----------
    name : str
        For messages, and unique among the formats of a store.
    extensions : tuple of str
        In lower case, with their dots. The first is written where the key names none.
    priority : int
        Of two formats for an object or an extension the higher one is taken.
    type_names : tuple of str
        Exact types by ``module.qualname``, compared without importing anything; "*" is any type.
    by_name_only : bool
        Whether it is only used where the key has one of its extensions.
    """

    name: str
    extensions: tuple[str, ...]
    priority: int = 0
    type_names: ClassVar[tuple[str, ...]] = ("*",)
    by_name_only: ClassVar[bool] = False

    @abstractmethod
    def can_handle(self, obj: Any) -> bool:
        """Whether `obj`, of a matching type, comes back from such a file as what it is."""

    @abstractmethod
    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the file.

        Raises
        ------
        UnsupportedTypeError
            The object turns out not to fit; the next format is asked if the key names none.
        """

    @abstractmethod
    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read the file.

        Raises
        ------
        DecodeError
            It is not of this format.
        """
