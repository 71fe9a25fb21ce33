"""Tables of the SQL index, the numbered migrations that make them, and the statements on them.

Nothing here knows which database it is: what differs between databases comes in as a `Dialect`.
Statements that do not depend on the call are compiled to text once and run on the driver's own
connection, because building and compiling one costs several times what running it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import sqlalchemy as sa

from blobstore.backends.metadata.connections import Dialect
from blobstore.backends.metadata.respelling import respelled
from blobstore.entry import Blob, Entry, EntryDraft, Part
from blobstore.errors import IncompatibleStoreError, IntegrityError
from blobstore.keys import random_id

# --- tables --------------------------------------------------------------------------------------

tables = sa.MetaData()

# SQLite gives out ids that were never used before only to a column declared INTEGER.
_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# Order by code point: what SQLite does anyway, and what PostgreSQL does only when told.
_Key = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

meta = sa.Table(
    "meta",
    tables,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

entries = sa.Table(
    "entries",
    tables,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("key", _Key, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("commit_id", sa.Text, nullable=False),
    sa.Column("handler", sa.Text, nullable=False),
    sa.Column("data_type", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("updated_us", sa.BigInteger, nullable=False),
    sa.Column("signature", sa.Text),
    # How many rows it has in `parts`: an entry without any can be replaced by one statement.
    sa.Column("located", sa.Integer, nullable=False),
    sa.Column("info", sa.Text, nullable=False),
    sa.Column("metadata", sa.Text, nullable=False),
    # The one part that is kept here, if there is one; its bytes come last in the row, so that
    # looking at the columns before them does not read them.
    sa.Column("part_name", sa.Text),
    sa.Column("part_size", sa.BigInteger),
    sa.Column("part_checksum", sa.Text),
    sa.Column("part_codec", sa.Text),
    sa.Column("part_handler", sa.Text),
    sa.Column("part_format_version", sa.Integer),
    sa.Column("part_digest", sa.Text),
    sa.Column("part_created_us", sa.BigInteger),
    sa.Column("payload", sa.LargeBinary),
    # The metadata in the spelling that databases read exactly, where its own is not (`respelled`).
    sa.Column("searchable", sa.Text),
    sa.UniqueConstraint("namespace", "key"),
    sqlite_autoincrement=True,
)

system_columns: dict[str, sa.ColumnElement[Any]] = {
    "id": entries.c.id,
    "version": entries.c.version,
    "size": entries.c.size,
    "data_type": entries.c.data_type,
    "handler": entries.c.handler,
    "created_at": entries.c.created_us,
    "updated_at": entries.c.updated_us,
}
"""What an entry has of its own but the key, under the names that queries use."""

parts = sa.Table(
    "parts",
    tables,
    sa.Column("entry_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("location", _Key, nullable=False),
    sa.Index("parts_by_location", "namespace", "location"),
    sqlite_with_rowid=False,
)

blobs = sa.Table(
    "blobs",
    tables,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("location", _Key, primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("checksum", sa.Text, nullable=False),
    sa.Column("codec", sa.Text, nullable=False),
    sa.Column("handler", sa.Text, nullable=False),
    sa.Column("format_version", sa.Integer, nullable=False),
    sa.Column("digest", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("condemned_us", sa.BigInteger),
    # The commit that dropped it: a commit that is repeated answers with the same locations.
    sa.Column("condemned_by", sa.Text),
    sqlite_with_rowid=False,
)

# Spelled out rather than bound: an index with a condition serves only statements that show it.
LIVE = blobs.c.state == sa.literal_column("'live'")
CONDEMNED = blobs.c.state == sa.literal_column("'condemned'")

_LIVE_DIGEST = sa.and_(LIVE, blobs.c.digest.is_not(None))
sa.Index(
    "blobs_live_digest",
    blobs.c.digest,
    blobs.c.namespace,
    unique=True,
    sqlite_where=_LIVE_DIGEST,
    postgresql_where=_LIVE_DIGEST,
)
sa.Index(
    "blobs_condemned",
    blobs.c.location,
    sqlite_where=CONDEMNED,
    postgresql_where=CONDEMNED,
)

# PostgreSQL keeps the metadata once more, in a form that it can search.
_JSON_COPY = (
    "ALTER TABLE entries ADD COLUMN metadata_json JSONB GENERATED ALWAYS AS (CAST(coalesce(searchable, metadata) AS JSONB)) STORED",
    "CREATE INDEX entries_by_metadata ON entries USING gin (metadata_json jsonb_path_ops)",
)
for _statement in _JSON_COPY:
    _ddl = sa.DDL(_statement)  # type: ignore[no-untyped-call]
    sa.event.listen(entries, "after_create", _ddl.execute_if(dialect="postgresql"))

# --- migrations ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step from an older schema to a newer one.

    Steps only add, so that a process that opened the store before the step goes on working. A
    new store takes all steps too: a step must find nothing to do where the tables, which step 1
    makes as they are declared now, already have what it adds.

    Attributes
    ----------
    number : int
        The schema version that the step leads to.
    apply : callable
        Given a connection inside a write transaction.
    """

    number: int
    apply: Callable[[sa.Connection], None]


