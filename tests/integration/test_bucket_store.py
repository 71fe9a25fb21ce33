"""BucketStore against a real server, and through a proxy that makes faults."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import boto3
import pytest
from servers.faults import Answer, CutReply, CutRequest, Delay, LoseReply, Reset, Stall
from servers.proxy import Proxy

from blobstore.aio import AsyncBucketStore
from blobstore.backends.blob.bucket import BucketStore
from blobstore.errors import (
    ConflictError,
    IncompatibleStoreError,
    InvalidInputError,
    InvalidKeyError,
    KeyNotFoundError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)
from blobstore.testing.object_store import in_fork, in_threads

MIB = 1 << 20
PART = 5 * MIB


def random_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.fixture
def make(s3_server, s3_bucket):
    """Make a store over the bucket of this test; its arguments can be replaced."""

    def make(**options):
        return BucketStore(
            **{
                "bucket_name": s3_bucket,
                "endpoint_url": s3_server.endpoint,
                "s3_access_key": s3_server.access_key,
                "s3_secret_key": s3_server.secret_key,
                "multipart_threshold": PART,
                "multipart_chunksize": PART,
                "retries": 2,
                "timeout": 20,
                **options,
            }
        )

    return make


@pytest.fixture
def store(make):
    with make() as store:
        yield store


@pytest.fixture
def proxy(s3_server):
    with Proxy((s3_server.host, s3_server.port)) as proxy:
        yield proxy


@pytest.fixture
def client(s3_server):
    return s3_server.client


@pytest.fixture
def names(client, s3_bucket):
    """What is in the bucket, by another library."""

    def names():
        found = []
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=s3_bucket):
            found += [item["Key"] for item in page.get("Contents", [])]
        return sorted(found)

    return names


@pytest.fixture
def uploads(client, s3_bucket):
    """The unfinished uploads in the bucket."""

    def uploads():
        return client.list_multipart_uploads(Bucket=s3_bucket).get("Uploads", [])

    return uploads


def of_method(method, text=""):
    return lambda request: request.method == method and text in request.line


# --- keys and listing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("runs/2024-01/model 1.pkl", "runs/2024-01/model 1.pkl"),
        ("ünï/\U0001f600~#*'+&=?;:@!$,()[]{}|^`<>\"", "ünï/\U0001f600~#*'+&=?;:@!$,()[]{}|^`<>\""),
        ("100%/%41/%zz", "100%/%41/%zz"),
        ("/a//b/", "%/a/%/b/%"),
        ("./../...", "%2E/%2E%2E/..."),
        ("tab\tnul\0", "tab%09nul%00"),
        ("back\\slash", "back%5Cslash"),
        ("%2E/%", "%252E/%25"),
        ("\ufffe\x7f", "%EF%BF%BE%7F"),
    ],
)
def test_names_in_the_bucket(store, names, client, s3_bucket, key, name):
    store.put(key, b"bytes")
    assert names() == [name]
    assert client.get_object(Bucket=s3_bucket, Key=name)["Body"].read() == b"bytes"
    assert list(store.keys()) == [key]
    store.copy(key, key + "2")
    assert store.get(key + "2") == b"bytes"
    store.delete_many([key, key + "2"])
    assert names() == []


def test_more_keys_than_a_page_and_their_prefixes(store, names):
    keys = [f"run_{n}/{part}" for n in range(45) for part in range(25)] + ["run", "run-1", "run_1"]

    def put(number):
        for key in keys[number::8]:
            store.put(key, b"x")

    in_threads(put, 8)
    assert sorted(store.keys()) == sorted(keys) == names()
    for prefix in ("run_1", "run_4", "run_4/", "run_44/2", "run", "run-", "run_", "run_5", "z"):
        wanted = sorted(key for key in keys if key.startswith(prefix))
        assert sorted(store.keys(prefix)) == wanted, prefix
    store.delete_many(iter(keys))
    assert names() == []


def test_listing_asks_for_no_more_than_it_needs(make, store, proxy):
    for first in ("a", "m", "z"):
        for n in range(400):
            store.put(f"{first}{n}", b"x")
    with make(endpoint_url=proxy.endpoint) as through:
        listed = through.keys("m1")
        assert len(proxy.requests) == 1, "the first page is read by the call"
        assert len(list(listed)) == 111
    assert len(proxy.requests) == 1


def test_folder_markers_of_others_are_no_keys(store, client, s3_bucket):
    client.put_object(Bucket=s3_bucket, Key="folder/", Body=b"")
    store.put("folder/object", b"")
    store.put("empty", b"")
    store.put("other", b"x")
    assert sorted(store.keys()) == ["empty", "folder/object", "other"]


def test_names_that_no_key_has_are_left_out(store, client, s3_bucket):
    client.put_object(Bucket=s3_bucket, Key="a%2Eb", Body=b"1")
    client.put_object(Bucket=s3_bucket, Key="100%", Body=b"1")
    assert list(store.keys()) == ["100%"]


def test_names_that_cannot_be_listed_are_told_of(make, client, s3_bucket):
    client.put_object(Bucket=s3_bucket, Key="theirs/tab\tin it", Body=b"1")
    with make(prefix="ours") as ours, make() as all_of_it:
        ours.put("key", b"1")
        assert list(ours.keys()) == ["key"]
        with pytest.raises(IncompatibleStoreError, match=r"another program.*prefix"):
            all_of_it.keys()


def test_a_prefix_keeps_to_its_folder(make, names):
    with make(prefix="team/a/") as store, make(prefix="team/ab") as other, make() as whole:
        store.put("key", b"1")
        other.put("key", b"2")
        assert names() == ["team/a/key", "team/ab/key"]
        assert list(store.keys()) == ["key"]
        assert store.get("key") == b"1"
        assert sorted(whole.keys("team/a")) == ["team/a/key", "team/ab/key"]
        with pytest.raises(InvalidKeyError, match="1024"):
            store.put("k" * 1020, b"")
        store.put("k/" * 400 + "k", b"")


# --- large objects -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [PART - 1, PART, 2 * PART, 21 * MIB + 3])
def test_large_objects(store, size, uploads, client, s3_bucket):
    data = random_bytes(size)
    store.put("key", data)
    assert client.get_object(Bucket=s3_bucket, Key="key")["Body"].read() == data
    assert store.get("key") == data
    assert store.get_range("key", 1, size - 1) == data[1:-1]
    with store.source("key") as source, source.path() as path, source.open() as file:
        assert path.read_bytes() == source.read() == file.read() == data
    assert uploads() == []


def test_pieces_of_all_sizes_and_buffers_used_again(store):
    data = random_bytes(13 * MIB)
    sizes = [1, 10, 70_000, MIB - 1, MIB, 3 * MIB, 6 * MIB, 5, 0]
    with store.writer("key") as sink:
        at = 0
        while at < len(data):
            buffer = bytearray(data[at : at + sizes[at % len(sizes)]])
            at += sink.write(buffer) or sink.write(data[at : at + 1])
            buffer[:] = bytes(len(buffer))
    assert store.get("key") == data


def test_a_reader_moves_about(store):
    data = random_bytes(12 * MIB)
    store.put("key", data)
    moves = random.Random(5)
    with store.open("key") as file:
        for _ in range(60):
            at, count = moves.randrange(len(data)), moves.choice([1, 100, 300_000, 9 * MIB])
            file.seek(at)
            assert file.read(count) == data[at : at + count]
        file.seek(0)
        assert b"".join(iter(lambda: file.read(400_000), b"")) == data
        file.seek(len(data) + 5)
        assert file.read() == b""


def test_large_reads_are_several_requests(make, store, proxy):
    store.put("key", random_bytes(21 * MIB))
    with make(endpoint_url=proxy.endpoint) as through:
        assert through.get("key") == random_bytes(21 * MIB)
        assert len(proxy.requests) == 1 + 5
        proxy.requests.clear()
        with through.open("key") as file:
            while file.read(64 << 10):
                pass
    assert len(proxy.requests) <= 6, "reading ahead"


def test_a_large_object_that_is_replaced_is_not_mixed(store):
    old, new = random_bytes(11 * MIB), random_bytes(12 * MIB)
    store.put("key", old)
    with store.source("key") as source, store.open("key") as file:
        assert file.read(10) == old[:10]
        store.put("key", new)
        for read in (source.read, lambda: source.read_range(2 * MIB, 3 * MIB), file.read):
            with pytest.raises(KeyNotFoundError) as caught:
                read()
            assert caught.value.location == "key"
    assert store.get("key") == new


def test_readers_of_large_objects_see_whole_ones(store):
    versions = [random_bytes(size) for size in (11 * MIB, 10 * MIB + 1)]
    store.put("key", versions[0])
    done = threading.Event()

    def work(number):
        if number:
            seen = set()
            while not done.is_set():
                seen.add(versions.index(store.get("key")))
            return seen
        for turn in range(6):
            store.put("key", versions[turn % 2])
        done.set()
        return set()

    assert in_threads(work, 2)[1] <= {0, 1}


MEMORY = """
import os, sys
from blobstore.backends.blob.bucket import BucketStore
endpoint, bucket, key, secret, how, mib = sys.argv[1:]
store = BucketStore(bucket, endpoint_url=endpoint, s3_access_key=key, s3_secret_key=secret)
store.put("warm", b"x")
if how == "write":
    with store.writer("big") as sink:
        for n in range(int(mib)):
            sink.write(os.urandom(1 << 20))
