"""Keys, their order, prefixes and pages."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from blobstore.protocols import (
    Delete,
    MetadataBackend,
)
from blobstore.query import Query
from blobstore.testing.metadata_backend.build import (
    ALL,
    BackendFactory,
    commit,
    equal_to,
    make_patch,
    make_put,
    stored,
)

ODD_KEYS = (
    "a",
    "A",
    "a/b",
    "a//b",
    "ab",
    "a b",
    " a",
    "a ",
    "a%",
    "a%b",
    "a_",
    "a_b",
    "axb",
    "a*",
    "a?",
    "a[b]",
    "a[",
    "a\\",
    "a'b",
    'a"b',
    "a;--",
    "a\nb",
    "a\r",
    "a\tb",
    "a\x01",
    "a\x1f",
    "a\x7f",
    "a\x85b",
    "a\u2028b",
    ".",
    "..",
    "../a",
    "/a",
    "-",
    "null",
    "0",
    "1e3",
    "cache_metadata.json",
    "blobstore.json",
    "é",
    "e\u0301",
    "ß",
    "SS",
    "ı",  # noqa: RUF001 - folds like the letter it resembles
    "İ",
    "日本",
    "\ud7ff",
    "\ud7ffa",
    "\ue000",
    "\ufeff",
    "\uffff",
    "\uffffa",
    "\U00010000",
    "\U0001f389",
    "\U0001f389a",
    "\U0010ffff",
    "\U0010ffff\U0010ffff",
    "x" * 2048,
    "\U0001f389" * 512,
)
"""Keys that some index somewhere sorts, folds, escapes or cuts."""

ODD_PREFIXES = (
    *("", "a", "A", "a/", "a%", "%", "a_", "_", "a*", "*", "a[", "[", "a\\", "a'", 'a"', "a ", " "),
    *("a\n", "a\x01", ".", "..", "é", "e", "e\u0301", "\u0301", "ß", "s", "i", "日", "\ud7ff"),
    *("\ue000", "\uffff", "\U00010000", "\U0001f389", "\U0010ffff", "x" * 2048, "zzz"),
)


class ListingTests(BackendFactory):
    """Order, prefixes, pages."""

    def fill(self, backend: MetadataBackend, keys: Iterable[str]) -> None:
        """Put keys in one commit, in an order that is not theirs."""
        commit(backend, *(make_put(key) for key in sorted(keys, key=lambda k: k[::-1])))

    def test_any_key_is_itself(self, place: Path) -> None:
        """No key is altered, nor taken for another; also after reopening."""
        with self.opened(place) as backend:
            commit(backend, *(make_put(k, metadata={"is": k}) for k in ODD_KEYS))
            assert all(stored(backend, key).metadata == {"is": key} for key in ODD_KEYS)
        with self.opened(place) as backend:
            assert {e.key: e.metadata["is"] for e in backend.scan(ALL)} == {k: k for k in ODD_KEYS}

    def test_keys_are_ordered_by_code_point(self, backend: MetadataBackend) -> None:
        """As Python sorts them: not by UTF-16 unit, not by locale, not without case."""
        self.fill(backend, ODD_KEYS)
        assert list(backend.keys(ALL)) == sorted(ODD_KEYS)
        assert [entry.key for entry in backend.scan(ALL)] == sorted(ODD_KEYS)

    def test_prefixes_are_literal(self, backend: MetadataBackend) -> None:
        """No character is special, case counts."""
        self.fill(backend, ODD_KEYS)
        for prefix in ODD_PREFIXES:
            expected = sorted(key for key in ODD_KEYS if key.startswith(prefix))
            assert list(backend.keys(Query(prefix=prefix))) == expected, prefix
            assert backend.count(Query(prefix=prefix)) == len(expected), prefix

    def test_after_is_exclusive(self, backend: MetadataBackend) -> None:
        """Whether the key exists or not, inside the prefix or not."""
        self.fill(backend, ODD_KEYS)
        for after in (*ODD_KEYS, "", "a!", "zzz"):
            above = sorted(key for key in ODD_KEYS if key > after)
            assert list(backend.keys(Query(after=after))) == above, after
            assert list(backend.keys(Query(prefix="a", after=after))) == [
                key for key in above if key.startswith("a")
            ], after

    @pytest.mark.parametrize("limit", [0, 1, 5, 1000])
    def test_limit(self, backend: MetadataBackend, limit: int) -> None:
        """The first so many, and never more."""
        self.fill(backend, ODD_KEYS)
        expected = sorted(ODD_KEYS)[:limit]
        assert list(backend.keys(Query(limit=limit))) == expected
        assert [entry.key for entry in backend.scan(Query(limit=limit))] == expected
        assert backend.count(Query(limit=limit)) == len(expected)

    def test_limit_counts_matches(self, backend: MetadataBackend) -> None:
        """Entries that the filter drops do not use up the limit."""
        commit(backend, *(make_put(f"k{i:03}", metadata={"odd": i % 2 == 1}) for i in range(100)))
        query = equal_to({"odd": True}, after="k010", limit=3)
        assert list(backend.keys(query)) == ["k011", "k013", "k015"]
        assert [entry.key for entry in backend.scan(query)] == ["k011", "k013", "k015"]

    def test_an_empty_index_lists_nothing(self, backend: MetadataBackend) -> None:
        """No entries, no blobs, no problems."""
        assert (list(backend.scan(ALL)), list(backend.keys(ALL)), backend.count(ALL)) == ([], [], 0)
        assert (list(backend.blobs()), backend.condemned(), backend.check()) == ([], [], [])

    def test_three_thousand_entries_page_by_page(self, backend: MetadataBackend) -> None:
        """Pages put together are the whole, without gaps and repetitions."""
        keys = [f"k/{i:05}" for i in range(3000)]
        self.fill(backend, [*keys, "j", "l"])
        paged: list[str] = []
        while page := list(
            backend.keys(Query(prefix="k/", after=paged[-1] if paged else None, limit=700))
        ):
            paged += page
        assert paged == keys
        entries = list(backend.scan(Query(prefix="k/")))
        assert [entry.key for entry in entries] == keys
        assert len({entry.id for entry in entries}) == 3000
        assert backend.count(ALL) == 3002

    def test_get_many_of_thousands(self, backend: MetadataBackend) -> None:
        """Absent keys are left out, repeated ones are there once, the order is free."""
        keys = [f"k/{i:05}" for i in range(0, 3000, 3)]
        self.fill(backend, keys)
        asked = [f"k/{i:05}" for i in range(3000)]
        found = backend.get_many(iter(asked + asked[:10]))
        assert sorted(found) == keys
        assert all(found[key].key == key for key in keys)
        assert found[keys[7]] == stored(backend, keys[7])

    def test_get_many_of_odd_keys(self, backend: MetadataBackend) -> None:
        """Keys are data there, too."""
        self.fill(backend, ODD_KEYS[::2])
        assert set(backend.get_many(ODD_KEYS)) == set(ODD_KEYS[::2])
        assert backend.get_many([]) == {}

    def test_scanning_while_changing(self, backend: MetadataBackend) -> None:
        """Entries that stay are seen once, in order; nothing breaks."""
        keys = [f"k/{i:05}" for i in range(1500)]
        self.fill(backend, keys)
        seen: list[str] = []
        for number, entry in enumerate(backend.scan(ALL)):
            seen.append(entry.key)
            if number % 300 == 0:
                commit(
                    backend,
                    Delete(f"k/{1499 - number // 300:05}"),
                    make_put(f"k/00000/{number}"),
                    make_patch("k/00700", {"n": number}),
                )
        assert all(one < two for one, two in pairwise(seen))
        assert set(seen) >= set(keys[:1490])

    def test_deleting_what_is_listed(self, backend: MetadataBackend) -> None:
        """The way `clear` works."""
        self.fill(backend, (f"k{i}" for i in range(300)))
        for key in backend.keys(ALL):
            commit(backend, Delete(key, "present"))
        assert backend.count(ALL) == 0

    def test_a_scan_may_be_given_up(self, place: Path) -> None:
        """An unfinished iterator holds nothing that blocks others, or leaks."""
        with self.opened(place) as backend:
            self.fill(backend, (f"k{i:04}" for i in range(1500)))
            scan = backend.scan(ALL)
            assert next(scan).key == "k0000"
            commit(backend, Delete("k0001"))
            with self.opened(place) as other:
                commit(other, Delete("k0002"))
            del scan
            assert backend.count(ALL) == 1498
