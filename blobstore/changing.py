"""Deleting and changing whatever matches, in batches that hold even while others write.

Each batch is looked up first and committed second. Every operation says which very entry it was
meant for, so an entry that changed in between fails the commit; the batch is then looked at anew,
and only what still matches is tried again. So nothing is changed that does not match at that moment.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from blobstore.commit import Committer
from blobstore.entry import Entry, now_us
from blobstore.errors import ConflictError
from blobstore.protocols import Delete, MetadataBackend, Operation, Patch, Sign
from blobstore.query import Query

BATCH = 500
_ATTEMPTS = 30

Change = Callable[[Entry], Operation]


def delete_matching(index: MetadataBackend, committer: Committer, query: Query) -> int:
    """Remove all entries that match; returns how many.

    What matches only because of a change made meanwhile may or may not be removed.
    """
    return _change(index, committer, query, lambda entry: Delete(entry.key, entry))


def update_matching(
    index: MetadataBackend,
    committer: Committer,
    query: Query,
    metadata_text: str,
    *,
    replace: bool,
    sign: Sign,
) -> int:
    """Change the metadata of all entries that match; returns how many.

    `sign` gives the signature of what an entry was turned into.
    """
    return _change(
        index,
        committer,
        query,
        lambda entry: Patch(entry.key, metadata_text, now_us(), replace, entry, sign),
    )


def _change(index: MetadataBackend, committer: Committer, query: Query, change: Change) -> int:
    return sum(
        _change_batch(index, committer, query, batch, change)
        for batch in _batches(index.scan(query))
    )


def _change_batch(
    index: MetadataBackend,
    committer: Committer,
    query: Query,
    batch: Sequence[Entry],
    change: Change,
) -> int:
    """Commit one batch; one that others changed meanwhile is looked at anew, and halved.

    Halves that wait in line, so that an entry which somebody keeps changing holds up itself, and
    none of the others.
    """
    done, waiting, holds = 0, deque([(batch, 1)]), query.matcher()
    while waiting:
        entries, attempt = waiting.popleft()
        try:
            committer.apply([change(entry) for entry in entries])
        except ConflictError:
            if attempt == _ATTEMPTS and len(entries) == 1:
                raise
            now = index.get_many(entry.key for entry in entries)
            still = [entry for entry in now.values() if holds(entry)]
            middle = (len(still) + 1) // 2
            halves = (still[:middle], still[middle:])
            waiting.extend((half, min(attempt + 1, _ATTEMPTS)) for half in halves if half)
        else:
            done += len(entries)
    return done


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    rest = iter(entries)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch
