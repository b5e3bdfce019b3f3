"""Every model family trains on a rendered dataset, on one worker.

On two workers: `test_synchronous`, `test_resume`, `tests/examples` and the fault suite.
"""

import json
import math
import shutil
import zipfile

import numpy as np
import pyarrow.dataset as pads
import pytest
from conftest import SEED, join_ray

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.core.run import execute
from visao_ray.models.settings import TrainSettings
from visao_ray.store.store import Store
from visao_ray.training.train import train_model

BROKEN = "vazio/broken.jpg"
READS = "simple_cnn-1"  # the case that reads the dataset; other cases use its store
GIVEN_HEAD = "transfer-1 with a head"  # which is trained; only fine-tuning runs

LONG = (GIVEN_HEAD, "projection-1")  # much like transfer-1 and siamese-1

#: Family and workers: its inputs, whether it gives probabilities and embeddings, its settings.
CASES = {
    "simple_cnn-1": ("pixels", True, False, {"image_size": 80, "augment": "G1", "epochs": 2}),
    "head-1": ("vectors", True, False, {"epochs": 2, "monitor": "auc", "class_weight": "balanced"}),
    "transfer-1": ("pixels", True, False, {"fine_tune_from": "conv2d", "fine_tune_epochs": 1}),
    GIVEN_HEAD: ("pixels", True, False, {"fine_tune_from": "conv2d", "fine_tune_epochs": 2}),
    "projection-1": (
        "vectors",
        False,
        True,
        {"embedding": 8, "units": 16, "epochs": 2, "batch_size": 24},
    ),
    "siamese-1": ("vectors", True, True, {"join": "contrastive", "embedding": 8, "epochs": 2}),
    "autoencoder-1": ("pixels", False, True, {"image_size": 32, "embedding": 8, "epochs": 2}),
    "svm-1": ("pixels", True, False, {"image_size": 64, "svm_c": [1, 10], "svm_gamma": [1]}),
}


