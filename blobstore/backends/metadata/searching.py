"""Queries on an SQL index: pages, counts and tallies, and which index serves them.

A page is read in two steps. The first finds rows in order, and what the database is sure of; the
second reads their entries, and confirms by the reference evaluator those of which it is not, and
those that were changed in between.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from blobstore.backends.metadata.addressing import TRUE, Bool, Column, Condition, Located, number
from blobstore.backends.metadata.connections import Dialect, Kept
from blobstore.backends.metadata.field_indexes import FieldIndexes, Work
from blobstore.backends.metadata.ordering import (
    At,
    Level,
    Segment,
    behind,
    order_columns,
    segments,
)
from blobstore.backends.metadata.schema import entries
from blobstore.backends.metadata.where import (
    compile_where,
    conjuncts,
    narrows,
    negation,
    possible_ranks,
)
from blobstore.entry import Entry
from blobstore.keys import successor
from blobstore.protocols import Explanation, FieldIndex
from blobstore.query import (
    Cursor,
    Expression,
    Field,
    Query,
    matcher,
    order_place,
    sort_key,
    values_reader,
)
from blobstore.query.tree import Among, Compare

_PAGE = 500
_KEY_PAGE = 5000
_TALLY_PAGE = 20_000
_GROWTH = 8
_LONGEST_PAGE = 65_536
"""Where each page means to sort everything that is left, pages grow up to this."""

_FEW = 2000
"""So many entries are better found by an index, and sorted, than looked for in their order."""

_KEY = Field(("key",), system=True)
# To a planner this is not the key, so it does not go by the index of keys.
_NOT_THE_KEY: Column = entries.c.key + sa.literal_column("''")
_HEAD = 4


class Row(NamedTuple):
    """A row of a page: what it is of, and whether it is known to match."""

    id: int
    version: int
    key: str
    sure: bool


@dataclass(frozen=True)
class Plan:
    """How a query is answered.

    Attributes
    ----------
    query : Query
    here : condition
        The store, in the words that its indexes are defined in.
    condition : Condition
        What must hold of an entry, but for its place in the order.
    key : expression
        What keys are compared and sorted by.
    levels : sequence of Level
        Of the order, those before the key.
    backwards : bool
        Whether keys descend.
    index : FieldIndex or None
        Which one serves it.
    ranks : sequence of int or None
        If that index gives the order: the ranks to go through.
    at_rest : sequence of conditions
        See `segments`.
    """

    query: Query
    base: tuple[Bool, ...]
    condition: Condition
    key: Column = entries.c.key
    levels: tuple[Level, ...] = ()
    backwards: bool = False
    index: FieldIndex | None = None
    ranks: Sequence[int] | None = None
    at_rest: Sequence[Bool] = ()

    @property
    def sorts(self) -> bool:
        """Whether a page has to be chosen from all that is left."""
        return bool(self.levels or self.key is _NOT_THE_KEY) and self.ranks is None

    def segments(self, at: At | None) -> Iterator[Segment]:
        """What gives the answer behind a place, in order."""
        above = TRUE if at is None else _beyond(self.key, at.key, backwards=self.backwards)
        key = self.key.desc() if self.backwards else self.key.asc()
        if self.ranks is not None:
            yield from segments(self.levels, self.ranks, self.at_rest, key, at, above)
            return
        conditions = () if at is None else (behind(self.levels, at, above),)
        yield Segment(conditions, order_columns(self.levels, key))

    def statement(self, segment: Segment, limit: int, *, lean: bool = False) -> sa.Select[Any]:
        """Select the rows of a segment, and what tells their place.

        If `lean`, without id and version: the key alone may stand in an index.
        """
        condition = self.condition
        sure = number(1) if condition.exact else condition.must
        columns: list[Column] = [
            *([number(0), number(0)] if lean else [entries.c.id, entries.c.version]),
            entries.c.key,
            sure,
            *itertools.chain.from_iterable(level.selected() for level in self.levels),
        ]
        # Only read by position, where names might be alike.
        labelled = [column.label(f"c{i}") for i, column in enumerate(columns)]
        return (
            sa.select(*labelled)
            .where(*self.base, condition.may, *segment.conditions)
            .order_by(*segment.order)
            .limit(limit)
        )

    def place(self, row: Sequence[Any]) -> At:
        """The place of a row that `statement` gave."""
        values = iter(row[_HEAD:])
        places = []
        for level in self.levels:
            wanted = 1 + len(level.located.values)
            places.append(level.read(list(itertools.islice(values, wanted))))
        return At(tuple(places), row[2])

    def start(self) -> At | None:
        """Where the answer begins."""
        after = self.query.after
        if after is None:
            return None
        if isinstance(after, Cursor):
            return At(tuple(map(order_place, after.values[: len(self.levels)])), after.key)
        return At((), after)

    def page_sizes(self, first: int) -> Iterator[int]:
        """How many rows to read at a time."""
        limit = self.query.limit
        if limit is not None and self.condition.exact:
            first = min(first, limit)
        for power in itertools.count():
            yield max(first, min(first * _GROWTH**power, _LONGEST_PAGE)) if self.sorts else first


@dataclass
class Search:
    """Answers the queries of one store.

    Parameters
    ----------
    read : callable
        Runs work on a connection, and says what was being done.
    fetch : callable
        Gives the entries of keys.
    """

    dialect: Dialect
    namespace: str
    indexes: FieldIndexes
    read: Work
    fetch: Callable[[Sequence[str]], Mapping[str, Entry]]
    _bound_here: Bool = field(init=False)

    def __post_init__(self) -> None:
        self._bound_here = entries.c.namespace == self.namespace

    # answers

    def scan(self, query: Query) -> Iterator[Entry]:
        """Entries that match, in order."""
        found = self._entries(query) if self._orders(query) else self._sorted(query)
        return itertools.islice(found, _limit(query))

    def keys(self, query: Query) -> Iterator[str]:
        """Keys that match, in order."""
        if not self._orders(query):
            return (entry.key for entry in self.scan(query))
        plan = self._plan(query)
        found = (
            row.key
            for page in self._pages(plan, _KEY_PAGE, lean=True)
            for row in self._confirmed(query, page)
        )
        return itertools.islice(found, _limit(query))

    def count(self, query: Query) -> int:
        """How many entries match."""
        limit = _limit(query)
        if limit == 0:
            return 0
        if query.after is None:
            query = replace(query, order=())
        elif not self._orders(query):
            return sum(1 for _ in self.scan(query))
        plan = self._plan(replace(query, limit=None), counting=True)
        if plan is None:
            return 0
        at = plan.start()
        conditions: tuple[Bool, ...] = ()
        if at is not None:
            above = _beyond(plan.key, at.key, backwards=plan.backwards)
            conditions = (behind(plan.levels, at, above),)
        counted = sa.select(sa.func.count()).select_from(entries)
        statement = counted.where(*plan.base, plan.condition.must, *conditions)
        total: int = self.read(
            lambda kept: kept.connection.execute(statement).scalar_one(), "counting"
        )
        if not plan.condition.exact:
            doubtful = replace(plan, base=(*plan.base, negation(plan.condition.must)))
            for page in self._pages(doubtful, _KEY_PAGE):
                total += sum(1 for _ in self._confirmed(query, page))
        return total if limit is None else min(total, limit)

    def tally(
        self, query: Query, fields: Sequence[Field]
    ) -> Iterator[tuple[tuple[Any, ...], int]] | None:
        """Combinations of values, and how often they come; None where the database cannot tell.

        The database counts within a page of keys at a time, so the same may come again.
        """
        if query.order or query.limit is not None:
            return None
        plan = self._plan(query)
        if plan is None:
            return iter(())
        located = [self._locate(one, plan.index, plan.key) for one in fields]
        if not all(located):
            return None
        return self._tally(plan, fields, [one for one in located if one is not None])

    def explain(self, query: Query) -> Explanation:
        """Tell how `scan` finds its answer."""
        if not self._orders(query):
            inner = self.explain(replace(query, order=(), after=None))
            return replace(inner, plan=inner.plan + "\nsorted in Python", scans=True)
        plan = self._plan(query)
        if plan is None:
            return Explanation("", "nothing can match", scans=False)
        size = next(plan.page_sizes(_PAGE))
        statements = [plan.statement(one, size) for one in plan.segments(plan.start())]

        def look(kept: Kept) -> tuple[list[str], list[str]]:
            texts, plans = [], []
            for statement in statements:
                text, rows = _explained(kept, self.dialect.explaining, statement)
                texts.append(text)
                plans += ["  ".join(map(str, row)) for row in rows]
            return texts, plans

        texts, plans = self.read(look, "explaining a query of")
        described = "\n".join(plans)
        used = tuple(one for one in self.indexes.all() if one.name in described)
        asks = query.where is not None or bool(plan.levels)
        served = bool(used) or self.dialect.fields.serves(described) or _limits_keys(query.where)
        scans = asks and not served
        suggestion = self._suggestion(query) if scans else None
        return Explanation(";\n".join(texts), described, used, scans, suggestion)

    # what the database cannot order

    def _orders(self, query: Query) -> bool:
        """Whether the database can address all that the order is by."""
        return all(one.system or self.dialect.fields.can(one.path) for one, _ in _levels(query)[0])

    def _sorted(self, query: Query) -> Iterator[Entry]:
        """Sort by the reference evaluator: all places are kept in memory, but no entries."""
        holds, place_of = query.matcher(), sort_key(query.order)
        all_of_them = self._entries(replace(query, order=(), after=None, limit=None))
        places = (place_of(entry) for entry in all_of_them if holds(entry))
        limit = _limit(query)
        chosen = sorted(places) if limit is None else heapq.nsmallest(limit, places)
        for start in range(0, len(chosen), _PAGE):
            some = chosen[start : start + _PAGE]
            yield from self._read_entries(query, [Row(0, 0, at[-1], sure=False) for at in some])

    # pages

    def _entries(self, query: Query) -> Iterator[Entry]:
        plan = self._plan(query)
        for page in self._pages(plan, _PAGE):
            for start in range(0, len(page), _PAGE):
                yield from self._read_entries(query, page[start : start + _PAGE])

    def _pages(self, plan: Plan | None, first: int, *, lean: bool = False) -> Iterator[list[Row]]:
        """Read rows a page at a time, each going on behind the last one of the page before."""
        if plan is None or _limit(plan.query) == 0:
            return
        at = plan.start()
        for size in plan.page_sizes(first):
            found, last = self.read(
                partial(_page, plan=plan, at=at, size=size, lean=lean), "listing"
            )
            if found:
                yield found
            if len(found) < size:
                return
            at = plan.place(last)

    def _read_entries(self, query: Query, rows: Sequence[Row]) -> Iterator[Entry]:
        """Entries of rows; those are left out that are gone, or turn out not to match."""
        found = self.fetch([row.key for row in rows])
        holds = matcher(query.where)
        for row in rows:
            entry = found.get(row.key)
            if entry is None:
                continue
            if (row.sure and (entry.id, entry.version) == row[:2]) or holds(entry):
                yield entry

    def _confirmed(self, query: Query, rows: Sequence[Row]) -> Iterator[Row]:
        for sure, group in itertools.groupby(rows, key=lambda row: row.sure):
            if sure:
                yield from group
                continue
            doubtful = list(group)
            for start in range(0, len(doubtful), _PAGE):
                some = doubtful[start : start + _PAGE]
                matching = {entry.key for entry in self._read_entries(query, some)}
                yield from (row for row in some if row.key in matching)

    # tallies

    def _tally(
        self, plan: Plan, fields: Sequence[Field], located: Sequence[Located]
    ) -> Iterator[tuple[tuple[Any, ...], int]]:
        widths = [len(one.facts) for one in located]
        facts = [fact for one in located for fact in one.facts]
        # What was respelled for the database is not what an entry says.
        sure = sa.and_(plan.condition.must, entries.c.searchable.is_(None))
        doubtful = sa.case((sure, sa.literal_column("NULL")), else_=entries.c.key)
        values = values_reader(fields)
        at = plan.start()
        while True:
            (segment,) = plan.segments(at)
            inner = (
                sa.select(
                    entries.c.key.label("place"),
                    doubtful.label("doubtful"),
                    *(fact.label(f"f{i}") for i, fact in enumerate(facts)),
                )
                .where(*plan.base, plan.condition.may, *segment.conditions)
                .order_by(*segment.order)
                .limit(_TALLY_PAGE)
                .subquery("page")
            )
            groups = [inner.c.doubtful, *(inner.c[f"f{i}"] for i in range(len(facts)))]
            statement = sa.select(sa.func.count(), sa.func.max(inner.c.place), *groups).group_by(
                *groups
            )
            rows = self.read(partial(_all, statement=statement), "counting in")
            unsure = [row[2] for row in rows if row[2] is not None]
            for row in rows:
                if row[2] is None:
                    parts = iter(row[3:])
                    yield (
                        tuple(
                            one.value(list(itertools.islice(parts, width)))
                            for one, width in zip(located, widths, strict=True)
                        ),
                        row[0],
                    )
            for start in range(0, len(unsure), _PAGE):
                some = [Row(0, 0, key, sure=False) for key in unsure[start : start + _PAGE]]
                for entry in self._read_entries(plan.query, some):
                    yield values(entry), 1
            if sum(row[0] for row in rows) < _TALLY_PAGE:
                return
            at = At((), max(row[1] for row in rows))

    # planning

    def _plan(self, query: Query, *, counting: bool = False) -> Plan | None:
        """Choose what to go by; None if nothing can match."""
        if not storable(query.prefix):
            return None
        levels, backwards = _levels(query)
        known = self.indexes.known() if query.where is not None or levels else {}
        index, walks = self._choose(query, levels, known, counting=counting)
        key: Column = entries.c.key
        masked: Column = entries.c.key
        if index is None:
            base = [self._bound_here]
        else:
            masked = _NOT_THE_KEY
            if not walks:
                key = masked
            base = [self.indexes.here]
        base += _prefixed(masked, query.prefix)
        located: dict[Field, Located | None] = {}

        def locate(one: Field) -> Located | None:
            if one not in located:
                located[one] = self._locate(one, index, masked)
            return located[one]

        condition = compile_where(query.where, locate)
        found = tuple(
            Level(place, descending)
            for one, descending in levels
            if (place := self._locate(one, index, key)) is not None
        )
        plan = Plan(query, tuple(base), condition, key, found, backwards=backwards, index=index)
        if index is None or not walks:
            return plan
        return replace(
            plan,
            ranks=possible_ranks(conjuncts(query.where), index.field),
            at_rest=self.dialect.fields.at_rest(index.field.path),
        )

    def _locate(self, one: Field, index: FieldIndex | None, key: Column) -> Located | None:
        indexed = index is not None and index.field == one
        return self.dialect.fields.locate(one, indexed=indexed, key=key)

    def _choose(
        self,
        query: Query,
        levels: Sequence[tuple[Field, bool]],
        known: Mapping[Field, FieldIndex],
        *,
        counting: bool,
    ) -> tuple[FieldIndex | None, bool]:
        """Choose an index on a field, and whether its order is to be followed."""
        if not known:
            return None, False
        ordering = known.get(levels[0][0]) if levels and not counting else None
        asked: dict[Field, list[Expression]] = {}
        for part in conjuncts(query.where):
            if narrows(part) and part.field in known:  # type: ignore[attr-defined]
                asked.setdefault(part.field, []).append(part)  # type: ignore[attr-defined]
        if ordering is not None:
            asked.pop(ordering.field, None)
        counts = {one: self._few(known[one], parts) for one, parts in asked.items()}
        best = min(counts, key=counts.__getitem__, default=None)
        if best is not None and counts[best] <= _FEW:
            return known[best], False
        if (ordering or best) and query.prefix and self._few(None, (), query.prefix) <= _FEW:
            return None, False
        if ordering is not None:
            return ordering, True
        # Where there is nothing to be gained by the order of keys, it is better than no index.
        return (known[best], False) if best is not None and (levels or counting) else (None, False)

    def _few(self, index: FieldIndex | None, parts: Sequence[Expression], prefix: str = "") -> int:
        """Count the entries that meet conditions, but not much further than `_FEW`."""
        here = self._bound_here if index is None else self.indexes.here
        conditions = [
            compile_where(part, lambda one: self._locate(one, index, _NOT_THE_KEY)).may
            for part in parts
        ]
        some = (
            sa.select(number(1).label("one"))
            .select_from(entries)
            .where(here, *conditions, *_prefixed(entries.c.key, prefix))
            .limit(_FEW + 1)
            .subquery("some")
        )
        statement = sa.select(sa.func.count()).select_from(some)
        return int(
            self.read(lambda kept: kept.connection.execute(statement).scalar_one(), "reading")
        )

    def _suggestion(self, query: Query) -> Field | None:
        """The field whose index would serve a query: that of the sharpest condition, or order."""
        known = self.indexes.known()
        best: tuple[int, Field] | None = None
        for part in conjuncts(query.where):
            if not narrows(part):
                continue
            where: Field = part.field  # type: ignore[attr-defined]
            level = _sharpness(part)
            if self._indexable(where) and where not in known and (best is None or level < best[0]):
                best = level, where
        if best is not None:
            return best[1]
        if query.order and self._indexable(query.order[0].field):
            first = query.order[0].field
            return None if first in known else first
        return None

    def _indexable(self, one: Field) -> bool:
        return not one.system and self.dialect.fields.can(one.path)


def _all(kept: Kept, statement: sa.Select[Any]) -> Sequence[Any]:
    return kept.connection.execute(statement).all()


def _page(
    kept: Kept, plan: Plan, at: At | None, size: int, *, lean: bool
) -> tuple[list[Row], Sequence[Any]]:
    """Read rows, and the last of them with what tells its place."""
    rows: list[Row] = []
    last: Sequence[Any] = ()
    for segment in plan.segments(at):
        for found in kept.connection.execute(plan.statement(segment, size - len(rows), lean=lean)):
            rows.append(Row(found[0], found[1], found[2], bool(found[3])))
            last = found
        if len(rows) == size:
            break
    return rows, last


def _explained(kept: Kept, how: str, statement: sa.Select[Any]) -> tuple[str, Sequence[Any]]:
    connection = kept.connection
    compiled = statement.compile(connection, compile_kwargs={"render_postcompile": True})
    values: Any = compiled.construct_params()
    names = getattr(compiled, "positiontup", None)
    if names is not None:
        values = tuple(values[name] for name in names)
    return str(compiled), connection.exec_driver_sql(f"{how} {compiled}", values).all()


def _levels(query: Query) -> tuple[list[tuple[Field, bool]], bool]:
    """What is sorted by before the key, which no two entries share; and whether keys descend."""
    found: list[tuple[Field, bool]] = []
    for one in query.order:
        if one.field == _KEY:
            return found, one.descending
        found.append((one.field, one.descending))
    return found, False


def _limit(query: Query) -> int | None:
    return None if query.limit is None else max(query.limit, 0)


def _limits_keys(where: Expression | None) -> bool:
    """Whether only keys of a range are looked at."""
    return any(
        narrows(part) and part.field == _KEY  # type: ignore[attr-defined]
        for part in conjuncts(where)
    )


def _sharpness(part: Expression) -> int:
    """The less, the fewer entries meet it, as far as that can be guessed."""
    if isinstance(part, Compare):
        return 0 if part.op == "=" else 2
    return 1 if isinstance(part, Among) else 2


def _prefixed(key: Column, prefix: str) -> list[Bool]:
    if not prefix:
        return []
    end = successor(prefix)
    return [key >= prefix] if end is None else [key >= prefix, key < end]


def storable(text: str) -> bool:
    """Whether an index could hold the text; a lone surrogate and NUL are nowhere to be found."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _beyond(column: Column, key: str, *, backwards: bool) -> Bool:
    """Whether a key comes later than `key` in the order of code points."""
    # No key has a surrogate or NUL, so what is above a key with one is what is above all keys
    # that start like it and go on with a surrogate, or with NUL.
    for place, character in enumerate(key):
        if character == "\0":
            start = key[:place]
            return column <= start if backwards else column > start
        if "\ud800" <= character <= "\udfff":
            start = key[:place] + "\ue000"
            return column < start if backwards else column >= start
    return column < key if backwards else column > key