elif how == "lent":
    with store.writer("big") as sink, sink.path().open("wb") as file:
        for n in range(int(mib)):
            file.write(os.urandom(1 << 20))
elif how == "read":
    with store.open("big") as file:
        while file.read(1 << 20):
            pass
else:
    with store.source("big") as source, source.path() as path:
        assert path.stat().st_size == int(mib) << 20
with open("/proc/self/status") as status:  # ru_maxrss has the peak of the parent, too
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is known to Linux alone")
@pytest.mark.parametrize("mib", [300, pytest.param(2048, marks=pytest.mark.nightly)])
def test_memory_is_bounded(s3_server, s3_bucket, uploads, client, mib):
    where = [s3_server.endpoint, s3_bucket, s3_server.access_key, s3_server.secret_key]
    for how in ("write", "lent", "read", "spool"):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *where, how, str(mib)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) < 256 << 10, how  # KiB
        assert client.head_object(Bucket=s3_bucket, Key="big")["ContentLength"] == mib * MIB
    assert uploads() == []


# --- conditions ----------------------------------------------------------------------------------


def test_compare_and_swap(store):
    store.put("key", b"0")
    first = store.stat("key").etag
    second = store.put_if_match("key", b"1", first)
    assert second == store.stat("key").etag != first
    with pytest.raises(ConflictError, match="read it again") as caught:
        store.put_if_match("key", b"2", first)
    assert not caught.value.retryable
    assert store.get("key") == b"1"
    with pytest.raises(KeyNotFoundError):
        store.put_if_match("absent", b"1", first)
    for wrong in (None, "", 5):
        with pytest.raises(InvalidInputError):
            store.put_if_match("key", b"3", wrong)


