"""Runs of jobs as people start them, and small datasets to run them on."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

#: Without it `ray.init()` would join any cluster that happens to run on this machine.
OWN_RAY = {"RAY_ADDRESS": "local"}


def run_job(
    verb: str, *arguments: str, timeout: float = 120, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """`python jobs/VERB.py ARGUMENTS`, in a process of its own with a Ray of its own."""
    return subprocess.run(
        [sys.executable, f"jobs/{verb}.py", *arguments],
        cwd=ROOT,
        env=os.environ | OWN_RAY | {"PYTHONPATH": str(ROOT)} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """Files with their contents below a folder, which is returned."""
    for key, content in files.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root
