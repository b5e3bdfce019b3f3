"""A user's dataset from a TOML file in a job, and the error message for a wrong file.

`tests/test_pipeline.py` runs the whole pipeline on such a dataset.
"""

import json

import pytest
from cloths import PICTURES, write_cloths
from job_runs import run_job

from visao_ray.datasets.registry import find_dataset

TOML = """\
# Weave of three cloths, each photographed more than once.
classes = [
    "canvas",
    "denim",
    "silk",
]
positive = "silk"
# bolt07-2.png and bolt07-3.png show the same bolt.
group_pattern = 'bolt\\d+'
chapter_digits = 0
"""


@pytest.fixture(scope="module")
def cloths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "cloths.toml").write_text(TOML)
    write_cloths(folder / "images")
    return folder


def test_a_job_needs_nothing_but_the_file(cloths, tmp_path, same_ray):
    out, file = tmp_path / "out", cloths / "cloths.toml"
    flags = ["--dataset", file, "--data", cloths / "images", "--out", out]
    run = run_job("manifest", *map(str, flags), environment=same_ray)
    assert run.returncode == 0, run.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["counts"]["listed"] == 3 * PICTURES
    assert result["settings"]["dataset"] == str(file)
    assert find_dataset(str(file)).name == "cloths"
    assert result["counts"]["labels"] == dict.fromkeys(find_dataset(str(file)).classes, PICTURES)


@pytest.mark.parametrize("verb", ["pipeline", "extract", "manifest", "train"])
def test_a_wrong_file_is_one_line_before_ray_starts(cloths, verb, tmp_path):
    file = tmp_path / "cloths.toml"
    file.write_text(TOML.replace("positive = ", "postive = "))
    flags = ["--dataset", file, "--data", cloths / "images", "--out", tmp_path / "out"]
    flags += ["--family", "simple_cnn"] if verb == "train" else []
    # There is no cluster at this address: a job that started Ray would fail with another message.
    run = run_job(verb, *map(str, flags), environment={"RAY_ADDRESS": "127.0.0.1:1"})
    assert run.returncode == 2
    line = f"error: --dataset {file}: unknown key 'postive': did you mean 'positive'?\n"
    assert run.stderr == line


def test_a_user_dataset_cannot_be_rendered(cloths, tmp_path):
    flags = ["--dataset", str(cloths / "cloths.toml"), "--out", str(tmp_path / "out")]
    run = run_job("pipeline", *flags)
    assert run.returncode == 2
    assert "rendered for chest_xray, vazios, ncm alone; give --data" in run.stderr
    assert run.stderr.count("\n") == 1
