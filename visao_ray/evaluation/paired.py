"""Paired tests of two models on the same images, and the correction for many comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class McNemar:
    """The exact test of McNemar (Psychometrika 12, 1947): do two models err equally often?

    It uses the images on which exactly one of them is right, and takes images as independent. Where
    a patient or container has several images, they are not, and p is too small: the interval of a
    difference over groups (`comparison`) does not have this fault.

    Attributes:
        first_only: number of images on which only the first model is right.
        second_only: number of images on which only the second one is right.
        p: two-sided probability of a difference at least as large if they err equally often.
    """

    first_only: int
    second_only: int
    p: float


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> McNemar:
    """Test two models.

    Args:
        first: bool[N], whether the first model is right on each image.
        second: bool[N], the same for the second one.

    Returns:
        The test; p is 1 if the models are right on the same images.
    """
    from scipy.stats import binomtest

    only = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(only[0], sum(only), 0.5).pvalue) if sum(only) else 1.0
    return McNemar(*only, p)


def holm(p: Sequence[float]) -> list[float]:
    """Correct probabilities for their number (Holm, Scandinavian Journal of Statistics 6, 1979).

    Args:
        p: the probability of each test.

    Returns:
        Corrected probabilities in the same order, at most 1. The chance that any test with a
        corrected probability below 5 % is wrong is below 5 %.
    """
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    highest = 0.0
    for place, test in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - place) * p[test]))
        corrected[test] = highest
    return corrected.tolist()
