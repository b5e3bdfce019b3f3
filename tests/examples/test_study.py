"""The settings files of the 2019 study: each is accepted by the command in its first lines."""

import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
from job_runs import ROOT

from visao_ray.core.settings import parse
from visao_ray.jobs.registry import find_job
from visao_ray.tuning.settings import SweepOptions
from visao_ray.tuning.space import read_space

FILES = sorted((ROOT / "examples" / "study").glob("*-*.toml"))


def test_there_are_files() -> None:
    assert len(FILES) >= 10


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_settings(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last command of the comment loads the file; commands before it make its inputs."""
    monkeypatch.chdir(ROOT)
    text = file.read_text()
    values = tomllib.loads(text)
    commands = re.findall(r"^#   visao-ray (.+)$", text, re.MULTILINE)
    parsed = []
    for verb, *flags in map(shlex.split, commands):
        parsed.append(parse(find_job(verb).settings, flags))
    assert f"--settings examples/study/{file.name} " in commands[-1]
    settings = parsed[-1]
    for name, value in values.items():
        assert getattr(settings, name) == value, name
    if isinstance(settings, SweepOptions):
        read_space(settings.space)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_comments(file: Path) -> None:
    comment = file.read_text().split("\n\n")[0]
    assert comment.startswith(("# Row", "# The baseline"))
    measured = (file.parent / "results" / f"{file.stem}.json").exists()
    last = "# Measured: docs/study.md." if measured else "# Not measured with visao_ray."
    for part in ("# The study reported: ", "# Different here: ", last):
        assert f"\n{part}" in comment
    assert "/work" not in comment
    assert "shared" not in comment


def test_the_page_is_that_of_the_results() -> None:
    """`python examples/study/page.py` was run after the last change of a row, result or defect."""
    names = runpy.run_path(str(ROOT / "examples" / "study" / "page.py"))
    assert names["PAGE"].read_text() == names["page"]()


def test_every_defect_has_tests_that_exist() -> None:
    text = (ROOT / "examples" / "study" / "defects.toml").read_text()
    for defect in tomllib.loads(text)["defect"]:
        assert defect["tests"], defect["study"]
        for test in defect["tests"]:
            file, name = test.split("::")
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), test
