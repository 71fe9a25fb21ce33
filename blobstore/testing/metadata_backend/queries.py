"""Conditions, orders, places to go on from, and tallies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest

from blobstore.errors import NotSupportedError
from blobstore.protocols import Delete, MetadataBackend
from blobstore.query import (
    MISSING,
    Cursor,
    Expression,
    F,
    Order,
    Query,
    parse,
    parse_field,
    parse_order,
)
from blobstore.testing.metadata_backend.build import (
    BackendFactory,
    commit,
    make_blob,
    make_copy,
    make_patch,
    make_put,
    put,
    stored,
)

NO_VALUE = object()

BIG = 10**400

KEYED: Mapping[str, Any] = {
    "absent": NO_VALUE,
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "minus zero": -0.0,
    "one": 1,
    "one float": 1.0,
    "half": 0.5,
    "minus": -3,
    "2**53": 2**53,
    "2**53 float": float(2**53),
    "2**53+1": 2**53 + 1,
    "2**63-1": 2**63 - 1,
    "2**63": 2**63,
    "2**63 float": float(2**63),
    "-2**63": -(2**63),
    "2**70+1": 2**70 + 1,
    "2**70 float": float(2**70),
    "big": BIG,
    "minus big": -BIG,
    "1e300": 1e300,
    "tiny": 5e-324,
    "text empty": "",
    "text 1": "1",
    "text a": "a",
    "text A": "A",
    "text ab": "ab",
    "text a%": "a%",
    "text a_b": "a_b",
    "text a*b": "a*b",
    "text axb": "axb",
    "text a[b]": "a[b]",
    "text a\\b": "a\\b",
    "text a nul": "a\0",
    "text a nul b": "a\0b",
    "text a one b": "a\x01b",
    "text newline": "a\nb",
    "text escape": "\\u0000",
    "text é": "é",
    "text e+accent": "e\u0301",
    "text private": "\ue000",
    "text astral": "\U00010000",
    "text true": "true",
    "text long": "x" * 5000,
    "text longer": "x" * 5001,
    "array": [1, "a", None, True],
    "array ab": ["ab"],
    "array nested": [[1, 2], {"x": 1.0}],
    "array empty": [],
    "object": {"x": 1},
    "object empty": {},
}
"""One value of `v` each."""

NUMBERS = [
    *("minus big", "-2**63", "minus", "minus zero", "zero", "tiny", "half", "one", "one float"),
    *("2**53", "2**53 float", "2**53+1", "2**63-1", "2**63", "2**63 float", "2**70 float"),
    *("2**70+1", "1e300", "big"),
]
"""From the least to the greatest."""

TEXTS = [
    *("text empty", "text 1", "text A", "text escape", "text a", "text a nul", "text a nul b"),
    *("text a one b", "text newline", "text a%", "text a*b", "text a[b]", "text a\\b", "text a_b"),
    *("text ab", "text axb", "text e+accent", "text true", "text long", "text longer", "text é"),
    *("text private", "text astral"),
]
"""By code point."""

ALL_TEXT = set(TEXTS)
ALL_NUMBERS = set(NUMBERS)
PRESENT = set(KEYED) - {"absent"}

v = F("v")

COMPARISONS: list[tuple[Expression, Iterable[str]]] = [
    (v == 1, {"one", "one float"}),
    (v == 1.0, {"one", "one float"}),
    (v != 1, ALL_NUMBERS - {"one", "one float"}),
    (v == True, {"true"}),  # noqa: E712
    (v != True, {"false"}),  # noqa: E712
    (v == False, {"false"}),  # noqa: E712
    (v == 0, {"zero", "minus zero"}),
    (v == "1", {"text 1"}),
    (v != "1", ALL_TEXT - {"text 1"}),
    (v == None, {"null"}),  # noqa: E711
    (v != None, PRESENT - {"null"}),  # noqa: E711
    (v == 2**53, {"2**53", "2**53 float"}),
    (v == 2**53 + 1, {"2**53+1"}),
    (v == float(2**53), {"2**53", "2**53 float"}),
    (v == 2**63, {"2**63", "2**63 float"}),
    (v == 2**70, {"2**70 float"}),
    (v == 2**70 + 1, {"2**70+1"}),
    (v == BIG, {"big"}),
    (v != BIG, ALL_NUMBERS - {"big"}),
    (v == BIG + 1, set()),
    (v == "a\0", {"text a nul"}),
    (v == "a", {"text a"}),
    (v == "a\0b", {"text a nul b"}),
    (v == "a\x01b", {"text a one b"}),
    (v == "\\u0000", {"text escape"}),
    (v != "a\0b", ALL_TEXT - {"text a nul b"}),
    (v == [1.0, "a", None, True], {"array"}),
    (v == [1, "a", None, 1], set()),
    (v == [], {"array empty"}),
    (v != [], {"array", "array ab", "array nested"}),
    (v == {}, {"object empty"}),
    (v == {"x": 1.0}, {"object"}),
    (v != {"x": True}, {"object", "object empty"}),
    (v < 0, {"minus big", "-2**63", "minus"}),
    (v <= 0, {"minus big", "-2**63", "minus", "minus zero", "zero"}),
    (v > 2**63 - 1, set(NUMBERS[NUMBERS.index("2**63") :])),
    (v >= 2**63, set(NUMBERS[NUMBERS.index("2**63") :])),
    (v > float(2**63), set(NUMBERS[NUMBERS.index("2**70 float") :])),
    (v > 2**70, set(NUMBERS[NUMBERS.index("2**70+1") :])),
    (v > float(2**53), set(NUMBERS[NUMBERS.index("2**53+1") :])),
    (v < 2**53 + 1, set(NUMBERS[: NUMBERS.index("2**53+1")])),
    (v > 1e300, {"big"}),
    (v < -1e308, {"minus big"}),
    (v < BIG, ALL_NUMBERS - {"big"}),
    (v >= -BIG, ALL_NUMBERS),
    (v > 0.5, set(NUMBERS[NUMBERS.index("one") :])),
    (v < "a", set(TEXTS[: TEXTS.index("text a")])),
    (v <= "a\0", set(TEXTS[: TEXTS.index("text a nul") + 1])),
    (v > "a\0b", set(TEXTS[TEXTS.index("text a one b") :])),
    (v > "", ALL_TEXT - {"text empty"}),
    (v >= "", ALL_TEXT),
    (v > "\uffff", {"text astral"}),
    (v > "x" * 5000, {"text longer", "text é", "text private", "text astral"}),
    (v.between(0, 1), {"minus zero", "zero", "tiny", "half", "one", "one float"}),
    (v.between(1, 0), set()),
    (v.between("a%", "ab"), set(TEXTS[TEXTS.index("text a%") : TEXTS.index("text ab") + 1])),
    (v.isin([1, "a", None]), {"one", "one float", "text a", "null"}),
    (v.isin([True, 2**53 + 1, BIG]), {"true", "2**53+1", "big"}),
    (v.isin([[], {"x": 1}, "a\0"]), {"array empty", "object", "text a nul"}),
    (v.isin([]), set()),
    (v.notin([]), set()),
    (v.notin([1, 0.5]), ALL_NUMBERS - {"one", "one float", "half"}),
    (v.notin([True]), {"false"}),
    (v.notin(["a", 0]), (ALL_NUMBERS | ALL_TEXT) - {"zero", "minus zero", "text a"}),
    (v.notin([None]), PRESENT - {"null"}),
    (v.notin([None, 1, "a"]), PRESENT - {"null", "one", "one float", "text a"}),
    (v.notin([[]]), {"array", "array ab", "array nested"}),
    (v.exists(), PRESENT),
    (~v.exists(), {"absent"}),
    (~(v == 1), set(KEYED) - {"one", "one float"}),
    (~(v > 0), set(KEYED) - set(NUMBERS[NUMBERS.index("tiny") :])),
    (~(v != 1), set(KEYED) - (ALL_NUMBERS - {"one", "one float"})),
    (~~(v == BIG), {"big"}),
    (~(v == BIG), set(KEYED) - {"big"}),
    (~(v == "a\0b"), set(KEYED) - {"text a nul b"}),
    (~((v == BIG) | (v == "a")), set(KEYED) - {"big", "text a"}),
    ((v > 0) & (v < 1), {"tiny", "half"}),
    ((v == 1) | (v == "a") | (v == None), {"one", "one float", "text a", "null"}),  # noqa: E711
    ((v == "a\0b") | (v == 2**70 + 1), {"text a nul b", "2**70+1"}),
    ((v > "a") & ~(v == "a\0b") & (v < "a%"), {"text a nul", "text a one b", "text newline"}),
    (F(["v", "x"]) == 1, {"object"}),
    (F("v.x").exists(), {"object"}),
    (F("v.x") == True, set()),  # noqa: E712
    (F("v.x.y").exists(), set()),
    (~F("v.x").exists(), set(KEYED) - {"object"}),
    (F("v.`0`").exists(), set()),
    (F("V").exists(), set()),
    (F("`v.x`").exists(), set()),
]
"""Conditions, and the keys for which they hold."""

PATTERNS: list[tuple[Expression, Iterable[str]]] = [
    (v.like("a"), {"text a"}),
    (v.like("%"), ALL_TEXT),
    (v.like(""), {"text empty"}),
    (v.like("_"), {"text 1", "text a", "text A", "text é", "text private", "text astral"}),
    (v.like("a%%b"), {t for t in ALL_TEXT if KEYED[t][:1] == "a" and KEYED[t][1:][-1:] == "b"}),
    (v.like("a_b"), {t for t in ALL_TEXT if len(KEYED[t]) == 3 and KEYED[t][::2] == "ab"}),
    (v.like(r"a\_b"), {"text a_b"}),
    (v.like(r"a\%"), {"text a%"}),
    (v.like(r"a\\b"), {"text a\\b"}),
    (v.like("a*b"), {"text a*b"}),
    (v.like("a[b]"), {"text a[b]"}),
    (v.like("A%"), {"text A"}),
    (v.like("a\0_"), {"text a nul b"}),
    (v.like("%\x01%"), {"text a one b"}),
    (v.like("%\n%"), {"text newline"}),
    (v.like("\\\\u0000"), {"text escape"}),
    (v.like("x%y"), set()),
    (v.like("x%x"), {"text long", "text longer"}),
    (v.like("x" * 5000 + "_"), {"text longer"}),
    (v.like("%a%"), {t for t in ALL_TEXT if "a" in KEYED[t]}),
    (~v.like("%"), set(KEYED) - ALL_TEXT),
    (v.startswith(""), ALL_TEXT),
    (v.startswith("a"), {t for t in ALL_TEXT if KEYED[t].startswith("a")}),
    (v.startswith("a\0"), {"text a nul", "text a nul b"}),
    (v.startswith("a*"), {"text a*b"}),
    (v.startswith("a%"), {"text a%"}),
    (v.startswith("a_"), {"text a_b"}),
    (v.startswith("a["), {"text a[b]"}),
    (v.startswith("\ud7ff"), set()),
    (v.startswith("\U00010000"), {"text astral"}),
    (v.startswith("x" * 5001), {"text longer"}),
    (v.contains("a"), {t for t in ALL_TEXT if "a" in KEYED[t]} | {"array"}),
    (v.contains("%"), {"text a%"}),
    (v.contains("_"), {"text a_b"}),
    (v.contains("*"), {"text a*b"}),
    (v.contains("\\"), {"text a\\b", "text escape"}),
    (v.contains("\0"), {"text a nul", "text a nul b"}),
    (v.contains("\x01"), {"text a one b"}),
    (v.contains(""), ALL_TEXT),
    (v.contains("ab"), {"text ab", "array ab"}),
    (v.contains(1), {"array"}),
    (v.contains(1.0), {"array"}),
    (v.contains(True), {"array"}),
    (v.contains(False), set()),
    (v.contains(None), {"array"}),
    (v.contains([1, 2.0]), {"array nested"}),
    (v.contains([2, 1]), set()),
    (v.contains({"x": 1}), {"array nested"}),
    (~v.contains("a"), set(KEYED) - {t for t in ALL_TEXT if "a" in KEYED[t]} - {"array"}),
]


def fill(backend: MetadataBackend, keyed: Mapping[str, Any]) -> None:
    """Put an entry with metadata `v` under each key, in one commit."""
    commit(
        backend,
        *(
            make_put(key, metadata={} if value is NO_VALUE else {"v": value, "w": "other"})
            for key, value in keyed.items()
        ),
    )


class ConditionTests(BackendFactory):
    """Which entries a condition holds for."""

    def check(
        self, backend: MetadataBackend, cases: Iterable[tuple[Expression, Iterable[str]]]
    ) -> None:
        """Insist that each condition selects its keys, however it is asked."""
        for where, keys in cases:
            query, expected = Query(where=where), sorted(keys)
            assert list(backend.keys(query)) == expected, str(where)
            assert [entry.key for entry in backend.scan(query)] == expected, str(where)
            assert backend.count(query) == len(expected), str(where)
            assert list(backend.keys(Query(where=where, limit=2))) == expected[:2], str(where)

    def test_comparisons(self, place: Path) -> None:
        """By value and kind: also after reopening."""
        with self.opened(place) as backend:
            fill(backend, KEYED)
            self.check(backend, COMPARISONS)
        with self.opened(place) as backend:
            self.check(backend, COMPARISONS[::5])

    def test_patterns(self, backend: MetadataBackend) -> None:
        """Like, startswith, contains: literal but for what is said to be special."""
        fill(backend, KEYED)
        self.check(backend, PATTERNS)

    def test_all_spellings_ask_the_same(self, backend: MetadataBackend) -> None:
        """What one can write, the others can."""
        fill(backend, KEYED)
        for where in (
            (v > 0) & ~(v == 1),
            "v > 0 and not v = 1",
            {"v": {"$gt": 0}, "$not": {"v": 1}},
        ):
            expected = sorted(set(NUMBERS[NUMBERS.index("tiny") :]) - {"one", "one float"})
            assert list(backend.keys(Query(where=parse(where)))) == expected

    def test_prefix_and_condition(self, backend: MetadataBackend) -> None:
        """Both must hold."""
        fill(backend, KEYED)
        assert list(backend.keys(Query("text a", v.like("%b")))) == sorted(
            key for key in KEYED if key.startswith("text a") and str(KEYED[key]).endswith("b")
        )
        assert backend.count(Query("2", v > 0)) == sum(key.startswith("2") for key in KEYED)

    def test_an_entrys_own_fields(self, backend: MetadataBackend) -> None:
        """Their types are known, metadata of the same name is another thing."""
        put(backend, "a", make_blob(size=10), metadata={"size": 99, "@size": 98}, now_us=5)
        put(backend, "b", make_blob(size=20), now_us=7, handler="numpy", data_type="array")
        put(backend, "b", make_blob(size=30), now_us=9, handler="numpy", data_type="array")
        first = stored(backend, "a").id
        cases = {
            "@size = 10": ["a"],
            "size = 99": ["a"],
            "`@size` = 98": ["a"],
            "@size >= 10.0": ["a", "b"],
            "@size > 1e300": [],
            f"@size < {10**30}": ["a", "b"],
            "@size != 10.5": ["a", "b"],
            "@size in (30, 31)": ["b"],
            "@version = 2": ["b"],
            f"@id = {first}": ["a"],
            f"@id > {first}": ["b"],
            "@key = 'a'": ["a"],
            "@key >= 'b'": ["b"],
            "@key like '_'": ["a", "b"],
            "@key contains 'a'": ["a"],
            "@key startswith 'B'": [],
            "@handler = 'numpy'": ["b"],
            "@handler != 'numpy'": ["a"],
            "@data_type in ('array', 'object')": ["a", "b"],
            "@data_type exists": ["a", "b"],
            "@created_at = '1970-01-01T00:00:00.000007Z'": ["b"],
            "@created_at < '1970-01-01T00:00:00.000007'": ["a"],
            "@updated_at > '1970-01-01T02:00:00.000008+02:00'": ["b"],
            "@created_at between 1970-01-01 and 1970-01-02": ["a", "b"],
            "not @created_at exists": [],
        }
        for text, expected in cases.items():
            assert list(backend.keys(Query(where=parse(text)))) == expected, text

    def test_conditions_follow_changes(self, backend: MetadataBackend) -> None:
        """What counts is the metadata now."""
        put(backend, "a", metadata={"v": "x\0"})
        put(backend, "b", metadata={"v": 2})
        commit(
            backend, make_patch("a", {"v": 3}), make_patch("b", {"v": "y\0"}), make_copy("b", "c")
        )
        assert list(backend.keys(Query(where=v > 2))) == ["a"]
        assert list(backend.keys(Query(where=v.contains("\0")))) == ["b", "c"]
        commit(backend, make_patch("b", {"w": 1}), make_patch("c", {"v": "y"}, replace=True))
        assert list(backend.keys(Query(where=v.startswith("y\0")))) == ["b"]

    def test_names_that_mean_something_elsewhere(self, backend: MetadataBackend) -> None:
        """Names of fields are data, at every level."""
        from blobstore.testing.metadata_backend.filters import ODD_NAMES

        commit(
            backend,
            *(make_put(f"k{i:03}", metadata={n: i}) for i, n in enumerate(ODD_NAMES)),
            *(make_put(f"n{i:03}", metadata={"in": {n: i}}) for i, n in enumerate(ODD_NAMES)),
        )
        for i, name in enumerate(ODD_NAMES):
            where = (F([name]) >= i) & F([name]).exists()
            assert list(backend.keys(Query(where=where))) == [f"k{i:03}"], name
            assert list(backend.keys(Query(where=F(["in", name]) == i))) == [f"n{i:03}"], name
            ordered = Query(where=F([name]).exists(), order=(F([name]).desc(),))
            assert list(backend.keys(ordered)) == [f"k{i:03}"], name

    def test_conditions_of_many_parts(self, backend: MetadataBackend) -> None:
        """More than most databases have room for in one statement."""
        commit(backend, *(make_put(f"k{i}", metadata={"v": i}) for i in range(50)))
        many = parse({"$or": [{"v": i} for i in range(40, 1500)]})
        assert backend.count(Query(where=many)) == 10
        assert backend.count(Query(where=v.isin(range(45, 50_000)))) == 5
        assert backend.count(Query(where=v.notin(range(45, 50_000)))) == 45
        deep: Expression = v == 1
        for _ in range(30):
            deep = ~(deep & (v >= 0)) | (v < 0)
        assert backend.count(Query(where=deep)) == 1

    def test_counting_up_to_a_limit(self, backend: MetadataBackend) -> None:
        """And behind a key."""
        commit(backend, *(make_put(f"k{i}", metadata={"v": i % 2}) for i in range(9)))
        assert backend.count(Query(where=v == 0, limit=3)) == 3
        assert backend.count(Query(where=v == 0, after="k4")) == 2
        assert backend.count(Query(where=v == 0, limit=0)) == 0


class OrderTests(BackendFactory):
    """In which order entries come."""

    RANKS = ("numbers", "text", "booleans", "others")

    def expected(self, *, descending: bool) -> list[list[str]]:
        """The keys of `KEYED` in groups that are equal, in order."""
        equal = [
            *([key] for key in NUMBERS),
        ]
        numbers = self._joined(equal, [("minus zero", "zero"), ("one", "one float")])
        numbers = self._joined(numbers, [("2**53", "2**53 float")])
        # Beyond 64 bits integers count as their nearest double.
        numbers = self._joined(numbers, [("2**63", "2**63 float"), ("2**70 float", "2**70+1")])
        texts = self._joined(
            [[key] for key in TEXTS], [("text a nul b", "text a one b")]
        )  # U+0000 counts as U+0001
        booleans = [["false"], ["true"]]
        others = [sorted(set(KEYED) - ALL_NUMBERS - ALL_TEXT - {"true", "false"})]
        step = -1 if descending else 1
        return [*numbers[::step], *texts[::step], *booleans[::step], *others]

    @staticmethod
    def _joined(groups: list[list[str]], pairs: list[tuple[str, str]]) -> list[list[str]]:
        for pair in pairs:
            first = next(i for i, group in enumerate(groups) if set(group) & set(pair))
            merged = sorted(set(groups[first]) | set(groups[first + 1]))
            assert set(pair) <= set(merged)
            groups = [*groups[:first], merged, *groups[first + 2 :]]
        return groups

    @pytest.mark.parametrize("descending", [False, True])
    def test_order_of_all_kinds(self, place: Path, *, descending: bool) -> None:
        """Numbers, text, booleans, the rest: either way; the key breaks ties."""
        expected = [key for group in self.expected(descending=descending) for key in sorted(group)]
        order = (Order(parse_field("v"), descending),)
        with self.opened(place) as backend:
            fill(backend, KEYED)
            assert list(backend.keys(Query(order=order))) == expected
            assert [entry.key for entry in backend.scan(Query(order=order))] == expected
            for limit in (0, 1, 7, 1000):
                assert list(backend.keys(Query(order=order, limit=limit))) == expected[:limit]

    @pytest.mark.parametrize("descending", [False, True])
    def test_going_on_from_any_place(self, backend: MetadataBackend, *, descending: bool) -> None:
        """A cursor made from an entry leads to those behind it, and to no other."""
        fill(backend, KEYED)
        order = (Order(parse_field("v"), descending),)
        expected = [key for group in self.expected(descending=descending) for key in sorted(group)]
        for number, entry in enumerate(list(backend.scan(Query(order=order)))):
            after = Cursor.of(order, entry)
            query = Query(order=order, after=after)
            assert list(backend.keys(query)) == expected[number + 1 :], entry.key
            assert backend.count(query) == len(expected) - number - 1, entry.key

    @pytest.mark.parametrize("directions", list(permutations(["", "-", ""])))
    def test_several_fields(
        self, backend: MetadataBackend, directions: tuple[str, str, str]
    ) -> None:
        """Each in its direction; metadata and an entry's own mixed."""
        rows = {
            f"k{i:02}": (i % 3, "xyz"[i // 3 % 3], i % 4) for i in (7 * n % 36 for n in range(36))
        }
        commit(
            backend,
            *(
                make_put(key, make_blob(size=size), metadata={"n": n, "in": {"t": t}})
                for key, (n, t, size) in rows.items()
            ),
        )
        one, two, three = directions
        order = parse_order([f"{one}n", f"{two}in.t", f"{three}@size"])

        def place(key: str) -> tuple[Any, ...]:
            n, t, size = rows[key]
            return (
                -n if one else n,
                -ord(t) if two else ord(t),
                -size if three else size,
                key,
            )

        expected = sorted(rows, key=place)
        assert list(backend.keys(Query(order=order))) == expected
        paged: list[str] = []
        after: Cursor | None = None
        while page := list(backend.scan(Query(order=order, after=after, limit=5))):
            paged += [entry.key for entry in page]
            after = Cursor.of(order, page[-1])
        assert paged == expected
        filtered = Query(where=F("n") > 0, order=order, prefix="k1")
        assert list(backend.keys(filtered)) == [
            key for key in expected if rows[key][0] > 0 and key.startswith("k1")
        ]

    def test_an_entrys_own_order(self, backend: MetadataBackend) -> None:
        """By key, backwards, too; by time, size, type."""
        put(backend, "b", make_blob(size=1), now_us=3, data_type="x")
        put(backend, "a", make_blob(size=3), now_us=2, data_type="y")
        put(backend, "\U00010000", make_blob(size=2), now_us=1, data_type="y")
        put(backend, "\uffff", make_blob(size=2), now_us=4, data_type="X")
        cases = {
            "@key": ["a", "b", "\uffff", "\U00010000"],
            "-@key": ["\U00010000", "\uffff", "b", "a"],
            "@created_at": ["\U00010000", "a", "b", "\uffff"],
            "-@updated_at": ["\uffff", "b", "a", "\U00010000"],
            "@size": ["b", "\uffff", "\U00010000", "a"],
            "-@size": ["a", "\uffff", "\U00010000", "b"],
            "@id": ["b", "a", "\U00010000", "\uffff"],
            "@data_type": ["\uffff", "b", "a", "\U00010000"],
            "@handler": ["a", "b", "\uffff", "\U00010000"],
        }
        for name, expected in cases.items():
            assert list(backend.keys(Query(order=parse_order(name)))) == expected, name

    def test_a_place_that_no_entry_has(self, backend: MetadataBackend) -> None:
        """The entry that a cursor was made from may be gone or changed."""
        commit(backend, *(make_put(f"k{i}", metadata={"v": i}) for i in range(6)))
        order = parse_order("v")
        for value, key, expected in (
            (2, "k2", ["k3", "k4", "k5"]),
            (2, "k1", ["k2", "k3", "k4", "k5"]),
            (2.5, "", ["k3", "k4", "k5"]),
            (-BIG, "zzz", [f"k{i}" for i in range(6)]),
            (BIG, "", []),
            ("", "", []),
            (None, "", []),
            (MISSING, "", []),
        ):
            query = Query(order=order, after=Cursor((value,), key))
            assert list(backend.keys(query)) == expected, value
        backwards = Query(order=parse_order("-v"), after=Cursor((2.5,), "k9"))
        assert list(backend.keys(backwards)) == ["k2", "k1", "k0"]


class QueryTests(BackendFactory):
    """Many entries, others at work, sums of values, indexes."""

    def test_ordered_pages_of_thousands(self, backend: MetadataBackend) -> None:
        """Without gaps and repetitions, few values for many entries."""
        commit(
            backend,
            *(make_put(f"k{i:04}", metadata={"v": i * 7919 % 10}) for i in range(3000)),
        )
        expected = sorted(range(3000), key=lambda i: (-(i * 7919 % 10), i))
        query = Query(order=parse_order("-v"))
        assert list(backend.keys(query)) == [f"k{i:04}" for i in expected]
        assert [entry.key for entry in backend.scan(query)] == [f"k{i:04}" for i in expected]
        odd = Query(where=v.isin([1, 3, 5, 7, 9]), order=parse_order("-v"))
        assert list(backend.keys(odd)) == [f"k{i:04}" for i in expected if i * 7919 % 2]

    @pytest.mark.parametrize("order_by", [None, "v", "-v"])
    def test_querying_while_changing(self, backend: MetadataBackend, order_by: str | None) -> None:
        """Entries that stay as they are come once, in order; what is given had to match."""
        commit(backend, *(make_put(f"k{i:04}", metadata={"v": i}) for i in range(1500)))
        seen: list[int] = []
        query = Query(where=v >= 100, order=parse_order(order_by))
        for number, entry in enumerate(backend.scan(query)):
            assert entry.metadata["v"] >= 100
            seen.append(entry.metadata["v"])
            if number % 300 == 0:
                commit(
                    backend,
                    Delete(f"k{700 + number // 300:04}"),
                    make_patch(f"k{800 + number // 300:04}", {"v": 0}),
                    make_put(f"k{900 + number // 300:04}/x", metadata={"v": 5}),
                )
        step = -1 if order_by == "-v" else 1
        assert all(one < two for one, two in pairwise(seen[::step]))
        stayed = set(range(100, 1500)) - set(range(700, 706)) - set(range(800, 806))
        assert set(seen) >= stayed

    def test_patching_what_is_found(self, backend: MetadataBackend) -> None:
        """The way `update_many` works: what no longer matches does not come again."""
        commit(backend, *(make_put(f"k{i:04}", metadata={"v": i % 2}) for i in range(700)))
        for key in backend.keys(Query(where=v == 1)):
            commit(backend, make_patch(key, {"v": 0}))
        assert backend.count(Query(where=v == 0)) == 700

    def test_a_query_may_be_given_up(self, backend: MetadataBackend) -> None:
        """An unfinished answer blocks nobody."""
        commit(backend, *(make_put(f"k{i:04}", metadata={"v": i}) for i in range(1500)))
        scan = backend.scan(Query(where=v > 3, order=parse_order("-v")))
        assert next(scan).key == "k1499"
        commit(backend, Delete("k0007"))
        del scan
        assert backend.count(Query(where=v > 3)) == 1495

    def test_tallies(self, backend: MetadataBackend) -> None:
        """How many entries have which values; MISSING is not None, true is not 1."""
        fill(backend, KEYED)
        fields = [parse_field("v"), parse_field("v.x")]
        found: Counter[str] = Counter()
        for values, count in backend.tally(Query(), fields):
            found[self.form(*values)] += count
        expected: Counter[str] = Counter()
        for value in KEYED.values():
            inner = value["x"] if isinstance(value, dict) and value else MISSING
            expected[self.form(MISSING if value is NO_VALUE else value, inner)] += 1
        assert found == expected

    def test_tallies_of_some(self, backend: MetadataBackend) -> None:
        """Only entries that match; several fields, an entry's own among them."""
        commit(
            backend,
            *(
                make_put(f"k{i}", make_blob(size=i % 2), metadata={"v": "ab"[i % 2], "n": i})
                for i in range(10)
            ),
        )
        fields = [parse_field("v"), parse_field("@size"), parse_field("nothing")]
        found: Counter[str] = Counter()
        for values, count in backend.tally(Query(where=F("n") > 2), fields):
            found[self.form(*values)] += count
        assert found == {self.form("a", 0, MISSING): 3, self.form("b", 1, MISSING): 4}
        none = [parse_field("v")]
        assert list(backend.tally(Query(where=F("n") > 99), none)) == []
        assert sum(count for _, count in backend.tally(Query("k", limit=3), none)) == 3

    @staticmethod
    def form(*values: Any) -> str:
        """Make a text that is equal for equal values; numbers by value."""
        return repr(
            [
                value.as_integer_ratio()
                if isinstance(value, int | float) and not isinstance(value, bool)
                else value
                for value in values
            ]
        )

    def test_field_indexes(self, place: Path) -> None:
        """They change no answer, are listed, survive reopening, and can be dropped; or are refused."""
        field = parse_field("v")
        with self.opened(place) as backend:
            fill(backend, KEYED)
            assert backend.indexes() == []
            try:
                made = backend.create_index(field)
            except NotSupportedError as exc:
                assert type(backend).__name__ in str(exc)  # noqa: PT017 - either way is right
                assert backend.drop_index(field) is False
                assert backend.indexes() == []
                return
            assert made.field == field
            assert backend.create_index(field) == made
            assert backend.indexes() == [made]
        with self.opened(place) as backend:
            assert backend.indexes() == [made]
            ConditionTests().check(backend, COMPARISONS)
            ConditionTests().check(backend, PATTERNS)
            for descending in (False, True):
                groups = OrderTests().expected(descending=descending)
                expected = [key for group in groups for key in sorted(group)]
                order = (Order(field, descending),)
                assert list(backend.keys(Query(order=order))) == expected
                numbers = Query(where=v > -BIG, order=order, limit=3)
                assert (
                    list(backend.keys(numbers))
                    == [key for key in expected if key in ALL_NUMBERS - {"minus big"}][:3]
                )
            assert backend.drop_index(field) is True
            assert backend.drop_index(field) is False
            assert backend.indexes() == []
            ConditionTests().check(backend, COMPARISONS[::9])

    def test_explaining(self, backend: MetadataBackend) -> None:
        """Every query can be explained, whatever is said."""
        fill(backend, {"a": 1, "b": "\0"})
        for query in (
            Query(),
            Query("a"),
            Query(where=(v > 0) & (F("@size") < 10) | v.contains("\0")),
            Query("a", v == BIG, parse_order(["-v", "@size"]), limit=10),
        ):
            explanation = backend.explain(query)
            assert explanation.statement
            assert str(explanation)
            assert explanation.indexes == ()
