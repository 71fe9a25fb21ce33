"""Put, delete, copy, patch."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobstore.entry import Entry, Part
from blobstore.errors import KeyExistsError, PermissionDeniedError
from blobstore.keys import random_id
from blobstore.protocols import (
    CommitResult,
    Delete,
    MetadataBackend,
    Sign,
)
from blobstore.testing.metadata_backend.build import (
    ALL,
    BackendFactory,
    commit,
    make_blob,
    make_copy,
    make_inline,
    make_patch,
    make_put,
    put,
    rows,
    snapshot,
    states,
    stored,
)


class PutTests(BackendFactory):
    """Setting a key."""

    def test_put_gives_the_entry_with_all_that_was_drafted(self, backend: MetadataBackend) -> None:
        """Nothing of a draft is lost or altered."""
        blob = make_blob(
            digest="d1",
            size=2**40,
            checksum="blake3:ab",
            codec="zstd",
            handler="numpy",
            format_version=3,
            created_us=5,
        )
        entry = put(
            backend,
            "k",
            blob,
            handler="numpy",
            data_type="array",
            info_text='{"dtype":"<f4"}',
            metadata_text='{"a":1}',
            size=2**40,
            now_us=1_700_000_000_000_001,
            signature="sig",
        )
        assert entry == Entry(
            id=entry.id,
            key="k",
            version=1,
            commit_id=entry.commit_id,
            handler="numpy",
            data_type="array",
            parts=(Part("part0", blob),),
            size=2**40,
            created_us=1_700_000_000_000_001,
            updated_us=1_700_000_000_000_001,
            info_text='{"dtype":"<f4"}',
            metadata_text='{"a":1}',
            signature="sig",
        )
        assert stored(backend, "k") == entry

    def test_put_records_the_commit_id(self, backend: MetadataBackend) -> None:
        """The entry says which commit wrote it."""
        commit_id = random_id()
        backend.commit([make_put("k")], commit_id)
        assert stored(backend, "k").commit_id == commit_id

    def test_put_enters_its_blobs_as_live(self, backend: MetadataBackend) -> None:
        """Each located part has a live row with its facts."""
        blobs = [make_blob(digest="d1"), make_blob()]
        put(backend, "k", *blobs)
        assert rows(backend) == {blob.location: blob for blob in blobs}

    def test_parts_keep_their_order(self, backend: MetadataBackend) -> None:
        """The order of parts is the handler's, not that of their names."""
        parts = tuple(Part(name, make_blob()) for name in ("weights", "a", "skeleton", "B", "é/.."))
        put(backend, "k", parts=parts)
        assert stored(backend, "k").parts == parts

    @pytest.mark.parametrize("payload", [b"", bytes(range(256)) * 33], ids=["empty", "all bytes"])
    def test_inline_payload_is_kept_to_the_byte(self, place: Path, payload: bytes) -> None:
        """An inline payload is bytes, also after reopening, and has no blob row."""
        part = make_inline(payload)
        with self.opened(place) as backend:
            entry = put(backend, "k", parts=(part,))
            assert (entry.parts, entry.inline, entry.locations) == ((part,), True, ())
            assert list(backend.blobs()) == []
        with self.opened(place) as backend:
            assert stored(backend, "k").parts == (part,)
            assert commit(backend, Delete("k")).condemned == ()

    def test_overwriting_keeps_id_and_creation_and_counts(self, backend: MetadataBackend) -> None:
        """An overwrite is the same entry, one version on."""
        first = put(backend, "k", now_us=10)
        second = put(backend, "k", now_us=20)
        assert (second.id, second.created_us) == (first.id, 10)
        assert (second.version, second.updated_us) == (2, 20)

    def test_overwriting_replaces_all_else(self, backend: MetadataBackend) -> None:
        """Nothing of the old object shines through."""
        put(
            backend,
            "k",
            make_blob(),
            make_blob(),
            metadata={"old": 1},
            signature="s",
            data_type="x",
        )
        blob = make_blob()
        put(backend, "k", blob, metadata={"new": 2})
        entry = stored(backend, "k")
        assert entry.metadata == {"new": 2}
        assert (entry.data_type, entry.signature, entry.parts) == (
            "object",
            None,
            (Part("part0", blob),),
        )

    def test_overwriting_condemns_the_old_blobs(self, backend: MetadataBackend) -> None:
        """What an overwrite leaves unreferenced is named, and has a condemned row."""
        old, other, new = make_blob(), make_blob(), make_blob()
        put(backend, "k", old, other)
        result = commit(backend, make_put("k", new))
        assert sorted(result.condemned) == sorted([old.location, other.location])
        assert states(backend) == {
            old.location: "condemned",
            other.location: "condemned",
            new.location: "live",
        }

    def test_overwriting_inline_with_a_blob_and_back(self, backend: MetadataBackend) -> None:
        """A key may change between the two kinds of storage."""
        blob = make_blob()
        inline = make_inline(b"abc")
        put(backend, "k", parts=(inline,))
        put(backend, "k", blob)
        assert not stored(backend, "k").inline
        assert commit(backend, make_put("k", parts=(inline,))).condemned == (blob.location,)
        assert stored(backend, "k").parts == (inline,)

    def test_a_remade_key_is_another_entry(self, backend: MetadataBackend) -> None:
        """Delete and put make a new id, at version 1, created anew."""
        first = put(backend, "k", now_us=10)
        commit(backend, Delete("k"))
        second = put(backend, "k", now_us=20)
        assert second.id != first.id
        assert (second.version, second.created_us) == (1, 20)

    def test_ids_are_never_used_again(self, place: Path) -> None:
        """Also not when the highest was deleted and the index opened anew."""
        seen: set[int] = set()
        for _ in range(3):
            with self.opened(place) as backend:
                for key in ("a", "b", "a"):
                    entry = put(backend, key, expected="absent")
                    assert entry.id not in seen
                    seen.add(entry.id)
                    commit(backend, Delete(key))

    def test_get_of_an_absent_key_is_none(self, backend: MetadataBackend) -> None:
        """A miss is no error."""
        assert backend.get("k") is None

    def test_commit_of_nothing(self, backend: MetadataBackend) -> None:
        """An empty commit is one that does nothing."""
        assert backend.commit([], random_id()) == CommitResult()


