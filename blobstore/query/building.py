"""The Python spelling of conditions: ``(F("loss") < 0.1) & F("tags").contains("final")``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from blobstore.errors import InvalidQueryError
from blobstore.query import conditions
from blobstore.query.fields import parse_field, print_field, user_field
from blobstore.query.tree import (
    Among,
    And,
    Compare,
    Contains,
    Exists,
    Expression,
    Like,
    Order,
    StartsWith,
)
from blobstore.query.values import shown


class F:
    """A field; compare it with values, and a condition comes out.

    Parameters
    ----------
    name : str or sequence of str
        Dots lead into nested metadata (``"optimizer.lr"``); a name with a dot in it stands in
        backquotes (``"`a.b`.c"``); ``"@size"`` and the like are the entry's own. A tuple or list
        of names is taken as it is: ``("a.b", "c")``.

    Examples
    --------
    >>> str((F("loss") < 0.1) & ~(F("author") == "bob") | F("tags").contains("final"))
    "loss < 0.1 and not author = 'bob' or tags contains 'final'"
    >>> str(F("@size").between(10, 20))
    '@size >= 10 and @size <= 20'
    """

    __slots__ = ("field",)
    __hash__ = None  # type: ignore[assignment]  # == makes conditions

    def __init__(self, name: str | Iterable[str]) -> None:
        self.field = parse_field(name) if isinstance(name, str) else user_field(name)

    def __repr__(self) -> str:
        return f"F({print_field(self.field)!r})"

    def __eq__(self, value: object) -> Compare:  # type: ignore[override]
        return conditions.compare(self.field, "=", _value(value))

    def __ne__(self, value: object) -> Compare:  # type: ignore[override]
        return conditions.compare(self.field, "!=", _value(value))

    def __lt__(self, value: Any) -> Compare:
        return conditions.compare(self.field, "<", _value(value))

    def __le__(self, value: Any) -> Compare:
        return conditions.compare(self.field, "<=", _value(value))

    def __gt__(self, value: Any) -> Compare:
        return conditions.compare(self.field, ">", _value(value))

    def __ge__(self, value: Any) -> Compare:
        return conditions.compare(self.field, ">=", _value(value))

    def isin(self, values: Iterable[Any]) -> Among:
        """Equal to one of `values`."""
        return conditions.among(self.field, values)

    def notin(self, values: Iterable[Any]) -> Among:
        """Of the type of at least one of `values`, and equal to none."""
        return conditions.among(self.field, values, negated=True)

    def between(self, low: Any, high: Any) -> And:
        """From `low` to `high`, both included."""
        return conditions.between(self.field, low, high)

    def like(self, pattern: str) -> Like:
        r"""Text of the form of `pattern`: ``%`` any run, ``_`` one character, ``\%`` a percent sign."""
        return conditions.like(self.field, pattern)

    def startswith(self, text: str) -> StartsWith:
        """Text that begins with `text`, literally."""
        return conditions.starts_with(self.field, text)

    def contains(self, value: Any) -> Contains:
        """Text with `value` somewhere in it, or an array with `value` as an element."""
        return conditions.contains(self.field, _value(value))

    def exists(self) -> Exists:
        """There at all, if only as null."""
        return conditions.exists(self.field)

    def asc(self) -> Order:
        """Smallest first, as a part of ``order_by``."""
        return Order(self.field)

    def desc(self) -> Order:
        """Largest first, as a part of ``order_by``."""
        return Order(self.field, descending=True)

    def _no_condition(self, *_: object) -> NoReturn:
        raise InvalidQueryError(
            f"{self!r} alone is no condition: compare it, as in ({self!r} == True), and put each "
            "comparison in parentheses before joining it by & or |"
        )

    __bool__ = __and__ = __rand__ = __or__ = __ror__ = __invert__ = _no_condition


def _value(value: Any) -> Any:
    if isinstance(value, F | Expression):
        raise InvalidQueryError(
            f"a field is compared with a value, not with {shown(value)}; if this is about "
            "precedence: put each comparison in parentheses"
        )
    return value
