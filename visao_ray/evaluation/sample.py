"""Labelled predictions under many sets of weights: what every metric is computed from.

A bootstrap replicate is a weight of each group, so R replicates are R columns of weights. Sums over
rows are made for all columns at once, when a metric first asks for them, and other metrics share
them. Whatever a metric computes from sums holds for all replicates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from visao_ray.evaluation.bootstrap import Floats, group_sums, weighted_sums
from visao_ray.evaluation.labelled_scores import Codes, LabelledScores
from visao_ray.evaluation.ranking import ranking_areas


@dataclass(frozen=True)
class Decisions:
    """Which class each row is predicted to be of.

    Attributes:
        scores: the rows.
        predicted: int32[N].
    """

    scores: LabelledScores
    predicted: Codes

    @cached_property
    def of_predicted(self) -> sparse.csr_array:
        """Rows predicted to be of each class, by group: [C, G]."""
        return self._by_class(np.s_[:])

    @cached_property
    def of_hit(self) -> sparse.csr_array:
        """Those of them that are of it: [C, G]."""
        return self._by_class(self.predicted == self.scores.label)

    def _by_class(self, chosen: Any) -> sparse.csr_array:
        scores = self.scores
        shape = (scores.probability.width, scores.groups)
        return group_sums(self.predicted[chosen], scores.group[chosen], shape)


@dataclass(frozen=True)
class WeightedScores:
    """Rows under R sets of weights, whatever is decided about them.

    Attributes:
        scores: the rows.
        weight: [G, R], whole numbers: how often each group counts.
        ranked: the classes whose rankings are asked for, B of them.
    """

    scores: LabelledScores
    weight: npt.NDArray[Any]
    ranked: range

    @cached_property
    def support(self) -> Floats:
        """Weight of each class's rows: [C, R]."""
        return weighted_sums(self.scores.of_label, self.weight)

    @cached_property
    def total(self) -> Floats:
        """Weight of all rows: [R]."""
        total: Floats = self.support.sum(axis=0)
        return total

    @cached_property
    def areas(self) -> tuple[Floats, Floats]:
        """ROC AUC and average precision of the ranked classes, see `ranking_areas`: [B, R] each."""
        scores = self.scores
        return ranking_areas(
            scores.probability, scores.label, scores.group, self.weight, self.ranked
        )

    def mean(self, values: npt.NDArray[Any]) -> Floats:
        """Mean of a value of each row: [N] to [R]."""
        scores = self.scores
        sums = np.bincount(scores.group, values, scores.groups)
        mean: Floats = weighted_sums(sums[None], self.weight)[0] / self.total
        return mean


@dataclass(frozen=True)
class Sample:
    """Predictions under R sets of weights. A metric makes [R] of it.

    Attributes:
        rows: what does not depend on decisions.
        decisions: the predicted classes.
        positive: index of the class that must not be missed, or that a metric of one class is
            about; None where there is none.
        precision_floor: the least precision that `recall_at_precision` may have.
    """

    rows: WeightedScores
    decisions: Decisions
    positive: int | None = None
    precision_floor: float = 0.9

    @property
    def scores(self) -> LabelledScores:
        """Label, group and probabilities of each row, without weights."""
        return self.rows.scores

    @property
    def support(self) -> Floats:
        """Weight of the rows of each class: [C, R]."""
        return self.rows.support

    @property
    def total(self) -> Floats:
        """Weight of all rows: [R]."""
        return self.rows.total

    @cached_property
    def predicted(self) -> Floats:
        """Weight of the rows predicted to be of each class: [C, R]."""
        return weighted_sums(self.decisions.of_predicted, self.rows.weight)

    @cached_property
    def hits(self) -> Floats:
        """Weight of the rows rightly predicted to be of each class: [C, R]."""
        return weighted_sums(self.decisions.of_hit, self.rows.weight)

    @property
    def precision(self) -> Floats:
        """Of each class: [C, R]; NaN where none is predicted."""
        return ratio(self.hits, self.predicted)

    @property
    def recall(self) -> Floats:
        """Of each class: [C, R]; NaN where there is none."""
        return ratio(self.hits, self.support)

    @property
    def f1(self) -> Floats:
        """Of each class: [C, R]; NaN where there is none and none is predicted."""
        return ratio(2 * self.hits, self.support + self.predicted)

    @property
    def roc_auc(self) -> Floats:
        """Of the ranked classes: [B, R]; NaN where one kind of row has no weight."""
        return self.rows.areas[0]

    @property
    def average_precision(self) -> Floats:
        """Of the ranked classes: [B, R]; NaN where the class has no weight."""
        return self.rows.areas[1]

    def mean(self, values: npt.NDArray[Any]) -> Floats:
        """Mean of a value of each row: [N] to [R]."""
        return self.rows.mean(values)

    def row_weights(self) -> Iterator[npt.NDArray[Any]]:
        """The weight of each row, [N], in one set after another."""
        for column in self.rows.weight.T:
            yield column[self.scores.group]


def ratio(part: Floats, whole: Floats) -> Floats:
    """`part / whole`, NaN or infinite without a warning where `whole` is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = part / whole
    return found


def mean_over_classes(values: Floats, counted: npt.NDArray[np.bool_]) -> Floats:
    """Mean over the classes that count: [C, R] to [R]; NaN where none does."""
    return ratio(np.where(counted, values, 0.0).sum(axis=0), counted.sum(axis=0))
