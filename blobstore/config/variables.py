"""``${NAME}`` and ``${NAME:-default}`` in a text, as a shell has them.

A variable that is set counts, also if it is empty; with ``:-`` an empty one takes the default. A
default may hold variables and balanced braces. Before a brace ``$$`` stands for ``$``, so ``$${``
is a literal ``${``; anywhere else a dollar is a dollar.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from blobstore.errors import ConfigError

_TOKEN = re.compile(r"\$*\{|\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_DEEPEST = 20
_SHORT = 4


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable, and the template of its default."""

    name: str
    default: Template | None


Template = tuple[str | Variable, ...]


def parse(text: str) -> Template:
    """Take a text apart.

    Raises
    ------
    ConfigError
        A ``${`` begins no variable, or is not closed.

    Examples
    --------
    >>> parse("${HOME}/data")
    (Variable(name='HOME', default=None), '/data')
    >>> parse("costs $5, $${HOME}")
    ('costs $5, ${HOME}',)
    """
    pieces, _ = _parse(text, 0, depth=0)
    return pieces


def has_variables(text: str) -> bool:
    """Whether what a text comes to depends on the environment.

    Examples
    --------
    >>> has_variables("${HOME}/data"), has_variables("$${HOME}")
    (True, False)
    """
    return any(isinstance(piece, Variable) for piece in parse(text))


def render(template: Template, environ: Mapping[str, str], used: dict[str, str]) -> str:
    """Put the values in.

    Parameters
    ----------
    template : Template
    environ : mapping
    used : dict
        Is given the values that were taken from `environ`, by "${NAME}".

    Raises
    ------
    ConfigError
        A variable without a default is not set.

    Examples
    --------
    >>> render(parse("${A:-x}/${B}"), {"B": "b"}, {})
    'x/b'
    """
    found = []
    for piece in template:
        if isinstance(piece, str):
            found.append(piece)
            continue
        value = environ.get(piece.name)
        if piece.default is not None and not value:
            value = render(piece.default, environ, used)
        elif value is None:
            raise ConfigError(
                f"the environment variable {piece.name!r} is not set: set it, or give a default "
                f"with ${{{piece.name}:-default}}"
            )
        else:
            used[f"${{{piece.name}}}"] = value
        found.append(value)
    return "".join(found)


def redact(message: str, secrets: Mapping[str, str]) -> str:
    """Leave values out of a message that must not be shown.

    Parameters
    ----------
    message : str
    secrets : mapping of str to str
        What to show -> in place of which text.

    Examples
    --------
    >>> redact("no key 'hunter22'", {"${SECRET}": "hunter22"})
    "no key '${SECRET}'"
    """
    words = {
        text: shown
        for shown, value in secrets.items()
        for text in (value, repr(value)[1:-1])
        if text
    }
    if not words:
        return message
    pattern = "|".join(_occurrence(text) for text in sorted(words, key=len, reverse=True))
    return re.sub(pattern, lambda match: words[match[0]], message)


def _occurrence(text: str) -> str:
    pattern = re.escape(text)
    # A 9 is not to be found in 1999.
    return pattern if len(text) >= _SHORT else rf"(?<!\w){pattern}(?!\w)"


def _parse(text: str, at: int, *, depth: int) -> tuple[Template, int]:
    """Read up to the end, or up to the brace that closes a default."""
    if depth > _DEEPEST:
        raise ConfigError(f"defaults are nested more than {_DEEPEST} deep")
    pieces: list[str | Variable] = [""]
    open_braces = 0
    while (match := _TOKEN.search(text, at)) is not None:
        found, dollars = match[0], len(match[0]) - 1
        _append(pieces, text[at : match.start()])
        at = match.end()
        if found == "}":
            if depth and not open_braces:
                return _tidy(pieces), at
            open_braces -= 1
            _append(pieces, found)
        elif dollars % 2 == 0:
            open_braces += 1
            _append(pieces, "$" * (dollars // 2) + "{")
        else:
            _append(pieces, "$" * (dollars // 2))
            variable, at = _variable(text, at, depth)
            pieces.append(variable)
    if depth:
        raise ConfigError("a ${ is not closed: add the }, or write $${ for a literal ${")
    _append(pieces, text[at:])
    return _tidy(pieces), len(text)


def _variable(text: str, at: int, depth: int) -> tuple[Variable, int]:
    name = _NAME.match(text, at)
    if name is not None:
        rest = name.end()
        if text.startswith("}", rest):
            return Variable(name[0], None), rest + 1
        if text.startswith(":-", rest):
            default, end = _parse(text, rest + 2, depth=depth + 1)
            return Variable(name[0], default), end
    raise ConfigError(
        "a ${ begins no variable: write ${NAME} or ${NAME:-default}, or $${ for a literal ${"
    )


def _append(pieces: list[str | Variable], text: str) -> None:
    last = pieces[-1]
    if isinstance(last, str):
        pieces[-1] = last + text
    elif text:
        pieces.append(text)


def _tidy(pieces: list[str | Variable]) -> Template:
    return tuple(piece for piece in pieces if piece != "") or ("",)
