"""The operating threshold: chosen on val for a target recall, and fixed from then on."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError


@dataclass(frozen=True)
class OperatingThreshold:
    """A threshold on p(positive), with its metrics on the rows it was chosen on."""

    positive: str
    target_recall: float
    threshold: float
    recall: float
    specificity: float | None
    precision: float
    support: int
    n: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a mapping."""
        return asdict(self)


def threshold_for_recall(
    score: npt.NDArray[np.floating],
    is_positive: npt.NDArray[np.bool_],
    target_recall: float,
    positive: str = "positive",
) -> OperatingThreshold:
    """Find the largest threshold with a recall (share of positives with score >= it) of the target.

    It is the score of a positive row: with P positives, the ceil(target x P)-th highest of their
    scores. Any higher value would lose that row and miss the target. It is deliberately not the
    midpoint to the next lower score, which would be a smaller threshold. Rows with exactly this
    score are all predicted positive, so equal scores can give a recall above the target. Every
    target up to 1 can be reached, in the worst case with specificity 0.

    Args:
        score: float [N], p(positive) on val.
        is_positive: bool [N].
        target_recall: above 0, at most 1.
        positive: name of the positive class, for messages and the result.

    Returns:
        The threshold, and its recall, specificity (None without negatives) and precision.

    Raises:
        InputError: the target is outside (0, 1], no row is positive, or a score is not finite.
    """
    if not 0 < target_recall <= 1:
        raise InputError(f"target recall {target_recall} is outside (0, 1]")
    if not np.isfinite(score).all():
        raise InputError("a threshold needs finite scores, and some are NaN or infinite")
    positives = int(is_positive.sum())
    if positives == 0:
        raise InputError(
            f"val has no image of class {positive!r}, so no threshold can be chosen for its recall"
        )
    # Remove the rounding error: 0.55 * 20 is 11.000000000000002 in floating point.
    needed = max(1, math.ceil(target_recall * positives - 1e-9))
    threshold = np.sort(score[is_positive])[positives - needed]
    chosen = score >= threshold
    true_positives = int((chosen & is_positive).sum())
    negatives = len(score) - positives
    false_positives = int(chosen.sum()) - true_positives
    return OperatingThreshold(
        positive=positive,
        target_recall=target_recall,
        threshold=float(threshold),
        recall=true_positives / positives,
        specificity=1 - false_positives / negatives if negatives else None,
        precision=true_positives / (true_positives + false_positives),
        support=positives,
        n=len(score),
    )
