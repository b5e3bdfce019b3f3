"""Classification metrics, each with its sample size and a 95 % grouped bootstrap interval.

Conventions follow scikit-learn: balanced accuracy averages the recall of the classes that are
present, macro F1 averages over the classes that are present or predicted, log loss clips
probabilities at the float32 epsilon, and areas count ties half.

An interval is the spread that other patients or containers would bring, for a fixed model and a
fixed threshold; see `bootstrap.estimates`. An area or F1 of exactly 1 gets an interval without
width; its n says how little that means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from visao_ray.errors import InputError
from visao_ray.evaluation.bootstrap import (
    UNDEFINED,
    Estimate,
    Floats,
    Integers,
    estimates,
    group_multiplicities,
    weighted_sums,
)
from visao_ray.evaluation.labelled_scores import Codes, LabelledScores, Values
from visao_ray.evaluation.probabilities import Matrix
from visao_ray.evaluation.ranking import group_sums, ranking_areas

PER_CLASS = ("precision", "recall", "f1", "roc_auc", "average_precision")
OVERALL = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "log_loss",
    "roc_auc",
    "average_precision",
)
# A dense matrix of more classes than this is large and unreadable; top_confusions is there instead.
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
        labels: [N] class names, or class indices.
        probability: [N, C], columns in the order of `classes`.
        groups: [N] patient, container or whatever must be drawn as one.
        classes: the C declared class names.
        positive: the class whose ROC AUC and average precision are the overall ones when there
            are two classes. Otherwise those are macro one-vs-rest averages over the classes
            that have both kinds.
        threshold: for two classes only; positive is predicted where p(positive) >= threshold.
        replicates: bootstrap replicates.
        seed: of the bootstrap; the same seed draws the same groups.

    Returns:
        JSON-ready: every overall name as `{"value", "low", "high", "n"}` (more than two
        classes add `top1` and `top5`); `per_class.CLASS` with precision, recall, f1,
        roc_auc, average_precision likewise and `support` (int); `confusion` [true][predicted]
        counts (None above 100 classes); `top_confusions`, the most frequent mistakes;
        `groups`, how many groups there were. Undefined values are None with n 0.

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
    """What `classification_metrics` returns, for each threshold: draws and rankings are shared.

    Raises:
        InputError: no such positive class.
    """
    if positive is not None and positive not in classes:
        raise InputError(f"positive class {positive!r} is not one of {', '.join(classes[:5])}")
    if not len(scores):
        return [_undefined_metrics(classes) for _ in thresholds]
    index = classes.index(positive) if positive is not None else None
    decisions = [_Decision.of(scores, index, threshold) for threshold in thresholds]
    of_label = group_sums(scores.label, scores.group, (len(classes), scores.groups))
    drawn = _replicates(scores, of_label, decisions, replicates, seed)
    return [
        _figures(scores, classes, positive, of_label, decision, drawn, number)
        for number, decision in enumerate(decisions)
    ]


@dataclass(frozen=True)
class _Decision:
    """What a threshold decides.

    Attributes:
        predicted: int32[N], the predicted classes.
        of_predicted: rows predicted to be of each class, by group: sparse [C, G].
        of_hit: those of them that are of it.
    """

    predicted: Codes
    of_predicted: sparse.csr_array
    of_hit: sparse.csr_array

    @classmethod
    def of(cls, scores: LabelledScores, positive: int | None, threshold: float | None) -> _Decision:
        """The most probable class, or for two classes and a positive one p >= threshold.

        With a positive class and no threshold, 0.5 is the threshold, so that "at 0.5" and "at the
        operating threshold" follow the same rule.
        """
        predicted = scores.most_probable
        if scores.probability.width == 2 and positive is not None:
            chosen = scores.score(positive) >= (0.5 if threshold is None else threshold)
            predicted = np.where(chosen, positive, 1 - positive).astype(np.int32)
        elif threshold is not None:
            raise ValueError("a threshold needs two classes and a positive one")
        hit, shape = predicted == scores.label, (scores.probability.width, scores.groups)
        return cls(
            predicted,
            of_predicted=group_sums(predicted, scores.group, shape),
            of_hit=group_sums(predicted[hit], scores.group[hit], shape),
        )


@dataclass(frozen=True)
class _Replicates:
    """Sums of every replicate; column 0 is what was observed.

    Attributes:
        support: weight of each class's rows: [C, 1 + R].
        row_means: averages over rows, by name: [1 + R] each.
        area, average_precision: of each class: [C, 1 + R].
        guessed, right: weight of the rows predicted as each class, and rightly so, for each
            decision: [C, 1 + R].
    """

    support: Floats
    row_means: dict[str, Floats]
    area: Floats
    average_precision: Floats
    guessed: list[Floats]
    right: list[Floats]


def _replicates(
    scores: LabelledScores,
    of_label: sparse.csr_array,
    decisions: Sequence[_Decision],
    replicates: int,
    seed: int,
) -> _Replicates:
    row_values = _row_values(scores)
    row_sums = [np.bincount(scores.group, each, scores.groups) for each in row_values.values()]
    counts: list[Any] = [of_label, np.stack(row_sums)]
    for decision in decisions:
        counts += [decision.of_predicted, decision.of_hit]
    every_class = range(scores.probability.width)
    chunks = []
    for weight in group_multiplicities(scores.groups, replicates, seed):
        areas = ranking_areas(scores.probability, scores.label, scores.group, weight, every_class)
        chunks.append([*areas, *(weighted_sums(each, weight) for each in counts)])
    area, average_precision, support, sums, *decided = (
        np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True)
    )
    means = dict(zip(row_values, sums / support.sum(axis=0), strict=True))
    return _Replicates(support, means, area, average_precision, decided[0::2], decided[1::2])


def _row_values(scores: LabelledScores) -> dict[str, Floats]:
    """Quantities that are plain averages over rows: [N] each."""
    epsilon = float(np.finfo(np.float32).eps)
    of_true = np.clip(scores.of_true.astype(np.float64), epsilon, 1 - epsilon)
    values = {"log_loss": -np.log(of_true)}
    if scores.probability.width > 2:
        values["top5"] = (scores.rank <= 5).astype(np.float64)
    return values


def _figures(
    scores: LabelledScores,
    classes: Sequence[str],
    positive: str | None,
    of_label: sparse.csr_array,
    decision: _Decision,
    drawn: _Replicates,
    number: int,
) -> dict[str, Any]:
    """The result for one decision; `number` says which of the replicates' decisions it is."""
    support, guessed, right = drawn.support, drawn.guessed[number], drawn.right[number]
    with np.errstate(divide="ignore", invalid="ignore"):
        of_class = {
            "precision": right / guessed,
            "recall": right / support,
            "f1": 2 * right / (support + guessed),
            "roc_auc": drawn.area,
            "average_precision": drawn.average_precision,
        }
    both = np.isfinite(drawn.area)
    of_all = {
        "accuracy": right.sum(axis=0) / support.sum(axis=0),
        **drawn.row_means,
        "balanced_accuracy": _mean(of_class["recall"], support > 0),
        "macro_f1": _mean(of_class["f1"], support + guessed > 0),
        "roc_auc": _mean(drawn.area, both),
        "average_precision": _mean(drawn.average_precision, both),
    }
    result = _overall(scores, of_all)
    per_class = _per_class(scores, classes, decision, of_label, of_class)
    if len(classes) == 2 and positive is not None:
        # One quantity, one interval: the overall areas are the positive class's.
        for metric in ("roc_auc", "average_precision"):
            result[metric] = per_class[positive][metric]
    result |= {"per_class": per_class, "groups": scores.groups}
    return result | _confusions(scores.label, decision.predicted, classes)


