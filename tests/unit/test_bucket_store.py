"""What BucketStore makes of its arguments, of keys and of what servers say; no server is needed."""

from __future__ import annotations

import inspect
import pickle

import boto3
import botocore
import pytest
from botocore.config import Config
from hypothesis import given
from hypothesis import strategies as st

from blobstore.aio import AsyncBucketStore
from blobstore.backends.blob.bucket import BucketStore
from blobstore.backends.blob.bucket_credentials import BotoCredentials, Keys
from blobstore.backends.blob.bucket_errors import (
    ConditionRefusedError,
    Doing,
    RangeRefusedError,
    Reply,
)
from blobstore.backends.blob.bucket_keys import bounds_of, key_of, name_of
from blobstore.backends.blob.bucket_runtime import runtime
from blobstore.errors import (
    ConfigError,
    IncompatibleStoreError,
    InvalidKeyError,
    KeyNotFoundError,
    MissingDependencyError,
    NotSupportedError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)

URL = "http://127.0.0.1:9"
SECRET = "the-secret-key"


@pytest.fixture(autouse=True)
def no_aws_here(monkeypatch, tmp_path):
    import os

    for name in [*os.environ]:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path


@pytest.fixture
def client():
    client = boto3.client(
        "s3",
        endpoint_url=URL,
        region_name="eu-lab-1",
        aws_access_key_id="A",
        aws_secret_access_key=SECRET,
        aws_session_token="T",
    )
    yield client
    client.close()


def target(store):
    return store._client.target


def keys_of(store):
    return target(store).credentials()


# --- keys ----------------------------------------------------------------------------------------

ODD = st.sampled_from(
    ["%", "/", ".", "%2E", "%25", "%EF%BF%BE", "\\", "\x01", "\x7f", "\ufffe", "é"]
)
KEYS = st.lists(ODD | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).map(
    "".join
)


@given(KEYS, st.sampled_from(["", "folder/", "a b/c%/"]))
def test_names_are_paths_and_lead_back(key, prefix):
    name = name_of(key, prefix)
    assert key_of(name, prefix) == key
    assert name.startswith(prefix)
    assert not {"", ".", ".."} & set(name.split("/"))
    assert not any(char < " " or char in "\x7f\\\ufffe\uffff" for char in name)


@given(KEYS, KEYS)
def test_two_keys_have_two_names(one, other):
    assert (name_of(one) == name_of(other)) is (one == other)


@given(KEYS)
def test_a_name_is_of_one_key_or_none(name):
    key = key_of(name)
    assert key is None or name_of(key) == name


@given(KEYS, st.integers(0, 12), st.sampled_from(["", "folder/"]))
def test_bounds_leave_nothing_out(key, length, folder):
    bounds = bounds_of(key[:length], folder)
    name = name_of(key, folder)
    assert name.startswith(f"{bounds.folder}/" if bounds.folder else "")
    assert bounds.after is None or bounds.after < name
    assert not bounds.is_past(name)


@pytest.mark.parametrize("key", ["", 5, None, b"key", "\ud800", "k" * 1025, "ü" * 513, "/" * 600])
def test_keys_that_no_bucket_keeps(key):
    with pytest.raises(InvalidKeyError):
        name_of(key)


# --- forms of the constructor --------------------------------------------------------------------


def test_all_forms(client):
    keys = {"s3_access_key": "A", "s3_secret_key": SECRET, "session_token": "T"}
    stores = [
        BucketStore("bucket", client),
        BucketStore(client, "bucket"),
        BucketStore(bucket_name="bucket", client=client),
        BucketStore(client, bucket_name="bucket"),
        BucketStore("bucket", client=client),
        BucketStore("bucket", endpoint_url=URL, region="eu-lab-1", **keys),
        BucketStore(bucket_name="bucket", s3_url=URL, region="eu-lab-1", **keys),
        BucketStore(URL, "A", SECRET, "bucket", session_token="T", region="eu-lab-1"),
        AsyncBucketStore(client, "bucket").sync_store,
        AsyncBucketStore("bucket", client).sync_store,
    ]
    for store in stores:
        assert (store.bucket_name, store.endpoint_url, store.region) == ("bucket", URL, "eu-lab-1")
        assert keys_of(store) == {
            "access_key_id": "A",
            "secret_access_key": SECRET,
            "token": "T",
            "expires_at": None,
        }
        with pickle.loads(pickle.dumps(store)) as copy:
            assert target(copy) == target(store) or keys_of(copy) == keys_of(store)
            assert repr(copy) == repr(store)


