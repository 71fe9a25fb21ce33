"""The one entry that is best, by what its metadata says."""

from __future__ import annotations

from dataclasses import replace

from blobstore.entry import Entry
from blobstore.protocols import MetadataBackend
from blobstore.query import Field, Order, Query, lookup, order_place

_UNORDERED = 3
"""The rank of what has no place of its own: null, arrays, objects, nothing at all."""


def best(index: MetadataBackend, query: Query, field: Field, *, highest: bool) -> Entry | None:
    """The entry with the lowest or highest value; of several the first key. None if none has one.

    Numbers go before text, and text before booleans, whichever way is asked: a run whose loss was
    noted as "diverged" is never the best one beside a run that has a number.
    """
    asked = replace(query, order=(Order(field, highest),), limit=1)
    found = next(iter(index.scan(asked)), None)
    if found is None or order_place(lookup(field, found))[0] == _UNORDERED:
        return None
    return found