def _overall(scores: LabelledScores, values: dict[str, Floats]) -> dict[str, Any]:
    """Estimates of what concerns all classes, JSON-ready."""
    found: dict[str, Any] = {}
    for name, replicates in values.items():
        ceiling = np.inf if name == "log_loss" else 1.0
        share = name in {"accuracy", "top5"}
        estimate = estimates(replicates[None], len(scores), scores.groups, ceiling, share)[0]
        found[name] = estimate.to_json()
    if scores.probability.width > 2:
        found["top1"] = found["accuracy"]
    return found


def _per_class(
    scores: LabelledScores,
    classes: Sequence[str],
    decision: _Decision,
    of_label: sparse.csr_array,
    values: dict[str, Floats],
) -> dict[str, dict[str, Any]]:
    """Support and estimates of each class, JSON-ready."""
    width = len(classes)
    support = np.bincount(scores.label, minlength=width)
    predicted = np.bincount(decision.predicted, minlength=width)
    right = np.bincount(scores.label[decision.predicted == scores.label], minlength=width)
    labelled, guessed = _nonzero(of_label), _nonzero(decision.of_predicted)
    size = np.bincount(scores.group, minlength=scores.groups)
    # Groups made of one class only have nothing to say about the other side of its ROC curve.
    other = np.array([_others(of_label, c, size) for c in range(width)])
    rows_and_groups: dict[str, tuple[npt.ArrayLike, npt.ArrayLike]] = {
        "precision": (predicted, guessed),
        "recall": (support, labelled),
        "f1": (support + predicted - right, _nonzero(of_label + decision.of_predicted)),
        "roc_auc": (len(scores), np.minimum(labelled, other)),
        "average_precision": (len(scores), labelled),
    }
    found: dict[str, dict[str, Any]] = {
        name: {"support": int(n)} for name, n in zip(classes, support, strict=True)
    }
    for metric in PER_CLASS:
        n, bearing = rows_and_groups[metric]
        share = metric in {"precision", "recall"}
        for name, estimate in zip(
            classes, estimates(values[metric], n, bearing, share=share), strict=True
        ):
            found[name][metric] = estimate.to_json()
    return found


def _mean(values: Floats, mask: npt.NDArray[np.bool_]) -> Floats:
    """Mean over classes (axis 0) where the mask holds; NaN where it holds nowhere."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: Floats = np.where(mask, values, 0.0).sum(axis=0) / mask.sum(axis=0)
    return mean


def _nonzero(counts: Any) -> Integers:
    """Groups with at least one row, per class: [C] from sparse [C, G]."""
    filled: Integers = np.diff(counts.indptr)
    return filled


def _others(of_label: Any, c: int, size: Integers) -> int:
    """Number of groups holding at least one row of another class than c."""
    start, stop = of_label.indptr[c], of_label.indptr[c + 1]
    full = of_label.data[start:stop] == size[of_label.indices[start:stop]]
    return len(size) - int(full.sum())


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


def _undefined_metrics(classes: Sequence[str]) -> dict[str, Any]:
    """What an empty split gets: every name present, every value None."""
    names = OVERALL + (("top1", "top5") if len(classes) > 2 else ())
    empty: Estimate = UNDEFINED
    result: dict[str, Any] = {name: empty.to_json() for name in names}
    result["per_class"] = {
        name: {"support": 0} | {metric: empty.to_json() for metric in PER_CLASS} for name in classes
    }
    none = np.zeros(0, dtype=np.int32)
    return result | {"groups": 0} | _confusions(none, none, classes)
