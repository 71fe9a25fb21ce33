"""The calls to a bucket, by obstore: where it is, one connection for each process, errors translated.

Only calls that block are used; they may be made by several threads at once.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from blobstore.backends.blob.bucket_errors import Doing, Reply
from blobstore.backends.blob.bucket_runtime import runtime
from blobstore.errors import ConfigError, KeyNotFoundError, UnavailableError
from blobstore.streams import Buffer

WRITER = "blobstorewriter"
"""Name of the user metadata that tells which call wrote an object."""

_SHORTEST_PAUSE = 0.001
_LONGEST_PAUSE = 5.0
_PAGE = 1000
_SHOWN = 200
_IN_TIME = 16 << 20
"""Bytes that one `timeout` is for; who moves more of them at once is given more time, in proportion."""
_COPYING = 4 * _IN_TIME
"""What a copy counts as: a server takes its time for one of 5 GiB, and says nothing meanwhile."""
_KINDS = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}


@dataclass(frozen=True)
class Target:
    """Where a bucket is and how it is spoken to. Its representation shows no secrets.

    Attributes
    ----------
    service : {"s3", "gs", "az"}
    bucket : str
    endpoint : str or None
        Without the bucket.
    region : str or None
    virtual_hosted : bool
        Whether the bucket is part of the host's name.
    credentials : callable or None
        What obstore asks for keys; None leaves it to find some.
    anonymous : bool
    timeout : float
        Of one request that moves up to 16 MiB, in seconds.
    retries : int
    retry_delay : float
        Before the first of them, in seconds.
    client_options, settings : mapping
        For obstore, as they are.
    """

    service: str
    bucket: str
    endpoint: str | None = None
    region: str | None = None
    virtual_hosted: bool = False
    credentials: Callable[[], Mapping[str, Any]] | None = field(default=None, repr=False)
    anonymous: bool = False
    timeout: float = 30.0
    retries: int = 5
    retry_delay: float = 0.1
    client_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def place(self) -> str:
        """The bucket, for messages."""
        return f"the bucket {self.bucket!r}" + (f" at {self.endpoint}" if self.endpoint else "")

    def connect(self, api: Any, *, patient: bool = True, turns: int = 1) -> Any:
        """Make obstore's store; nothing is sent.

        Parameters
        ----------
        api : module
            obstore's functions.
        patient : bool
            Whether it tries again by itself.
        turns : int
            How many times as long as usual a request may take.

        Raises
        ------
        ConfigError
            obstore does not take an option.
        """
        kind = getattr(api._store, _KINDS[self.service])  # noqa: SLF001 - obstore.store is of one process
        try:
            return kind(
                self.bucket,
                **self._service_settings(),
                client_options=self._client_options(turns * self.timeout),
                retry_config=self._retries(self.retries if patient else 0, turns * self.timeout),
            )
        except (api.exceptions.BaseError, TypeError, ValueError) as exc:
            reason = str(exc).partition("\n")[0]
            raise ConfigError(f"{self.place} cannot be used: obstore says {reason!r}") from exc

    def turns(self, load: int) -> int:
        """How many times as long as usual a request may take when so many bytes are on their way."""
        turns = -(-load // _IN_TIME)
        return 1 << (turns - 1).bit_length() if turns > 1 else 1  # few values: few connections

    def pauses(self, load: int = 0) -> Iterator[float]:
        """How long to wait before each further try, where obstore makes none."""
        deadline = time.monotonic() + 2 * self.timeout * self.turns(load)
        pause, longest = self._pauses()
        for _ in range(self.retries):
            if time.monotonic() + pause > deadline:
                return
            yield pause * random.uniform(0.5, 1)  # noqa: S311 - so that many do not come at once
            pause = min(2 * pause, longest)

    def _service_settings(self) -> dict[str, Any]:
        if self.service != "s3":
            return dict(self.settings)
        found: dict[str, Any] = {
            "virtual_hosted_style_request": self.virtual_hosted,
            "skip_signature": self.anonymous,
        }
        if self.endpoint is not None:
            # Of the two, what the environment has for the second would go before the first.
            found["endpoint"] = found["aws_endpoint_url_s3"] = self._endpoint_of_requests()
        if self.region is not None:
            found["region"] = self.region
        if self.credentials is not None:
            found["credential_provider"] = self.credentials
        return {**found, **self.settings}

    def _endpoint_of_requests(self) -> str:
        scheme, _, host = (self.endpoint or "").partition("://")
        if self.virtual_hosted and not host.startswith(f"{self.bucket}."):
            return f"{scheme}://{self.bucket}.{host}"
        return f"{scheme}://{host}"

    def _client_options(self, timeout: float) -> dict[str, Any]:
        return {
            "timeout": timedelta(seconds=timeout),
            "connect_timeout": timedelta(seconds=min(5.0, self.timeout)),
            "allow_http": (self.endpoint or "").startswith("http://"),
            **self.client_options,
        }

    def _pauses(self) -> tuple[float, float]:
        """The first, which obstore cannot have as 0, and the longest."""
        first = max(self.retry_delay, _SHORTEST_PAUSE)
        return first, max(first, _LONGEST_PAUSE)

    def _retries(self, count: int, timeout: float) -> dict[str, Any]:
        first, longest = self._pauses()
        return {
            "max_retries": count,
            "backoff": {
                "init_backoff": timedelta(seconds=first),
                "max_backoff": timedelta(seconds=longest),
                "base": 2,
            },
            "retry_timeout": timedelta(seconds=2 * timeout),
        }


class Version(NamedTuple):
    """One version of an object: what was there at one time."""

    key: str
    name: str
    size: int
    etag: str | None
    modified: datetime | None = None

    def of(self, start: int, stop: int) -> dict[str, Any]:
        """Options of a get of some of its bytes, which no other version satisfies."""
        return {"range": (start, stop), "if_match": self.etag}


class _Connection(NamedTuple):
    pid: int
    api: Any
    store: Any
    errors: tuple[type[BaseException], ...]


_inherited: list[_Connection] = []
"""Connections of the parent of this process; to let go of one might wait for threads it has not."""


class BucketClient:
    """One bucket. Made without a connection: there is one in each process, from its first call.

    Parameters
    ----------
    target : Target
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._connections: dict[tuple[bool, int], _Connection] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.target,)

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str, name: str) -> tuple[Version, Any]:
        """Ask for a whole object; its bytes are still to be read, by `body`."""
        with self._calling("reading", key) as (api, store):
            result = api.get(store, name)
            return _version(key, name, result.meta), result

    def body(self, version: Version, result: Any) -> bytes:
        """Read the bytes of a get."""
        with self._calling("reading", version.key):
            return bytes(result.bytes())

    def get_part(
        self, key: str, name: str, options: Mapping[str, Any], load: int = 0
    ) -> tuple[Version, memoryview]:
        """Read some bytes of an object, while others of the same call may be read.

        Parameters
        ----------
        key, name : str
        options : mapping
            obstore's.
        load : int
            Bytes that are on their way at once.

        Raises
        ------
        ConditionRefusedError
            It is not the version that `options` ask for.
        RangeRefusedError
            It has no bytes there.
        """
        with self._calling("reading", key, load=load) as (api, store):
            result = api.get(store, name, options=options)
            return _version(key, name, result.meta), memoryview(result.bytes())

    def head(self, key: str, name: str) -> tuple[Version, dict[str, str]]:
        """Ask for what is known of an object, and its user metadata and other attributes."""
        try:
            with self._calling("looking at", key) as (api, store):
                result = api.get(store, name, options={"head": True})
                return _version(key, name, result.meta), dict(result.attributes)
        except KeyNotFoundError:
            # Such a reply has no text. A get tells a missing object from a missing bucket.
            self.get(key, name)
            raise

    def pages(self, folder: str, after: str | None) -> Iterator[list[tuple[str, int]]]:
        """List names and sizes below a folder, page by page."""
        with self._calling("listing") as (api, store):
            stream = iter(api.list(store, folder or None, offset=after, chunk_size=_PAGE))
        while True:
            with self._calling("listing"):
                page = next(stream, None)
            if page is None:
                return
            yield [(item["path"], item["size"]) for item in page]

    # --- writing ---------------------------------------------------------------------------------

    def put(
        self,
        key: str,
        name: str,
        data: Buffer,
        mode: str | Mapping[str, Any] = "overwrite",
        attributes: Mapping[str, str] | None = None,
    ) -> str | None:
        """Write an object in one request; its etag.

        With a condition it is not tried again: a refusal then means what it says.

        Raises
        ------
        ConditionRefusedError
            There is an object already, or it is not the version that `mode` names.
        """
        patient = mode == "overwrite"
        load = memoryview(data).nbytes
        with self._calling("writing", key, writes=True, patient=patient, load=load) as (api, store):
            done = api.put(
                store, name, data, mode=mode, attributes=attributes or None, use_multipart=False
            )
            etag: str | None = done["e_tag"]
            return etag

    def upload(self, name: str, part_size: int, workers: int, attributes: Mapping[str, str]) -> Any:
        """Begin to write an object in parts; nothing is sent before the first part is full."""
        connection = self._connected(load=part_size * workers)
        return connection.api.open_writer(
            connection.store,
            name,
            buffer_size=part_size,
            max_concurrency=workers,
            attributes=attributes,
        )

    def delete(self, names: list[str], key: str | None = None) -> None:
        """Remove objects; absent ones are fine to S3, and `KeyNotFoundError` to others."""
        pauses = self.target.pauses()
        while True:
            try:
                with self._calling("deleting", key, writes=True, patient=False) as (api, store):
                    api.delete(store, names)
            except UnavailableError:
                # obstore would not try again: it does not know that this may be done twice.
                if (pause := next(pauses, None)) is None:
                    raise
                time.sleep(pause)
            else:
                return

    def copy(self, key: str, name: str, target: str) -> None:
        """Copy an object inside the bucket."""
        with self._calling("copying", key, writes=True, load=_COPYING) as (api, store):
            api.copy(store, name, target)

    def sign(self, method: str, key: str, name: str, seconds: float) -> str:
        """Make a URL that allows one kind of request to one object for a time."""
        with self._calling("signing a URL for", key) as (api, store):
            url: str = api.sign(store, method, name, timedelta(seconds=seconds))
            return url

    @contextlib.contextmanager
    def uploading(self, key: str) -> Iterator[None]:
        """Translate what an upload's own methods raise."""
        with self._calling("writing", key, writes=True):
            yield

    # --- the connection --------------------------------------------------------------------------

    def _connected(self, *, patient: bool = True, load: int = 0) -> _Connection:
        turns = self.target.turns(load)
        connection = self._connections.get((patient, turns))
        if connection is None or connection.pid != os.getpid():
            if connection is not None:
                _inherited.append(connection)
            api = runtime()
            store = self.target.connect(api, patient=patient, turns=turns)
            # An upload's methods raise OSError, which FileNotFoundError is too.
            errors = (api.exceptions.BaseError, OSError)
            connection = _Connection(os.getpid(), api, store, errors)
            self._connections[patient, turns] = connection
        return connection

    @contextlib.contextmanager
    def _calling(
        self,
        what: str,
        key: str | None = None,
        *,
        writes: bool = False,
        patient: bool = True,
        load: int = 0,
    ) -> Iterator[tuple[Any, Any]]:
        connection = self._connected(patient=patient, load=load)
        try:
            yield connection.api, connection.store
        except connection.errors as exc:
            shown = f"{what} {_shortened(key)!r}" if key is not None else what
            doing = Doing(shown, self.target.place, key, writes)
            raise Reply(exc).translate(doing) from exc


def _shortened(key: str) -> str:
    return key if len(key) <= _SHOWN else f"{key[:_SHOWN]}..."


def _version(key: str, name: str, meta: Mapping[str, Any]) -> Version:
    return Version(key, name, meta["size"], meta["e_tag"], meta["last_modified"])