def test_a_counter_loses_nothing(store):
    store.put("key", b"0")

    def count(number):
        done = 0
        while done < 4:
            etag = store.stat("key").etag
            value = int(store.get("key"))
            try:
                store.put_if_match("key", str(value + 1).encode(), etag)
            except ConflictError:
                continue
            done += 1

    in_threads(count, 3)
    assert store.get("key") == b"12"


@pytest.mark.parametrize(
    "fault", [LoseReply(), Answer(500, done=True), CutReply()], ids=["lost", "500", "cut"]
)
def test_a_lost_reply_does_not_make_a_conflict(make, proxy, fault):
    with make(endpoint_url=proxy.endpoint) as store:
        proxy.add(fault, when=of_method("PUT"), times=1)
        assert store.put_if_absent("key", b"1") is True
        assert store.put_if_absent("key", b"1") is False
        proxy.add(fault, when=of_method("PUT"), times=1)
        etag = store.put_if_match("key", b"2", store.stat("key").etag)
        assert etag == store.stat("key").etag
        assert store.get("key") == b"2"


def test_what_is_not_known_is_said(make, store, proxy):
    with make(endpoint_url=proxy.endpoint, timeout=1, retries=0) as through:
        proxy.add(LoseReply(), when=of_method("PUT"), times=1)
        proxy.add(Reset(), when=of_method("HEAD"))
        with pytest.raises(UnavailableError, match="not known") as caught:
            through.put_if_absent("key", b"1")
    assert caught.value.outcome == "unknown"
    assert store.get("key") == b"1"


