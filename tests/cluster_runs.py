"""Helpers for jobs on a cluster: wait, stop, and compare what they wrote."""

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy_engine import PACED
from ray_nodes import RAY, RayNodes

from visao_ray.core.storage import Location
from visao_ray.core.tables import matrix
from visao_ray.store.store import Store

DEADLINE_S = 450
#: Settings of an extraction of twenty seconds on two actors: long enough for faults.
EXTRACT = (*PACED, "--image-size=96", "--rows-per-block=16")
#: Settings of an extraction with a real network.
NETWORK = (
    "--backbone=mobilenetv2",
    "--weights=random",
    "--image-size=96",
    "--rows-per-block=16",
    "--batch-size=16",
)


def source(images: Location) -> tuple[str, str]:
    """Return the flags of a job that reads the images."""
    return ("--dataset=vazios", f"--data={images.uri}")


def wait_for(what: Callable[[], bool], run: "subprocess.Popen[str]") -> None:
    """Wait for a condition while the job runs."""
    end = time.monotonic() + DEADLINE_S
    while not what():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < end, "stuck"
        time.sleep(0.05)


def finish(run: "subprocess.Popen[str]") -> str:
    """Wait for the end of a job, which must succeed, and return its output."""
    try:
        output, _ = run.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        run.kill()
        output, _ = run.communicate()
        raise AssertionError(f"does not end:\n{output}") from None
    assert run.returncode == 0, output
    return output


def stop(nodes: RayNodes, run: "subprocess.Popen[str]") -> str:
    """Stop a job with `ray job stop`, and return its output."""
    assert run.stdout is not None
    name = next(line for line in run.stdout if "[submit]" in line).split()[1]
    command = [RAY, "job", "stop", "--address", nodes.address, name]
    subprocess.run(command, env=nodes.environment, check=True, timeout=60, capture_output=True)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 143, output
    return output


def committed(out: Location) -> int:
    """Return the number of images of an extraction whose vectors are committed."""
    store = Store.find(out.join("store").uri)
    names = list(store.extractors()) if store is not None else []
    if store is None or not names or not store.vectors(names[0]).exists():
        return 0
    return store.vectors(names[0]).latest().count()


def result(out: Location) -> dict[str, Any]:
    """Return the result.json of a finished run."""
    found: dict[str, Any] = json.loads(out.join("result.json").read_bytes())
    return found


def features(out: Location) -> dict[str, np.ndarray]:
    """Return images and vectors of a store, sorted by key, and check that none is there twice."""
    store = Store.open(out.join("store").uri)
    images = store.images.latest().read(["key", "content_id", "label", "split", "status"])
    images = images.sort_by("key")
    keys = images["key"].to_pylist()
    assert len(keys) == len(set(keys)) > 0
    assert set(images["status"].to_pylist()) == {"ok"}
    table = store.vectors(store.the_extractor(None)).latest().read(["content_id", "avg", "max"])
    place = {content: row for row, content in enumerate(table["content_id"].to_pylist())}
    assert len(place) == table.num_rows
    rows = [place[content] for content in images["content_id"].to_pylist()]
    assert len(set(rows)) == len(place)
    vectors = [matrix(table[pool])[rows] for pool in ("avg", "max")]
    return {
        "key": np.array(keys),
        "label": np.array(images["label"].to_pylist()),
        "split": np.array(images["split"].to_pylist()),
        "vectors": np.concatenate(vectors, axis=1),
    }


def same_features(out: Location, calm: Location) -> None:
    """Check that nothing is lost or duplicated: the same vectors, and the same counts."""
    found, expected = features(out), features(calm)
    for name in ("key", "label", "split"):
        assert (found[name] == expected[name]).all()
    assert np.abs(found["vectors"] - expected["vectors"]).max() <= 1e-5
    counts = result(out)["counts"]
    assert counts["store"] == result(calm)["counts"]["store"]
    assert counts["listed"] == counts["new"] + counts["known"] == len(found["key"])
    assert counts["new"] == counts["ok"]
    assert not list(out.join("work").files())


def extracted(nodes: RayNodes) -> tuple[int, float]:
    """Return the images that went through the network on all nodes so far, and the seconds."""
    lines = []
    for log in nodes.folder.glob("*/session_2*/logs/worker-*.err"):
        lines += re.findall(r'^\{"images".*\}$', log.read_text(errors="replace"), re.MULTILINE)
    blocks = [json.loads(line) for line in lines]
    return sum(line["images"] for line in blocks), sum(line["seconds"] for line in blocks)


def processes(node_processes: list[int], name: str) -> list[int]:
    """Return the processes of Ray workers whose title contains a name."""
    found = []
    for process in node_processes:
        try:
            title = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
        if title.startswith("ray::") and name in title:
            found.append(process)
    return sorted(found)