def test_secrets_are_not_shown(client):
    for store in (
        BucketStore("bucket", client),
        BucketStore("bucket", endpoint_url=URL, s3_access_key="A", s3_secret_key=SECRET),
    ):
        for shown in (repr(store), repr(target(store)), repr(vars(store)["_client"])):
            assert SECRET not in shown
    with pytest.raises(ConfigError) as caught:
        BucketStore("bucket", s3_access_key=5, s3_secret_key=SECRET)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "bucket_name"),
        ({"bucket": ""}, "bucket_name"),
        ({"bucket": "a/b"}, "bucket_name"),
        ({"bucket": "bucket", "bucket_name": "bucket"}, "given twice"),
        ({"bucket": "bucket", "client": ["no client"]}, "client must be"),
        ({"bucket": 5}, "client must be|bucket_name"),
        ({"bucket": "bucket", "endpoint_url": URL, "s3_url": URL}, "are the same"),
        ({"bucket": "bucket", "endpoint_url": "127.0.0.1:9000"}, "endpoint_url must be like"),
        ({"bucket": "bucket", "endpoint_url": "ftp://host"}, "endpoint_url must be like"),
        ({"bucket": "bucket", "endpoint_url": "http://u:p@host"}, "user or password"),
        ({"bucket": "bucket", "endpoint_url": "http://host:port"}, "no URL"),
        ({"bucket": "bucket", "endpoint_url": 5}, "must be a URL"),
        ({"bucket": "bucket", "s3_access_key": "A"}, "go together"),
        ({"bucket": "bucket", "s3_secret_key": "A"}, "go together"),
        ({"bucket": "bucket", "session_token": "A"}, "go together"),
        ({"bucket": "bucket", "s3_access_key": "", "s3_secret_key": ""}, "go together"),
        ({"bucket": "bucket", "profile_name": "nobody"}, "no profile 'nobody'"),
        ({"bucket": "bucket", "profile_name": ""}, "profile_name"),
        ({"bucket": "bucket", "anonymous": True, "profile_name": "x"}, "exclude each other"),
        ({"bucket": "bucket", "prefix": "a//b"}, "prefix"),
        ({"bucket": "bucket", "prefix": "../b"}, "prefix"),
        ({"bucket": "bucket", "prefix": "a\\b"}, "prefix"),
        ({"bucket": "bucket", "prefix": "a" * 1000}, "prefix"),
        ({"bucket": "bucket", "prefix": None}, "prefix"),
        ({"bucket": "bucket", "timeout": 0}, "timeout"),
        ({"bucket": "bucket", "timeout": "30"}, "timeout"),
        ({"bucket": "bucket", "timeout": True}, "timeout"),
        ({"bucket": "bucket", "retries": -1}, "retries"),
        ({"bucket": "bucket", "retry_delay": -1}, "retry_delay"),
        ({"bucket": "bucket", "max_concurrency": 0}, "max_concurrency"),
        ({"bucket": "bucket", "multipart_chunksize": 1000}, "multipart_chunksize"),
        ({"bucket": "bucket", "multipart_threshold": 1.5}, "multipart_threshold"),
        ({"bucket": "bucket", "service": "ftp"}, "service"),
        ({"bucket": "bucket", "service": "gs", "region": "x"}, "takes its credentials"),
    ],
    ids=repr,
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        BucketStore(**arguments)


def test_what_obstore_does_not_take_is_told_by_the_first_call():
    with (
        BucketStore("bucket", anonymous=True, obstore_options={"nothing": 1}) as store,
        pytest.raises(ConfigError, match="obstore says"),
    ):
        store.get("key")


def test_a_client_of_another_service_is_refused():
    sqs = boto3.client("sqs", region_name="x", aws_access_key_id="A", aws_secret_access_key="B")
    with pytest.raises(ConfigError, match="sqs"):
        BucketStore("bucket", sqs)
    sqs.close()


def test_what_clients_lend():
    options = {"aws_access_key_id": "A", "aws_secret_access_key": "B"}
    aws = boto3.client("s3", region_name="us-east-1", **options)
    assert BucketStore("bucket", aws).endpoint_url is None
    unsigned = boto3.client(
        "s3", region_name="eu-west-1", config=Config(signature_version=botocore.UNSIGNED)
    )
    store = BucketStore("bucket", unsigned)
    assert target(store).anonymous
    assert store.endpoint_url == "https://s3.eu-west-1.amazonaws.com"
    virtual = boto3.client(
        "s3", endpoint_url="http://s3.lab:9", region_name="x", **options,
        config=Config(s3={"addressing_style": "virtual"}),
    )  # fmt: skip
    assert (
        BucketStore("bucket", virtual)
        .presigned_get("key")
        .startswith("http://bucket.s3.lab:9/key?")
    )
    resource = boto3.resource("s3", endpoint_url=URL, region_name="x", **options)
    assert BucketStore("bucket", resource).endpoint_url == URL
    for client in (aws, unsigned, virtual, resource.meta.client):
        client.close()


