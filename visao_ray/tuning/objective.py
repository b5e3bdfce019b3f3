"""What a trial is judged by on val, and which of two values is the better one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import numpy.typing as npt

from visao_ray.evaluation.comparison import LOWER_IS_BETTER, weighted
from visao_ray.settings import ObjectiveName

Objective = ObjectiveName
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
#: Those that are about one class.
OF_A_CLASS: tuple[Objective, ...] = ("f2", "recall_at_precision")

_TOLD: dict[Objective, str] = {
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "log_loss": "log loss",
}


@dataclass(frozen=True)
class Criterion:
    """An objective with what it needs to be computed.

    Attributes:
        name: which.
        positive: index of the class that f2 and recall_at_precision are about; also the class that
            is ranked where there are two.
        floor: the least precision of recall_at_precision, in (0, 1].
    """

    name: Objective
    positive: int
    floor: float = 0.9

    @property
    def lower_is_better(self) -> bool:
        """Whether smaller values win."""
        return self.name in LOWER_IS_BETTER

    def better(self, value: float, than: float) -> bool:
        """Whether one value beats another; any value beats NaN, NaN beats none."""
        return better(self.name, value, than)

    def told(self, classes: Sequence[str]) -> str:
        """As people read it, such as "recall of nvazio at precision ≥ 0.90"."""
        if self.name == "f2":
            return f"F2 of {classes[self.positive]}"
        if self.name == "recall_at_precision":
            floor = f"{self.floor:.2f}"
            floor = floor if float(floor) == self.floor else f"{self.floor:g}"
            return f"recall of {classes[self.positive]} at precision ≥ {floor}"
        return _TOLD[self.name]


def default_objective(classes: int) -> Objective:
    """ROC AUC for two classes; macro F1 for more, where rare classes must count."""
    return "roc_auc" if classes == 2 else "macro_f1"


def score(
    criterion: Criterion,
    labels: npt.NDArray[np.integer],
    probability: npt.NDArray[np.float32],
) -> float:
    """One metric of val predictions; NaN where it is undefined.

    The definitions are those of ``visao_ray.evaluation.comparison.weighted``. Undefined are: all,
    where a probability is not finite or there is no row; roc_auc and average_precision of one class
    alone; f2 and recall_at_precision of a class without rows; top5 of five classes or fewer.

    Args:
        criterion: which.
        labels: int32[N] class indices.
        probability: float32[N, C].
    """
    together = np.zeros(len(labels), dtype=np.int64)
    return float(weighted(criterion, labels, probability, together, 1)(np.ones((1, 1)))[0])


def scores(
    labels: npt.NDArray[np.integer],
    probability: npt.NDArray[np.float32],
    criterion: Criterion,
) -> dict[str, float]:
    """Every objective of val predictions, by name; see ``score``.

    Args:
        labels: int32[N] class indices.
        probability: float32[N, C].
        criterion: tells the class and the floor; its name does not matter.
    """
    return {name: score(replace(criterion, name=name), labels, probability) for name in OBJECTIVES}


def better(name: Objective, value: float, than: float) -> bool:
    """Whether one value of a metric beats another; any value beats NaN, NaN beats none."""
    if np.isnan(value) or np.isnan(than):
        return bool(np.isnan(than) and not np.isnan(value))
    return value < than if name in LOWER_IS_BETTER else value > than
