"""Profiling: no cost is lost or counted twice between a row and result.json."""

import json
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from visao_ray.core import profiling, tables
from visao_ray.core.capacity import Nodes
from visao_ray.core.profiling import SPENT, Stages
from visao_ray.core.run import execute
from visao_ray.core.storage import locate
from visao_ray.datasets.listing import APPEND, LISTING
from visao_ray.inference.loading import Loading, Unit, load_unit
from visao_ray.inference.lookup import ContentLookup
from visao_ray.store.store import Store
from visao_ray.store.table import Table, append, write_fragments
from visao_ray.tuning.settings import SweepSettings

NODES = Nodes(1, loaders=2, actors=1, writers=2)


def test_a_loader_records_the_costs_of_its_block(scans, tmp_path, ray_cluster):
    import ray

    files = sorted(scans.rglob("*.jpg"))[:4]
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 but no more")
    listed = pa.Table.from_pylist(
        [{"key": str(path), "row": APPEND} for path in [*files, broken, missing]], schema=LISTING
    )
    place = Table(locate(str(tmp_path / "listing.lance")))
    place.create(LISTING)
    at = append(place.latest(), write_fragments(place.uri, LISTING, listed))
    loading = Loading(32, "stretch", "G1", (1, 2))
    lookup = ray.remote(ContentLookup).options(num_cpus=0).remote(None, 2)
    ray.get(lookup.look_up.remote([], []))  # it has started
    start = time.perf_counter()
    loaded = load_unit(pa.table({"unit": [0]}), Unit(at, 8, loading, (lookup,), "", 0))
    seconds = time.perf_counter() - start
    assert loaded.num_rows == 4 * 2 + 2
    images, read_bytes, block_bytes, read, decode, wait, extract = tables.matrix(loaded[SPENT]).T
    firsts = np.array([image != "stay" for image in loaded["image"].to_pylist()])
    assert (images == firsts).all()
    sizes = sum(file.stat().st_size for file in [*files, broken])
    assert read_bytes.sum() == sizes
    assert block_bytes.sum() == 4 * 2 * 32 * 32  # scans are grey: one channel
    assert 0 < read.sum() < seconds
    assert 0 < decode.sum() < seconds
    assert 0.5 * seconds < read.sum() + decode.sum() < seconds
    assert wait.sum() == extract.sum() == 0


def test_an_actor_adds_its_seconds_and_the_writer_sums_them():
    spent = profiling.loader_costs([1, 3, 1], [(10, 5, 0.3, 0.1)] * 3, seconds=0.6)
    column = pa.chunked_array([profiling.add_actor_costs(pa.chunked_array([spent]), 0.5, 2.0)])
    assert profiling.first_views(column).tolist() == [True, True, False, False, True]
    failed = pa.chunked_array([[False, False, False, False, True]])
    found = profiling.sum_costs(column, failed, write_bytes=100, seconds=0.25, now=100.0)
    assert found.write_bytes == 100
    assert (found.ok, found.errors, found.blocks) == (2, 1, 1)
    assert (found.read_bytes, found.block_bytes) == (30, 15)
    assert found.read == pytest.approx(0.45)  # three quarters of the 0.6 s of the block
    assert found.decode == pytest.approx(0.15)
    assert found.wait == pytest.approx(0.5)
    assert found.extract == pytest.approx(2.0)
    assert found.write == 0.25
    assert found.busy == pytest.approx(0.8)
    assert found.costs().extract == pytest.approx(2 / 3)

    both = profiling.sum_stages([found, replace(found, first=104.0, last=104.0)])
    assert (both.images, both.blocks, both.first, both.last) == (6, 2, 100.0, 104.0)
    assert both.images_per_second == pytest.approx(3 / 4)
    assert profiling.sum_stages([]) == Stages()


def test_empty_blocks_pass():
    assert len(profiling.loader_costs([], [], 0.1)) == 0
    empty = pa.chunked_array([], profiling.FIELD.type)
    assert len(profiling.add_actor_costs(empty, 0.1, 0.1)) == 0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, "busy 90 % of the time: more actors"),
        ({"wait": 100.0, "decode": 200.0}, "busy 33 % of the time: more CPUs"),
        ({"wait": 100.0, "read": 200.0}, "storage that reads faster"),
        ({"wait": 100.0, "write": 80.0}, "writing rows limits"),
        ({"wait": 100.0}, "loaders could keep up"),
        ({"blocks": 3}, "too few images"),
        ({"extract": 0.0, "wait": 0.0}, "more CPUs"),
    ],
)
def test_the_summary_names_what_would_help(changed, says):
    usual = Stages(ok=1000, blocks=20, read=2, decode=9, extract=50, wait=50 / 9, write=2)
    line = profiling.summary(replace(usual, **changed), NODES)
    assert says in line
    if not changed:
        assert line.startswith(
            "each image took 63 ms: read 2.0, decode 9.0, extract 50, write 2.0; actors were busy"
        )
    if changed.get("extract") == 0:
        assert "extract" not in line
        assert "actors" not in line


def test_the_result_has_stages_and_the_run(store, scans):
    result = json.loads((store.parent / "extract" / "result.json").read_text())
    stages = result["details"]["stages"]["extract"]
    assert (stages["ok"], stages["errors"], stages["blocks"]) == (40, 0, 1)
    assert stages["read_bytes"] == sum(file.stat().st_size for file in scans.rglob("*.jpg"))
    assert stages["block_bytes"] == 40 * 32 * 32
    assert 0 < stages["start"] < result["timings"]["extract"]
    spent = sum(stages[name] for name in ("read", "decode", "extract", "write"))
    slots = stages["slots"]["loaders"] + stages["slots"]["actors"] + stages["slots"]["writers"]
    assert 0 < spent < slots * result["timings"]["extract"]
    assert len(result["run"]) == 8
    found = Store.open(str(store))
    schema = found.vectors(found.the_extractor(None)).latest().schema
    assert SPENT not in schema.names


def test_a_resumed_run_keeps_its_id(tmp_path):
    settings = SweepSettings(store=["in"], out=f"{tmp_path}/out")
    seen = []

    def interrupted(_settings, run):
        seen.append(run.labels("sweep", "vazios"))
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            execute(settings, interrupted)
    result = execute(settings, lambda _settings, run: seen.append(run.labels("sweep", "vazios")))
    assert seen[0] == seen[1] == seen[2]
    assert result["run"] == seen[0]["run"]
    other = settings.model_copy(update={"out": f"{tmp_path}/other"})
    assert execute(other, lambda *_: None)["run"] != result["run"]
