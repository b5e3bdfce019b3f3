"""Faults in the middle of a job: nothing is lost or duplicated, and the result is the same."""

import os
import signal
import time
from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest
from cluster_runs import (
    EXTRACT,
    committed,
    extracted,
    finish,
    processes,
    result,
    same_features,
    source,
    wait_for,
)

IMAGES = 1024
SWEEP = (
    "--trials=8",
    "--epochs=6",
    "--reduction-factor=1",
    "--finalists=0",
    # The file of the plugin is copied to the nodes, which compute its metric.
    "--plugin=examples/add_metric.py",
    "--objective=matthews_correlation",
)
TRAIN = (
    "--family=simple_cnn",
    "--image-size=80",
    "--epochs=4",
    "--batch-size=32",
    "--workers=2",
    "--limit=400",
)


def rows(place):
    return pq.read_table(place.path, filesystem=place.filesystem)


class Extraction:
    """A run of the extract job, and the images that it extracts twice because of faults."""

    def __init__(self, site, images, name):
        self.out = site.place(f"cluster/{name}")
        self.flags = (*source(images), f"--out={self.out.uri}", *EXTRACT)
        self._site, self._name = site, name
        self._began, self._before = time.monotonic(), extracted(site.nodes)
        self._at_risk = 0
        self.run = site.nodes.begin("extract", *self.flags)
        wait_for(lambda: committed(self.out) >= IMAGES // 4, self.run)

    def _extracted(self):
        return [
            now - then for now, then in zip(extracted(self._site.nodes), self._before, strict=True)
        ]

    @contextmanager
    def loss(self):
        """Count the images at risk by a kill in this block: computed and not committed."""
        time.sleep(2)  # after a commit, so that some are
        safe = committed(self.out)
        yield
        self._at_risk = self._extracted()[0] - safe

    def ended_as(self, calm):
        """Check the store, and that no committed image was extracted again.

        If no process died, no image is extracted again.
        """
        same_features(self.out, calm)
        images, seconds = self._extracted()
        again = images - IMAGES
        print(
            f"\n{self._name}: {again} images extracted again (about "
            f"{seconds * again / images:.1f} s of an actor), {self._at_risk} were at risk, "
            f"{time.monotonic() - self._began:.0f} s"
        )
        assert 0 <= again <= self._at_risk


def test_a_lost_node_in_extraction(site, images, calm):
    extraction = Extraction(site, images, "lost-node")
    with extraction.loss():
        site.nodes.kill("worker2")
    finish(extraction.run)
    extraction.ended_as(calm)


def test_a_lost_actor(site, images, calm):
    extraction = Extraction(site, images, "lost-actor")
    nodes = site.nodes.nodes.values()
    actors = [one for node in nodes for one in processes(node.processes(), "ModelActor")]
    assert len(actors) == 2
    with extraction.loss():
        os.kill(actors[0], signal.SIGKILL)
    finish(extraction.run)
    extraction.ended_as(calm)


def test_a_store_that_is_restarted(site, images, calm):
    extraction = Extraction(site, images, "store-restart")
    site.store.kill()
    time.sleep(35)  # longer than a lease lasts without renewal
    site.store.start()
    finish(extraction.run)
    extraction.ended_as(calm)


def test_a_slow_and_failing_store(site, images, calm):
    before = site.faults.count()
    with site.faults.met(slow_down=0.06, reset=0.06, stall=0.005):
        extraction = Extraction(site, images, "failing-store")
        finish(extraction.run)
    met = {name: count - before.get(name, 0) for name, count in site.faults.count().items()}
    print(f"requests that met a fault: {met}")
    assert {"slow_down", "reset", "stall"} <= met.keys()
    assert sum(met.values()) >= 100
    extraction.ended_as(calm)


def test_a_lost_head(site, images, calm):
    extraction = Extraction(site, images, "lost-head")
    with extraction.loss():
        for name in ("head", "worker1", "worker2"):
            site.nodes.kill(name)
    extraction.run.kill()
    extraction.run.communicate()
    site.nodes.start("head")
    site.nodes.wait()
    for name in ("worker1", "worker2"):
        site.nodes.start(name, "--num-cpus=1")
    site.nodes.wait()
    again = site.nodes.submit("extract", *extraction.flags)
    assert again.returncode == 0, again.stdout
    assert 256 <= result(extraction.out)["counts"]["known"] < IMAGES
    extraction.ended_as(calm)


def test_a_lost_node_in_a_sweep(site, calm):
    def sweep(name, disturb):
        out = site.place(f"cluster/{name}")
        store = f"--store={calm.join('store').uri}"
        run = site.nodes.begin("sweep", store, f"--out={out.uri}", *SWEEP)
        if disturb:
            wait_for(lambda: len(out.join("tune", "trials").children()) >= 2, run)
            site.nodes.kill("worker2")
        finish(run)
        found = result(out)
        assert found["details"]["winner"]["objective"] == pytest.approx(
            found["metrics"]["val"]["matthews_correlation"]["value"], abs=1e-9
        )
        assert out.join("head.keras").exists()
        table = rows(out.join("trials")).sort_by("number")
        return table.drop_columns([name for name in table.column_names if "seconds" in name])

    undisturbed = sweep("calm-sweep", disturb=False)
    began = time.monotonic()
    found = sweep("lost-node-sweep", disturb=True)
    print(f"\nsweep with a lost node: {time.monotonic() - began:.0f} s")
    columns = [
        name for name in undisturbed.column_names if name != "trial_id"
    ]  # random in each run
    assert found["error"].to_pylist() == [None] * 8
    assert found.select(columns).to_pylist() == undisturbed.select(columns).to_pylist()
    assert set(found["status"].to_pylist()) == {"ok"}


def test_a_lost_node_in_training(site, images):
    out = site.place("cluster/lost-node-train")
    began = time.monotonic()
    run = site.nodes.begin("train", *source(images), f"--out={out.uri}", *TRAIN)
    wait_for(lambda: out.join("work", "epochs", "0002.json").exists(), run)
    hosts = [
        name
        for name, node in site.nodes.nodes.items()
        if processes(node.processes(), "RayTrainWorker")
    ]
    site.nodes.kill(hosts[0])
    finish(run)
    found = result(out)
    restarts = found["details"]["restarts"]
    print(f"\ntraining with a lost node: {time.monotonic() - began:.0f} s, {restarts}")
    assert [row["epoch"] for row in found["details"]["history"]] == [1, 2, 3, 4]
    assert restarts["lost_workers"]
    assert found["counts"]["ok"] == 400
    assert max(found["details"]["export"]["differences"].values()) <= 1e-5
    evaluated = sum(found["metrics"][split]["accuracy"]["n"] for split in ("val", "test"))
    assert rows(out.join("predictions")).num_rows == evaluated
    assert out.join("savedmodel/1/saved_model.pb").exists()
    assert out.join("checkpoints/fit/0004/model.keras").exists()
    assert any("events" in file.uri for file in out.join("tensorboard").files())
