"""Metrics of a plugin: from sums of a sample, or from a function of scikit-learn."""

import numpy as np
import pytest
from job_runs import ROOT
from sklearn.metrics import brier_score_loss, matthews_corrcoef

from visao_ray.core import plugins
from visao_ray.core.errors import InputError
from visao_ray.evaluation.classification import classification_metrics
from visao_ray.evaluation.comparison import compare
from visao_ray.evaluation.metric import Metric, of_decisions, of_probabilities
from visao_ray.evaluation.metrics import METRICS, register
from visao_ray.tuning.objective import Criterion, val_metrics

MATTHEWS = "matthews_correlation"


def mean_square(labels, probability, sample_weight):
    """The Brier score over all classes."""
    hot = np.eye(probability.shape[1])[labels]
    return np.average(((probability - hot) ** 2).sum(axis=1), weights=sample_weight)


@pytest.fixture(autouse=True)
def added(no_plugins):
    """The metric of the example, the same metric by rows, and a metric of probabilities."""
    plugins.load([str(ROOT / "examples" / "add_metric.py")])
    by_rows = of_decisions(matthews_corrcoef)
    register(Metric("by_rows", "correlation by rows", True, (-1.0, 1.0), by_rows))
    brier = of_probabilities(mean_square)
    register(Metric("brier", "Brier score", False, (0.0, 2.0), brier, decides=False))


def predictions(seed, rows, width, skill):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, width, rows).astype(np.int32)
    logits = rng.normal(size=(rows, width))
    logits[np.arange(rows), label] += skill
    p = np.exp(logits)
    return label, (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("width", "threshold"), [(2, 0.3), (2, None), (7, None)])
def test_evaluations_have_them_with_intervals(width, threshold):
    label, p = predictions(width, 120, width, 1.0)
    names = [f"{c:02}" for c in range(width)]
    positive = names[0] if width == 2 else None
    groups = np.arange(120) // 2
    found = classification_metrics(label, p, groups, names, positive, threshold, 50)
    predicted = p.argmax(axis=1)
    if width == 2:
        predicted = np.where(p[:, 0] >= (threshold or 0.5), 0, 1)
    entry = found[MATTHEWS]
    assert entry["value"] == pytest.approx(matthews_corrcoef(label, predicted), abs=1e-12)
    assert entry == pytest.approx(found["by_rows"], abs=1e-12)
    assert entry["low"] < entry["value"] < entry["high"]
    brier = found["brier"]
    assert brier["value"] == pytest.approx(mean_square(label, p, None))
    assert brier["low"] < brier["value"] < brier["high"]
    if width == 2:
        assert brier["value"] == pytest.approx(2 * brier_score_loss(label == 0, p[:, 0]))
    empty = classification_metrics([], np.zeros((0, width)), [], names, positive)
    assert empty[MATTHEWS]["value"] is None


def test_an_interval_may_reach_below_zero_and_none_of_one_class():
    label, p = predictions(3, 60, 2, 0.0)
    names = ["a", "b"]
    found = classification_metrics(label, p, np.arange(60), names, None, replicates=100)[MATTHEWS]
    assert -1 <= found["low"] < 0 < found["high"]
    alone = classification_metrics(label * 0, p, np.arange(60), names, None, replicates=100)
    assert alone[MATTHEWS] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 60}
    assert alone["by_rows"] == alone[MATTHEWS]


def test_sweeps_choose_by_them():
    good, bad = predictions(1, 90, 3, 2.0), predictions(1, 90, 3, 0.2)
    label, groups = good[0], np.arange(90)
    found = val_metrics(label, good[1], Criterion("accuracy", 0))
    assert list(found)[-3:] == [MATTHEWS, "by_rows", "brier"]
    assert found["brier"] == pytest.approx(mean_square(label, good[1], None))
    for name in (MATTHEWS, "brier"):
        criterion = Criterion(name, 0)
        assert criterion.describe(["a", "b", "c"]) == METRICS[name].title
        values = [val_metrics(label, p, criterion)[name] for _, p in (good, bad)]
        assert criterion.better(*values)
        assert criterion.lower_is_better == (name == "brier")
        better, _ = compare(
            [good[1], bad[1]], label, groups, criterion, {"other": 1}, replicates=50
        )
        assert better.first == 1.0
        assert better.over["other"].low > 0


def test_a_name_can_be_registered_once():
    with pytest.raises(InputError, match="metric 'accuracy' exists already; choose another name"):
        register(Metric("accuracy", "mine", True, (0.0, 1.0), of_decisions(matthews_corrcoef)))
