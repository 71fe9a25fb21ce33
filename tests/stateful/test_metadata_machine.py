"""Random histories of an index, with reopening, held against the model step by step.

One machine drives one backend through several handles at once. Each rule makes the same call on a
handle and on the model, compares the answers, and afterwards everything that the index holds.
Ids are compared by what they promise: one for each incarnation of a key, never used again.
"""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from blobstore.entry import Entry
from blobstore.errors import ConflictError, KeyExistsError, KeyNotFoundError
from blobstore.protocols import CommitResult, Copy, Delete, Put
from blobstore.query import Query, parse_mapping
from blobstore.testing.metadata_backend import make_blob, make_inline, make_patch, make_put
from blobstore.testing.model import Model, ModelBackend
from blobstore.testing.queries import queries

REFUSALS = (ConflictError, KeyExistsError, KeyNotFoundError)

keys = st.sampled_from(["a", "b", "c", "a%", "é", "\uffff", "\U0001f389"])
digests = st.sampled_from([None, "d1", "d2"])
values = st.sampled_from([0, 1, 1.0, True, None, "1", [1], {"x": {"y": 2**70}}, -0.0, "a\0b"])
metadata = st.dictionaries(st.sampled_from(["v", "w", "a.b", ""]), values, max_size=3)
picks = st.integers(0, 99)
expectations = st.one_of(
    st.just("any"),
    st.just("any"),
    st.sampled_from(["absent", "present", "current", "stale"]),
    st.integers(0, 3),
)
parts = st.one_of(
    st.just([("inline",)]),
    st.lists(
        st.one_of(
            st.tuples(st.just("new"), digests),
            st.tuples(st.just("new"), digests),
            st.tuples(st.just("reused"), picks),
            st.tuples(st.just("pending"), picks, digests),
            st.tuples(st.just("condemned"), picks),
        ),
        min_size=1,
        max_size=3,
    ),
)
puts = st.tuples(st.just("put"), keys, parts, metadata, expectations)
intents = st.one_of(
    puts,
    puts,
    st.tuples(st.just("delete"), keys, expectations),
    st.tuples(st.just("copy"), keys, keys, st.booleans(), st.booleans()),
    st.tuples(st.just("patch"), keys, metadata, st.booleans(), expectations),
)
handles = st.integers(0, 2)


