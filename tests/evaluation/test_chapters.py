import json

import numpy as np
import pytest
from stores import make_store

from visao_ray.core.settings import EvaluateOptions
from visao_ray.core.storage import locate
from visao_ray.datasets.ncm import NCM
from visao_ray.evaluation.chapters import chapter_metrics
from visao_ray.evaluation.classification import classification_metrics
from visao_ray.evaluation.evaluate import _Task, evaluate_task, summary
from visao_ray.models.artifact import ModelMetadata
from visao_ray.reports.report import ReportInputs, write_report
from visao_ray.store.join import pin

UNDEFINED = {"value": None, "low": None, "high": None, "n": 0}


def predictions(seed, rows, classes):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(classes), rows)
    label[-1] = len(classes) - 1
    logits = rng.normal(size=(rows, len(classes)))
    logits[np.arange(rows), label] += 2
    p = np.exp(logits)
    return label, (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def test_the_largest_heading_and_the_largest_sum_may_be_of_different_chapters():
    classes = ("8703", "3926", "8708")
    p = np.array([[0.3, 0.4, 0.3], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]], dtype=np.float32)
    result = chapter_metrics(np.array([2, 1, 2]), p, ["a", "b", "c"], classes, 2)
    assert result["chapter_accuracy"]["value"] == pytest.approx(2 / 3)
    assert result["chapter_accuracy_summed"]["value"] == 1
    vehicles = result["per_chapter"]["87"]
    assert vehicles["support"] == vehicles["accuracy"]["n"] == 2
    assert vehicles["accuracy"]["value"] == 0.5
    # One image: a value, and no interval.
    plastics = result["per_chapter"]["39"]["accuracy"]
    assert plastics == {"value": 1.0, "low": None, "high": None, "n": 1}


@pytest.mark.parametrize("digits", [2, 4])
def test_chapters_have_the_metrics_of_classes(digits):
    # Unsorted, with a chapter (99) of a single image and one (77) without any.
    classes = ("8703", "0101", "3926", "8708", "0102", "3920", "7701", "9999")
    label, p = predictions(1, 200, classes)
    label[label >= 6] = 0
    label[-1] = 7
    groups = np.arange(200) // 2
    result = chapter_metrics(label, p, groups, classes, digits, replicates=80, seed=4)
    chapters = sorted({name[:digits] for name in classes})
    assert list(result["per_chapter"]) == chapters
    truth = np.array([chapters.index(classes[index][:digits]) for index in label])
    summed = np.zeros((200, len(chapters)))
    largest = np.zeros((200, len(chapters)))
    for index, name in enumerate(classes):
        column = chapters.index(name[:digits])
        summed[:, column] += p[:, index]
        largest[:, column] = np.maximum(largest[:, column], p[:, index])
    for name, scores in (("accuracy", largest), ("accuracy_summed", summed)):
        plain = classification_metrics(truth, scores, groups, chapters, None, replicates=80, seed=4)
        assert result[f"chapter_{name}"] == plain["accuracy"]
        for chapter, entry in result["per_chapter"].items():
            assert entry[name] == plain["per_class"][chapter]["recall"]
            assert entry["support"] == plain["per_class"][chapter]["support"]
    assert result["chapter_accuracy"] != result["chapter_accuracy_summed"] or digits == 4
    assert result["per_chapter"][classes[6][:digits]]["accuracy"] == UNDEFINED
    json.dumps(result, allow_nan=False)


def test_headings_that_only_test_has_count_by_their_chapters(tmp_path):
    classes = ("0101", "0102", "8703")
    label, p = predictions(2, 120, classes)
    # The model has no class 8708, but classes of its chapter; for 9701 it has neither.
    unknown = {0: "8708", 1: "9701"}
    p[0], p[1] = (0.2, 0.1, 0.7), (0.2, 0.1, 0.7)
    truth = [unknown.get(index, classes[at]) for index, at in enumerate(label)]
    rows = [
        {"key": f"{index:03}.jpg", "split": "test", "label": name}
        for index, name in enumerate(truth)
    ]
    store = make_store(tmp_path / "store", NCM, rows, {"probability": p})
    snapshot = pin(store, "chapters", "vectors/tiny-00000000/none")
    metadata = ModelMetadata(NCM, "head", classes, "features", {}, outputs={"probability": 3})
    options = EvaluateOptions(target_recall=0.95, replicates=100)
    task = _Task(snapshot, metadata, ("val", "test"), options, seed=0)
    evaluation = evaluate_task(task, locate(str(tmp_path / "out")))
    test = evaluation["metrics"]["test"]
    chapters = test["per_chapter"]
    assert list(chapters) == ["01", "87", "97"]
    assert chapters["97"] == {
        "support": 1,
        "accuracy": {"value": 0.0, "low": None, "high": None, "n": 1},
        "accuracy_summed": {"value": 0.0, "low": None, "high": None, "n": 1},
    }
    expected = np.array([name[:2] for name in truth])
    right = expected == np.array([classes[index][:2] for index in p.argmax(axis=1)])
    assert right[0]
    assert test["chapter_accuracy"]["value"] == pytest.approx(right.mean())
    assert test["chapter_accuracy"]["value"] > test["accuracy"]["value"]
    assert test["chapter_accuracy"]["n"] == 120
    assert evaluation["metrics"]["val"]["chapter_accuracy"] == UNDEFINED
    assert evaluation["metrics"]["val"]["per_chapter"]["01"]["accuracy_summed"] == UNDEFINED
    lines = [line for line in summary(evaluation) if line.startswith("chapter_accuracy")]
    assert len(lines) == 2
    assert f"{right.mean():.3f} (" in lines[0]

    page = write_report(ReportInputs(title="ncm", dataset="ncm", evaluation=evaluation))
    assert "Chapter accuracy (2 digits)" in page
    assert "Chapter accuracy, headings summed" in page
