"""An index in PostgreSQL whose server dies, or whose replies get lost.

Faults are made between the index and a real server, at each exchange of an operation in turn. What
the index holds is then read through another connection, past the faults.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from servers.faults import Fault, Hold, LoseReply, Request, Reset, Stall, StallReply
from servers.postgres import PostgresServer
from servers.proxy import Proxy

from blobstore import BlobStore
from blobstore.backends.metadata.sql import SqlBackend
from blobstore.errors import BlobStoreError, ClosedError, UnavailableError
from blobstore.keys import random_id
from blobstore.protocols import Delete, Operation
from blobstore.query import Query
from blobstore.testing.metadata_backend import (
    commit,
    make_blob,
    make_copy,
    make_inline,
    make_patch,
    make_put,
)

HANGS = 60.0  # no operation may take as long as this, whatever the fault
IMPATIENT = 0.1  # for a lock; a server that says nothing gets ten times as long
ALL = Query()

State = dict[str, tuple[int, str, int]]


class Index:
    """A database seen through a proxy, and past it; each namespace is an index of its own."""

    def __init__(self, server: PostgresServer, url: str, proxy: Proxy) -> None:
        self.server = server
        self.url = url
        self.proxy = proxy
        self.name = url.partition("?")[0].rpartition("/")[2]
        self.namespace = "n"

    @property
    def url_by_proxy(self) -> str:
        return f"{self.server.url(self.name, self.proxy.port)}&connect_timeout=2"

    def new(self) -> None:
        """Start with an index in which "old" and "other" are, and no faults."""
        self.proxy.clear()
        self.namespace = uuid.uuid4().hex
        with self.direct() as backend:
            commit(backend, make_put("old", metadata={"a": 1}), make_put("other"))

    def direct(self) -> contextlib.AbstractContextManager[SqlBackend]:
        return contextlib.closing(SqlBackend(self.url, namespace=self.namespace))

    def backend(self, **options) -> contextlib.AbstractContextManager[SqlBackend]:
        return contextlib.closing(
            SqlBackend(self.url_by_proxy, namespace=self.namespace, **options)
        )

    def state(self) -> State:
        """Version, metadata and number of parts of each key; the index must be sound."""
        with self.direct() as backend:
            assert backend.check() == []
            live = {blob.location for blob in backend.blobs() if blob.state == "live"}
            found = list(backend.scan(ALL))
        assert live == {location for entry in found for location in entry.locations}
        return {e.key: (e.version, e.metadata_text, len(e.parts)) for e in found}


@pytest.fixture(scope="module")
def database(postgres_server):
    url = postgres_server.new_database()
    SqlBackend(url).close()  # makes the tables
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def index(postgres_server, database):
    with Proxy(postgres_server.socket, "postgres") as proxy:
        yield Index(postgres_server, database, proxy)


def bounded(work: Callable[[], object]) -> object:
    """What `work` answers or raises; it must not hang."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as exc:
            outcome.append(exc)

    thread = threading.Thread(target=run, name="test-bounded", daemon=True)
    thread.start()
    thread.join(HANGS)
    assert outcome, "it hangs"
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