def add_column(connection: sa.Connection, table: str, column: sa.Column[Any]) -> bool:
    """Add a nullable column, unless it is there; whether it was not."""
    if any(found["name"] == column.name for found in sa.inspect(connection).get_columns(table)):
        return False
    quote = connection.dialect.identifier_preparer.quote
    kind = column.type.compile(connection.dialect)
    connection.exec_driver_sql(f"ALTER TABLE {quote(table)} ADD COLUMN {quote(column.name)} {kind}")
    return True


def _add_searchable(connection: sa.Connection) -> None:
    """Respell the metadata of entries that need it."""
    if not add_column(connection, "entries", sa.Column("searchable", sa.Text)):
        return
    last = 0
    read = sa.select(entries.c.id, entries.c.metadata).order_by(entries.c.id).limit(_MIGRATED)
    change = (
        entries.update()
        .where(entries.c.id == sa.bindparam("of"))
        .values(searchable=sa.bindparam("text"))
    )
    while rows := connection.execute(read.where(entries.c.id > last)).all():
        last = rows[-1][0]
        found = [{"of": id, "text": text} for id, old in rows if (text := respelled(old))]
        if found:
            connection.execute(change, found)


_MIGRATED = 5000

MIGRATIONS: list[Migration] = [Migration(1, tables.create_all), Migration(2, _add_searchable)]
"""In order of their numbers. Add a step for each change of the tables; never change an old one."""

_VERSION = ("", "schema_version")
_select_meta = sa.select(meta.c.value).where(
    meta.c.namespace == sa.bindparam("space"), meta.c.name == sa.bindparam("which")
)


def read_meta(connection: sa.Connection, namespace: str, name: str) -> str | None:
    """Read one of the facts that the index keeps about itself."""
    value = connection.execute(_select_meta, {"space": namespace, "which": name}).scalar()
    return cast("str | None", value)


def schema_version(connection: sa.Connection, place: str) -> int:
    """Read the schema version of an existing store, and refuse one from the future.

    Raises
    ------
    IncompatibleStoreError
        A newer version of blobstore made or migrated it.
    IntegrityError
        There is no version, or no number.
    """
    text = read_meta(connection, *_VERSION)
    if text is None or not text.isdecimal():
        raise IntegrityError(
            f"the index {place} has the schema version {text!r}, which no version of blobstore "
            "writes: it is damaged; restore it from a backup"
        )
    newest = MIGRATIONS[-1].number
    if int(text) > newest:
        raise IncompatibleStoreError(
            f"the index {place} has schema version {text}, this blobstore knows up to {newest}: "
            "upgrade blobstore to open it"
        )
    return int(text)


def migrate(connection: sa.Connection, version: int) -> None:
    """Take the steps above `version`; to be called inside a write transaction."""
    for step in MIGRATIONS:
        if step.number > version:
            step.apply(connection)
    connection.execute(meta.delete().where(meta.c.namespace == "", meta.c.name == _VERSION[1]))
    number = str(MIGRATIONS[-1].number)
    connection.execute(meta.insert().values(namespace="", name=_VERSION[1], value=number))


def ensure_store_id(connection: sa.Connection, namespace: str) -> None:
    """Make up the store id of a namespace if it has none; inside a write transaction."""
    if read_meta(connection, namespace, "store_id") is None:
        row = {"namespace": namespace, "name": "store_id", "value": random_id()}
        connection.execute(meta.insert().values(row))


