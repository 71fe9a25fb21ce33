"""StoreFactory: from a description to the stores."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from blobstore.config import variables
from blobstore.config.arguments import ONE, SEVERAL, Parameters, construct
from blobstore.config.description import (
    Bases,
    Definition,
    Description,
    in_order,
    leaves,
    map_leaves,
    read_description,
)
from blobstore.config.places import Place
from blobstore.config.resolve import Imports, store_class
from blobstore.errors import BlobStoreError, ConfigError

logger = logging.getLogger(__name__)


class StoreFactory:
    """Builds stores from a YAML file, or from a mapping of the same form.

    What the form is, `blobstore.config` says. The description is read and checked once; each
    `build` makes new stores from it, with the environment as it is then. May be shared by threads.

    Parameters
    ----------
    description : path or mapping
    allow_import : bool or collection of str
        Whether a `type` may be a dotted path, whose module is then imported: which runs code. Or
        the packages and modules that may be.

    Attributes
    ----------
    names : tuple of str
        The stores that are described.
    main : str
        The one that is built by default.

    Raises
    ------
    ConfigError
        There is no such file, it is no valid YAML, or it does not describe stores. The message
        names file, store and field.
    MissingDependencyError
        PyYAML is not installed, and there is a file to read.

    Examples
    --------
    >>> factory = StoreFactory({
    ...     "stores": {
    ...         "memory": {"type": "DictStore"},
    ...         "text": {"type": "IdentityStore", "base": "memory"},
    ...     },
    ...     "main": "text",
    ... })
    >>> factory.names, factory.build(), factory.build("memory")
    (('memory', 'text'), IdentityStore(DictStore()), DictStore())
    """

    def __init__(
        self,
        description: str | os.PathLike[str] | Mapping[str, Any],
        *,
        allow_import: bool | str | Iterable[str] = False,
    ) -> None:
        self._imports = Imports.of(allow_import)
        self._description = read_description(description)
        in_order(self._description.stores.values(), self._named_bases)

    @property
    def names(self) -> tuple[str, ...]:
        """The stores that are described, in their order."""
        return tuple(self._description.stores)

    @property
    def main(self) -> str:
        """The name of the store that is built by default."""
        return self._description.main

    def build(self, name: str | None = None) -> Any:
        """Build a store and all that it stands on; one that is named twice is made once.

        Everything is checked before the first one is made. If one cannot be made, those that were
        are closed.

        Parameters
        ----------
        name : str, optional
            By default `main`.

        Returns
        -------
        ObjectStore, AsyncObjectStore or BlobStore
            Closing it closes all that was built for it.

        Raises
        ------
        ConfigError
            The description is wrong. The message names file, store and field; it does not show
            values from the environment.
        BlobStoreError
            A store cannot be opened.
        """
        described = self._description
        wanted = described.find(self.main if name is None else name, Place(described.source))
        return _Build(described, self._imports, dict(os.environ)).build(wanted)

    def __repr__(self) -> str:
        return f"StoreFactory({self._description.source!r}, main={self.main!r})"

    def _named_bases(self, definition: Definition) -> Iterator[Definition]:
        """The bases that are known before variables are."""
        for leaf in leaves(definition.base):
            if isinstance(leaf, Definition):
                yield leaf
            elif "${" not in leaf:
                yield self._description.find(leaf, definition.place.entry("base"))


@dataclass(frozen=True, slots=True)
class _Step:
    """A store that is about to be made: all is known but the stores beneath."""

    place: Place
    make: type[Any]
    bases: dict[str, Bases]
    config: dict[str, Any]
    fields: dict[str, Place]


class _Build:
    """One build: variables, classes and parameters first, then the stores, the lowest first."""

    def __init__(
        self, description: Description, imports: Imports, environ: Mapping[str, str]
    ) -> None:
        self._description = description
        self._imports = imports
        self._environ = environ
        self._bases: dict[Place, Bases] = {}
        self._secrets: dict[str, str] = {}

    def build(self, wanted: Definition) -> Any:
        order = in_order([wanted], self._bases_of)
        steps = [self._plan(definition) for definition in order]
        made: dict[Place, Any] = {}
        try:
            for step in steps:
                made[step.place] = self._make(step, made)
        except BaseException:
            _close(reversed(made.values()))
            raise
        return made[wanted.place]

    def _bases_of(self, definition: Definition) -> Iterator[Definition]:
        def resolve(leaf: str | Definition, step: str) -> Definition:
            if isinstance(leaf, Definition):
                return leaf
            place = definition.place.entry(f"base{step}")
            found = self._description.stores.get(self._fill(leaf, place))
            if found is None:  # what a variable holds may be a secret: it is not shown
                raise place.error(f"{leaf!r} does not come to the name of a store under 'stores'")
            return found

        tree = self._bases[definition.place] = map_leaves(definition.base, resolve)
        return leaves(tree)  # type: ignore[return-value]

    def _plan(self, definition: Definition) -> _Step:
        place = definition.place
        found = store_class(definition.type, self._imports, place.entry("type"))
        parameters = Parameters(found, place.entry("config"), place.entry("base"))
        bases = _by_parameter(self._bases[place], parameters)
        parameters.check(bases, definition.config)
        config = {
            name: self._value(value, name, parameters) for name, value in definition.config.items()
        }
        fields = {name: parameters.place.entry(name) for name in config}
        for name in bases:
            by_name = isinstance(definition.base, dict)
            fields[name] = place.entry("base").entry(name) if by_name else place.entry("base")
            # What takes a store over only when told to is told to: nobody else could close it.
            if f"close_{name}" in parameters.names:
                config.setdefault(f"close_{name}", True)
        return _Step(place, found.cls, bases, config, fields)

    def _value(self, value: Any, name: str, parameters: Parameters) -> Any:
        place = parameters.place.entry(name)
        filled = self._fill_all(value, place)
        if isinstance(value, str) and variables.has_variables(value):
            return parameters.convert(name, filled, place)
        return filled

    def _fill(self, text: str, place: Place) -> str:
        try:
            return variables.render(variables.parse(text), self._environ, self._secrets)
        except ConfigError as exc:
            raise place.error(exc.message) from exc

    def _fill_all(self, value: Any, place: Place) -> Any:
        """A copy of a nested value, with its variables filled in."""
        if isinstance(value, str):
            return self._fill(value, place)
        if type(value) is dict:
            return {
                name: self._fill_all(item, place.entry(str(name))) for name, item in value.items()
            }
        if type(value) in (list, tuple):
            return type(value)(
                self._fill_all(item, place.inside(f"[{at}]")) for at, item in enumerate(value)
            )
        return value

    def _make(self, step: _Step, made: Mapping[Place, Any]) -> Any:
        beneath = map_leaves(step.bases, lambda base, _: made[base.place])
        arguments = {**beneath, **step.config}
        return construct(step.make, arguments, step.place, self._secrets, step.fields)


def _by_parameter(bases: Bases, parameters: Parameters) -> dict[str, Bases]:
    """Which parameter each base fills."""
    if bases is None:
        return {}
    if isinstance(bases, Definition):
        return {parameters.for_bases(ONE, "store"): bases}
    if isinstance(bases, list):
        return {parameters.for_bases(SEVERAL, "list of stores"): bases}
    for name in bases:
        if not parameters.takes(name):
            raise parameters.unknown(name, parameters.base_place, parameters.names)
    return dict(bases)


def _close(stores: Iterable[Any]) -> None:
    """Close what was made before something else could not be."""
    for store in stores:
        try:
            if inspect.iscoroutinefunction(store.close):
                _close_async(store)
            else:
                store.close()
        except (BlobStoreError, OSError) as exc:  # the reason for closing matters more
            logger.warning("closing %r failed: %s", store, exc)


def _close_async(store: Any) -> None:
    from blobstore.aio import AsyncFace, to_sync

    if isinstance(store, AsyncFace):
        to_sync(store).close()
        return
    # In a thread, since the caller's may be running an event loop, which cannot be waited for.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(store.close())).result()