def test_a_refusal_that_is_not_known_to_be_one(make, store, proxy):
    """Our write landed, its reply was lost, and somebody replaced it before we could look."""
    store.put("key", b"0")
    etag = store.stat("key").etag
    with make(endpoint_url=proxy.endpoint) as through:
        proxy.add(LoseReply(), when=of_method("PUT"), times=1)

        def replaced(request):
            if request.method == "HEAD":
                store.put("key", b"theirs")
            return False

        proxy.add(Reset(), when=replaced)
        with pytest.raises(UnavailableError, match="not known"):
            through.put_if_match("key", b"ours", etag)


# --- failures ------------------------------------------------------------------------------------


CALLS = {
    "get": lambda store: store.get("key"),
    "get_range": lambda store: store.get_range("key", 0, 1),
    "open": lambda store: store.open("key"),
    "source": lambda store: store.source("key"),
    "stat": lambda store: store.stat("key"),
    "metadata": lambda store: store.metadata("key"),
    "exists": lambda store: store.exists("key"),
    "keys": lambda store: store.keys(),
    "put": lambda store: store.put("key", b"1"),
    "put_if_absent": lambda store: store.put_if_absent("key", b"1"),
    "put_if_match": lambda store: store.put_if_match("key", b"1", '"etag"'),
    "put in parts": lambda store: store.put("key", bytes(6 * MIB)),
    "delete": lambda store: store.delete("key"),
    "delete_many": lambda store: store.delete_many(["key"]),
    "copy": lambda store: store.copy("key", "other"),
}


def failing(calls, store):
    for name, call in calls.items():
        with pytest.raises(Exception) as caught:
            call(store)
        yield name, caught.value


def test_no_such_bucket(make):
    with make(bucket_name="never-made") as store:
        for name, error in failing(CALLS, store):
            assert type(error) is StorageError, (name, error)
            assert "there is no bucket 'never-made'" in str(error), name


def test_wrong_credentials(make, s3_server):
    for wrong in (
        {"s3_secret_key": "not-the-secret"},
        {"s3_access_key": "nobody"},
        {"s3_access_key": None, "s3_secret_key": None, "anonymous": True},
    ):
        with make(**wrong) as store:
            for name, error in failing(CALLS, store):
                assert isinstance(error, PermissionDeniedError), (name, error)
                text = str(error) + repr(error.__cause__) + repr(store)
                assert "not-the-secret" not in text
                assert s3_server.secret_key not in text


def test_an_unreachable_server(make):
    with make(endpoint_url="http://127.0.0.1:1", retries=1) as store:
        for name, error in failing(CALLS, store):
            assert isinstance(error, UnavailableError), (name, error)
            assert error.retryable
            assert "refused" in str(error), (name, error)
            if name in ("get", "stat", "exists", "keys"):
                assert error.outcome == "failed"


def test_a_server_that_says_nothing(make, proxy):
    proxy.add(Stall(), when=lambda request: True)
    with make(endpoint_url=proxy.endpoint, timeout=0.3, retries=0) as store:
        for name in ("get", "exists", "put", "put_if_absent"):
            with pytest.raises(UnavailableError, match="no answer in time") as caught:
                CALLS[name](store)
            assert caught.value.outcome == ("unknown" if "put" in name else "failed")


def test_large_objects_have_more_time(make, proxy):
    """Eight parts of 5 MiB share a slow line, so each takes as long as all of them."""
    large = random_bytes(40 * MIB)
    with make(endpoint_url=proxy.endpoint, timeout=1.0, retries=0) as store:
        store.put("small", b"1")
        proxy.add(Delay(1.5), when=of_method("PUT"))
        store.put("large", large)
        assert store.put_if_absent("whole", large)
        store.copy("large", "copy")
        with store.source("large") as source:
            proxy.add(Delay(1.5), when=of_method("GET"))
            assert source.read() == large
        for small in (lambda: store.put("small", b"2"), lambda: store.get("small")):
            with pytest.raises(UnavailableError, match="no answer in time"):
                small()
        proxy.clear()
        assert store.get("copy") == store.get("whole") == large


