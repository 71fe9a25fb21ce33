"""Settings of a bucket, typed and checked, and the store that is made of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from blobstore.backends.blob.urls import BUCKETS, StoreUrl
from blobstore.config.storage import StorageConfig
from blobstore.errors import from_os_error
from blobstore.protocols import ObjectStore
from blobstore.registry import load

if TYPE_CHECKING:
    from blobstore.backends.blob.bucket import BucketStore

_SCHEMES = ("s3", "s3a")
_FROM_ENVIRONMENT = {
    "aws_access_key_id": ("AWS_ACCESS_KEY_ID",),
    "aws_secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
    "aws_session_token": ("AWS_SESSION_TOKEN",),
    "region_name": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "profile_name": ("AWS_PROFILE",),
    "verify": ("AWS_CA_BUNDLE",),
}
_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_OPTIONS = {
    "aws_access_key_id": "s3_access_key",
    "aws_secret_access_key": "s3_secret_key",
    "aws_session_token": "session_token",
    "region_name": "region",
    "profile_name": "profile_name",
    "multipart_threshold": "multipart_threshold",
    "multipart_chunksize": "multipart_chunksize",
    "max_concurrency": "max_concurrency",
    "timeout": "timeout",
    "max_retries": "retries",
    "retry_delay": "retry_delay",
}
"""Names here -> names in `BucketStore`."""


@dataclass(frozen=True, kw_only=True)
class S3StorageConfig(StorageConfig):
    """How a bucket is reached, and whether copies of what was read are kept.

    `chunk_size` and `temp_dir` are for those who move files, and are nothing to the store itself.
    What is not given is looked for where AWS tools look: in the environment, then in the profile
    of their files. Keys and `extra` are not shown by `repr`; a pickle has them.

    Attributes
    ----------
    aws_access_key_id, aws_secret_access_key, aws_session_token : str, optional
    region_name : str, optional
    endpoint_url : str, optional
        Of a server that is not AWS: "https://minio.example.com".
    profile_name : str, optional
        In place of keys.
    use_ssl : bool
        False: plain HTTP, where `endpoint_url` does not say.
    verify : bool or path
        Whether the server's certificate is checked; or a file with those to trust besides.
    cache_enabled : bool
        Keep copies in `cache_dir`, each used as long as the object in the bucket has the same etag,
        and for `cache_expiry_hours` at most. A hit costs one request.
    cache_max_bytes : int
        How much the copies of one bucket and prefix may have together.
    multipart_threshold : int
        Bytes from which an object is sent in parts.
    multipart_chunksize : int
        Bytes of a part, 5 MiB or more.
    max_concurrency : int
        Parts on their way at once.

    Raises
    ------
    ConfigError
        A value is of the wrong type or out of range, or two exclude each other.

    Examples
    --------
    >>> config = S3StorageConfig(aws_access_key_id="key", aws_secret_access_key="secret",
    ...                          endpoint_url="http://127.0.0.1:9000")
    >>> "secret" in repr(config)
    False
    >>> config.build("s3://models/team")
    BucketStore('models', endpoint_url='http://127.0.0.1:9000', prefix='team/')
    """

    aws_access_key_id: str | None = field(default=None, repr=False)
    aws_secret_access_key: str | None = field(default=None, repr=False)
    aws_session_token: str | None = field(default=None, repr=False)
    region_name: str | None = None
    endpoint_url: str | None = None
    profile_name: str | None = None
    use_ssl: bool = True
    verify: bool | str | os.PathLike[str] = True
    cache_enabled: bool = False
    cache_max_bytes: int = 10 << 30
    multipart_threshold: int = 64 << 20
    multipart_chunksize: int = 16 << 20
    max_concurrency: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (*_KEYS, "region_name", "endpoint_url", "profile_name"):
            if getattr(self, name) is not None:
                self.check_kind(name, str, "a text")
                if not getattr(self, name):
                    raise self.wrong(f"{name} is empty: leave it out, or give None")
        for name in ("use_ssl", "cache_enabled"):
            self.check_kind(name, bool, "True or False")
        verify: Any = self.verify
        if not isinstance(verify, bool | str | os.PathLike) or verify == "":
            raise self.wrong(f"verify must be True, False or a file, not {verify!r}")
        self.check_number("cache_max_bytes", least=1, whole=True)
        self.check_number("multipart_threshold", least=0, whole=True)
        self.check_number("multipart_chunksize", least=5 << 20, whole=True)
        self.check_number("max_concurrency", least=1, whole=True)
        self._check_keys()
        for name in self.extra:
            if name in _OPTIONS.values() or name == "endpoint_url":
                raise self.wrong(f"{name!r} in extra has a field of its own: use that")

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None, **options: Any) -> Self:
        """Take what the environment says now, so that it does not matter what it says later.

        Parameters
        ----------
        environment : mapping, optional
            By default that of this process.
        **options
            Fields, which go before what the environment says.

        Examples
        --------
        >>> S3StorageConfig.from_env({"AWS_REGION": "eu-west-1"}, timeout=5).region_name
        'eu-west-1'
        """
        environment = os.environ if environment is None else environment
        found: dict[str, Any] = {}
        for name, variables in _FROM_ENVIRONMENT.items():
            values = (environment.get(variable) for variable in variables)
            found[name] = next(filter(None, values), None)
        if found["verify"] is None:
            del found["verify"]
        # Keys in the environment go before a profile; given ones put the other aside.
        if any(options.get(name) for name in _KEYS) or found["aws_access_key_id"]:
            found["profile_name"] = None
        if options.get("profile_name") or any(options.get(name) for name in _KEYS):
            found.update(dict.fromkeys(_KEYS))
        return cls(**{**found, **options})

    def build(self, url: str) -> ObjectStore:
        """Make the store of a bucket.

        Parameters
        ----------
        url : str
            "s3://bucket/prefix"; what it says in its query must not contradict the fields.

        Returns
        -------
        ObjectStore
            A `BucketStore`; with `cache_enabled` a `CachingStore` around one.

        Raises
        ------
        ConfigError
            The URL is none of a bucket, or an option is wrong.
        StorageError
            `cache_dir` cannot be made.
        """
        given: Any = url
        if not isinstance(given, str) or "://" not in given:
            raise self.wrong("build takes a URL like 's3://bucket/prefix'")
        parsed = StoreUrl.of(url, "S3StorageConfig.build({!r})")
        if parsed.scheme not in _SCHEMES:
            raise parsed.error("this is no bucket of S3: write s3://bucket/prefix")
        store: BucketStore = load(BUCKETS[parsed.scheme]).from_url(url, **self._bucket_options())
        if not self.cache_enabled:
            return store
        place = (store.endpoint_url, store.bucket_name, store.prefix)
        try:
            return self._cached(store, place)
        except BaseException:
            store.close()
            raise

    def _cached(self, store: ObjectStore, place: tuple[str | None, ...]) -> ObjectStore:
        from blobstore.backends.blob.filesystem import FilesystemStore
        from blobstore.wrappers.cache import CachingStore

        root = Path(self.cache_dir or _default_cache_dir())
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise from_os_error(exc, f"making the folder {root}") from exc
        # One folder for each place: a name below two prefixes is that of two objects.
        name = hashlib.blake2b(repr(place).encode(), digest_size=12).hexdigest()
        cache = FilesystemStore(root / name)
        for leftover in cache.leftovers():  # of killed processes; nobody else looks after them
            cache.remove_leftover(leftover.name)
        return CachingStore(
            store,
            cache,
            validate=True,
            max_bytes=self.cache_max_bytes,
            max_age=self.cache_expiry_hours * 3600,
        )

    def _bucket_options(self) -> dict[str, Any]:
        options = {theirs: getattr(self, ours) for ours, theirs in _OPTIONS.items()}
        options = {name: value for name, value in options.items() if value is not None}
        if (endpoint := self._endpoint()) is not None:
            options["endpoint_url"] = endpoint
        client = {**self._client_options(), **self.extra.get("client_options", {})}
        return {**options, **self.extra, **({"client_options": client} if client else {})}

    def _endpoint(self) -> str | None:
        if self.endpoint_url is None:
            if self.use_ssl:
                return None
            return f"http://s3.{self.region_name or 'us-east-1'}.amazonaws.com"
        if "://" in self.endpoint_url:
            return self.endpoint_url
        return f"{'https' if self.use_ssl else 'http'}://{self.endpoint_url}"

    def _client_options(self) -> dict[str, Any]:
        if self.verify is True:
            return {}
        if self.verify is False:
            return {"allow_invalid_certificates": True}
        path = Path(self.verify).expanduser()
        try:
            return {"root_certificate": path.read_bytes()}
        except OSError as exc:
            raise self.wrong(f"the file of certificates {path} cannot be read: {exc}") from exc

    def _check_keys(self) -> None:
        access, secret, token = (getattr(self, name) is not None for name in _KEYS)
        if access != secret or (token and not access):
            raise self.wrong(
                "aws_access_key_id and aws_secret_access_key are given together, aws_session_token "
                "with both"
            )
        if access and self.profile_name is not None:
            raise self.wrong("profile_name and keys exclude each other: give one")


def _default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "blobstore" / "s3"
