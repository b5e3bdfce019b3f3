"""Documents agree with the layout of the repository."""

import re
import tomllib

import yaml
from job_runs import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


def targets(text: str) -> list[str]:
    """Return the make targets of the commands in a text."""
    found = re.findall(r"\bmake((?: [a-z-]+\b)+)", text)
    return [target for words in found for target in words.split()]


def rooms() -> list[str]:
    """Return the packages in the order of import-linter, from the top."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [part for layer in settings["contracts"][0]["layers"] for part in layer.split(" | ")]
    names = [layer.split(".")[1] for layer in layers]
    return list(dict.fromkeys(name for name in names if (ROOT / "visao_ray" / name).is_dir()))


def test_architecture_has_the_order_of_import_linter() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text[text.index("## Rooms") : text.index("## Six files")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == rooms()


def test_every_package_is_a_room() -> None:
    packages = {path.parent.name for path in (ROOT / "visao_ray").glob("*/__init__.py")}
    assert packages == set(rooms())


def test_make_help_and_contributing_have_every_target() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    known = set(phony.split()) - {"help", "clean"}
    assert known == set(re.findall(r'^\t@echo "make ([\w-]+) ', MAKEFILE, re.MULTILINE))
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert known == set(re.findall(r"^\| `make ([\w-]+)` \|", contributing, re.MULTILINE))


def test_the_public_workflow_calls_what_ci_calls() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    runs = [entry["run"] for entry in workflow["jobs"]["make"]["strategy"]["matrix"]["include"]]
    ours = targets((ROOT / ".ci" / "run").read_text())
    assert [target for run in runs for target in targets(run)] == ours


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180
