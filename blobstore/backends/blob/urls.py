"""The object store that a URL stands for: its scheme names a class, which does the rest.

Whoever registers a class under the name of a scheme, or offers it as an entry point, takes part: it
needs a classmethod ``from_url(url, **options)``. Buckets have one; what lies in files is opened by
its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from blobstore.errors import ConfigError, InvalidInputError
from blobstore.protocols import ObjectStore
from blobstore.registry import load, object_stores, store_types

LOCAL = {
    "memory": "blobstore.backends.blob.memory:DictStore",
    "file": "blobstore.backends.blob.filesystem:FilesystemStore",
    "sqlite": "blobstore.backends.blob.sqlite:SqliteStore",
    "zip": "blobstore.backends.blob.zip:ZipStore",
}
"""Schemes of stores that are made of a path, or of nothing."""

BUCKETS = dict.fromkeys(("s3", "s3a", "gs", "az"), "blobstore.backends.blob.bucket:BucketStore")
"""Schemes of stores on servers whose credentials have no place in a URL."""

Make = Callable[..., object]


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A URL, taken apart.

    Attributes
    ----------
    text : str
        All of it, which may be secret.
    parts : SplitResult
    place : str
        Where it was given, for messages: without user, password and query.

    Examples
    --------
    >>> url = StoreUrl.of("s3://bucket/runs/7?region=x", "open_store({!r})")
    >>> url.scheme, url.place, url.query()
    ('s3', "open_store('s3://bucket/runs/7')", {'region': 'x'})
    """

    text: str
    parts: SplitResult
    place: str

    @classmethod
    def of(cls, text: str, where: str) -> StoreUrl:
        """Take a URL apart.

        Parameters
        ----------
        text : str
        where : str
            What messages begin with, the URL being left out: ``"open_store({!r})"``.

        Raises
        ------
        ConfigError
            It is no URL, or it holds credentials which belong elsewhere.
        """
        place = where.format(f"{text.partition('://')[0]}://...")
        if not text.isprintable():  # urlsplit would leave such characters out without a word
            raise ConfigError(
                f"{place}: a URL has no control characters: write %0A for a line break"
            )
        try:
            parts = urlsplit(text)
            host = parts.hostname or ""
        except ValueError:
            # What the library says may show a password, and so may its error.
            raise ConfigError(
                f"{place}: this is no URL: its host is none, or what is before it has to be %-encoded"
            ) from None
        url = cls(text, parts, where.format(f"{parts.scheme}://{host}{parts.path}"))
        if url.scheme in BUCKETS and "@" in parts.netloc:
            raise url.error(
                "credentials do not belong in a URL, which is logged and kept: set them in the "
                "environment (AWS_ACCESS_KEY_ID and the like), or give them to S3StorageConfig"
            )
        return url

    @property
    def scheme(self) -> str:
        """What is before the colon, in small letters."""
        return self.parts.scheme

    @property
    def secrets(self) -> dict[str, str]:
        """What must not be shown, by what to show in its place."""
        password = self.parts.password or ""
        return {
            "the URL": self.text,
            "the query": self.parts.query,
            **{f"?{name}": value for name, value in parse_qsl(self.parts.query)},
            "the password": password,
            "***": unquote(password),
        }

    def error(self, problem: str) -> ConfigError:
        """An error that says where the URL was given."""
        return ConfigError(f"{self.place}: {problem}")

    def path(self) -> str:
        """The file or folder that it names; "" where it names none."""
        if self.parts.fragment or self.text.endswith("#"):
            raise self.error("a # begins a fragment, which stores have not: write %23 for it")
        if self.parts.netloc not in ("", "localhost"):
            raise self.error(
                "there is no host in such a URL: write three slashes before an absolute path, as in "
                f"{self.scheme}:///data/objects"
            )
        try:
            path = unquote(self.parts.path, errors="strict")
        except UnicodeDecodeError as exc:
            raise self.error("the path is not UTF-8 when its %.. are decoded") from exc
        if f"{path}/".startswith(("/./", "/../")):
            return path[1:]
        return "/" + path.lstrip("/") if path.startswith("//") else path

    def query(self) -> dict[str, str]:
        """The options in the query."""
        try:
            pairs = parse_qsl(
                self.parts.query,
                keep_blank_values=True,
                strict_parsing=bool(self.parts.query),
                errors="strict",
            )
        except ValueError as exc:
            raise self.error("the query is not of the form ?name=value&name=value") from exc
        found: dict[str, str] = {}
        for name, value in pairs:
            if name in found:
                raise self.error(f"the option {name!r} is given twice")
            found[name] = value
        return found

    def arguments(self) -> list[Path]:
        """What the class of a local scheme is given first."""
        if self.scheme == "memory":
            if self.parts.netloc or self.parts.path or self.parts.fragment:
                raise self.error("nothing can follow memory://")
            return []
        path = self.path()
        if path in ("", "/"):
            raise self.error(f"there is no path: write {self.scheme}:///data/objects")
        return [Path(path)]

    def store_class(self) -> type[ObjectStore]:
        """The class that the scheme names.

        Raises
        ------
        ConfigError
            There is none, or it has no `from_url`.
        MissingDependencyError
            It needs a library that is not installed.
        """
        if self.scheme in LOCAL:
            local: type[ObjectStore] = load(LOCAL[self.scheme])
            return local
        offered = _offered()
        cls: type[ObjectStore]
        if self.scheme in offered:
            cls = offered[self.scheme].get(self.scheme)
        elif self.scheme in BUCKETS:
            cls = load(BUCKETS[self.scheme])
        else:
            known = ", ".join(map(repr, known_schemes()))
            raise self.error(f"no store is known for {self.scheme!r} URLs: known are {known}")
        if getattr(cls, "from_url", None) is None:
            raise self.error(f"{cls.__name__} has no classmethod from_url(url, **options)")
        return cls

    def open(self, options: Mapping[str, Any], call: Callable[[Make], object]) -> ObjectStore:
        """Let the class of a scheme that is not local make the store.

        Parameters
        ----------
        options : mapping
            For `from_url`.
        call : callable
            Calls what it is given, and says in its own words what went wrong.
        """
        cls: Any = self.store_class()
        made = call(partial(cls.from_url, self.text, **options))
        if not isinstance(made, ObjectStore):
            raise self.error(f"{cls.__name__}.from_url gave no object store, but {type(made)!r}")
        return made


