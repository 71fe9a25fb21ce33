"""A description of stores, taken apart and checked; nothing is imported or built for it.

What comes out shares no container with what was given, so nothing that is done with it later can
change that, and the other way round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from blobstore.config.places import Place, did_you_mean
from blobstore.errors import ConfigError, from_os_error
from blobstore.registry import load

_FIELDS = ("type", "base", "config")
_MOST = 100_000
_DEEPEST = 100

Bases = Any
"""A tree: names and definitions, in lists and in mappings by parameter; None where there is none."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One store as it is described.

    Attributes
    ----------
    place : Place
        The store's name, and for one that is described in place of a name, where.
    type : str
    base : tree of str and Definition, or None
    config : dict
    """

    place: Place
    type: str
    base: Bases
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Description:
    """All stores of a file or mapping.

    Attributes
    ----------
    source : str
        What to call it in messages.
    stores : dict of str to Definition
    main : str
    """

    source: str
    stores: dict[str, Definition]
    main: str

    def find(self, name: object, place: Place) -> Definition:
        """The store of that name.

        Raises
        ------
        ConfigError
            There is none.
        """
        if not isinstance(name, str):  # not shown: it may be a description, with what is secret
            raise place.error(
                f"there is no store of that name under 'stores': it is {_kind(name)}, not a text"
            )
        found = self.stores.get(name)
        if found is None:
            raise place.error(
                f"there is no store {name!r} under 'stores': {did_you_mean(name, self.stores)}"
            )
        return found


def read_description(what: object) -> Description:
    """Read a description from a file, or take it from a mapping.

    Raises
    ------
    ConfigError
        It is none. The message names file, store and field.
    MissingDependencyError
        There is a file to read, and PyYAML is not installed.
    """
    if isinstance(what, Mapping):
        return _parse(what, Place("the mapping"))
    if not isinstance(what, str | os.PathLike) or not isinstance(os.fspath(what), str):
        raise ConfigError(f"a description of stores is a path or a mapping, not {what!r:.80}")
    place = Place(os.fspath(what))
    data = _read(Path(what), place)
    try:
        document = load("blobstore.config.yaml_document:parse_yaml")(data)
    except ConfigError as exc:
        raise place.error(exc.message) from exc
    return _parse(document, place)


def in_order(
    wanted: Iterable[Definition], bases_of: Callable[[Definition], Iterable[Definition]]
) -> list[Definition]:
    """The wanted definitions and all that they stand on, each after its bases.

    Raises
    ------
    ConfigError
        A store stands on itself; the message shows the chain.
    """
    known: dict[Place, Definition] = {}
    graph: dict[Place, list[Place]] = {}
    open_ends = list(wanted)
    while open_ends:
        definition = open_ends.pop()
        if definition.place in known:
            continue
        known[definition.place] = definition
        bases = list(bases_of(definition))
        graph[definition.place] = [base.place for base in bases]
        open_ends.extend(reversed(bases))
    try:
        return [known[place] for place in TopologicalSorter(graph).static_order()]
    except CycleError as exc:
        chain: list[Place] = exc.args[1][::-1]
        shown = " -> ".join(place.name for place in chain)
        raise chain[0].entry("base").error(f"the store stands on itself: {shown}") from exc


def leaves(tree: Bases) -> Iterator[str | Definition]:
    """The names and definitions in a tree of bases."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from leaves(value)
    elif tree is not None:
        yield tree


def map_leaves(tree: Bases, change: Callable[[Any, str], Any], step: str = "") -> Any:
    """The same tree with other leaves; `change` is told where each is: "[0]", ".main_store"."""
    if isinstance(tree, dict):
        return {name: map_leaves(tree[name], change, f"{step}.{name}") for name in tree}
    if isinstance(tree, list):
        return [map_leaves(item, change, f"{step}[{at}]") for at, item in enumerate(tree)]
    return None if tree is None else change(tree, step)


def _read(path: Path, place: Place) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise place.error("there is no such file") from exc
    except (IsADirectoryError, NotADirectoryError) as exc:
        raise place.error("this is no file") from exc
    except OSError as exc:
        raise from_os_error(exc, f"reading {path}") from exc
    except ValueError as exc:  # a NUL in the path
        raise ConfigError(f"{os.fspath(path)!r} is no path: {exc}") from exc


