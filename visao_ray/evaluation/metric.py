"""What a metric is; one file each stands in `metrics/`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from visao_ray.evaluation.bootstrap import Estimate, Floats, estimates
from visao_ray.evaluation.labelled_scores import LabelledScores
from visao_ray.evaluation.sample import Sample

Compute = Callable[[Sample], Floats]
"""The value of a metric under each of R sets of weights, [R]; NaN where it is undefined."""

Basis = Callable[[LabelledScores, int | None], tuple[int, int]]
"""From rows and the index of the positive class: how many rows a metric rests on, and how many
groups bear on it."""


def all_rows(scores: LabelledScores, positive: int | None) -> tuple[int, int]:
    """A metric that rests on every row."""
    return len(scores), scores.groups


def rows_of_class(scores: LabelledScores, positive: int | None) -> tuple[int, int]:
    """A metric that rests on the rows of one class."""
    assert positive is not None
    return int((scores.label == positive).sum()), int(scores.groups_with[0][positive])


@dataclass(frozen=True)
class Metric:
    """A figure that says how good predictions are.

    Evaluations, reports and sweeps take everything they need to know of it from here.

    Attributes:
        name: its key in result.json, and for `--objective`.
        title: as people read it, in the middle of a sentence. `{positive}` and `{floor}` stand for
            the class and the precision floor.
        greater_is_better: its direction.
        bounded: the least and the largest value it can have.
        compute: its values for sets of weights, see `of_decisions` and `of_probabilities` for
            functions that know nothing of sets.
        unit: a `share` of rows is shown in percent, and its interval at exactly 0 or 1 comes from
            the binomial distribution; `percent` is shown in percent; `number` as it is.
        decides: whether it depends on predicted classes, and so on the threshold.
        of_class: whether it is about one class; such a metric is an objective of sweeps alone.
        fewest_classes: evaluations of fewer classes leave it out.
        fewest_to_rank: with fewer classes all models have the same value: no objective.
        basis: rows and groups that it rests on.
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
        """The observed value with its interval.

        Args:
            values: [1 + R], the observed value and those of the replicates.
            scores: the rows that it is of.
            positive: index of the positive class.
        """
        rows, groups = self.basis(scores, positive)
        share = self.unit == "share"
        return estimates(values[None], rows, groups, self.bounded, share)[0]

    def better(self, value: float, than: float) -> bool:
        """Whether one value beats another; any value beats NaN, NaN beats none."""
        if np.isnan(value) or np.isnan(than):
            return bool(np.isnan(than) and not np.isnan(value))
        return value > than if self.greater_is_better else value < than


def of_decisions(function: Callable[..., Any]) -> Compute:
    """A metric from a function of true and predicted classes, as scikit-learn has many.

    It is called once a replicate: simple, and slow for many rows.

    Args:
        function: from labels int32[N], predicted classes int32[N] and `sample_weight` [N] to a
            number.
    """

    def compute(sample: Sample) -> Floats:
        label, predicted = sample.scores.label, sample.decisions.predicted
        weights = sample.row_weights()
        return np.array([function(label, predicted, sample_weight=each) for each in weights], float)

    return compute


def of_probabilities(function: Callable[..., Any]) -> Compute:
    """A metric from a function of true classes and probabilities; called once a replicate.

    Args:
        function: from labels int32[N], probabilities [N, C] and `sample_weight` [N] to a number.
    """

    def compute(sample: Sample) -> Floats:
        label, probability = sample.scores.label, sample.scores.probability.matrix()
        weights = sample.row_weights()
        return np.array(
            [function(label, probability, sample_weight=each) for each in weights], float
        )

    return compute
