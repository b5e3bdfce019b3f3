"""A real Ray cluster of several nodes on this machine, started with `ray start`.

Every node has its own folders, token authentication is on, and the head node runs no tasks.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from job_runs import ROOT
from s3_server import free_ports

_BIN = Path(sys.executable).parent
RAY = str(_BIN / "ray")
_START_S = 90


@dataclass
class Node:
    """One node: `ray start --block` in its own process group.

    Attributes:
        name: its name in Ray; never used twice.
        folder: its files.
        process: `ray start`.
    """

    name: str
    folder: Path
    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        """Kill every process of the node at once, like a power failure."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        # Ray's daemons and workers have their own groups, but all have the folder of the node in
        # their environment.
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()

    def processes(self) -> list[int]:
        """Return the ids of all processes of this node."""
        marker = f"VISAO_RAY_NODE={self.folder}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if marker in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found


@dataclass
class RayNodes:
    """A running cluster.

    Attributes:
        folder: everything that its nodes write.
        environment: environment of its nodes and of clients.
        port: port of the head node.
        dashboard: port of the dashboard.
        nodes: nodes by name; `head` is one of them.
        started: number of nodes that were started.
    """

    folder: Path
    environment: dict[str, str]
    port: int
    dashboard: int
    nodes: dict[str, Node] = field(default_factory=dict)
    started: int = 0

    @property
    def address(self) -> str:
        """Address for submitting jobs."""
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self, name: str, *flags: str) -> Node:
        """Start a node; the first is the head."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        if name == "head":
            role = ["--head", f"--port={self.port}", f"--dashboard-port={self.dashboard}"]
            role += ["--dashboard-host=127.0.0.1", "--include-dashboard=true", "--num-cpus=0"]
        else:
            role = [f"--address=127.0.0.1:{self.port}"]
        command = [RAY, "start", *role, *flags, "--block", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
        # By default all nodes of a machine use the same port, and a head without it takes no jobs.
        command += [f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
        command += [f"--object-store-memory={256 * 1024**2}"]
        self.started += 1
        command += [f"--node-name={name}-{self.started}"]
        with open(folder / "start.log", "ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment | {"VISAO_RAY_NODE": str(folder)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.nodes[name] = Node(f"{name}-{self.started}", folder, process)
        return self.nodes[name]

    def kill(self, name: str) -> None:
        """Kill a node."""
        self.nodes.pop(name).kill()

    def wait(self) -> None:
        """Wait until the head lists exactly the nodes that are running."""
        wanted = {node.name for node in self.nodes.values()}
        end = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError, ValueError):
                if self.alive() == wanted:
                    return
            for node in self.nodes.values():
                if node.process.poll() is not None:
                    raise RuntimeError((node.folder / "start.log").read_text()[-3000:])
            if time.monotonic() > end:
                raise RuntimeError(f"not the nodes {sorted(wanted)} within {_START_S} s")
            time.sleep(0.5)

    def alive(self) -> set[str]:
        """Return the names of the nodes that the head lists as alive."""
        listed = self.get("/api/v0/nodes?limit=100&detail=1")
        rows = listed["data"]["result"]["result"]
        return {row["node_name"] for row in rows if row["state"] == "ALIVE"}

    def get(self, path: str) -> dict:
        """Return a JSON response of the dashboard."""
        return json.loads(self.read(path))

    def read(self, path: str) -> bytes:
        """Return a response of the dashboard."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        request = urllib.request.Request(
            self.address + path, headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()

    def submit(
        self, verb: str, *arguments: str, timeout: float = 450
    ) -> "subprocess.CompletedProcess[str]":
        """Run `python jobs/submit.py` to its end."""
        process = self.begin(verb, *arguments)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            raise RuntimeError(f"{verb} did not end within {timeout} s:\n{output}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, output, "")

    def stop_jobs(self) -> None:
        """Stop the jobs that a failed test has left, so that they starve no other test."""
        for job in self.get("/api/jobs/"):
            if job["submission_id"] and job["status"] in ("PENDING", "RUNNING"):
                command = [RAY, "job", "stop", "--address", self.address, job["submission_id"]]
                subprocess.run(command, env=self.environment, check=False, capture_output=True)

    def begin(self, verb: str, *arguments: str) -> "subprocess.Popen[str]":
        """Start `python jobs/submit.py`."""
        return subprocess.Popen(
            [sys.executable, "jobs/submit.py", "--address", self.address, verb, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@contextlib.contextmanager
def ray_nodes(
    workers: Sequence[Sequence[str]] = (("--num-cpus=1",), ("--num-cpus=1",)),
    environment: Mapping[str, str] | None = None,
) -> Iterator[RayNodes]:
    """Start a head and workers, each with its flags; all are killed at the end."""
    # The path must be short: paths of sockets are limited to 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="vr-", dir="/tmp"))
    token = folder / "token"
    token.write_text(os.urandom(32).hex())
    token.chmod(0o600)
    # A node that declares a GPU does not start if CUDA_VISIBLE_DEVICES hides all GPUs.
    hidden = ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES")
    own = {name: value for name, value in os.environ.items() if name not in hidden}
    # A job runs the first `python` on the head's PATH, which may not be that of these tests.
    own["PATH"] = f"{_BIN}{os.pathsep}{own['PATH']}"
    own["PYTHONPATH"] = str(Path(__file__).parent)  # plugins of tests
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), **(environment or {})}
    port, dashboard = free_ports(2)
    nodes = RayNodes(folder, own, port, dashboard)
    try:
        nodes.start("head")
        nodes.wait()
        for number, flags in enumerate(workers, 1):
            nodes.start(f"worker{number}", *flags)
        nodes.wait()
        yield nodes
    finally:
        for name in list(nodes.nodes):
            nodes.kill(name)
        shutil.rmtree(folder, ignore_errors=True)
