"""How much of a lead is luck: candidates evaluated on the same bootstrap draws.

Two models evaluated on the same images err on the same images, so the interval of their difference
is narrower than their own intervals suggest: it comes from one set of draws for all (paired). Whole
groups are drawn, see `bootstrap`.

What this cannot undo: the candidates were chosen on the rows they are compared on, so the best
one's value is a little too good. `first` shows how easily another would have been chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from visao_ray.evaluation.bootstrap import (
    LEVEL,
    UNDEFINED,
    Estimate,
    Floats,
    Integers,
    group_multiplicities,
)
from visao_ray.evaluation.labelled_scores import LabelledScores, Values, sorted_codes
from visao_ray.evaluation.metric import Metric
from visao_ray.evaluation.probabilities import Matrix
from visao_ray.evaluation.sample import Decisions, Sample, WeightedScores


class Measure(Protocol):
    """What candidates are compared by.

    Attributes:
        metric: which figure.
        positive: index of the class that a metric of one class is about, and of the class that is
            ranked where there are two.
        floor: the least precision of `recall_at_precision`.
    """

    @property
    def metric(self) -> Metric: ...

    @property
    def positive(self) -> int: ...

    @property
    def floor(self) -> float: ...


@dataclass(frozen=True)
class Standing:
    """Where one candidate stands.

    Attributes:
        objective: its value; n is the number of rows that it rests on.
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
    metric, positive = measure.metric, measure.positive
    candidates = [LabelledScores.read(labels, p, group, group_count) for p in probabilities]
    values = np.concatenate(
        [
            np.concatenate([weighted([metric], measure, scores, weight) for scores in candidates])
            for weight in group_multiplicities(group_count, replicates, seed)
        ],
        axis=1,
    )
    n, bearing = metric.basis(candidates[0], positive)
    objectives = [metric.estimate(row, candidates[0], positive) for row in values]
    gain = values if metric.greater_is_better else -values
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
    metrics: Sequence[Metric], measure: Measure, scores: LabelledScores, weight: npt.NDArray[Any]
) -> Floats:
    """Metrics of one candidate under sets of weights.

    The class of a row is its most probable one; where there are two classes, the positive one is
    ranked. NaN: everything, where a probability is not finite or there is no row; a metric, where
    it is undefined or no model could have another value.

    Args:
        metrics: K of them.
        measure: its class and its precision floor.
        scores: the candidate's rows.
        weight: [G, R], whole numbers: how often each group counts.

    Returns:
        [K, R].
    """
    found = np.full((len(metrics), weight.shape[1]), np.nan)
    if not len(scores) or scores.unusable:
        return found
    width, positive = scores.probability.width, measure.positive
    ranked = range(width) if width > 2 else range(positive, positive + 1)
    sample = Sample(
        WeightedScores(scores, weight, ranked),
        Decisions(scores, scores.most_probable),
        positive,
        measure.floor,
    )
    for row, metric in zip(found, metrics, strict=True):
        if width >= metric.fewest_to_rank:
            row[:] = metric.compute(sample)
    return found


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
