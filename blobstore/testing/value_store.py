"""What every store of values that are not bytes must do, as tests to inherit.

Subclass `ValueStoreSuite` in a test module, name the class ``Test...``, and write `make_store`,
`values` and `wrong_values`::

    class TestMyStore(ValueStoreSuite):
        values = (Fraction(1, 3), Fraction(0))
        wrong_values = ("1/3",)

        def make_store(self, tmp_path):
            return FractionStore(DictStore())
"""

# ruff: noqa: D102 - the name of a test says what it is about

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from blobstore.errors import (
    ClosedError,
    ConfigError,
    IntegrityError,
    InvalidInputError,
    KeyNotFoundError,
    NotSupportedError,
)
from blobstore.protocols import ObjectStore
from blobstore.testing.object_store import in_threads
from blobstore.testing.value_store_machine import value_machine_class
from blobstore.wrappers.base import require_bytes


class ValueStoreSuite:
    """Tests of one store of values; subclass it, and write `make_store` and the values.

    Attributes
    ----------
    values : sequence
        At least two that the store takes, each of them another.
    wrong_values : sequence
        What it refuses.
    damaged : sequence of bytes
        What is no stored value; each is `IntegrityError`.
    picklable : bool
        Whether a pickled copy of a persistent store works.
    machine_examples : int
        How many random sequences of calls are compared with a dictionary.
    """

    values: ClassVar[Sequence[Any]]
    wrong_values: ClassVar[Sequence[Any]]
    damaged: ClassVar[Sequence[bytes]] = ()
    picklable: ClassVar[bool] = True
    machine_examples: ClassVar[int] = 5

    def make_store(self, tmp_path: Path) -> ObjectStore:
        """Make an empty store; what it keeps on disk lies in `tmp_path`."""
        raise NotImplementedError

    def fresh(self, value: Any) -> Any:
        """Make a value ready to be put; for those that are used up by it."""
        return value

    def comparable(self, value: Any) -> Any:
        """Turn what `get` gave into what can be compared with a value."""
        return value

    def poke(self, store: Any, key: str, data: bytes) -> None:
        """Write stored bytes behind the store's back."""
        while store.capabilities.values != "bytes":
            store = store.store
        store.put(key, data)

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Any]:
        """The store under test, closed afterwards."""
        with self.make_store(tmp_path) as store:
            yield store

    def put(self, store: Any, key: str, value: Any) -> None:
        """Put a value."""
        store.put(key, self.fresh(value))

    def is_there(self, store: Any, key: str, value: Any) -> None:
        """Check that a value is what is found under a key."""
        found = self.comparable(store.get(key))
        assert found == value
        assert type(found) is type(value)
        assert repr(found) == repr(value)  # tells 1 from 1.0 and True, inside as well

    def test_it_says_that_it_keeps_no_bytes(self, store: Any) -> None:
        capabilities = store.capabilities
        assert capabilities.values != "bytes"
        assert capabilities.ranges is False
        assert capabilities.streams is False
        assert capabilities.local_files is False

    def test_values_come_back_as_they_were(self, store: Any) -> None:
        for number, value in enumerate(self.values):
            self.put(store, f"k{number}", value)
            self.is_there(store, f"k{number}", value)
        for number, value in enumerate(self.values):
            self.is_there(store, f"k{number}", value)
            self.is_there(store, f"k{number}", value)

    def test_put_replaces(self, store: Any) -> None:
        for value in (*self.values, *reversed(self.values)):
            self.put(store, "key", value)
            self.is_there(store, "key", value)
        assert list(store.keys()) == ["key"]

    def test_wrong_values_leave_the_old_one(self, store: Any) -> None:
        self.put(store, "key", self.values[0])
        for wrong in self.wrong_values:
            with pytest.raises(InvalidInputError):
                store.put("key", wrong)
            with pytest.raises(InvalidInputError):
                store.put("new", wrong)
            with pytest.raises(InvalidInputError):
                store.put_if_absent("new", wrong)
        self.is_there(store, "key", self.values[0])
        assert list(store.keys()) == ["key"]
        assert list(store.leftovers()) == []

    def test_absent(self, store: Any) -> None:
        assert store.exists("key") is False
        calls: list[Callable[[], object]] = [
            lambda: store.get("key"),
            lambda: store.delete("key"),
            lambda: store.stat("key"),
            lambda: store.copy("key", "other"),
        ]
        for call in calls:
            with pytest.raises(KeyNotFoundError):
                call()
        assert store.local_path("key") is None

    def test_delete(self, store: Any) -> None:
        for key in ("a", "b", "c"):
            self.put(store, key, self.values[0])
        store.delete("a")
        assert store.exists("a") is False
        assert store.exists("b") is True
        store.delete_many(iter(["b", "absent", "b"]))
        assert list(store.keys()) == ["c"]

    def test_keys(self, store: Any) -> None:
        for key in ("run_1", "run_2", "other"):
            self.put(store, key, self.values[0])
        assert sorted(store.keys()) == ["other", "run_1", "run_2"]
        assert sorted(store.keys("run_")) == ["run_1", "run_2"]
        assert list(store.keys("%")) == []

    @pytest.mark.parametrize("wrong", [None, 5, b"bytes"], ids=repr)
    def test_keys_are_strings(self, store: Any, wrong: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            self.put(store, wrong, self.values[0])
        assert list(store.keys()) == []

    def test_copy(self, store: Any) -> None:
        self.put(store, "source", self.values[0])
        self.put(store, "target", self.values[1])
        store.copy("source", "target")
        store.copy("source", "source")
        self.put(store, "source", self.values[1])
        self.is_there(store, "target", self.values[0])

    def test_put_if_absent(self, store: Any) -> None:
        first, second = (self.fresh(value) for value in self.values[:2])
        assert store.put_if_absent("key", first) is True
        assert store.put_if_absent("key", second) is False
        self.is_there(store, "key", self.values[0])

    def test_put_if_absent_has_one_winner(self, store: Any) -> None:
        if not store.capabilities.conditional_writes:
            pytest.skip("this store has no conditional writes")
        won = in_threads(lambda n: store.put_if_absent("key", self.fresh(self.values[n % 2])), 4)
        assert sum(won) == 1
        self.is_there(store, "key", self.values[won.index(True) % 2])

    def test_stat(self, store: Any) -> None:
        self.put(store, "key", self.values[0])
        stat = store.stat("key")
        assert stat == store.stat("key")
        assert (stat.etag is not None) == store.capabilities.etags
        store.sync(["key"])

    def test_what_is_for_bytes_is_not_supported(self, store: Any) -> None:
        self.put(store, "key", self.values[0])
        calls: list[Callable[[], object]] = [
            lambda: store.get_range("key", 0, 1),
            lambda: store.open("key"),
            lambda: store.source("key"),
            lambda: store.writer("key"),
        ]
        for call in calls:
            with pytest.raises(NotSupportedError, match="get and put"):
                call()
        with pytest.raises(ConfigError, match="bytes"):
            require_bytes(store, "a wrapper of bytes")
        self.is_there(store, "key", self.values[0])

    def test_damage(self, store: Any) -> None:
        for data in self.damaged:
            self.poke(store, "key", data)
            with pytest.raises(IntegrityError) as caught:
                store.get("key")
            assert caught.value.location == "key"
            assert "'key'" in str(caught.value)
            assert store.exists("key")

    def test_pickled_copy(self, store: Any) -> None:
        if not (store.capabilities.persistent and self.picklable):
            pytest.skip("this store cannot be pickled")
        self.put(store, "key", self.values[0])
        with pickle.loads(pickle.dumps(store)) as copy:
            self.is_there(copy, "key", self.values[0])
            self.put(copy, "other", self.values[1])
        self.is_there(store, "other", self.values[1])

    def test_closed(self, store: Any) -> None:
        self.put(store, "key", self.values[0])
        value = self.fresh(self.values[0])
        store.close()
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: store.get("key"),
            lambda: store.put("key", value),
            lambda: store.exists("key"),
            lambda: store.delete("key"),
            lambda: store.stat("key"),
            lambda: store.delete_many(["key"]),
            lambda: store.copy("key", "other"),
            lambda: store.put_if_absent("key", value),
            store.keys,
            store.leftovers,
            lambda: store.sync([]),
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                call()

    def test_like_a_dictionary(self, tmp_path: Path) -> None:
        numbers = itertools.count()
        machine = value_machine_class(
            lambda: self.make_store(tmp_path / f"m{next(numbers)}"),
            self.values,
            self.fresh,
            self.is_there,
        )
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=self.machine_examples,
                stateful_step_count=20,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