@pytest.mark.parametrize(
    "fault",
    [Reset(), Answer(503, "SlowDown"), Answer(500), Answer(429, "TooManyRequests"), LoseReply()],
    ids=repr,
)
def test_tried_again(make, store, proxy, fault):
    store.put("key", b"1")
    with make(endpoint_url=proxy.endpoint) as through:
        for call in (
            lambda: through.get("key") == b"1",
            lambda: through.exists("key"),
            lambda: through.stat("key").size == 1,
            lambda: list(through.keys()) == ["key"],
            lambda: through.put("key", b"1") is None,
            lambda: through.put_if_absent("key", b"2") is False,
            lambda: through.delete_many(["other"]) is None,
        ):
            proxy.add(fault, when=lambda request: True, times=1)
            assert call()


def test_a_server_that_stays_busy(make, proxy):
    proxy.add(Answer(503, "SlowDown"), when=lambda request: True)
    with make(endpoint_url=proxy.endpoint, retries=1) as store:
        with pytest.raises(UnavailableError, match="SlowDown"):
            store.get("key")
        with pytest.raises(UnavailableError, match="SlowDown") as caught:
            store.put_if_absent("key", b"1")
        assert caught.value.outcome == "failed"
    assert len(proxy.requests) == 4


@pytest.mark.parametrize("delay", [0, 0.6])
def test_the_pause_before_the_next_try(make, proxy, delay):
    with make(endpoint_url=proxy.endpoint, retries=1, retry_delay=delay) as store:
        store.put("key", b"1")
        for call in (lambda: store.get("key"), lambda: store.put_if_absent("other", b"1")):
            rule = proxy.add(Answer(503, "SlowDown"), when=lambda request: True, times=1)
            begin = time.monotonic()
            assert call()
            assert rule.applied == 1
            assert delay / 2 <= time.monotonic() - begin < delay / 2 + 2


def test_a_body_that_is_cut(make, store, proxy):
    data = random_bytes(3 * MIB)
    store.put("key", data)
    with make(endpoint_url=proxy.endpoint) as through:
        proxy.add(CutReply(MIB), when=of_method("GET"), times=1)
        assert through.get("key") == data
        # Each try goes on where the last one ended, so a few of these do not make a whole.
        proxy.add(CutReply(1000), when=of_method("GET"))
        with pytest.raises(UnavailableError):
            through.get("key")


def test_denied(make, proxy):
    proxy.add(Answer(403, "AccessDenied"), when=lambda request: True)
    with make(endpoint_url=proxy.endpoint) as store:
        for name, error in failing(CALLS, store):
            assert isinstance(error, PermissionDeniedError), (name, error)
            assert "AccessDenied" in str(error) or "403" in str(error), name


# --- interrupted uploads -------------------------------------------------------------------------


def test_an_aborted_upload_leaves_no_parts(store, uploads):
    store.put("key", b"old")
    with pytest.raises(RuntimeError), store.writer("key") as sink:
        sink.write(bytes(12 * MIB))
        assert len(uploads()) == 1
        raise RuntimeError("halfway")
    assert uploads() == []
    assert store.get("key") == b"old"


@pytest.mark.parametrize("part", ["partNumber=1&", "partNumber=3&"])
@pytest.mark.parametrize("fault", [Answer(403, "AccessDenied"), Answer(500), CutRequest(MIB)])
def test_a_part_that_fails(make, store, proxy, uploads, part, fault):
    store.put("key", b"old")
    with make(endpoint_url=proxy.endpoint, retries=1) as through:
        proxy.add(fault, when=of_method("PUT", part))
        for write in (
            lambda: through.put("key", bytes(12 * MIB)),
            lambda: fill(through, 12 * MIB),
        ):
            with pytest.raises((PermissionDeniedError, UnavailableError)):
                write()
    assert uploads() == []
    assert store.get("key") == b"old"


def fill(store, size):
    with store.writer("key") as sink:
        sink.path().write_bytes(bytes(size))


