"""Patterns of ``like``: ``%`` is any run of characters, ``_`` is one, backslash takes the next."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable

from blobstore.errors import InvalidQueryError


class Wild(enum.Enum):
    """What stands for characters that are not given."""

    ANY = "%"
    ONE = "_"


Piece = str | Wild


def split_pattern(pattern: str) -> tuple[Piece, ...]:
    r"""Take a pattern apart into literal text and wildcards.

    Raises
    ------
    InvalidQueryError
        It ends in a backslash that has nothing to take.

    Examples
    --------
    >>> split_pattern(r"run\_%")
    ('run_', <Wild.ANY: '%'>)
    """
    pieces: list[Piece] = []
    text: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character in "%_":
            if text:
                pieces.append("".join(text))
                text = []
            pieces.append(Wild(character))
            continue
        if character == "\\":
            character = next(characters, "")  # noqa: PLW2901 - the one it takes
            if not character:
                raise InvalidQueryError(
                    f"the pattern {pattern!r} ends in a single backslash, which has to have a "
                    "character to take: write two for a backslash itself"
                )
        text.append(character)
    if text:
        pieces.append("".join(text))
    return tuple(pieces)


def pattern_test(pattern: str) -> Callable[[str], bool]:
    """Make the function that tells whether a text has the form of a pattern.

    What stands between two ``%`` has a fixed length, and the leftmost place for it is as good as
    any: so one pass decides, and no pattern makes it try again and again.

    Examples
    --------
    >>> test = pattern_test("conv_/%/bias")
    >>> test("conv1/3/bias"), test("conv12/3/bias"), test("conv1/bias")
    (True, False, False)
    """
    runs = _runs(split_pattern(pattern))
    if len(runs) == 1:
        whole = re.compile(runs[0][0], re.DOTALL).fullmatch
        return lambda text: whole(text) is not None
    (first, start), *middle, (last, tail) = runs
    begins = re.compile(first, re.DOTALL).match
    finders = [re.compile(run, re.DOTALL).search for run, length in middle if length]
    ends = re.compile(last, re.DOTALL).fullmatch

    def test(text: str) -> bool:
        stop = len(text) - tail
        if stop < start or not begins(text) or not ends(text, stop):
            return False
        place = start
        for find in finders:
            found = find(text, place, stop)
            if found is None:
                return False
            place = found.end()
        return True

    return test


def _runs(pieces: tuple[Piece, ...]) -> list[tuple[str, int]]:
    """What stands before, between and after each ``%``: a regular expression and its length."""
    runs = [("", 0)]
    for piece in pieces:
        expression, length = runs[-1]
        if piece is Wild.ANY:
            runs.append(("", 0))
        elif piece is Wild.ONE:
            runs[-1] = (expression + ".", length + 1)
        else:
            runs[-1] = (expression + re.escape(piece), length + len(piece))
    return runs
