"""JSON, JSON Lines and YAML: for values that these can say exactly."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from typing import Any, ClassVar

from blobstore.errors import UnsupportedTypeError
from blobstore.files.options import reading, refuse_options
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.registry import load_module
from blobstore.streams import Sink, Source

MAX_DEPTH = 200
_SCALARS = ("builtins.int", "builtins.float", "builtins.bool", "builtins.NoneType")
_LONGEST_INT = 10**4000
_MOST_DIGITS = 4300
_BATCH = 1 << 16


def is_exact(obj: Any, depth: int = 0) -> bool:
    """Whether JSON gives back just this: no tuple, no number as a name, no NaN.

    Examples
    --------
    >>> is_exact({"a": [1, 2.5, None]}), is_exact({1: "a"}), is_exact((1, 2)), is_exact(float("nan"))
    (True, False, False, False)
    """
    kind = type(obj)
    if kind is str:
        return bool(obj.isascii()) or _is_utf8(obj)
    if kind is bool or obj is None:
        return True
    if kind is int:
        return bool(-_LONGEST_INT < obj < _LONGEST_INT)
    if kind is float:
        return math.isfinite(obj)
    if depth > MAX_DEPTH:
        return False
    if kind is dict:
        return all(type(name) is str and is_exact(name) for name in obj) and all(
            is_exact(value, depth + 1) for value in obj.values()
        )
    return kind is list and all(is_exact(item, depth + 1) for item in obj)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def to_text(obj: Any, **layout: Any) -> str:
    """JSON, in which names keep their order and no character is escaped that need not be."""
    return json.dumps(obj, ensure_ascii=False, allow_nan=False, **layout)


class JsonFormat(FileFormat):
    """Dictionaries and lists, numbers, booleans and None; text if the key says so."""

    name = "json"
    extensions = (".json",)
    priority = 30
    type_names: ClassVar[tuple[str, ...]] = (
        *("builtins.dict", "builtins.list", "builtins.str"),
        *_SCALARS,
    )

    def can_handle(self, obj: Any) -> bool:
        """What JSON says exactly."""
        return is_exact(obj)

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the value, indented for people."""
        sink.write(to_text(obj, indent=2).encode() + b"\n")

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read the value."""
        refuse_options(context, options)
        with reading(context, ValueError, RecursionError):
            return json.loads(source.read())


class JsonLinesFormat(FileFormat):
    """Lists of dictionaries, one a line."""

    name = "jsonl"
    extensions = (".jsonl", ".ndjson")
    priority = 40
    type_names: ClassVar[tuple[str, ...]] = ("builtins.list",)

    def can_handle(self, obj: Any) -> bool:
        """At least one dictionary, and nothing else."""
        return (
            type(obj) is list
            and len(obj) > 0
            and all(type(item) is dict for item in obj)
            and is_exact(obj)
        )

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the dictionaries."""
        for piece in _in_batches(to_text(item) for item in obj):
            sink.write(piece.encode())

    def read(self, source: Source, context: FileContext, **options: Any) -> list[Any]:
        """Read the lines; empty ones are passed over."""
        refuse_options(context, options)
        with reading(context, ValueError, RecursionError), source.open() as file:
            return [json.loads(line) for line in file if line.strip()]


def _in_batches(lines: Iterator[str]) -> Iterator[str]:
    """Lines put together, so that not each of them is a write."""
    batch: list[str] = []
    size = 0
    for line in lines:
        batch.append(line + "\n")
        size += len(line)
        if size > _BATCH:
            yield "".join(batch)
            batch, size = [], 0
    yield "".join(batch)


@functools.cache
def _yaml_loader() -> Any:
    """The safe loader, but for numbers of so many digits that reading them takes hours."""
    yaml = load_module("yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[misc,name-defined]
        """Refuses long numbers."""

        def construct_yaml_int(self, node: Any) -> Any:
            """A number, as Python's own limit allows."""
            if len(node.value) > _MOST_DIGITS:
                raise ValueError(f"a number of {len(node.value)} digits")
            return super().construct_yaml_int(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    return Loader


class YamlFormat(FileFormat):
    """YAML, where the key says so; read by the safe loader, which makes plain values only."""

    name = "yaml"
    extensions = (".yaml", ".yml")
    priority = 30
    type_names: ClassVar[tuple[str, ...]] = JsonFormat.type_names
    by_name_only: ClassVar[bool] = True

    def can_handle(self, obj: Any) -> bool:
        """What JSON says exactly, YAML does too."""
        return is_exact(obj)

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the value in block style, names in their order."""
        yaml = load_module("yaml")
        text = yaml.safe_dump(obj, allow_unicode=True, sort_keys=False)
        if yaml.safe_load(text) != obj:  # control characters, for instance
            raise UnsupportedTypeError(
                f"{context.key!r}: YAML does not give this value back as it is: use .json"
            )
        sink.write(text.encode())

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read the value."""
        refuse_options(context, options)
        yaml = load_module("yaml")
        with reading(context, yaml.YAMLError, ValueError, RecursionError):
            return yaml.load(source.read(), _yaml_loader())
