"""open_store: one call for a path, a URL, a YAML file or a mapping."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blobstore.backends.blob.urls import LOCAL, StoreUrl, known_schemes
from blobstore.config.arguments import Parameters, construct
from blobstore.config.factory import StoreFactory
from blobstore.config.places import Place, did_you_mean
from blobstore.config.resolve import NOTHING, StoreClass, store_class
from blobstore.errors import ConfigError, from_os_error

_YAML = "YAML"
_YAML_SUFFIXES = (".yaml", ".yml")
_ONLY = "store"
_TYPE_OF_SUFFIX = {
    ".zip": "ZipStore",
    ".db": "SqliteStore",
    ".sqlite": "SqliteStore",
    ".sqlite3": "SqliteStore",
}
_TYPE_OF_HEAD = {
    b"SQLite format 3\0": "SqliteStore",
    b"PK\x03\x04": "ZipStore",
    b"PK\x05\x06": "ZipStore",
}


def open_store(
    what: str | os.PathLike[str] | Mapping[str, Any],
    *,
    allow_import: bool | str | Iterable[str] = False,
    **options: Any,
) -> Any:
    """Open the store that a path, a URL, a YAML file or a mapping stands for.

    ==============================================  ============================================
    a path that ends in ``.yaml`` or ``.yml``       its main store, by `StoreFactory`
    a mapping with `stores` and `main`              the same
    a mapping with `type`                           that one store
    ``memory://``                                   `DictStore`
    ``file:///data/objects``                        `FilesystemStore`
    ``sqlite:///data/objects.db``                   `SqliteStore`
    ``zip:///data/objects.zip``                     `ZipStore`
    ``s3://bucket/prefix``, ``gs://``, ``az://``    `BucketStore`; credentials are never in the URL
    a URL of another scheme                         the class of that name that a package offers
                                                    or that was registered: its ``from_url(url,
                                                    **options)``
    a folder with a BlobStore in it                 `BlobStore`
    a file that is a zip or an SQLite database, or  `ZipStore`, `SqliteStore`
    a new path that ends like one (``.zip``,
    ``.db``, ``.sqlite``, ``.sqlite3``)
    another folder, or a new path                   `FilesystemStore`
    ==============================================  ============================================

    In a URL the path is absolute; one that starts with ``/./`` or ``/../``, as in
    ``sqlite:///./objects.db``, starts at the working directory. ``%20`` and the like are decoded.

    Parameters
    ----------
    what : path, URL or mapping
    allow_import : bool or collection of str
        See `StoreFactory`.
    **options
        For the constructor. In a URL they may stand in the query, ``?fsync=true``, and are then
        converted as the constructor's annotations say.

    Returns
    -------
    ObjectStore, AsyncObjectStore or BlobStore

    Raises
    ------
    ConfigError
        There is nothing of that kind, or an option is wrong.
    BlobStoreError
        The store cannot be opened.

    Examples
    --------
    >>> open_store("memory://")
    DictStore()
    >>> open_store({"type": "IdentityStore", "base": {"type": "DictStore"}})
    IdentityStore(DictStore())
    """
    if isinstance(what, Mapping):
        _no_options(options, "a mapping")
        single = "type" in what and "stores" not in what
        described = {"stores": {_ONLY: what}, "main": _ONLY} if single else what
        return StoreFactory(described, allow_import=allow_import).build()
    given: Any = what
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(
            f"a store is opened from a path, a URL or a mapping, not from {what!r:.80}"
        )
    if isinstance(what, str) and "://" in text:
        return _open_url(text, options)
    return _open_path(text, options, allow_import)


def _open_path(text: str, options: Mapping[str, Any], allow_import: Any) -> Any:
    place = Place(f"open_store({text!r})")
    try:
        path = Path(text).expanduser()
        kind = _type_at(path, place)
    except RuntimeError as exc:
        raise place.error("nobody's home folder is known by that name") from exc
    except OSError as exc:
        raise from_os_error(exc, f"looking at {text}") from exc
    if kind == _YAML:
        _no_options(options, "a YAML file")
        return StoreFactory(path, allow_import=allow_import).build()
    found = store_class(kind, NOTHING, place)
    return _construct(found, place, [path], options, {})


def _no_options(options: Mapping[str, Any], what: str) -> None:
    if options:
        raise ConfigError(
            f"{what} says itself how its stores are made: give {', '.join(map(repr, options))} there, "
            "under 'config'"
        )


def _type_at(path: Path, place: Place) -> str:
    """The type of the store that is, or would be, at a path."""
    from blobstore.folder import DESCRIPTION

    suffix = path.suffix.lower()
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        return "BlobStore" if (path / DESCRIPTION).is_file() else "FilesystemStore"
    if suffix in _YAML_SUFFIXES:
        return _YAML
    if not mode:
        return _TYPE_OF_SUFFIX.get(suffix, "FilesystemStore")
    if stat.S_ISREG(mode):
        with path.open("rb") as file:
            head = file.read(16)
        for start, kind in _TYPE_OF_HEAD.items():
            if head.startswith(start):
                return kind
        if suffix in _TYPE_OF_SUFFIX:
            return _TYPE_OF_SUFFIX[suffix]
    raise place.error(
        "this file is neither a zip, nor an SQLite database, nor a .yaml file: give the folder or "
        "file of a store, or a new path"
    )


def _mode(path: Path) -> int:
    """What kind of file there is; 0 where there is none."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _open_url(text: str, options: Mapping[str, Any]) -> Any:
    url = StoreUrl.of(text, "open_store({!r})")
    place = Place(url.place)
    if url.scheme in LOCAL:
        found = store_class(LOCAL[url.scheme].rpartition(":")[2], NOTHING, place)
        return _construct(found, place, url.arguments(), options, url.query())
    known = [*known_schemes()]
    if url.scheme not in known:
        raise place.error(
            f"no store is known for {url.scheme!r} URLs: {did_you_mean(url.scheme, known)}"
        )
    return url.open(options, lambda make: construct(make, {}, place, url.secrets))


def _construct(
    found: StoreClass,
    place: Place,
    paths: list[Path],
    options: Mapping[str, Any],
    query: Mapping[str, str],
) -> Any:
    parameters = Parameters(found, place, place)
    arguments: dict[str, Any] = dict(zip(parameters.names, paths, strict=False))
    for name in _twice(arguments, options, query):
        raise place.error(f"the option {name!r} is given twice")
    parameters.check(arguments, [*options, *query])
    converted = {name: parameters.convert(name, text, place) for name, text in query.items()}
    secrets = {f"?{name}": text for name, text in query.items()}
    return construct(found.cls, {**arguments, **options, **converted}, place, secrets)


def _twice(*given: Mapping[str, Any]) -> Iterator[str]:
    seen: set[str] = set()
    for names in given:
        yield from seen & names.keys()
        seen |= names.keys()
