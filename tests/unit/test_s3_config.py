"""Settings of buckets, and what URLs come to, without a server: nothing here sends anything."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from blobstore import BlobStore, CachingStore, ConfigError, open_store, registry
from blobstore.backends import DictStore, FilesystemStore, SqliteStore
from blobstore.backends.blob.bucket import BucketStore
from blobstore.backends.blob.s3_blob_backend import S3BlobBackend
from blobstore.backends.blob.urls import StoreUrl, open_object_url
from blobstore.config.s3 import S3StorageConfig
from blobstore.config.storage import StorageConfig
from blobstore.errors import MissingDependencyError, NotSupportedError, StorageError
from blobstore.protocols import BlobBackend
from blobstore.registry import register_store, store_types
from blobstore.wrappers.access import WriteonlyStore
from blobstore.wrappers.text import TextEncodingStore

KEYS = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "hunter22"}


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path):
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REGION", "DEFAULT_REGION",
                 "PROFILE", "ENDPOINT_URL", "ENDPOINT_URL_S3", "ENDPOINT", "CA_BUNDLE"):  # fmt: skip
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setattr(store_types, "_registered", {})
    monkeypatch.setattr(registry.object_stores, "_registered", {})


# --- fields ----------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_document():
    config = S3StorageConfig()
    assert {field.name: getattr(config, field.name) for field in fields(config)} == {
        "timeout": 30,
        "max_retries": 3,
        "retry_delay": 1.0,
        "chunk_size": 8 << 20,
        "cache_dir": None,
        "cache_expiry_hours": 24,
        "temp_dir": None,
        "extra": {},
        "aws_access_key_id": None,
        "aws_secret_access_key": None,
        "aws_session_token": None,
        "region_name": None,
        "endpoint_url": None,
        "profile_name": None,
        "use_ssl": True,
        "verify": True,
        "cache_enabled": False,
        "cache_max_bytes": 10 << 30,
        "multipart_threshold": 64 << 20,
        "multipart_chunksize": 16 << 20,
        "max_concurrency": 10,
    }


def test_the_example_of_the_document():
    config = S3StorageConfig(
        aws_access_key_id="your-key",
        aws_secret_access_key="your-secret",
        region_name="us-east-1",
        cache_enabled=True,
        cache_expiry_hours=12,
        multipart_threshold=64 * 1024 * 1024,
        multipart_chunksize=16 * 1024 * 1024,
        max_concurrency=10,
    )
    assert (config.region_name, config.cache_expiry_hours) == ("us-east-1", 12)


def test_secrets_are_hidden():
    config = S3StorageConfig(**KEYS, aws_session_token="hunter23", extra={"token": "hunter24"})
    assert "hunter" not in repr(config)
    assert "hunter" not in str(config)
    assert "AKIA" not in repr(config)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": "30"},
        {"timeout": float("nan")},
        {"timeout": True},
        {"max_retries": -1},
        {"max_retries": 1.0},
        {"retry_delay": -0.1},
        {"retry_delay": float("inf")},
        {"chunk_size": 0},
        {"cache_expiry_hours": 0},
        {"cache_dir": 5},
        {"cache_dir": ""},
        {"temp_dir": "a\0b"},
        {"temp_dir": "~nobody-of-that-name/x"},
        {"extra": ["x"]},
        {"extra": {5: "x"}},
        {"region_name": 5},
        {"region_name": ""},
        {"endpoint_url": b"http://x"},
        {"profile_name": ""},
        {"use_ssl": 1},
        {"verify": None},
        {"verify": ""},
        {"cache_enabled": "yes"},
        {"cache_max_bytes": 0},
        {"multipart_threshold": -1},
        {"multipart_chunksize": 1 << 20},
        {"max_concurrency": 0},
        {"aws_access_key_id": "a"},
        {"aws_secret_access_key": "hunter22"},
        {"aws_session_token": "hunter22"},
        {**KEYS, "profile_name": "x"},
        {**KEYS, "aws_session_token": 5},
        {"extra": {"retries": 5}},
        {"extra": {"endpoint_url": "http://x"}},
    ],
    ids=str,
)
def test_wrong_values(options):
    with pytest.raises(ConfigError, match="S3StorageConfig") as error:
        S3StorageConfig(**options)
    name = next(reversed(options))
    assert name in str(error.value) or "keys" in str(error.value) or name == "extra"
    assert "hunter" not in str(error.value)


def test_unknown_names_are_errors():
    with pytest.raises(TypeError, match="aws_acces_key"):
        S3StorageConfig(aws_acces_key="x")


def test_a_config_does_not_change():
    given = {"client_options": {}}
    config = S3StorageConfig(extra=given)
    given["x"] = 1
    assert config.extra == {"client_options": {}}
    with pytest.raises(AttributeError):
        config.timeout = 5
    assert replace(config, timeout=5).timeout == 5
    with pytest.raises(ConfigError):
        replace(config, timeout=-5)


def test_paths_are_made_absolute_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = StorageConfig(cache_dir="cache", temp_dir="~/tmp")
    assert config.cache_dir == tmp_path / "cache"
    assert config.temp_dir == tmp_path / "home/tmp"


# --- from_env --------------------------------------------------------------------------------------

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "hunter22",
    "AWS_SESSION_TOKEN": "hunter23",
    "AWS_REGION": "eu-west-1",
    "AWS_DEFAULT_REGION": "us-west-2",
    "AWS_ENDPOINT_URL": "http://all:1",
    "AWS_ENDPOINT_URL_S3": "http://s3:1",
    "AWS_PROFILE": "work",
    "AWS_CA_BUNDLE": "/certs.pem",
}


def test_from_env():
    assert S3StorageConfig.from_env(ENVIRONMENT, timeout=5) == S3StorageConfig(
        **KEYS,
        aws_session_token="hunter23",
        region_name="eu-west-1",
        endpoint_url="http://s3:1",
        verify="/certs.pem",
        timeout=5,
    )
    assert S3StorageConfig.from_env({}) == S3StorageConfig()
    assert S3StorageConfig.from_env({"AWS_REGION": "", "AWS_PROFILE": "p"}).profile_name == "p"
    few = {"AWS_DEFAULT_REGION": "us-west-2", "AWS_ENDPOINT_URL": "http://all:1"}
    config = S3StorageConfig.from_env(few)
    assert (config.region_name, config.endpoint_url) == ("us-west-2", "http://all:1")


def test_what_is_given_goes_before_the_environment():
    config = S3StorageConfig.from_env(ENVIRONMENT, profile_name="home", region_name="x")
    assert (config.profile_name, config.aws_access_key_id, config.aws_session_token) == (
        "home", None, None,
    )  # fmt: skip
    config = S3StorageConfig.from_env(
        ENVIRONMENT, aws_access_key_id="mine", aws_secret_access_key="other"
    )
    assert (config.aws_access_key_id, config.aws_session_token, config.profile_name) == (
        "mine", None, None,
    )  # fmt: skip


def test_from_env_reads_the_process(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert S3StorageConfig.from_env().region_name == "eu-west-1"


# --- build -----------------------------------------------------------------------------------------


def built(config, url="s3://bucket/prefix"):
    with config.build(url) as store:
        return store


def test_what_a_store_is_made_of(tmp_path):
    certificate = tmp_path / "ca.pem"
    certificate.write_bytes(b"PEM")
    config = S3StorageConfig(
        **KEYS,
        aws_session_token="token",
        region_name="eu-west-1",
        endpoint_url="https://s3.example.com",
        verify=certificate,
        timeout=7,
        max_retries=2,
        retry_delay=0.5,
        multipart_threshold=10 << 20,
        multipart_chunksize=6 << 20,
        max_concurrency=3,
        extra={"virtual_hosted_style": True, "client_options": {"user_agent": "x"}},
    )
    made = built(config)
    assert type(made) is BucketStore
    assert (made.bucket_name, made.prefix) == ("bucket", "prefix/")
    assert (made.endpoint_url, made.region) == ("https://s3.example.com", "eu-west-1")
    arguments = made._arguments
    assert {name: arguments[name] for name in (
        "s3_access_key", "s3_secret_key", "session_token", "timeout", "retries", "retry_delay",
        "multipart_threshold", "multipart_chunksize", "max_concurrency", "virtual_hosted_style",
        "client_options",
    )} == {
        "s3_access_key": "AKIAEXAMPLE",
        "s3_secret_key": "hunter22",
        "session_token": "token",
        "timeout": 7,
        "retries": 2,
        "retry_delay": 0.5,
        "multipart_threshold": 10 << 20,
        "multipart_chunksize": 6 << 20,
        "max_concurrency": 3,
        "virtual_hosted_style": True,
        "client_options": {"root_certificate": b"PEM", "user_agent": "x"},
    }  # fmt: skip
    assert "hunter22" not in repr(made)


@pytest.mark.parametrize(
    ("options", "endpoint"),
    [
        ({}, None),
        ({"use_ssl": False}, "http://s3.us-east-1.amazonaws.com"),
        ({"use_ssl": False, "region_name": "eu-west-1"}, "http://s3.eu-west-1.amazonaws.com"),
        ({"endpoint_url": "minio:9000"}, "https://minio:9000"),
        ({"endpoint_url": "minio:9000", "use_ssl": False}, "http://minio:9000"),
        ({"endpoint_url": "http://minio:9000", "use_ssl": True}, "http://minio:9000"),
        ({"endpoint_url": "https://minio:9000", "use_ssl": False}, "https://minio:9000"),
    ],
)
def test_endpoints(options, endpoint):
    assert built(S3StorageConfig(**KEYS, **options)).endpoint_url == endpoint


def test_a_certificate_that_nobody_checks():
    store = built(S3StorageConfig(**KEYS, verify=False))
    assert store._arguments["client_options"] == {"allow_invalid_certificates": True}


def test_certificates_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="certificates"):
        built(S3StorageConfig(**KEYS, verify=tmp_path / "none.pem"))


def test_a_profile(tmp_path):
    (tmp_path / "aws-credentials").write_text(
        "[work]\naws_access_key_id = AKIAWORK\naws_secret_access_key = hunter22\n"
    )
    (tmp_path / "aws-config").write_text("[profile work]\nregion = eu-north-1\n")
    store = built(S3StorageConfig(profile_name="work"))
    assert store.region == "eu-north-1"
    with pytest.raises(ConfigError, match="'play'"):
        built(S3StorageConfig(profile_name="play"))


def test_the_query_of_a_url():
    url = "s3://bucket/prefix?endpoint_url=http://minio:9000&region=eu-west-1"
    store = built(S3StorageConfig(**KEYS), url)
    assert (store.prefix, store.endpoint_url, store.region) == (
        "prefix/", "http://minio:9000", "eu-west-1",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="'region' is given twice"):
        built(S3StorageConfig(**KEYS, region_name="us-east-1"), url)


@pytest.mark.parametrize(
    "url",
    [None, 5, "", "bucket/prefix", "file:///x", "gs://bucket", "s3://", "s3://b!", "tape://x",
     "s3://user:hunter22@bucket/x", "s3://bucket/x?s3_secret_key=hunter22", "s3://b\n"],
)  # fmt: skip
def test_wrong_urls(url):
    with pytest.raises(ConfigError) as error:
        built(S3StorageConfig(**KEYS), url)
    assert "hunter" not in str(error.value)


def test_a_cache(tmp_path):
    config = S3StorageConfig(
        **KEYS, cache_enabled=True, cache_dir=tmp_path / "cache", cache_expiry_hours=12,
        cache_max_bytes=1000,
    )  # fmt: skip
    store = built(config)
    assert isinstance(store, CachingStore)
    assert (store.validate, store.max_age, store.max_bytes) == (True, 12 * 3600, 1000)
    assert type(store.main_store) is BucketStore
    roots = {
        built(conf, url).cache_store.root_path
        for conf in (config, replace(config, endpoint_url="http://minio:9000"))
        for url in ("s3://bucket/p", "s3://bucket/q", "s3://bucket", "s3://other/p")
    }
    assert len(roots) == 8
    assert {root.parent for root in roots} == {tmp_path / "cache"}
    assert built(config, "s3://bucket/p").cache_store.root_path in roots
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


FILL = """
import sys, time
from blobstore import FilesystemStore

