"""Run a job in its own process with its own Ray, and measure its time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visao_ray.core.storage import locate

REPOSITORY = Path(__file__).parents[1]

_PAUSE_S = 0.5  # at least, between two measurements of the memory of all processes
#: A measurement takes the kernel as long as the processes are large; it must not take their CPU.
_SHARE = 1 / 50
_DRIVER_PAUSE_S = 0.05


@dataclass(frozen=True)
class Job:
    """Result and measurements of a job.

    Attributes:
        result: its result.json.
        seconds: of the whole process, including the start of Python and Ray.
        driver_mb: peak resident memory of the driver, in MB.
        total_mb: peak memory of the driver and all its descendant processes, in MB. Memory that
            they share counts once. Pages of files are not counted: the system drops them when it
            needs memory.
    """

    result: dict[str, Any]
    seconds: float
    driver_mb: float
    total_mb: float


def run_job(
    verb: str,
    out: str | Path,
    *flags: str,
    environment: Mapping[str, str] | None = None,
    wrapper: str | None = None,
) -> Job:
    """Run `python jobs/VERB.py --out OUT FLAGS`; its output goes to stderr.

    Args:
        verb: name of the job.
        out: folder or URI of its result.
        *flags: its other flags.
        environment: variables in addition to those of this process.
        wrapper: Python code that runs the job in its process: its arguments are the job's file and
            flags.

    Returns:
        The result and the measurements.

    Raises:
        RuntimeError: the job failed.
    """
    print(f"{verb} {' '.join(flags)}", file=sys.stderr, flush=True)
    program = [sys.executable, *(["-c", wrapper] if wrapper is not None else [])]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*program, f"jobs/{verb}.py", f"--out={out}", *flags],
        cwd=REPOSITORY,
        env={**os.environ, "RAY_ADDRESS": "local", **(environment or {})},
        stdout=sys.stderr,
    )
    driver = total = 0.0
    next_measurement = 0.0
    while process.poll() is None:
        # Not ru_maxrss: it starts at the memory of the parent process.
        driver = max(driver, _megabytes(Path(f"/proc/{process.pid}/status"), "VmHWM"))
        start = time.monotonic()
        if start >= next_measurement:
            total = max(total, sum(map(_memory, _descendants(process.pid))))
            end = time.monotonic()
            next_measurement = end + max(_PAUSE_S, (end - start) / _SHARE)
        time.sleep(_DRIVER_PAUSE_S)
    seconds = time.perf_counter() - begun
    if process.returncode:
        raise RuntimeError(f"{verb} ended with status {process.returncode}")
    result = json.loads(locate(str(out)).join("result.json").read_bytes())
    return Job(result, seconds, driver, total)


def _descendants(root: int) -> list[int]:
    """Return the ids of a process and of all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            except OSError:  # the process has ended
                continue
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [root]
    for process in found:
        found += children.get(process, ())
    return found


def _memory(process: int) -> float:
    """Return the memory of a process in MB without pages of files; shared memory in proportion."""
    file = Path(f"/proc/{process}/smaps_rollup")
    return _megabytes(file, "Pss_Anon") + _megabytes(file, "Pss_Shmem")


def _megabytes(file: Path, field: str) -> float:
    """Return a field of a /proc file, converted from kB to MB; 0 if the process has ended."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
