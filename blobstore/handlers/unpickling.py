"""Unpickling what nobody vouches for: plain data and a list of harmless types, and nothing else.

A pickle is a program that names functions and classes, calls them, and sets the state of what they
give. Here each of these steps is looked up in `rules`: what is not in there is refused before it is
imported. Three things would not be safe even with harmless names, and are refused besides:

- to call, or to set the state of, anything but what a rule is for (so no attribute of a class or
  function is ever replaced, and nothing is looked up inside of one);
- to refer to an array or dtype before its state was set, or to set that twice (NumPy takes the
  state on faith, and other objects would be left with memory that is no longer theirs);
- names with dots, extension codes and opcodes that `pickle` never writes.

Plain data runs on the C unpickler, after a look at its opcodes: those that merely hold data, and the
few types that are plain values. Anything else is read by the Python one, which shows each step.
"""

from __future__ import annotations

import _compat_pickle
import contextlib
import copyreg
import functools
import importlib
import io
import pickle
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, ClassVar, NamedTuple

from blobstore.errors import UntrustedTypeError
from blobstore.handlers.trusted import find_trusted, name_of
from blobstore.registry import load
from blobstore.trust import Trust

Buffers = Iterable[Any] | None
Resolve = Callable[[Any], Any]
_IMMUTABLE = 1 << 8
"""Py_TPFLAGS_IMMUTABLETYPE: a class whose attributes nobody can set."""


class Rule(NamedTuple):
    """What may be done with one name.

    Attributes
    ----------
    target : object
        What the name stands for.
    call : callable or None
        What is called in its place; None: it may not be called.
    new : callable or None
        What is called in place of ``target.__new__(target, ...)``.
    build : callable or None
        Sets the state of an instance of it: ``build(instance, state)``.
    once : bool
        Instances are handed on only when their state was set, which happens once.
    also : tuple of Rule
        For what `call` may answer with, if that is called in turn.
    """

    target: Any
    call: Callable[..., Any] | None = None
    new: Callable[..., Any] | None = None
    build: Callable[[Any, Any], None] | None = None
    once: bool = False
    also: tuple[Rule, ...] = ()


_BASES = (bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
"""Built-in types whose subclasses protocols 0 and 1 make of an instance of them."""


class _NotPlainError(Exception):
    """There is a name in it beyond those of plain values."""


# Opcodes of protocols 4 and 5 for plain data, with what follows each. Not among them: those that set
# a number of the memo, for which C makes room up to that number, and those that set a state.
_LENGTH_BYTE = b"|".join(re.escape(bytes([n])) + b".{%d}" % n for n in range(256))
_PLAIN_STEPS = re.compile(
    rb"(?:[N\x88\x89\]}()\x8ftaesu\x85-\x87\x90\x91\x93\x94RQ\x97\x98]"
    rb"|[Kh].|M.{2}|[Jj].{4}|[G\x95].{8}|[\x8cC\x8a](?:" + _LENGTH_BYTE + rb"))*+",
    re.DOTALL,
)
_LONG_STEPS = {b"X": 4, b"B": 4, b"\x8d": 8, b"\x8e": 8, b"\x96": 8}
"""Opcodes for long text and bytes -> how many bytes say how long."""


def _holds_plain_data(data: bytes | bytearray) -> bool:
    """Whether a pickle has only the opcodes that plain data needs, up to its end."""
    if data[:2] not in (b"\x80\x04", b"\x80\x05"):
        return False
    at = 2
    while at < len(data):
        steps = _PLAIN_STEPS.match(data, at)
        at = at if steps is None else steps.end()
        code = bytes(data[at : at + 1])
        if code == pickle.STOP:
            return True
        width = _LONG_STEPS.get(code)
        if width is None:
            return False
        at += 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "little")
    return False