def test_an_end_that_fails(make, store, proxy, uploads):
    with make(endpoint_url=proxy.endpoint, retries=1) as through:
        proxy.add(Answer(500), when=of_method("POST", "uploadId="))
        with pytest.raises(UnavailableError) as caught:
            through.put("key", bytes(6 * MIB))
        assert caught.value.outcome == "unknown"
    assert uploads() == []
    assert not store.exists("key")


def test_an_end_whose_reply_is_lost(make, store, proxy, uploads):
    with make(endpoint_url=proxy.endpoint, retries=0) as through:
        proxy.add(LoseReply(), when=of_method("POST", "uploadId="))
        through.put("key", random_bytes(6 * MIB))
    assert store.get("key") == random_bytes(6 * MIB)
    assert uploads() == []


def test_parts_that_somebody_removed(store, client, s3_bucket, uploads):
    with pytest.raises(StorageError, match="parts are gone"), store.writer("key") as sink:
        sink.write(bytes(12 * MIB))
        (upload,) = uploads()
        client.abort_multipart_upload(Bucket=s3_bucket, Key="key", UploadId=upload["UploadId"])
    assert not store.exists("key")


def test_parts_that_cannot_be_removed_are_logged(make, proxy, uploads, caplog):
    through = make(endpoint_url=proxy.endpoint, retries=0)
    with pytest.raises(RuntimeError, match="halfway"), through.writer("key") as sink:
        sink.write(bytes(12 * MIB))
        proxy.add(Answer(403, "AccessDenied"), when=of_method("DELETE"))
        raise RuntimeError("halfway")
    assert len(uploads()) == 1
    assert "lifecycle rule" in caplog.text


# --- metadata, presigned URLs ---------------------------------------------------------------------


def test_user_metadata(store, client, s3_bucket):
    store.put_with_metadata("key", b"1", {"run-id": "7 of 9", "f1": "0.9"})
    assert store.metadata("key") == {"run-id": "7 of 9", "f1": "0.9"}
    assert client.head_object(Bucket=s3_bucket, Key="key")["Metadata"]["run-id"] == "7 of 9"
    store.copy("key", "copy")
    assert store.metadata("copy")["f1"] == "0.9"
    store.put_if_absent("other", b"1")
    assert store.metadata("other") == {}
    with pytest.raises(KeyNotFoundError):
        store.metadata("absent")
    for wrong in ({"Upper": "x"}, {"a b": "x"}, {"a": "ü"}, {"a": 5}, {"a": "x\n"}, None, ["a"]):
        with pytest.raises(InvalidInputError):
            store.put_with_metadata("key", b"2", wrong)
    assert store.get("key") == b"1"


def test_presigned(store):
    url = store.presigned_put("a//b 1%.bin", expiry=60)
    request = urllib.request.Request(url, data=b"sent", method="PUT")
    with urllib.request.urlopen(request) as reply:
        assert reply.status == 200
    assert store.get("a//b 1%.bin") == b"sent"
    url = store.presigned_get("a//b 1%.bin")
    with urllib.request.urlopen(url) as reply:
        assert reply.read() == b"sent"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url.replace("X-Amz-Expires=3600", "X-Amz-Expires=7200"))
    caught.value.close()
    for wrong in (0, -1, 8 * 86_400, "60", None, True):
        with pytest.raises(InvalidInputError, match="expiry"):
            store.presigned_get("key", wrong)


def test_stat_knows_the_time(store, client, s3_bucket):
    store.put("key", b"12")
    seen = client.head_object(Bucket=s3_bucket, Key="key")
    stat = store.stat("key")
    assert (stat.size, stat.modified, stat.etag) == (2, seen["LastModified"], seen["ETag"])


# --- clients that are lent ------------------------------------------------------------------------


def boto3_client(server, **options):
    return boto3.client(
        "s3",
        **{
            "endpoint_url": server.endpoint,
            "aws_access_key_id": server.access_key,
            "aws_secret_access_key": server.secret_key,
            "region_name": "us-east-1",
            **options,
        },
    )