OLD = {"old": (1, '{"a":1}', 1)}
OTHER = {"other": (1, "{}", 1)}
BEFORE: State = {**OLD, **OTHER}
COMMITS: dict[str, tuple[Callable[[], Sequence[Operation]], State]] = {
    "put": (
        lambda: [make_put("new", make_blob(), make_blob(), expected="absent")],
        {**BEFORE, "new": (1, "{}", 2)},
    ),
    "put inline": (
        lambda: [make_put("new", parts=(make_inline(b"bytes"),))],
        {**BEFORE, "new": (1, "{}", 1)},
    ),
    "put inline absent": (
        lambda: [make_put("new", parts=(make_inline(b"bytes"),), expected="absent")],
        {**BEFORE, "new": (1, "{}", 1)},
    ),
    "overwrite": (
        lambda: [make_put("old", make_blob(), expected=1)],
        {**OTHER, "old": (2, "{}", 1)},
    ),
    "overwrite inline": (
        lambda: [make_put("old", parts=(make_inline(b"bytes"),))],
        {**OTHER, "old": (2, "{}", 1)},
    ),
    "patch": (
        lambda: [make_patch("old", {"b": 2}, expected=1)],
        {**OTHER, "old": (2, '{"a":1,"b":2}', 1)},
    ),
    "copy": (
        lambda: [make_copy("old", "new", overwrite=False)],
        {**BEFORE, "new": (1, '{"a":1}', 1)},
    ),
    "move": (
        lambda: [make_copy("old", "new", move=True)],
        {**OTHER, "new": (1, '{"a":1}', 1)},
    ),
    "delete": (lambda: [Delete("old", "present")], OTHER),
    "several": (
        lambda: [
            make_put("new", expected="absent"),
            Delete("other"),
            make_patch("old", {"b": 2}, expected=1),
        ],
        {"old": (2, '{"a":1,"b":2}', 1), "new": (1, "{}", 1)},
    ),
}
commits = pytest.mark.parametrize("name", COMMITS)
every_day = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in daily else pytest.mark.nightly)
        for daily in ({"put", "put inline absent", "patch", "delete"},)
        for name in COMMITS
    ],
)


def examine(index: Index, name: str, outcome: object) -> State:
    """What is in the index goes with what the commit said; returns it."""
    state, after = index.state(), COMMITS[name][1]
    if not isinstance(outcome, BaseException):
        assert state == after, "acknowledged, and not there"
    else:
        assert isinstance(outcome, UnavailableError), outcome
        assert outcome.retryable
        if outcome.outcome == "failed":
            assert state == BEFORE, "said to have failed, and is there"
        assert state in (BEFORE, after), "half of it is there"
    return state


def finish(index: Index, name: str, backend: SqlBackend, operations, commit_id, state) -> None:
    """Committing again under the same id leads to the same, whether it had landed or not."""
    if name == "delete" and state != BEFORE:
        return  # leaves no mark; its caller knows no more than that it is gone
    backend.commit(operations, commit_id)
    assert index.state() == COMMITS[name][1]


def commit_with(backend: SqlBackend, operations, commit_id) -> object:
    try:
        return bounded(lambda: backend.commit(operations, commit_id))
    except BlobStoreError as exc:
        return exc


# One exchange of a commit goes wrong.


@pytest.mark.parametrize("fault", [Reset(), LoseReply()], ids=["cut", "lost reply"])
@every_day
def test_a_connection_that_breaks_at_any_exchange_leaves_all_or_nothing(index, name, fault):
    for number in itertools.count():
        index.new()
        operations, commit_id = COMMITS[name][0](), random_id()
        with index.backend() as backend:
            backend.get("old")
            rule = index.proxy.add(fault, skip=number, times=1)
            outcome = commit_with(backend, operations, commit_id)
            if not rule.applied:
                break
            state = examine(index, name, outcome)
            index.proxy.clear()
            finish(index, name, backend, operations, commit_id, state)
    assert number, "it asked the server nothing"


@every_day
def test_a_server_that_goes_away_at_any_exchange_leaves_all_or_nothing(index, name):
    for number in itertools.count():
        index.new()
        operations, commit_id = COMMITS[name][0](), random_id()
        with index.backend(timeout=IMPATIENT) as backend:
            backend.get("old")
            rule = index.proxy.add(LoseReply(), skip=number)  # it, and all that come after it
            outcome = commit_with(backend, operations, commit_id)
            if not rule.applied:
                break
            state = examine(index, name, outcome)
            index.proxy.clear()
            finish(index, name, backend, operations, commit_id, state)
    assert number


def switch(name: str) -> Callable[[Request], bool]:
    """The exchange by which a commit takes place: of small values the only one after preparing."""
    if "inline" in name:
        return lambda request: request.head[:1] == b"B"
    return lambda request: b"COMMIT" in request.head


STALLS = pytest.mark.parametrize(
    "fault", [Stall(), StallReply()], ids=["stalled request", "stalled reply"]
)
HURRIED = ("put", "put inline")


