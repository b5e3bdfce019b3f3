"""Killed workers and killed drivers: training resumes with the same results."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pytest
from conftest import join_ray
from job_runs import OWN_RAY, ROOT

from visao_ray.core.run import execute
from visao_ray.models.settings import TrainSettings
from visao_ray.synthetic.recipe import SyntheticRecipe, plan
from visao_ray.synthetic.scan import encode, render
from visao_ray.training.train import train_model

SCANS, EPOCHS = 100, 4
DEADLINE_S = 300
HOW = {
    "dataset": "vazios",
    "family": "simple_cnn",
    "image_size": 80,
    "epochs": EPOCHS,
    "batch_size": 20,
    "augment": "G1",
    "replicates": 100,
    "workers": 2,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A rendered dataset with images of half the width and height."""
    root = tmp_path_factory.mktemp("dataset")
    for image in plan(SyntheticRecipe("vazios", SCANS, seed=3)):
        scan = render("vazios", image.true_label, image.index, 3, image.difficulty)
        path = root / image.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(scan[::2, ::2], image.quality))
    return root


def train(out, dataset):
    settings = TrainSettings.of_family(HOW["family"])(out=str(out), data=str(dataset), **HOW)
    return execute(settings, train_model)


def weights_of(out):
    from visao_ray.core.storage import locate
    from visao_ray.models import artifact

    model, metadata = artifact.load(locate(str(out / "model.keras")))
    return metadata.epoch, model.get_weights()


def probabilities(out):
    table = pads.dataset(out / "predictions").to_table().sort_by("key")
    return table["key"].to_pylist(), np.array(table["probability"].to_pylist())


@pytest.fixture(scope="module")
def uninterrupted(dataset, tmp_path_factory, _ray_at_end):
    join_ray()
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    result = train(out, dataset)
    assert len(result["details"]["history"]) == EPOCHS
    assert result["details"]["restarts"] == {"from_epochs": [], "lost_workers": []}
    assert max(result["details"]["export"]["differences"].values()) <= 1e-5
    counts = result["counts"]
    assert (counts["images"], counts["ok"], counts["errors"]) == (SCANS, SCANS, 0)
    assert [counts[name] for name in ("listed", "new", "known", "read")] == [SCANS, SCANS, 0, SCANS]
    evaluated = sum(counts["by_split"][split]["images"] for split in ("val", "test"))
    assert len(probabilities(out)[0]) == evaluated > 0
    return out, result


def assert_same(out, result, uninterrupted):
    """Metrics, weights and predictions are the same as in the uninterrupted run."""
    expected_out, expected = uninterrupted
    assert result["counts"] == expected["counts"]
    rows, expected_rows = result["details"]["history"], expected["details"]["history"]
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    metrics = ("loss", "accuracy", "auc", "val_loss", "val_accuracy", "val_auc", "learning_rate")
    for row, other in zip(rows, expected_rows, strict=True):
        assert [row[name] for name in metrics] == [other[name] for name in metrics]
        assert row["best"] == other["best"]
    (epoch, weights), (expected_epoch, expected_weights) = weights_of(out), weights_of(expected_out)
    assert epoch == expected_epoch
    for array, other in zip(weights, expected_weights, strict=True):
        np.testing.assert_array_equal(array, other)
    (keys, found), (expected_keys, expected_found) = probabilities(out), probabilities(expected_out)
    assert keys == expected_keys
    np.testing.assert_allclose(found, expected_found, atol=1e-6)


def wait_for(epoch, out, ended):
    """Wait until an epoch is reported, and its checkpoint is in the file that a restart reads."""
    report = out / "work" / "epochs" / f"{epoch:04d}.json"
    snapshot = out / "checkpoints" / "fit" / "checkpoint_manager_snapshot.json"
    deadline = time.monotonic() + DEADLINE_S
    while not (report.exists() and snapshot.exists() and f"{epoch:04d}" in snapshot.read_text()):
        assert not ended(), "the run ended before the kill"
        assert time.monotonic() < deadline, f"epoch {epoch} does not end"
        time.sleep(0.01)


def train_workers():
    """Return the process ids of the Ray Train workers that this process started."""
    parents, workers = {}, []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            name = (folder / "cmdline").read_bytes()
        except OSError:  # the process has ended
            continue
        parents[int(folder.name)] = int(fields[1])
        if name.startswith(b"ray::RayTrainWorker"):
            workers.append(int(folder.name))

    def is_descendant(pid):
        while pid in parents:
            if pid == os.getpid():
                return True
            pid = parents[pid]
        return False

    return sorted(filter(is_descendant, workers))


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are found in /proc")
def test_a_killed_worker(dataset, uninterrupted, tmp_path, ray_cluster):
    out = tmp_path / "out"
    killed, ended = [], threading.Event()

    def kill():
        wait_for(1, out, ended.is_set)
        workers = train_workers()
        killed.append(workers)
        os.kill(workers[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        result = train(out, dataset)
    finally:
        ended.set()
        killer.join()
    assert [len(workers) for workers in killed] == [2]
    restarts = result["details"]["restarts"]
    assert len(restarts["lost_workers"]) == 1
    assert any("workers failed" in warning for warning in result["warnings"])
    (epoch,) = restarts["from_epochs"]
    assert 1 <= epoch < EPOCHS
    assert_same(out, result, uninterrupted)


@pytest.mark.faults
def test_a_killed_driver(dataset, uninterrupted, tmp_path):
    out = tmp_path / "out"
    options = {"data": dataset, "out": out, **HOW}
    command = [sys.executable, "jobs/train.py"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    # A short path: paths of sockets are limited to 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:

        def start():
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | OWN_RAY | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": folder},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

        first = start()
        try:
            wait_for(2, out, lambda: first.poll() is not None)
        finally:
            first.kill()
            print(first.communicate()[0])
        done = sorted(file.name for file in (out / "work" / "epochs").iterdir())
        assert not (out / "work" / "train.done").exists(), "training ended before the kill"

        second = start()
        output, _ = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 0, output
    assert "resuming the run" in output
    for name in done:
        assert f"train epoch {int(name[:4])}/{EPOCHS}:" not in output, "already reported"
    assert f"train epoch {EPOCHS}/{EPOCHS}:" in output

    result = json.loads((out / "result.json").read_text())
    (epoch,) = result["details"]["restarts"]["from_epochs"]
    assert 2 <= epoch < EPOCHS
    assert result["details"]["restarts"]["lost_workers"] == []
    assert_same(out, result, uninterrupted)
