"""Where in a configuration something is wrong, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from blobstore.errors import ConfigError

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a configuration, for messages.

    Attributes
    ----------
    source : str
        The file, or what else was given.
    store : str
        The name of the store; "" outside of any.
    field : str
        "config.level"; "" for the store as a whole.

    Examples
    --------
    >>> str(Place("stores.yaml", "packed").entry("config").entry("level"))
    "stores.yaml, store 'packed', config.level"
    """

    source: str
    store: str = ""
    field: str = ""

    def entry(self, name: str) -> Place:
        """An entry of the mapping that is here."""
        return self.inside(f".{name}" if self.field else name)

    def inside(self, step: str) -> Place:
        """One step further down: ".name", "[0]"."""
        return replace(self, field=f"{self.field}{step}")

    @property
    def name(self) -> str:
        """The place inside its source."""
        return ", ".join(part for part in (self.store, self.field) if part)

    def error(self, problem: str) -> ConfigError:
        """An error that names this place."""
        return ConfigError(f"{self}: {problem}")

    def __str__(self) -> str:
        store = f"store {self.store!r}" if self.store else ""
        return ", ".join(part for part in (self.source, store, self.field) if part)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """What to try instead of an unknown name: the closest one, or those that there are.

    Examples
    --------
    >>> did_you_mean("GzpStore", ["GzipStore", "DictStore"])
    "did you mean 'GzipStore'?"
    >>> did_you_mean("x", ["b", "a"])
    "known are 'b', 'a'"
    """
    names = list(known)
    folded = {known_name.casefold(): known_name for known_name in reversed(names)}
    close = difflib.get_close_matches(str(name).casefold(), folded, n=1)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    if not names:
        return "there are none"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"known are {', '.join(map(repr, names[:_SHOWN]))}{more}"
