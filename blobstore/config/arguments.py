"""What a constructor is given, checked before it is called; and the call itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blobstore.config.places import Place, did_you_mean
from blobstore.config.resolve import StoreClass
from blobstore.config.variables import redact
from blobstore.errors import BlobStoreError, ConfigError, InvalidInputError

ONE = ("store", "blob_backend")
"""Parameters that a single base fills: the first of these that there is."""
SEVERAL = ("children",)
"""Parameters that a list of bases fills."""

_WORDS = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip
_UNION = re.compile(r"\b(Optional|Union)\[([^\[\]]*)\]")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the constructor of a class takes.

    Attributes
    ----------
    store_class : StoreClass
    place : Place
        Where its arguments are given.
    base_place : Place
        Where its bases are given.
    """

    store_class: StoreClass
    place: Place
    base_place: Place

    @property
    def names(self) -> list[str]:
        """The parameters that can be given by name."""
        found = self.store_class.signature.parameters.values()
        return [p.name for p in found if p.kind not in _VARIADIC]

    def takes(self, name: str) -> bool:
        """Whether there is such a parameter."""
        kinds = {p.kind for p in self.store_class.signature.parameters.values()}
        return name in self.names or inspect.Parameter.VAR_KEYWORD in kinds

    def for_bases(self, candidates: Sequence[str], what: str) -> str:
        """The parameter that a base which names none fills.

        Raises
        ------
        ConfigError
            The class wraps no store, or only by other parameters.
        """
        for name in candidates:
            if name in self.names:
                return name
        if self.takes(candidates[0]):
            return candidates[0]
        others = f", or name the parameter: {', '.join(self.names)}" if self.names else ""
        raise self.base_place.error(
            f"{self.store_class.name} takes no {what} as a base: remove it{others}"
        )

    def unknown(self, name: str, place: Place, among: Iterable[str]) -> ConfigError:
        """What to raise about a parameter that there is not."""
        return place.error(
            f"{self.store_class.name} has no parameter {name!r}: {did_you_mean(name, among)}"
        )

    def check(self, bases: Collection[str], config: Collection[str]) -> None:
        """Refuse what does not fit, and what is missing.

        Raises
        ------
        ConfigError
        """
        for name in config:
            if name in bases:
                raise self.place.error(
                    f"{name!r} is given as a base already: remove one of the two"
                )
            if not self.takes(name):
                raise self.unknown(
                    name, self.place, [own for own in self.names if own not in bases]
                )
        for parameter in self.store_class.signature.parameters.values():
            given = parameter.name in bases or parameter.name in config
            if given or parameter.kind in _VARIADIC or parameter.default is not parameter.empty:
                continue
            what, place = ("parameter", self.place)
            if _is_base(parameter):
                what, place = ("store", self.base_place)
            raise place.error(
                f"{self.store_class.name} needs the {what} {parameter.name!r}, which is missing"
            )

    def convert(self, name: str, text: str, place: Place) -> Any:
        """Make of a text what the parameter's annotation asks for.

        Raises
        ------
        ConfigError
            The text cannot be that. It is not shown, since it may be a secret.
        """
        parameter = self.store_class.signature.parameters.get(name)
        kinds = set() if parameter is None else _annotated(parameter.annotation)
        if "bool" in kinds and text.casefold() in _WORDS:
            return _WORDS[text.casefold()]
        if not text and "None" in kinds and "str" not in kinds:
            return None
        wanted = [kind for kind in ("int", "float", "Path", "bool") if kind in kinds]
        if not wanted or "str" in kinds:
            return text
        for kind in wanted:
            try:
                return _CONVERTERS[kind](text)
            except (ValueError, KeyError):
                continue
        raise place.error(
            f"{self.store_class.name} needs {_A[wanted[-1]]} for {name!r}, which the text given is not"
        )


def construct(
    make: Callable[..., Any],
    arguments: Mapping[str, Any],
    place: Place,
    secrets: Mapping[str, str],
    fields: Mapping[str, Place] | None = None,
) -> Any:
    """Call a constructor; what it says about its arguments is said with the place.

    Parameters
    ----------
    make : callable
    arguments : mapping
    place : Place
    secrets : mapping of str to str
        What to show -> in place of which text; see `redact`.
    fields : mapping of str to Place, optional
        Where each argument was given: an error about one of them names that place.

    Raises
    ------
    ConfigError
        An argument is wrong.
    BlobStoreError
        What else went wrong, with a note of the place.
    """
    problem: Exception
    try:
        return make(**arguments)
    except InvalidInputError as exc:
        problem = exc
    except BlobStoreError as exc:
        exc.add_note(f"while building {place}")
        raise
    except (TypeError, ValueError) as exc:
        problem = exc
    shown = redact(str(problem), secrets)
    # Raised out here, and without a cause that would show what is left out here.
    at = _meant(str(problem), arguments, fields or {}) or place
    raise at.error(shown) from (problem if shown == str(problem) else None)


def _meant(message: str, arguments: Mapping[str, Any], fields: Mapping[str, Place]) -> Place | None:
    """Where the argument was given that a message speaks of first, by its name or as it looks."""
    found = [
        (match.start(), place)
        for name, place in fields.items()
        for words in (name, _look(arguments[name]))
        if words and (match := re.search(rf"(?<!\w){re.escape(words)}(?!\w)", message))
    ]
    return min(found, key=lambda each: each[0])[1] if found else None


def _look(argument: object) -> str:
    """How a message shows an argument; "" for one that may look like something else there."""
    return "" if argument is None or isinstance(argument, int | float) else repr(argument)


_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "Path": Path,
    "bool": lambda text: _WORDS[text.casefold()],
}
_A = {"int": "an integer", "float": "a number", "Path": "a path", "bool": "true or false"}


def _annotated(annotation: object) -> set[str]:
    """The types that an annotation names, without importing what it needs to be evaluated."""
    if annotation is inspect.Parameter.empty:
        return set()
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = _UNION.sub(_with_bars, text)
    return {kind.strip().rpartition(".")[2] for kind in text.split("|")}


def _with_bars(union: re.Match[str]) -> str:
    members = union[2].replace(",", "|")
    return f"{members}|None" if union[1] == "Optional" else members


def _is_base(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return parameter.name in (*ONE, *SEVERAL) or "ObjectStore" in text
