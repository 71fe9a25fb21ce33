"""BucketStore, and what else puts bytes into a bucket, all against one server.

As in `contenders`: options are the defaults unless said. All have connections for 16 calls at once.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.contenders import Contender
from benchmarks.servers import Bucket

AT_ONCE = 16


class S3Contender(Contender):
    """Puts and gets objects of the bucket that this process was lent; from several threads, too."""

    on_disk: ClassVar[bool] = False
    server: ClassVar[str] = "s3"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bucket = Bucket.lent()
        self.connect()

    def connect(self) -> None:
        """Make what speaks to the server."""
        raise NotImplementedError

    def put_large(self, key: str, value: Any) -> None:
        """Put as one would an object of hundreds of MiB."""
        self.put(key, value)

    def get_large(self, key: str) -> Any:
        return self.get(key)


class InBucket(S3Contender):
    note = (
        "large ones in parts of 16 MiB, 8 at once, both ways; gives bytes, and a copy is made for them; "
        "keys are checked, errors told apart"
    )
    ours = True

    def connect(self) -> None:
        from blobstore import BucketStore

        self.store = BucketStore(
            self.bucket.name,
            endpoint_url=self.bucket.endpoint,
            region=self.bucket.region,
            s3_access_key=self.bucket.access_key,
            s3_secret_key=self.bucket.secret_key,
        )

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.store.put(key, value)

    def get(self, key: str) -> Any:
        return self.store.get(key)

    def close(self) -> None:
        self.store.close()


class BareObstore(S3Contender):
    note = (
        "S3Store, by its blocking calls: puts over 5 MiB in parts of that size, 12 at once; a get is one "
        "request, and gives obstore's own Bytes, for which nothing is copied"
    )

    def connect(self) -> None:
        import obstore
        from obstore.store import S3Store

        self.obstore = obstore
        self.store = S3Store(
            self.bucket.name,
            endpoint=self.bucket.endpoint,
            region=self.bucket.region,
            access_key_id=self.bucket.access_key,
            secret_access_key=self.bucket.secret_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.obstore.put(self.store, key, value)

    def get(self, key: str) -> Any:
        return self.obstore.get(self.store, key).bytes()


class ObstoreBytes(BareObstore):
    note = (
        "the same, made into the `bytes` that most callers need, as the others give them: a copy into "
        "memory that the system has to clear first"
    )

    def get(self, key: str) -> Any:
        return self.obstore.get(self.store, key).bytes().to_bytes()


class BareBoto3(S3Contender):
    note = (
        "put_object and get_object, max_pool_connections=16; large ones by upload_fileobj and "
        "download_fileobj: parts of 8 MiB, ten threads"
    )

    def connect(self) -> None:
        import boto3
        from botocore.config import Config

        self.client = boto3.client(
            "s3",
            endpoint_url=self.bucket.endpoint,
            region_name=self.bucket.region,
            aws_access_key_id=self.bucket.access_key,
            aws_secret_access_key=self.bucket.secret_key,
            config=Config(max_pool_connections=AT_ONCE, s3={"addressing_style": "path"}),
        )

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.client.put_object(Bucket=self.bucket.name, Key=key, Body=value)

    def get(self, key: str) -> Any:
        return self.client.get_object(Bucket=self.bucket.name, Key=key)["Body"].read()

    def put_large(self, key: str, value: Any) -> None:
        self.client.upload_fileobj(io.BytesIO(value), self.bucket.name, key)

    def get_large(self, key: str) -> Any:
        out = io.BytesIO()
        self.client.download_fileobj(self.bucket.name, key, out)
        return out.getbuffer()

    def close(self) -> None:
        self.client.close()


class InS3fs(S3Contender):
    note = (
        "pipe_file and cat_file, max_pool_connections=16; its calls run on one event loop; puts over "
        "50 MiB in parts of that size, ten at once"
    )

    def connect(self) -> None:
        import s3fs

        self.files = s3fs.S3FileSystem(
            key=self.bucket.access_key,
            secret=self.bucket.secret_key,
            endpoint_url=self.bucket.endpoint,
            client_kwargs={"region_name": self.bucket.region},
            config_kwargs={
                "max_pool_connections": AT_ONCE,
                "s3": {"addressing_style": "path"},
            },
        )

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.files.pipe_file(f"{self.bucket.name}/{key}", value)

    def get(self, key: str) -> Any:
        return self.files.cat_file(f"{self.bucket.name}/{key}")


S3_CONTENDERS: dict[str, type[Contender]] = {
    "BucketStore": InBucket,
    "obstore S3": BareObstore,
    "obstore S3 bytes": ObstoreBytes,
    "boto3": BareBoto3,
    "s3fs": InS3fs,
}
