"""Logistic regression fitted by scikit-learn, kept as a head of one Dense layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.errors import InputError
from visao_ray.models.normalization import Vectors

_NEVER = -30.0  # logit of a class without train rows: p ≈ 1e-13
_ITERATIONS = 1000


def fit_logistic(
    x: Vectors,
    labels: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    classes: int,
    c: float,
) -> list[Any]:
    """The kernel float32[D, C] and bias float32[C] of a softmax layer.

    Args:
        x: float32[N, D], standardised.
        labels: int32[N] class indices.
        weights: float32[N], how much each row counts.
        classes: C; one without rows gets probability ≈ 0.
        c: inverse of the L2 penalty.

    Raises:
        InputError: fewer than two classes.
    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        raise InputError("train holds a single class; logistic regression needs two or more")
    fitted = LogisticRegression(C=c, max_iter=_ITERATIONS).fit(x, labels, sample_weight=weights)
    slopes, offsets = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # scikit-learn keeps the second class's alone
        slopes, offsets = np.concatenate([-slopes, slopes]) / 2, np.append(-offsets, offsets) / 2
    kernel = np.zeros((x.shape[1], classes), np.float32)
    bias = np.full(classes, _NEVER, np.float32)
    kernel[:, fitted.classes_] = slopes.T
    bias[fitted.classes_] = offsets
    return [kernel, bias]
