"""What a trial is judged by on val, and which of two values is the better one."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Objective = Literal["roc_auc", "average_precision", "macro_f1", "log_loss"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


def default_objective(classes: int) -> Objective:
    """ROC AUC for two classes; macro F1 for more, where rare classes must count."""
    return "roc_auc" if classes == 2 else "macro_f1"


def score(
    name: Objective,
    labels: npt.NDArray[np.int32],
    probability: npt.NDArray[np.float32],
    positive: int,
) -> float:
    """One metric of val predictions; NaN where it is undefined (a single class in val).

    Args:
        name: which.
        labels: int32[N] class indices.
        probability: float32[N, C].
        positive: index of the positive class where C is 2. With more classes the ranking metrics
            are macro averages, one against the rest, over the classes that have both kinds.
    """
    from sklearn.metrics import average_precision_score, f1_score, log_loss, roc_auc_score

    count = probability.shape[1]
    if not np.isfinite(probability).all():
        return float("nan")
    if name == "log_loss":
        p = probability.astype(np.float64)
        p /= p.sum(axis=1, keepdims=True)
        return float(log_loss(labels, p, labels=np.arange(count)))
    if name == "macro_f1":
        predicted = probability.argmax(axis=1)
        return float(f1_score(labels, predicted, average="macro", zero_division=0))
    area = roc_auc_score if name == "roc_auc" else average_precision_score
    present = np.unique(labels)
    if len(present) < 2:
        return float("nan")
    ranked = [positive] if count == 2 else present
    return float(np.mean([area(labels == index, probability[:, index]) for index in ranked]))


def better(name: Objective, value: float, than: float) -> bool:
    """Whether one value of a metric beats another; any value beats NaN, NaN beats none."""
    if np.isnan(value) or np.isnan(than):
        return bool(np.isnan(than) and not np.isnan(value))
    return value < than if name == "log_loss" else value > than
