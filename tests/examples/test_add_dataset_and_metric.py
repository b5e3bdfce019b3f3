"""The examples of a dataset, a metric and an engine, through the pipeline to its report."""

import json

import pyarrow.parquet as pq
import pytest
from cloths import CLASSES, PICTURES, write_cloths
from html_page import Page
from job_runs import run_job
from sklearn.metrics import matthews_corrcoef

from visao_ray.core.storage import locate
from visao_ray.datasets.spec import Dataset
from visao_ray.models import artifact

NAME, TITLE = "matthews_correlation", "Matthews correlation"
CLOTHS = Dataset("cloths", CLASSES, positive="silk", group_pattern=r"bolt\d+")
PLUGINS = [f"examples/add_{noun}.py" for noun in ("dataset", "metric", "engine")]


def flags_of(**options):
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder with `images` and with `out`, the output of `jobs/pipeline.py`."""
    folder = tmp_path_factory.mktemp("cloths")
    flags = flags_of(dataset="cloths", data=write_cloths(folder / "images"), out=folder / "out")
    flags += flags_of(engine="thumbnail", trials=3, epochs=5, replicates=100, seed=1)
    flags += ["--val-share", "0.2", "--test-share", "0.2", "--objective", NAME]
    flags += [part for plugin in PLUGINS for part in ("--plugin", plugin)]
    run = run_job("pipeline", *flags, timeout=300)
    assert run.returncode == 0, run.stderr
    assert f"] {NAME} " in run.stdout
    return folder


@pytest.mark.slow
def test_the_dataset(pipeline):
    out = pipeline / "out"
    result = json.loads((out / "result.json").read_text())
    assert (result["counts"]["listed"], result["counts"]["errors"]) == (3 * PICTURES, 0)
    assert result["settings"]["dataset"] == "cloths"
    assert result["settings"]["plugin"] == PLUGINS
    assert result["inputs"]["evaluate"]["dataset"] == CLOTHS.to_json()
    model = locate(str(out / "sweep" / "head.keras"))
    metadata = artifact.read_metadata(artifact.read(model), model.uri)
    assert metadata.dataset == CLOTHS
    assert metadata.classes == CLASSES
    test = result["metrics"]["test"]
    assert test["balanced_accuracy"]["value"] > 0.6  # a third by chance
    assert set(test["per_class"]) == set(CLASSES)
    page = Page((out / "report.html").read_text())
    assert all(name in page.text for name in ("cloths", *CLASSES))


def test_the_metric_chooses(pipeline):
    sweep = pipeline / "out" / "sweep"
    details = json.loads((sweep / "result.json").read_text())["details"]
    assert details["objective"]["text"] == TITLE
    trials = pq.read_table(sweep / "trials").to_pylist()
    values = [trial[f"metric.{NAME}"] for trial in trials]
    assert values == [trial["objective"] for trial in trials]
    assert details["winner"]["objective"] == max(values)
    assert all(-1 <= value <= 1 for value in values)
    (best, *_), shown = details["finalists"], Page((sweep / "report.html").read_text()).text
    objective = best["objective"]
    assert objective["low"] <= objective["value"] == max(values) <= objective["high"]
    assert f"its {TITLE} on val is" in shown


def test_the_metric_is_evaluated_and_reported(pipeline):
    out = pipeline / "out"
    found = json.loads((out / "result.json").read_text())["metrics"]
    rows = pq.read_table(out / "evaluate" / "predictions").to_pylist()
    for split in ("val", "test"):
        of_split = [row for row in rows if row["split"] == split]
        labels = [row["label"] for row in of_split]
        value = matthews_corrcoef(labels, [row["predicted"] for row in of_split])
        entry = found[split][NAME]
        assert entry["value"] == pytest.approx(value, abs=1e-12)
        assert -1 <= entry["low"] <= entry["value"] <= entry["high"] <= 1
        assert entry["n"] == len(of_split)
    text = Page((out / "report.html").read_text()).text
    assert TITLE in text
    assert f"compared by {NAME} on val" in text


def test_later_commands_need_no_plugin_for_the_dataset(pipeline, tmp_path, same_ray):
    """The store and the model have the dataset; a metric is computed only with its plugin."""
    out, again = pipeline / "out", tmp_path / "again"
    flags = flags_of(model=out / "sweep" / "head.keras", store=out / "store", out=again)
    run = run_job("evaluate", *flags, timeout=200, environment=same_ray)
    assert run.returncode == 0, run.stderr
    found = json.loads((again / "result.json").read_text())
    assert found["inputs"]["dataset"] == CLOTHS.to_json()
    before = json.loads((out / "result.json").read_text())["metrics"]["test"]
    test = found["metrics"]["test"]
    assert test["accuracy"] == {
        **before["accuracy"],
        **{end: test["accuracy"][end] for end in ("low", "high")},
    }
    assert before.keys() - test.keys() == {NAME}
