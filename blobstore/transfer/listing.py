"""The keys that a transfer goes through, of which few are held in memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO

from blobstore.errors import from_os_error

_BATCH = 100
"""Keys that one thread looks up and deletes at a time."""

_IN_MEMORY = 8 << 20


def batches(keys: Iterator[str]) -> Iterator[list[str]]:
    """Give the keys, some at a time."""
    while batch := list(itertools.islice(keys, _BATCH)):
        yield batch


@contextlib.contextmanager
def listed(keys: Iterable[str], stopping: Callable[[], bool]) -> Iterator[Iterator[str]]:
    """Give the keys as they are now, whatever is added while they are gone through.

    A store that is copied into a part of itself would else never come to an end. They are kept in a
    temporary file, which is one in memory as long as it is small.
    """
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        for key in keys:
            if stopping():
                break
            _append(spool, key)
        spool.seek(0)
        yield map(json.loads, spool)


def _append(spool: IO[bytes], key: str) -> None:
    try:
        spool.write(json.dumps(key).encode() + b"\n")  # one line, whatever characters a key has
    except OSError as exc:
        raise from_os_error(exc, "noting the keys to be copied in a temporary file") from exc
