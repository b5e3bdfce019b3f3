"""The operating threshold: chosen on val for a target recall, then left alone."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError


@dataclass(frozen=True)
class OperatingThreshold:
    """A threshold on p(positive) and what it does on the rows it was chosen on."""

    positive: str
    target_recall: float
    threshold: float
    recall: float
    specificity: float | None
    precision: float
    support: int
    n: int

    def to_json(self) -> dict[str, Any]:
        """Plain mapping of the fields."""
        return asdict(self)


def threshold_for_recall(
    score: npt.NDArray[np.floating],
    is_positive: npt.NDArray[np.bool_],
    target_recall: float,
    positive: str = "positive",
) -> OperatingThreshold:
    """The largest threshold whose recall (share of positives with score >= it) meets the target.

    It is the score of a positive row: with P positives, the ceil(target x P)-th highest of their
    scores. Any higher value would lose that row and miss the target; it is deliberately not the
    midpoint to the next lower score, which would be a smaller threshold. Rows tied with it are
    all predicted positive, so tied scores may push the recall above the target. Every target up
    to 1 can be met, at worst at the price of specificity 0.

    Args:
        score: [N] p(positive) on val.
        is_positive: [N].
        target_recall: above 0, at most 1.
        positive: the class name, for messages and the record.

    Returns:
        The threshold and the achieved recall, specificity (None without negatives) and precision.

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
    # 0.95 * 20 is 19.000000000000004 in floating point: shave what rounding added.
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
