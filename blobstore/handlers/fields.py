"""Dataclasses and pydantic models: their fields as JSON, large arrays in them as parts.

Reading gives an object of the class, if it can be imported and is trusted: the entry is signed by
the reader, or the class is among its `trusted_types`. What has no exact form here (a field that holds
an object of some other class) is left to pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from blobstore.errors import DecodeError, UnsupportedTypeError
from blobstore.handlers import classes
from blobstore.handlers.options import refuse_options
from blobstore.handlers.tree import Tree, read_tree
from blobstore.protocols import Handler, Plan, StoredPart, WriteOptions

_SHOWN = 100


class _FieldsHandler(Handler):
    """What both have in common."""

    runs_code = True  # it imports the module of the class
    kind: ClassVar[str]

    def can_handle(self, obj: Any) -> bool:
        """Whether it is of such a class; `plan` looks closer."""
        return classes.kind_of(type(obj)) == self.kind

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Take the object apart.

        Raises
        ------
        UnsupportedTypeError
            It is more than its fields, or one of them has no exact form as JSON.
        """
        if not self.can_handle(obj):
            raise UnsupportedTypeError(f"{type(obj)!r} is no {self.kind}")
        tree = Tree(obj, options)
        cls = type(obj)
        info = {
            "type": f"{cls.__module__}.{cls.__qualname__}",
            "fields": list(tree.root["fields"])[:_SHOWN],
        }
        return Plan(self.kind, info, (tree.part(self.name, executable=True), *tree.parts))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Put the object together.

        Raises
        ------
        DecodeError
            Its class is not here, or has changed so that this is none of it.
        UntrustedTypeError
            The reader does not trust its class.
        """
        refuse_options(self, options)
        found = read_tree(parts)
        if classes.kind_of(type(found)) != self.kind:
            raise DecodeError(f"a {type(found).__name__} is stored in the place of a {self.kind}")
        return found


class DataclassHandler(_FieldsHandler):
    """Objects of dataclasses.

    Examples
    --------
    >>> DataclassHandler().can_handle(WriteOptions()), DataclassHandler().can_handle(WriteOptions)
    (True, False)
    """

    name = "dataclass"
    kind = "dataclass"
    type_names = ()
    base_names = ("dataclasses.dataclass",)


class PydanticHandler(_FieldsHandler):
    """Pydantic models, with private attributes and extras; nothing is validated on the way."""

    name = "pydantic"
    kind = "model"
    type_names = ()
    base_names = ("pydantic.main.BaseModel",)
