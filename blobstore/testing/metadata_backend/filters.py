"""Metadata: filtered by, and kept to the character."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from blobstore import metadata as metadata_json
from blobstore.protocols import (
    MetadataBackend,
)
from blobstore.testing.metadata_backend.build import (
    ALL,
    BackendFactory,
    commit,
    equal_to,
    make_copy,
    make_patch,
    make_put,
    put,
    stored,
)

EQUAL_VALUES: tuple[tuple[Any, ...], ...] = (
    (1, 1.0),
    (0, 0.0, -0.0),
    (True,),
    (False,),
    (None,),
    ("1",),
    ("",),
    ("true",),
    ("null",),
    ("None",),
    ([],),
    ({},),
    ([1], [1.0]),
    ([True],),
    (["1"],),
    ([1, 2],),
    ([2, 1],),
    ([[1, 2]],),
    ([None],),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1.0, "b": 2}),
    ({"a": 1},),
    ({"a": True, "b": 2},),
    ({"a": {"x": [1, {"y": None, "z": "s"}]}}, {"a": {"x": [1, {"z": "s", "y": None}]}}),
    ({"a": {"x": [1, {"y": None}]}},),
    ({"": 0},),
    (2**53, float(2**53)),
    (2**53 + 1,),
    (2**63 - 1,),
    (2**63, float(2**63)),
    (-(2**63), -float(2**63)),
    (2**70, float(2**70)),
    (2**70 + 1,),
    (-(2**70),),
    (10**400,),
    (0.1 + 0.2,),
    (0.3,),
    (1e308,),
    (5e-324,),
    (1e-5,),
    ("a\0b",),
    ("a",),
    ("A",),
    ("a\nb",),
    ("é",),
    ("e\u0301",),
    ("日本",),
    ("\U0001f389",),
    ("\ue000",),
    ("%",),
    ("a%",),
    ("'; DROP TABLE entries; --",),
    ('"',),
    ("\\",),
    ("[1]",),
    ('{"a":1,"b":2}',),
    ("1.0",),
    (1.5,),
    ("2024-01-01T00:00:00",),
)
"""Groups of JSON values: equal inside a group, different between groups."""

ODD_NAMES = (
    *("", " ", "a", "A", "a.b", "a.", ".", '"', 'a"b', "'", "a'b", "$", "$.a", "$[0]", "a[0]", "["),
    *("]", "[]", "#", "@size", "%", "_", "*", "?", "\\", "a\\b", "\\u0061", "/", "a/b", "a b", "-"),
    *("a-b", "0", "1", "\n", "\t", "\x01", "\x7f", "a\0b", "\0", "é", "e\u0301", "日本", "\ud7ff"),
    *("\ue000", "\U0001f389", "key", "id", "version", "metadata", "null", "a:b", ":a", "%(a)s"),
    *("{a}", "); DROP TABLE entries; --", "x" * 3000),
)
"""Metadata names that mean something in SQL, JSON paths or format strings."""


class FilterTests(BackendFactory):
    """Metadata that must be equal."""

    def test_values_are_compared_by_value_and_type(self, place: Path) -> None:
        """Every value finds its equals and nothing else; also after reopening."""
        keyed = {
            f"{group:02}/{i}": value
            for group, values in enumerate(EQUAL_VALUES)
            for i, value in enumerate(values)
        }
        with self.opened(place) as backend:
            commit(backend, *(make_put(k, metadata={"v": v, "w": 0}) for k, v in keyed.items()))
            commit(backend, make_put("without", metadata={"other": None}))
            self.check_values(backend, keyed)
        with self.opened(place) as backend:
            self.check_values(backend, keyed)

    def check_values(self, backend: MetadataBackend, keyed: Mapping[str, Any]) -> None:
        """Insist that each value selects the keys of its group."""
        for key, value in keyed.items():
            query = equal_to({"v": value})
            expected = sorted(k for k in keyed if k[:3] == key[:3])
            assert list(backend.keys(query)) == expected, value
            assert [entry.key for entry in backend.scan(query)] == expected, value
            assert backend.count(query) == len(expected), value

    def test_names_are_literal(self, backend: MetadataBackend) -> None:
        """No name is a path or a piece of SQL; nested names are not reached."""
        commit(
            backend,
            *(make_put(f"k{i:03}", metadata={n: i}) for i, n in enumerate(ODD_NAMES)),
            make_put("nested", metadata={"nest": {n: i for i, n in enumerate(ODD_NAMES)}}),
            make_put("list", metadata={"list": list(range(len(ODD_NAMES)))}),
        )
        for i, name in enumerate(ODD_NAMES):
            assert list(backend.keys(equal_to({name: i}))) == [f"k{i:03}"], name

    def test_nested_names_are_not_reached_by_a_path(self, backend: MetadataBackend) -> None:
        """A dot in a name is a dot."""
        put(backend, "nested", metadata={"a": {"b": 1}, "l": [1]})
        put(backend, "dotted", metadata={"a.b": 1, "l[0]": 1})
        assert list(backend.keys(equal_to({"a.b": 1}))) == ["dotted"]
        assert list(backend.keys(equal_to({"l[0]": 1}))) == ["dotted"]
        assert list(backend.keys(equal_to({"a": {"b": 1}}))) == ["nested"]

    def test_all_names_must_match(self, backend: MetadataBackend) -> None:
        """And not only one of them."""
        put(backend, "both", metadata={"a": 1, "b": [1], "c": 3})
        put(backend, "one", metadata={"a": 1, "b": [2]})
        put(backend, "less", metadata={"a": 1})
        assert list(backend.keys(equal_to({"a": 1, "b": [1]}))) == ["both"]
        assert list(backend.keys(equal_to({"a": 1}))) == ["both", "less", "one"]
        assert backend.count(equal_to({"a": 1, "b": [1], "c": 4})) == 0

    def test_none_is_a_value(self, backend: MetadataBackend) -> None:
        """An absent name does not equal None."""
        put(backend, "none", metadata={"a": None})
        put(backend, "absent", metadata={"b": None})
        put(backend, "empty")
        assert list(backend.keys(equal_to({"a": None}))) == ["none"]

    def test_filters_follow_changes(self, backend: MetadataBackend) -> None:
        """Overwritten, patched, copied, deleted: what counts is the metadata now."""
        put(backend, "a", metadata={"v": 1})
        put(backend, "b", metadata={"v": 1})
        commit(backend, make_patch("a", {"v": 2}), make_copy("b", "c"), make_put("b"))
        assert list(backend.keys(equal_to({"v": 1}))) == ["c"]
        assert list(backend.keys(equal_to({"v": 2}))) == ["a"]

    def test_many_conditions(self, backend: MetadataBackend) -> None:
        """A filter may have more names than a statement of most databases has terms."""
        names = {f"n{i}": i for i in range(300)}
        put(backend, "all", metadata=names)
        put(backend, "but one", metadata=names | {"n299": -1})
        assert list(backend.keys(equal_to(names))) == ["all"]


class ExactnessTests(BackendFactory):
    """JSON text is kept as it was given."""

    METADATA: Mapping[str, Any] = {
        "zuerst": 1,
        "a": {"y": [1, 1.0, True, None, "1"], "b": {}},
        "big": 2**70 + 1,
        "huge": 10**400,
        "floats": [0.1 + 0.2, 1e308, 5e-324, -0.0, 1e16, 1.0],
        "strings": ["", "a\0b", "é", "e\u0301", "\U0001f389", "\u2028", "\x85", "\n", '"', "\\"],
        **{name: i for i, name in enumerate(ODD_NAMES)},
    }

    def test_metadata_text_is_verbatim(self, place: Path) -> None:
        """Numbers, order of names, every character; also after reopening."""
        text = metadata_json.to_text(self.METADATA)
        with self.opened(place) as backend:
            assert put(backend, "k", metadata_text=text).metadata_text == text
            assert stored(backend, "k").metadata_text == text
        with self.opened(place) as backend:
            entry = stored(backend, "k")
            assert entry.metadata_text == text
            assert list(entry.metadata) == list(self.METADATA)
            assert str(entry.metadata["floats"]) == str(self.METADATA["floats"])
            assert next(backend.scan(ALL)).metadata_text == text
            assert backend.get_many(["k"])["k"].metadata_text == text

    @pytest.mark.parametrize("field", ["metadata_text", "info_text"])
    def test_text_is_not_rewritten(self, place: Path, field: str) -> None:
        """Spaces, escapes and other spellings of numbers are part of the text."""
        text = '{ "z": 1E3, "a": [2.50, -0.0, 1e-7], "u": "\\u00e9\\u0000\\/", "z2":{ } }'
        with self.opened(place) as backend:
            put(backend, "k", **{field: text})
        with self.opened(place) as backend:
            assert getattr(stored(backend, "k"), field) == text

    def test_info_text_is_verbatim(self, place: Path) -> None:
        """What the handler noted is as exact as the user's metadata."""
        text = json.dumps(dict(self.METADATA), ensure_ascii=False)
        with self.opened(place) as backend:
            put(backend, "k", info_text=text)
        with self.opened(place) as backend:
            assert stored(backend, "k").info_text == text

    def test_deeply_nested_metadata(self, place: Path) -> None:
        """As deep as metadata may be."""
        deep: dict[str, Any] = {"v": 1}
        for _ in range(95):
            deep = {"d": deep}
        with self.opened(place) as backend:
            put(backend, "k", metadata=deep)
        with self.opened(place) as backend:
            assert stored(backend, "k").metadata == deep
            assert list(backend.keys(equal_to(deep))) == ["k"]

    def test_large_metadata(self, place: Path) -> None:
        """A megabyte of text is text."""
        text = metadata_json.to_text({"t": "0123456789abcdé\n" * 65536})
        with self.opened(place) as backend:
            put(backend, "k", metadata_text=text)
        with self.opened(place) as backend:
            assert stored(backend, "k").metadata_text == text

    def test_a_signature_is_kept(self, place: Path) -> None:
        """Any text, or none."""
        with self.opened(place) as backend:
            put(backend, "signed", signature="ed25519:é\n==")
            put(backend, "empty", signature="")
            put(backend, "unsigned")
        with self.opened(place) as backend:
            assert [e.signature for e in backend.scan(ALL)] == ["", "ed25519:é\n==", None]