def load_untrusted(
    data: bytes | bytearray,
    trust: Trust,
    *,
    buffers: Buffers = None,
    resolve: Resolve | None = None,
) -> Any:
    r"""Unpickle plain data, harmless types, and what `trust` names.

    Parameters
    ----------
    data : bytes-like
    trust : Trust
    buffers : iterable, optional
        Those that are kept apart from the pickle.
    resolve : callable, optional
        Gives the object that a persistent id stands for.

    Raises
    ------
    UntrustedTypeError
        It names something else, or does with it what no pickle has to. Nothing of it was run.

    Examples
    --------
    >>> load_untrusted(pickle.dumps({"a": [1, 2.5, "x"]}), Trust())
    {'a': [1, 2.5, 'x']}
    >>> load_untrusted(b"cos\nsystem\n(S'echo no'\ntR.", Trust(reason="it is not signed"))
    Traceback (most recent call last):
    ...
    blobstore.errors.UntrustedTypeError: it asks for os.system, of a module that can run any code, and its entry is not trusted: it is not signed. Nothing of it was run. Only pickle='allow' would load it, and run whatever is in it
    """
    kept = None if buffers is None else list(buffers)
    _forget_extensions()
    try:
        if _holds_plain_data(data):
            with contextlib.suppress(_NotPlainError):
                return _Plain(io.BytesIO(data), kept, resolve).load()
        return CarefulUnpickler(io.BytesIO(data), trust, kept, resolve).load()
    finally:
        _forget_extensions()


def _forget_extensions() -> None:
    """Let no code of `copyreg.add_extension` stand for what `find_class` did not see."""
    if copyreg._inverted_registry:  # type: ignore[attr-defined]  # noqa: SLF001 - the only way to know
        copyreg.clear_extension_cache()


class _Plain(pickle.Unpickler):
    """Knows the immutable types of `_PLAIN_TYPES`, which cannot be altered by a pickle."""

    def __init__(self, file: BinaryIO, buffers: Buffers, resolve: Resolve | None) -> None:
        super().__init__(file, buffers=buffers)
        self._resolve = resolve

    def find_class(self, module: str, name: str) -> Any:
        found = _plain_types().get((module, name))
        if found is None:
            raise _NotPlainError
        return found

    def persistent_load(self, pid: Any) -> Any:
        return _resolved(self._resolve, pid)


def _resolved(resolve: Resolve | None, pid: Any) -> Any:
    if resolve is None:
        raise pickle.UnpicklingError(f"it has the persistent id {pid!r}, which nothing stands for")
    return resolve(pid)


@functools.cache
def _plain_types() -> dict[tuple[str, str], Any]:
    """Types of the standard library that are plain values, if they are immutable here."""
    names = {
        "builtins": ("complex", "frozenset", "set"),
        "collections": ("OrderedDict",),
        "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
        "decimal": ("Decimal",),
    }
    found = {
        (module, name): getattr(importlib.import_module(module), name)
        for module, those in names.items()
        for name in those
    }
    return {key: cls for key, cls in found.items() if cls.__flags__ & _IMMUTABLE}


_Python: Any = pickle._Unpickler  # noqa: SLF001 - it shows each step


