"""Areas under the ROC and precision-recall curves for many sets of weights at once."""

import numpy as np
import numpy.typing as npt
from scipy import sparse

from visao_ray.evaluation.bootstrap import Floats, Integers


def group_sums(
    cell: npt.NDArray[np.integer], group: Integers, shape: tuple[int, int]
) -> "sparse.csr_array":
    """Count rows per (cell, group): sparse float64 [cells, groups].

    Multiplied by weights [groups, R] it gives the weighted count of every cell in every
    replicate.
    """
    return sparse.csr_array((np.ones(len(cell)), (cell, group)), shape=shape)


def ranking_areas(
    score: npt.NDArray[np.floating],
    is_positive: npt.NDArray[np.bool_],
    group: Integers,
    weight: Floats,
) -> tuple[Floats, Floats]:
    """Weighted ROC AUC and average precision; ties count half, as in scikit-learn.

    Both areas change only at the scores of positive rows. So negatives are counted between
    those scores, and the ones below the lowest positive score only through the total.

    Args:
        score: [N], higher means more positive.
        is_positive: [N].
        group: [N], index into the rows of ``weight``.
        weight: [G, R], one column per replicate.

    Returns:
        ROC AUC [R] (NaN where one of the two kinds has no weight) and average precision [R]
        (NaN where the positives have no weight).
    """
    groups = len(weight)
    steps, step = np.unique(score[is_positive], return_inverse=True)
    k = len(steps)
    positives = group_sums(step, group[is_positive], (k, groups)) @ weight
    negative_score, negative_group = score[~is_positive], group[~is_positive]
    # 2i: between steps i-1 and i; 2i + 1: tied with step i.
    cell = np.searchsorted(steps, negative_score, "left") + np.searchsorted(
        steps, negative_score, "right"
    )
    # Cell 0 (below every positive) is not needed: the total knows it.
    above = cell > 0
    negatives = group_sums(cell[above] - 1, negative_group[above], (2 * k, groups)) @ weight
    at_or_above = np.cumsum(negatives[::-1], axis=0)[::-1]
    tied, false_positives = negatives[0::2], at_or_above[0::2]

    size = np.bincount(group, minlength=groups).astype(np.float64)
    positive_total = positives.sum(axis=0)
    negative_total = size @ weight - positive_total
    true_positives = np.cumsum(positives[::-1], axis=0)[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        below = negative_total - false_positives + tied / 2
        area = (positives * below).sum(axis=0) / (positive_total * negative_total)
        precision = true_positives / (true_positives + false_positives)
        # Steps without weight change no recall, whatever their precision.
        gained = np.where(positives > 0, positives * precision, 0.0).sum(axis=0)
        average_precision = gained / positive_total
    undefined = (positive_total <= 0) | (negative_total <= 0)
    return np.where(undefined, np.nan, area), average_precision
