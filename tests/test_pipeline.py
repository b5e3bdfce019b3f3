"""The whole pipeline on a real S3 server, with the examples of a dataset, a metric and an engine.

It runs once, in its own process with all Python warnings enabled; these tests look at what it left.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cloths import CLASSES, PICTURES, write_cloths
from html_page import Page
from job_runs import ROOT, run_job
from s3_server import S3, SECRET
from sklearn.metrics import matthews_corrcoef

from visao_ray.core import tables
from visao_ray.core.storage import Location, locate
from visao_ray.datasets.spec import Dataset
from visao_ray.models import artifact

pytestmark = pytest.mark.slow

NAME, TITLE = "matthews_correlation", "Matthews correlation"
CLOTHS = Dataset("cloths", CLASSES, positive="silk", group_pattern=r"bolt\d+")
PLUGINS = [f"examples/add_{noun}.py" for noun in ("dataset", "metric", "engine")]
WARNING = re.compile(r"(\S+?):\d+: \w*(?:Deprecat|Future)\w*Warning: (.*)")
#: Interfaces of Ray, Keras and others that the jobs use; warnings about these are caused by us.
CALLED = re.compile(
    r"map_batches|map_groups|read_parquet|from_items|repartition|write_datasink|write_parquet"
    r"|iter_batches|ActorPoolStrategy|concurrency|CheckpointConfig|ParquetDatasink|resources"
    r"|Tuner|TuneConfig|RunConfig|FailureConfig|tune\.report|train\.report|PopulationBased|ASHA"
    r"|load_model|predict_on_batch|save\(|S3FileSystem|utcnow|get_current"
)


@dataclass(frozen=True)
class PipelineRun:
    """A finished pipeline; `logs` has the logs of its Ray, of drivers and workers."""

    process: "subprocess.CompletedProcess[str]"
    out: Location
    logs: Path


def flags_of(**options: object) -> list[str]:
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def rows_of(place: Location) -> pa.Table:
    return pq.read_table(place.path, filesystem=place.filesystem)


def json_of(place: Location) -> dict:
    return json.loads(place.read_bytes())


def page_of(place: Location) -> Page:
    return Page(place.read_bytes().decode())


@pytest.fixture(scope="module")
def pipeline(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineRun]:
    folder = write_cloths(tmp_path_factory.mktemp("cloths") / "images")
    place = locate(f"{s3.uri}/pipeline")
    data = place.join("images")
    for file in folder.rglob("*.png"):
        data.join(file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())
    out = place.join("out")
    flags = flags_of(dataset="cloths", data=data.uri, out=out.uri, engine="thumbnail")
    flags += flags_of(trials=3, epochs=5, replicates=100, seed=1, objective=NAME)
    flags += ["--val-share", "0.2", "--test-share", "0.2"]
    flags += [part for plugin in PLUGINS for part in ("--plugin", plugin)]
    # The path must be short: paths of sockets are limited to 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as logs:
        environment = {"RAY_TMPDIR": logs, "PYTHONWARNINGS": "always"}
        process = run_job("pipeline", *flags, timeout=400, environment=environment)
        assert process.returncode == 0, process.stderr[-3000:]
        yield PipelineRun(process, out, Path(logs))


@pytest.fixture(scope="module")
def out(pipeline: PipelineRun) -> Location:
    return pipeline.out


def test_counts_figures_and_files(out):
    result = json_of(out.join("result.json"))
    assert result["status"] == "finished"
    assert result["counts"]["listed"] == result["counts"]["ok"] == 3 * PICTURES
    assert result["counts"]["errors"] == 0
    for split in ("val", "test"):
        accuracy = result["metrics"][split]["accuracy"]
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
        assert accuracy["n"] == sum(result["counts"]["store"]["by_split"][split].values())
    predictions = rows_of(out.join("evaluate", "predictions"))
    keys = predictions["key"].to_pylist()
    assert len(keys) == len(set(keys))
    assert len(keys) == sum(result["metrics"][s]["accuracy"]["n"] for s in ("val", "test"))
    assert tables.rows(out.join("sweep", "trials")) == 3
    assert not [file.uri for file in out.files() if "/work/" in file.uri]
    page = out.join("report.html").read_bytes().decode()
    assert page.lstrip().lower().startswith("<!doctype html")
    assert "data:image/" in page


def test_the_dataset(out):
    result = json_of(out.join("result.json"))
    assert result["settings"]["dataset"] == "cloths"
    assert result["settings"]["plugin"] == PLUGINS
    assert result["inputs"]["evaluate"]["dataset"] == CLOTHS.to_json()
    model = out.join("sweep", "head.keras")
    metadata = artifact.read_metadata(artifact.read(model), model.uri)
    assert metadata.dataset == CLOTHS
    assert metadata.classes == CLASSES
    test = result["metrics"]["test"]
    assert test["balanced_accuracy"]["value"] > 0.6  # a third by chance
    assert set(test["per_class"]) == set(CLASSES)
    page = page_of(out.join("report.html"))
    assert all(name in page.text for name in ("cloths", *CLASSES))


def test_the_metric_chooses(pipeline, out):
    assert f"] {NAME} " in pipeline.process.stdout
    sweep = out.join("sweep")
    details = json_of(sweep.join("result.json"))["details"]
    assert details["objective"]["text"] == TITLE
    trials = rows_of(sweep.join("trials")).to_pylist()
    values = [trial[f"metric.{NAME}"] for trial in trials]
    assert values == [trial["objective"] for trial in trials]
    assert details["winner"]["objective"] == max(values)
    assert all(-1 <= value <= 1 for value in values)
    (best, *_), shown = details["finalists"], page_of(sweep.join("report.html")).text
    objective = best["objective"]
    assert objective["low"] <= objective["value"] == max(values) <= objective["high"]
    assert f"its {TITLE} on val is" in shown


def test_the_metric_is_evaluated_and_reported(out):
    found = json_of(out.join("result.json"))["metrics"]
    rows = rows_of(out.join("evaluate", "predictions")).to_pylist()
    for split in ("val", "test"):
        of_split = [row for row in rows if row["split"] == split]
        labels = [row["label"] for row in of_split]
        value = matthews_corrcoef(labels, [row["predicted"] for row in of_split])
        entry = found[split][NAME]
        assert entry["value"] == pytest.approx(value, abs=1e-12)
        assert -1 <= entry["low"] <= entry["value"] <= entry["high"] <= 1
        assert entry["n"] == len(of_split)
    text = page_of(out.join("report.html")).text
    assert TITLE in text
    assert f"compared by {NAME} on val" in text


def test_later_commands_need_no_plugin_for_the_dataset(out, tmp_path, same_ray):
    """The store and the model have the dataset; a metric is computed only with its plugin."""
    again, model = tmp_path / "again", out.join("sweep", "head.keras")
    flags = flags_of(model=model.uri, store=out.join("store").uri, out=again)
    run = run_job("evaluate", *flags, timeout=200, environment=same_ray)
    assert run.returncode == 0, run.stderr
    found = json.loads((again / "result.json").read_text())
    assert found["inputs"]["dataset"] == CLOTHS.to_json()
    before = json_of(out.join("result.json"))["metrics"]["test"]
    test = found["metrics"]["test"]
    assert test["accuracy"] == {
        **before["accuracy"],
        **{end: test["accuracy"][end] for end in ("low", "high")},
    }
    assert before.keys() - test.keys() == {NAME}


def test_no_secret_is_written(pipeline, out):
    output = pipeline.process.stdout + pipeline.process.stderr
    assert "finished in" in output
    assert SECRET not in output
    files = list(out.files())
    assert sum(file.uri.endswith(".json") for file in files) >= 8
    for file in files:
        assert SECRET.encode() not in file.read_bytes(), file.uri


def test_no_secret_reaches_rays_logs(pipeline):
    logs = [path for path in pipeline.logs.rglob("logs/**/*") if path.is_file()]
    assert any("runtime_env_agent" in path.name for path in logs)
    for path in logs:
        assert SECRET.encode() not in path.read_bytes(), path


def test_no_deprecated_interface_is_called(pipeline):
    texts = [pipeline.process.stderr]
    logs = [path for path in pipeline.logs.rglob("*") if path.suffix in (".err", ".out", ".log")]
    texts += [path.read_text(errors="replace") for path in logs if path.is_file()]
    found = {match.groups() for text in texts for match in WARNING.finditer(text)}
    # Ray itself causes some warnings, so they are enabled in the driver and in its workers.
    assert any("site-packages" in place for place, _ in found)
    here = (f"{ROOT}{os.sep}visao_ray", f"{ROOT}{os.sep}jobs", "jobs/")
    ours = [
        (place, message)
        for place, message in sorted(found)
        if place.startswith(here) or CALLED.search(message)
    ]
    assert not ours
