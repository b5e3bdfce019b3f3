import json
import tracemalloc
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from visao_ray.core.errors import InputError
from visao_ray.evaluation import bootstrap, probabilities, ranking
from visao_ray.evaluation.curves import binary_curves
from visao_ray.evaluation.predictions import evaluate_predictions

CLASSES = ("nvazio", "vazio")


def predictions(rows_per_split, seed=0, classes=CLASSES, skill=2.0):
    rng = np.random.default_rng(seed)
    split = np.repeat(list(rows_per_split), list(rows_per_split.values()))
    rows, width = len(split), len(classes)
    label = rng.integers(0, width, rows)
    logits = rng.normal(size=(rows, width))
    logits[np.arange(rows), label] += skill
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    flat = pa.array(p.astype(np.float32).ravel())
    keys = [f"{name}/{index}.jpg" for index, name in enumerate(split)]
    return pa.table(
        {
            "key": keys,
            "split": pa.array(split.tolist()),
            "label": [classes[index] for index in label],
            "predicted": [classes[index] for index in p.argmax(axis=1)],
            "probability": pa.FixedSizeListArray.from_arrays(flat, width),
            "model": ["head"] * rows,
            "group": [f"c{index // 2}" if index % 5 else None for index in range(rows)],
        }
    )


def test_threshold_comes_from_val_alone():
    table = predictions({"train": 50, "val": 200, "test": 150})
    result = evaluate_predictions(table, CLASSES, "nvazio", 0.9, replicates=50)
    other_test = pa.concat_tables(
        [table.slice(0, 250), predictions({"x": 250, "test": 150}, 7).slice(250)]
    )
    again = evaluate_predictions(other_test, CLASSES, "nvazio", 0.9, replicates=50)
    assert again.threshold == result.threshold
    assert again.metrics["val_at_threshold"] == result.metrics["val_at_threshold"]
    assert again.metrics["test"] != result.metrics["test"]
    recall = result.metrics["val_at_threshold"]["per_class"]["nvazio"]["recall"]["value"]
    assert recall == result.threshold.recall >= 0.9
    assert set(result.metrics) == {"val", "test", "val_at_threshold", "test_at_threshold"}
    assert result.counts["val"]["images"] == 200
    assert result.warnings == ()
    json.dumps(result.to_json(), allow_nan=False)


def test_curves_agree_with_metrics():
    table = predictions({"val": 120, "test": 300})
    result = evaluate_predictions(table, CLASSES, "nvazio", 0.95, replicates=20)
    at = result.metrics["test_at_threshold"]["per_class"]
    point = result.curves["test"]["points"]["operating"]
    assert point["recall"] == at["nvazio"]["recall"]["value"]
    assert point["precision"] == at["nvazio"]["precision"]["value"]
    assert point["fpr"] == pytest.approx(1 - at["vazio"]["recall"]["value"])
    roc = result.curves["test"]["roc"]
    area = np.trapezoid(roc["tpr"], roc["fpr"])
    assert area == pytest.approx(result.metrics["test"]["roc_auc"]["value"])
    assert sum(result.calibration["test"]["n"]) == 300
    assert sum(map(sum, result.histograms["test"]["counts"].values())) == 300


def test_many_classes_have_top_k_and_no_threshold():
    classes = tuple(f"{heading:04}" for heading in range(101, 231))
    table = predictions({"val": 150, "test": 400}, classes=classes, skill=4)
    result = evaluate_predictions(table, classes, None, replicates=20)
    assert result.threshold is None
    assert set(result.metrics) == {"val", "test"}
    test = result.metrics["test"]
    assert result.curves["test"]["share"][4] == pytest.approx(test["top5"]["value"])
    assert test["confusion"] is None
    top = test["top_confusions"]
    assert top[0]["count"] == max(entry["count"] for entry in top)
    assert all(entry["label"] != entry["predicted"] for entry in top)
    json.dumps(result.to_json(), allow_nan=False)


def test_chunks_change_nothing_and_probabilities_are_never_copied_whole(monkeypatch):
    monkeypatch.setattr(bootstrap, "_BATCH_ELEMENTS", 20_000)
    monkeypatch.setattr(probabilities, "_PIECE_ELEMENTS", 20_000)
    monkeypatch.setattr(ranking, "_COLUMN_ELEMENTS", 20_000)
    classes = tuple(f"{heading:04}" for heading in range(300))
    whole = predictions({"val": 1, "test": 8000, "train": 1}, classes=classes, skill=3)
    expected = evaluate_predictions(whole, classes, None, replicates=10, chapter_digits=2)
    ends = [0, 7, 3000, 3000, 5000, whole.num_rows]
    chunked = pa.concat_tables([whole.slice(a, b - a) for a, b in pairwise(ends)])
    tracemalloc.start()
    try:
        found = evaluate_predictions(chunked, classes, None, replicates=10, chapter_digits=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == expected
    assert peak < chunked["probability"].nbytes / 2


def test_missing_positives_or_splits_warn_and_nothing_at_all_is_an_error():
    table = predictions({"val": 200, "test": 20})
    val_without = table.filter(
        [
            s != "val" or y != "nvazio"
            for s, y in zip(*(table[c].to_pylist() for c in ("split", "label")), strict=True)
        ]
    )
    result = evaluate_predictions(val_without, CLASSES, "nvazio", replicates=20)
    assert result.threshold is None
    assert any("no nvazio image" in warning for warning in result.warnings)
    assert any("Only 20 test" in warning for warning in result.warnings)
    assert result.metrics["val"]["roc_auc"]["value"] is None
    only_val = evaluate_predictions(table.slice(0, 200), CLASSES, "nvazio", replicates=20)
    assert only_val.metrics["test_at_threshold"]["accuracy"]["n"] == 0
    json.dumps(only_val.to_json(), allow_nan=False)
    with pytest.raises(InputError, match="no val or test"):
        evaluate_predictions(predictions({"train": 5}), CLASSES, "nvazio")
    with pytest.raises(InputError, match="2 probabilities an image, but there are 3 classes"):
        evaluate_predictions(table, (*CLASSES, "third"), None)


def test_thinned_curves_keep_the_area():
    rng = np.random.default_rng(1)
    positive = rng.random(20_000) < 0.3
    score = rng.normal(size=20_000) + positive
    curves = binary_curves(score, positive, None)
    assert len(curves["roc"]["fpr"]) <= 301
    from sklearn.metrics import roc_auc_score

    area = np.trapezoid(curves["roc"]["tpr"], curves["roc"]["fpr"])
    assert area == pytest.approx(roc_auc_score(positive, score), abs=1e-3)