def known_schemes() -> Iterator[str]:
    """Schemes that there is a class for."""
    yield from (*LOCAL, *BUCKETS, *_offered())


def open_object_url(text: str, where: str) -> ObjectStore:
    """Open the object store that a URL stands for, without any options.

    Raises
    ------
    ConfigError
        No class is known for it, or the class does not take it.
    BlobStoreError
        The store cannot be opened.

    Examples
    --------
    >>> open_object_url("memory://", "blob_backend={!r}")
    DictStore()
    """
    url = StoreUrl.of(text, where)
    if url.scheme not in LOCAL:
        return url.open({}, partial(_called, url))
    if url.query():
        raise url.error("options are not taken from this URL: give an instance of the store")
    make: Make = partial(url.store_class(), *url.arguments())
    made: Any = _called(url, make)
    store: ObjectStore = made
    return store


def _called(url: StoreUrl, make: Make) -> object:
    try:
        return make()
    except (InvalidInputError, TypeError, ValueError) as exc:
        # Our own class shows nothing of what is secret; others may, and cannot be asked.
        ours = url.scheme in BUCKETS and url.scheme not in _offered()
        if ours or not any(url.secrets[name] for name in ("the password", "the query")):
            raise url.error(str(exc)) from exc
        problem = type(exc).__name__
    # Raised out here, so that what may show a password is no part of it.
    raise url.error(f"the class of this URL raised {problem}; what it says may be secret")


def _offered() -> dict[str, Any]:
    """Where third parties offer a class, by what may be a scheme."""
    return {
        name: registry
        for registry in (object_stores, store_types)
        for name in registry.third_party()
    }