class CarefulUnpickler(_Python):  # type: ignore[misc]
    """The Python unpickler, with a look at each step that could do more than hold data."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_Python.dispatch)

    def __init__(
        self, file: BinaryIO, trust: Trust, buffers: Buffers, resolve: Resolve | None
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._trust = trust
        self._resolve = resolve
        self._names: dict[tuple[str, str], Any] = {}
        self._rules: dict[int, Rule] = {}  # by identity of the target, which _names keeps alive
        self._unfinished: dict[int, Any] = {}

    # --- names

    def find_class(self, module: str, name: str) -> Any:
        """The object of an allowed or trusted name; remembers what may be done with it."""
        key = (module, name)
        if key not in self._names:
            if module in ("copyreg", "copy_reg") and name == "_reconstructor":
                rule = Rule(_reconstructor, call=self._reconstruct)
            else:
                rule = find_rule(*key) or self._trusted(*key)
            self._names[key] = rule.target
            for known in (rule, *rule.also):
                self._rules[id(known.target)] = known
        return self._names[key]

    def _trusted(self, module: str, name: str) -> Rule:
        target = find_trusted(module, name, self._trust)
        new = functools.partial(_new, target) if isinstance(target, type) else None
        return Rule(target, call=target, new=new, build=_set_state)

    def _rule_of(self, target: Any) -> Rule | None:
        return self._rules.get(id(target))

    def _rule_of_instance(self, instance: Any) -> Rule | None:
        cls = type(instance)
        rule = self._rules.get(id(cls))
        for base in cls.__mro__[1:-1]:  # each dtype of NumPy has a class of its own
            if rule is None and (found := self._rules.get(id(base))) is not None and found.once:
                rule = found
        if rule is None and self._trust.allows(name_of(cls) or ""):
            rule = Rule(cls, build=_set_state)
        return rule

    def persistent_load(self, pid: Any) -> Any:
        """Give what an id stands for."""
        return _resolved(self._resolve, pid)

    # --- making objects

    def _make(self, target: Any, how: str, args: Any) -> Any:
        rule = self._rule_of(target)
        make = None if rule is None else getattr(rule, how)
        if rule is None or make is None:
            raise _odd(f"it calls {_shown(target)}, which is no constructor")
        if type(args) is not tuple:
            raise _odd(f"it calls {_shown(target)} with a {type(args).__name__} of arguments")
        made = make(*args)
        if rule.once:
            self._unfinished[id(made)] = made
        return made

    def _reconstruct(self, cls: Any, base: Any, state: Any) -> Any:
        """How protocols 0 and 1 make instances: without arguments, or of a built-in type's."""
        if base is object and state is None:
            return self._make(cls, "new", ())
        trusted = isinstance(cls, type) and self._trust.allows(name_of(cls) or "")
        if not trusted or base not in _BASES or not issubclass(cls, base):
            raise _odd(f"it makes a {_shown(cls)} out of a {_shown(base)}")
        made = base.__new__(cls, state)
        base.__init__(made, state)
        return made

    def load_reduce(self) -> None:
        """Call what a rule lets be called."""
        args = self.stack.pop()
        self.stack[-1] = self._make(self.stack[-1], "call", args)

    def load_newobj(self) -> None:
        """Make an instance of a class that a rule lets be made."""
        args = self.stack.pop()
        self.stack[-1] = self._make(self.stack[-1], "new", args)

    def load_newobj_ex(self) -> None:
        """Make an instance with arguments by name: only trusted classes need that."""
        kwargs, args, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        rule = self._rule_of(cls)
        if rule is None or rule.new is None or not self._trust.allows(name_of(cls) or ""):
            raise _odd(f"it calls {_shown(cls)} with arguments by name")
        self.stack.append(rule.new(*args, **kwargs))

    def _instantiate(self, klass: Any, args: list[Any]) -> None:
        """Of protocol 0."""
        self.append(self._make(klass, "call", tuple(args)))

    def load_build(self) -> None:
        """Set the state of an instance, as a rule lets it be set."""
        state = self.stack.pop()
        instance = self.stack[-1]
        rule = None if isinstance(instance, type) else self._rule_of_instance(instance)
        if rule is None or rule.build is None:
            raise _odd(f"it sets the state of {_shown(instance)}, which has none")
        if rule.once and self._unfinished.pop(id(instance), None) is None:
            raise _odd(f"it sets the state of a {_shown(type(instance))} twice")
        rule.build(instance, state)

    # --- filling containers

    def _filling(self, instance: Any, *kinds: type) -> None:
        cls = type(instance)
        if cls not in kinds and not self._trust.allows(name_of(cls) or ""):
            raise _odd(f"it puts items into {_shown(instance)}, which is no container")

    def load_append(self) -> None:
        """Append to a list."""
        self._filling(self.stack[-2], list, deque)
        super().load_append()

    def load_appends(self) -> None:
        """Append to a list."""
        self._filling(self.metastack[-1][-1], list, deque)
        super().load_appends()

    def load_setitem(self) -> None:
        """Set in a dictionary."""
        self._filling(self.stack[-3], dict, OrderedDict, defaultdict, Counter)
        super().load_setitem()

    def load_setitems(self) -> None:
        """Set in a dictionary."""
        self._filling(self.metastack[-1][-1], dict, OrderedDict, defaultdict, Counter)
        super().load_setitems()

    def load_additems(self) -> None:
        """Add to a set."""
        self._filling(self.metastack[-1][-1], set)
        super().load_additems()

    # --- what was made before

    def _refer(self, get: Callable[[Any], None]) -> None:
        get(self)
        if self._unfinished and id(self.stack[-1]) in self._unfinished:
            raise _odd("it refers to an array or dtype before its state was set")

    def load_get(self) -> None:
        """Refer to an object that is finished."""
        self._refer(super().load_get.__func__)

    def load_binget(self) -> None:
        """Refer to an object that is finished."""
        self._refer(super().load_binget.__func__)

    def load_long_binget(self) -> None:
        """Refer to an object that is finished."""
        self._refer(super().load_long_binget.__func__)

    def load_dup(self) -> None:
        """Refuse: `pickle` never writes it."""
        raise _odd("it has an opcode that pickle never writes")

    def get_extension(self, code: int) -> None:
        """Refuse: what a code stands for, only this process knows."""
        raise _odd(f"it names a type by the extension code {code}")


