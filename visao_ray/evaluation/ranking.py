"""Areas under the ROC and precision-recall curves of many classes and many sets of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from visao_ray.evaluation.bootstrap import Floats, Integers, in_batches, in_threads, weighted_sums
from visao_ray.evaluation.probabilities import Probabilities

# Scores held at once, a column for each class: 256 MB of float32, and as much of cells.
_COLUMN_ELEMENTS = 64_000_000
# Whole numbers below this are exact in float32.
_EXACT = 2**24


@dataclass(frozen=True)
class RankingCells:
    """One class's ranking, sorted once, so that any weights of the groups give its areas.

    Both areas change only at the scores of positive rows. So negatives are counted at and between
    those scores, and the ones below the lowest of them only through the total.

    Attributes:
        steps: k, the distinct scores of positive rows, the highest first.
        counts: rows per cell and group, [3k, G]: negatives tied with step i in cell i, negatives
            between step i and the next higher one in cell k + i, positives of step i in 2k + i.
    """

    steps: int
    counts: sparse.csc_array

    @classmethod
    def of(
        cls,
        score: npt.NDArray[np.floating],
        is_positive: npt.NDArray[np.bool_],
        start: npt.NDArray[np.int32],
        ones: npt.NDArray[np.floating],
    ) -> RankingCells:
        """Sort the positives' scores and find every other row's place among them.

        Args:
            score: [N], higher means more positive, groups one after another.
            is_positive: [N].
            start: int32[G + 1], where each group begins, and N.
            ones: [N] of the type that the weights will have.
        """
        steps = np.unique(score[is_positive])
        k = len(steps)
        high = score >= steps[0] if k else np.zeros(len(score), bool)
        first = np.append(np.int32(0), np.cumsum(high, dtype=np.int32))[start]
        counted = np.flatnonzero(high)
        reached = np.searchsorted(steps, score[counted], "right").astype(np.int32)
        kind = np.where(is_positive[counted], 2, steps[reached - 1] != score[counted])
        cell = (k - reached) + np.int32(k) * kind.astype(np.int32)
        counts = sparse.csc_array((ones[: len(cell)], cell, first), shape=(3 * k, len(start) - 1))
        return cls(k, counts)

    def areas(self, weight: npt.NDArray[np.floating], total: npt.NDArray[np.floating]) -> Floats:
        """ROC AUC and average precision for each column of weights: [2, r].

        Args:
            weight: [G, r], whole numbers.
            total: [r], the weight of all rows.
        """
        if not self.steps:
            return np.full((2, weight.shape[1]), np.nan)
        tied, between, positives = (self.counts @ weight).reshape(3, self.steps, -1)
        true, false = np.cumsum(positives, axis=0), np.cumsum(tied + between, axis=0)
        positive_total = true[-1].astype(np.float64)
        negative_total = total - positive_total
        below = negative_total - false + tied / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            area = np.einsum("kr,kr->r", positives, below) / (positive_total * negative_total)
            # A step without any weight at or above it gains nothing: 0 / 1.
            precision = np.divide(true, np.maximum(true + false, 1), dtype=np.float64)
            average_precision = np.einsum("kr,kr->r", positives, precision) / positive_total
        undefined = (positive_total <= 0) | (negative_total <= 0)
        return np.stack([np.where(undefined, np.nan, area), average_precision])


def ranking_areas(
    probability: Probabilities,
    label: Integers,
    group: Integers,
    weight: npt.NDArray[Any],
    classes: range,
) -> tuple[Floats, Floats]:
    """Weighted ROC AUC and average precision of classes; ties count half, as in scikit-learn.

    Args:
        probability: [N, C], finite.
        label: [N] class indices.
        group: [N], index into the rows of `weight`.
        weight: [G, R], whole numbers, one column per replicate.
        classes: the adjoining ones that are asked for, B of them.

    Returns:
        ROC AUC [B, R] (NaN where one of the two kinds has no weight) and average precision [B, R]
        (NaN where the positives have no weight).
    """
    ranked = _Ranked.of(label, group, weight)
    step = max(1, _COLUMN_ELEMENTS // max(len(label), 1))
    blocks = [
        range(first, min(first + step, classes.stop))
        for first in range(classes.start, classes.stop, step)
    ]
    area, average_precision = np.concatenate(
        [_areas(ranked.cells(probability, block), ranked, weight) for block in blocks], axis=1
    )
    return area, average_precision


@dataclass(frozen=True)
class _Ranked:
    """Rows with one group after another.

    Attributes:
        order: [N], the rows.
        label: [N], of the rows in this order.
        start: int32[G + 1], where each group begins, and N.
        ones: [N], of the type that weights and their sums have.
    """

    order: npt.NDArray[np.intp]
    label: Integers
    start: npt.NDArray[np.int32]
    ones: npt.NDArray[np.floating]

    @classmethod
    def of(
        cls,
        label: Integers,
        group: Integers,
        weight: npt.NDArray[Any],
    ) -> _Ranked:
        order = np.argsort(group, kind="stable")
        size = np.bincount(group, minlength=len(weight))
        start = np.append(0, np.cumsum(size)).astype(np.int32)
        whole = np.issubdtype(weight.dtype, np.integer)
        exact = whole and weighted_sums(size[None], weight).max() < _EXACT
        ones = np.ones(len(label), dtype=np.dtype(np.float32 if exact else np.float64))
        return cls(order, label[order], start, ones)

    def cells(self, probability: Probabilities, classes: range) -> list[RankingCells]:
        """Of adjoining classes."""
        columns = probability.columns(classes)

        def of_class(c: int) -> RankingCells:
            score = columns[c - classes.start][self.order]
            return RankingCells.of(score, self.label == c, self.start, self.ones)

        return in_threads(of_class, classes)


def _areas(cells: list[RankingCells], ranked: _Ranked, weight: npt.NDArray[Any]) -> Floats:
    """Both areas of some classes: [2, B, R]."""
    size = np.diff(ranked.start).astype(ranked.ones.dtype)

    def of_batch(batch: npt.NDArray[np.floating]) -> Floats:
        total = size @ batch
        return np.stack([each.areas(batch, total) for each in cells], axis=1)

    most = max(each.counts.shape[0] for each in cells)
    return in_batches(of_batch, weight, most, ranked.ones.dtype)
