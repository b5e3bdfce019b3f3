"""Jobs on a real S3 server: the same tables as on a disk, and no secret in any file."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from job_runs import ROOT
from s3_server import SECRET

from visao_ray.core import tables
from visao_ray.core.run import execute
from visao_ray.core.storage import Location, locate
from visao_ray.features.extract import extract_images
from visao_ray.features.settings import ExtractSettings
from visao_ray.store.store import Store

WARNING = re.compile(r"(\S+?):\d+: \w*(?:Deprecat|Future)\w*Warning: (.*)")
#: Interfaces of Ray, Keras and others that the jobs use; warnings about these are caused by us.
CALLED = re.compile(
    r"map_batches|map_groups|read_parquet|from_items|repartition|write_datasink|write_parquet"
    r"|iter_batches|ActorPoolStrategy|concurrency|CheckpointConfig|ParquetDatasink|resources"
    r"|Tuner|TuneConfig|RunConfig|FailureConfig|tune\.report|train\.report|PopulationBased|ASHA"
    r"|load_model|predict_on_batch|save\(|S3FileSystem|utcnow|get_current"
)


def table(place: Location) -> dict[str, dict]:
    """Read the rows of a folder of Parquet files by key."""
    rows = pq.read_table(place.path, filesystem=place.filesystem).to_pylist()
    found = {row["key"]: row for row in rows}
    assert len(found) == len(rows) > 0
    return found


def images(store: Store) -> dict[str, dict]:
    """Read the rows of `images` by the name of the file."""
    columns = ["key", "content_id", "bytes", "width", "label", "group", "split", "status"]
    rows = store.images.latest().read(columns).to_pylist()
    found = {"/".join(row["key"].split("/")[-2:]): row for row in rows}
    assert len(found) == len(rows) > 0
    return found


def same_vectors(one: Store, other: Store) -> None:
    """Check that two stores have the same contents with the same vectors."""
    (first, second) = (
        {
            row["content_id"]: row
            for row in store.vectors(store.the_extractor(None))
            .latest()
            .read(["content_id", "avg", "max"])
            .to_pylist()
        }
        for store in (one, other)
    )
    assert first.keys() == second.keys()
    for content, row in first.items():
        for pool in ("avg", "max"):
            assert np.abs(np.subtract(row[pool], second[content][pool])).max() <= 1e-5


@pytest.fixture(scope="module")
def out(s3_pipeline) -> Location:
    assert s3_pipeline.process.returncode == 0, s3_pipeline.process.stderr[-3000:]
    return locate(s3_pipeline.out)


def test_the_same_store_as_on_a_disk(out, store):
    here, there = Store.open(str(store)), Store.open(out.join("store").uri)
    local, remote = images(here), images(there)
    assert local.keys() == remote.keys()
    for name, row in local.items():
        assert remote[name]["key"].startswith("s3://")
        assert {**row, "key": ""} == {**remote[name], "key": ""}
    same_vectors(here, there)
    counts = [
        json.loads(place.join("result.json").read_bytes())["counts"]
        for place in (locate(f"{store.parent}/extract"), out.join("extract"))
    ]
    assert counts[0] == counts[1]


def test_from_s3_to_a_store_on_a_disk(out, store, tmp_path, ray_cluster):
    used = json.loads(out.join("result.json").read_bytes())["settings"]
    settings = ExtractSettings(
        dataset="vazios",
        data=used["data"],
        store=str(tmp_path / "store"),
        weights=used["weights"],
        batch_size=5,
    )
    assert execute(settings, extract_images)["counts"]["ok"] == 40
    same_vectors(Store.open(str(store)), Store.open(str(tmp_path / "store")))


@pytest.mark.slow
def test_a_whole_pipeline(out):
    result = json.loads(out.join("result.json").read_bytes())
    assert result["status"] == "finished"
    assert result["counts"]["listed"] == result["counts"]["ok"] == 40
    for split in ("val", "test"):
        accuracy = result["metrics"][split]["accuracy"]
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
        assert accuracy["n"] == sum(result["counts"]["store"]["by_split"][split].values())
        assert "recall" in result["metrics"][split]["per_class"]["nvazio"]
    page = out.join("report.html").read_bytes().decode()
    assert page.lstrip().lower().startswith("<!doctype html")
    assert "gate" in page  # the name of the TOML file
    assert result["inputs"]["evaluate"]["dataset"]["classes"] == ["nvazio", "vazio"]
    assert "data:image/" in page
    predictions = table(out.join("evaluate/predictions"))
    assert len(predictions) == sum(result["metrics"][s]["accuracy"]["n"] for s in ("val", "test"))
    assert tables.rows(out.join("sweep/trials")) == 2
    assert out.join("sweep/head.keras").exists()
    assert not [file.uri for file in out.files() if "/work/" in file.uri]


def test_no_secret_is_written(s3_pipeline, out):
    output = s3_pipeline.process.stdout + s3_pipeline.process.stderr
    assert "finished in" in output
    assert SECRET not in output
    files = list(out.files())
    assert sum(file.uri.endswith(".json") for file in files) >= 8
    for file in files:
        assert SECRET.encode() not in file.read_bytes(), file.uri


def test_no_secret_reaches_rays_logs(s3_pipeline):
    logs = [path for path in s3_pipeline.logs.rglob("logs/**/*") if path.is_file()]
    assert any("runtime_env_agent" in path.name for path in logs)
    for path in logs:
        assert SECRET.encode() not in path.read_bytes(), path


def test_no_deprecated_interface_is_called(s3_pipeline):
    """The pipeline ran with every warning of Python switched on."""
    assert s3_pipeline.process.returncode == 0, s3_pipeline.process.stderr[-3000:]
    texts = [s3_pipeline.process.stderr]
    logs = [path for path in s3_pipeline.logs.rglob("*") if path.suffix in (".err", ".out", ".log")]
    texts += [path.read_text(errors="replace") for path in logs if path.is_file()]
    found = {match.groups() for text in texts for match in WARNING.finditer(text)}
    # Ray itself causes some warnings, so they are enabled in the driver and in its workers.
    assert any("site-packages" in place for place, _ in found)
    here = (f"{ROOT}/visao_ray", f"{ROOT}/jobs", "jobs/")
    ours = [
        (place, message)
        for place, message in sorted(found)
        if place.startswith(here) or CALLED.search(message)
    ]
    assert not ours
