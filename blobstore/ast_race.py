"""A fault of CPython in programs with threads, and the way around it.

Up to Python 3.12, `ast.parse` counts how deep it is in one counter for all threads, and now and then
finds a wrong number at the end (https://github.com/python/cpython/issues/106905). NumPy parses the
head of every NPY file that way, so a file that is whole would be taken for damaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_TRIES = 100
_MESSAGE = "AST constructor recursion depth mismatch"


def parsing_again(read: Callable[[], T]) -> T:
    """Call `read`, and call it again where the interpreter lost count.

    Parameters
    ----------
    read : callable
        Without arguments; starts from the beginning each time.

    Returns
    -------
    object
        What `read` returns. What it raises otherwise is raised.

    Examples
    --------
    >>> import ast
    >>> parsing_again(lambda: ast.literal_eval("{'shape': (3,)}"))
    {'shape': (3,)}
    """
    for _ in range(_TRIES - 1):
        try:
            return read()
        except SystemError as exc:
            if _MESSAGE not in str(exc):
                raise
    return read()
