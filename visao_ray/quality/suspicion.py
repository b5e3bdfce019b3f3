"""How much speaks against the label of each image, and which images a person should see first.

Two sources are combined as if they were independent: the probability from models that saw neither
the image nor its group (`out_of_fold`), and the labels of the other images of its group. What the
group says counts as much as groups agree in this base beyond chance: nothing, if images of one
container may well have different labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy import sparse

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int32]

#: Other images of the group count as two at most: they are alike, and one mistake may be in all.
_MOST_VOTES = 2.0
_MOST_AGREEMENT = 0.99
_LEAST = 1e-6
_BATCH = 65_536


@dataclass(frozen=True)
class Agreement:
    """How well the label of an image tells that of another one of its group.

    Attributes:
        observed: share of the pairs of images of one group that have the same label.
        chance: the same for any two images of the base.
        images: number of images that are not alone in their group.
        weight: what one other image adds to the log probability of its label.
    """

    observed: float
    chance: float
    images: int
    weight: float


def agreement(labels: Labels, groups: npt.NDArray[np.int32], classes: int) -> Agreement:
    """Measure how far the images of a group have the same label, beyond chance.

    Every image counts once, however large its group (Cohen's kappa between two images of a group,
    with the frequencies of the whole base).

    Args:
        labels: int32[N] class indices.
        groups: int32[N] group numbers.
        classes: number of classes C.

    Returns:
        The agreement; weight 0 if groups agree no better than chance.
    """
    counts = _counts(labels, groups, classes)
    size = np.asarray(counts.sum(axis=1)).ravel()
    same = np.asarray(counts.multiply(counts).sum(axis=1)).ravel() - size
    several = size > 1
    images = int(size[several].sum())
    shares = np.bincount(labels, minlength=classes) / max(len(labels), 1)
    chance = float(np.square(shares).sum())
    if not images or chance >= 1:
        return Agreement(chance, chance, images, 0.0)
    observed = float((same[several] / (size[several] - 1)).sum() / images)
    kappa = min(max((observed - chance) / (1 - chance), 0.0), _MOST_AGREEMENT)
    return Agreement(observed, chance, images, float(np.log1p(classes * kappa / (1 - kappa))))


def combine(
    probabilities: npt.NDArray[np.floating],
    labels: Labels,
    groups: npt.NDArray[np.int32],
    weight: float,
) -> npt.NDArray[np.float32]:
    """Combine probabilities of models with the labels of the other images of the group.

    The label of a row is not used for the row itself.

    Args:
        probabilities: float[N, C].
        labels: int32[N] class indices.
        groups: int32[N] group numbers.
        weight: see `Agreement.weight`.

    Returns:
        float32[N, C], each row sums to 1.
    """
    classes = probabilities.shape[1]
    found = np.empty(probabilities.shape, np.float32)
    counts = _counts(labels, groups, classes)
    for start in range(0, len(labels), _BATCH):
        part = slice(start, start + _BATCH)
        others = counts[groups[part]].toarray().astype(np.float64)
        others[np.arange(len(others)), labels[part]] -= 1
        total = others.sum(axis=1, keepdims=True)
        votes = others * (np.minimum(total, _MOST_VOTES) / np.maximum(total, 1))
        scores = np.log(np.maximum(probabilities[part], _LEAST)) + weight * votes
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        found[part] = scores / scores.sum(axis=1, keepdims=True)
    return found


def confident_flags(probabilities: npt.NDArray[np.float32], labels: Labels) -> Flags:
    """Flag labels by confident learning, with cleanlab and its settings for large data.

    Args:
        probabilities: float32[N, C].
        labels: int32[N] class indices; every class has at least one.

    Returns:
        bool[N].
    """
    from cleanlab.experimental.label_issues_batched import LabelInspector

    inspector = LabelInspector(num_class=probabilities.shape[1], verbose=False)
    parts = [slice(start, start + _BATCH) for start in range(0, len(labels), _BATCH)]
    for part in parts:
        inspector.update_confident_thresholds(labels[part], probabilities[part])
    for part in parts:
        inspector.score_label_quality(labels[part], probabilities[part])
    flags = np.zeros(len(labels), bool)
    flags[np.asarray(inspector.get_label_issues(), np.int64)] = True
    return flags


def threshold_flags(
    probabilities: npt.NDArray[np.float32],
    labels: Labels,
    positive: int | None,
    high: float,
    low: float,
) -> Flags:
    """Flag labels by the study's thresholds.

    With two classes and a positive one: images of the other class whose probability of the positive
    class is at least `high`, and images of the positive class for which it is at most `low`.
    Otherwise: images for which another class has at least `high`.

    Args:
        probabilities: float32[N, C].
        labels: int32[N] class indices.
        positive: index of the positive class, if there is one.
        high: upper threshold.
        low: lower threshold.

    Returns:
        bool[N].
    """
    if probabilities.shape[1] == 2 and positive is not None:
        score = probabilities[:, positive]
        return np.where(labels == positive, score <= low, score >= high)
    return np.asarray(_others(probabilities, labels).max(axis=1) >= high)


def suggestions(probabilities: npt.NDArray[np.float32], labels: Labels) -> npt.NDArray[np.int64]:
    """Return the most probable class other than the label, int64[N]."""
    return np.asarray(_others(probabilities, labels).argmax(axis=1), np.int64)


def review_order(own: npt.NDArray[np.floating], candidates: Flags) -> npt.NDArray[np.int64]:
    """Return the rows that a person should look at, those first whose label is least probable.

    Args:
        own: float[N], probability of the label.
        candidates: bool[N], rows to order.

    Returns:
        int64[n].
    """
    rows = np.flatnonzero(candidates)
    return np.asarray(rows[np.argsort(own[rows], kind="stable")], np.int64)


def _others(probabilities: npt.NDArray[np.float32], labels: Labels) -> npt.NDArray[np.float32]:
    found = probabilities.copy()
    found[np.arange(len(labels)), labels] = -1
    return found


def _counts(labels: Labels, groups: npt.NDArray[np.int32], classes: int) -> sparse.csr_array:
    from scipy import sparse

    ones = np.ones(len(labels), np.float64)
    shape = (int(groups.max(initial=-1)) + 1, classes)
    return sparse.csr_array((ones, (groups, labels)), shape=shape)
