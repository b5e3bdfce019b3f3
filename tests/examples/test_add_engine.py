"""The example of an engine extracts; no file of the library contains it."""

import json

import numpy as np
import pytest
from job_runs import run_job

from visao_ray.core import tables
from visao_ray.images.decode import decode
from visao_ray.inference.engines.registry import ENGINES
from visao_ray.store import schemas
from visao_ray.store.store import Store

PLUGIN = ("--plugin", "examples/add_engine.py", "--engine", "thumbnail")
CELLS = 8


def thumbnails(pixels):
    """Return the expected vectors of one image, uint8[S, S, 3], computed cell by cell."""
    grey = pixels.astype(np.float64).mean(axis=-1) / 255
    maps = (grey, np.hypot(*np.gradient(grey)))
    side = len(grey) // CELLS
    cells = [
        one[row : row + side, column : column + side]
        for one in maps
        for row in range(0, len(grey), side)
        for column in range(0, len(grey), side)
    ]
    return [cell.mean() for cell in cells], [cell.max() for cell in cells]


@pytest.mark.slow
def test_the_engine_extracts(scans, tmp_path, same_ray):
    place = ["--dataset", "vazios", "--data", str(scans), "--store", str(tmp_path / "store")]
    flags = [*PLUGIN, *place, "--limit", "6", "--out", str(tmp_path / "out")]
    run = run_job("extract", *flags, environment=same_ray)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["counts"]["ok"], result["counts"]["errors"]) == (6, 0)
    assert result["details"]["engine"] == result["settings"]["engine"] == "thumbnail"
    assert result["details"]["metadata"]["engine"] == "thumbnail"
    name = result["inputs"]["extractor"]
    assert name.startswith("thumbnail-64-avgmax-f32-")

    store = Store.open(str(tmp_path / "store"))
    assert store.the_extractor(None) == name
    vectors = store.vectors(name).latest()
    assert schemas.outputs(vectors.schema) == {"avg": 128, "max": 128}
    assert schemas.description(vectors.schema) == result["details"]["metadata"]
    found = vectors.open().to_table()
    keys = {row["content_id"]: row["key"] for row in images_of(store)}
    averages, maxima = (tables.matrix(found[name]) for name in ("avg", "max"))
    for row, content in enumerate(found["content_id"].to_pylist()):
        with open(keys[content], "rb") as file:
            expected = thumbnails(decode(file.read(), 64, "stretch"))
        np.testing.assert_allclose(averages[row], expected[0], atol=1e-5)
        np.testing.assert_allclose(maxima[row], expected[1], atol=1e-5)
    assert averages.std(axis=0).max() > 0
    assert "thumbnail" not in ENGINES


def images_of(store):
    return store.images.latest().open().to_table().to_pylist()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--backbone vgg16", "--backbone is not supported by --engine thumbnail"),
        ("--engine fingernail", "--engine fingernail: unknown engine; there are keras, thumbnail"),
    ],
)
def test_flags_that_the_engine_refuses(arguments, says, scans, tmp_path):
    place = ["--dataset", "vazios", "--data", str(scans), "--store", str(tmp_path / "store")]
    run = run_job("extract", *PLUGIN, *arguments.split(), *place)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {says}"), run.stderr
    assert run.stderr.count("\n") == 1