class Renewing:
    """Credentials like those of botocore that change."""

    number = 0

    def refresh_needed(self):
        return False

    def get_frozen_credentials(self):
        self.number += 1
        return Keys(f"A{self.number}", "B")


class Awaited(Renewing):
    async def get_frozen_credentials(self):
        return super().get_frozen_credentials()


@pytest.mark.parametrize("kind", [Renewing, Awaited])
@pytest.mark.asyncio
async def test_credentials_that_change_are_asked_for_again(kind):
    credentials = BotoCredentials(kind())
    found = credentials()
    assert found["access_key_id"] == "A1"
    assert found["expires_at"].tzinfo is not None
    assert credentials()["access_key_id"] == "A2"
    assert pickle.loads(pickle.dumps(credentials)) == Keys("A3", "B")


# --- environment and profiles --------------------------------------------------------------------


def test_environment(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "E")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", URL)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "r-1")
    store = BucketStore("bucket")
    assert (store.endpoint_url, store.region, keys_of(store)["access_key_id"]) == (URL, "r-1", "E")
    given = BucketStore("bucket", endpoint_url="http://other", region="r-2")
    assert (given.endpoint_url, given.region) == ("http://other", "r-2")
    copy = pickle.dumps(store)
    assert SECRET.encode() not in copy, "what the environment has stays there"


def test_profiles(no_aws_here, monkeypatch):
    (no_aws_here / "credentials").write_text(
        f"[default]\naws_access_key_id=D\naws_secret_access_key={SECRET}\n"
        f"[lab]\naws_access_key_id=L\naws_secret_access_key={SECRET}\naws_session_token=T\n"
    )
    (no_aws_here / "config").write_text(
        "[default]\nregion=d-1\n[profile lab]\nregion=l-1\nservices=mine\n"
        f"[services mine]\ns3 =\n  endpoint_url = {URL}\n"
    )
    found = BucketStore("bucket")
    assert (found.region, keys_of(found)["access_key_id"]) == ("d-1", "D")
    lab = BucketStore("bucket", profile_name="lab")
    assert (lab.region, lab.endpoint_url, keys_of(lab)["token"]) == ("l-1", URL, "T")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert BucketStore("bucket").region == "l-1"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "E")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert keys_of(BucketStore("bucket"))["access_key_id"] == "E"
    assert keys_of(BucketStore("bucket", profile_name="lab"))["access_key_id"] == "L"


def test_a_profile_without_keys_in_the_file(no_aws_here, monkeypatch):
    program = no_aws_here / "keys.json"
    program.write_text('{"Version": 1, "AccessKeyId": "P", "SecretAccessKey": "S"}')
    (no_aws_here / "config").write_text(f"[profile p]\ncredential_process=cat {program}\n")
    store = BucketStore("bucket", profile_name="p")
    assert keys_of(store)["access_key_id"] == "P"
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(MissingDependencyError, match="install boto3"):
        BucketStore("bucket", profile_name="p")


def test_a_broken_file_is_not_shown(no_aws_here):
    (no_aws_here / "credentials").write_text(f"aws_secret_access_key={SECRET}\n")
    with pytest.raises(ConfigError) as caught:
        BucketStore("bucket")
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


# --- URLs ----------------------------------------------------------------------------------------