def namespace_of(connection: sa.Connection, store_id: str) -> str | None:
    """Find the namespace that has this store id."""
    found = sa.select(meta.c.namespace).where(meta.c.name == "store_id", meta.c.value == store_id)
    return cast("str | None", connection.execute(found).scalar())


def drop_namespace(connection: sa.Connection, namespace: str) -> None:
    """Forget a namespace that is empty; inside a write transaction."""
    used = sa.or_(
        sa.exists().where(entries.c.namespace == namespace),
        sa.exists().where(blobs.c.namespace == namespace),
    )
    connection.execute(meta.delete().where(meta.c.namespace == namespace, ~used))


# --- rows and values -----------------------------------------------------------------------------

_ENTRY_HEAD = (
    "id", "key", "version", "commit_id", "handler", "data_type", "info", "metadata", "size",
    "created_us", "updated_us", "signature", "payload", "part_name", "part_size", "part_checksum",
    "part_codec", "part_handler", "part_format_version", "part_digest", "part_created_us",
)  # fmt: skip
_BLOB = (
    "location", "size", "checksum", "codec", "handler", "format_version", "digest", "state",
    "created_us", "condemned_us",
)  # fmt: skip
_HEAD_WIDTH = len(_ENTRY_HEAD)
_PUT = (
    "namespace", "key", "commit_id", "handler", "data_type", "size", "created_us", "updated_us",
    "signature", "located", "info", "metadata", "part_name", "part_size", "part_checksum",
    "part_codec", "part_handler", "part_format_version", "part_digest", "part_created_us",
    "payload", "searchable",
)  # fmt: skip
"""Parameters of the statements that write an entry, in order."""

COMMIT_ID = _PUT.index("commit_id")
"""Where the commit id is in `put_values`."""

Row = Sequence[Any]


PAYLOAD = _ENTRY_HEAD.index("payload")
"""Where the payload is in a row of `Statements.head`."""


def entry_of(rows: Sequence[Row]) -> Entry:
    """Build an entry from its rows: one for each of its located parts, or a single one."""
    first = rows[0]
    (
        id, key, version, commit_id, handler, data_type, info, metadata, size,
        created_us, updated_us, signature, payload, *_,
    ) = first  # fmt: skip
    found: tuple[Part, ...]
    if payload is not None:
        name, part_size, checksum, codec, maker, form, digest, made_us = first[13:21]
        blob = Blob("", part_size, checksum, codec, maker, form, digest, "live", made_us)
        found = (Part(name, blob, payload),)
    else:
        found = tuple(_located(key, row) for row in rows if row[_HEAD_WIDTH] is not None)
    return Entry(
        id, key, version, commit_id, handler, data_type, info, metadata, found, size,
        created_us, updated_us, signature,
    )  # fmt: skip


def _located(key: str, row: Row) -> Part:
    name, pointed_at, *facts = row[_HEAD_WIDTH:]
    if facts[0] is None:
        raise IntegrityError(
            f"the index has lost the blob {pointed_at!r} of {key!r}: restore the index from a "
            "backup, or delete the key",
            key=key,
            location=pointed_at,
        )
    return Part(name, Blob(*facts))


def blob_of(row: Row) -> Blob:
    """Build a blob from its row."""
    return Blob(*row)


def put_values(namespace: str, draft: EntryDraft, commit_id: str) -> tuple[Any, ...]:
    """Arrange the parameters of the statements that write an entry, in the order of `_PUT`."""
    found = draft.parts
    if len(found) == 1 and found[0].payload is not None:
        part = found[0]
        blob = part.blob
        return (
            namespace, draft.key, commit_id, draft.handler, draft.data_type, draft.size,
            draft.now_us, draft.now_us, draft.signature, 0, draft.info_text, draft.metadata_text,
            part.name, blob.size, blob.checksum, blob.codec, blob.handler, blob.format_version,
            blob.digest, blob.created_us, part.payload, respelled(draft.metadata_text),
        )  # fmt: skip
    return (
        namespace, draft.key, commit_id, draft.handler, draft.data_type, draft.size,
        draft.now_us, draft.now_us, draft.signature, len(found), draft.info_text,
        draft.metadata_text, *(None,) * 9, respelled(draft.metadata_text),
    )  # fmt: skip


def blob_values(namespace: str, blob: Blob, condemned_by: str | None = None) -> tuple[Any, ...]:
    """Arrange the parameters of the statements that write a blob."""
    return (
        namespace, blob.location, blob.size, blob.checksum, blob.codec, blob.handler,
        blob.format_version, blob.digest, blob.state, blob.created_us, blob.condemned_us,
        condemned_by,
    )  # fmt: skip


