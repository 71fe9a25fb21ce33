"""Stores of values that are not bytes: text, JSON, and files that are open."""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NoReturn

from blobstore.errors import ConfigError, IntegrityError, InvalidInputError
from blobstore.protocols import ObjectStore, Values
from blobstore.streams import CHUNK
from blobstore.wrappers.base import require_bytes, require_store
from blobstore.wrappers.transform import DataTransformer, TransformingStore

MAX_DEPTH = 100
"""Levels that a JSON value may be nested, so that it can be read again wherever it was written."""

_EXACT = frozenset({"utf-8", "utf-16", "utf-32", "ascii", "iso8859-1"})
"""Encodings of which it is known that they give back what they took, if they took it."""


class TextEncodingTransformer(DataTransformer):
    r"""Turns `str` into bytes in some encoding.

    Parameters
    ----------
    encoding : str
        Any that Python knows for text.

    Raises
    ------
    ConfigError
        There is no such encoding.

    Examples
    --------
    >>> TextEncodingTransformer("latin-1").transform("é")
    b'\xe9'
    """

    values: ClassVar[Values] = "text"

    def __init__(self, encoding: str = "utf-8") -> None:
        self.encoding = encoding
        self._exact = _encoding_name(encoding) in _EXACT

    def transform(self, data: Any) -> bytes:
        """Encode a text."""
        if not isinstance(data, str):
            raise InvalidInputError(
                f"this store keeps text, not {type(data).__name__}: give it a str, "
                "or put bytes into the store beneath it"
            )
        try:
            stored = data.encode(self.encoding)
            exact = self._exact or stored.decode(self.encoding) == data
        except UnicodeError as exc:
            raise InvalidInputError(
                f"the text cannot be written in {self.encoding}: {exc}. Choose another encoding, "
                "or replace these characters first"
            ) from exc
        if not exact:
            raise InvalidInputError(
                f"{self.encoding} would not give the same text back: choose utf-8"
            )
        return stored

    def reverse_transform(self, data: Any) -> str:
        """Decode a text."""
        try:
            return str(data, self.encoding)
        except UnicodeError as exc:
            raise IntegrityError(
                f"its bytes are no {self.encoding} text: {exc}. Read it from the store beneath, "
                "or with another encoding"
            ) from exc


class TextEncodingStore(TransformingStore):
    r"""Takes and gives `str`; the store beneath keeps it as bytes.

    Parameters
    ----------
    store : ObjectStore
        Keeps bytes; taken over: it is closed with this one.
    encoding : str
        Any that Python knows for text.

    Raises
    ------
    ConfigError
        There is no such encoding, or the store keeps other values than bytes.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = TextEncodingStore(DictStore())
    >>> store.put("greeting", "Grüße")
    >>> store.get("greeting"), store.store.get("greeting")
    ('Grüße', b'Gr\xc3\xbc\xc3\x9fe')
    """

    def __init__(self, store: ObjectStore, encoding: str = "utf-8") -> None:
        found = require_bytes(store, type(self).__name__)
        super().__init__(found, TextEncodingTransformer(encoding))
        self.encoding = encoding

    def _shown(self) -> dict[str, Any]:
        return {"encoding": self.encoding}


class JsonTransformer(DataTransformer):
    """Turns JSON values into JSON text, and refuses those that would come back as others.

    Parameters
    ----------
    indent : int, optional
        Spaces per level; by default all is on one line, without spaces.
    binary : bool
        Whether the text is to be bytes in UTF-8, or `str`.

    Examples
    --------
    >>> JsonTransformer().transform({"a": [1, None]})
    b'{"a":[1,null]}'
    """

    values: ClassVar[Values] = "any"

    def __init__(self, indent: int | None = None, *, binary: bool = True) -> None:
        if indent is not None and (type(indent) is not int or indent < 0):
            raise ConfigError(f"indent must be a number of spaces, or None, not {indent!r}")
        self.indent = indent
        self.binary = binary

    def transform(self, data: Any) -> str | bytes:
        """Write a value as JSON."""
        _check(data)
        separators = (",", ":") if self.indent is None else (",", ": ")
        try:
            text = json.dumps(
                data,
                ensure_ascii=False,
                allow_nan=False,
                check_circular=False,  # the depth is limited
                indent=self.indent,
                separators=separators,
            )
        except ValueError as exc:  # Python refuses to write integers of over 4,300 digits
            raise InvalidInputError(f"the value cannot be written as JSON: {exc}") from exc
        return text.encode() if self.binary else text

    def reverse_transform(self, data: Any) -> Any:
        """Read a value from JSON."""
        try:
            text = str(data, "utf-8") if self.binary else data
            return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        except (ValueError, RecursionError) as exc:
            raise IntegrityError(f"it is no JSON: {exc}") from exc


class JsonStore(TransformingStore):
    """Takes and gives JSON values: `dict`, `list`, `str`, `int`, `float`, `bool` and None.

    What JSON would give back as something else is refused before anything is written: tuples,
    names that are no `str`, NaN and infinities, subclasses, lone surrogates.

    Parameters
    ----------
    store : ObjectStore
        Keeps bytes (which will be UTF-8) or text; taken over: it is closed with this one.
    indent : int, optional
        Spaces per level, for people who read the stored objects.

    Raises
    ------
    ConfigError
        The store keeps neither bytes nor text.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = JsonStore(DictStore())
    >>> store.put("run", {"loss": 0.5, "tags": ["a"]})
    >>> store.get("run"), store.store.get("run")
    ({'loss': 0.5, 'tags': ['a']}, b'{"loss":0.5,"tags":["a"]}')
    """

    def __init__(self, store: ObjectStore, *, indent: int | None = None) -> None:
        beneath = require_store(store).capabilities.values
        if beneath == "any":
            raise ConfigError(
                f"JsonStore needs a store of bytes or of text beneath it, not {store!r}"
            )
        super().__init__(store, JsonTransformer(indent, binary=beneath == "bytes"))
        self.indent = indent

    def _shown(self) -> dict[str, Any]:
        return {} if self.indent is None else {"indent": self.indent}


