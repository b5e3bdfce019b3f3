import json

import numpy as np
import pytest

from visao_ray.evaluation.bootstrap import group_multiplicities
from visao_ray.evaluation.comparison import compare
from visao_ray.evaluation.metrics import METRICS
from visao_ray.tuning.objective import Criterion, val_metrics


def candidates(seed, rows, width, used, skills):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, used, rows).astype(np.int32)
    label[::6] = 1
    found = []
    for skill in skills:
        logits = rng.normal(size=(rows, width))
        logits[np.arange(rows), label] += skill
        p = np.exp(np.round(logits, 1))
        found.append((p / p.sum(axis=1, keepdims=True)).astype(np.float32))
    return label, found


@pytest.mark.parametrize("name", METRICS.built_in)
@pytest.mark.parametrize("width", [2, 30])
def test_standings_equal_a_plain_loop_over_copied_rows(name, width):
    # Classes 28 and 29 have no image, and a replicate may lack classes with one image.
    label, found = candidates(width, 90, width, min(width, 28), (0.5, 1.0, 1.5))
    found.append(found[2])
    groups = np.array([f"patient {number}" for number in np.arange(90) // 3])
    criterion = Criterion(name, 1, 0.5)
    (weights,) = group_multiplicities(30, 25, 3)
    _, group = np.unique(groups, return_inverse=True)
    values = np.empty((4, 26))
    for replicate, weight in enumerate(weights.T):
        rows = np.repeat(np.arange(90), weight[group].astype(int))
        values[:, replicate] = [
            val_metrics(label[rows], p[rows], criterion, [name])[name] for p in found
        ]
    sign = -1 if name == "log_loss" else 1
    standings = compare(
        found, label, groups, criterion, {"default": 1, "median": 2}, replicates=25, seed=3
    )
    if name == "top5" and width == 2:
        undefined = {"value": None, "low": None, "high": None, "n": 0}
        assert [s.to_json() for s in standings] == 4 * [
            {
                "objective": undefined,
                "over_default": undefined,
                "over_median": undefined,
                "first": None,
            }
        ]
        return
    assert np.isfinite(values).all() or width == 30
    drawn = values[:, 1:][:, np.isfinite(values[:, 1:]).all(axis=0)]
    best = (sign * drawn).argmax(axis=0)
    for number, standing in enumerate(standings):
        assert standing.first == pytest.approx((best == number).mean())
        for estimate, row in (
            (standing.objective, values[number]),
            (standing.over["default"], sign * (values[number] - values[1])),
            (standing.over["median"], sign * (values[number] - values[2])),
        ):
            assert estimate.value == pytest.approx(row[0], abs=1e-12)
            replicates = row[1:][np.isfinite(row[1:])]
            limits = np.quantile(replicates, [0.025, 0.975]) - replicates.mean() + row[0]
            limits = [min(limits[0], row[0]), max(limits[1], row[0])]
            if estimate is standing.objective:
                limits = [max(limits[0], 0), limits[1] if sign < 0 else min(limits[1], 1)]
            assert [estimate.low, estimate.high] == pytest.approx(limits, abs=1e-12)
    # The copy never beats the earlier one, and its lead is exactly zero.
    assert standings[3].first == 0.0
    assert standings[3].over["median"].to_json() | {"n": 0} == {
        "value": 0.0,
        "low": 0.0,
        "high": 0.0,
        "n": 0,
    }
    assert standings[0].over["default"].low < 0
    json.dumps([standing.to_json() for standing in standings], allow_nan=False)


def test_the_interval_of_a_lead_has_its_nominal_coverage():
    # A prediction is right if a normal number is below 0.8416 or 0.6745: accuracies 0.8 and 0.75.
    # Three images of a patient share half of the variance, two candidates most of it.
    rng = np.random.default_rng(5)
    label = np.zeros(300, dtype=np.int32)
    groups = np.repeat(np.arange(100), 3)
    covered, narrower = [], []
    for seed in range(300):
        shared = np.repeat(rng.normal(size=100), 3) + rng.normal(size=300)
        both = [(shared * np.sqrt(0.4) + rng.normal(size=300) * np.sqrt(0.2)) for _ in range(2)]
        right = [both[0] < 0.8416, both[1] < 0.6745]
        p = [np.stack([hit, ~hit], axis=1).astype(np.float32) for hit in right]
        better, other = compare(
            p, label, groups, Criterion("accuracy", 0), {"other": 1}, replicates=200, seed=seed
        )
        lead = better.over["other"]
        covered.append(lead.low <= 0.05 <= lead.high)
        apart = better.objective.high - better.objective.low
        apart = np.hypot(apart, other.objective.high - other.objective.low)
        narrower.append((lead.high - lead.low) / apart)
    assert 0.90 <= np.mean(covered) <= 0.98
    assert np.mean(narrower) < 0.8


def test_contenders_are_compared_among_themselves_and_diverged_ones_never_win():
    label, found = candidates(9, 120, 2, 2, (0.5, 3.0, 1.0))
    found.append(np.full((120, 2), np.nan, dtype=np.float32))
    arguments = (found, label, np.arange(120), Criterion("f2", 0))
    standings = compare(*arguments, {"default": 3}, contenders=[3, 2, 0], replicates=200)
    assert [standing.first is None for standing in standings] == [False, True, False, False]
    assert standings[3].first == 0
    assert standings[0].first + standings[2].first == pytest.approx(1)
    assert standings[2].first > 0.5
    assert standings[3].objective.n == standings[0].over["default"].n == 0
    assert standings[3].objective.value is standings[0].over["default"].value is None
    assert standings[0].objective.n == (label == 0).sum()


def test_no_interval_without_a_second_contributing_group():
    label, found = candidates(10, 40, 2, 2, (1.0, 2.0))
    label[:] = 1
    label[0] = 0
    for name in ("roc_auc", "average_precision", "f2", "recall_at_precision"):
        standing = compare(found, label, np.arange(40), Criterion(name, 0), {"other": 1})[0]
        assert standing.objective.value is not None
        assert standing.objective.low is standing.over["other"].high is None
    standing = compare(found, label, ["same"] * 40, Criterion("accuracy", 0), {"other": 1})[0]
    assert standing.objective.low is standing.over["other"].low is None
    nothing = compare([p[:0] for p in found], label[:0], [], Criterion("accuracy", 0), {"other": 1})
    assert [s.objective.value for s in nothing] == [None, None]
    assert nothing[0].over["other"].n == 0
