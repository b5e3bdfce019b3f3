"""Labelled predictions under many sets of weights, the input of every metric.

A bootstrap replicate gives each group a weight, so R replicates are R columns of weights. Sums over
rows are computed for all columns at once, when a metric first needs them, and shared with other
metrics. So a metric that is a function of sums is computed for all replicates at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from visao_ray.evaluation.bootstrap import Floats, group_sums, weighted_sums
from visao_ray.evaluation.labelled_scores import Codes, LabelledScores
from visao_ray.evaluation.ranking import ranking_areas

if TYPE_CHECKING:
    from scipy import sparse


@dataclass(frozen=True)
class Decisions:
    """The predicted class of each row.

    Attributes:
        scores: the rows.
        predicted: int32[N], class indices.
    """

    scores: LabelledScores
    predicted: Codes

    @cached_property
    def of_predicted(self) -> sparse.csr_array:
        """Number of rows predicted as each class, by group: sparse [C, G]."""
        return self._by_class(np.s_[:])

    @cached_property
    def of_hit(self) -> sparse.csr_array:
        """Number of rows predicted correctly as each class, by group: sparse [C, G]."""
        return self._by_class(self.predicted == self.scores.label)

    def _by_class(self, chosen: Any) -> sparse.csr_array:
        scores = self.scores
        shape = (scores.probability.width, scores.groups)
        return group_sums(self.predicted[chosen], scores.group[chosen], shape)


@dataclass(frozen=True)
class WeightedScores:
    """Rows under R sets of weights, without predicted classes.

    Attributes:
        scores: the rows.
        weight: integers [G, R], how often each group counts.
        ranked: the B classes to rank.
    """

    scores: LabelledScores
    weight: npt.NDArray[Any]
    ranked: range

    @cached_property
    def support(self) -> Floats:
        """Weight of the rows of each class: float64 [C, R]."""
        return weighted_sums(self.scores.of_label, self.weight)

    @cached_property
    def total(self) -> Floats:
        """Weight of all rows: float64 [R]."""
        total: Floats = self.support.sum(axis=0)
        return total

    @cached_property
    def areas(self) -> tuple[Floats, Floats]:
        """ROC AUC and average precision of the ranked classes: float64 [B, R] each."""
        scores = self.scores
        return ranking_areas(
            scores.probability, scores.label, scores.group, self.weight, self.ranked
        )

    def mean(self, values: npt.NDArray[Any]) -> Floats:
        """Return the weighted mean of a value of each row: [N] to float64 [R]."""
        scores = self.scores
        sums = np.bincount(scores.group, values, scores.groups)
        mean: Floats = weighted_sums(sums[None], self.weight)[0] / self.total
        return mean


@dataclass(frozen=True)
class Sample:
    """Predictions under R sets of weights. A metric turns it into float64 [R].

    Attributes:
        rows: the rows and weights, which do not depend on predicted classes.
        decisions: the predicted classes.
        positive: index of the positive class, or of the class of a metric of one class; None
            without one.
        precision_floor: the minimum precision of `recall_at_precision`.
    """

    rows: WeightedScores
    decisions: Decisions
    positive: int | None = None
    precision_floor: float = 0.9

    @property
    def scores(self) -> LabelledScores:
        """Label, group and probabilities of each row."""
        return self.rows.scores

    @property
    def support(self) -> Floats:
        """Weight of the rows of each class: float64 [C, R]."""
        return self.rows.support

    @property
    def total(self) -> Floats:
        """Weight of all rows: float64 [R]."""
        return self.rows.total

    @cached_property
    def predicted(self) -> Floats:
        """Weight of the rows predicted as each class: float64 [C, R]."""
        return weighted_sums(self.decisions.of_predicted, self.rows.weight)

    @cached_property
    def hits(self) -> Floats:
        """Weight of the rows predicted correctly as each class: float64 [C, R]."""
        return weighted_sums(self.decisions.of_hit, self.rows.weight)

    @property
    def precision(self) -> Floats:
        """Precision of each class: float64 [C, R]; NaN if no row is predicted as it."""
        return ratio(self.hits, self.predicted)

    @property
    def recall(self) -> Floats:
        """Recall of each class: float64 [C, R]; NaN if it has no rows."""
        return ratio(self.hits, self.support)

    @property
    def f1(self) -> Floats:
        """F1 of each class: float64 [C, R]; NaN if it has no rows and is not predicted."""
        return ratio(2 * self.hits, self.support + self.predicted)

    @property
    def roc_auc(self) -> Floats:
        """ROC AUC of the ranked classes: float64 [B, R]; NaN if a side has no weight."""
        return self.rows.areas[0]

    @property
    def average_precision(self) -> Floats:
        """Average precision of the ranked classes: float64 [B, R]; NaN without positive weight."""
        return self.rows.areas[1]

    def mean(self, values: npt.NDArray[Any]) -> Floats:
        """Return the weighted mean of a value of each row: [N] to float64 [R]."""
        return self.rows.mean(values)

    def row_weights(self) -> Iterator[npt.NDArray[Any]]:
        """Yield the weights of the rows, [N], one set after another."""
        for column in self.rows.weight.T:
            yield column[self.scores.group]


def ratio(part: Floats, whole: Floats) -> Floats:
    """Divide without a warning; the result is NaN or infinite if `whole` is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = part / whole
    return result


def mean_over_classes(values: Floats, counted: npt.NDArray[np.bool_]) -> Floats:
    """Return the mean over the counted classes: [C, R] to float64 [R]; NaN if there are none."""
    return ratio(np.where(counted, values, 0.0).sum(axis=0), counted.sum(axis=0))
