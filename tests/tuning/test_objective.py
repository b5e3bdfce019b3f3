import numpy as np
import pytest
from sklearn import metrics as sk

from visao_ray.core.errors import InputError
from visao_ray.evaluation.metrics import METRICS
from visao_ray.tuning.objective import Criterion, default_objective, val_metrics


def softmax_predictions(seed, rows, width, used, decimals=1):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, used, rows).astype(np.int32)
    logits = rng.normal(size=(rows, width))
    logits[np.arange(rows), label] += 1.5
    p = np.exp(np.round(logits, decimals))  # few decimals make scores tie
    return label, (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def score(criterion, label, p):
    return val_metrics(label, p, criterion, [criterion.name])[criterion.name]


def best_recall(score, is_class, floor):
    """By trying every threshold."""
    found = 0.0
    for threshold in np.unique(score):
        chosen = score >= threshold
        if is_class[chosen].mean() >= floor:
            found = max(found, (chosen & is_class).sum() / is_class.sum())
    return found


@pytest.mark.parametrize(("width", "used"), [(2, 2), (7, 7), (30, 24)])
def test_every_objective_agrees_with_scikit_learn(width, used):
    label, p = softmax_predictions(width, 400, width, used)
    positive, floor = 1, 0.9 if width == 2 else 0.6
    predicted, is_class = p.argmax(axis=1), label == positive
    ranked = [positive] if width == 2 else range(used)
    of_true = p[np.arange(400), label].astype(np.float64)
    expected = {
        "roc_auc": np.mean([sk.roc_auc_score(label == c, p[:, c]) for c in ranked]),
        "average_precision": np.mean(
            [sk.average_precision_score(label == c, p[:, c]) for c in ranked]
        ),
        "macro_f1": sk.f1_score(label, predicted, average="macro", zero_division=0),
        "balanced_accuracy": np.mean([(predicted == c)[label == c].mean() for c in range(used)]),
        "accuracy": sk.accuracy_score(label, predicted),
        "top5": np.mean([(row >= row[c]).sum() <= 5 for row, c in zip(p, label, strict=True)]),
        "log_loss": -np.log(of_true).mean(),
        "f2": sk.fbeta_score(is_class, predicted == positive, beta=2),
        "recall_at_precision": best_recall(p[:, positive], is_class, floor),
    }
    if width == 2:
        expected["top5"] = np.nan
    assert 0 < expected["recall_at_precision"] < 1
    found = val_metrics(label, p, Criterion("accuracy", positive, floor))
    assert tuple(found) == METRICS.built_in
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_rows_of_equal_score_are_predicted_alike():
    label = np.array([0, 0, 1, 0, 1, 1], dtype=np.int32)
    p = np.array([0.9, 0.8, 0.8, 0.3, 0.2, 0.1], dtype=np.float32)
    p = np.stack([p, 1 - p], axis=1)
    recalls = {
        floor: score(Criterion("recall_at_precision", 0, floor), label, p)
        for floor in (1.0, 0.75, 0.7)
    }
    # 0.9 alone is right; 0.8 brings a false alarm with it, and 0.3 makes three of four.
    assert recalls == {1.0: pytest.approx(1 / 3), 0.75: 1.0, 0.7: 1.0}
    assert score(Criterion("recall_at_precision", 1, 1.0), label, p) == pytest.approx(2 / 3)
    assert score(Criterion("recall_at_precision", 0, 0.9), label, 1 - p) == 0.0


def test_undefined_metrics_are_nan():
    label, p = softmax_predictions(1, 60, 6, 1)
    alone = val_metrics(label, p, Criterion("f2", 0))
    assert {name for name, value in alone.items() if np.isnan(value)} == {
        "roc_auc",
        "average_precision",
    }
    assert alone["recall_at_precision"] == 1.0
    absent = val_metrics(label, p, Criterion("f2", 3))
    assert np.isnan([absent["f2"], absent["recall_at_precision"]]).all()
    p[7, 2] = np.nan
    assert np.isnan(list(val_metrics(label, p, Criterion("f2", 0)).values())).all()
    assert np.isnan(list(val_metrics(label[:0], p[:0], Criterion("f2", 0)).values())).all()
    with pytest.raises(InputError, match="--objective auc: unknown metric; there are roc_auc, "):
        score(Criterion("auc", 0), label[:5], np.abs(p[:5]))


def test_which_value_is_better_and_how_objectives_are_described():
    classes = ("nvazio", "vazio")
    loss, area = Criterion("log_loss", 0), Criterion("roc_auc", 0)
    assert loss.lower_is_better
    assert not area.lower_is_better
    assert loss.better(0.1, 0.2)
    assert area.better(0.2, 0.1)
    assert not area.better(0.2, 0.2)
    assert area.better(0.0, np.nan)
    assert not loss.better(np.nan, 0.3)
    assert [default_objective(n) for n in (2, 868)] == ["roc_auc", "macro_f1"]
    titles = [Criterion(name, 0).describe(classes) for name in METRICS.built_in]
    assert len(set(titles)) == len(titles)
    assert titles[-2:] == ["F2 of nvazio", "recall of nvazio at precision ≥ 0.90"]
    assert (
        Criterion("recall_at_precision", 1, 0.995)
        .describe(classes)
        .endswith("vazio at precision ≥ 0.995")
    )
