"""Logistic regression as a head of one layer, fitted by SciPy's L-BFGS over blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError
from visao_ray.models.normalization import Vectors

_NEVER = -30.0  # logit of a class without train rows: p ≈ 1e-13
#: The same as scikit-learn's LogisticRegression, to reach the same result.
_OPTIONS = {"maxiter": 1000, "maxls": 50, "gtol": 1e-4, "ftol": 64 * np.finfo(float).eps}

Floats = npt.NDArray[np.float64]


def fit_logistic(
    blocks: Callable[[], Iterator[Vectors]],
    labels: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    classes: int,
    c: float,
) -> list[Any]:
    """Fit logistic regression.

    Every evaluation of the objective reads all blocks once, so memory holds one block at a time.

    Args:
        blocks: Function that returns an iterator over the standardised rows, float32[n, D] each.
        labels: int32[N] class indices.
        weights: float32[N] sample weights.
        classes: C; a class without rows gets probability ≈ 0.
        c: Inverse of the L2 penalty, as in scikit-learn.

    Returns:
        Kernel float32[D, C] and bias float32[C] of a softmax layer.

    Raises:
        InputError: There are fewer than two classes.
    """
    from scipy.optimize import minimize

    present, targets = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise InputError("train holds a single class; logistic regression needs two or more")
    width = next(blocks()).shape[1]
    # For two classes, only the scores of the second are fitted; ± half of them are the logits.
    scored = 1 if len(present) == 2 else len(present)
    total = float(weights.sum(dtype=np.float64))
    penalty = 1 / (c * total)

    def objective(flat: Floats) -> tuple[float, Floats]:
        parameters = flat.reshape(scored, width + 1)
        slopes, offsets = parameters[:, :-1], parameters[:, -1]
        loss, gradient = 0.0, np.zeros_like(parameters)
        start = 0
        for x in blocks():
            rows = slice(start, start + len(x))
            start += len(x)
            scores = (x @ slopes.T.astype(np.float32)).astype(np.float64) + offsets
            losses, errors = _cross_entropy(scores, targets[rows])
            loss += float(losses @ weights[rows])
            errors *= weights[rows, None]
            gradient[:, :-1] += errors.T.astype(np.float32) @ x
            gradient[:, -1] += errors.sum(axis=0)
        gradient /= total
        gradient[:, :-1] += penalty * slopes
        return loss / total + penalty / 2 * float(np.square(slopes).sum()), gradient.reshape(-1)

    start = np.zeros(scored * (width + 1))
    fitted = minimize(objective, start, method="L-BFGS-B", jac=True, options=_OPTIONS).x
    parameters = fitted.reshape(scored, width + 1)
    if scored == 1:
        parameters = np.concatenate([-parameters, parameters]) / 2
    kernel = np.zeros((width, classes), np.float32)
    bias = np.full(classes, _NEVER, np.float32)
    kernel[:, present] = parameters[:, :-1].T
    bias[present] = parameters[:, -1]
    return [kernel, bias]


def _cross_entropy(scores: Floats, targets: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return the loss of each row, float64[n], and its gradient by the scores, float64[n, S]."""
    single = scores.shape[1] == 1
    logits = np.concatenate([-scores, scores], axis=1) / 2 if single else scores
    logits = logits - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits)
    sums = probabilities.sum(axis=1)
    rows = np.arange(len(targets))
    losses = np.log(sums) - logits[rows, targets]
    probabilities /= sums[:, None]
    probabilities[rows, targets] -= 1
    return losses, probabilities[:, 1:] if single else probabilities