class IndexMachine(RuleBasedStateMachine):
    """Subclasses say how to open the backend."""

    def open(self):
        raise NotImplementedError

    def __init__(self):
        super().__init__()
        self.model = Model()
        self.handles = [self.open()]
        self.store_id = self.handles[0].store_id
        self.ids = {}  # of the model -> of the backend
        self.seen = {}  # key -> [(the model's entry, the backend's entry)], oldest first
        self.last = None  # the latest commit that landed: operations, commit id, result
        self.now = self.used = 0
        self.taken = set()  # pending locations that the commit at hand uses already

    def fresh(self):
        """An identifier that was never used before, the same each time that a history is replayed."""
        self.used += 1
        return f"{self.used:032x}"

    def teardown(self):
        for handle in self.handles:
            handle.close()

    # --- rules

    # Rules are chosen with equal odds: several that commit make commits the larger part.

    @rule(handle=handles, chosen=puts)
    def put_one(self, handle, chosen):
        self.commit(handle, [chosen])

    @rule(handle=handles, chosen=puts)
    def put_another(self, handle, chosen):
        self.commit(handle, [chosen])

    @rule(handle=handles, chosen=intents)
    def change_one(self, handle, chosen):
        self.commit(handle, [chosen])

    @rule(handle=handles, chosen=st.lists(intents, min_size=2, max_size=4))
    def change_some(self, handle, chosen):
        self.commit(handle, chosen)

    @rule(handle=handles, chosen=st.lists(intents, min_size=2, max_size=4))
    def change_more(self, handle, chosen):
        self.commit(handle, chosen)

    def commit(self, handle, chosen):
        self.now += 1
        self.taken.clear()
        backend, commit_id = self.handle(handle), self.fresh()
        pairs = [self.operations(intent) for intent in chosen]
        for_model, for_backend = map(list, zip(*pairs, strict=True))
        expected = self.outcome(self.model, for_model, commit_id)
        actual = self.outcome(backend, for_backend, commit_id)
        if isinstance(expected, CommitResult) and not expected.missing:
            self.compare_results(for_model, expected, actual)
            self.last = (for_backend, for_model, commit_id)
        elif self.names_dead_blobs(for_model):
            # Refused for both reasons: which one is told is left open.
            assert isinstance(actual, type) or actual.missing
        else:
            assert actual == expected
        if isinstance(expected, CommitResult) and isinstance(actual, CommitResult):
            assert sorted(set(actual.missing)) == sorted(set(expected.missing))
        self.compare_all()

    @precondition(lambda self: self.can_be_repeated())
    @rule(handle=handles)
    def repeat_the_last_commit(self, handle):
        for_backend, for_model, commit_id = self.last
        again = self.handle(handle).commit(for_backend, commit_id)
        self.compare_results(for_model, self.model.landed[commit_id], again, repeated=True)
        self.compare_all()

    @rule(handle=handles, count=st.integers(1, 2), digest=digests)
    def announce(self, handle, count, digest):
        blobs = [make_blob(self.fresh(), digest=digest, created_us=self.now) for _ in range(count)]
        self.handle(handle).announce(blobs)
        self.model.announce(blobs)
        self.compare_all()

    @rule(handle=handles, chosen=st.lists(picks, max_size=4), unknown=st.booleans())
    def condemn(self, handle, chosen, unknown):
        locations = [*self.pick_rows(chosen), *([self.fresh()] if unknown else [])]
        answer = self.handle(handle).condemn(locations, self.now)
        assert sorted(answer) == sorted(self.model.condemn(locations, self.now))
        self.compare_all()

    @rule(handle=handles, chosen=st.lists(picks, max_size=4))
    def forget(self, handle, chosen):
        locations = self.pick_rows(chosen)
        self.handle(handle).forget(locations)
        self.model.forget(locations)
        self.compare_all()

    @rule(
        handle=handles,
        prefix=st.sampled_from(["", "", "a", "a%", "é", "\U0001f389", "z"]),
        equal=metadata,
        after=st.one_of(st.none(), keys),
        limit=st.one_of(st.none(), st.integers(0, 4)),
    )
    def query(self, handle, prefix, equal, after, limit):
        where = parse_mapping(equal, literal=True)
        backend, query = self.handle(handle), Query(prefix, where, after=after, limit=limit)
        expected = self.model.find(query)
        assert [self.same_id(*pair) for pair in self.zipped(expected, backend.scan(query))] == (
            expected
        )
        assert list(backend.keys(query)) == [entry.key for entry in expected]
        assert backend.count(query) == len(expected)

    @rule(handle=handles, data=st.data())
    def ask(self, handle, data):
        keyed = {key: entry.metadata for key, entry in self.model.entries.items()}
        backend, query = self.handle(handle), data.draw(queries(keyed))
        expected = self.model.find(query)
        assert list(backend.keys(query)) == [entry.key for entry in expected]
        assert backend.count(query) == len(expected)

    @rule(handle=handles, asked=st.lists(keys, max_size=4), chosen=st.lists(picks, max_size=3))
    def look_up(self, handle, asked, chosen):
        backend = self.handle(handle)
        assert set(backend.get_many(asked)) == set(asked) & self.model.entries.keys()
        for key in asked:
            assert backend.get(key) == backend.get_many([key]).get(key)
        locations = self.pick_rows(chosen)
        assert backend.known([*locations, "unknown"]) == set(locations)
        assert backend.find_digests(["d1", "d2", "d3"]) == self.model.live_by_digest()

    @rule(handle=handles)
    def reopen(self, handle):
        number = handle % len(self.handles)
        self.handles[number].close()
        self.handles[number] = self.open()
        self.compare_all()

    @precondition(lambda self: len(self.handles) < 3)
    @rule()
    def open_another(self):
        self.handles.append(self.open())
        self.compare_all()

    @precondition(lambda self: len(self.handles) < 3)
    @rule(handle=handles)
    def copy_by_pickle(self, handle):
        self.handles.append(pickle.loads(pickle.dumps(self.handle(handle))))
        self.compare_all()

    @rule()
    def close_all_and_open_one(self):
        self.teardown()
        self.handles = [self.open()]
        self.compare_all()

    # --- turning intents into operations, one for the model and one for the backend

    def operations(self, intent):
        kind, *arguments = intent
        if kind == "copy":
            operation = self.copying(*arguments)
            return operation, operation
        *arguments, expected = arguments
        for_model, for_backend = self.expected(arguments[0], expected)
        if kind == "put":
            operation = self.putting(*arguments)
        elif kind == "patch":
            key, changes, all_of_it = arguments
            operation = make_patch(key, changes, replace=all_of_it, now_us=self.now)
        else:
            operation = Delete(*arguments)
        return replace(operation, expected=for_model), replace(operation, expected=for_backend)

    def copying(self, source, target, overwrite, move):
        if source == target or source not in self.model.entries:
            overwrite = True  # what is refused first is left open
        return Copy(source, target, self.now, overwrite=overwrite, move=move)

    def putting(self, key, chosen, metadata):
        if chosen == [("inline",)]:
            return make_put(
                key, parts=(make_inline(b"\0\xff"),), metadata=metadata, now_us=self.now
            )
        blobs, reused = [], []
        for kind, *choice in chosen:
            blob = self.blob(kind, *choice)
            blobs.append(blob)
            if kind == "reused":
                reused.append(blob)
        return make_put(key, *blobs, reused=reused, metadata=metadata, now_us=self.now)

    def blob(self, kind, *choice):
        new = make_blob(self.fresh(), created_us=self.now, size=self.now)
        if kind == "new":
            return new._replace(digest=choice[0])
        rows = sorted(self.model.rows.values(), key=lambda row: row.location)
        fitting = [
            row
            for row in rows
            if (kind == "reused" or row.state == kind) and row.location not in self.taken
        ]
        if not fitting:
            return new
        row = fitting[choice[0] % len(fitting)]
        if row.state == "pending":
            self.taken.add(row.location)  # twice in one commit, it would be new and yet there
        if kind == "reused":
            return row
        digest = choice[1] if kind == "pending" else None
        return new._replace(location=row.location, digest=digest)

    def expected(self, key, expected):
        seen = self.seen.get(key, [])
        if expected == "current":
            return seen[-1] if seen else ("any", "any")
        if expected == "stale":
            return seen[0] if seen else ("any", "any")
        return expected, expected

    # --- comparing

    def handle(self, number):
        return self.handles[number % len(self.handles)]

    def pick_rows(self, chosen):
        locations = sorted(self.model.rows)
        return list({locations[n % len(locations)] for n in chosen}) if locations else []

    def outcome(self, index, operations, commit_id):
        try:
            return index.commit(operations, commit_id)
        except REFUSALS as exc:
            return type(exc)

    def names_dead_blobs(self, operations):
        """Whether there may be missing blobs besides a refused expectation."""
        used = {
            location
            for operation in operations
            if isinstance(operation, Put)
            for location in operation.reused | {p.blob.location for p in operation.draft.parts}
        }
        return any(row.state != "live" for row in map(self.model.rows.get, used) if row)

    def can_be_repeated(self):
        """Whether an entry still bears witness that the last commit landed."""
        return self.last is not None and any(
            entry.commit_id == self.last[2] for entry in self.model.entries.values()
        )

    def compare_results(self, operations, expected, actual, *, repeated=False):
        assert isinstance(actual, CommitResult)
        assert actual.missing == ()
        if not repeated:
            assert sorted(actual.condemned) == sorted(expected.condemned)
        for i, (ours, theirs) in enumerate(self.zipped(expected.entries, actual.entries)):
            last_word = not touched(operations[i]) & set().union(*map(touched, operations[i + 1 :]))
            if not repeated:
                assert (ours is None) == (theirs is None)
            if repeated and isinstance(operations[i], Delete):
                continue  # what it removed is nowhere to be had any more
            if last_word and ours is not None:
                assert self.same_id(ours, theirs) == ours

    def compare_all(self):
        """Everything that the index holds, through each handle."""
        expected = self.model.find(Query())
        for backend in self.handles:
            listed = list(backend.scan(Query()))
            assert [self.same_id(*pair) for pair in self.zipped(expected, listed)] == expected
            assert all(backend.get(entry.key) == entry for entry in listed)
            blobs = list(backend.blobs())
            assert {b.location: essence(b) for b in blobs} == {
                row.location: essence(row) for row in self.model.rows.values()
            }
            assert len(blobs) == len(self.model.rows)
            assert {b.location for b in backend.condemned()} == {
                row.location for row in self.model.rows.values() if row.state == "condemned"
            }
            assert backend.store_id == self.store_id
        assert self.handles[-1].check() == []
        for ours, theirs in zip(expected, listed, strict=True):
            seen = self.seen.setdefault(ours.key, [])
            if not seen or seen[-1][0] != ours:
                seen.append((ours, theirs))

    def zipped(self, ours, theirs):
        ours, theirs = list(ours), list(theirs)
        assert len(ours) == len(theirs), (ours, theirs)
        return zip(ours, theirs, strict=True)

    def same_id(self, ours, theirs):
        """The backend's entry under the model's id, which must always stand for the same one."""
        assert isinstance(theirs, Entry)
        if ours.id not in self.ids:
            assert theirs.id not in self.ids.values(), "an id was used again"
            self.ids[ours.id] = theirs.id
        assert theirs.id == self.ids[ours.id]
        return theirs._replace(id=ours.id)


