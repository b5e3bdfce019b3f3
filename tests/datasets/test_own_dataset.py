"""A dataset of one's own: a TOML file and folders of images, through the pipeline to its report."""

import json

import numpy as np
import pytest
from html_page import Page
from job_runs import run_job
from PIL import Image

from visao_ray.datasets.registry import find_dataset
from visao_ray.models import saved
from visao_ray.storage import locate

TOML = """\
# Weave of three cloths, photographed several times each.
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
PICTURES = 36  # of each class, three a group


def weave(kind, rng):
    """Stripes across, stripes down, or neither, uint8 [40, 48], with noise."""
    grey = rng.normal(120, 25, (40, 48))
    grey[:: 4 if kind == "canvas" else 99] += 90
    grey[:, :: 4 if kind == "denim" else 99] += 90
    return np.clip(grey, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def cloths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "cloths.toml").write_text(TOML)
    rng = np.random.default_rng(5)
    for place, kind in enumerate(("canvas", "denim", "silk")):
        (folder / "images" / kind).mkdir(parents=True)
        for number in range(PICTURES):
            name = f"bolt{place}{number // 3:02d}-{number % 3}.png"
            Image.fromarray(weave(kind, rng)).save(folder / "images" / kind / name)
    return folder


def test_the_pipeline_needs_nothing_but_the_file(cloths, tiny_backbone, tmp_path):
    out, file = tmp_path / "out", cloths / "cloths.toml"
    flags = ["--dataset", file, "--data", cloths / "images", "--out", out]
    flags += ["--weights", tiny_backbone, "--trials", 3, "--epochs", 5, "--replicates", 100]
    flags += ["--val-share", 0.2, "--test-share", 0.2, "--seed", 1]
    run = run_job("pipeline", *map(str, flags), timeout=300)
    assert run.returncode == 0, run.stderr

    result = json.loads((out / "result.json").read_text())
    assert (result["counts"]["listed"], result["counts"]["errors"]) == (3 * PICTURES, 0)
    assert result["settings"]["dataset"] == str(file)
    described = find_dataset(str(file))
    assert result["inputs"]["evaluate"]["dataset"] == described.to_json()
    model = locate(str(out / "sweep" / "head.keras"))
    about = saved.read_about(saved.read(model), model.uri)
    assert about.dataset == described
    assert about.classes == described.classes
    test = result["metrics"]["test"]
    assert test["balanced_accuracy"]["value"] > 0.6  # a third by chance
    assert set(test["per_class"]) == set(described.classes)
    page = Page((out / "report.html").read_text())
    assert "cloths" in page.text
    assert all(name in page.text for name in described.classes)

    # Later commands need no --dataset: the store and the model know theirs.
    flags = ["--model", model.uri, "--store", out / "store"]
    again = run_job("evaluate", *map(str, flags), "--out", str(tmp_path / "again"), timeout=200)
    assert again.returncode == 0, again.stderr
    judged = json.loads((tmp_path / "again" / "result.json").read_text())
    assert judged["inputs"]["dataset"] == described.to_json()
    assert judged["metrics"]["test"]["accuracy"] == {
        **test["accuracy"],
        **{end: judged["metrics"]["test"]["accuracy"][end] for end in ("low", "high")},
    }


@pytest.mark.parametrize("verb", ["pipeline", "extract", "manifest", "train"])
def test_a_wrong_file_is_one_line_before_ray_starts(cloths, verb, tmp_path):
    file = tmp_path / "cloths.toml"
    file.write_text(TOML.replace("positive = ", "postive = "))
    flags = ["--dataset", file, "--data", cloths / "images", "--out", tmp_path / "out"]
    flags += ["--family", "simple_cnn"] if verb == "train" else []
    # Where there is no cluster: a job that asked for it would end in another way.
    run = run_job(verb, *map(str, flags), environment={"RAY_ADDRESS": "127.0.0.1:1"})
    assert run.returncode == 2
    line = f"error: --dataset {file}: unknown key 'postive': did you mean 'positive'?\n"
    assert run.stderr == line


def test_nothing_is_rendered_for_it(cloths, tmp_path):
    flags = ["--dataset", str(cloths / "cloths.toml"), "--out", str(tmp_path / "out")]
    run = run_job("pipeline", *flags)
    assert run.returncode == 2
    assert "rendered for chest_xray, vazios, ncm alone; give --data" in run.stderr
    assert run.stderr.count("\n") == 1
