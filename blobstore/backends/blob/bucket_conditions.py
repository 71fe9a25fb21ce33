"""Writing an object on a condition, when replies may be lost.

A reply that is lost makes a write that landed look refused once it is tried again. So each such
write carries an id, by which it is known again; and what cannot be known is said to be unknown.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from blobstore.backends.blob.bucket_client import WRITER, BucketClient
from blobstore.backends.blob.bucket_errors import ConditionRefusedError
from blobstore.errors import KeyNotFoundError, StorageError, UnavailableError
from blobstore.keys import random_id
from blobstore.streams import Buffer


class ConditionalPut:
    """One write on a condition.

    Parameters
    ----------
    client : BucketClient
    key, name : str
    mode : "create" or dict
        obstore's: there is no object, or the one there has the `e_tag`.
    """

    def __init__(
        self, client: BucketClient, key: str, name: str, mode: str | Mapping[str, Any]
    ) -> None:
        self._client = client
        self._key = key
        self._name = name
        self._mode = mode
        self._writer = random_id()

    def run(self, data: Buffer) -> str | None:
        """Write; the etag of what is there now, or None if the condition does not hold.

        Raises
        ------
        UnavailableError
            The server cannot be reached, or was lost; the outcome says what is known.
        """
        pauses = self._client.target.pauses(memoryview(data).nbytes)
        uncertain = False
        while True:
            try:
                return self._put(data)
            except (ConditionRefusedError, KeyNotFoundError) as exc:
                return self._refused(exc) if uncertain else None
            except UnavailableError as exc:
                if exc.outcome == "unknown":
                    uncertain = True
                    if (etag := self._landed()) is not None:
                        return etag
                if (pause := next(pauses, None)) is None:
                    raise (self._unknown(exc) if uncertain else exc) from exc.__cause__
            time.sleep(pause)

    def _put(self, data: Buffer) -> str:
        attributes = {WRITER: self._writer}
        return self._client.put(self._key, self._name, data, self._mode, attributes) or ""

    def _refused(self, exc: StorageError | KeyNotFoundError) -> str | None:
        """What a refusal means after a try whose reply was lost."""
        etag = self._landed()
        if etag is None and self._mode != "create":
            # It may have landed and been replaced since: who then counts once more counts twice.
            raise self._unknown(exc) from exc
        return etag

    def _landed(self) -> str | None:
        """The etag of the object, if it is what this call wrote."""
        try:
            version, attributes = self._client.head(self._key, self._name)
        except (KeyNotFoundError, StorageError):
            return None
        return (version.etag or "") if attributes.get(WRITER) == self._writer else None

    def _unknown(self, exc: StorageError | KeyNotFoundError) -> UnavailableError:
        return UnavailableError(
            f"{exc.message}. The reply to an earlier try was lost, so whether {self._key!r} was "
            "written is not known: read it, and decide",
            location=self._key,
            outcome="unknown",
        )
