"""The console script of an installed wheel, outside any clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from job_runs import ROOT

from visao_ray import __version__
from visao_ray.jobs.registry import JOBS

HELP = """
import sys
from visao_ray.jobs.command_line import console
sys.argv = ["visao-ray", "--help"]
try:
    console()
finally:
    print(sorted({"ray", "tensorflow", "keras", "matplotlib", "sklearn", "lance"} & {*sys.modules}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and the packages of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "visao_ray", source / "visao_ray")
    python = [sys.executable, "-m"]
    pip = [*python, "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", f"--wheel-dir={folder}"]
    run(*pip, *build, str(source), cwd=folder)
    place = folder / "environment"
    run(*python, "venv", "--without-pip", str(place), cwd=folder)
    (packages,) = place.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "shared.pth").write_text("\n".join(shared))
    (wheel,) = folder.glob("visao_ray-*.whl")
    install = ["install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    run(*pip, f"--python={place}/bin/python", *install, cwd=folder)
    return place


def run(*command: str, cwd: Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a command in another folder, without the clone in PYTHONPATH."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**variables, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def console(environment: Path, cwd: Path, *words: str, status: int = 0) -> str:
    """Return what `visao-ray WORDS` prints: its output, or its errors if it fails."""
    done = run(f"{environment}/bin/visao-ray", *words, cwd=cwd, check=False)
    assert done.returncode == status, done.stderr
    other, text = (done.stderr, done.stdout) if status == 0 else (done.stdout, done.stderr)
    assert other == ""
    return text


def test_help_lists_every_verb_in_one_line(environment: Path, tmp_path: Path) -> None:
    lines = console(environment, tmp_path).splitlines()
    for verb, job in JOBS.items():
        (line,) = (line for line in lines if line.startswith(f"  {verb} "))
        assert line.removeprefix(f"  {verb}").strip() == job.summary
    assert sum(line.startswith("  submit ") for line in lines) == 1
    assert console(environment, tmp_path, "--version") == f"visao-ray {__version__}\n"


def test_help_imports_nothing_heavy(environment: Path, tmp_path: Path) -> None:
    done = run(f"{environment}/bin/python", "-c", HELP, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", ["pipeline", "submit"])
def test_help_of_a_verb_names_the_console_script(
    verb: str, environment: Path, tmp_path: Path
) -> None:
    text = console(environment, tmp_path, verb, "--help")
    assert text.startswith(f"usage: visao-ray {verb} ")
    assert text.count(f"visao-ray {verb} ") == 2  # the second is the example
    assert "jobs/" not in text.split("options:")[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["extrac"],
            "'extrac': no such job; there are audit, augment, clean, compare, ",
        ),
        (["extract", "--store", "s"], "--data is missing: "),
        (["store", "status", "--store", "none"], "--store none: there is no store"),
        (
            ["submit", "extract", "--data", "d", "--store", "s"],
            "submit uploads jobs/ of a clone, and there is none in ",
        ),
    ],
)
def test_errors_are_one_line(
    words: list[str], says: str, environment: Path, tmp_path: Path
) -> None:
    text = console(environment, tmp_path, *words, status=2)
    assert text.startswith(f"error: {says}")
    assert text.count("\n") == 1


def test_the_wheel_has_every_job(environment: Path, tmp_path: Path) -> None:
    """Jobs can be imported from it, and reports find their templates."""
    code = (
        "from pkgutil import resolve_name; from visao_ray.jobs.registry import JOBS\n"
        "import visao_ray.reports.report\n"
        "from importlib.resources import files\n"
        "print(*{resolve_name(job.path) and job.path for job in JOBS.values()})\n"
        "print(*(path.name for path in files('visao_ray.reports').iterdir()))\n"
        "print(visao_ray.__file__)"
    )
    done = run(f"{environment}/bin/python", "-c", code, cwd=tmp_path)
    modules, templates, place = done.stdout.splitlines()
    assert len(modules.split()) == len(JOBS)
    here = {path.name for path in (ROOT / "visao_ray" / "reports").glob("*.j2")}
    assert here <= set(templates.split())
    assert Path(place).is_relative_to(environment)