def test_a_boto3_client_lends_what_it_has(s3_server, s3_bucket):
    client = boto3_client(s3_server)
    for arguments in (
        ((s3_bucket, client), {}),
        ((client, s3_bucket), {}),
        ((), {"bucket_name": s3_bucket, "client": client}),
        ((client,), {"bucket_name": s3_bucket}),
    ):
        with BucketStore(*arguments[0], **arguments[1]) as store:
            store.put("key", b"1")
            assert (store.endpoint_url, store.region) == (s3_server.endpoint, "us-east-1")
            with pickle.loads(pickle.dumps(store)) as copy:
                assert copy.get("key") == b"1"
    assert client.get_object(Bucket=s3_bucket, Key="key")["Body"].read() == b"1"
    client.close()


async def use_aiobotocore(server, bucket):
    session = pytest.importorskip("aiobotocore.session").get_session()
    async with session.create_client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    ) as client:
        async with AsyncBucketStore(client, bucket) as store:
            await store.put("my_object_key", b"my object data")
            assert await store.get("my_object_key") == b"my object data"
            keys = store.keys()
            assert [key async for key in keys] == ["my_object_key"]
            etag = (await store.stat("my_object_key")).etag
            await store.put_if_match("my_object_key", b"2", etag)
        found = await client.get_object(Bucket=bucket, Key="my_object_key")
        async with found["Body"] as body:
            assert await body.read() == b"2"
        with BucketStore(bucket, client) as store:  # with a loop in this thread, too
            assert store.get("my_object_key") == b"2"


@pytest.mark.asyncio
async def test_an_aiobotocore_client_lends_what_it_has(s3_server, s3_bucket):
    await use_aiobotocore(s3_server, s3_bucket)


def test_credentials_of_the_environment_and_of_profiles(
    s3_server, s3_bucket, monkeypatch, tmp_path
):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {s3_server.access_key}\n"
        f"aws_secret_access_key = {s3_server.secret_key}\n"
    )
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = us-east-1\nendpoint_url = {s3_server.endpoint}\n"
    )
    with BucketStore(s3_bucket, profile_name="lab") as store:
        store.put("key", b"1")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    with BucketStore.from_url(f"s3://{s3_bucket}") as store:
        assert store.get("key") == b"1"
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    url = f"s3://{s3_bucket}/?endpoint_url={s3_server.endpoint}&timeout=5"
    with BucketStore.from_url(url) as store:
        assert store.get("key") == b"1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another key")
    with BucketStore(
        s3_bucket,
        endpoint_url=s3_server.endpoint,
        s3_access_key=s3_server.access_key,
        s3_secret_key=s3_server.secret_key,
    ) as store:
        assert store.get("key") == b"1", "what is given goes before the environment"


# --- processes -----------------------------------------------------------------------------------


def test_children_of_children(store):
    store.put("key", b"1")

    def child():
        assert store.get("key") == b"1"
        in_fork(lambda: store.put("grandchild", b"2"))
        assert store.get("grandchild") == b"2"
        store.put("large", bytes(6 * MIB))
        assert store.put_if_absent("key", b"x") is False
        with pytest.raises(KeyNotFoundError):
            store.get("absent")

    in_fork(child)
    assert store.stat("large").size == 6 * MIB


def test_a_writer_stays_in_its_process(store, uploads):
    with store.writer("key") as sink:
        sink.write(bytes(6 * MIB))

        def child():
            with pytest.raises(InvalidInputError, match="forked"):
                sink.write(b"more")
            sink.abort()

        in_fork(child)
        sink.write(b"end")
    assert store.get("key") == bytes(6 * MIB) + b"end"


def test_readers_end_with_the_store_but_not_before(store):
    store.put("key", random_bytes(6 * MIB))
    with store.open("key") as file:
        store.close()
        assert io.BytesIO(file.read()).getvalue() == random_bytes(6 * MIB)


def test_virtual_hosted_style(make, s3_bucket):
    # No name of this machine leads to "bucket.127.0.0.1"; what would be asked for is enough.
    with make(endpoint_url="http://localhost:1", virtual_hosted_style=True) as store:
        url = store.presigned_get("a/b")
    assert url.startswith(f"http://{s3_bucket}.localhost:1/a/b?")


def test_no_credentials_anywhere(monkeypatch, tmp_path):
    for name in [*os.environ]:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    store = BucketStore("bucket", endpoint_url="http://127.0.0.1:1", retries=0, timeout=1)
    with pytest.raises(PermissionDeniedError, match=r"no credentials were found.*profile_name"):
        store.get("key")