def _reconstructor() -> None:
    """Stands for ``copyreg._reconstructor``."""


for _code, _step in {
    pickle.REDUCE: CarefulUnpickler.load_reduce,
    pickle.NEWOBJ: CarefulUnpickler.load_newobj,
    pickle.NEWOBJ_EX: CarefulUnpickler.load_newobj_ex,
    pickle.BUILD: CarefulUnpickler.load_build,
    pickle.APPEND: CarefulUnpickler.load_append,
    pickle.APPENDS: CarefulUnpickler.load_appends,
    pickle.SETITEM: CarefulUnpickler.load_setitem,
    pickle.SETITEMS: CarefulUnpickler.load_setitems,
    pickle.ADDITEMS: CarefulUnpickler.load_additems,
    pickle.GET: CarefulUnpickler.load_get,
    pickle.BINGET: CarefulUnpickler.load_binget,
    pickle.LONG_BINGET: CarefulUnpickler.load_long_binget,
    pickle.DUP: CarefulUnpickler.load_dup,
}.items():
    CarefulUnpickler.dispatch[_code[0]] = _step


def _odd(what: str) -> UntrustedTypeError:
    return UntrustedTypeError(
        f"{what}: no object that was stored asks for that, attacks do. Nothing of it was run"
    )


def _shown(target: Any) -> str:
    return name_of(target) or f"a {type(target).__name__}"


def _new(cls: type, /, *args: Any, **kwargs: Any) -> Any:
    return cls.__new__(cls, *args, **kwargs)


def _set_state(instance: Any, state: Any) -> None:
    """What pickle itself does."""
    set_state = getattr(instance, "__setstate__", None)
    if set_state is not None:
        set_state(state)
        return
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        vars(instance).update(state)
    for name, value in (slots or {}).items():
        setattr(instance, name, value)


# --- rules ---------------------------------------------------------------------------------------

_TABLES = {
    "numpy": "blobstore.handlers.allowed_numpy:RULES",
    "pandas": "blobstore.handlers.allowed_pandas:RULES",
    "pyarrow": "blobstore.handlers.allowed_pandas:RULES",
}
"""First word of a module -> the table that its rules are in, if not that of the standard library."""


def find_rule(module: str, name: str) -> Rule | None:
    """The rule for a name, also by one that it had in older versions; None if there is none."""
    if "." in name:
        return None
    first = module.partition(".")[0]
    table = load(_TABLES.get(first, "blobstore.handlers.allowed_plain:RULES"))
    rule: Rule | None = table.get((module, name))
    if rule is None:
        moved = _compat_pickle.NAME_MAPPING.get((module, name))
        if moved is None:
            moved = (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
        if moved[0].startswith("numpy.core."):
            moved = (moved[0].replace("numpy.core.", "numpy._core.", 1), name)
        rule = table.get(moved)
    return rule
