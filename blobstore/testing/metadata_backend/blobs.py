"""Blob rows: shared, missing, announced, condemned, forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobstore.entry import Part
from blobstore.errors import (
    KeyNotFoundError,
)
from blobstore.keys import new_location, random_id
from blobstore.protocols import (
    CommitResult,
    Delete,
    MetadataBackend,
)
from blobstore.testing.metadata_backend.build import (
    BackendFactory,
    commit,
    make_blob,
    make_put,
    put,
    snapshot,
    states,
    stored,
)


class SharingTests(BackendFactory):
    """Blobs of equal content, and blobs that are used again."""

    def test_equal_content_adopts_the_live_blob(self, backend: MetadataBackend) -> None:
        """The entry points at the blob that was there; the new one is condemned."""
        winner, loser = make_blob(digest="d", codec="lz4"), make_blob(digest="d", codec="zstd")
        put(backend, "a", winner)
        result = commit(backend, make_put("b", loser))
        assert result.condemned == (loser.location,)
        assert result.entries == (stored(backend, "b"),)
        assert stored(backend, "b").parts == (Part("part0", winner),)
        assert states(backend) == {winner.location: "live", loser.location: "condemned"}

    def test_size_is_that_of_the_adopted_blob(self, backend: MetadataBackend) -> None:
        """Another codec may have made the one that stays larger, or smaller."""
        put(backend, "a", make_blob(digest="d", size=100))
        entry = put(backend, "b", make_blob(digest="d", size=60), make_blob(size=5))
        assert (entry.size, stored(backend, "b").size) == (105, 105)

    def test_overwriting_with_equal_content_keeps_the_blob(self, backend: MetadataBackend) -> None:
        """The old blob is adopted by its own successor."""
        winner, loser = make_blob(digest="d"), make_blob(digest="d")
        put(backend, "k", winner)
        assert commit(backend, make_put("k", loser)).condemned == (loser.location,)
        assert stored(backend, "k").locations == (winner.location,)
        assert states(backend) == {winner.location: "live", loser.location: "condemned"}

    def test_equal_content_within_one_commit(self, backend: MetadataBackend) -> None:
        """The first put wins, the second adopts."""
        winner, loser = make_blob(digest="d"), make_blob(digest="d")
        result = commit(backend, make_put("a", winner), make_put("b", loser))
        assert result.condemned == (loser.location,)
        assert stored(backend, "b").locations == (winner.location,)

    def test_equal_content_within_one_entry(self, backend: MetadataBackend) -> None:
        """Two parts share one blob, which is condemned once."""
        winner, loser = make_blob(digest="d"), make_blob(digest="d")
        result = commit(backend, make_put("k", winner, loser))
        assert result.condemned == (loser.location,)
        assert stored(backend, "k").locations == (winner.location, winner.location)
        assert commit(backend, Delete("k")).condemned == (winner.location,)

    def test_blobs_without_digest_are_never_shared(self, backend: MetadataBackend) -> None:
        """No digest says nothing about content."""
        put(backend, "a", make_blob())
        assert commit(backend, make_put("b", make_blob())).condemned == ()

    def test_content_that_was_condemned_is_not_adopted(self, backend: MetadataBackend) -> None:
        """Its bytes are being deleted; a new blob takes its place."""
        gone, new = make_blob(digest="d"), make_blob(digest="d")
        put(backend, "a", gone)
        commit(backend, Delete("a"))
        assert commit(backend, make_put("a", new)).condemned == ()
        assert stored(backend, "a").locations == (new.location,)
        assert backend.find_digests(["d"]) == {"d": new}

    def test_adopted_content_outlives_its_first_key(self, backend: MetadataBackend) -> None:
        """The last reference condemns, whoever wrote the blob."""
        winner = make_blob(digest="d")
        put(backend, "a", winner)
        put(backend, "b", make_blob(digest="d"))
        assert commit(backend, Delete("a")).condemned == ()
        assert commit(backend, Delete("b")).condemned == (winner.location,)

    def test_a_reused_blob_is_shared(self, backend: MetadataBackend) -> None:
        """Declared as reused, a live blob needs no second row."""
        blob = make_blob()
        put(backend, "a", blob)
        assert commit(backend, make_put("b", blob, reused=[blob])).condemned == ()
        assert stored(backend, "b").parts == stored(backend, "a").parts
        assert commit(backend, Delete("a")).condemned == ()
        assert states(backend) == {blob.location: "live"}

    def test_overwriting_with_its_own_blob_keeps_it(self, backend: MetadataBackend) -> None:
        """Dropped and taken up in one step."""
        kept, dropped = make_blob(), make_blob()
        put(backend, "k", kept, dropped)
        assert commit(backend, make_put("k", kept, reused=[kept])).condemned == (dropped.location,)
        assert states(backend) == {kept.location: "live", dropped.location: "condemned"}

    @pytest.mark.parametrize("how", ["unknown", "condemned", "forgotten", "pending"])
    def test_a_reused_blob_that_is_not_live_is_missing(
        self, backend: MetadataBackend, how: str
    ) -> None:
        """Nothing is committed, so that the writer can write it again."""
        blob, new = make_blob(), make_blob()
        if how in {"condemned", "forgotten"}:
            backend.condemn([blob.location], 5)
        if how == "forgotten":
            backend.forget([blob.location])
        if how == "pending":
            backend.announce([blob])
        before = snapshot(backend)
        result = backend.commit([make_put("k", blob, new, reused=[blob])], random_id())
        assert result.missing == (blob.location,)
        assert result.condemned == ()
        assert snapshot(backend) == before

    def test_a_new_location_that_was_condemned_is_missing(self, backend: MetadataBackend) -> None:
        """The collector came first: its bytes may be gone already."""
        blob = make_blob()
        backend.condemn([blob.location], 5)
        before = snapshot(backend)
        assert backend.commit([make_put("k", blob)], random_id()).missing == (blob.location,)
        assert snapshot(backend) == before

    def test_all_missing_blobs_are_named(self, backend: MetadataBackend) -> None:
        """One round of writing again is enough."""
        one, two, three = make_blob(), make_blob(), make_blob()
        backend.condemn([two.location], 5)
        result = backend.commit(
            [make_put("a", one, make_blob(), reused=[one]), make_put("b", two, three)], random_id()
        )
        assert sorted(result.missing) == sorted([one.location, two.location])

    def test_a_refused_commit_may_be_tried_again_under_its_id(
        self, backend: MetadataBackend
    ) -> None:
        """Only a commit that landed is remembered."""
        blob, commit_id = make_blob(), random_id()
        assert backend.commit([make_put("k", blob, reused=[blob])], commit_id).missing
        with pytest.raises(KeyNotFoundError):
            backend.commit([Delete("k", "present")], commit_id)
        result = backend.commit([make_put("k", blob)], commit_id)
        assert result == CommitResult(entries=(stored(backend, "k"),))


class CollectingTests(BackendFactory):
    """Blobs without an entry: announced, condemned, forgotten."""

    def test_announced_blobs_are_pending(self, place: Path) -> None:
        """They are known, with their facts, but can be neither found nor collected."""
        blob = make_blob(digest="d", size=99, created_us=5)
        with self.opened(place) as backend:
            backend.announce(iter([blob]))
        with self.opened(place) as backend:
            (row,) = backend.blobs()
            assert (row.location, row.state, row.created_us) == (blob.location, "pending", 5)
            assert backend.known([blob.location]) == {blob.location}
            assert (backend.find_digests(["d"]), backend.condemned()) == ({}, [])

    def test_a_commit_makes_pending_blobs_live(self, backend: MetadataBackend) -> None:
        """With the facts of the commit: what was announced was a guess."""
        blob = make_blob(size=0, checksum="", digest=None)
        backend.announce([blob])
        final = make_blob(blob.location, size=12, checksum="blake3:ff", digest="d", codec="zstd")
        put(backend, "k", final)
        (row,) = backend.blobs()
        facts = ("location", "size", "checksum", "digest", "codec", "state")
        for name in facts:
            assert getattr(row, name) == getattr(final, name), name
            assert getattr(stored(backend, "k").parts[0].blob, name) == getattr(final, name), name

    def test_a_pending_blob_that_lost_is_condemned(self, backend: MetadataBackend) -> None:
        """It was written for nothing."""
        loser = make_blob(digest="d")
        put(backend, "a", make_blob(digest="d"))
        backend.announce([loser])
        assert commit(backend, make_put("b", loser)).condemned == (loser.location,)
        assert states(backend)[loser.location] == "condemned"

    def test_pending_blobs_outlive_the_commits_of_others(self, backend: MetadataBackend) -> None:
        """Their writer is still at work: that no entry refers to them is as it should be."""
        blob = make_blob()
        backend.announce([blob])
        assert commit(backend, make_put("k")).condemned == ()
        commit(backend, make_put("k"), Delete("k"))
        assert states(backend)[blob.location] == "pending"

    def test_announcing_a_live_blob_leaves_it_live(self, backend: MetadataBackend) -> None:
        """A late announcement cannot take an entry's blob away."""
        blob = make_blob()
        put(backend, "k", blob)
        backend.announce([blob])
        assert states(backend) == {blob.location: "live"}

    def test_announcing_a_condemned_blob_leaves_it_condemned(
        self, backend: MetadataBackend
    ) -> None:
        """The collector came first."""
        blob = make_blob()
        backend.condemn([blob.location], 5)
        backend.announce([blob])
        assert states(backend) == {blob.location: "condemned"}

    def test_unknown_locations_are_entered_as_condemned(self, backend: MetadataBackend) -> None:
        """So that a put that comes later finds the row."""
        locations = [new_location(".pkl"), new_location("")]
        assert sorted(backend.condemn(iter(locations), 123)) == sorted(locations)
        condemned = {blob.location: blob for blob in backend.condemned()}
        assert sorted(condemned) == sorted(locations)
        assert {(blob.state, blob.condemned_us) for blob in condemned.values()} == {
            ("condemned", 123)
        }

    def test_referenced_blobs_are_not_condemned(self, backend: MetadataBackend) -> None:
        """The answer names only those that may be deleted."""
        live, pending, again = make_blob(), make_blob(), make_blob()
        unknown = new_location("")
        put(backend, "k", live)
        backend.announce([pending])
        backend.condemn([again.location], 1)
        asked = [live.location, pending.location, again.location, unknown]
        answer = backend.condemn(asked, 5)
        assert sorted(answer) == sorted(asked[1:])
        assert states(backend) == {live.location: "live"} | dict.fromkeys(asked[1:], "condemned")

    def test_condemning_nothing(self, backend: MetadataBackend) -> None:
        """No locations, no rows."""
        assert backend.condemn([], 5) == []
        assert list(backend.blobs()) == []

    def test_forgotten_blobs_leave_no_row(self, backend: MetadataBackend) -> None:
        """Others stay; unknown ones are fine."""
        kept, gone = new_location(""), new_location("")
        backend.condemn([kept, gone], 5)
        backend.forget(iter([gone, new_location("")]))
        assert backend.known([kept, gone]) == {kept}
        assert [blob.location for blob in backend.condemned()] == [kept]

    def test_forgetting_touches_condemned_rows_only(self, backend: MetadataBackend) -> None:
        """Live and pending blobs cannot be forgotten."""
        live, pending = make_blob(), make_blob()
        put(backend, "k", live)
        backend.announce([pending])
        backend.forget([live.location, pending.location])
        assert states(backend) == {live.location: "live", pending.location: "pending"}

    def test_known_is_of_any_state(self, backend: MetadataBackend) -> None:
        """Live, pending, condemned; not those of others."""
        live, pending, condemned = make_blob(), make_blob(), make_blob()
        put(backend, "k", live)
        backend.announce([pending])
        backend.condemn([condemned.location], 5)
        ours = {live.location, pending.location, condemned.location}
        assert backend.known(iter([*ours, new_location(""), "notes.txt", ""])) == ours

    def test_known_of_thousands(self, backend: MetadataBackend) -> None:
        """More than one statement can ask for."""
        blobs = [make_blob() for _ in range(50)]
        put(backend, "k", *blobs)
        ours = {blob.location for blob in blobs}
        assert backend.known([*ours, *(new_location("") for _ in range(5000))]) == ours

    def test_condemning_and_forgetting_thousands(self, backend: MetadataBackend) -> None:
        """A collector asks for many at once."""
        locations = [new_location("") for _ in range(3000)]
        assert sorted(backend.condemn(locations, 5)) == sorted(locations)
        backend.forget(locations)
        assert list(backend.blobs()) == []

    def test_only_live_blobs_are_found_by_digest(self, backend: MetadataBackend) -> None:
        """What is found can be reused at once."""
        live, gone = make_blob(digest="live"), make_blob(digest="gone")
        put(backend, "a", live)
        put(backend, "b", gone)
        commit(backend, Delete("b"))
        backend.announce([make_blob(digest="pending")])
        found = backend.find_digests(iter(["live", "gone", "pending", "unknown", "live"]))
        assert found == {"live": live}

    def test_thousands_of_digests(self, backend: MetadataBackend) -> None:
        """More than one statement can ask for."""
        blobs = [make_blob(digest=f"d{i}") for i in range(50)]
        put(backend, "k", *blobs)
        found = backend.find_digests(f"d{i}" for i in range(5000))
        assert found == {blob.digest: blob for blob in blobs}
