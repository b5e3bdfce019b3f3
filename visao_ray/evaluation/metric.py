"""The definition of a metric; each metric has its own file in `metrics/`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from visao_ray.evaluation.bootstrap import Estimate, Floats, estimates
from visao_ray.evaluation.labelled_scores import LabelledScores
from visao_ray.evaluation.sample import Sample

Compute = Callable[[Sample], Floats]
"""The value of a metric under each of R sets of weights, float64[R]; NaN if undefined."""

Basis = Callable[[LabelledScores, int | None], tuple[int, int]]
"""From rows and the index of the positive class: the numbers of rows and of groups that a metric
is computed from."""


def all_rows(scores: LabelledScores, positive: int | None) -> tuple[int, int]:
    """Return the basis of a metric that uses all rows: numbers of rows and groups."""
    return len(scores), scores.groups


def rows_of_class(scores: LabelledScores, positive: int | None) -> tuple[int, int]:
    """Return the basis of a metric that uses the rows of one class: numbers of rows and groups."""
    assert positive is not None
    return int((scores.label == positive).sum()), int(scores.groups_with[0][positive])


@dataclass(frozen=True)
class Metric:
    """A metric of predictions.

    Evaluations, reports and sweeps get everything they need to know about it from here.

    Attributes:
        name: key in result.json, and value of `--objective`.
        title: name in the middle of a sentence. `{positive}` and `{floor}` are replaced by the
            class and the precision floor.
        greater_is_better: whether a greater value is better.
        bounded: the smallest and the largest value that it can have.
        compute: computes its values for sets of weights; `of_decisions` and `of_probabilities` wrap
            functions that take one set.
        unit: a `share` of rows is shown in percent, and its interval at exactly 0 or 1 comes from
            the binomial distribution; `percent` is shown in percent; `number` is shown as it is.
        decides: whether it depends on predicted classes, and so on the threshold.
        of_class: whether it is computed for one class; only sweeps use it, as an objective.
        fewest_classes: evaluations with fewer classes leave it out.
        fewest_to_rank: with fewer classes all models have the same value, so it is no objective.
        basis: returns the numbers of rows and groups that it is computed from.
    """

    name: str
    title: str
    greater_is_better: bool
    bounded: tuple[float, float]
    compute: Compute
    unit: Literal["share", "percent", "number"] = "number"
    decides: bool = True
    of_class: bool = False
    fewest_classes: int = 2
    fewest_to_rank: int = 2
    basis: Basis = all_rows

    def estimate(self, values: Floats, scores: LabelledScores, positive: int | None) -> Estimate:
        """Return the observed value with its interval.

        Args:
            values: float64 [1 + R], the observed value and those of the replicates.
            scores: the rows that it was computed from.
            positive: index of the positive class.

        Returns:
            The estimate.
        """
        rows, groups = self.basis(scores, positive)
        share = self.unit == "share"
        return estimates(values[None], rows, groups, self.bounded, share)[0]

    def better(self, value: float, than: float) -> bool:
        """Return whether one value is better than another; any value is better than NaN."""
        if np.isnan(value) or np.isnan(than):
            return bool(np.isnan(than) and not np.isnan(value))
        return value > than if self.greater_is_better else value < than


def of_decisions(function: Callable[..., Any]) -> Compute:
    """Wrap a function of true and predicted classes, such as those of scikit-learn.

    It is called once per replicate: simple, but slow for many rows.

    Args:
        function: from labels int32[N], predicted classes int32[N] and `sample_weight` [N] to a
            number.

    Returns:
        The `compute` of a metric.
    """

    def compute(sample: Sample) -> Floats:
        label, predicted = sample.scores.label, sample.decisions.predicted
        weights = sample.row_weights()
        return np.array([function(label, predicted, sample_weight=each) for each in weights], float)

    return compute


def of_probabilities(function: Callable[..., Any]) -> Compute:
    """Wrap a function of true classes and probabilities; it is called once per replicate.

    Args:
        function: from labels int32[N], probabilities float [N, C] and `sample_weight` [N] to a
            number.

    Returns:
        The `compute` of a metric.
    """

    def compute(sample: Sample) -> Floats:
        label, probability = sample.scores.label, sample.scores.probability.matrix()
        weights = sample.row_weights()
        return np.array(
            [function(label, probability, sample_weight=each) for each in weights], float
        )

    return compute
