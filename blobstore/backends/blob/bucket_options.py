"""What a `BucketStore` is made from, in its several forms, checked and brought into one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from blobstore.backends.blob import bucket_credentials as credentials_of
from blobstore.backends.blob.bucket_client import Target
from blobstore.backends.blob.bucket_credentials import BotoCredentials, Keys
from blobstore.backends.blob.bucket_keys import name_of
from blobstore.errors import ConfigError, InvalidKeyError

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_SERVICES = {"s3": "s3", "s3a": "s3", "gs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
_NOT_IN_URLS = (
    "s3_access_key",
    "s3_secret_key",
    "session_token",
    "client",
    "bucket",
    "bucket_name",
)
_YES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_OF_TEXT: dict[str, Callable[[str], Any]] = {
    "virtual_hosted_style": lambda text: _YES[text.casefold()],
    "anonymous": lambda text: _YES[text.casefold()],
    "timeout": float,
    "retries": int,
    "retry_delay": float,
    "max_concurrency": int,
    "multipart_threshold": int,
    "multipart_chunksize": int,
}
"""Arguments that are no texts, of which a URL has only texts."""


@dataclass(frozen=True)
class Lent:
    """What a client of boto3 or aiobotocore lends: where the bucket is, and how to be let in.

    It takes the place of the client where a store is pickled.
    """

    endpoint: str | None
    region: str | None
    virtual_hosted: bool
    credentials: Keys | BotoCredentials | None

    @classmethod
    def by(cls, client: Any) -> Lent:
        """Take what a client has; it is not closed, and not kept.

        Raises
        ------
        ConfigError
            It is no client of S3.
        """
        if isinstance(client, Lent):
            return client
        client = getattr(getattr(client, "meta", None), "client", client)  # of a resource of boto3
        meta: Any = getattr(client, "meta", None)
        signer = getattr(client, "_request_signer", None)
        if signer is None or not hasattr(meta, "endpoint_url"):
            raise ConfigError(
                f"client must be an S3 client of boto3 or aiobotocore, not {type(client)!r}"
            )
        if meta.service_model.service_name != "s3":
            raise ConfigError(f"client is for {meta.service_model.service_name!r}, not for S3")
        found = signer._credentials  # noqa: SLF001 - botocore has no public way to them
        style = (meta.config.s3 or {}).get("addressing_style")
        endpoint = meta.endpoint_url
        if endpoint and endpoint.rstrip("/") == "https://s3.amazonaws.com":
            endpoint = None  # of no region: obstore makes the region's own
        return cls(
            endpoint,
            meta.region_name if meta.region_name != "aws-global" else "us-east-1",
            style == "virtual",
            None if found is None else BotoCredentials(found),
        )


def told_apart(bucket: Any, client: Any, secret_key: Any, bucket_name: Any) -> dict[str, Any]:
    """Name the arguments that were given by position, in any of the forms of the older documents.

    ``(bucket, client)``, ``(client, bucket)`` and ``(s3_url, access key, secret key, bucket)``.

    Raises
    ------
    ConfigError
        None of them.
    """
    if isinstance(bucket, str) and isinstance(client, str):
        return {
            "endpoint_url": bucket,
            "s3_access_key": client,
            "s3_secret_key": secret_key,
            "bucket_name": bucket_name,
        }
    if isinstance(client, str) or (bucket is not None and not isinstance(bucket, str)):
        bucket, client = client, bucket
    if bucket is not None and bucket_name is not None:
        raise ConfigError("the bucket is given twice: by position and as bucket_name")
    name = bucket if bucket is not None else bucket_name
    return {"bucket_name": name, "client": client, "s3_secret_key": secret_key}


def make_target(
    *,
    bucket_name: Any,
    client: Any,
    endpoint_url: str | None,
    s3_access_key: str | None,
    s3_secret_key: str | None,
    session_token: str | None,
    region: str | None,
    virtual_hosted_style: bool,
    profile_name: str | None,
    anonymous: bool,
    service: str,
    timeout: float,
    retries: int,
    retry_delay: float,
    client_options: Mapping[str, Any] | None,
    obstore_options: Mapping[str, Any] | None,
) -> Target:
    """Gather where the bucket is, and by which credentials it is spoken to.

    Raises
    ------
    ConfigError
        Something is wrong, missing or given twice.
    """
    _check_plain(bucket_name, timeout, retries, service)
    _check_seconds("retry_delay", retry_delay, least=0)
    given = _given_keys(s3_access_key, s3_secret_key, session_token)
    ways = {
        "s3_access_key": given,
        "client": client,
        "profile_name": profile_name,
        "anonymous": anonymous or None,
    }
    named = [name for name, value in ways.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} exclude each other: give one of them")
    if service != "s3" and (named or endpoint_url or region):
        raise ConfigError(
            f"a bucket of {service!r} takes its credentials and its place from the environment or "
            "from obstore_options, not from endpoint_url, region, keys or clients"
        )
    found = Lent(None, None, virtual_hosted=False, credentials=given)
    if client is not None:
        found = Lent.by(client)
    elif service == "s3":
        found = _surroundings(profile_name, given, look=not anonymous)
    endpoint = endpoint_url or found.endpoint
    return Target(
        service,
        bucket_name,
        None if endpoint is None else check_endpoint(endpoint),
        region or found.region,
        bool(virtual_hosted_style) or found.virtual_hosted,
        found.credentials,
        bool(anonymous) or (client is not None and found.credentials is None),
        float(timeout),
        retries,
        float(retry_delay),
        dict(client_options or {}),
        dict(obstore_options or {}),
    )


def check_count(name: str, value: object, least: int, most: int) -> int:
    """Return a number if it is one, within its limits.

    Raises
    ------
    ConfigError
    """
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{name} must be a number from {least} to {most}, not {value!r}")
    return value


def one_of(**values: Any) -> Any:
    """Return the one value that is not None, of several names for the same.

    Raises
    ------
    ConfigError
        There are two.
    """
    given = [(name, value) for name, value in values.items() if value is not None]
    if len(given) > 1:
        names = " and ".join([name.rstrip("_") for name, _ in given])
        raise ConfigError(f"{names} are the same: give one of them")
    return given[0][1] if given else None


def _check_plain(bucket_name: Any, timeout: Any, retries: Any, service: Any) -> None:
    if not isinstance(bucket_name, str) or not _BUCKET.fullmatch(bucket_name):
        raise ConfigError(f"bucket_name must be the name of a bucket, not {bucket_name!r:.80}")
    _check_seconds("timeout", timeout, least=0.001)
    check_count("retries", retries, 0, 100)
    if service not in ("s3", "gs", "az"):
        raise ConfigError(f"service must be 's3', 'gs' or 'az', not {service!r}")


def _check_seconds(name: str, value: Any, least: float) -> None:
    if type(value) not in (int, float) or not least <= value <= 86_400:
        raise ConfigError(f"{name} must be a number of seconds, up to a day, not {value!r}")


def _surroundings(profile_name: str | None, given: Keys | None, *, look: bool) -> Lent:
    """What the environment and the files of the AWS tools have to lend.

    Those are read for credentials only if none were given.
    """
    name: object = profile_name
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"profile_name must be a name, not {profile_name!r}")
    profile = credentials_of.Profile(given)
    if given is None and look:
        keys = None if profile_name else credentials_of.from_environment()
        profile = credentials_of.read_profile(profile_name, keys)
    return Lent(
        credentials_of.endpoint_of_environment() or profile.endpoint,
        credentials_of.region_of_environment() or profile.region,
        virtual_hosted=False,
        credentials=profile.credentials,
    )


def _given_keys(access: str | None, secret: str | None, token: str | None) -> Keys | None:
    if access is None and secret is None and token is None:
        return None
    given: tuple[object, ...] = (access, secret, token or "")
    for value in given:
        if not isinstance(value, str):
            # None of them is shown: one in the place of another would be a secret all the same.
            raise ConfigError("s3_access_key and s3_secret_key are texts, and go together")
    if not (access and secret):
        raise ConfigError("s3_access_key and s3_secret_key must not be empty, and go together")
    return Keys(access, secret, token or None)


def check_endpoint(url: object) -> str:
    """Return a URL of a server, without a slash at its end.

    Raises
    ------
    ConfigError
        It is none, or has more in it than a server.
    """
    if not isinstance(url, str):
        raise ConfigError(f"endpoint_url must be a URL, not {type(url).__name__}")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigError("endpoint_url is no URL: its host or port is none") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "endpoint_url has a user or password in it: give s3_access_key and s3_secret_key instead"
        )
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigError(
            f"endpoint_url must be like 'https://s3.example.org', not {parts.scheme}://{host or ''}..."
        )
    return url.rstrip("/")


def check_prefix(prefix: object) -> str:
    """Return a prefix as a folder with its slash, or "".

    Raises
    ------
    ConfigError
        It is no text, or one that servers would change.
    """
    if not isinstance(prefix, str):
        raise ConfigError(f"prefix must be a str, not {type(prefix).__name__}")
    folder = prefix.strip("/")
    if not folder:
        return ""
    try:
        plain = name_of(folder) == folder and len(folder.encode()) < 900
    except InvalidKeyError:
        plain = False
    if not plain:
        raise ConfigError(
            f"the prefix {prefix!r:.80} cannot be kept by all servers: use names with single slashes "
            "between them, without control characters and backslashes, and not '.' or '..'"
        )
    return folder + "/"


def arguments_of_url(url: object, options: Mapping[str, Any]) -> dict[str, Any]:
    """Put what a URL says and further options together, as arguments of a `BucketStore`.

    Raises
    ------
    ConfigError
        The URL is none, has credentials in it, or says something other than the options.
    """
    found = _parse_url(url)
    for name in found.keys() & options.keys():
        if found[name] and options[name] != found[name]:
            raise ConfigError(f"{name!r} is given twice: in the URL and as an argument")
    for name in found.keys() & _OF_TEXT.keys():
        try:
            found[name] = _OF_TEXT[name](found[name])
        except (ValueError, KeyError):
            raise ConfigError(f"the value of {name!r} in the URL is not of its kind") from None
    return {**found, **options}


def _parse_url(url: object) -> dict[str, Any]:
    """Take a URL like ``s3://bucket/prefix?region=eu-west-1`` apart, into arguments.

    Raises
    ------
    ConfigError
        It is none, or has credentials in it. The message does not show the URL, for that reason.
    """
    if not isinstance(url, str) or not url.isprintable():
        raise ConfigError("a bucket's URL is a text like s3://bucket/prefix?region=eu-west-1")
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ConfigError(
            "this is no URL of a bucket: its form is s3://bucket/prefix?name=value&name=value"
        ) from None
    if parts.scheme not in _SERVICES or parts.fragment:
        raise ConfigError(f"a bucket's URL begins with s3://, gs:// or az://, not {parts.scheme!r}")
    found: dict[str, Any] = {
        "bucket_name": _bucket_of(parts),
        "prefix": unquote(parts.path).strip("/"),
        "service": _SERVICES[parts.scheme],
    }
    if parts.username is not None:  # abfs://container@account.dfs.core.windows.net
        account = (parts.hostname or "").partition(".")[0]
        found["obstore_options"] = {"account_name": account}
    for name, value in pairs:
        if name in _NOT_IN_URLS:
            raise ConfigError(
                f"{name!r} does not belong into a URL, which is shown in many places: give it as an "
                "argument, or use the environment or a profile"
            )
        if name in found and name != "prefix":
            raise ConfigError(f"the URL gives {name!r} twice")
        found[name] = value
    return found


def _bucket_of(parts: SplitResult) -> str:
    if parts.password is not None or (parts.username is not None and parts.scheme[:4] != "abfs"):
        raise ConfigError(
            "a bucket's URL takes no credentials before an @, since it is shown in many places: give "
            "s3_access_key and s3_secret_key as arguments, or use the environment or a profile"
        )
    return parts.username or parts.netloc