def stall(index: Index, name: str, fault: Fault, **rule) -> bool:
    """Commit with a stall, see that it ends, and commit again; whether it came to it."""
    index.new()
    operations, commit_id = COMMITS[name][0](), random_id()
    with index.backend(timeout=IMPATIENT) as backend:
        backend.get("old")
        struck = index.proxy.add(fault, times=1, **rule)
        outcome = commit_with(backend, operations, commit_id)
        if not struck.applied:
            return False
        index.proxy.cut_all()  # so that the server lets go of what it holds for the stalled one
        wait_until_closed(index)
        state = examine(index, name, outcome)
        index.proxy.clear()
        finish(index, name, backend, operations, commit_id, state)
    return True


def wait_until_closed(index: Index) -> None:
    deadline = time.monotonic() + HANGS
    while index.proxy.open:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@STALLS
@pytest.mark.parametrize("name", HURRIED)
def test_a_stall_of_the_switch_ends_and_leaves_all_or_nothing(index, name, fault):
    assert stall(index, name, fault, when=switch(name))


@STALLS
@commits
@pytest.mark.nightly
def test_a_stall_at_any_exchange_ends_and_leaves_all_or_nothing(index, name, fault):
    assert stall(index, name, fault, skip=0)
    assert all(itertools.takewhile(bool, (stall(index, name, fault, skip=n) for n in range(1, 99))))


def hold(index: Index, name: str, **rule) -> bool:
    """Let a request arrive after its client gave up; whether it came to it."""
    index.new()
    operations, commit_id = COMMITS[name][0](), random_id()
    release = threading.Event()
    with index.backend(timeout=IMPATIENT) as backend:
        backend.get("old")
        struck = index.proxy.add(Hold(release), times=1, **rule)
        outcome = commit_with(backend, operations, commit_id)
    release.set()
    wait_until_closed(index)
    examine(index, name, outcome)
    return bool(struck.applied)


@pytest.mark.parametrize("name", ["put", "put inline", "patch", "delete"])
def test_a_commit_that_arrives_after_its_client_gave_up_is_not_said_to_have_failed(index, name):
    assert hold(index, name, when=switch(name))


@commits
@pytest.mark.nightly
def test_any_exchange_may_arrive_after_its_client_gave_up(index, name):
    assert hold(index, name, skip=0)
    assert all(itertools.takewhile(bool, (hold(index, name, skip=n) for n in range(1, 99))))


def test_a_commit_whose_reply_is_lost_is_found_out(index):
    """One lost reply is no outage: the server is there, and knows."""
    for name, (make, after) in COMMITS.items():
        index.new()
        operations, commit_id = make(), random_id()
        with index.backend() as backend:
            backend.get("old")
            rule = index.proxy.add(LoseReply(), when=switch(name), times=1)
            outcome = commit_with(backend, operations, commit_id)
            assert rule.applied == 1
            if name == "overwrite inline":
                # One statement was not enough to replace what has blobs, so it changed nothing,
                # which looks as if another had replaced what it put.
                assert outcome.outcome == "unknown"
                assert index.state() == BEFORE
                outcome = commit_with(backend, operations, commit_id)
        assert not isinstance(outcome, BaseException), (name, outcome)
        assert index.state() == after, name


# Reading.

READS: dict[str, Callable[[SqlBackend], object]] = {
    "get": lambda b: b.get("old").version,
    "get_many": lambda b: sorted(b.get_many(["old", "other", "absent"])),
    "scan": lambda b: [entry.key for entry in b.scan(ALL)],
    "keys": lambda b: list(b.keys(ALL)),
    "count": lambda b: b.count(ALL),
    "find_digests": lambda b: b.find_digests(["absent"]),
    "blobs": lambda b: len(list(b.blobs())),
    "condemned": lambda b: b.condemned(),
    "check": lambda b: b.check(),
    "stats": lambda b: b.stats()["kind"],
}


@pytest.mark.parametrize("fault", [Reset(), LoseReply()], ids=["cut", "lost reply"])
@pytest.mark.parametrize("name", READS)
def test_a_read_whose_connection_breaks_is_repeated_or_says_so(index, name, fault):
    index.new()
    with index.direct() as backend:
        expected = READS[name](backend)
    for number in itertools.count():
        index.proxy.clear()
        with index.backend() as backend:
            backend.get("old")
            rule = index.proxy.add(fault, skip=number, times=1)
            with contextlib.suppress(UnavailableError):
                assert bounded(lambda: READS[name](backend)) == expected
            if not rule.applied:
                break
            assert READS[name](backend) == expected, "the pool does not recover"
    assert number


