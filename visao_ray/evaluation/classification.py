"""Classification metrics, each with its sample size and a 95 % grouped bootstrap interval.

`METRICS` are computed over all rows, `PER_CLASS` for each class. The conventions are those of
scikit-learn; each file in `metrics/` documents its own.

An interval shows how much the value would vary with other patients or containers, for a fixed
model and a fixed threshold; see `bootstrap.estimates`. An area or F1 of exactly 1 gets an interval
of zero width; with a small n that means little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError
from visao_ray.evaluation.bootstrap import (
    UNDEFINED,
    Estimate,
    Floats,
    Integers,
    estimates,
    group_multiplicities,
)
from visao_ray.evaluation.labelled_scores import Codes, LabelledScores, Values
from visao_ray.evaluation.metric import Metric
from visao_ray.evaluation.metrics import METRICS
from visao_ray.evaluation.probabilities import Matrix
from visao_ray.evaluation.sample import Decisions, Sample, WeightedScores

PER_CLASS = ("precision", "recall", "f1", "roc_auc", "average_precision")
# With more classes than this there is no dense matrix, because nobody could read it.
DENSE_CONFUSION_CLASSES = 100
TOP_CONFUSIONS = 50


def classification_metrics(
    labels: Values,
    probability: Matrix,
    groups: Values,
    classes: Sequence[str],
    positive: str | None,
    threshold: float | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate predictions against labels.

    Args:
        labels: [N], class names or class indices.
        probability: float [N, C], columns in the order of `classes`.
        groups: [N], patient, container or other unit that the bootstrap draws.
        classes: the C declared class names.
        positive: with two classes, the class that gives the overall ROC AUC and average precision.
            Otherwise these are macro one-vs-rest averages over the classes that have positive and
            negative rows.
        threshold: for two classes only; positive is predicted if p(positive) >= threshold.
        replicates: number of bootstrap replicates.
        seed: seed of the bootstrap; the same seed draws the same groups.

    Returns:
        JSON-ready: every overall metric by name as `{"value", "low", "high", "n"}` (more than two
        classes add `top1` and `top5`); `per_class.CLASS` with precision, recall, f1, roc_auc and
        average_precision in the same form, and `support` (int); `confusion`, counts by
        [true][predicted] (None above 100 classes); `top_confusions`, the most frequent mistakes;
        `groups`, the number of groups. Undefined values are None with n 0.

    Raises:
        InputError: unknown label, wrong shape, or a probability that is not finite.
    """
    scores = LabelledScores.of(labels, probability, groups, classes)
    return metrics_at([threshold], scores, classes, positive, replicates, seed)[0]