def stored(draft: EntryDraft, commit_id: str, row: Row) -> Entry:
    """Complete a draft with what the statement that wrote it answered: id, version, creation."""
    return Entry(
        row[0], draft.key, row[1], commit_id, draft.handler, draft.data_type, draft.info_text,
        draft.metadata_text, draft.parts, draft.size, row[2], draft.now_us, draft.signature,
    )  # fmt: skip


# --- statements ----------------------------------------------------------------------------------


def _bind(name: str) -> sa.BindParameter[Any]:
    # Prefixed, because SQLAlchemy keeps the bare names of columns to itself.
    return sa.bindparam("b_" + name)


def entry_columns(source: sa.FromClause = entries) -> list[sa.ColumnElement[Any]]:
    """Everything that `entry_of` wants, of `source` joined with parts and blobs."""
    head = [source.c[name] for name in _ENTRY_HEAD]
    tail = [parts.c.name, parts.c.location, *blob_columns()]
    # Names repeat between the tables; rows are read by position, so labels only need to differ.
    return [column.label(f"c{i}") for i, column in enumerate([*head, *tail])]


def blob_columns() -> list[sa.ColumnElement[Any]]:
    """Everything that `blob_of` wants."""
    return [blobs.c[name] for name in _BLOB]


def with_parts(source: sa.FromClause = entries) -> sa.FromClause:
    """Join entries with their parts and blobs, so that one statement reads them at one time."""
    same_blob = sa.and_(
        blobs.c.namespace == parts.c.namespace, blobs.c.location == parts.c.location
    )
    joined = source.outerjoin(parts, parts.c.entry_id == source.c.id)
    return joined.outerjoin(blobs, same_blob)


UNREFERENCED = ~sa.exists().where(
    parts.c.namespace == blobs.c.namespace, parts.c.location == blobs.c.location
)


def _text(dialect: Dialect, statement: sa.ClauseElement, order: tuple[str, ...]) -> str:
    return dialect.compile(statement, tuple("b_" + name for name in order))


