"""What a store is asked: the part of BlobStore's face that is answered by the index alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import (
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import TYPE_CHECKING, Any, Literal, overload

from blobstore import aggregation, finding, frames
from blobstore.aggregation import Group
from blobstore.arguments import (
    FieldName,
    OrderBy,
    columns_of,
    field_of,
    fields_of,
    query_of,
)
from blobstore.entry import Entry
from blobstore.errors import InvalidInputError
from blobstore.protocols import Explanation, FieldIndex, MetadataBackend
from blobstore.query import Query, Where

if TYPE_CHECKING:
    import pandas as pd

Keys = list[str]
Values = list[Any]
Groups = list[Group]
Indexes = list[FieldIndex]
"""What some methods give; named here since inside the class `list` is a method."""


class Asking(MutableMapping[str, Any]):
    """The questions that a BlobStore answers; its other methods are in `store`."""

    _index: MetadataBackend

    @abstractmethod
    def _usable(self) -> None:
        """Refuse to go on if the store was closed."""

    @abstractmethod
    def _writable(self) -> None:
        """Refuse to go on if the store was closed, or is readonly."""

    def list(
        self, prefix: str | None = None, metadata_filter: Mapping[str, Any] | None = None
    ) -> Keys:
        """Keys in order, of all entries or of those that match.

        Parameters
        ----------
        prefix : str, optional
            Literal and case-sensitive.
        metadata_filter : mapping, optional
            Metadata that must be equal, all of it. Names and values are taken literally; numbers
            compare by value, and a boolean is no number.

        Returns
        -------
        list of str

        Examples
        --------
        >>> import tempfile
        >>> from blobstore import BlobStore
        >>> store = BlobStore(tempfile.mkdtemp())
        >>> _ = store.put_many([("m1", 1, {"deployed": True}), ("m2", 2, {"deployed": False})])
        >>> store.list(metadata_filter={"deployed": True})
        ['m1']
        """
        self._usable()
        return [*self._index.keys(query_of(prefix=prefix, metadata_filter=metadata_filter))]

    def count(
        self,
        where: Where = None,
        *,
        prefix: str | None = None,
        metadata_filter: Mapping[str, Any] | None = None,
    ) -> int:
        """How many entries match; `where` as in `query`, `metadata_filter` as in `list`."""
        self._usable()
        return self._index.count(query_of(where, prefix=prefix, metadata_filter=metadata_filter))

    @overload
    def keys(self) -> KeysView[str]: ...
    @overload
    def keys(
        self,
        where: Where = None,
        *,
        prefix: str | None = None,
        order_by: OrderBy | None = None,
        limit: int | None = None,
        after: str | Entry | None = None,
    ) -> Iterator[str]: ...
    def keys(  # a mapping's own without arguments
        self,
        where: Where = None,
        *,
        prefix: str | None = None,
        order_by: OrderBy | None = None,
        limit: int | None = None,
        after: str | Entry | None = None,
    ) -> KeysView[str] | Iterator[str]:
        """The keys of `query`, streamed; without arguments the view that every mapping has."""
        given = (where, prefix, order_by, limit, after)
        if all(argument is None for argument in given):
            return super().keys()
        self._usable()
        return self._index.keys(
            query_of(where, prefix=prefix, order_by=order_by, limit=limit, after=after)
        )

    def query(
        self,
        where: Where = None,
        *,
        prefix: str | None = None,
        order_by: OrderBy | None = None,
        limit: int | None = None,
        after: str | Entry | None = None,
    ) -> Iterator[Entry]:
        """Entries that match, streamed: no blob is touched, and however many, memory stays level.

        Parameters
        ----------
        where : Expression, mapping or str, optional
            What must hold: ``F("params.lr") < 0.1``, ``{"params.lr": {"$lt": 0.1}}`` or
            ``"params.lr < 0.1"``. Types are strict, and a field that is missing compares with
            nothing. By default, everything.
        prefix : str, optional
            Of the key; literal and case-sensitive.
        order_by : str, Order or sequence of those, optional
            ``"loss"``, ``"-loss"`` or ``F("loss").desc()``; ``"@created_at"`` and other facts of the
            entry. Numbers before text before booleans before the rest, either way; keys break ties.
            By default, by key.
        limit : int, optional
            At most so many.
        after : str or Entry, optional
            Go on behind this entry; a key will do in the order of keys.

        Returns
        -------
        iterator of Entry
            With `key`, `metadata`, `size`, `created_at` ... Reads page by page; goes on while others
            write.

        Raises
        ------
        InvalidQueryError, InvalidInputError
            At the call, not at the first step.

        Examples
        --------
        >>> import tempfile
        >>> from blobstore import BlobStore, F
        >>> store = BlobStore(tempfile.mkdtemp())
        >>> _ = store.put_many((f"run-{n}", n, {"loss": 1 / (1 + n)}) for n in range(5))
        >>> [entry.key for entry in store.query(F("loss") < 0.5, order_by="loss", limit=2)]
        ['run-4', 'run-3']
        """
        self._usable()
        return self._index.scan(
            query_of(where, prefix=prefix, order_by=order_by, limit=limit, after=after)
        )

    def best(
        self,
        field: FieldName,
        mode: Literal["min", "max"] = "min",
        where: Where = None,
        prefix: str | None = None,
    ) -> Entry | None:
        """The entry with the lowest or highest value in a field; None if no entry has one.

        Parameters
        ----------
        field : str or F
        mode : {"min", "max"}
        where, prefix
            As in `query`.

        Returns
        -------
        Entry or None
            The first key, if several are best. Numbers win over text, whatever the mode.

        Examples
        --------
        >>> import tempfile
        >>> from blobstore import BlobStore
        >>> store = BlobStore(tempfile.mkdtemp())
        >>> _ = store.put_many([("a", 1, {"f1": 0.8}), ("b", 2, {"f1": 0.9}), ("c", 3, {})])
        >>> store.best("f1", mode="max").key
        'b'
        """
        self._usable()
        if mode not in ("min", "max"):
            raise InvalidInputError(f"mode must be 'min' or 'max', not {mode!r:.80}")
        query = query_of(where, prefix=prefix)
        return finding.best(self._index, query, field_of(field), highest=mode == "max")

    def distinct(
        self, field: FieldName, *, where: Where = None, prefix: str | None = None
    ) -> Values:
        """The values that a field has, each once and in order; null is last.

        Parameters
        ----------
        field : str or F
        where, prefix
            As in `query`.

        Returns
        -------
        list
            Numbers that are equal (1 and 1.0) count as one value; an entry without the field has
            none.

        Examples
        --------
        >>> import tempfile
        >>> from blobstore import BlobStore
        >>> store = BlobStore(tempfile.mkdtemp())
        >>> _ = store.put_many((f"{n}", n, {"stage": s}) for n, s in enumerate(["dev", "prod"] * 2))
        >>> store.distinct("stage")
        ['dev', 'prod']
        """
        self._usable()
        of, query = field_of(field), query_of(where, prefix=prefix)
        return aggregation.distinct(self._index.tally(query, (of,)), of)

    def aggregate(
        self,
        field: FieldName | None = None,
        *,
        by: FieldName | Iterable[FieldName] | None = None,
        where: Where = None,
        prefix: str | None = None,
    ) -> Groups:
        """Count entries, and sum up the numbers of a field, for each group.

        Parameters
        ----------
        field : str or F, optional
            Whose numbers give min, max, mean and sum.
        by : str, F or several, optional
            Entries with equal values here are a group; by default all are one.
        where, prefix
            As in `query`.

        Returns
        -------
        list of Group
            With `by`, `count`, `numbers`, `min`, `max`, `mean` and `sum`, in the order of their
            values. Sums are exact and rounded once, at the end.

        Examples
        --------
        >>> import tempfile
        >>> from blobstore import BlobStore
        >>> store = BlobStore(tempfile.mkdtemp())
        >>> runs = [("cnn", 0.25), ("cnn", 0.75), ("mlp", 0.4)]
        >>> _ = store.put_many((f"{n}", n, {"model": m, "loss": l}) for n, (m, l) in enumerate(runs))
        >>> for group in store.aggregate("loss", by="model"):
        ...     print(group.by, group.count, group.min, group.mean)
        {'model': 'cnn'} 2 0.25 0.5
        {'model': 'mlp'} 1 0.4 0.4
        """
        self._usable()
        groups = fields_of(by)
        of = None if field is None else field_of(field)
        asked = groups if of is None else (*groups, of)
        query = query_of(where, prefix=prefix)
        return aggregation.group(self._index.tally(query, asked), groups, of)

    def to_frame(
        self,
        where: Where = None,
        *,
        prefix: str | None = None,
        order_by: OrderBy | None = None,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Entries as a pandas DataFrame: one row each, metadata flattened to columns.

        Parameters
        ----------
        where, prefix, order_by, limit
            As in `query`.
        columns : sequence of str, optional
            Which ones, and in what order.

        Returns
        -------
        DataFrame
            ``key``, ``data_type``, ``size``, ``version``, ``created_at``, ``updated_at``, then
            metadata under the names that queries use (``params.lr``); a name that is one of the
            former has ``metadata.`` before it. Missing values and null are NA; lists stay lists.

        Examples
        --------
        >>> import tempfile
        >>> from blobstore import BlobStore
        >>> store = BlobStore(tempfile.mkdtemp())
        >>> _ = store.put(1, key="a", metadata={"params": {"lr": 0.1}, "size": "small"})
        >>> store.to_frame(columns=["key", "params.lr", "metadata.size"]).to_dict("records")
        [{'key': 'a', 'params.lr': 0.1, 'metadata.size': 'small'}]
        """
        self._usable()
        chosen = columns_of(columns)
        query = query_of(where, prefix=prefix, order_by=order_by, limit=limit)
        return frames.to_frame(self._index.scan(query), chosen)

    def __iter__(self) -> Iterator[str]:
        self._usable()
        return self._index.keys(Query())

    def __len__(self) -> int:
        return self.count()

    def create_index(self, field: FieldName) -> FieldIndex:
        """Make conditions on a field of metadata, and orders by it, quick. May take a while.

        Only for this store, whatever others share its database. Kept up to date from then on.
        Calling it again changes nothing.

        Raises
        ------
        NotSupportedError
            The store has a JSON index, which is in memory and looks at every entry.

        Examples
        --------
        >>> import tempfile
        >>> from blobstore import BlobStore
        >>> store = BlobStore(tempfile.mkdtemp(), backend="sqlite")
        >>> _ = store.create_index("accuracy")
        >>> [str(index.field) for index in store.indexes()], store.drop_index("accuracy")
        (['accuracy'], True)
        """
        self._writable()
        return self._index.create_index(field_of(field))

    def drop_index(self, field: FieldName) -> bool:
        """Remove the index of a field; False if there is none."""
        self._writable()
        return self._index.drop_index(field_of(field))

    def indexes(self) -> Indexes:
        """The indexes that `create_index` made, with `field` and `name`."""
        self._usable()
        return self._index.indexes()

    def explain(
        self,
        where: Where = None,
        *,
        prefix: str | None = None,
        order_by: OrderBy | None = None,
        limit: int | None = None,
    ) -> Explanation:
        """Tell how `query` would find its answer; nothing is read.

        Returns
        -------
        Explanation
            With the `statement`, the database's `plan`, the `indexes` that serve it, whether it
            `scans` all entries, and as `suggestion` the field whose index would help.
        """
        self._usable()
        return self._index.explain(query_of(where, prefix=prefix, order_by=order_by, limit=limit))