def metrics_at(
    thresholds: Sequence[float | None],
    scores: LabelledScores,
    classes: Sequence[str],
    positive: str | None,
    replicates: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compute the result of `classification_metrics` for each threshold, with shared draws.

    Args:
        thresholds: see `classification_metrics`.
        scores: the rows.
        classes: the C declared class names.
        positive: see `classification_metrics`.
        replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        One result per threshold.

    Raises:
        InputError: no such positive class.
    """
    if positive is not None and positive not in classes:
        raise InputError(f"positive class {positive!r} is not one of {', '.join(classes[:5])}")
    overall = _metrics_of(classes)
    if not len(scores):
        return [_undefined_metrics(classes, overall) for _ in thresholds]
    index = classes.index(positive) if positive is not None else None
    decisions = [_decide(scores, index, threshold) for threshold in thresholds]
    drawn = _draw(scores, index, decisions, overall, replicates, seed)
    return [
        _figures(scores, classes, positive, decided, overall, values)
        for decided, values in zip(decisions, drawn, strict=True)
    ]


def _metrics_of(classes: Sequence[str]) -> list[Metric]:
    """Return the metrics of an evaluation: metrics of one class are objectives of sweeps only."""
    return [
        metric
        for metric in METRICS.values()
        if not metric.of_class and len(classes) >= metric.fewest_classes
    ]


def _decide(scores: LabelledScores, positive: int | None, threshold: float | None) -> Decisions:
    """Predict the most probable class, or for two classes and a positive one use p >= threshold.

    With a positive class and no threshold, the threshold is 0.5. So "at 0.5" and "at the operating
    threshold" follow the same rule.
    """
    predicted = scores.most_probable
    if scores.probability.width == 2 and positive is not None:
        chosen = scores.score(positive) >= (0.5 if threshold is None else threshold)
        predicted = np.where(chosen, positive, 1 - positive).astype(np.int32)
    elif threshold is not None:
        raise ValueError("a threshold needs two classes and a positive one")
    return Decisions(scores, predicted)


@dataclass(frozen=True)
class _Values:
    """Values in every replicate, for one threshold; column 0 is the observed value.

    Attributes:
        overall: by metric name, float64 [1 + R] each.
        per_class: by name in `PER_CLASS`, float64 [C, 1 + R] each.
    """

    overall: dict[str, Floats]
    per_class: dict[str, Floats]

    @classmethod
    def joined(cls, parts: Sequence[_Values]) -> _Values:
        """Concatenate the replicates of all parts."""

        def concatenate(arrays: Sequence[dict[str, Floats]]) -> dict[str, Floats]:
            return {name: np.concatenate([one[name] for one in arrays], -1) for name in arrays[0]}

        return cls(
            concatenate([p.overall for p in parts]), concatenate([p.per_class for p in parts])
        )


def _draw(
    scores: LabelledScores,
    positive: int | None,
    decisions: Sequence[Decisions],
    overall: Sequence[Metric],
    replicates: int,
    seed: int,
) -> list[_Values]:
    """Compute the values for each threshold, all with the same draws."""
    every_class = range(scores.probability.width)
    parts: list[list[_Values]] = [[] for _ in decisions]
    for weight in group_multiplicities(scores.groups, replicates, seed):
        rows = WeightedScores(scores, weight, every_class)
        shared: dict[str, Floats] = {}
        for decided, found in zip(decisions, parts, strict=True):
            sample = Sample(rows, decided, positive)
            for metric in overall:
                if not metric.decides and metric.name not in shared:
                    shared[metric.name] = metric.compute(sample)
            own = {metric.name: metric.compute(sample) for metric in overall if metric.decides}
            found.append(_Values(shared | own, {name: getattr(sample, name) for name in PER_CLASS}))
    return [_Values.joined(found) for found in parts]


def _figures(
    scores: LabelledScores,
    classes: Sequence[str],
    positive: str | None,
    decisions: Decisions,
    overall: Sequence[Metric],
    values: _Values,
) -> dict[str, Any]:
    """Return the result for one threshold."""
    index = classes.index(positive) if positive is not None else None
    result: dict[str, Any] = {
        metric.name: metric.estimate(values.overall[metric.name], scores, index).to_json()
        for metric in overall
    }
    if len(classes) > 2:
        result["top1"] = result["accuracy"]
    per_class = _per_class(scores, classes, decisions, values.per_class)
    if len(classes) == 2 and positive is not None:
        # The overall areas are those of the positive class, with the same interval.
        result |= {name: per_class[positive][name] for name in PER_CLASS if name in result}
    result |= {"per_class": per_class, "groups": scores.groups}
    return result | _confusions(scores.label, decisions.predicted, classes)


def _per_class(
    scores: LabelledScores,
    classes: Sequence[str],
    decisions: Decisions,
    values: dict[str, Floats],
) -> dict[str, dict[str, Any]]:
    """Return support and estimates of each class, JSON-ready."""
    width = len(classes)
    support = np.bincount(scores.label, minlength=width)
    predicted = np.bincount(decisions.predicted, minlength=width)
    right = np.bincount(scores.label[decisions.predicted == scores.label], minlength=width)
    of_predicted = decisions.of_predicted
    labelled, other = scores.groups_with
    rows_and_groups: dict[str, tuple[npt.ArrayLike, npt.ArrayLike]] = {
        "precision": (predicted, _nonzero(of_predicted)),
        "recall": (support, labelled),
        "f1": (support + predicted - right, _nonzero(scores.of_label + of_predicted)),
        # A ROC curve needs groups with the class and groups with others: the smaller number counts.
        "roc_auc": (len(scores), np.minimum(labelled, other)),
        "average_precision": (len(scores), labelled),
    }
    found: dict[str, dict[str, Any]] = {
        name: {"support": int(n)} for name, n in zip(classes, support, strict=True)
    }
    for metric in PER_CLASS:
        n, contributing = rows_and_groups[metric]
        share = metric in {"precision", "recall"}
        found_of = estimates(values[metric], n, contributing, share=share)
        for name, estimate in zip(classes, found_of, strict=True):
            found[name][metric] = estimate.to_json()
    return found


def _nonzero(counts: Any) -> Integers:
    """Count the groups with at least one row, per class: [C] from sparse [C, G]."""
    nonzero: Integers = np.diff(counts.indptr)
    return nonzero


def _confusions(label: Codes, predicted: Codes, classes: Sequence[str]) -> dict[str, Any]:
    width = len(classes)
    cell = label.astype(np.int64) * width + predicted
    pairs, counts = np.unique(cell, return_counts=True)
    wrong = pairs // width != pairs % width
    order = np.argsort(-counts[wrong], kind="stable")[:TOP_CONFUSIONS]
    top = [
        {"label": classes[pair // width], "predicted": classes[pair % width], "count": int(n)}
        for pair, n in zip(pairs[wrong][order], counts[wrong][order], strict=True)
    ]
    dense: list[list[int]] | None = None
    if width <= DENSE_CONFUSION_CLASSES:
        flat = np.bincount(cell, minlength=width * width)
        dense = flat.reshape(width, width).tolist()
    return {"confusion": dense, "top_confusions": top}


def _undefined_metrics(classes: Sequence[str], overall: Sequence[Metric]) -> dict[str, Any]:
    """Return the result of an empty split: every name is present, every value is None."""
    names = [metric.name for metric in overall] + ["top1"] * (len(classes) > 2)
    empty: Estimate = UNDEFINED
    result: dict[str, Any] = {name: empty.to_json() for name in names}
    result["per_class"] = {
        name: {"support": 0} | {metric: empty.to_json() for metric in PER_CLASS} for name in classes
    }
    none = np.zeros(0, dtype=np.int32)
    return result | {"groups": 0} | _confusions(none, none, classes)
