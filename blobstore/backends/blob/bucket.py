"""Objects in a bucket of S3 or of a server that speaks its language, by obstore."""

from __future__ import annotations

import inspect
import io
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, Self

from blobstore.backends.blob.bucket_client import WRITER, BucketClient, Version
from blobstore.backends.blob.bucket_conditions import ConditionalPut
from blobstore.backends.blob.bucket_errors import RangeRefusedError
from blobstore.backends.blob.bucket_keys import bounds_of, key_of, name_of
from blobstore.backends.blob.bucket_options import (
    Lent,
    arguments_of_url,
    check_count,
    check_prefix,
    make_target,
    one_of,
    told_apart,
)
from blobstore.backends.blob.bucket_streams import (
    BucketSink,
    BucketSource,
    Ranges,
    in_parallel,
    open_version,
)
from blobstore.entry import ObjectStat
from blobstore.errors import (
    ClosedError,
    ConfigError,
    ConflictError,
    InvalidInputError,
    KeyNotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)
from blobstore.keys import require_str
from blobstore.protocols import Capabilities, ObjectStore, check_range
from blobstore.streams import CHUNK, Buffer, BytesSource, Sink, Source, as_contiguous

_BATCH = 1000
_TRIES = 8
_LARGEST_POSITION = 1 << 62
_LARGEST_COPY = 5 << 30
_LONGEST_EXPIRY = 7 * 86_400
_METADATA_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class BucketStore(ObjectStore):
    """Objects in a bucket of S3, or of a server that speaks its language; also Google Cloud and Azure.

    May be given ``(bucket, client)`` and ``(client, bucket)``, where the client is one of boto3 or
    aiobotocore: it lends its endpoint, region and credentials, and is neither used nor closed.
    Otherwise the credentials are the first of these that there are: `s3_access_key` and
    `s3_secret_key`; the profile `profile_name`; the environment (`AWS_ACCESS_KEY_ID` ...); the
    profile of `AWS_PROFILE` or "default"; what the machine or container offers.

    Nothing is sent before the first call, so a wrong name or key is found out then. May be shared
    by threads, forked, and pickled; a pickled copy has the arguments, secrets included.

    Keys are the names in the bucket, except for parts of them that servers would change, which are
    escaped as `blobstore.backends.blob.bucket_keys` tells: ``a//b`` is kept as ``a/%/b``. Objects of
    other programs whose names no key has, as ``dir/``, are left out of `keys`.

    A put is one request, a large one several (multipart) that become one object at the end: a
    reader sees the old or the new object. If it fails, its parts are removed. If its process is
    killed they are left, unseen and paid for, and `leftovers` cannot tell of them. Let the bucket
    remove them by a lifecycle rule, made once by its owner, for instance with boto3::

        client.put_bucket_lifecycle_configuration(
            Bucket="models",
            LifecycleConfiguration={"Rules": [{
                "ID": "unfinished-uploads", "Status": "Enabled", "Filter": {},
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
            }]},
        )

    Parameters
    ----------
    bucket : str or client
        The bucket, or a client.
    client : client or str
        The client, or the bucket.
    bucket_name : str
        The bucket, by name. `s3_secret_key` and it are the third and fourth argument of the older
        form ``(s3_url, s3_access_key, s3_secret_key, bucket_name)``.
    endpoint_url : str, optional
        Of a server other than that of AWS. `s3_url` is the older name of it.
    s3_access_key, s3_secret_key, session_token : str, optional
        Never shown in messages or by `repr`.
    region : str, optional
    prefix : str
        A folder in the bucket, outside of which nothing is read, listed or written.
    virtual_hosted_style : bool
        Whether the bucket is part of the host's name, ``http://bucket.host/key``.
    profile_name : str, optional
    anonymous : bool
        Send no credentials, for public buckets.
    max_concurrency : int
        Requests of one call at once. With `multipart_chunksize` it bounds the memory of a writer.
    multipart_threshold : int
        Bytes from which `put` sends several parts.
    multipart_chunksize : int
        Bytes of a part, 5 MiB or more. S3 takes 10,000 parts: for an object of more than so many of
        them, give `writer` its size, and they grow.
    timeout : float
        Seconds for one request, its bytes included. Where a call moves more than 16 MiB at once,
        its requests get as many times as long; so a line may be as slow as 16 MiB per `timeout`.
    retries : int
        How often a request is tried again that failed by the network or a busy server, after
        growing pauses and for at most twice `timeout`.
    retry_delay : float
        Seconds before the first of these; they double, up to 5 seconds.
    service : {"s3", "gs", "az"}
        For Google Cloud Storage and Azure; their credentials are taken from the environment or from
        `obstore_options`.
    client_options : mapping, optional
        Of obstore's HTTP client, for instance ``{"root_certificate": pem}`` or ``{"proxy_url": ...}``.
    obstore_options : mapping, optional
        Of obstore's store, for instance ``{"server_side_encryption": "aws:kms"}``, or
        ``{"disable_bulk_delete": True}`` for a server that has no such call.

    Raises
    ------
    ConfigError
        An argument is wrong.

    Examples
    --------
    >>> store = BucketStore("models", endpoint_url="http://127.0.0.1:9000", prefix="team/a",
    ...                     s3_access_key="key", s3_secret_key="secret")
    >>> store
    BucketStore('models', endpoint_url='http://127.0.0.1:9000', prefix='team/a/')
    >>> store.presigned_get("run 1/weights", expiry=60).partition("?")[0]
    'http://127.0.0.1:9000/models/team/a/run%201/weights'
    >>> store.close()
    """

    def __init__(
        self,
        bucket: Any = None,
        client: Any = None,
        s3_secret_key: str | None = None,
        bucket_name: str | None = None,
        *,
        endpoint_url: str | None = None,
        s3_url: str | None = None,
        s3_access_key: str | None = None,
        session_token: str | None = None,
        region: str | None = None,
        prefix: str = "",
        virtual_hosted_style: bool = False,
        profile_name: str | None = None,
        anonymous: bool = False,
        max_concurrency: int = 8,
        multipart_threshold: int = 32 << 20,
        multipart_chunksize: int = 16 << 20,
        timeout: float = 30.0,
        retries: int = 5,
        retry_delay: float = 0.1,
        service: Literal["s3", "gs", "az"] = "s3",
        client_options: Mapping[str, Any] | None = None,
        obstore_options: Mapping[str, Any] | None = None,
    ) -> None:
        arguments = {
            "endpoint_url": one_of(endpoint_url=endpoint_url, s3_url=s3_url),
            "s3_access_key": s3_access_key,
            "session_token": session_token,
            "region": region,
            "virtual_hosted_style": virtual_hosted_style,
            "profile_name": profile_name,
            "anonymous": anonymous,
            "timeout": timeout,
            "retries": retries,
            "retry_delay": retry_delay,
            "service": service,
            "client_options": client_options,
            "obstore_options": obstore_options,
        }
        for name, value in told_apart(bucket, client, s3_secret_key, bucket_name).items():
            arguments[name] = one_of(**{name: value, f"{name}_": arguments.get(name)})
        if arguments.setdefault("client") is not None:
            arguments["client"] = Lent.by(arguments["client"])
        check_count("max_concurrency", max_concurrency, 1, 256)
        check_count("multipart_threshold", multipart_threshold, 0, 5 << 30)
        check_count("multipart_chunksize", multipart_chunksize, 5 << 20, 5 << 30)
        self.prefix = check_prefix(prefix)
        self._client = BucketClient(make_target(**arguments))
        self._ranges = Ranges(self._client, multipart_chunksize, max_concurrency)
        self._threshold = multipart_threshold
        self._arguments = {
            **arguments,
            "prefix": prefix,
            "max_concurrency": max_concurrency,
            "multipart_threshold": multipart_threshold,
            "multipart_chunksize": multipart_chunksize,
        }
        self._closed = False

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make the store of a URL.

        Parameters
        ----------
        url : str
            ``s3://bucket/prefix``, ``gs://...``, ``az://...`` or ``abfs://container@account...``;
            arguments may follow, as in ``?region=eu-west-1&endpoint_url=http://127.0.0.1:9000``. No
            credentials.
        **options
            Further arguments of the constructor.

        Raises
        ------
        ConfigError
            It is no such URL, or has credentials in it.

        Examples
        --------
        >>> BucketStore.from_url("s3://models/team?region=eu-west-1", anonymous=True)
        BucketStore('models', region='eu-west-1', prefix='team/')
        """
        arguments = arguments_of_url(url, options)
        unknown = arguments.keys() - inspect.signature(cls).parameters.keys()
        if unknown:
            raise ConfigError(f"{cls.__name__} takes no {', '.join(map(repr, sorted(unknown)))}")
        return cls(**arguments)

    @property
    def bucket_name(self) -> str:
        """The bucket."""
        return self._client.target.bucket

    @property
    def endpoint_url(self) -> str | None:
        """The server; None is that of AWS, Google or Azure."""
        return self._client.target.endpoint

    @property
    def region(self) -> str | None:
        """The region; None is obstore's default, us-east-1."""
        return self._client.target.region

    @property
    def capabilities(self) -> Capabilities:
        """Everything but files."""
        return Capabilities(ranges=True, streams=True, conditional_writes=True, etags=True)

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str) -> bytes:
        """Read an object; a large one by several ranges at once."""
        name = self._name(key)
        for _ in range(_TRIES):
            version, result = self._client.get(key, name)
            if version.size < 2 * self._ranges.part_size:
                return self._client.body(version, result)
            del result  # its bytes are not waited for
            try:
                return self._ranges.read(version, 0, version.size)
            except KeyNotFoundError:
                continue  # it was replaced meanwhile; if it is gone, the get says so
        raise UnavailableError(
            f"the object {key!r} was replaced {_TRIES} times while it was read: try again",
            location=key,
        )

    def exists(self, key: str) -> bool:
        """Whether there is such an object; no bucket, no permission and no answer are errors."""
        try:
            self._probe(key, self._name(key))
        except KeyNotFoundError:
            return False
        return True

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys page by page, in the order of the server."""
        self._check_open()
        if not _is_text(prefix):
            return iter(())
        bounds = bounds_of(prefix, self.prefix)
        # Directory buckets (S3 Express) are listed in no order.
        ordered = not self.bucket_name.endswith("--x-s3")
        pages = self._client.pages(bounds.folder, bounds.after if ordered else None)
        first = next(pages, [])  # now: errors come from the call

        def found() -> Iterator[str]:
            page: list[tuple[str, int]] | None = first
            while page is not None:
                yield from self._keys_of(page, prefix)
                if ordered and page and bounds.is_past(page[-1][0]):
                    return
                self._check_open()
                page = next(pages, None)

        return found()

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object; a large one by several ranges at once."""
        name = self._name(key)
        check_range(start, stop)
        if start == stop or start >= _LARGEST_POSITION:
            self._probe(key, name)
            return b""
        stop = min(stop, _LARGEST_POSITION)
        if stop - start >= 2 * self._ranges.part_size:
            version, _ = self._client.head(key, name)
            stop = min(stop, version.size)
            return self._ranges.read(version, start, stop) if start < stop else b""
        try:
            _, data = self._client.get_part(key, name, {"range": (start, stop)})
        except RangeRefusedError:
            return b""
        return bytes(data)

    def open(self, key: str) -> BinaryIO:
        """Open an object: a small one is read now, of a large one this version is read or none."""
        version, head = self._beginning(key)
        if version is None or version.size <= len(head):
            return io.BytesIO(head)
        return open_version(self._ranges, version, head)

    def source(self, key: str) -> Source:
        """Hold an object as it is now: a small one is read, a large one is known by its etag.

        Once another has taken its place, reading a large one is `KeyNotFoundError`.
        """
        version, head = self._beginning(key)
        if version is None or version.size <= len(head):
            return BytesSource(bytes(head))
        return BucketSource(self._ranges, version, head)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time (in seconds) and etag; equal bytes may have the same etag."""
        version, _ = self._client.head(key, self._name(key))
        return ObjectStat(version.size, version.modified, version.etag)

    def metadata(self, key: str) -> dict[str, str]:
        """The user metadata of an object."""
        _, attributes = self._client.head(key, self._name(key))
        return {
            name: value
            for name, value in attributes.items()
            if name != WRITER and _METADATA_NAME.fullmatch(name)
        }

    def local_path(self, key: str) -> Path | None:
        """There is no file."""
        self._name(key)
        return None

    def presigned_get(self, key: str, expiry: float = 3600) -> str:
        """Make a URL by which anybody can read the object for `expiry` seconds."""
        name = self._name(key)
        return self._client.sign("GET", key, name, _check_expiry(expiry))

    def presigned_put(self, key: str, expiry: float = 3600) -> str:
        """Make a URL by which anybody can write the object for `expiry` seconds, by HTTP PUT."""
        name = self._name(key)
        return self._client.sign("PUT", key, name, _check_expiry(expiry))

    # --- writing ---------------------------------------------------------------------------------

    def put(self, key: str, data: Buffer) -> None:
        """Write an object in one request, or in parts if it is large."""
        name, content = self._name(key), as_contiguous(data)
        if len(content) < self._threshold:
            self._client.put(key, name, content)
            return
        with self._sink(key, len(content)) as sink:
            sink.write_lasting(content)

    def put_with_metadata(self, key: str, data: Buffer, metadata: Mapping[str, str]) -> None:
        """Write an object with user metadata, in one request.

        Parameters
        ----------
        key : str
        data : bytes-like
        metadata : mapping of str to str
            Names of ``a-z``, ``0-9`` and ``-``, values of printable ASCII; 2 KiB in all on S3.

        Raises
        ------
        InvalidInputError
            The metadata cannot be kept.
        """
        name, content = self._name(key), as_contiguous(data)
        self._client.put(key, name, content, attributes=_check_metadata(metadata))

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one; of all processes, one wins."""
        name, content = self._name(key), as_contiguous(data)
        for turn in range(_TRIES):
            if ConditionalPut(self._client, key, name, "create").run(content) is not None:
                return True
            if self._is_there(key, name):
                return False
            # It was refused because of an object that is gone, or of another call at that moment.
            time.sleep(0.01 * turn)
        raise UnavailableError(
            f"writing {key!r} unless it is there was refused {_TRIES} times, and it is not there: "
            "others write and remove it, try again",
            location=key,
        )

    def put_if_match(self, key: str, data: Buffer, etag: str) -> str:
        """Write an object if it is still the one with that etag (compare-and-swap).

        Parameters
        ----------
        key : str
        data : bytes-like
        etag : str
            From `stat`, or from the last call of this.

        Returns
        -------
        str
            The etag of what is there now.

        Raises
        ------
        ConflictError
            Another object is there.
        KeyNotFoundError
            None is.
        NotSupportedError
            The bucket is one of Google Cloud, where an etag is no condition for a write.
        """
        name, content = self._name(key), as_contiguous(data)
        if self._client.target.service == "gs":
            raise NotSupportedError(
                f"{self!r} cannot compare etags when it writes: use put_if_absent with a new key"
            )
        given: object = etag
        if not isinstance(given, str) or not given:
            raise InvalidInputError(f"etag must be one that stat gave, not {etag!r}")
        written = ConditionalPut(self._client, key, name, {"e_tag": etag}).run(content)
        if written is None:
            self._probe(key, name)
            raise ConflictError(
                f"the object {key!r} was changed by somebody else: read it again, then retry",
                location=key,
            )
        return written

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece; memory holds the parts that are on their way."""
        return self._sink(key, size_hint or 0)

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the bucket; one above 5 GiB passes through here."""
        old, new = self._name(source), self._name(target)
        if old == new:
            self._probe(source, old)
            return
        try:
            self._client.copy(source, old, new)
        except (KeyNotFoundError, PermissionDeniedError, UnavailableError):
            raise
        except StorageError:  # servers have no code of their own for "too large"
            if self._client.head(source, old)[0].size <= _LARGEST_COPY:
                raise
            self._copy_through(source, target)

    def delete(self, key: str) -> None:
        """Remove an object. Servers do not tell of an absent one, so it is asked for before.

        `delete_many` does not ask: one request, and silence.
        """
        name = self._name(key)
        self._probe(key, name)
        self._client.delete([name], key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects, a thousand in a request; absent ones are fine.

        One that cannot be removed does not keep the others; its error is raised at the end.
        """
        self._check_open()
        names = {self._name(key): key for key in keys}
        if self._client.target.service != "s3":
            super().delete_many(names.values())
            return
        failed: StorageError | None = None
        listed = list(names)
        for start in range(0, len(listed), _BATCH):
            try:
                self._client.delete(listed[start : start + _BATCH])
            except StorageError as exc:
                failed = exc
        if failed is not None:
            raise failed

    # --- keeping ---------------------------------------------------------------------------------

    def sync(self, keys: Iterable[str]) -> None:
        """Do nothing: what a server has acknowledged it keeps."""
        self._check_open()

    def leftovers(self) -> Iterator[NoReturn]:
        """None that can be told of: the parts of killed writers are for the bucket's lifecycle rule."""
        self._check_open()
        return iter(())

    def remove_leftover(self, name: str) -> None:
        """Do nothing, as there are none."""
        self._check_open()

    def close(self) -> None:
        """Refuse further calls; what is being read can be read to its end."""
        self._closed = True

    def __repr__(self) -> str:
        shown = {
            "endpoint_url": self.endpoint_url,
            "region": self.region if self._arguments["region"] else None,
            "prefix": self.prefix or None,
            "service": None if self._client.target.service == "s3" else self._client.target.service,
        }
        named = [f"{name}={value!r}" for name, value in shown.items() if value is not None]
        return f"{type(self).__name__}({', '.join([repr(self.bucket_name), *named])})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._arguments)

    # --- parts -----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self!r} was closed: make a new one")

    def _name(self, key: str) -> str:
        self._check_open()
        return name_of(key, self.prefix)

    def _sink(self, key: str, size: int) -> BucketSink:
        return BucketSink(
            self._client,
            key,
            self._name(key),
            part_size=self._ranges.part_size,
            workers=self._ranges.workers,
            size_hint=size,
            check_open=self._check_open,
        )

    def _probe(self, key: str, name: str) -> None:
        """Raise if there is no such object. Other than a head, such a reply tells what is missing."""
        try:
            self._client.get_part(key, name, {"range": (0, 1)})
        except RangeRefusedError:
            return  # it is empty

    def _is_there(self, key: str, name: str) -> bool:
        try:
            self._probe(key, name)
        except KeyNotFoundError:
            return False
        return True

    def _beginning(self, key: str) -> tuple[Version | None, memoryview]:
        """The first bytes of an object, which are all of a small one; no version of an empty one."""
        name = self._name(key)
        try:
            return self._client.get_part(key, name, {"range": (0, CHUNK)})
        except RangeRefusedError:
            return None, memoryview(b"")

    def _keys_of(self, page: list[tuple[str, int]], prefix: str) -> Iterator[str]:
        """The keys on a page of a listing. A folder's marker, as ``dir/``, is listed as ``dir``."""
        found = []
        for name, size in page:
            key = key_of(name, self.prefix)
            if key is not None and key.startswith(prefix):
                found.append((key, size))
        empty = [n for n, (_, size) in enumerate(found) if size == 0]
        if not empty:
            return iter([key for key, _ in found])

        def is_there(number: int) -> bool:
            key = found[empty[number]][0]
            return self._is_there(key, name_of(key, self.prefix))

        there = in_parallel(is_there, range(len(empty)), self._ranges.workers)
        markers = {number for number, real in zip(empty, there, strict=True) if not real}
        return iter([key for number, (key, _) in enumerate(found) if number not in markers])

    def _copy_through(self, source: str, target: str) -> None:
        with self.source(source) as found, self.writer(target, found.size) as sink:
            for start in range(0, found.size, self._ranges.part_size):
                sink.write(found.read_range(start, start + self._ranges.part_size))


def _rebuild(cls: type[BucketStore], arguments: dict[str, Any]) -> BucketStore:
    return cls(**arguments)


def _is_text(prefix: str) -> bool:
    """Whether a prefix can be that of a key; what is no string is refused."""
    try:
        require_str(prefix).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_expiry(expiry: object) -> float:
    if type(expiry) not in (int, float) or not 1 <= expiry <= _LONGEST_EXPIRY:  # type: ignore[operator]
        raise InvalidInputError(
            f"expiry must be 1 second to 7 days ({_LONGEST_EXPIRY}), not {expiry!r}"
        )
    return float(expiry)  # type: ignore[arg-type]


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(
            f"metadata must be a mapping of texts, not {type(metadata).__name__}"
        )
    for name, value in metadata.items():
        if not isinstance(name, str) or not _METADATA_NAME.fullmatch(name) or name == WRITER:
            raise InvalidInputError(
                f"a name of user metadata is of a-z, 0-9 and -, not {name!r:.80}: servers change others"
            )
        if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
            raise InvalidInputError(
                f"the user metadata {name!r} must be a printable ASCII text: encode it, for instance "
                "by json.dumps"
            )
    return dict(metadata)