FilesystemStore(sys.argv[1]).writer("key").write(b"1" * 5000)
print("ready", flush=True)
time.sleep(60)
"""


def test_what_killed_processes_left_in_a_cache_is_removed(tmp_path):
    config = S3StorageConfig(**KEYS, cache_enabled=True, cache_dir=tmp_path)
    cache = FilesystemStore(built(config).cache_store.root_path)
    command = [sys.executable, "-c", FILL, cache.root_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as filler:
        filler.stdout.readline()
        filler.kill()
    sink = cache.writer("key")
    sink.write(b"2")
    assert len([*tmp_path.rglob("put-*")]) == 2
    built(config)
    assert len([*tmp_path.rglob("put-*")]) == 1, "somebody is writing this one"
    sink.commit()
    assert cache.get("key") == b"2"


def test_a_cache_that_cannot_be(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(StorageError, match="cache"):
        built(S3StorageConfig(**KEYS, cache_enabled=True, cache_dir=tmp_path / "cache"))


def test_the_cache_of_a_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    store = built(S3StorageConfig(**KEYS, cache_enabled=True))
    assert store.cache_store.root_path.is_relative_to(tmp_path / "xdg/blobstore/s3")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    store = built(S3StorageConfig(**KEYS, cache_enabled=True))
    assert store.cache_store.root_path.is_relative_to(tmp_path / "home/.cache/blobstore/s3")


# --- URLs ------------------------------------------------------------------------------------------


def test_a_url_is_one_thing_wherever_it_is_given(tmp_path):
    url = f"sqlite://{tmp_path}/objects.db"
    with BlobStore(tmp_path / "store", blob_backend=url) as store:
        store.put(b"x" * 10_000, key="k")
        assert isinstance(store._objects, SqliteStore)
        (location,) = store.entry("k").locations
        with pytest.raises(StorageError), BlobStore(tmp_path / "other", blob_backend=url):
            pass
    with open_store(url) as objects:
        assert location in [*objects.keys()]


@pytest.mark.parametrize("scheme", ["file", "zip", "sqlite"])
def test_a_store_over_local_urls(tmp_path, scheme):
    url = f"{scheme}://{tmp_path}/a%20b"
    for fsync in (False, True):
        with BlobStore(tmp_path / "store", blob_backend=url, fsync=fsync) as store:
            store.put(b"x" * 10_000, key="k")
            with pickle.loads(pickle.dumps(store)) as copy:
                assert copy["k"] == b"x" * 10_000
    assert (tmp_path / "a b").exists()


def test_a_store_in_memory_by_url(tmp_path):
    with BlobStore(tmp_path, blob_backend="memory://") as store:
        store.put(b"x" * 10_000, key="k")
        assert type(store._objects) is DictStore
        with pytest.raises(NotSupportedError):
            pickle.dumps(store)


class Tape(FilesystemStore):
    opened: list[Tape]

    @classmethod
    def from_url(cls, url, **options):
        parts = StoreUrl.of(url, "{}").parts
        if parts.hostname == "broken":
            raise ValueError(f"no reel for {url}")
        store = cls(parts.path)
        cls.opened.append(store)
        return store

    def sync(self, keys):
        keys = [*keys]
        self.synced = [*getattr(self, "synced", ()), *keys]
        super().sync(keys)


@pytest.fixture
def tape():
    Tape.opened = []
    register_store(Tape, name="tape")


def test_a_scheme_of_somebody_else(tmp_path, tape):
    with BlobStore(tmp_path / "store", blob_backend=f"tape://{tmp_path}/reel") as store:
        store.put(b"x" * 10_000, key="k")
        assert type(store._objects) is Tape
    assert all(objects._closed for objects in Tape.opened)


def test_a_put_that_is_to_survive_syncs_what_a_url_stands_for(tmp_path, tape):
    url = f"tape://{tmp_path}/reel"
    with BlobStore(tmp_path / "store", blob_backend=url, fsync=True) as store:
        store.put(b"x" * 10_000, key="k")
        assert store._objects.synced == [*store.entry("k").locations]


def test_what_a_url_stands_for_is_closed_if_the_store_cannot_be_opened(tmp_path, tape):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/blobstore.json").write_text("damaged")
    with pytest.raises(Exception, match="damaged"):
        BlobStore(tmp_path / "store", blob_backend=f"tape://{tmp_path}/reel")
    assert [objects._closed for objects in Tape.opened] == [True]


@pytest.mark.parametrize("wrapper", [TextEncodingStore, WriteonlyStore])
def test_what_cannot_keep_blobs_is_closed(tmp_path, tape, wrapper):
    class Odd(wrapper):
        @classmethod
        def from_url(cls, url, **options):
            return cls(Tape.from_url(url))

    register_store(Odd, name="odd")
    with pytest.raises(ConfigError):
        BlobStore(tmp_path / "store", blob_backend=f"odd://{tmp_path}/reel")
    assert [objects._closed for objects in Tape.opened] == [True]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("floppy://x", ["blob_backend='floppy://x'", "'s3'"]),
        ("tape://broken/x", ["blob_backend='tape://broken/x'", "no reel"]),
        ("tape://u:hunter22@broken/x", ["blob_backend='tape://broken/x'", "ValueError"]),
        ("tape://broken/x?token=hunter22", ["blob_backend='tape://broken/x'", "ValueError"]),
        ("s3://u:hunter22@bucket/x", ["blob_backend='s3://bucket/x'", "credentials"]),
        ("s3://bucket/x?s3_access_key=hunter22", ["blob_backend='s3://bucket/x'", "environment"]),
        ("s3://bucket/x?timeout=hunter22", ["blob_backend='s3://bucket/x'", "'timeout'"]),
        ("file:///x?fsync=hunter22", ["blob_backend='file:///x'", "instance"]),
        ("file://host/x", ["three slashes"]),
        ("memory://x", ["nothing can follow"]),
        ("file:///", ["no path"]),
        ("s3://b\n", ["control"]),
    ],
)
def test_urls_that_are_wrong(tmp_path, tape, url, words):
    with pytest.raises(ConfigError) as error:
        BlobStore(tmp_path / "store", blob_backend=url)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "hunter22" not in message
    cause = error.value.__cause__ or error.value.__context__
    assert "hunter22" not in str(cause)
    assert not (tmp_path / "store" / "blobstore.json").exists()


def test_what_makes_no_store_of_a_url(tmp_path):
    register_store(type("Plain", (DictStore,), {}), name="plain")
    register_store(
        type("Wrong", (DictStore,), {"from_url": classmethod(lambda cls, url: {})}), name="wrong"
    )
    for scheme, word in (("plain", "from_url"), ("wrong", "no object store")):
        with pytest.raises(ConfigError, match=word):
            BlobStore(tmp_path / "store", blob_backend=f"{scheme}://x")


@pytest.mark.parametrize("scheme", ["s3", "s3a", "gs", "az"])
def test_schemes_of_buckets(scheme):
    with open_store(f"{scheme}://bucket/prefix") as store:
        assert (type(store), store.bucket_name, store.prefix) == (BucketStore, "bucket", "prefix/")
    with open_object_url(f"{scheme}://bucket", "{}") as store:
        assert type(store) is BucketStore


def make_without_obstore(how, folder):
    if how == "backend":
        BlobStore(folder / "store", blob_backend="s3://bucket/x").close()
    elif how == "config":
        S3StorageConfig().build("s3://bucket/x").close()
    else:
        open_store("s3://bucket/x").close()


def test_the_library_for_buckets_may_be_missing(tmp_path, monkeypatch):
    from blobstore import BucketStore as exported

    assert exported is BucketStore
    monkeypatch.setitem(sys.modules, "obstore", None)
    for name in [name for name in sys.modules if name.startswith("blobstore.backends.blob.bucket")]:
        monkeypatch.delitem(sys.modules, name)
    for how in ("backend", "config", "url"):
        with pytest.raises(MissingDependencyError, match=r"blobstore\[s3\]"):
            make_without_obstore(how, tmp_path)


# --- S3BlobBackend ---------------------------------------------------------------------------------


def test_the_older_backend():
    with S3BlobBackend("bucket", "pre", "http://minio:9000", "key", "hunter22") as store:
        assert isinstance(store, BlobBackend)
        assert isinstance(store, BucketStore)
        assert (store.bucket_name, store.prefix) == ("bucket", "pre/")
        assert store.endpoint_url == "http://minio:9000"
        assert "hunter22" not in repr(store)
        with BucketStore("bucket") as plain:
            assert store.capabilities == plain.capabilities
        with pickle.loads(pickle.dumps(store)) as copy:
            assert type(copy) is S3BlobBackend
            assert copy._arguments == store._arguments
    with S3BlobBackend(
        bucket="b12", prefix="p", endpoint_url="http://x", access_key="a", secret_key="b",
        timeout=5,
    ) as store:  # fmt: skip
        assert store._arguments["timeout"] == 5
    with pytest.raises(ConfigError):
        S3BlobBackend("no bucket!")


def test_path_of_home_in_the_store_url(tmp_path):
    assert StoreUrl.of(f"file://{tmp_path}/a%2Fb", "{}").arguments() == [Path(tmp_path, "a/b")]