def test_urls():
    store = BucketStore.from_url(
        f"s3://bucket/team/a?endpoint_url={URL}&region=x&timeout=2.5&retries=1"
        "&virtual_hosted_style=true&max_concurrency=3",
        s3_access_key="A",
        s3_secret_key=SECRET,
    )
    assert (store.bucket_name, store.prefix, store.endpoint_url) == ("bucket", "team/a/", URL)
    assert (target(store).timeout, target(store).retries) == (2.5, 1)
    assert target(store).virtual_hosted
    assert BucketStore.from_url("s3a://bucket").prefix == ""
    assert BucketStore.from_url("s3://bucket/a%20b/", anonymous=True).prefix == "a b/"


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("s3://key:secret@bucket/x", {}, "no credentials"),
        ("s3://key@bucket/x", {}, "no credentials"),
        ("s3://bucket?s3_secret_key=x", {}, "does not belong into a URL"),
        ("s3://bucket?client=x", {}, "does not belong into a URL"),
        ("s3://bucket?region=a&region=b", {}, "twice"),
        ("s3://bucket?region=a", {"region": "b"}, "twice"),
        ("s3://bucket?timeout=long", {}, "not of its kind"),
        ("s3://bucket?anonymous=maybe", {}, "not of its kind"),
        ("s3://bucket?colour=red", {}, "'colour'"),
        ("s3://bucket", {"colour": "red"}, "'colour'"),
        ("s3://bucket?x", {}, "its form is"),
        ("s3://", {}, "bucket_name"),
        ("s3://bucket/#x", {}, "begins with"),
        ("http://bucket", {}, "begins with"),
        ("s3://bucket/\n", {}, "is a text like"),
        (5, {}, "is a text like"),
    ],
    ids=repr,
)
def test_wrong_urls(url, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        BucketStore.from_url(url, **options)
    assert "secret@" not in str(caught.value)


def test_google_and_azure_are_made(tmp_path):
    google = BucketStore.from_url(
        "gs://bucket/folder", obstore_options={"skip_signature": True}, retries=0
    )
    assert repr(google) == "BucketStore('bucket', prefix='folder/', service='gs')"
    with pytest.raises(NotSupportedError, match="etags"):
        google.put_if_match("key", b"1", "etag")
    azure = BucketStore.from_url(
        "az://container/x",
        obstore_options={"account_name": "account", "account_key": "c2VjcmV0"},
        multipart_chunksize=5 << 20,
    )
    assert azure.presigned_get("a b").startswith(
        "https://account.blob.core.windows.net/container/x/a%20b?"
    )
    found = BucketStore.from_url("abfs://container@account.dfs.core.windows.net/x")
    assert (found.bucket_name, target(found).settings) == ("container", {"account_name": "account"})
    for store in (google, azure, found):
        target(store).connect(runtime())
        assert pickle.loads(pickle.dumps(store)).bucket_name == store.bucket_name


# --- what servers say ----------------------------------------------------------------------------

READING = Doing("reading 'key'", "the bucket 'b' at http://h", "key")
WRITING = Doing("writing 'key'", "the bucket 'b' at http://h", "key", writes=True)


def said(status, code="", *, retries=0):
    body = f"<Error><Code>{code}</Code><Message>So it is.</Message></Error>" if code else ""
    return Exception(
        f"Generic S3 error: Server returned non-2xx status code: {status} What: {body}\n\n"
        f"Debug source:\nretries: {retries},\n"
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (said(404, "NoSuchKey"), KeyNotFoundError),
        (said(404), KeyNotFoundError),
        (said(404, "NoSuchBucket"), StorageError),
        (said(404, "NoSuchUpload"), StorageError),
        (said(412, "PreconditionFailed"), ConditionRefusedError),
        (said(409, "ConditionalRequestConflict"), ConditionRefusedError),
        (said(409, "OperationAborted"), UnavailableError),
        (said(416, "InvalidRange"), RangeRefusedError),
        (said(403, "AccessDenied"), PermissionDeniedError),
        (said(403), PermissionDeniedError),
        (said(400, "ExpiredToken"), PermissionDeniedError),
        (said(400, "AuthorizationHeaderMalformed"), PermissionDeniedError),
        (said(400, "KeyTooLongError"), InvalidKeyError),
        (said(400, "RequestTimeout"), UnavailableError),
        (said(503, "SlowDown"), UnavailableError),
        (said(429), UnavailableError),
        (said(500, "InternalError"), UnavailableError),
        (said(507), OutOfSpaceError),
        (said(409, "QuotaExceeded"), OutOfSpaceError),
        (said(501, "NotImplemented"), NotSupportedError),
        (said(400, "Whatever"), StorageError),
        (said(301, "PermanentRedirect"), StorageError),
        (Exception("Received redirect without LOCATION"), StorageError),
        (Exception("Encountered object with invalid path: a//b"), IncompatibleStoreError),
        (Exception("HTTP error: error sending request"), UnavailableError),
        (Exception("something new\nand more of it"), StorageError),
        (Exception("The operation lacked valid authentication credentials"), PermissionDeniedError),
    ],
    ids=str,
)
def test_errors(error, expected):
    found = Reply(error).translate(WRITING)
    assert type(found) is expected
    assert found.location in ("key", None)
    assert "and more of it" not in str(found)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (said(503, "SlowDown"), "failed"),
        (said(503, "SlowDown", retries=1), "unknown"),
        (said(500), "unknown"),
        (Exception("HttpError {\n kind: Connect,\n retries: 0,"), "failed"),
        (Exception("HttpError {\n kind: Connect,\n retries: 3,"), "unknown"),
        (Exception("HttpError {\n kind: Timeout,\n retries: 0,"), "unknown"),
    ],
    ids=str,
)
def test_what_is_known_of_the_outcome(error, outcome):
    assert Reply(error).translate(WRITING).outcome == outcome
    assert Reply(error).translate(READING).outcome == "failed"


def test_no_credentials_are_told_as_such():
    error = Exception("Error performing PUT http://169.254.169.254/latest/api/token in 1s")
    found = Reply(error).translate(READING)
    assert isinstance(found, PermissionDeniedError)
    assert "profile_name" in str(found)


def test_the_lifecycle_rule_is_documented():
    assert "DaysAfterInitiation" in inspect.getdoc(BucketStore)
