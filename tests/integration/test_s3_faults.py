"""A bucket behind a bad network, and on a server that dies: success, or an error that says so.

Every fault is made between the store and a real server. What is in the bucket is looked up behind
the store's back, past the faults.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from servers.faults import (
    Answer,
    CutReply,
    CutRequest,
    Delay,
    Fault,
    LoseReply,
    Reset,
    Stall,
    StallReply,
    Throttle,
)
from servers.proxy import Proxy
from servers.s3 import S3Server

from blobstore import BucketStore
from blobstore.errors import (
    BlobStoreError,
    KeyNotFoundError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)

QUICK = {"timeout": 5.0, "retries": 2, "multipart_chunksize": 5 << 20}
IMPATIENT = {**QUICK, "timeout": 1.0, "retries": 1}
HANGS = 60.0  # no operation may take as long as this, whatever the fault

MIB = 1 << 20
SMALL = bytes(range(256)) * 4
OLD = b"old" * 500_000
NEW = b"new" * 700_000
PIECES = [bytes([i]) * (3 * MIB) for i in range(5)]  # more than one part


class Bucket:
    """A store whose requests pass through a proxy, and a look past it."""

    def __init__(self, server: S3Server, name: str, proxy: Proxy) -> None:
        self.server = server
        self.name = name
        self.proxy = proxy
        self.prefix = f"{uuid.uuid4().hex}/"

    def store(self, **options) -> BucketStore:
        return BucketStore(
            bucket_name=self.name,
            endpoint_url=self.proxy.endpoint,
            s3_access_key=self.server.access_key,
            s3_secret_key=self.server.secret_key,
            region=self.server.region,
            **{**QUICK, **options},
        )

    def key(self, name: str) -> str:
        return self.prefix + name

    def poke(self, name: str, data: bytes) -> None:
        self.server.client.put_object(Bucket=self.name, Key=self.key(name), Body=data)

    def peek(self, name: str) -> bytes | None:
        try:
            reply = self.server.client.get_object(Bucket=self.name, Key=self.key(name))
        except self.server.client.exceptions.NoSuchKey:
            return None
        return reply["Body"].read()

    def names(self) -> list[str]:
        found = self.server.client.list_objects_v2(Bucket=self.name, Prefix=self.prefix)
        return sorted(item["Key"] for item in found.get("Contents", ()))

    def uploads(self) -> list[str]:
        found = self.server.client.list_multipart_uploads(Bucket=self.name, Prefix=self.prefix)
        return [item["Key"] for item in found.get("Uploads", ())]

    def renew(self) -> None:
        """Work below another prefix, without faults."""
        self.proxy.clear()
        self.prefix = f"{uuid.uuid4().hex}/"


@pytest.fixture(scope="module")
def one_bucket(s3_server):
    # One for all tests of a worker, each below a prefix of its own: the first write into a new
    # bucket is slow.
    name = s3_server.new_bucket()
    yield name
    s3_server.delete_bucket(name)


@pytest.fixture
def bucket(s3_server, one_bucket):
    with Proxy((s3_server.host, s3_server.port)) as proxy:
        yield Bucket(s3_server, one_bucket, proxy)


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


# What is done: before it, the objects "old" and "other" are there.


@dataclass(frozen=True)
class Operation:
    """Something to do, what it answers, and what is in the bucket after it."""

    act: Callable[[BucketStore, Bucket], object]
    answer: object = None
    changes: dict[str, bytes | None] = field(default_factory=dict)


def write(store, bucket):
    with store.writer(bucket.key("new"), size_hint=sum(map(len, PIECES))) as sink:
        for piece in PIECES:
            sink.write(piece)


def read_opened(store, bucket):
    with store.open(bucket.key("old")) as file:
        file.seek(3)
        return file.read()


OPERATIONS = {
    "get": Operation(lambda s, b: s.get(b.key("old")), OLD),
    "open": Operation(read_opened, OLD[3:]),
    "get_range": Operation(lambda s, b: s.get_range(b.key("old"), 1, 1_000_001), OLD[1:1_000_001]),
    "stat": Operation(lambda s, b: s.stat(b.key("old")).size, len(OLD)),
    "exists": Operation(lambda s, b: s.exists(b.key("old")), True),
    "keys": Operation(
        lambda s, b: sorted(key.removeprefix(b.prefix) for key in s.keys(b.prefix)),
        ["old", "other"],
    ),
    "put": Operation(lambda s, b: s.put(b.key("new"), NEW), None, {"new": NEW}),
    "overwrite": Operation(lambda s, b: s.put(b.key("old"), NEW), None, {"old": NEW}),
    "writer": Operation(write, None, {"new": b"".join(PIECES)}),
    "put_if_absent": Operation(
        lambda s, b: s.put_if_absent(b.key("new"), SMALL), True, {"new": SMALL}
    ),
    "put_if_present": Operation(lambda s, b: s.put_if_absent(b.key("old"), SMALL), False),
    "copy": Operation(lambda s, b: s.copy(b.key("old"), b.key("new")), None, {"new": OLD}),
    "delete": Operation(lambda s, b: s.delete(b.key("old")), None, {"old": None}),
    "delete_many": Operation(
        lambda s, b: s.delete_many([b.key("old"), b.key("other"), b.key("absent")]),
        None,
        {"old": None, "other": None},
    ),
}
BEFORE = {"old": OLD, "other": SMALL, "new": None}


def prepare(bucket: Bucket) -> None:
    bucket.renew()
    for name, data in BEFORE.items():
        if data is not None:
            bucket.poke(name, data)


def state(bucket: Bucket) -> dict[str, bytes | None]:
    return {name: bucket.peek(name) for name in BEFORE}


def after(operation: Operation) -> dict[str, bytes | None]:
    return {**BEFORE, **operation.changes}


def every_day(faults: dict[str, Fault], operations: set[str], fault: str) -> list[object]:
    """Each operation with each fault; some operations, and one fault, are tried in every run."""
    return [
        pytest.param(
            name,
            faults[kind],
            id=f"{name}-{kind}",
            marks=() if name in operations or kind == fault else pytest.mark.nightly,
        )
        for name in OPERATIONS
        for kind in faults
    ]


def run_with(bucket, operation, fault, number, **options) -> tuple[int, object]:
    """Do it with a fault at the request of this number; how often it struck, and the outcome."""
    prepare(bucket)
    with bucket.store(**options) as store:
        rule = bucket.proxy.add(fault, skip=number, times=1)
        try:
            answer = bounded(lambda: operation.act(store, bucket))
        except BlobStoreError as exc:
            answer = exc
    return rule.applied, answer


# One request of many goes wrong: all is done in the end.

ONCE = {
    "reset": Reset(),
    "lost reply": LoseReply(),
    "500": Answer(500, "InternalError"),
    "500 though done": Answer(500, "InternalError", done=True),
    "503": Answer(503, "SlowDown"),
    "429": Answer(429, "TooManyRequests"),
    "cut request": CutRequest(1000),
    "cut reply": CutReply(10),
    "late": Delay(0.05),
}


# obstore reads the bodies of these replies after its retries: if one breaks, the call has to be
# repeated by its caller, and says so.
NOT_REPEATED = {"keys", "writer", "copy"} & OPERATIONS.keys()


@pytest.mark.parametrize(("name", "fault"), every_day(ONCE, {"get", "put", "writer"}, "lost reply"))
def test_one_fault_is_survived(bucket, name, fault):
    operation = OPERATIONS[name]
    for number in itertools.count():
        struck, answer = run_with(bucket, operation, fault, number)
        if not struck:
            break
        if isinstance(answer, UnavailableError) and is_broken_body(name, fault):
            if answer.outcome == "failed":
                assert state(bucket) == BEFORE
            assert state(bucket) in (BEFORE, after(operation))
            continue
        assert answer == operation.answer, (number, answer)
        assert state(bucket) == after(operation), number
    assert number, "it asked the server nothing"
    assert not bucket.uploads() or is_broken_body(name, fault)


def is_broken_body(name: str, fault: Fault) -> bool:
    return name in NOT_REPEATED and isinstance(fault, CutReply | StallReply)


STALLS = {"stall": Stall(), "stalled reply": StallReply(), "stalled body": StallReply(10)}


@pytest.mark.parametrize(("name", "fault"), every_day(STALLS, {"get", "put_if_absent"}, ""))
def test_one_stall_is_survived(bucket, name, fault):
    operation = OPERATIONS[name]
    for number in itertools.count():
        struck, answer = run_with(bucket, operation, fault, number, **IMPATIENT)
        if not struck:
            break
        if isinstance(answer, UnavailableError) and is_broken_body(name, fault):
            assert state(bucket) in (BEFORE, after(operation))
            continue
        assert answer == operation.answer, (number, answer)
        assert state(bucket) == after(operation), number
    assert number


# Nothing works any more: a typed error, and what is there is what was there.

ALWAYS = {
    "reset": Reset(),
    "500": Answer(500, "InternalError"),
    "503": Answer(503, "SlowDown"),
    "429": Answer(429, "TooManyRequests"),
}


@pytest.mark.parametrize(("name", "fault"), every_day(ALWAYS, {"put"}, "503"))
def test_an_outage_is_an_error_that_can_be_tried_again(bucket, name, fault):
    operation = OPERATIONS[name]
    prepare(bucket)
    with bucket.store() as store:
        rule = bucket.proxy.add(fault)
        with pytest.raises(UnavailableError) as caught:
            bounded(lambda: operation.act(store, bucket))
        assert rule.applied >= 2, "it was not tried again"
        assert caught.value.retryable
        assert state(bucket) == BEFORE
        bucket.proxy.clear()
        assert operation.act(store, bucket) == operation.answer
    assert state(bucket) == after(operation)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_server_that_is_not_there_is_an_outage(bucket, operation):
    prepare(bucket)
    with bucket.store() as store:
        with bucket.proxy.refusing(), pytest.raises(UnavailableError) as caught:
            bounded(lambda: operation.act(store, bucket))
        assert bucket.proxy.endpoint in str(caught.value)
        assert operation.act(store, bucket) == operation.answer


@pytest.mark.parametrize("fault", [LoseReply(), Answer(500, done=True)], ids=["lost", "500"])
@pytest.mark.parametrize(
    "operation", [OPERATIONS[name] for name in ("put", "overwrite", "put_if_absent", "copy")]
)
def test_a_change_whose_replies_are_all_lost_has_an_unknown_outcome(bucket, operation, fault):
    prepare(bucket)
    with bucket.store() as store:
        bucket.proxy.add(fault)
        with pytest.raises(UnavailableError) as caught:
            bounded(lambda: operation.act(store, bucket))
    # It was done; whoever believes "failed" would throw away what refers to it.
    assert caught.value.outcome == "unknown"
    assert state(bucket) == after(operation)


@pytest.mark.parametrize("fault", [Stall(), StallReply()], ids=["stall", "stalled reply"])
@pytest.mark.parametrize("name", ["get", "put", "put_if_absent"])
def test_a_server_that_says_nothing_is_an_outage(bucket, name, fault):
    prepare(bucket)
    with bucket.store(**IMPATIENT) as store:
        bucket.proxy.add(fault)
        with pytest.raises(UnavailableError):
            bounded(lambda: OPERATIONS[name].act(store, bucket))


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_wrong_clock_is_named(bucket, operation):
    prepare(bucket)
    with bucket.store() as store:
        rule = bucket.proxy.add(Answer(403, "RequestTimeTooSkewed"))
        with pytest.raises((PermissionDeniedError, StorageError)) as caught:
            bounded(lambda: operation.act(store, bucket))
        said = str(caught.value)
        if "clock" not in said:  # an answer to HEAD has no body to tell why
            assert {request.method for request in bucket.proxy.requests[-rule.applied :]} == {
                "HEAD"
            }
            assert "403" in said
        assert not isinstance(caught.value, KeyNotFoundError)
    assert state(bucket) == BEFORE


# What is read is of one piece.


def test_a_read_that_was_cut_goes_on_with_the_same_object_or_starts_again(bucket):
    other = bytes(reversed(OLD))
    for operation in ("get", "open", "get_range"):
        prepare(bucket)
        seen = itertools.count()

        def replaced(request, seen=seen):
            # Between the cut and what comes after it, somebody replaces the object.
            if request.method == "GET" and next(seen) == 1:
                bucket.poke("old", other)
            return False

        bucket.proxy.add(Reset(), when=replaced)
        rule = bucket.proxy.add(CutReply(500_000), when=lambda r: r.method == "GET", times=1)
        expected = OPERATIONS[operation].answer
        cut = {"get": other, "open": other[3:], "get_range": other[1:1_000_001]}[operation]
        with bucket.store() as store:
            try:
                found = bounded(lambda: OPERATIONS[operation].act(store, bucket))  # noqa: B023
            except StorageError:
                continue
            finally:
                assert rule.applied == 1
        assert found in (expected, cut), "bytes of two objects"


def test_a_slow_download_is_whole(bucket):
    prepare(bucket)
    with bucket.store() as store:
        bucket.proxy.add(Throttle(piece=30_000, wait=0.01))
        assert bounded(lambda: store.get(bucket.key("old"))) == OLD


def test_a_download_that_takes_longer_than_the_timeout_is_whole_or_an_error(bucket):
    prepare(bucket)
    with bucket.store(**IMPATIENT) as store:
        bucket.proxy.add(Throttle(piece=30_000, wait=0.1))  # five seconds in all
        try:
            assert bounded(lambda: store.get(bucket.key("old"))) == OLD
        except UnavailableError as exc:
            assert exc.outcome == "failed"  # noqa: PT017 - either is right, nothing else


# A conditional put says what is true.


@pytest.mark.parametrize("fault", [LoseReply(), Answer(500, done=True), StallReply()])
def test_put_if_absent_knows_its_own_object_again(bucket, fault):
    with bucket.store(**IMPATIENT) as store:
        bucket.proxy.add(fault, when="PUT ", times=1)
        assert bounded(lambda: store.put_if_absent(bucket.key("k"), SMALL)) is True
        assert store.put_if_absent(bucket.key("k"), NEW) is False
    assert bucket.peek("k") == SMALL


@pytest.mark.parametrize("size", [len(SMALL), 5])
def test_put_if_absent_does_not_take_anothers_object_for_its_own(bucket, size):
    theirs = b"theirs" * 1000
    first = itertools.count()

    def somebody_was_faster(request):
        if request.method == "PUT" and next(first) == 0:
            bucket.poke("k", theirs[:size])
            return True
        return False

    with bucket.store() as store:
        rule = bucket.proxy.add(Reset(), when=somebody_was_faster)
        assert bounded(lambda: store.put_if_absent(bucket.key("k"), SMALL)) is False
    assert rule.applied == 1
    assert bucket.peek("k") == theirs[:size]


# Uploads in parts.


def test_an_upload_that_is_given_up_leaves_no_object_and_no_parts(bucket):
    with bucket.store() as store:
        with pytest.raises(ZeroDivisionError), store.writer(bucket.key("new")) as sink:
            for piece in PIECES:
                sink.write(piece)
            raise ZeroDivisionError
        assert bucket.peek("new") is None
        assert not bucket.uploads()


@pytest.mark.parametrize("part", ["PUT ", "POST "])
def test_an_upload_that_fails_leaves_no_object_and_no_parts(bucket, part):
    with bucket.store() as store:
        bucket.proxy.add(Answer(500), when=lambda r: r.line.startswith(part), skip=1)
        with pytest.raises(UnavailableError):
            bounded(lambda: write(store, bucket))
    assert bucket.peek("new") is None
    assert not bucket.uploads(), "DELETE was let through"


# The server dies, and comes back.


@pytest.fixture(scope="module")
def mortal():
    with S3Server() as server:
        yield server


@pytest.fixture
def dying(mortal):
    mortal.start()
    with Proxy((mortal.host, mortal.port)) as proxy:
        yield Bucket(mortal, mortal.new_bucket(), proxy)


def test_acknowledged_objects_survive_the_death_of_the_server(dying):
    writers, acknowledged, begun = 4, {}, {}
    enough, done = threading.Semaphore(0), threading.Event()

    def work(number: int) -> None:
        rng = itertools.count()
        with dying.store(retries=1) as store:
            while not done.is_set():
                name = f"{number}-{next(rng)}"
                data = name.encode() * (100 if next(rng) % 4 else 300_000)
                begun[name] = data
                with contextlib.suppress(UnavailableError):
                    store.put(dying.key(name), data)
                    acknowledged[name] = data
                    enough.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            for _ in range(30):
                assert enough.acquire(timeout=HANGS)
            dying.server.kill()
            dying.server.start()
        assert enough.acquire(timeout=HANGS)
    finally:
        done.set()
        for thread in threads:
            thread.join(HANGS)
    assert not any(thread.is_alive() for thread in threads)
    with dying.store() as store:
        for name, data in begun.items():
            found = dying.peek(name)
            assert found == data or (found is None and name not in acknowledged), name
        listed = {key.removeprefix(dying.prefix) for key in store.keys(dying.prefix)}
    assert set(acknowledged) <= listed


@pytest.mark.parametrize("back", [True, False])
def test_a_server_that_dies_in_mid_upload_has_the_whole_object_or_none(dying, back):
    with dying.store(retries=1) as store:
        store.put(dying.key("new"), OLD)
        try:
            with store.writer(dying.key("new")) as sink:
                for number, piece in enumerate(PIECES):
                    if number == 3:
                        dying.server.kill()
                        if back:
                            dying.server.start()
                    sink.write(piece)
        except UnavailableError:
            expected = {OLD}
        else:
            assert back
            expected = {b"".join(PIECES)}
        dying.server.start()
        assert dying.peek("new") in expected
        assert store.get(dying.key("new")) in expected


def test_a_server_that_dies_in_mid_download_gives_the_whole_object_or_an_error(dying):
    dying.poke("old", OLD)
    killed = []

    def kill(request):
        if request.method == "GET" and not killed:
            killed.append(request)
            dying.server.kill()
        return False

    with dying.store(retries=1) as store:
        dying.proxy.add(Reset(), when=kill)
        with pytest.raises(UnavailableError):
            bounded(lambda: store.get(dying.key("old")))
        assert killed
        dying.server.start()
        assert store.get(dying.key("old")) == OLD


@pytest.mark.nightly
@pytest.mark.parametrize("round_", range(5))
def test_many_deaths(dying, round_):
    test_acknowledged_objects_survive_the_death_of_the_server(dying)
