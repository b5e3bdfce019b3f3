"""Run jobs from the command line, and write small datasets for them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

#: Without it `ray.init()` would connect to a cluster that happens to run on this machine.
OWN_RAY = {"RAY_ADDRESS": "local"}

#: Jobs and their workers import the library of this checkout, and the plugins of the tests.
IMPORTS = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def run_job(
    verb: str, *arguments: str, timeout: float = 120, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `python jobs/VERB.py ARGUMENTS` in its own process with its own Ray."""
    return subprocess.run(
        [sys.executable, f"jobs/{verb}.py", *arguments],
        cwd=ROOT,
        env=os.environ | OWN_RAY | IMPORTS | (environment or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder, and return the folder."""
    for key, content in files.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root
