"""YAML into plain dictionaries, lists and values; what could be meant in two ways is an error.

PyYAML composes the document and makes its scalars by its safe rules. Containers are made here, so
that a name given twice is an error, a problem has a line, and what aliases blow up is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from blobstore.errors import ConfigError

_MOST = 100_000
_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_MERGE = "tag:yaml.org,2002:merge"
_AS_TEXT = (_MERGE, "tag:yaml.org,2002:value")
_CONTAINERS = (*_PLAIN, *(f"tag:yaml.org,2002:{name}" for name in ("set", "omap", "pairs")))


def parse_yaml(data: bytes) -> Any:
    r"""Parse one document.

    Raises
    ------
    ConfigError
        With the line; values are not repeated, since they may be secret.

    Examples
    --------
    >>> parse_yaml(b"a: &x [1, 2.5]\nb: *x")
    {'a': [1, 2.5], 'b': [1, 2.5]}
    """
    try:
        return _Document(data).value()
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ConfigError(f"{place}this is no valid YAML: {exc.problem or exc.context}") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"this is no valid YAML: {exc}") from exc
    except RecursionError as exc:
        raise ConfigError("the YAML is nested too deeply") from exc


class _Document:
    def __init__(self, data: bytes) -> None:
        self._left = _MOST
        self._loader = yaml.SafeLoader(data)

    def value(self) -> Any:
        try:
            root = self._loader.get_single_node()
            return None if root is None else self._make(root)
        finally:
            self._loader.dispose()

    def _make(self, node: yaml.Node) -> Any:
        self._left -= 1
        if self._left < 0:
            raise _wrong(node, f"aliases make this more than {_MOST:,} values")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag not in _PLAIN:
            raise _wrong(node, f"the tag {node.tag!r} is not allowed here")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node)
        return [self._make(item) for item in node.value]

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag in _AS_TEXT:  # a bare = or <<, of which PyYAML knows no value
            return node.value
        if node.tag in _CONTAINERS:
            raise _wrong(node, f"the tag {node.tag!r} is not for a single value")
        try:
            value = self._loader.construct_object(node)
            repr(value)  # which Python refuses where "0xf..." is an integer of 5,000 digits
        # The 31st of February; and what PyYAML raises for "!!bool x", "!!timestamp x", "!!int ''".
        except (ValueError, KeyError, AttributeError, IndexError) as exc:
            raise _wrong(node, f"this is no {node.tag.rpartition(':')[2]}") from exc
        return value

    def _mapping(self, node: yaml.MappingNode) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for other in self._merged(value_node):
                    merged = {**other, **merged}
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise _wrong(key_node, "a name must be a text")
            key = self._make(key_node)
            if key in made:
                raise _wrong(key_node, f"the name {key!r} is there twice")
            made[key] = self._make(value_node)
        return {**merged, **made}

    def _merged(self, node: yaml.Node) -> Iterator[dict[Any, Any]]:
        """The mappings that ``<<`` merges in, the first one first."""
        for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(part, yaml.MappingNode):
                raise _wrong(part, "only mappings can be merged with <<")
            yield self._make(part)


def _wrong(node: yaml.Node, problem: str) -> ConfigError:
    return ConfigError(
        f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}: {problem}"
    )
