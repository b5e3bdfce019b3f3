"""A job in a process of its own, with a Ray of its own, and what it took."""

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

_PAUSE_S = 0.5  # between two looks at the memory of all processes
_DRIVER_PAUSE_S = 0.05


@dataclass(frozen=True)
class Job:
    """What a job showed.

    Attributes:
        result: its result.json.
        seconds: of the whole process, with Python's and Ray's start.
        driver_mb: peak of the driver's resident memory, in MB.
        total_mb: peak of the memory of the driver and all processes below it, in MB: private
            memory, and memory that they share with each other, once. Pages of files are not in it:
            the system drops them when it needs room.
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
    """`python jobs/VERB.py --out OUT FLAGS`; its lines go to stderr.

    Args:
        verb: name of the job.
        out: folder or URI of its result.
        flags: its other flags.
        environment: variables beside those of this process.
        wrapper: Python code that runs the job in its process: its arguments are the job's file and
            flags.

    Raises:
        RuntimeError: it failed.
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
    looked = 0.0
    while process.poll() is None:
        # Not ru_maxrss: that one begins with the memory of the process that started this one.
        driver = max(driver, _megabytes(Path(f"/proc/{process.pid}/status"), "VmHWM"))
        if time.monotonic() - looked >= _PAUSE_S:
            total = max(total, sum(map(_held, _descendants(process.pid))))
            looked = time.monotonic()
        time.sleep(_DRIVER_PAUSE_S)
    seconds = time.perf_counter() - begun
    if process.returncode:
        raise RuntimeError(f"{verb} ended with status {process.returncode}")
    result = json.loads(locate(str(out)).join("result.json").read_bytes())
    return Job(result, seconds, driver, total)


def _descendants(root: int) -> list[int]:
    """A process and all below it, as they are now."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            except OSError:  # ended meanwhile
                continue
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [root]
    for process in found:
        found += children.get(process, ())
    return found


def _held(process: int) -> float:
    """MB of a process that are no pages of files; of shared ones its part."""
    file = Path(f"/proc/{process}/smaps_rollup")
    return _megabytes(file, "Pss_Anon") + _megabytes(file, "Pss_Shmem")


def _megabytes(file: Path, field: str) -> float:
    """A field in kB of a file of Linux about a process; 0 where the process has ended."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
