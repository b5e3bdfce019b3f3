"""The example of a model family trains on two workers; no file of the library contains it."""

import json

import numpy as np
import pyarrow.dataset as pads
import pytest
from conftest import SEED
from job_runs import run_job

from visao_ray.models.artifact import read_metadata
from visao_ray.models.registry import FAMILIES

PLUGIN = ("--plugin", "examples/add_family.py")
FLAGS = ("--image-size", "32", "--filters", "4", "--blocks", "2", "--focal", "1", "--epochs", "2")


@pytest.mark.slow
def test_the_family_on_two_workers(store, tmp_path, same_ray):
    out = tmp_path / "out"
    how = ["--workers", "2", "--batch-size", "12", "--seed", str(SEED), "--replicates", "100"]
    place = ["--store", str(store), "--out", str(out)]
    flags = [*PLUGIN, "--family", "separable_cnn", *FLAGS, *how, *place]
    run = run_job("train", *flags, timeout=300, environment=same_ray)
    assert run.returncode == 0, run.stderr
    assert "separable_cnn on 2 CPU workers" in run.stdout
    result = json.loads((out / "result.json").read_text())
    assert result["settings"]["filters"] == 4
    assert "svm_c" not in result["settings"]
    details = result["details"]
    losses = [row["loss"] for row in details["history"]]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert {"accuracy", "auc"} < details["history"][0].keys()
    # Depthwise 3 × 3 × C, pointwise C × F and F biases; then a Dense layer of two classes.
    assert details["parameters"] == (27 + 12 + 4) + (36 + 32 + 8) + 18
    assert max(details["export"]["differences"].values()) <= 1e-5
    probability = np.array(
        pads.dataset(out / "predictions").to_table(columns=["probability"])[0].to_pylist()
    )
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
    metadata = read_metadata((out / "model.keras").read_bytes(), "")
    assert (metadata.family, metadata.settings["focal"]) == ("separable_cnn", 1.0)
    assert "separable_cnn" not in FAMILIES


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--family separable_cnn --svm-c 1", "--svm-c is for --family svm, not separable_cnn"),
        ("--family simple_cnn --focal 1", "--focal is for --family separable_cnn, not simple_cnn"),
        ("--family separable_cnn --blocks 9", "--blocks 9: "),
        ("--family separable --blocks 2", "--family separable: "),
    ],
)
def test_flags_of_the_family(arguments, says, tmp_path):
    place = ["--data", str(tmp_path), "--dataset", "vazios", "--out", str(tmp_path / "out")]
    run = run_job("train", *PLUGIN, *arguments.split(), *place)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {says}"), run.stderr
    assert run.stderr.count("\n") == 1


def test_help_shows_the_family():
    run = run_job("train", *PLUGIN, "--help")
    assert run.returncode == 0, run.stderr
    text = " ".join(run.stdout.split())
    assert "separable_cnn: separable convolutions with the focal loss, from pixels" in text
    assert "--focal float [separable_cnn] exponent of the focal loss" in text
