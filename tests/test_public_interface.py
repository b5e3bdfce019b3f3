"""The public interface of `visao_ray`: a few names, imported when they are used."""

import inspect
import json
import re
import subprocess
import sys
import tomllib

import pytest
from job_runs import ROOT

import visao_ray
from visao_ray.core.settings import JobSettings
from visao_ray.jobs.registry import JOBS

#: Removing a name breaks users' programs: add to this list, and list changes in CHANGELOG.md.
PUBLIC = [
    "Dataset",
    "Engine",
    "InputError",
    "Metric",
    "Store",
    "audit",
    "augment",
    "clean",
    "compare",
    "evaluate",
    "export",
    "extract",
    "manifest",
    "pipeline",
    "predict",
    "render",
    "submit",
    "sweep",
    "train",
    "verdicts",
]


def test_the_names() -> None:
    assert visao_ray.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(visao_ray))
    for name in PUBLIC:
        assert inspect.getdoc(getattr(visao_ray, name)), name
    with pytest.raises(AttributeError, match="no attribute 'extrat'"):
        visao_ray.extrat  # noqa: B018


def test_every_job_with_an_output_is_a_function() -> None:
    verbs = {verb for verb, job in JOBS.items() if issubclass(job.settings, JobSettings)}
    functions = {name for name in PUBLIC if inspect.isfunction(getattr(visao_ray, name))}
    # `visao_ray.search` is the package; its job is `visao_ray.jobs.functions.search`.
    assert functions == verbs - {"search"} | {"submit"}


def test_names_are_documented() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    assert set(re.findall(r"`(?:visao_ray\.)?(\w+)`", page)) >= set(PUBLIC)


def test_the_import_is_fast() -> None:
    code = "import sys, visao_ray; print(sorted({m.split('.')[0] for m in sys.modules}))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = ("ray", "numpy", "pyarrow", "pydantic", "tensorflow")
    assert not [name for name in heavy if f"'{name}'" in found.stdout]


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    released = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released
    assert visao_ray.__version__ == project["version"] == released.group(1)


def test_a_job_as_a_function(ray_cluster: None, tmp_path) -> None:
    out = tmp_path / "scans"
    result = visao_ray.render(dataset="vazios", images=8, out=str(out))
    assert result == json.loads((out / "result.json").read_bytes())
    assert result["counts"]["images"] == 8
    assert len([*out.glob("images/*/*")]) == 8


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"data": "x", "store": "y", "bakbone": "z"}, "unknown setting --bakbone"),
        ({"data": "x"}, "--store is missing"),
        ({"data": "/none", "store": "{tmp}/store", "dataset": "lungs"}, "--dataset lungs"),
    ],
)
def test_bad_values_are_one_line(values, says, tmp_path) -> None:
    given = {name: value.format(tmp=tmp_path) for name, value in values.items()}
    with pytest.raises(visao_ray.InputError, match=re.escape(says)):
        visao_ray.extract(**given)
