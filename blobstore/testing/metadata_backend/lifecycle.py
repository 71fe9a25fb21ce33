"""Opening, closing, copies, read-only use."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from blobstore.errors import (
    ClosedError,
    ConflictError,
    NotSupportedError,
    PermissionDeniedError,
)
from blobstore.keys import new_location, random_id
from blobstore.protocols import (
    Delete,
    MetadataBackend,
)
from blobstore.testing.metadata_backend.build import (
    ALL,
    BackendFactory,
    commit,
    equal_to,
    make_blob,
    make_copy,
    make_inline,
    make_patch,
    make_put,
    put,
    snapshot,
    stored,
)


class LifecycleTests(BackendFactory):
    """Opening, closing, copies, read-only use."""

    def test_reopening_sees_everything(self, place: Path) -> None:
        """Entries and blob rows of every state, to the last field."""
        with self.opened(place) as backend:
            put(backend, "a", make_blob(digest="d"), make_blob(), metadata={"m": 1}, signature="s")
            put(backend, "b", parts=(make_inline(b"\0\xff"),))
            put(backend, "c", make_blob(digest="d"))
            commit(backend, make_copy("a", "d"), make_patch("b", {"p": 1}), Delete("c"))
            backend.announce([make_blob()])
            backend.condemn([new_location("")], 5)
            before = snapshot(backend)
        for _ in range(2):
            with self.opened(place) as backend:
                assert snapshot(backend) == before
                assert backend.check() == []

    def test_versions_go_on_after_reopening(self, place: Path) -> None:
        """Nothing starts over."""
        for version in range(1, 5):
            with self.opened(place) as backend:
                assert put(backend, "k").version == version

    def test_a_moved_folder_is_the_same_index(self, place: Path) -> None:
        """No absolute path is kept in it."""
        with self.opened(place) as backend:
            put(backend, "k")
            before, store_id = snapshot(backend), backend.store_id
        moved = place.rename(place.with_name("moved"))
        with self.opened(moved) as backend:
            assert (snapshot(backend), backend.store_id) == (before, store_id)
            put(backend, "new")
        assert not place.exists()

    def test_store_id_is_made_once(self, place: Path, tmp_path: Path) -> None:
        """32 hexadecimal digits; others have others."""
        with self.opened(place) as backend, self.opened(tmp_path / "other") as other:
            store_id = backend.store_id
            assert len(bytes.fromhex(store_id)) == 16
            assert store_id == store_id.lower()
            assert other.store_id != store_id
            assert pickle.loads(pickle.dumps(backend)).store_id == store_id
        with self.opened(place) as backend:
            assert backend.store_id == store_id

    def test_two_handles_are_one_index(self, place: Path) -> None:
        """Each sees at once what the other committed."""
        with self.opened(place) as one, self.opened(place) as two:
            assert two.count(ALL) == 0
            entry = put(one, "k")
            assert two.get("k") == entry
            assert put(two, "k").version == 2
            assert stored(one, "k").version == 2
            with pytest.raises(ConflictError):
                commit(one, Delete("k", entry))
            commit(two, Delete("k"))
            assert one.get("k") is None
            assert snapshot(one) == snapshot(two)

    def test_a_pickled_copy_is_the_same_index(self, backend: MetadataBackend) -> None:
        """It sees and writes the same entries, and closing it closes only itself."""
        put(backend, "a")
        copied: MetadataBackend = pickle.loads(pickle.dumps(backend))
        assert copied.get("a") == backend.get("a")
        put(copied, "b")
        put(backend, "c")
        assert list(copied.keys(ALL)) == list(backend.keys(ALL)) == ["a", "b", "c"]
        copied.close()
        assert backend.count(ALL) == 3

    def test_closing_twice(self, place: Path) -> None:
        """The second time does nothing."""
        backend = self.make_backend(place)
        backend.close()
        backend.close()

    def test_closing_one_handle_leaves_the_other(self, place: Path) -> None:
        """They share the index, not the life."""
        with self.opened(place) as one:
            with self.opened(place) as two:
                put(two, "k")
            put(one, "l")
            assert one.count(ALL) == 2

    @pytest.mark.parametrize(
        "call",
        [
            lambda b: b.commit([make_put("k")], random_id()),
            lambda b: b.get("k"),
            lambda b: b.get_many(["k"]),
            lambda b: list(b.scan(ALL)),
            lambda b: list(b.keys(ALL)),
            lambda b: b.count(ALL),
            lambda b: b.find_digests(["d"]),
            lambda b: list(b.blobs()),
            lambda b: b.known(["l"]),
            lambda b: b.announce([make_blob()]),
            lambda b: b.condemn(["l"], 1),
            lambda b: b.condemned(),
            lambda b: b.forget(["l"]),
            lambda b: b.sync(),
            lambda b: b.check(),
        ],
        ids=[
            *("commit", "get", "get_many", "scan", "keys", "count", "find_digests", "blobs"),
            *("known", "announce", "condemn", "condemned", "forget", "sync", "check"),
        ],
    )
    def test_use_after_close_is_refused(
        self, place: Path, call: Callable[[MetadataBackend], object]
    ) -> None:
        """A closed index neither answers nor changes."""
        backend = self.make_backend(place)
        put(backend, "k")
        backend.close()
        with pytest.raises(ClosedError):
            call(backend)

    def test_readonly_reads(self, place: Path) -> None:
        """All reading works, and follows what others write."""
        with self.opened(place) as backend:
            put(backend, "a", make_blob(digest="d"), metadata={"v": 1})
            before, store_id = snapshot(backend), backend.store_id
            with self.opened(place, readonly=True) as reader:
                assert (snapshot(reader), reader.store_id) == (before, store_id)
                assert list(reader.keys(equal_to({"v": 1}))) == ["a"]
                assert list(reader.find_digests(["d"])) == ["d"]
                assert reader.check() == []
                put(backend, "b")
                assert reader.count(ALL) == 2
        with self.opened(place, readonly=True) as reader:
            assert reader.count(ALL) == 2

    @pytest.mark.parametrize(
        "call",
        [
            lambda b: b.commit([make_put("k")], random_id()),
            lambda b: b.commit([Delete("a")], random_id()),
            lambda b: b.announce([make_blob()]),
            lambda b: b.condemn([new_location("")], 1),
            lambda b: b.forget([blob.location for blob in b.condemned()]),
        ],
        ids=["put", "delete", "announce", "condemn", "forget"],
    )
    def test_readonly_refuses_changes(
        self, place: Path, call: Callable[[MetadataBackend], object]
    ) -> None:
        """With an error that says so; nothing changes."""
        with self.opened(place) as backend:
            put(backend, "a")
            backend.condemn([new_location("")], 5)
            before = snapshot(backend)
            with (
                self.opened(place, readonly=True) as reader,
                pytest.raises((PermissionDeniedError, NotSupportedError)),
            ):
                call(reader)
            assert snapshot(backend) == before

    def test_fsync_and_sync(self, place: Path) -> None:
        """Asking for safety changes nothing that can be seen."""
        with self.opened(place, fsync=True) as backend:
            put(backend, "k")
            backend.sync()
            put(backend, "l")
        with self.opened(place) as backend:
            backend.sync()
            assert backend.count(ALL) == 2

    def test_stats_say_something(self, backend: MetadataBackend) -> None:
        """Facts by name."""
        stats = backend.stats()
        assert stats
        assert all(isinstance(name, str) for name in stats)
