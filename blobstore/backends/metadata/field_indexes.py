"""Indexes on fields of metadata: how they are made, dropped and remembered.

Such an index belongs to one store (namespace) and one field. Its name in the database is made from
both; which field it is for stands in the table ``meta``, under the name of the index.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import sqlalchemy as sa

from blobstore.backends.metadata.addressing import Bool
from blobstore.backends.metadata.connections import Dialect, Kept
from blobstore.backends.metadata.schema import entries, meta
from blobstore.errors import NotSupportedError
from blobstore.protocols import FieldIndex
from blobstore.query import Field

T = TypeVar("T")
Work = Callable[[Callable[[Kept], Any], str], Any]

_RECORD = "index:"
_REMEMBERED = 1.0
"""Seconds. An index that others dropped meanwhile costs time, and no answer."""


class FieldIndexes:
    """The field indexes of a store.

    Parameters
    ----------
    read, write : callable
        Run work on a connection, in a transaction or not, and say what was being done.
    """

    def __init__(self, dialect: Dialect, namespace: str, read: Work, write: Work) -> None:
        self._dialect = dialect
        self._namespace = namespace
        self._read = read
        self._write = write
        self._seen: tuple[float, Mapping[Field, FieldIndex]] = (-_REMEMBERED, {})
        self.here: Bool = entries.c.namespace == dialect.fields.spelled(namespace)

    def all(self) -> list[FieldIndex]:
        """All that there are, as the database says now."""

        def look(kept: Kept) -> list[FieldIndex]:
            rows = kept.connection.execute(_RECORDS, {"space": self._namespace})
            return [FieldIndex(Field(tuple(json.loads(path))), name) for name, path in rows]

        found = self._read(look, "listing the indexes of")
        found = [FieldIndex(one.field, one.name[len(_RECORD) :]) for one in found]
        self._seen = (time.monotonic(), {one.field: one for one in found})
        return sorted(found, key=lambda one: one.field.path)

    def known(self) -> Mapping[Field, FieldIndex]:
        """All that there were a moment ago."""
        since, found = self._seen
        if time.monotonic() - since < _REMEMBERED:
            return found
        self.all()
        return self._seen[1]

    def create(self, field: Field) -> FieldIndex:
        """Make an index; what is there already stays."""
        self._check(field)
        made = FieldIndex(field, self._name(field))
        statement = self._ddl(field, made.name)
        record = {
            "namespace": self._namespace,
            "name": _RECORD + made.name,
            "value": json.dumps(field.path, ensure_ascii=False),
        }
        noted = self._dialect.insert(meta).values(record).on_conflict_do_nothing()

        def work(kept: Kept) -> None:
            self._dialect.drop_broken(kept, made.name)
            kept.driver.execute(statement)
            kept.connection.execute(noted)

        self._change(work, f"making an index on {field} in")
        return made

    def drop(self, field: Field) -> bool:
        """Remove an index; whether there was one."""
        name = self._name(field)
        forget = meta.delete().where(
            meta.c.namespace == self._namespace, meta.c.name == _RECORD + name
        )

        def work(kept: Kept) -> bool:
            there = bool(kept.connection.execute(forget).rowcount)
            kept.driver.execute(f"DROP INDEX {self._dialect.concurrently} IF EXISTS {name}")
            return there

        return bool(self._change(work, f"dropping the index on {field} in"))

    def _change(self, work: Callable[[Kept], T], doing: str) -> T:
        try:
            if not self._dialect.concurrently:
                return self._write(work, doing)  # type: ignore[no-any-return]

            def alone(kept: Kept) -> T:
                with self._dialect.holding_indexes(kept):
                    return work(kept)

            self._write(lambda _: None, doing)  # which refuses where nothing may be changed
            return self._read(alone, doing)  # type: ignore[no-any-return]
        finally:
            self._seen = (-_REMEMBERED, {})

    def _check(self, field: Field) -> None:
        if field.system:
            raise NotSupportedError(
                f"there are no indexes on {field} and the like, but that of keys: make one on a "
                "field of metadata"
            )
        if not self._dialect.fields.can(field.path):
            raise NotSupportedError(
                f"{self._dialect.kind} cannot address the field {field}: use names without control "
                "characters, quotes and backslashes"
            )

    def _name(self, field: Field) -> str:
        whole = json.dumps([self._namespace, *field.path]).encode()
        return "field_" + hashlib.blake2b(whole, digest_size=16).hexdigest()

    def _ddl(self, field: Field, name: str) -> str:
        columns = [*self._dialect.fields.index_columns(field.path), entries.c.key]
        on = ", ".join(f"({self._dialect.spell(column)})" for column in columns)
        return (
            f"CREATE INDEX {self._dialect.concurrently} IF NOT EXISTS {name} ON entries "
            f"({on}) WHERE {self._dialect.spell(self.here)}"
        )


_RECORDS = sa.select(meta.c.name, meta.c.value).where(
    meta.c.namespace == sa.bindparam("space"), meta.c.name.startswith(_RECORD, autoescape=True)
)
