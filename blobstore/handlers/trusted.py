"""Looking up what a reader trusts by its name: the thing itself, and no alias of something else.

What a trusted module merely imported (a helper out of `subprocess`, say) is found under a name of that
module, too. So everything on the way to a name is asked for the name that it has where it was defined.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

from blobstore.errors import UntrustedTypeError
from blobstore.trust import Trust, is_closed


def find_trusted(module: str, path: str, trust: Trust) -> Any:
    """What ``module.path`` stands for, if the reader trusts that name and what is behind it.

    Raises
    ------
    UntrustedTypeError
        It does not.
    ImportError, AttributeError
        There is no such thing here.

    Examples
    --------
    >>> from blobstore.trust import TypePatterns
    >>> trust = Trust(types=TypePatterns(["json.*"]))
    >>> find_trusted("json.decoder", "JSONDecoder", trust)
    <class 'json.decoder.JSONDecoder'>
    >>> find_trusted("json.tool", "argparse.ArgumentParser", trust)
    Traceback (most recent call last):
    ...
    blobstore.errors.UntrustedTypeError: it needs json.tool.argparse.ArgumentParser, whose code would run, and its entry is not trusted: it was read without asking who wrote it. If you know who wrote it: get their signing key (BLOBSTORE_SIGNING_KEY, or a line in the key file); or name the type, trusted_types=['json.tool.argparse.ArgumentParser']; or open the store with pickle='allow', which runs whatever is in it
    """
    full = f"{module}.{path}"
    trust.require(full)
    target: Any = importlib.import_module(module)
    for word in path.split("."):
        target = getattr(target, word)
        real = name_of(target)
        if real is None or not (trust.allows(real) or real == full) or is_closed(real):
            raise UntrustedTypeError(trust.refusal(real or full))
    return target


def find_by_full_name(name: str, trust: Trust) -> Any:
    """As `find_trusted`, where nobody says at which dot the module ends: as late as can be.

    Raises
    ------
    UntrustedTypeError, ImportError, AttributeError
        As there.
    """
    trust.require(name)
    module, *words = name.split(".")
    importlib.import_module(module)
    while len(words) > 1:
        try:
            importlib.import_module(f"{module}.{words[0]}")
        except ImportError:
            break
        module = f"{module}.{words.pop(0)}"
    return find_trusted(module, ".".join(words), trust)


def name_of(target: Any) -> str | None:
    """The name that a class or function has where it was defined; None for what has none.

    Examples
    --------
    >>> import os.path, json.decoder
    >>> name_of(json.decoder.JSONDecoder), name_of(os.path)
    ('json.decoder.JSONDecoder', None)
    """
    if isinstance(target, types.ModuleType):
        return None
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    return f"{module}.{name}"
