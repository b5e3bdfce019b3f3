"""Where seconds went: nothing is lost or counted twice on the way from a row to result.json."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from visao_ray import stages, tables
from visao_ray.backend import import_keras
from visao_ray.datasets.vazios import VAZIOS
from visao_ray.evaluation.inference import Predictor
from visao_ray.features.pipeline import Loading, load
from visao_ray.forecast import Nodes
from visao_ray.models import saved
from visao_ray.models.saved import ModelAbout
from visao_ray.runs import execute
from visao_ray.settings import ExtractSettings
from visao_ray.sink import TablesSink
from visao_ray.stages import SPENT, Stages
from visao_ray.storage import locate
from visao_ray.tables import TABLE

LABELS = {"run": "0", "verb": "test", "step": "test", "dataset": "vazios"}
NODES = Nodes(1, loaders=2, actors=1, writers=2)


def manifest_row(path: Path, split: str) -> dict:
    row = dict.fromkeys(("key", "group", "content_id"), path.name)
    row |= {"uri": str(path), "label": "vazio", "split": split}
    return {**row, "status": "ok", "error": None}


def test_a_loader_tells_what_its_block_cost(scans, tmp_path):
    files = sorted(scans.rglob("*.jpg"))[:4]
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 but no more")
    rows = [manifest_row(file, "train" if n < 2 else "val") for n, file in enumerate(files)]
    rows += [manifest_row(broken, "val"), manifest_row(missing, "train")]
    rows.append({**manifest_row(missing, "val"), "status": "error", "error": "list: odd: no image"})
    loading = Loading(image_size=32, resize="stretch", recipe="G1", views=2, seed=0)
    start = time.perf_counter()
    loaded = load(pa.Table.from_pylist(rows), loading)
    seconds = time.perf_counter() - start
    assert loaded.num_rows == 7 + 2 * 2
    images, read_bytes, block_bytes, read, decode, wait, extract = tables.matrix(loaded[SPENT]).T
    views = np.array([view or 0 for view in loaded["view"].to_pylist()])
    assert (images == (views == 0)).all()
    sizes = sum(file.stat().st_size for file in [*files, broken])
    assert read_bytes.sum() == sizes
    assert block_bytes.sum() == (4 + 2 * 2) * 32 * 32 * 3
    assert 0 < read.sum() < seconds
    assert 0 < decode.sum() < seconds
    assert 0.5 * seconds < read.sum() + decode.sum() < seconds
    assert wait.sum() == extract.sum() == 0


def test_an_actor_adds_its_seconds_and_the_sink_sums_them():
    spent = stages.loaded([1, 3, 1], [(10, 5, 0.3, 0.1)] * 3, seconds=0.6)
    column = pa.chunked_array([stages.extracted(pa.chunked_array([spent]), 0.5, 2.0)])
    names = ["features", "features", "features", "features", "errors"]
    rows = pa.table({"key": ["a", "b", "b", "b", "c"], TABLE: names, SPENT: column})
    found = stages.written(rows, seconds=0.25, now=100.0)
    assert (found.ok, found.errors, found.blocks) == (2, 1, 1)
    assert (found.read_bytes, found.block_bytes) == (30, 15)
    assert found.read == pytest.approx(0.45)  # three quarters of the 0.6 s of the block
    assert found.decode == pytest.approx(0.15)
    assert found.wait == pytest.approx(0.5)
    assert found.extract == pytest.approx(2.0)
    assert found.write == 0.25
    assert found.busy == pytest.approx(0.8)
    assert found.costs().extract == pytest.approx(2 / 3)

    both = stages.total([found, replace(found, first=104.0, last=104.0)])
    assert (both.images, both.blocks, both.first, both.last) == (6, 2, 100.0, 104.0)
    assert both.images_per_second == pytest.approx(3 / 4)
    assert stages.total([]) == Stages()


def test_empty_blocks_pass():
    assert len(stages.loaded([], [], 0.1)) == 0
    empty = pa.chunked_array([], stages.FIELD.type)
    assert len(stages.extracted(empty, 0.1, 0.1)) == 0


def test_an_image_in_two_tables_counts_once(scans, tmp_path):
    """A model that classifies and embeds makes two rows of an image."""
    keras = import_keras()
    pixels = keras.Input((32, 32, 3), dtype="uint8", name="pixels")
    embedding = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(pixels))
    outputs = {"embedding": embedding, "probability": keras.layers.Softmax()(embedding)}
    about = ModelAbout(VAZIOS, "tiny", ("a", "b", "c"), "images", {}, image_size=32, epoch=1)
    model = locate(str(tmp_path / "model.keras"))
    model.write_bytes(saved.pack(keras.Model(pixels, outputs), about))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 but no more")
    files = [*sorted(scans.rglob("*.jpg"))[:5], broken]
    loading = Loading(image_size=32, resize="stretch", recipe="none", views=0, seed=0)
    block = load(pa.Table.from_pylist([manifest_row(file, "val") for file in files]), loading)
    rows = Predictor(model, 4, LABELS)(block)
    assert sorted(rows[TABLE].to_pylist()) == (
        ["embeddings"] * 5 + ["errors"] + ["predictions"] * 5
    )
    found = stages.written(rows, seconds=0.1, now=1.0)
    assert (found.ok, found.errors) == (5, 1)
    assert found.read_bytes == sum(file.stat().st_size for file in files)
    assert found.extract > 0


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, "busy 90 % of the time: more actors"),
        ({"wait": 100.0, "decode": 200.0}, "busy 33 % of the time: more CPUs"),
        ({"wait": 100.0, "read": 200.0}, "storage that reads faster"),
        ({"wait": 100.0, "write": 80.0}, "rows to be written"),
        ({"wait": 100.0}, "loaders could keep up"),
        ({"blocks": 3}, "too few images"),
        ({"extract": 0.0, "wait": 0.0}, "more CPUs"),
    ],
)
def test_the_summary_names_what_would_help(changed, told):
    usual = Stages(ok=1000, blocks=20, read=2, decode=9, extract=50, wait=50 / 9, write=2)
    line = stages.summary(replace(usual, **changed), NODES)
    assert told in line
    if not changed:
        assert line.startswith("of each image's 63 ms: read 2.0, decode 9.0, extract 50, write 2.0")
    if changed.get("extract") == 0:
        assert "extract" not in line
        assert "actors" not in line


def test_the_result_tells_stages_and_the_run(extracted):
    result = json.loads((extracted / "result.json").read_text())
    told = result["details"]["stages"]["extract"]
    assert (told["ok"], told["errors"], told["blocks"]) == (40, 0, 5)
    assert told["read_bytes"] == sum(
        (extracted.parent / file).stat().st_size for file in _files(extracted)
    )
    assert told["block_bytes"] == 40 * 32 * 32 * 3
    assert 0 < told["start"] < result["timings"]["extract"]
    spent = sum(told[name] for name in ("read", "decode", "extract", "write"))
    slots = told["slots"]["loaders"] + told["slots"]["actors"] + told["slots"]["writers"]
    assert 0 < spent < slots * result["timings"]["extract"]
    assert told["images_per_second"] > result["throughput"]["images_per_second"]
    assert result["run"] == json.loads((extracted / "run.json").read_text())["run"]
    assert len(result["run"]) == 8
    schema = tables.open_table(locate(f"{extracted}/features"), "features").schema
    assert SPENT not in schema.names


def test_a_run_keeps_its_id_when_it_goes_on(tmp_path):
    settings = ExtractSettings(dataset="vazios", data="in", out=f"{tmp_path}/out")
    seen = []

    def interrupted(_settings, run):
        seen.append(run.labels("extract", "vazios"))
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            execute(settings, interrupted)
    result = execute(settings, lambda _settings, run: seen.append(run.labels("extract", "vazios")))
    assert seen[0] == seen[1] == seen[2]
    assert result["run"] == seen[0]["run"]
    other = settings.model_copy(update={"out": f"{tmp_path}/other"})
    assert execute(other, lambda *_: None)["run"] != result["run"]


def _files(extracted: Path) -> list[str]:
    listing = locate(f"{extracted}/listing/manifest")
    return [
        uri
        for batch in tables.batches(listing, "manifest", ["uri"])
        for uri in batch["uri"].to_pylist()
    ]


class LostOnce(TablesSink):
    """Its process is lost once, when the files of a block are written already."""

    mark: str

    def _write_parquet_files(self, *args, **kwargs):
        super()._write_parquet_files(*args, **kwargs)
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os._exit(1)


def cost(block: pa.Table) -> pa.Table:
    count = block.num_rows
    keys = pa.array([str(one) for one in block["id"].to_pylist()])
    spent = stages.loaded([1] * count, [(7, 3, 0.1, 0.1)] * count, seconds=0.5)
    table = pa.array(["errors"] * count)
    return pa.table({"key": keys, TABLE: table, SPENT: spent})


def test_what_is_done_twice_counts_once(ray_cluster, tmp_path):
    import ray

    schema = pa.schema([("key", pa.string())])
    sink = LostOnce(locate(str(tmp_path)), {"errors": schema}, LABELS)
    sink.mark = str(tmp_path / "lost")
    rows = ray.data.range(40, override_num_blocks=4)
    rows.map_batches(cost, batch_size=None, batch_format="pyarrow").write_datasink(sink)
    assert Path(sink.mark).exists()
    assert (sink.stages.errors, sink.stages.ok, sink.stages.blocks) == (40, 0, 4)
    assert sink.stages.read_bytes == 280
    assert sink.stages.read + sink.stages.decode == pytest.approx(4 * 0.5)
