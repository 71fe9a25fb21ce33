"""Names of fields, and what an entry has under them.

In writing, dots lead into objects; a name that has a dot, a backquote or a leading ``@`` in it
stands in backquotes, in which a backquote is doubled; ``@size`` and the like are the entry's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from blobstore.entry import Entry
from blobstore.errors import InvalidQueryError
from blobstore.query.tree import Field
from blobstore.query.values import MISSING, shown

SystemKind = Literal["text", "number", "time"]


@dataclass(frozen=True, slots=True)
class SystemField:
    """A fact that every entry has.

    Attributes
    ----------
    kind : {"text", "number", "time"}
        A time is kept, and compared, as integer microseconds since 1970, UTC.
    read : callable
        From an entry to the value.
    """

    kind: SystemKind
    read: Callable[[Entry], Any]


SYSTEM_FIELDS: Final[Mapping[str, SystemField]] = {
    "key": SystemField("text", lambda entry: entry.key),
    "id": SystemField("number", lambda entry: entry.id),
    "version": SystemField("number", lambda entry: entry.version),
    "size": SystemField("number", lambda entry: entry.size),
    "data_type": SystemField("text", lambda entry: entry.data_type),
    "handler": SystemField("text", lambda entry: entry.handler),
    "created_at": SystemField("time", lambda entry: entry.created_us),
    "updated_at": SystemField("time", lambda entry: entry.updated_us),
}

KEYWORDS: Final = frozenset(
    (
        *("and", "or", "not", "in", "between", "like", "contains", "startswith", "exists", "is"),
        *("null", "true", "false"),
    )
)
"""Words of the string spelling; as names they stand in backquotes there."""

_PART = re.compile(r"(?:`((?:[^`]|``)*+)`|([^.`@][^.`]*))(?=\.|\Z)")
_BARE = re.compile(r"[^\W\d]\w*")


def parse_field(name: str) -> Field:
    """Read the name of a field.

    Raises
    ------
    InvalidQueryError
        It is not a name, or not one that there is.

    Examples
    --------
    >>> parse_field("optimizer.lr").path, parse_field("`a.b`.learning rate").path
    (('optimizer', 'lr'), ('a.b', 'learning rate'))
    >>> parse_field("@size")
    Field(path=('size',), system=True)
    """
    if not isinstance(name, str):
        raise InvalidQueryError(f"the name of a field must be a str, not {shown(name)}")
    if name.startswith("@"):
        return system_field(name[1:])
    names: list[str] = []
    place = 0
    while True:
        part = _PART.match(name, place)
        if part is None:
            raise InvalidQueryError(
                f"{name!r} is not the name of a field (see its character {place + 1}): names are "
                "divided by single dots; one that is empty, or has a dot, a backquote or a leading "
                "@ in it, stands in backquotes, like `a.b`"
            )
        quoted, bare = part.groups()
        names.append(bare if quoted is None else unquote_name(part.group()))
        place = part.end() + 1
        if place > len(name):
            return user_field(names)


def user_field(names: Any) -> Field:
    """Make a field of metadata from literal names, outermost first.

    Examples
    --------
    >>> user_field(["a.b", "c"])
    Field(path=('a.b', 'c'), system=False)
    """
    path = tuple(names)
    if not path:
        raise InvalidQueryError("a field has at least one name")
    for name in path:
        if not isinstance(name, str):
            raise InvalidQueryError(f"names of metadata are strings, not {shown(name)}")
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise InvalidQueryError(
                f"{name!r} has a lone surrogate in it, which no stored name has"
            ) from exc
    return Field(tuple(str.__str__(name) for name in path))


def system_field(name: str) -> Field:
    """Make a field of the entry's own from its name without the ``@``."""
    if name not in SYSTEM_FIELDS:
        known = ", ".join(f"@{known}" for known in SYSTEM_FIELDS)
        raise InvalidQueryError(
            f"there is no field @{name}: an entry's own are {known}; metadata whose name starts "
            "with @ is written in backquotes"
        )
    return Field((name,), system=True)


def is_time(field: Field) -> bool:
    """Whether the value of a field is a time, in microseconds since 1970, UTC."""
    return field.system and SYSTEM_FIELDS[field.path[0]].kind == "time"


def print_field(field: Field) -> str:
    """Write a field as all spellings read it.

    Examples
    --------
    >>> print_field(Field(("a", "b.c", "not")))
    'a.`b.c`.`not`'
    """
    if field.system:
        return f"@{field.path[0]}"
    return ".".join(map(_print_name, field.path))


def is_keyword(word: str) -> bool:
    """Whether the string spelling takes a word for one of its own; case does not matter."""
    return word.isascii() and word.lower() in KEYWORDS


def unquote_name(quoted: str) -> str:
    """Take the backquotes off a name."""
    return quoted[1:-1].replace("``", "`")


def reader(field: Field) -> Callable[[Entry, dict[str, Any]], Any]:
    """Make the function from an entry and its parsed metadata to the value of a field.

    It gives `MISSING` where there is none.
    """
    if field.system:
        read = SYSTEM_FIELDS[field.path[0]].read
        return lambda entry, _metadata: read(entry)
    if len(field.path) == 1:
        (name,) = field.path
        return lambda _entry, metadata: metadata.get(name, MISSING)
    *outer, last = field.path

    def read_nested(_entry: Entry, metadata: dict[str, Any]) -> Any:
        inner: Any = metadata
        for name in outer:
            inner = inner.get(name)
            if type(inner) is not dict:
                return MISSING
        return inner.get(last, MISSING)

    return read_nested


def _print_name(name: str) -> str:
    if _BARE.fullmatch(name) and not is_keyword(name):
        return name
    return "`" + name.replace("`", "``") + "`"