@pytest.mark.parametrize("fault", [Stall(), StallReply()], ids=["request", "reply"])
def test_a_read_that_stalls_ends(index, fault):
    index.new()
    with index.backend(timeout=IMPATIENT) as backend:
        backend.get("old")
        index.proxy.add(fault)
        with pytest.raises(UnavailableError):
            bounded(lambda: backend.get("old"))
        index.proxy.clear()
        assert backend.get("old").version == 1


def test_a_server_that_is_not_there_is_an_outage_and_no_miss(index):
    index.new()
    with index.backend(timeout=IMPATIENT) as backend:
        with index.proxy.refusing():
            with pytest.raises(UnavailableError) as caught:
                bounded(lambda: backend.get("old"))
            assert caught.value.outcome == "failed"
            with pytest.raises(UnavailableError) as caught:
                bounded(lambda: commit(backend, make_put("new")))
            assert caught.value.outcome == "failed"
            with pytest.raises(UnavailableError):
                bounded(lambda: SqlBackend(index.url_by_proxy, timeout=IMPATIENT))
        assert backend.get("old").version == 1
        commit(backend, make_put("new"))


# The server dies, and comes back.


@pytest.fixture(scope="module")
def mortal():
    with PostgresServer() as server:
        yield server


@pytest.fixture
def dying(mortal):
    mortal.start()
    with Proxy(mortal.socket, "postgres") as proxy:
        index = Index(mortal, mortal.new_database(), proxy)
        index.new()
        yield index
    mortal.start()
    mortal.drop_database(index.url)


@pytest.mark.parametrize("end", [PostgresServer.kill, PostgresServer.stop], ids=["kill", "stop"])
def test_a_server_that_was_restarted_between_calls_goes_on(dying, end):
    with dying.direct() as backend:
        reads = {name: read(backend) for name, read in READS.items()}
        for version, (name, read) in enumerate(READS.items(), 1):
            end(dying.server)
            dying.server.start()
            with contextlib.suppress(UnavailableError):
                assert read(backend) == reads[name]
            assert read(backend) == reads[name]
            end(dying.server)
            dying.server.start()
            operations, commit_id = [make_put("n", make_blob(), expected="any")], random_id()
            with contextlib.suppress(UnavailableError):
                backend.commit(operations, commit_id)
            (entry,) = backend.commit(operations, commit_id).entries
            assert entry.version == version
            commit(backend, Delete("n"))
            for _ in range(version):
                commit(backend, make_put("n"))
            backend.forget(backend.condemn([b.location for b in backend.condemned()], 1))
            reads["blobs"] = len(list(backend.blobs()))
            for name_ in ("scan", "keys", "count"):
                reads[name_] = READS[name_](backend)