def _parse(document: object, place: Place) -> Description:
    if not isinstance(document, Mapping):
        raise place.error(
            f"a description of stores is a mapping with 'stores' and 'main', not {_kind(document)}"
        )
    for name in ("stores", "main"):
        if document.get(name) is None:
            raise place.entry(name).error(f"there is no {name!r}: {_WANTED[name]}")
    stores = document["stores"]
    if not isinstance(stores, Mapping) or not stores:
        raise place.entry("stores").error(
            f"this must be a mapping of names to stores: {_kind(stores)}"
        )
    copy = _Snapshot()
    found = {}
    for name, described in stores.items():
        _require_name(name, place.entry("stores"))
        found[str(name)] = _definition(described, Place(place.source, name), copy)
    description = Description(place.source, found, document["main"])
    description.find(description.main, place.entry("main"))
    return description


_WANTED = {
    "stores": "add a mapping of names to stores",
    "main": "add the name of the store that is built by default",
}


def _definition(described: object, place: Place, copy: _Snapshot, depth: int = 0) -> Definition:
    if not isinstance(described, Mapping):
        raise place.error(
            f"a store is described by a mapping with a 'type', not by {_kind(described)}"
        )
    for name in described:
        if name not in _FIELDS:
            raise place.entry(str(name)).error(
                f"there is no such entry: {did_you_mean(name, _FIELDS)} (what the constructor is to "
                "be given belongs under 'config')"
            )
    kind = described.get("type")
    if not isinstance(kind, str) or not kind:
        problem = "missing" if kind in (None, "") else f"{_kind(kind)}, not a text"
        raise place.entry("type").error(f"the name of the store's class is {problem}")
    config_place = place.entry("config")
    config = described.get("config")
    if config is not None and not isinstance(config, Mapping):
        raise config_place.error(
            f"this must be a mapping of parameters to values, not {_kind(config)}"
        )
    for name in config or {}:
        _require_name(name, config_place)
    return Definition(
        place,
        kind,
        _bases(described.get("base"), place.entry("base"), copy, depth) or None,
        {name: copy.of(value, config_place.entry(name)) for name, value in (config or {}).items()},
    )


def _bases(value: object, place: Place, copy: _Snapshot, depth: int) -> Bases:
    copy.count(place, depth)
    if value is None and place.field.endswith("base"):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return [
            _bases(item, place.inside(f"[{at}]"), copy, depth + 1) for at, item in enumerate(value)
        ]
    if isinstance(value, Mapping):
        if "type" in value:
            return _definition(value, place, copy, depth + 1)
        for name in value:
            if not isinstance(name, str):  # a parameter, or what a parameter calls its stores
                _require_name(name, place)
        return {
            name: _bases(item, place.entry(name), copy, depth + 1) for name, item in value.items()
        }
    raise place.error(
        "a base is the name of a store, a list of names, or a mapping of parameters to names, not "
        f"{_kind(value)}"
    )


class _Snapshot:
    """Copies plain containers, and bounds how much that can become."""

    def __init__(self) -> None:
        self._left = _MOST

    def of(self, value: Any, place: Place, depth: int = 0) -> Any:
        """A value of its own; what is no plain container is handed on as it is."""
        self.count(place, depth)
        if type(value) is dict:
            return {name: self.of(item, place, depth + 1) for name, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.of(item, place, depth + 1) for item in value)
        return value

    def count(self, place: Place, depth: int) -> None:
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            raise place.error(
                f"this is nested more than {_DEEPEST} deep, or all of it more than {_MOST:,} values"
            )


def _require_name(name: object, place: Place) -> None:
    if not isinstance(name, str) or not name:
        raise place.error(
            f"a name must be a text, not {name!r}: put it in quotes (YAML reads some bare words as "
            "numbers, dates or yes and no)"
        )


def _kind(value: object) -> str:
    """What a value is, without saying its content."""
    words = {
        dict: "a mapping",
        list: "a list",
        str: "a text",
        bool: "yes or no",
        type(None): "nothing",
    }
    return words.get(type(value), f"of the type {type(value).__name__}")
