"""Credentials for a bucket: given, of the environment, of a profile, or lent by a client.

Each is something that obstore calls when it needs keys, so that they never get into its settings.
"""

from __future__ import annotations

import asyncio
import configparser
import inspect
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from blobstore.errors import ConfigError, MissingDependencyError

_RENEW = timedelta(minutes=5)
_NEEDS_BOTO3 = (
    "role_arn",
    "sso_session",
    "sso_start_url",
    "credential_process",
    "credential_source",
)


@dataclass(frozen=True)
class Keys:
    """An access key and its secret, which do not change."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    def __call__(self) -> dict[str, Any]:
        """What obstore wants."""
        return {
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
            "token": self.token,
            "expires_at": None,
        }


class BotoCredentials:
    """Credentials of botocore or aiobotocore, which may renew themselves.

    Parameters
    ----------
    credentials : botocore.credentials.Credentials
        Pickled as the keys that it has then.
    """

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> dict[str, Any]:
        """What obstore wants; asked for again where they may change."""
        changes = hasattr(self._credentials, "refresh_needed")
        expires = datetime.now(UTC) + _RENEW if changes else None
        return {**self.keys()(), "expires_at": expires}

    def keys(self) -> Keys:
        """The keys of now."""
        found = self._credentials.get_frozen_credentials()
        if inspect.iscoroutine(found):
            found = _run(found)
        return Keys(found.access_key, found.secret_key, found.token)

    def __reduce__(self) -> tuple[Any, ...]:
        keys = self.keys()
        return Keys, (keys.access_key, keys.secret_key, keys.token)


def _run(coroutine: Any) -> Any:
    """Wait for a coroutine in a thread of its own: there may be an event loop in this one."""
    results: list[Any] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(asyncio.run(coroutine))
        except Exception as exc:  # noqa: BLE001 - raised again in the thread that asked
            errors.append(exc)

    thread = threading.Thread(target=work, name="blobstore-credentials")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


@dataclass(frozen=True)
class Profile:
    """What the files of the AWS tools say under one name.

    Attributes
    ----------
    credentials : callable or None
    region : str or None
    endpoint : str or None
    """

    credentials: Keys | BotoCredentials | None = None
    region: str | None = None
    endpoint: str | None = None


def from_environment(environment: Mapping[str, str] = os.environ) -> Keys | None:
    """The keys that the environment has, if any."""
    access, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if not (access and secret):
        return None
    return Keys(access, secret, environment.get("AWS_SESSION_TOKEN") or None)


def endpoint_of_environment(environment: Mapping[str, str] = os.environ) -> str | None:
    """The endpoint that the environment has, if any."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        if environment.get(name):
            return environment[name]
    return None


def region_of_environment(environment: Mapping[str, str] = os.environ) -> str | None:
    """The region that the environment has, if any."""
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or None


def read_profile(name: str | None, keys: Keys | None = None) -> Profile:
    """Read a profile from ``~/.aws/credentials`` and ``~/.aws/config``.

    Parameters
    ----------
    name : str or None
        By default that of `AWS_PROFILE`, or "default" if there is one.
    keys : Keys, optional
        What to use in place of the credentials there.

    Raises
    ------
    ConfigError
        There is no profile of the name that was given, or it is broken.
    MissingDependencyError
        It names a role or a sign-on, which takes boto3 to be followed.
    """
    wanted = name or os.environ.get("AWS_PROFILE")
    config = _read("AWS_CONFIG_FILE", "config")
    found: dict[str, str] = {}
    for section, parser in (
        (f"profile {wanted}", config),
        (wanted or "default", config),
        (wanted or "default", _read("AWS_SHARED_CREDENTIALS_FILE", "credentials")),
    ):
        if parser.has_section(section):
            found.update(parser.items(section))
    if wanted and not found:
        raise ConfigError(
            f"there is no profile {wanted!r} in the files of the AWS tools: check profile_name and "
            "AWS_PROFILE"
        )
    endpoint = found.get("endpoint_url") or _s3_endpoint(config, found.get("services"))
    return Profile(keys or _credentials_of(found, wanted), found.get("region"), endpoint)


def _credentials_of(found: Mapping[str, str], wanted: str | None) -> Keys | BotoCredentials | None:
    access, secret = found.get("aws_access_key_id"), found.get("aws_secret_access_key")
    if access and secret:
        return Keys(access, secret, found.get("aws_session_token") or None)
    if not any(found.get(name) for name in _NEEDS_BOTO3):
        return None
    try:
        import boto3  # type: ignore[import-untyped]
    except ModuleNotFoundError as exc:
        raise MissingDependencyError(
            f"the profile {wanted or 'default'!r} names a role, a sign-on or a program for its keys: "
            "install boto3, which follows it, or give s3_access_key and s3_secret_key"
        ) from exc
    credentials = boto3.Session(profile_name=wanted).get_credentials()
    return None if credentials is None else BotoCredentials(credentials)


def _read(variable: str, name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(default_section="", strict=False)
    path = Path(os.environ.get(variable) or Path("~", ".aws", name)).expanduser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        # Not `from` it: what the library says shows lines of the file, and so secrets.
        raise ConfigError(f"{path} cannot be read as a file of the AWS tools: mend it") from None
    return parser


def _s3_endpoint(config: configparser.RawConfigParser, services: str | None) -> str | None:
    """The endpoint in the indented lines under ``s3 =`` of a section of services."""
    section = f"services {services}"
    if services is None or not config.has_option(section, "s3"):
        return None
    for line in config.get(section, "s3").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "endpoint_url":
            return value.strip() or None
    return None
