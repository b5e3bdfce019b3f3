"""Paired comparison of candidates: all are evaluated on the same bootstrap draws.

Two models often make mistakes on the same images, so the interval of their difference is narrower
than their own intervals suggest. It is computed from one set of draws for all candidates (paired).
The bootstrap draws whole groups; see `bootstrap`.

Limitation: the candidates were chosen on the rows they are compared on, so the value of the best
one is slightly too good. `first` shows how easily another one would have been chosen.
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
    """The metric that candidates are compared by, and its parameters."""

    @property
    def metric(self) -> Metric:
        """The metric."""

    @property
    def positive(self) -> int:
        """Index of the class of a metric of one class; with two classes, the class to rank."""

    @property
    def floor(self) -> float:
        """The minimum precision of `recall_at_precision`."""


@dataclass(frozen=True)
class MetricMeasure:
    """A metric with its parameters; see `Measure`."""

    metric: Metric
    positive: int = 0
    floor: float = 0.9


@dataclass(frozen=True)
class Standing:
    """The result of one candidate.

    Attributes:
        objective: its value; n is the number of rows it was computed from.
        over: its lead over each reference; a positive lead is better, for every metric.
        first: share of the replicates in which it is the best contender (the earlier one of
            equals); None for other candidates, and if no replicate is defined.
    """

    objective: Estimate
    over: Mapping[str, Estimate]
    first: float | None

    def to_json(self) -> dict[str, Any]:
        """Return `objective`, `over_NAME` for each reference, and `first`."""
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
        probabilities: M candidates, float [N, C] each.
        labels: int [N], class indices.
        groups: [N], patient, container or other unit that the bootstrap draws.
        measure: the metric to compare by.
        references: name to number of the candidates that each one is compared with.
        contenders: numbers of the candidates that `first` compares; all if None.
        replicates: number of bootstrap replicates.
        seed: seed of the bootstrap; the draws are those of `classification_metrics`.

    Returns:
        A standing for each candidate. An undefined value, or a lead over an undefined one, is None
        with n 0. There is no interval if fewer than two groups contribute to the metric. The
        interval of a lead that is the same in all replicates (over itself, or if both candidates
        are perfect) has zero width.
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
    n, contributing = metric.basis(candidates[0], positive)
    objectives = [metric.estimate(row, candidates[0], positive) for row in values]
    gain = values if metric.greater_is_better else -values
    first = _first(gain[among, 1:])
    return [
        Standing(
            objective=objectives[number],
            over={
                name: _lead(gain[number] - gain[reference], n, contributing)
                for name, reference in named.items()
            },
            first=first[among.index(number)] if first and number in among else None,
        )
        for number in range(len(probabilities))
    ]


def weighted(
    metrics: Sequence[Metric], measure: Measure, scores: LabelledScores, weight: npt.NDArray[Any]
) -> Floats:
    """Compute metrics of one candidate under sets of weights.

    The predicted class of a row is the most probable one. With two classes, only the positive one
    is ranked. All values are NaN if a probability is not finite or there is no row. A metric is NaN
    if it is undefined, or if every model would have the same value.

    Args:
        metrics: K metrics.
        measure: gives the positive class and the precision floor.
        scores: the rows of the candidate.
        weight: integer [G, R], how often each group counts.

    Returns:
        float64 [K, R].
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


def _lead(values: Floats, n: int, contributing: int) -> Estimate:
    """Estimate a difference, which may be negative, like `estimates`: [1 + R] to one estimate."""
    value, replicates = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value):
        return UNDEFINED
    low = high = None
    if contributing >= 2 and replicates.size:
        tail = (1 - LEVEL) / 2
        lower, upper = np.quantile(replicates, [tail, 1 - tail]) - (replicates.mean() - value)
        low, high = min(float(lower), value), max(float(upper), value)
    return Estimate(value, low, high, n)


def _first(gain: Floats) -> list[float]:
    """Return the share of replicates in which each is best: [M, R] to M; empty if undefined."""
    defined = np.isfinite(gain).any(axis=0)
    if not defined.any():
        return []
    best = np.where(np.isfinite(gain), gain, -np.inf)[:, defined].argmax(axis=0)
    shares: list[float] = (np.bincount(best, minlength=len(gain)) / defined.sum()).tolist()
    return shares
