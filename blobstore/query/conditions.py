"""The leaves of expressions, checked as they are made: all three spellings end here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from blobstore.entry import to_datetime
from blobstore.errors import InvalidQueryError
from blobstore.query.fields import SYSTEM_FIELDS, is_time, print_field
from blobstore.query.patterns import split_pattern
from blobstore.query.tree import (
    Among,
    And,
    Compare,
    Contains,
    Exists,
    Expression,
    Field,
    Like,
    Operator,
    StartsWith,
)
from blobstore.query.values import ORDERED_KINDS, kind_of, literal, shown

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def compare(field: Field, op: Operator, value: Any) -> Compare:
    """Make ``field op value``.

    Raises
    ------
    InvalidQueryError
        The value is none that can be stored, or none that this field or operator can be compared
        with.
    """
    value = operand(field, value)
    if op not in ("=", "!="):
        _check_ordered(field, op, value)
    return Compare(field, op, value)


def among(field: Field, values: Iterable[Any], *, negated: bool = False) -> Among:
    """Make ``field in (values)``, or ``not in``."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidQueryError(
            f"{print_field(field)} in ... takes a list of values, not {shown(values)}"
        )
    return Among(field, tuple(operand(field, value) for value in values), negated)


def between(field: Field, low: Any, high: Any) -> And:
    """Make ``field >= low and field <= high``."""
    least, most = compare(field, ">=", low), compare(field, "<=", high)
    if kind_of(least.value) != kind_of(most.value):
        raise InvalidQueryError(
            f"{print_field(field)} between {shown(low)} and {shown(high)}: both ends must be "
            "numbers, or both text"
        )
    return And((least, most))


def like(field: Field, pattern: Any) -> Like:
    """Make ``field like pattern``."""
    pattern = _text(field, "like", pattern)
    split_pattern(pattern)  # to refuse it here, not at the first entry
    return Like(field, pattern)


def starts_with(field: Field, text: Any) -> StartsWith:
    """Make ``field startswith text``."""
    return StartsWith(field, _text(field, "startswith", text))


def contains(field: Field, value: Any) -> Contains:
    """Make ``field contains value``."""
    if field.system:
        return Contains(field, _text(field, "contains", value))
    return Contains(field, literal(value))


def exists(field: Field) -> Exists:
    """Make ``field exists``."""
    return Exists(field)


def all_of(conditions: Iterable[Expression]) -> Expression:
    """Join conditions, at least one, by ``and``."""
    first, *others = conditions
    for other in others:
        first = first & other
    return first


def any_of(conditions: Iterable[Expression]) -> Expression:
    """Join conditions, at least one, by ``or``."""
    first, *others = conditions
    for other in others:
        first = first | other
    return first


def operand(field: Field, value: Any) -> Any:
    """Bring what a field is compared with into the form in which it is stored."""
    if not field.system:
        return literal(value)
    wanted = SYSTEM_FIELDS[field.path[0]].kind
    if wanted == "time":
        return _microseconds(field, value)
    value = literal(value)
    if kind_of(value) != wanted:
        raise InvalidQueryError(
            f"{print_field(field)} is a {wanted}, which {shown(value)} is not"
            if wanted == "number"
            else f"{print_field(field)} is text, which {shown(value)} is not"
        )
    return value


def written(field: Field, value: Any) -> Any:
    """Turn what `operand` gave into what people write: times into ISO text."""
    if is_time(field):
        return to_datetime(value).isoformat()
    return value


def _check_ordered(field: Field, op: str, value: Any) -> None:
    kind = kind_of(value)
    if kind not in ORDERED_KINDS:
        raise InvalidQueryError(
            f"{print_field(field)} {op} {shown(value)}: only numbers and text come before or after "
            "others; use = or != here"
        )


def _text(field: Field, word: str, value: Any) -> str:
    if field.system and SYSTEM_FIELDS[field.path[0]].kind != "text":
        raise InvalidQueryError(
            f"{print_field(field)} {word} ...: it is not text; compare it with = != < <= > >= or "
            "between"
        )
    text = literal(value)
    if not isinstance(text, str):
        raise InvalidQueryError(f"{print_field(field)} {word} takes text, not {shown(value)}")
    return text


def _microseconds(field: Field, value: Any) -> int:
    """Since 1970, UTC; times without a zone are in UTC, dates are their first moment."""
    moment = value
    if not isinstance(value, date):
        text = literal(value)
        if not isinstance(text, str):
            raise InvalidQueryError(
                f"{print_field(field)} is a time, which {shown(value)} is not: give a datetime, or "
                "text like '2026-01-31' or '2026-01-31T12:00:00+00:00'"
            )
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as exc:
            raise InvalidQueryError(
                f"{print_field(field)} is a time, and {shown(text)} is none: write it like "
                "'2026-01-31' or '2026-01-31T12:00:00+00:00'"
            ) from exc
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return (moment.astimezone(UTC) - _EPOCH) // _MICROSECOND
    except (OverflowError, ValueError) as exc:
        raise InvalidQueryError(
            f"{print_field(field)}: {shown(value)} is beyond the years 1 to 9999 in UTC"
        ) from exc
