"""Killed at any moment, an extraction ends as if nothing had happened."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pytest

from visao_ray.bases.scanner import BaseRecipe, encode, plan, render

REPOSITORY = Path(__file__).parents[2]
IMAGES = 1024
BLOCK = 16  # images
KILLS = 3
ACTORS = 1


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,024 different small scans: 64 renders, each brightened sixteen ways."""
    folder = tmp_path_factory.mktemp("dataset")
    recipe = BaseRecipe(base="vazios", images=64, seed=3)
    for planned in plan(recipe):
        scan = render("vazios", planned.true_label, planned.index, 3, planned.difficulty)
        for step in range(IMAGES // 64):
            target = folder / planned.label / f"{planned.index:04d}-{step:02d}.jpg"
            target.parent.mkdir(exist_ok=True)
            darker = (scan[::2, ::2] * (1 - step / 40)).astype(np.uint8)
            target.write_bytes(encode(darker, 80))
    return folder


def start(arguments: list[str], ray_logs: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_TMPDIR": str(ray_logs)}
    return subprocess.Popen(
        [sys.executable, "jobs/extract.py", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def committed(out: Path) -> int:
    folder = out / "work" / "committed"
    found = list(folder.glob("*.parquet")) if folder.exists() else []
    return sum(not file.name.endswith(".pending.parquet") for file in found)


def extracted(ray_logs: Path) -> int:
    """Images that went through the network, in all runs, killed ones too: from the actors' logs."""
    logs = ray_logs.glob("ray/session_2*/logs/worker-*.err")
    lines = re.findall(
        r'^\{"extracted".*\}$', "\n".join(log.read_text() for log in logs), re.MULTILINE
    )
    return sum(json.loads(line)["extracted"] for line in lines)


def read(out: Path) -> dict[str, np.ndarray]:
    table = pads.dataset(out / "features").to_table().sort_by("key")
    width = table.schema.field("avg").type.list_size
    vectors = [table[pool].combine_chunks().flatten().to_numpy() for pool in ("avg", "max")]
    return {
        "key": np.array(table["key"].to_pylist()),
        "split": np.array(table["split"].to_pylist()),
        "vectors": np.concatenate([flat.reshape(-1, width) for flat in vectors], axis=1),
    }


@pytest.mark.faults
def test_three_kills_leave_no_trace(images: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest"
    arguments = ["--dataset", "vazios", "--data", str(images), "--out", str(manifest)]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    made = [sys.executable, "jobs/manifest.py", *arguments]
    subprocess.run(made, cwd=REPOSITORY, env=environment, check=True, timeout=120)

    def command(out: Path) -> list[str]:
        backbone = ["--backbone", "mobilenetv2", "--weights", "random", "--image-size", "128"]
        blocks = ["--rows-per-block", str(BLOCK), "--batch-size", str(BLOCK)]
        table = ["--manifest", str(manifest / "manifest"), "--out", str(out)]
        return [*table, *backbone, *blocks, "--workers", str(ACTORS)]

    # Ray's sockets lie below this folder, and a socket's path may have 107 characters at most.
    logs = Path(f"/tmp/vr{os.getpid()}")
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    undisturbed = start(command(calm), logs)
    output, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, output
    once = extracted(logs)
    assert once == IMAGES

    moments = random.Random(time.time_ns())
    blocks = IMAGES // BLOCK
    aims = [moments.randrange(blocks * n // 4, blocks * (n + 1) // 4) for n in range(KILLS)]
    for aim in aims:
        run = start(command(shaken), logs)
        deadline = time.monotonic() + 240
        while committed(shaken) < max(aim, 1):
            assert run.poll() is None, run.communicate()[0]
            assert time.monotonic() < deadline, f"stuck at {committed(shaken)} of {aim} blocks"
            time.sleep(0.01)
        time.sleep(moments.random() * 0.3)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        assert not (shaken / "result.json").exists(), "finished before it was killed"
    print(f"killed after about {aims} of {blocks} blocks")

    last = start(command(shaken), logs)
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    assert "going on with the run" in output

    expected, found = read(calm), read(shaken)
    assert len(found["key"]) == len(set(found["key"])) == IMAGES
    assert (found["key"] == expected["key"]).all()
    assert (found["split"] == expected["split"]).all()
    assert np.abs(found["vectors"] - expected["vectors"]).max() <= 1e-5
    again = extracted(logs) - once - IMAGES
    print(f"{again} images were extracted again")
    assert 0 <= again <= KILLS * 2 * BLOCK * ACTORS

    result = json.loads((shaken / "result.json").read_text())
    assert result["counts"]["ok"] == IMAGES
    assert not (shaken / "work").exists()
