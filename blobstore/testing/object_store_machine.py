"""Random calls to an object store, compared with a dictionary after each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from blobstore.errors import KeyNotFoundError
from blobstore.protocols import ObjectStore


def machine_class(  # noqa: C901 - a class in a function: its rules need the keys
    make_store: Callable[[], ObjectStore], keys: Sequence[str]
) -> type[RuleBasedStateMachine]:
    """Build a Hypothesis state machine over stores that start empty.

    Parameters
    ----------
    make_store : callable
        Makes a fresh, empty store for each run.
    keys : sequence of str
        The keys to play with; few, so that they meet.

    Returns
    -------
    type
        To be run by ``hypothesis.stateful.run_state_machine_as_test``.
    """
    some_key = st.sampled_from(list(keys))
    some_bytes = st.binary(max_size=40) | st.integers(0, 300_000).map(lambda n: b"\xa5" * n)

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.store = make_store()
            self.model: dict[str, bytes] = {}

        def teardown(self) -> None:
            self.store.close()

        @rule(key=some_key, data=some_bytes)
        def put(self, key: str, data: bytes) -> None:
            self.store.put(key, data)
            self.model[key] = data

        @rule(key=some_key, pieces=st.lists(some_bytes, max_size=3), fails=st.booleans())
        def write(self, key: str, pieces: list[bytes], fails: bool) -> None:
            sink = self.store.writer(key)
            for piece in pieces:
                sink.write(piece)
            if fails:
                sink.abort()
            else:
                sink.commit()
                self.model[key] = b"".join(pieces)

        @rule(key=some_key, data=some_bytes)
        def put_if_absent(self, key: str, data: bytes) -> None:
            assert self.store.put_if_absent(key, data) is (key not in self.model)
            self.model.setdefault(key, data)

        @rule(key=some_key)
        def delete(self, key: str) -> None:
            try:
                self.store.delete(key)
            except KeyNotFoundError:
                assert key not in self.model
            else:
                del self.model[key]

        @rule(keys=st.lists(some_key, max_size=4))
        def delete_many(self, keys: list[str]) -> None:
            self.store.delete_many(keys)
            for key in keys:
                self.model.pop(key, None)

        @rule(old=some_key, new=some_key)
        def copy(self, old: str, new: str) -> None:
            try:
                self.store.copy(old, new)
            except KeyNotFoundError:
                assert old not in self.model
            else:
                self.model[new] = self.model[old]

        @rule(key=some_key, start=st.integers(0, 50), count=st.integers(0, 50))
        def get_range(self, key: str, start: int, count: int) -> None:
            if key in self.model:
                wanted = self.model[key][start:][:count]
                assert self.store.get_range(key, start, start + count) == wanted

        @precondition(lambda self: self.store.capabilities.list)
        @rule(prefix=some_key.flatmap(lambda key: st.integers(0, len(key)).map(lambda n: key[:n])))
        def list_keys(self, prefix: str) -> None:
            found = sorted(self.store.keys(prefix))
            assert found == sorted(key for key in self.model if key.startswith(prefix))

        @invariant()
        def agrees(self) -> None:
            for key in keys:
                assert self.store.exists(key) is (key in self.model)
                if key in self.model:
                    assert self.store.get(key) == self.model[key]
                    assert self.store.stat(key).size == len(self.model[key])

    return Machine