def test_connections_that_the_server_ended_are_replaced(index):
    index.new()
    with index.direct() as backend:
        threads = [threading.Thread(target=backend.get, args=("old",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with index.server.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
                (index.name,),
            )
        assert backend.get("old").version == 1
        commit(backend, make_put("new"))
    with pytest.raises(ClosedError):
        backend.get("old")


def use_up_transaction_ids(server: PostgresServer) -> None:
    """Give the number of a transaction that a crash swept away to others, which are committed.

    PostgreSQL does so: it keeps in mind only the numbers that its log on disk tells of.
    """
    with server.connect() as connection:
        for _ in range(20):
            connection.execute("SELECT pg_current_xact_id()")


@pytest.mark.parametrize(
    ("name", "back"),
    [
        pytest.param("put", True, id="comes back"),
        pytest.param("put", False, id="stays away"),
        *(
            pytest.param(name, back, marks=pytest.mark.nightly)
            for name in ("put inline", "patch", "delete", "several")
            for back in (True, False)
        ),
    ],
)
def test_a_server_that_dies_within_a_transaction_leaves_all_or_nothing(dying, name, back):
    for number in itertools.count():
        dying.server.start()
        dying.new()
        deaths = []

        def die(request, number=number, deaths=deaths, seen=itertools.count()):  # noqa: B008
            if next(seen) == number:
                deaths.append(request)
                dying.server.kill()
                if back:
                    dying.server.start()
                    use_up_transaction_ids(dying.server)
            return False

        operations, commit_id = COMMITS[name][0](), random_id()
        with dying.backend(timeout=IMPATIENT) as backend:
            backend.get("old")
            dying.proxy.add(Reset(), when=die)
            outcome = commit_with(backend, operations, commit_id)
            dying.proxy.clear()
            if not deaths:
                break
            dying.server.start()
            state = examine(dying, name, outcome)
            with contextlib.suppress(UnavailableError):
                backend.get("old")
            finish(dying, name, backend, operations, commit_id, state)
    assert number


def test_a_frozen_server_is_an_outage_and_goes_on_afterwards(dying):
    with dying.backend(timeout=IMPATIENT) as backend:
        backend.get("old")
        with dying.server.frozen():
            with pytest.raises(UnavailableError):
                bounded(lambda: backend.get("old"))
            with pytest.raises(UnavailableError):
                bounded(lambda: commit(backend, make_put("new")))
        assert backend.get("old").version == 1


def count_up(dying: Index, deaths: int, writers: int, steps: int) -> None:
    """Each writer counts on its own key, repeating what failed; the server dies meanwhile."""
    enough, done = threading.Semaphore(0), threading.Event()
    counted = dict.fromkeys(map(str, range(writers)), 1)
    failures: list[BaseException] = []

    def repeat(backend, operations) -> int:
        commit_id = random_id()
        while True:
            with contextlib.suppress(UnavailableError):
                return backend.commit(operations, commit_id).entries[0].version

    def work(backend: SqlBackend, key: str) -> None:
        try:
            repeat(backend, [make_put(key, expected="absent")])
            while not done.is_set():
                version = counted[key]
                changed = {"n": version}
                expected = repeat(backend, [make_patch(key, changed, expected=version)])
                assert expected == version + 1, "done twice"
                counted[key] = expected
                enough.release()
        except BaseException as exc:
            failures.append(exc)
            enough.release(1000)

    with dying.direct() as backend:
        threads = [
            threading.Thread(target=work, args=(backend, key), name="test-count") for key in counted
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(deaths):
                for _ in range(steps):
                    assert enough.acquire(timeout=HANGS)
                dying.server.kill()
                dying.server.start()
                while enough.acquire(blocking=False):
                    pass  # only what is done from now on counts as going on
            for _ in range(steps):
                assert enough.acquire(timeout=HANGS)
        finally:
            done.set()
            dying.server.start()
            for thread in threads:
                thread.join(HANGS)
        assert not failures, failures
        assert {key: backend.get(key).version for key in counted} == counted
    dying.state()


def test_no_commit_is_lost_or_done_twice_while_the_server_dies(dying):
    count_up(dying, deaths=2, writers=4, steps=50)


@pytest.mark.nightly
def test_no_commit_is_lost_or_done_twice_in_many_deaths(dying):
    count_up(dying, deaths=30, writers=6, steps=100)


# A whole store over it.


@pytest.mark.parametrize("size", [10, 50_000], ids=["inline", "blob"])
def test_a_store_keeps_what_it_acknowledged_and_deletes_nothing_that_may_be_needed(
    index, tmp_path, size
):
    url = index.server.new_database()
    index.name = url.partition("?")[0].rpartition("/")[2]
    old, new = np.arange(size), np.arange(size) * 2
    with BlobStore(tmp_path / "store", backend=index.url_by_proxy) as store:
        store.put(old, key="k")
        for number in itertools.count():
            rule = index.proxy.add(LoseReply(), skip=number, times=1)
            try:
                store.put(new, key="k")
                expected = [new]
            except UnavailableError as exc:
                expected = [old, new] if exc.outcome == "unknown" else [old]
            struck = rule.applied
            index.proxy.clear()
            found = store["k"]
            assert any(np.array_equal(found, value) for value in expected)
            assert store.verify(deep=True).ok
            if not struck:
                break
            store.put(old, key="k")
        assert number
    index.server.drop_database(url)
