"""Areas under the ROC and precision-recall curves of many classes and many sets of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from visao_ray.evaluation.bootstrap import Floats, Integers, in_batches, in_threads, weighted_sums
from visao_ray.evaluation.probabilities import Probabilities

if TYPE_CHECKING:
    from scipy import sparse

# Scores held at once, one column per class: 256 MB of float32, and as much for cells.
_COLUMN_ELEMENTS = 64_000_000
# Integers below this are exact in float32.
_EXACT = 2**24


@dataclass(frozen=True)
class RankingCells:
    """The ranking of one class: sorted once, it gives both areas for any weights of the groups.

    Both areas change only at the scores of positive rows. So negatives are counted at and between
    these scores. Negatives below the lowest of them are counted only in the total.

    Attributes:
        steps: k, the number of distinct scores of positive rows; step 0 is the highest.
        counts: rows per cell and group, sparse [3k, G]: negatives with the score of step i are in
            cell i, negatives between step i and the next higher one in cell k + i, positives of
            step i in cell 2k + i.
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
        """Sort the scores of the positives and find the position of every other row among them.

        Args:
            score: float [N], higher means more positive; rows are ordered by group.
            is_positive: bool [N].
            start: int32[G + 1], the first row of each group, and N.
            ones: [N], with the dtype of the weights.

        Returns:
            The ranking.
        """
        from scipy import sparse

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
        """Compute ROC AUC and average precision for each column of weights.

        Args:
            weight: integers [G, r].
            total: [r], the weight of all rows.

        Returns:
            float64 [2, r].
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
            # A step with no weight at or above it adds nothing: 0 / 1.
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
    """Compute weighted ROC AUC and average precision of classes; ties as in scikit-learn.

    Args:
        probability: float [N, C], finite.
        label: int [N], class indices.
        group: int [N], indices of rows of `weight`.
        weight: integers [G, R], one column per replicate.
        classes: B adjacent classes.

    Returns:
        ROC AUC float64 [B, R] (NaN if positives or negatives have no weight) and average precision
        float64 [B, R] (NaN if positives have no weight).
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
    """Rows ordered by group.

    Attributes:
        order: int [N], the rows.
        label: int [N], labels in this order.
        start: int32[G + 1], the first row of each group, and N.
        ones: [N], with the dtype of the weights and their sums.
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
        """Return the rankings of adjacent classes."""
        columns = probability.columns(classes)

        def of_class(c: int) -> RankingCells:
            score = columns[c - classes.start][self.order]
            return RankingCells.of(score, self.label == c, self.start, self.ones)

        return in_threads(of_class, classes)


def _areas(cells: list[RankingCells], ranked: _Ranked, weight: npt.NDArray[Any]) -> Floats:
    """Compute both areas of classes: float64 [2, B, R]."""
    size = np.diff(ranked.start).astype(ranked.ones.dtype)

    def of_batch(batch: npt.NDArray[np.floating]) -> Floats:
        total = size @ batch
        return np.stack([each.areas(batch, total) for each in cells], axis=1)

    max_cells = max(each.counts.shape[0] for each in cells)
    return in_batches(of_batch, weight, max_cells, ranked.ones.dtype)
