"""Random calls to a store of values, compared with a dictionary after each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from blobstore.errors import KeyNotFoundError
from blobstore.protocols import ObjectStore

_KEYS = ("a", "ab", "b.x", "b.y")


def value_machine_class(  # noqa: C901 - a class in a function: its rules need the values
    make_store: Callable[[], ObjectStore],
    values: Sequence[Any],
    fresh: Callable[[Any], Any],
    check: Callable[[Any, str, Any], None],
) -> type[RuleBasedStateMachine]:
    """Build a Hypothesis state machine over stores of values that start empty.

    Parameters
    ----------
    make_store : callable
        Makes a fresh, empty store for each run.
    values : sequence
        What is put.
    fresh : callable
        Makes a value ready to be put.
    check : callable
        Given a store, a key and a value: fails unless that is what the store has there.

    Returns
    -------
    type
        To be run by ``hypothesis.stateful.run_state_machine_as_test``.
    """
    some_key = st.sampled_from(_KEYS)
    which = st.integers(0, len(values) - 1)  # not the values: they may be of one look, or changed

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.store: Any = make_store()
            self.model: dict[str, int] = {}

        def teardown(self) -> None:
            self.store.close()

        @rule(key=some_key, number=which)
        def put(self, key: str, number: int) -> None:
            self.store.put(key, fresh(values[number]))
            self.model[key] = number

        @rule(key=some_key, number=which)
        def put_if_absent(self, key: str, number: int) -> None:
            written = self.store.put_if_absent(key, fresh(values[number]))
            assert written is (key not in self.model)
            self.model.setdefault(key, number)

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

        @rule(prefix=st.sampled_from(["", "a", "b.", "b.x", "c"]))
        def list_keys(self, prefix: str) -> None:
            found = sorted(self.store.keys(prefix))
            assert found == sorted(key for key in self.model if key.startswith(prefix))

        @invariant()
        def agrees(self) -> None:
            for key in _KEYS:
                assert self.store.exists(key) is (key in self.model)
                if key in self.model:
                    check(self.store, key, values[self.model[key]])

    return Machine