class BufferStore(TransformingStore):
    """Takes files that are open for reading, and gives the bytes as such a file.

    A file is read from where it stands to its end, a piece at a time, and is left open. What is
    given back is a seekable `io.BytesIO`, at its start.

    Parameters
    ----------
    store : ObjectStore
        Keeps bytes; taken over: it is closed with this one.

    Raises
    ------
    ConfigError
        The store keeps other values than bytes.

    Examples
    --------
    >>> import io
    >>> from blobstore.backends import DictStore
    >>> store = BufferStore(DictStore())
    >>> store.put("key", io.BytesIO(b"abc"))
    >>> store.get("key").read()
    b'abc'
    """

    values: ClassVar[Values] = "any"

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(require_bytes(store, type(self).__name__))

    def put(self, key: str, data: Any) -> None:
        """Write what is left of a file, a piece at a time.

        If that fails, a file that can seek is put back to where it was, so that it can be tried
        again.
        """
        with _put_back(data):
            if not self.store.capabilities.streams:
                super().put(key, data)  # its writers hold all of it, and may choose another place
                return
            pieces = _pieces(data)
            with self.store.writer(key) as sink:
                for piece in pieces:
                    sink.write(piece)

    def put_if_absent(self, key: str, data: Any) -> bool:
        """Write what is left of a file, held in memory, unless there is an object."""
        with _put_back(data):
            return super().put_if_absent(key, data)

    def transform(self, data: Any) -> bytes:
        """Read what is left of a file."""
        return b"".join(_pieces(data))

    def reverse_transform(self, data: Any) -> io.BytesIO:
        """Open bytes as a file."""
        return io.BytesIO(data)


def _encoding_name(encoding: object) -> str:
    """The name by which Python knows an encoding of text, once it was seen to work."""
    if not isinstance(encoding, str):
        raise ConfigError(f"encoding must be a str, not {type(encoding).__name__}")
    try:
        str("".encode(encoding), encoding)
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as exc:
        raise ConfigError(
            f"there is no encoding {encoding!r} for text: try 'utf-8', or another that is listed "
            "in the documentation of Python's codecs module"
        ) from exc


def _check(value: Any, path: tuple[str | int, ...] = ()) -> None:
    """Refuse what would not come back as it is; names the place of it."""
    kind = type(value)
    if kind is str:
        _check_text(value, path)
    elif kind is float:
        if not math.isfinite(value):
            raise InvalidInputError(f"{_where(path)} is {value}, which JSON does not have")
    elif kind is dict or kind is list:
        if len(path) >= MAX_DEPTH:
            raise InvalidInputError(
                f"{_where(path)} is nested more than {MAX_DEPTH} levels deep, or contains itself"
            )
        for name, item in value.items() if kind is dict else enumerate(value):
            if kind is dict:
                _check_name(name, path)
            _check(item, (*path, name))
    elif not (kind is bool or kind is int or value is None):
        raise InvalidInputError(
            f"{_where(path)} is a {kind.__name__}, which JSON would change or does not have: "
            "convert it first, for instance a tuple to a list, bytes to text"
        )


def _check_name(name: object, path: tuple[str | int, ...]) -> None:
    if type(name) is not str:
        raise InvalidInputError(
            f"{_where(path)} has the name {name!r}, a {type(name).__name__}; names in JSON are "
            "strings: use str(name)"
        )
    _check_text(name, path)


def _check_text(text: str, path: tuple[str | int, ...]) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidInputError(
            f"{_where(path)} has a lone surrogate, which UTF-8 cannot hold: decode file names "
            "with errors='replace'"
        ) from exc


def _where(path: tuple[str | int, ...]) -> str:
    return "the value" + "".join(f"[{json.dumps(step)}]" for step in path)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is too large")
    return number


@contextlib.contextmanager
def _put_back(file: Any) -> Iterator[None]:
    """Seek to where a file was, should the block fail: who tries again is to find it there."""
    seekable = getattr(file, "seekable", None)
    start = file.tell() if seekable is not None and seekable() else None
    try:
        yield
    except BaseException:
        if start is not None:
            file.seek(start)
        raise


def _pieces(file: Any) -> Iterator[bytes]:
    """Give what is left of a file, of which the first piece was seen to be bytes."""
    read = getattr(file, "read", None)
    if not callable(read):
        raise InvalidInputError(
            f"this store keeps what it reads from open files, not {type(file).__name__}: "
            "give it io.BytesIO(data), or put bytes into the store beneath it"
        )
    first = _piece(read)
    return itertools.chain([first], iter(lambda: _piece(read), b""))


def _piece(read: Callable[[int], Any]) -> bytes:
    piece = read(CHUNK)
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise InvalidInputError(
            f"a read from the file gave {type(piece).__name__}, not bytes: open it in binary "
            "mode, and blocking"
        )
    return bytes(piece)
