"""Commits as a whole: expectations, atomicity, retries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from blobstore.errors import (
    ConflictError,
    KeyExistsError,
    KeyNotFoundError,
)
from blobstore.keys import random_id
from blobstore.protocols import (
    CommitResult,
    Delete,
    Expected,
    MetadataBackend,
    Operation,
)
from blobstore.testing.metadata_backend.build import (
    BackendFactory,
    commit,
    make_blob,
    make_copy,
    make_patch,
    make_put,
    put,
    snapshot,
    states,
    stored,
)

_WITH_EXPECTATION: dict[str, Callable[[Expected], Operation]] = {
    "put": lambda expected: make_put("k", expected=expected),
    "delete": lambda expected: Delete("k", expected),
    "patch": lambda expected: make_patch("k", {"a": 2}, expected=expected),
}
_operations = pytest.mark.parametrize("make", _WITH_EXPECTATION.values(), ids=_WITH_EXPECTATION)


class ExpectationTests(BackendFactory):
    """What must be true of a key for the commit to happen."""

    def refuse(
        self, backend: MetadataBackend, operation: Operation, error: type[Exception]
    ) -> None:
        """Insist that the commit raises `error`, names the key and changes nothing."""
        before = snapshot(backend)
        with pytest.raises(error) as caught:
            commit(backend, operation)
        assert getattr(caught.value, "key", None) == "k"
        assert snapshot(backend) == before

    @_operations
    def test_absent_refuses_a_taken_key(
        self, backend: MetadataBackend, make: Callable[[Expected], Operation]
    ) -> None:
        """The key is taken."""
        put(backend, "k")
        self.refuse(backend, make("absent"), KeyExistsError)

    def test_absent_lets_a_first_put_through(self, backend: MetadataBackend) -> None:
        """The key is free, also once it was deleted."""
        put(backend, "k", expected="absent")
        commit(backend, Delete("k"))
        assert put(backend, "k", expected="absent").version == 1

    @_operations
    def test_present_refuses_an_absent_key(
        self, backend: MetadataBackend, make: Callable[[Expected], Operation]
    ) -> None:
        """There is no such key."""
        self.refuse(backend, make("present"), KeyNotFoundError)

    @_operations
    def test_present_lets_a_taken_key_through(
        self, backend: MetadataBackend, make: Callable[[Expected], Operation]
    ) -> None:
        """The key is there."""
        put(backend, "k")
        assert commit(backend, make("present")).entries != (None,)

    @_operations
    @pytest.mark.parametrize("version", [0, 1, 3])
    def test_another_version_is_a_conflict(
        self, backend: MetadataBackend, make: Callable[[Expected], Operation], version: int
    ) -> None:
        """Older, newer or none: not the one that was read."""
        put(backend, "k")
        put(backend, "k")
        self.refuse(backend, make(version), ConflictError)

    @_operations
    def test_a_version_of_an_absent_key_is_a_conflict(
        self, backend: MetadataBackend, make: Callable[[Expected], Operation]
    ) -> None:
        """It was there when the caller read it, so somebody was faster."""
        self.refuse(backend, make(1), ConflictError)

    @_operations
    def test_the_right_version_passes(
        self, backend: MetadataBackend, make: Callable[[Expected], Operation]
    ) -> None:
        """Compare and swap."""
        put(backend, "k")
        put(backend, "k")
        assert commit(backend, make(2)).entries != (None,)

    @_operations
    def test_the_entry_itself_passes(
        self, backend: MetadataBackend, make: Callable[[Expected], Operation]
    ) -> None:
        """Compare and swap on what was read."""
        entry = put(backend, "k")
        assert commit(backend, make(entry)).entries != (None,)

    @_operations
    def test_a_changed_entry_is_a_conflict(
        self, backend: MetadataBackend, make: Callable[[Expected], Operation]
    ) -> None:
        """Its version moved on."""
        entry = put(backend, "k")
        commit(backend, make_patch("k", {"a": 1}))
        self.refuse(backend, make(entry), ConflictError)

    @_operations
    def test_a_removed_entry_is_a_conflict(
        self, backend: MetadataBackend, make: Callable[[Expected], Operation]
    ) -> None:
        """It is gone."""
        entry = put(backend, "k")
        commit(backend, Delete("k"))
        self.refuse(backend, make(entry), ConflictError)

    @_operations
    def test_a_remade_entry_of_equal_version_is_a_conflict(
        self, backend: MetadataBackend, make: Callable[[Expected], Operation]
    ) -> None:
        """The id tells it from the one that was read, which the version cannot."""
        entry = put(backend, "k")
        commit(backend, Delete("k"))
        assert put(backend, "k").version == entry.version
        self.refuse(backend, make(entry), ConflictError)


class AtomicityTests(BackendFactory):
    """Several operations in one commit."""

    @pytest.mark.parametrize("first", [True, False], ids=["refused first", "refused last"])
    @pytest.mark.parametrize(
        ("refused", "error"),
        [
            (make_put("taken", expected="absent"), KeyExistsError),
            (Delete("absent", "present"), KeyNotFoundError),
            (make_patch("taken", {}, expected=9), ConflictError),
            (make_copy("other", "taken", overwrite=False), KeyExistsError),
        ],
        ids=["put", "delete", "patch", "copy"],
    )
    def test_one_refusal_leaves_all_as_it_was(
        self,
        backend: MetadataBackend,
        refused: Operation,
        error: type[Exception],
        first: bool,
    ) -> None:
        """No entry, no blob row and no id stems from a refused commit."""
        put(backend, "taken", make_blob(digest="d"))
        put(backend, "other")
        put(backend, "doomed")
        before = snapshot(backend)
        others: list[Operation] = [
            make_put("new"),
            make_put("shared", make_blob(digest="d")),
            make_put("other"),
            Delete("doomed"),
            make_copy("taken", "copied"),
            make_patch("taken", {"a": 1}),
        ]
        with pytest.raises(error):
            commit(backend, *([refused, *others] if first else [*others, refused]))
        assert snapshot(backend) == before
        assert backend.check() == []

    def test_one_missing_blob_leaves_all_as_it_was(self, backend: MetadataBackend) -> None:
        """A missing blob refuses the other operations too."""
        put(backend, "a")
        before = snapshot(backend)
        gone = make_blob()
        result = backend.commit(
            [make_put("b"), make_put("c", gone, reused=[gone]), Delete("a")], random_id()
        )
        assert result.missing == (gone.location,)
        assert snapshot(backend) == before

    def test_put_then_patch(self, backend: MetadataBackend) -> None:
        """The patch sees the put."""
        result = commit(backend, make_put("k", metadata={"a": 1}), make_patch("k", {"b": 2}))
        entry = stored(backend, "k")
        assert (entry.metadata, entry.version) == ({"a": 1, "b": 2}, 2)
        assert result.entries[1] == entry

    def test_put_then_copy(self, backend: MetadataBackend) -> None:
        """The copy sees the put, and shares its blob."""
        blob = make_blob()
        commit(backend, make_put("a", blob), make_copy("a", "b"))
        assert stored(backend, "b").locations == (blob.location,)
        assert commit(backend, Delete("a")).condemned == ()

    def test_delete_then_put(self, backend: MetadataBackend) -> None:
        """The put makes another entry, and may expect the key to be absent."""
        old, new = make_blob(), make_blob()
        first = put(backend, "k", old)
        result = commit(backend, Delete("k"), make_put("k", new, expected="absent"))
        second = stored(backend, "k")
        assert result == CommitResult(entries=(first, second), condemned=(old.location,))
        assert second.id != first.id
        assert second.version == 1

    def test_put_then_delete(self, backend: MetadataBackend) -> None:
        """Nothing is left but a condemned blob."""
        blob = make_blob()
        result = commit(backend, make_put("k", blob), Delete("k", "present"))
        assert (backend.get("k"), result.condemned) == (None, (blob.location,))
        assert states(backend) == {blob.location: "condemned"}

    def test_put_twice(self, backend: MetadataBackend) -> None:
        """The second overwrites the first, whose blob goes."""
        lost, kept = make_blob(), make_blob()
        result = commit(backend, make_put("k", lost), make_put("k", kept, expected=1))
        entry = stored(backend, "k")
        assert (entry.version, entry.locations) == (2, (kept.location,))
        assert result.entries[1] == entry
        assert result.condemned == (lost.location,)

    def test_swapping_two_keys(self, backend: MetadataBackend) -> None:
        """Three moves in one commit; no blob is lost on the way."""
        one, two = make_blob(), make_blob()
        put(backend, "a", one)
        put(backend, "b", two)
        moves = [("a", "c"), ("b", "a"), ("c", "b")]
        result = commit(backend, *(make_copy(*pair, move=True) for pair in moves))
        assert result.condemned == ()
        assert stored(backend, "a").locations == (two.location,)
        assert stored(backend, "b").locations == (one.location,)
        assert set(states(backend).values()) == {"live"}

    def test_a_blob_that_finds_a_new_reference_stays(self, backend: MetadataBackend) -> None:
        """References are counted at the end of the commit, not in the middle of it."""
        blob = make_blob()
        put(backend, "a", blob)
        result = commit(backend, Delete("a"), make_put("b", blob, reused=[blob]))
        assert result.condemned == ()
        assert states(backend) == {blob.location: "live"}


class RetryTests(BackendFactory):
    """The same commit again, after its answer was lost."""

    @pytest.mark.parametrize("prepare", [(), (make_put("k", now_us=0),)], ids=["new", "overwrite"])
    def test_put(self, backend: MetadataBackend, prepare: Sequence[Operation]) -> None:
        """A landed put is not done twice."""
        commit(backend, *prepare)
        self.land_twice(backend, make_put("k", make_blob(digest="d")))

    def test_put_that_expected_the_key_absent(self, backend: MetadataBackend) -> None:
        """Its own entry is no reason to refuse it."""
        self.land_twice(backend, make_put("k", expected="absent"))

    def test_put_that_expected_a_version(self, backend: MetadataBackend) -> None:
        """Its own version is no conflict."""
        put(backend, "k")
        self.land_twice(backend, make_put("k", expected=1))

    def test_put_that_expected_an_entry(self, backend: MetadataBackend) -> None:
        """Nor is its own change of the entry."""
        entry = put(backend, "k")
        self.land_twice(backend, make_put("k", expected=entry))

    def test_put_that_adopted(self, backend: MetadataBackend) -> None:
        """Its own condemned location is not missing."""
        put(backend, "a", make_blob(digest="d"))
        self.land_twice(backend, make_put("b", make_blob(digest="d")))

    def test_put_that_reused(self, backend: MetadataBackend) -> None:
        """A reused blob is not counted twice."""
        blob = make_blob()
        put(backend, "a", blob)
        self.land_twice(backend, make_put("b", blob, reused=[blob]))

    def test_patch(self, backend: MetadataBackend) -> None:
        """The version counts once."""
        put(backend, "k", metadata={"a": 1})
        self.land_twice(backend, make_patch("k", {"b": 2}, expected=1))

    def test_copy(self, backend: MetadataBackend) -> None:
        """The target is its own."""
        put(backend, "a")
        self.land_twice(backend, make_copy("a", "b", overwrite=False))

    def test_move(self, backend: MetadataBackend) -> None:
        """The source is gone because of the commit itself."""
        put(backend, "a")
        self.land_twice(backend, make_copy("a", "b", move=True))

    def test_several(self, backend: MetadataBackend) -> None:
        """All of them are recognised."""
        put(backend, "a")
        put(backend, "b")
        self.land_twice(
            backend, make_put("c"), make_patch("a", {"x": 1}), make_copy("b", "d"), make_put("b")
        )

    def test_mixed_with_deletes(self, backend: MetadataBackend) -> None:
        """What it deleted stays deleted, what it wrote stays written."""
        put(backend, "a")
        commit_id = random_id()
        operations: list[Operation] = [Delete("a", "present"), make_put("b", expected="absent")]
        first = backend.commit(operations, commit_id)
        before = snapshot(backend)
        assert backend.commit(operations, commit_id).entries[1] == first.entries[1]
        assert snapshot(backend) == before

    def test_by_another_process_or_later(self, place: Path) -> None:
        """The commit id is kept with the entry, not in memory."""
        operations: list[Operation] = [make_put("k", expected="absent")]
        commit_id = random_id()
        with self.opened(place) as backend:
            first = backend.commit(operations, commit_id)
        with self.opened(place) as backend:
            assert backend.commit(operations, commit_id).entries == first.entries

    def test_another_id_is_another_commit(self, backend: MetadataBackend) -> None:
        """Equal operations under a new id are done again."""
        operation = make_patch("k", {"a": 1})
        put(backend, "k")
        commit(backend, operation)
        commit(backend, operation)
        assert stored(backend, "k").version == 3

    def land_twice(self, backend: MetadataBackend, *operations: Operation) -> None:
        """Insist that a second commit answers alike and changes nothing."""
        commit_id = random_id()
        first = backend.commit(operations, commit_id)
        before = snapshot(backend)
        again = backend.commit(operations, commit_id)
        assert (again.entries, again.missing) == (first.entries, ())
        assert snapshot(backend) == before