def touched(operation):
    """Keys that an operation may change."""
    if isinstance(operation, Put):
        return {operation.draft.key}
    if isinstance(operation, Copy):
        return {operation.source, operation.target}
    return {operation.key}


def essence(blob):
    """What must agree of a blob row: of a condemned one no more than that."""
    if blob.state == "condemned":
        return ("condemned", blob.condemned_us is not None)
    return blob


def make_model(path):
    return ModelBackend(path)


def make_json(path):
    from blobstore.backends.metadata.json import JsonBackend

    return JsonBackend(path)


def make_sqlite(path):
    from blobstore.backends.metadata.sql import SqlBackend

    path.mkdir(exist_ok=True)
    return SqlBackend(path / "cache_metadata.db")


def make_postgres(url):
    from blobstore.backends.metadata.sql import SqlBackend

    return lambda path: SqlBackend(url, namespace=path.name)


MAKERS = {"model": make_model, "json": make_json, "sqlite": make_sqlite}


@pytest.fixture(params=[*MAKERS, "postgres"])
def make(request):
    if request.param == "postgres":
        return make_postgres(request.getfixturevalue("postgres_url"))
    return MAKERS[request.param]


def run(tmp_path, make, **how):
    numbers = itertools.count()

    class Machine(IndexMachine):
        def __init__(self):
            self.place = tmp_path / str(next(numbers))
            super().__init__()

        def open(self):
            return make(self.place)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            **how,
        ),
    )


def test_histories(tmp_path, make):
    run(tmp_path, make, max_examples=25, stateful_step_count=30)


@pytest.mark.nightly
def test_many_long_histories(tmp_path, make):
    run(tmp_path, make, max_examples=300, stateful_step_count=50)
