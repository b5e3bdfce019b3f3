"""Points of curves and counts of bins, computed for reports, which only draw them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.evaluation.bootstrap import Floats

MAX_POINTS = 300


def binary_curves(
    score: npt.NDArray[np.floating],
    is_positive: npt.NDArray[np.bool_],
    threshold: float | None,
) -> dict[str, Any] | None:
    """Compute ROC and precision-recall points of one split, and the positions of the thresholds.

    Args:
        score: float [N], p(positive).
        is_positive: bool [N].
        threshold: the operating threshold, or None.

    Returns:
        `roc` {fpr, tpr}, `pr` {recall, precision} (at most 300 points each, at corners of the
        curve), `prevalence`, and `points`: for `half` (0.5) and `operating` the threshold, fpr,
        recall and precision (None if nothing is predicted positive). None if there are no positive
        or no negative rows.
    """
    positives = int(is_positive.sum())
    negatives = len(score) - positives
    if positives == 0 or negatives == 0:
        return None
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    true = np.cumsum(is_positive[order])[ends].astype(np.float64)
    false = (ends + 1) - true
    tpr, fpr = true / positives, false / negatives
    precision = true / (true + false)
    keep = _corners(fpr, tpr)
    points: dict[str, Any] = {"half": _point(score, is_positive, 0.5)}
    if threshold is not None:
        points["operating"] = _point(score, is_positive, threshold)
    return {
        "roc": {"fpr": [0.0, *fpr[keep].tolist()], "tpr": [0.0, *tpr[keep].tolist()]},
        "pr": {"recall": tpr[keep].tolist(), "precision": precision[keep].tolist()},
        "prevalence": positives / len(score),
        "points": points,
    }


def top_k_curve(rank: npt.NDArray[np.integer], classes: int) -> dict[str, Any] | None:
    """Compute top-k accuracy for k = 1 … 10 (at most C).

    Args:
        rank: int [N], number of classes that are at least as probable as the true one.
        classes: C, the number of classes.

    Returns:
        `k` and `share`, the accuracy at each k; None without rows.
    """
    if len(rank) == 0:
        return None
    ks = range(1, min(10, classes) + 1)
    return {"k": list(ks), "share": [float((rank <= k).mean()) for k in ks]}


def calibration_bins(
    probability: npt.NDArray[np.floating], happened: npt.NDArray[np.bool_], bins: int = 10
) -> dict[str, Any] | None:
    """Compute a reliability diagram: predicted against observed, in equal-width bins.

    Args:
        probability: float [N], of the event (positive class, or correct prediction).
        happened: bool [N], whether the event happened.
        bins: number of bins over 0..1; empty bins are left out.

    Returns:
        `predicted` (mean), `observed` (share), `n` per bin and `expected_calibration_error`
        (Naeini et al., AAAI 2015: the n-weighted mean absolute gap).
    """
    if len(probability) == 0:
        return None
    p = probability.astype(np.float64)
    cell = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    n = np.bincount(cell, minlength=bins)
    used = n > 0
    predicted = np.bincount(cell, p, bins)[used] / n[used]
    observed = np.bincount(cell, happened, bins)[used] / n[used]
    gap = float((np.abs(predicted - observed) * n[used]).sum() / len(p))
    return {
        "predicted": predicted.tolist(),
        "observed": observed.tolist(),
        "n": n[used].tolist(),
        "expected_calibration_error": gap,
    }


def histograms(
    probability: npt.NDArray[np.floating],
    member: dict[str, npt.NDArray[np.bool_]],
    bins: int = 25,
) -> dict[str, Any]:
    """Return `edges` and `counts` of a histogram over 0..1, for each named subset of rows."""
    edges: Floats = np.linspace(0, 1, bins + 1)
    return {
        "edges": edges.tolist(),
        "counts": {
            name: np.histogram(probability[mask], edges)[0].tolist()
            for name, mask in member.items()
        },
    }


def _point(
    score: npt.NDArray[np.floating], is_positive: npt.NDArray[np.bool_], threshold: float
) -> dict[str, Any]:
    chosen = score >= threshold
    true = int((chosen & is_positive).sum())
    return {
        "threshold": threshold,
        "fpr": int((chosen & ~is_positive).sum()) / int((~is_positive).sum()),
        "recall": true / int(is_positive.sum()),
        "precision": true / int(chosen.sum()) if chosen.any() else None,
    }


def _corners(fpr: Floats, tpr: Floats) -> npt.NDArray[np.int64]:
    """Return indices of the points to draw: corners of the steps, thinned evenly to MAX_POINTS."""
    straight = (np.diff(fpr[:-1]) == 0) & (np.diff(fpr[1:]) == 0)
    straight |= (np.diff(tpr[:-1]) == 0) & (np.diff(tpr[1:]) == 0)
    keep = np.flatnonzero(np.concatenate([[True], ~straight, [True]])[: len(fpr)])
    if len(keep) > MAX_POINTS:
        keep = keep[np.linspace(0, len(keep) - 1, MAX_POINTS).round().astype(np.int64)]
    return keep.astype(np.int64)