class DeleteTests(BackendFactory):
    """Removing a key."""

    def test_delete_answers_with_the_entry_and_condemns(self, backend: MetadataBackend) -> None:
        """The removed entry is returned, its blobs are condemned."""
        blob = make_blob()
        entry = put(backend, "k", blob)
        result = commit(backend, Delete("k"))
        assert result == CommitResult(entries=(entry,), condemned=(blob.location,))
        assert (backend.get("k"), backend.count(ALL)) == (None, 0)
        (row,) = backend.condemned()
        assert (row.location, row.state, row.size) == (blob.location, "condemned", blob.size)
        assert row.condemned_us is not None

    def test_delete_of_an_absent_key_is_none(self, backend: MetadataBackend) -> None:
        """Nothing to do is no error."""
        assert commit(backend, Delete("k")) == CommitResult(entries=(None,))


class CopyTests(BackendFactory):
    """Copying and moving: index only, blobs are shared."""

    def test_copy_is_a_fresh_entry_sharing_the_blobs(self, backend: MetadataBackend) -> None:
        """All but identity and times is the source's."""
        source = put(backend, "a", make_blob(), make_blob(), metadata={"m": 1}, info_text='{"i":1}')
        (target,) = commit(backend, make_copy("a", "b", now_us=30)).entries
        assert target is not None
        assert target == stored(backend, "b")
        assert target.id != source.id
        assert (target.key, target.version) == ("b", 1)
        assert (target.created_us, target.updated_us) == (30, 30)
        for name in ("parts", "metadata_text", "info_text", "handler", "data_type", "size"):
            assert getattr(target, name) == getattr(source, name), name
        assert stored(backend, "a") == source

    def test_blobs_stay_while_a_copy_refers_to_them(self, backend: MetadataBackend) -> None:
        """References are counted; the last one condemns."""
        blob = make_blob()
        put(backend, "a", blob)
        commit(backend, make_copy("a", "b"), make_copy("b", "c"))
        assert commit(backend, Delete("a")).condemned == ()
        assert commit(backend, make_put("b")).condemned == ()
        assert states(backend)[blob.location] == "live"
        assert commit(backend, Delete("c")).condemned == (blob.location,)

    def test_copy_onto_another_replaces_it(self, backend: MetadataBackend) -> None:
        """The target keeps its id and creation, counts on, and lets go of its blobs."""
        put(backend, "a")
        gone = make_blob()
        target = put(backend, "b", gone, now_us=10)
        result = commit(backend, make_copy("a", "b", now_us=30))
        assert result.condemned == (gone.location,)
        entry = stored(backend, "b")
        assert result.entries == (entry,)
        assert (entry.id, entry.version) == (target.id, 2)
        assert (entry.created_us, entry.updated_us) == (10, 30)
        assert entry.locations == stored(backend, "a").locations

    def test_copy_without_overwrite_refuses_a_taken_target(self, backend: MetadataBackend) -> None:
        """Nothing changes, and the error names the target."""
        put(backend, "a")
        put(backend, "b")
        before = snapshot(backend)
        with pytest.raises(KeyExistsError) as caught:
            commit(backend, make_copy("a", "b", overwrite=False))
        assert caught.value.key == "b"
        assert snapshot(backend) == before

    def test_copy_without_overwrite_takes_a_free_target(self, backend: MetadataBackend) -> None:
        """A free target is free."""
        put(backend, "a")
        commit(backend, make_copy("a", "b", overwrite=False))
        assert backend.count(ALL) == 2

    @pytest.mark.parametrize("move", [False, True], ids=["copy", "move"])
    def test_onto_itself_changes_nothing(self, backend: MetadataBackend, move: bool) -> None:
        """The entry is returned as it is."""
        entry = put(backend, "a")
        before = snapshot(backend)
        assert commit(backend, make_copy("a", "a", move=move)) == CommitResult(entries=(entry,))
        assert snapshot(backend) == before

    @pytest.mark.parametrize("move", [False, True], ids=["copy", "move"])
    def test_of_an_absent_source_is_none(self, backend: MetadataBackend, move: bool) -> None:
        """A target that exists stays as it was."""
        put(backend, "b")
        before = snapshot(backend)
        assert commit(backend, make_copy("a", "b", move=move)) == CommitResult(entries=(None,))
        assert commit(backend, make_copy("a", "c", move=move)) == CommitResult(entries=(None,))
        assert snapshot(backend) == before

    def test_move_removes_the_source(self, backend: MetadataBackend) -> None:
        """The blobs go along and stay live."""
        blob = make_blob()
        put(backend, "a", blob, metadata={"m": 1})
        result = commit(backend, make_copy("a", "b", move=True))
        entry = stored(backend, "b")
        assert result == CommitResult(entries=(entry,))
        assert (entry.metadata, entry.locations) == ({"m": 1}, (blob.location,))
        assert (list(backend.keys(ALL)), states(backend)) == (["b"], {blob.location: "live"})

    def test_move_onto_another_condemns_only_that(self, backend: MetadataBackend) -> None:
        """The replaced target's blobs go, the moved ones stay."""
        moved, gone = make_blob(), make_blob()
        put(backend, "a", moved)
        put(backend, "b", gone)
        assert commit(backend, make_copy("a", "b", move=True)).condemned == (gone.location,)
        assert states(backend) == {moved.location: "live", gone.location: "condemned"}
        assert list(backend.keys(ALL)) == ["b"]

    def test_copy_of_an_inline_entry(self, backend: MetadataBackend) -> None:
        """The payload is copied, and outlives its source."""
        part = make_inline(b"\0payload")
        put(backend, "a", parts=(part,))
        commit(backend, make_copy("a", "b"))
        commit(backend, Delete("a"))
        assert stored(backend, "b").parts == (part,)

    @pytest.mark.parametrize("move", [False, True], ids=["copy", "move"])
    @pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
    def test_copy_is_signed_anew(self, place: Path, move: bool, taken: bool) -> None:
        """By whom the operation names, who is shown the source and what becomes of it."""
        asked: list[tuple[Entry, Entry]] = []
        with self.opened(place) as backend:
            source = put(backend, "a", make_blob(), metadata={"m": 1}, signature="old")
            if taken:
                put(backend, "b", signature="other")
            commit_id = random_id()
            operation = make_copy("a", "b", move=move, sign=_signer(asked))
            (target,) = backend.commit([operation], commit_id).entries
            assert target is not None
            assert target.signature == f"signed b {commit_id}"
        assert asked
        for old, new in asked:
            assert old == source
            assert (new.key, new.commit_id) == ("b", commit_id)
            assert (new.parts, new.metadata_text) == (target.parts, target.metadata_text)
        with self.opened(place) as backend:
            assert stored(backend, "b") == target

    def test_copy_of_an_inline_entry_is_signed_anew(self, backend: MetadataBackend) -> None:
        """Also where the bytes are in the row."""
        put(backend, "a", parts=(make_inline(b"x"),), signature="old")
        commit(backend, make_copy("a", "b", sign=_signer([])))
        entry = stored(backend, "b")
        assert entry.signature == f"signed b {entry.commit_id}"

    def test_copy_without_a_signer_is_not_signed(self, backend: MetadataBackend) -> None:
        """The source's signature is of another key."""
        source = put(backend, "a", signature="old")
        commit(backend, make_copy("a", "b"))
        assert stored(backend, "b").signature is None
        assert stored(backend, "a") == source

    def test_a_signer_that_fails_changes_nothing(self, backend: MetadataBackend) -> None:
        """Its error is the caller's."""
        put(backend, "a", signature="old")
        before = snapshot(backend)

        def fail(*_: Entry) -> str:
            raise PermissionDeniedError("no key")

        for operation in (make_copy("a", "b", sign=fail), make_patch("a", {"x": 1}, sign=fail)):
            with pytest.raises(PermissionDeniedError, match="no key"):
                commit(backend, operation)
            assert snapshot(backend) == before


