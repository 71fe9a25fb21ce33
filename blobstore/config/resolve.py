"""The class that a `type` names."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from blobstore.config.places import Place, did_you_mean
from blobstore.errors import ConfigError
from blobstore.protocols import ObjectStore
from blobstore.registry import load, object_stores, store_types

_COMPOSED = {"BlobStore": "blobstore.store:BlobStore"}
_ASYNC = "Async"


@dataclass(frozen=True, slots=True)
class StoreClass:
    """A class, and the parameters that its constructor takes.

    Attributes
    ----------
    cls : type
        A subclass of `ObjectStore`, of the async `AsyncObjectStore`, or of `BlobStore`.
    signature : inspect.Signature
    """

    cls: type[Any]
    signature: inspect.Signature

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self.cls.__name__


@dataclass(frozen=True, slots=True)
class Imports:
    """Which dotted paths the caller lets a description name.

    Attributes
    ----------
    everything : bool
    prefixes : tuple of str
        Packages and modules, with all that is below them.
    """

    everything: bool
    prefixes: tuple[str, ...]

    @classmethod
    def of(cls, allow_import: object) -> Imports:
        """Understand the parameter `allow_import`.

        Raises
        ------
        ConfigError
            It is neither a bool nor names of modules.
        """
        if isinstance(allow_import, bool):
            return cls(allow_import, ())
        names = (allow_import,) if isinstance(allow_import, str) else allow_import
        if isinstance(names, list | tuple | set | frozenset) and all(
            isinstance(name, str) and name for name in names
        ):
            return cls(False, tuple(names))
        raise ConfigError(
            f"allow_import must be True, False or names of modules, not {allow_import!r}"
        )

    def allows(self, module: str) -> bool:
        """Whether a module may be imported."""
        return self.everything or any(f"{module}.".startswith(f"{p}.") for p in self.prefixes)


NOTHING = Imports(False, ())


def store_class(name: str, imports: Imports, place: Place) -> StoreClass:
    """Find the class that a description means.

    Raises
    ------
    ConfigError
        There is none of that name, it is no store, or it would have to be imported from a dotted
        path that the caller did not allow.
    MissingDependencyError
        It needs a library that is not installed.
    """
    try:
        found = _found(name)
    except ConfigError as exc:  # two packages offer it, or what one offers is no store
        raise place.error(exc.message) from exc
    if found is not None:
        return found
    if "." in name:
        return _described(_imported(name, imports, place))
    raise place.error(
        f"there is no store type {name!r} ({did_you_mean(name, _known())}); a class of your own "
        "needs @register_store, or a dotted path and allow_import=True"
    )


def _found(name: str) -> StoreClass | None:
    if name in _COMPOSED:
        return _described(load(_COMPOSED[name]))
    if (cls := _registered(name)) is not None:
        return _described(cls)
    if name.startswith(_ASYNC) and (cls := _registered(name.removeprefix(_ASYNC))) is not None:
        from blobstore import aio

        return _described(aio.async_class(cls))
    return None


def _registered(name: str) -> type[ObjectStore] | None:
    if (found := store_types.find(name)) is not None:
        return found
    # "memory" and the like are names of blob backends; here their classes have names.
    return object_stores.get(name) if name in object_stores.third_party() else None


def _known() -> Iterator[str]:
    sync = [*dict.fromkeys((*store_types.names(), *object_stores.third_party()))]
    return iter([*_COMPOSED, *sync, *(f"{_ASYNC}{name}" for name in sync)])


def _imported(path: str, imports: Imports, place: Place) -> type[Any]:
    module, _, name = path.rpartition(".")
    if not imports.allows(module):
        raise place.error(
            f"{path!r} would import the module {module!r}, which the caller did not allow: give "
            f"allow_import=True, or allow_import=({module!r},), if you trust {place.source}"
        )
    if not all(path.split(".")):
        raise place.error(f"{path!r} is no dotted path of a class")
    try:
        load(f"{module}:__name__")
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if not f"{module}.".startswith(f"{missing}."):
            raise
        raise place.error(f"there is no module {missing!r} to import {path!r} from") from exc
    cls = getattr(sys.modules[module], name, None)
    if cls is None:
        raise place.error(f"the module {module!r} has no class {name!r}")
    if not _is_store(cls):
        raise place.error(f"{path!r} is no subclass of ObjectStore")
    found: type[Any] = cls
    return found


def _is_store(cls: object) -> bool:
    from blobstore.store import BlobStore

    if not isinstance(cls, type) or issubclass(cls, ObjectStore | BlobStore):
        return isinstance(cls, type)
    from blobstore.aio import AsyncObjectStore

    return issubclass(cls, AsyncObjectStore)


def _described(cls: type[Any]) -> StoreClass:
    return StoreClass(cls, _signature(cls))


def _signature(cls: type[Any]) -> inspect.Signature:
    try:
        return inspect.signature(cls)
    except ValueError:  # a constructor in C that does not say what it takes
        return inspect.Signature([inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)])