@pytest.fixture(scope="module")
def dataset(scans, tmp_path_factory):
    """The scans, and a truncated one."""
    root = tmp_path_factory.mktemp("dataset") / "scans"
    shutil.copytree(scans, root)
    whole = min((root / "vazio").iterdir()).read_bytes()
    (root / BROKEN).write_bytes(whole[: len(whole) * 2 // 3])
    return root


def settings(out, family, workers, **how):
    usual = {"seed": SEED, "replicates": 100}
    if family != "svm":
        usual |= {"epochs": 1, "batch_size": 12}
    kind = TrainSettings.of_family(family)
    return kind(out=str(out), workers=workers, **{**usual, **how})


@pytest.fixture(scope="module")
def trained(dataset, store, tiny_backbone, tmp_path_factory, _ray_at_end):
    """A function that trains a case once, and returns its output folder and its result."""
    join_ray()
    done = {}

    def train(case):
        if case not in done:
            family, workers = case.split(" ")[0].split("-")
            takes, _, _, how = CASES[case]
            if takes == "vectors":
                source = {"store": store}
            elif case == READS:
                source = {"data": dataset, "dataset": "vazios"}
            else:
                source = {"store": train(READS)[0] / "store"}
            if family in ("siamese", "svm"):
                how = {**how, "inputs": takes}
            if family == "transfer":
                how = {**how, "weights": tiny_backbone}
            if case == GIVEN_HEAD:
                how |= {"head": str(train("head-1")[0] / "model.keras"), "epochs": None}
            out = tmp_path_factory.mktemp(family) / "out"
            paths = {name: str(place) for name, place in source.items()}
            result = execute(settings(out, family, int(workers), **paths, **how), train_model)
            done[case] = out, result
        return done[case]

    return train


def rows_of(out, table):
    return by_key(pads.dataset(f"{out}/{table}").to_table().to_pylist())


def images_of(store):
    columns = ["key", "label", "split", "status", "error"]
    return by_key(Store.open(str(store)).images.latest().read(columns).to_pylist())


def by_key(rows):
    found = {row["key"]: row for row in rows}
    assert len(found) == len(rows), "every image once"
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.long] * (case in LONG)) for case in CASES]
)
def test_a_family(case, trained, store, dataset):
    out, result = trained(case)
    takes, classifies, embeds, how = CASES[case]
    assert result["status"] == "finished"
    assert json.loads((out / "result.json").read_text()) == result
    assert not (out / "work").exists()

    counts = result["counts"]
    if takes == "pixels":
        place = trained(READS)[0] / "store"
        images = images_of(place)
        errors = {key: row for key, row in images.items() if row["status"] != "ok"}
        assert set(errors) == {f"{dataset}/{BROKEN}"}
        (broken,) = errors.values()
        assert broken["status"] == "error"
        assert broken["error"].startswith("truncated: ")
        assert (counts["images"], counts["ok"], counts["errors"]) == (41, 40, 1)
        assert counts["errors_by_reason"] == {"truncated": 1}
    else:
        place = store
        images = images_of(place)
        assert (counts["images"], counts["ok"], counts["errors"]) == (40, 40, 0)
    if case == READS:
        assert [counts[name] for name in ("listed", "new", "known", "read")] == [41, 41, 0, 41]
    shown = {key: row for key, row in images.items() if row["status"] == "ok"}
    assert len(shown) == 40
    evaluated_keys = {key for key, row in shown.items() if row["split"] != "train"}
    assert 0 < len(evaluated_keys) < 40
    for split, rows in counts["rows"].items():
        assert rows == sum(row["split"] == split for row in shown.values())
    assert set(counts["rows"]) == {"train", "val"}
    evaluated = counts["evaluated"]
    assert evaluated["images"] == evaluated["ok"] + evaluated["errors"]
    assert evaluated["ok"] == (len(shown) if embeds else len(evaluated_keys))

    inputs = result["inputs"]
    assert inputs["store"] == str(place)
    assert inputs["dataset"]["name"] == "vazios"
    read = set(inputs["versions"])
    assert "images" in read
    assert any(name.startswith("predictions/") for name in read)
    if takes == "vectors":
        assert f"vectors/{inputs['extractor']}/none" in read
        assert inputs["extractor"] == Store.open(str(store)).the_extractor(None)
    else:
        assert "extractor" not in inputs

    assert (out / "predictions").exists() == classifies
    assert (out / "embeddings").exists() == embeds
    if classifies:
        predictions = rows_of(out, "predictions")
        assert set(predictions) == evaluated_keys
        probability = np.array([row["probability"] for row in predictions.values()])
        assert probability.shape == (len(evaluated_keys), 2)
        assert np.isfinite(probability).all()
        np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
        for split in ("val", "test"):
            rows = [row for row in predictions.values() if row["split"] == split]
            assert counts["by_split"][split]["images"] == len(rows)
            assert 0 <= result["metrics"][split]["accuracy"]["value"] <= 1
    if embeds:
        embeddings = rows_of(out, "embeddings")
        assert set(embeddings) == set(shown)
        made = np.array([row["embedding"] for row in embeddings.values()])
        assert made.shape == (40, how.get("embedding", 128))
        assert np.isfinite(made).all()
        assert made.std(axis=0).max() > 0

    details = result["details"]
    assert max(details["export"]["differences"].values()) <= 1e-5
    assert set(details["export"]["differences"]) == {"keras", "savedmodel"}
    assert details["export"]["file_bytes"] == (out / "model.keras").stat().st_size
    assert (out / "savedmodel" / "1" / "saved_model.pb").exists()
    with zipfile.ZipFile(out / "model.keras") as archive:  # only plain Keras in it
        assert "visao_ray" not in archive.read("config.json").decode()
    model = import_keras().saving.load_model(out / "model.keras", safe_mode=True)
    assert model.count_params() == details["parameters"]

    history = details["history"]
    if case.startswith("svm"):
        grid = [(row["C"], row["gamma"]) for row in history]
        assert grid == [(C, gamma) for C in how["svm_c"] for gamma in how["svm_gamma"]]
        return
    epochs = (how.get("epochs", 1) if case != GIVEN_HEAD else 0) + how.get("fine_tune_epochs", 0)
    assert [row["epoch"] for row in history] == list(range(1, epochs + 1))
    for row in history:
        assert math.isfinite(row["loss"])
        assert math.isfinite(row["val_loss"])
        assert ("accuracy" in row) == (classifies and not embeds)
    assert details["restarts"] == {"from_epochs": [], "lost_workers": []}
    assert details["peak_memory_bytes"] > 0
    assert result["throughput"]["images_per_second_per_worker"] > 0
    if case.startswith("transfer"):
        phases = ["fine-tune"] * 2 if case == GIVEN_HEAD else ["train", "fine-tune"]
        assert [row["phase"] for row in history] == phases


def test_a_learning_rate_that_diverges(store, tmp_path, ray_cluster):
    """The error is one line, and there is no retry."""
    out = tmp_path / "out"
    how = {"store": str(store), "optimizer": "sgd", "learning_rate": 1e9}
    with pytest.raises(
        InputError, match=r"training diverged: .* in epoch 1; lower --learning-rate"
    ):
        execute(settings(out, "head", 1, **how), train_model)
    assert not (out / "work" / "lost").exists()
    assert not (out / "result.json").exists()


def test_too_many_broken_images(dataset, tmp_path, ray_cluster):
    """The error is one line before training; the same command gives the same error again."""
    how = {"dataset": "vazios", "data": str(dataset), "max_errors": 0.02, "image_size": 80}
    message = r"1 of 41 new images cannot be used \(1 truncated\), more than --max-errors 0\.02"
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            execute(settings(tmp_path / "out", "simple_cnn", 1, **how), train_model)
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"family": "head", "extractor": "other"}, r"--extractor other: .* has tiny-32-"),
        ({"family": "head", "recipe": "G5@1"}, r"has no vectors/tiny-32-.*/G5@1; it has vectors"),
        ({"family": "head", "as_of": "0badc0de"}, r"--as-of 0badc0de: no run of that id"),
        ({"family": "svm", "dataset": "chest_xray"}, r"is for dataset vazios .* remove --dataset"),
    ],
    ids=str,
)
def test_what_the_store_does_not_have(how, message, store, tmp_path, ray_cluster):
    with pytest.raises(InputError, match=message):
        execute(settings(tmp_path / "out", workers=1, store=str(store), **how), train_model)