class Statements:
    """The fixed statements of one database as text, each with its parameters by position.

    Attributes
    ----------
    put_inline : str
        An entry with no located parts, over a former one with none. Answers with nothing where
        that does not hold, or this commit put it there.
    add_entry : str
        An entry, if the key is free; answers with nothing where it is not.
    hold_entries, hold_blobs : str
        Lock rows until the transaction ends. Whatever a transaction decides by is read by a later
        statement, or by the one that locks if it reads nothing else.
    head : str
        An entry without its located parts: all there is of one with an inline payload.
    put_entry : str
        An entry, over whatever is there. These three take `put_values`, and answer with id,
        version and creation time.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._entry_statements(dialect)
        self._blob_statements(dialect)

    def _entry_statements(self, dialect: Dialect) -> None:
        text = partial(_text, dialect)
        here = entries.c.namespace == _bind("namespace")
        insert = dialect.insert(entries).values(
            {"version": sa.literal_column("1"), **{name: _bind(name) for name in _PUT}}
        )
        back = (entries.c.id, entries.c.version, entries.c.created_us)
        kept = {"namespace", "key", "created_us"}
        changes: dict[str, sa.ColumnElement[Any]] = {
            name: insert.excluded[name] for name in _PUT if name not in kept
        }
        changes["version"] = entries.c.version + sa.literal_column("1")
        unique = ["namespace", "key"]
        upsert = insert.on_conflict_do_update(index_elements=unique, set_=changes)
        inline = insert.on_conflict_do_update(
            index_elements=unique,
            set_=changes,
            where=sa.and_(
                entries.c.located == sa.literal_column("0"),
                entries.c.commit_id != insert.excluded.commit_id,
            ),
        )
        free = insert.on_conflict_do_nothing(index_elements=unique)
        self.put_inline = text(inline.returning(*back), _PUT)
        self.add_entry = text(free.returning(*back), _PUT)
        self.put_entry = text(upsert.returning(*back), _PUT)

        read = sa.select(*entry_columns()).select_from(with_parts())
        one = read.where(here, entries.c.key == _bind("key")).order_by(parts.c.position)
        self.get = text(one, ("namespace", "key"))
        head = sa.select(*(entries.c[name] for name in _ENTRY_HEAD))
        self.head = text(head.where(here, entries.c.key == _bind("key")), ("namespace", "key"))
        many = read.where(here, dialect.among(entries.c.key, "names"))
        many = many.order_by(entries.c.key, parts.c.position)
        self.get_many = text(many, ("namespace", "names"))

        # Never joined: where it waits for a lock, the other tables would be of before the wait.
        hold = sa.select(entries.c.id).where(here, dialect.among(entries.c.key, "names"))
        hold = hold.order_by(entries.c.key).with_for_update()
        self.hold_entries = text(hold, ("namespace", "names"))

        by_id = entries.c.id == _bind("id")
        names = ("version", "commit_id", "updated_us", "signature", "metadata", "searchable")
        patch = entries.update().values({name: _bind(name) for name in names})
        self.patch = text(patch.where(entries.c.id == _bind("entry_id")), (*names, "entry_id"))
        self.delete_entry = text(entries.delete().where(by_id), ("id",))
        self.delete_parts = text(parts.delete().where(parts.c.entry_id == _bind("id")), ("id",))
        part = ("entry_id", "position", "namespace", "name", "location")
        add = parts.insert().values({name: _bind(name) for name in part})
        self.add_part = text(add, part)

    def _blob_statements(self, dialect: Dialect) -> None:
        text = partial(_text, dialect)
        here = blobs.c.namespace == _bind("namespace")
        these = dialect.among(blobs.c.location, "names")
        read = sa.select(*blob_columns()).where(here).order_by(blobs.c.location)
        page = read.where(blobs.c.location > _bind("last")).limit(_bind("count"))
        page = page.offset(sa.literal_column("0"))  # else SQLAlchemy adds one as a parameter
        self.blob_page = text(page, ("namespace", "last", "count"))
        self.blobs_at = text(read.where(these), ("namespace", "names"))
        self.hold_blobs = text(read.where(these).with_for_update(), ("namespace", "names"))
        # Without statistics SQLite thinks that few blobs share a namespace, and would go through
        # them all: so the namespace is shown to it as something that it has no index for.
        unindexed = blobs.c.namespace + sa.literal_column("''") == _bind("namespace")
        gone = sa.select(*blob_columns()).where(CONDEMNED, unindexed).order_by(blobs.c.location)
        self.condemned = text(gone, ("namespace",))
        self.condemned_at = text(read.where(CONDEMNED, these), ("namespace", "names"))
        by_commit = gone.where(blobs.c.condemned_by == _bind("commit_id"))
        self.condemned_by = text(by_commit, ("namespace", "commit_id"))
        by_digest = sa.select(*blob_columns()).where(
            _LIVE_DIGEST,
            dialect.among(blobs.c.digest, "names"),
            unindexed,
        )
        self.blobs_by_digest = text(by_digest, ("names", "namespace"))
        self.unreferenced = text(
            read.where(these, ~CONDEMNED, UNREFERENCED), ("namespace", "names")
        )

        columns = ("namespace", *_BLOB, "condemned_by")
        insert = dialect.insert(blobs).values({name: _bind(name) for name in columns})
        place = ["namespace", "location"]
        changes = {name: insert.excluded[name] for name in columns if name not in place}
        upsert = insert.on_conflict_do_update(index_elements=place, set_=changes)
        self.put_blob = text(upsert, columns)
        self.add_blob = text(insert.on_conflict_do_nothing(), columns)

        condemn = (
            blobs.update()
            .values(state=sa.literal_column("'condemned'"), condemned_us=_bind("now_us"))
            .where(here)
        )
        self.condemn = text(
            condemn.values(condemned_by=_bind("by")).where(blobs.c.location == _bind("name")),
            ("now_us", "by", "namespace", "name"),
        )
        self.condemn_unused = text(
            condemn.where(these, ~CONDEMNED, UNREFERENCED), ("now_us", "namespace", "names")
        )
        forget = blobs.delete().where(here, CONDEMNED, these)
        self.forget = text(forget, ("namespace", "names"))


_statements: dict[str, Statements] = {}


def statements_for(dialect: Dialect) -> Statements:
    """The statements for a kind of database, compiled when the first index of it is opened."""
    if dialect.kind not in _statements:
        _statements[dialect.kind] = Statements(dialect)
    return _statements[dialect.kind]