class PatchTests(BackendFactory):
    """Changing metadata."""

    def test_patch_merges_one_level(self, backend: MetadataBackend) -> None:
        """Names that are given are replaced whole; others stay, in their order."""
        put(backend, "k", metadata={"z": {"deep": 1}, "a": 1, "m": [1]})
        (entry,) = commit(backend, make_patch("k", {"z": {"new": 2}, "b": None})).entries
        assert entry is not None
        assert entry.metadata_text == '{"z":{"new":2},"a":1,"m":[1],"b":null}'
        assert stored(backend, "k") == entry

    def test_patch_can_replace_all(self, backend: MetadataBackend) -> None:
        """Nothing of the old metadata stays."""
        put(backend, "k", metadata={"a": 1})
        commit(backend, make_patch("k", {"b": 2}, replace=True))
        assert stored(backend, "k").metadata_text == '{"b":2}'

    def test_patch_counts_the_version_and_touches_nothing_else(
        self, backend: MetadataBackend
    ) -> None:
        """Blobs, type, info and creation are the object's, not the metadata's."""
        first = put(backend, "k", make_blob(), make_blob(), info_text='{"i":1}', now_us=10)
        before = rows(backend)
        result = commit(backend, make_patch("k", {"a": 1}, now_us=20))
        entry = stored(backend, "k")
        assert result == CommitResult(entries=(entry,))
        assert (entry.id, entry.version, entry.created_us, entry.updated_us) == (
            first.id,
            2,
            10,
            20,
        )
        assert entry.commit_id != first.commit_id
        for name in ("parts", "info_text", "handler", "data_type", "size"):
            assert getattr(entry, name) == getattr(first, name), name
        assert rows(backend) == before

    def test_patch_keeps_an_inline_payload(self, backend: MetadataBackend) -> None:
        """The bytes in the row stay."""
        part = make_inline(b"\0\xff")
        put(backend, "k", parts=(part,))
        commit(backend, make_patch("k", {"a": 1}))
        assert stored(backend, "k").parts == (part,)

    def test_patch_of_an_absent_key_is_none(self, backend: MetadataBackend) -> None:
        """No entry comes of it."""
        assert commit(backend, make_patch("k", {"a": 1})) == CommitResult(entries=(None,))
        assert backend.count(ALL) == 0

    def test_patch_keeps_untouched_numbers_exact(self, backend: MetadataBackend) -> None:
        """Merging reads the old text, and must not round what it finds there."""
        put(backend, "k", metadata={"n": 2**70 + 1, "f": 5e-324, "s": "a\0b"})
        commit(backend, make_patch("k", {"x": 1}))
        assert stored(backend, "k").metadata == {
            "n": 2**70 + 1,
            "f": 5e-324,
            "s": "a\0b",
            "x": 1,
        }

    @pytest.mark.parametrize("inline", [False, True], ids=["blob", "inline"])
    def test_patch_is_signed_anew(self, place: Path, inline: bool) -> None:
        """By whom the operation names, who is shown the entry before and after."""
        asked: list[tuple[Entry, Entry]] = []
        parts = (make_inline(b"x") if inline else Part("data", make_blob()),)
        with self.opened(place) as backend:
            before = put(backend, "k", parts=parts, metadata={"a": 1}, signature="old")
            commit_id = random_id()
            operation = make_patch("k", {"b": 2}, sign=_signer(asked))
            (after,) = backend.commit([operation], commit_id).entries
            assert after is not None
            assert after.signature == f"signed k {commit_id}"
        assert asked
        for old, new in asked:
            assert old == before
            assert new._replace(signature=after.signature) == after
        with self.opened(place) as backend:
            assert stored(backend, "k") == after

    def test_patch_without_a_signer_is_not_signed(self, backend: MetadataBackend) -> None:
        """The old signature is of other metadata."""
        put(backend, "k", signature="old")
        commit(backend, make_patch("k", {"a": 1}))
        assert stored(backend, "k").signature is None

    def test_a_signer_may_decline(self, backend: MetadataBackend) -> None:
        """What did not verify is not signed."""
        put(backend, "k", signature="old")
        commit(backend, make_patch("k", {"a": 1}, sign=lambda *_: None))
        assert stored(backend, "k").signature is None


def _signer(asked: list[tuple[Entry, Entry]]) -> Sign:
    """Sign with key and commit, and note what was shown."""

    def sign(old: Entry, new: Entry) -> str:
        asked.append((old, new))
        return f"signed {new.key} {new.commit_id}"

    return sign
