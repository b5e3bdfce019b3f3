"""How much of a lead is luck: candidates evaluated on the same bootstrap draws.

Two models evaluated on the same images err on the same images, so the interval of their difference
is narrower than their own intervals suggest: it comes from one set of draws for all (paired). Whole
groups are drawn, see `bootstrap`.

What this cannot undo: the candidates were chosen on the rows they are compared on, so the best
one's value is a little too good. `first` shows how easily another would have been chosen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from visao_ray.evaluation.bootstrap import (
    LEVEL,
    UNDEFINED,
    Estimate,
    Floats,
    Integers,
    estimates,
    group_multiplicities,
    in_batches,
    weighted_sums,
)
from visao_ray.evaluation.labelled_scores import Values, sorted_codes
from visao_ray.evaluation.probabilities import Matrix, Probabilities
from visao_ray.evaluation.ranking import group_sums, ranking_areas

Weighted = Callable[[npt.NDArray[Any]], Floats]
"""Group weights [G, R], whole numbers, to the value of a measure in each of R replicates [R]."""

LOWER_IS_BETTER = frozenset({"log_loss"})


class Measure(Protocol):
    """What candidates are compared by.

    Attributes:
        name: roc_auc, average_precision, macro_f1, balanced_accuracy, accuracy, top5, log_loss,
            f2 or recall_at_precision.
        positive: index of the class that f2 and recall_at_precision are about, and of the class
            that is ranked where there are two.
        floor: the least precision of recall_at_precision.
    """

    @property
    def name(self) -> str: ...

    @property
    def positive(self) -> int: ...

    @property
    def floor(self) -> float: ...


@dataclass(frozen=True)
class Standing:
    """Where one candidate stands.

    Attributes:
        objective: its value; n is the number of rows, of the class for f2 and recall_at_precision.
        over: its lead over each reference; above 0 is better, whichever way the measure points.
        first: share of the replicates in which it is the best contender (of equals the earlier);
            None for other candidates, and where no replicate is defined.
    """

    objective: Estimate
    over: Mapping[str, Estimate]
    first: float | None

    def to_json(self) -> dict[str, Any]:
        """`objective`, `over_NAME` for each reference, `first`."""
        leads = {f"over_{name}": lead.to_json() for name, lead in self.over.items()}
        return {"objective": self.objective.to_json()} | leads | {"first": self.first}


def compare(
    probabilities: Sequence[Matrix],
    labels: Integers,
    groups: Values,
    measure: Measure,
    references: Mapping[str, int] | None = None,
    contenders: Sequence[int] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> list[Standing]:
    """Compare candidates on the same draws of groups.

    Args:
        probabilities: M candidates, [N, C] each.
        labels: [N] class indices.
        groups: [N] patient, container or whatever must be drawn as one.
        measure: what they are compared by.
        references: name to number of the candidates that each is compared with.
        contenders: numbers of the candidates that `first` is about; all if None.
        replicates: of the bootstrap.
        seed: of the bootstrap; the draws are those of `classification_metrics`.

    Returns:
        A standing for each candidate. An undefined value, or lead over an undefined one, is None
        with n 0; there is no interval where fewer than two groups bear on the measure. A lead that
        is the same in all replicates (over itself, or where both are perfect) has no width.
    """
    named = references or {}
    among = list(range(len(probabilities)) if contenders is None else contenders)
    if not len(labels):
        return [Standing(UNDEFINED, dict.fromkeys(named, UNDEFINED), None) for _ in probabilities]
    group, group_count = sorted_codes(groups)
    measures = [weighted(measure, labels, p, group, group_count) for p in probabilities]
    values = np.concatenate(
        [
            np.stack([value(weight) for value in measures])
            for weight in group_multiplicities(group_count, replicates, seed)
        ],
        axis=1,
    )
    n, bearing = _bearing(measure, labels, group, probabilities[0].shape[1])
    ceiling = np.inf if measure.name == "log_loss" else 1.0
    share = measure.name in {"accuracy", "top5"}
    objectives = estimates(values, n, bearing, ceiling, share)
    gain = -values if measure.name in LOWER_IS_BETTER else values
    first = _first(gain[among, 1:])
    return [
        Standing(
            objective=objectives[number],
            over={
                name: _lead(gain[number] - gain[reference], n, bearing)
                for name, reference in named.items()
            },
            first=first[among.index(number)] if first and number in among else None,
        )
        for number in range(len(probabilities))
    ]


def weighted(
    measure: Measure,
    labels: Integers,
    probability: Matrix,
    group: Integers,
    groups: int,
) -> Weighted:
    """A measure of one candidate as a function of group weights.

    The class of a row is its most probable one. Macro averages over more than two classes: F1 over
    the classes that are present or predicted, recall over those present, areas over those that
    have both kinds of rows. NaN: everything, where a probability is not finite or there is no row;
    areas, where one kind has no weight; f2 and recall_at_precision, where the class has none; top5
    of five classes or fewer, of which it says nothing.

    Args:
        measure: which.
        labels: [N] class indices.
        probability: [N, C].
        group: [N], index into the rows of the weights.
        groups: G, their number.

    Raises:
        ValueError: no such measure.
    """
    rows, width = probability.shape
    if not rows or not _finite(probability):
        return lambda weight: np.full(weight.shape[1], np.nan)
    match measure.name:
        case "roc_auc" | "average_precision":
            positive = range(measure.positive, measure.positive + 1)
            ranked = range(width) if width > 2 else positive
            which = ("roc_auc", "average_precision").index(measure.name)
            return _areas(which, ranked, labels, probability, group)
        case "recall_at_precision":
            score, is_class = probability[:, measure.positive], labels == measure.positive
            return _recall_at_precision(score, is_class, measure.floor, group, groups)
        case "log_loss":
            return _mean_of(_log_loss(labels, probability), group, groups)
        case "top5":
            found = _among_five(labels, probability) if width > 5 else np.full(rows, np.nan)
            return _mean_of(found, group, groups)
    predicted = probability.argmax(axis=1)
    match measure.name:
        case "accuracy":
            return _mean_of(predicted == labels, group, groups)
        case "f2":
            return _f2(labels == measure.positive, predicted == measure.positive, group, groups)
        case "macro_f1" | "balanced_accuracy":
            return _macro(measure.name, labels, predicted, width, group, groups)
    raise ValueError(f"no such measure: {measure.name!r}")


def _mean_of(values: npt.NDArray[Any], group: Integers, groups: int) -> Weighted:
    sums = np.stack([np.bincount(group, values, groups), np.bincount(group, minlength=groups)])

    def value(weight: npt.NDArray[Any]) -> Floats:
        total, rows = weighted_sums(sums, weight)
        mean: Floats = total / rows
        return mean

    return value


def _finite(probability: Matrix) -> bool:
    return all(np.isfinite(piece).all() for _, piece in Probabilities.of(probability).pieces())


def _among_five(labels: Integers, probability: Matrix) -> npt.NDArray[np.bool_]:
    """Whether the true class is among the five most probable: [N]."""
    found = np.empty(len(labels), dtype=bool)
    for place, piece in Probabilities.of(probability).pieces():
        of_true = piece[np.arange(len(piece)), labels[place]]
        # Ties rank against the true class: a constant prediction earns no credit.
        found[place] = (piece >= of_true[:, None]).sum(axis=1) <= 5
    return found


def _log_loss(labels: Integers, probability: Matrix) -> Floats:
    """Of each row, with probabilities made to add up to 1; clipped as in scikit-learn."""
    of_true = probability[np.arange(len(labels)), labels].astype(np.float64)
    epsilon = float(np.finfo(np.float64).eps)
    with np.errstate(invalid="ignore"):
        of_true /= probability.sum(axis=1, dtype=np.float64)
    loss: Floats = -np.log(np.clip(of_true, epsilon, 1 - epsilon))
    return loss


def _macro(
    name: str,
    labels: Integers,
    predicted: Integers,
    width: int,
    group: Integers,
    groups: int,
) -> Weighted:
    hit = predicted == labels
    of_label = group_sums(labels, group, (width, groups))
    of_predicted = group_sums(predicted, group, (width, groups))
    of_hit = group_sums(labels[hit], group[hit], (width, groups))

    def value(weight: npt.NDArray[Any]) -> Floats:
        right, base = weighted_sums(of_hit, weight), weighted_sums(of_label, weight)
        if name == "macro_f1":
            right, base = 2 * right, base + weighted_sums(of_predicted, weight)
        counted = base > 0
        shares = np.divide(right, base, out=np.zeros_like(base), where=counted)
        mean: Floats = shares.sum(axis=0) / counted.sum(axis=0)
        return mean

    return value


def _f2(
    is_class: npt.NDArray[np.bool_],
    is_predicted: npt.NDArray[np.bool_],
    group: Integers,
    groups: int,
) -> Weighted:
    """F-beta with beta 2: 5 hits / (5 hits + 4 missed + false alarms)."""
    kinds = group_sums(is_class + 2 * is_predicted, group, (4, groups))

    def value(weight: npt.NDArray[Any]) -> Floats:
        _, missed, alarms, hits = weighted_sums(kinds, weight)
        with np.errstate(divide="ignore", invalid="ignore"):
            f2 = 5 * hits / (5 * hits + 4 * missed + alarms)
        return np.where(hits + missed > 0, f2, np.nan)

    return value


def _recall_at_precision(
    score: Matrix,
    is_class: npt.NDArray[np.bool_],
    floor: float,
    group: Integers,
    groups: int,
) -> Weighted:
    """The largest recall over thresholds whose precision is at least the floor; 0 if none is.

    Only the scores of the class's own rows need be tried: any other threshold finds no more of
    them than the next of these above it, with more false alarms. Rows of equal score stand or
    fall together.
    """
    steps, step = np.unique(score[is_class], return_inverse=True)
    reached = np.searchsorted(steps, score[~is_class], "right")
    above = reached > 0
    of_class = group_sums(step, group[is_class], (len(steps), groups))
    of_others = group_sums(reached[above] - 1, group[~is_class][above], (len(steps), groups))

    if not len(steps):
        return lambda weight: np.full(weight.shape[1], np.nan)
    of_step = sparse.vstack([of_class, of_others]).tocsc()

    def of_batch(batch: npt.NDArray[np.floating]) -> Floats:
        highest_first = (of_step @ batch).reshape(2, len(steps), -1)[:, ::-1]
        found, alarms = np.cumsum(highest_first, axis=1)
        total = found[-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            kept = np.where(found / (found + alarms) >= floor, found, 0.0)
            recall: Floats = kept.max(axis=0) / total
        return recall

    return lambda weight: in_batches(of_batch, weight, of_step.shape[0])


def _areas(
    which: int, classes: range, labels: Integers, probability: Matrix, group: Integers
) -> Weighted:
    def value(weight: npt.NDArray[Any]) -> Floats:
        both_areas = ranking_areas(Probabilities.of(probability), labels, group, weight, classes)
        defined = np.isfinite(both_areas[0])
        total = np.where(defined, both_areas[which], 0.0).sum(axis=0)
        with np.errstate(invalid="ignore"):
            mean: Floats = total / defined.sum(axis=0)
        return mean

    return value


def _bearing(measure: Measure, labels: Integers, group: Integers, width: int) -> tuple[int, int]:
    """Rows behind a measure, and groups that bear on it."""
    groups = len(np.unique(group))
    is_class = labels == measure.positive
    holding = len(np.unique(group[is_class]))
    if measure.name in {"f2", "recall_at_precision"}:
        return int(is_class.sum()), holding
    if width == 2 and measure.name == "average_precision":
        return len(labels), holding
    if width == 2 and measure.name == "roc_auc":
        return len(labels), min(holding, len(np.unique(group[~is_class])))
    return len(labels), groups


def _lead(values: Floats, n: int, bearing: int) -> Estimate:
    """As `estimates`, for a difference, which may be negative: [1 + R] to one estimate."""
    value, replicates = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value):
        return UNDEFINED
    low = high = None
    if bearing >= 2 and replicates.size:
        tail = (1 - LEVEL) / 2
        lower, upper = np.quantile(replicates, [tail, 1 - tail]) - (replicates.mean() - value)
        low, high = min(float(lower), value), max(float(upper), value)
    return Estimate(value, low, high, n)


def _first(gain: Floats) -> list[float]:
    """Share of the replicates in which each is the best: [M, R] to M shares; empty if undefined."""
    defined = np.isfinite(gain).any(axis=0)
    if not defined.any():
        return []
    best = np.where(np.isfinite(gain), gain, -np.inf)[:, defined].argmax(axis=0)
    shares: list[float] = (np.bincount(best, minlength=len(gain)) / defined.sum()).tolist()
    return shares
