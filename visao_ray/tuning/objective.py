"""The objective of a sweep: the metric on val that ranks trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visao_ray.evaluation.comparison import weighted
from visao_ray.evaluation.labelled_scores import LabelledScores
from visao_ray.evaluation.metric import Metric
from visao_ray.evaluation.metrics import METRICS


@dataclass(frozen=True)
class Criterion:
    """An objective with its parameters.

    Attributes:
        name: of the metric.
        positive: index of the class of a metric of one class; also the class that is ranked when
            there are two.
        floor: the least precision of recall_at_precision, in (0, 1].
    """

    name: str
    positive: int
    floor: float = 0.9

    @property
    def metric(self) -> Metric:
        """The metric itself.

        Raises:
            InputError: there is none of that name.
        """
        return METRICS.find(self.name, "--objective")

    @property
    def lower_is_better(self) -> bool:
        """Whether smaller values win."""
        return not self.metric.greater_is_better

    def better(self, value: float, than: float) -> bool:
        """Whether `value` is better than `than`; any value is better than NaN."""
        return self.metric.better(value, than)

    def describe(self, classes: Sequence[str]) -> str:
        """Return the title of the objective, such as "recall of nvazio at precision ≥ 0.90"."""
        floor = f"{self.floor:.2f}"
        floor = floor if float(floor) == self.floor else f"{self.floor:g}"
        return self.metric.title.format(positive=classes[self.positive], floor=floor)


def default_objective(classes: int) -> str:
    """Return ROC AUC for two classes, and macro F1 for more, because rare classes must count."""
    return "roc_auc" if classes == 2 else "macro_f1"


def val_metrics(
    labels: npt.NDArray[np.integer],
    probability: npt.NDArray[np.float32],
    criterion: Criterion,
    names: Iterable[str] = METRICS,
) -> dict[str, float]:
    """Compute metrics of val predictions.

    Args:
        labels: int32[N] class indices.
        probability: float32[N, C].
        criterion: the class and the floor; its name does not matter.
        names: of the metrics.

    Returns:
        Values by name; NaN if undefined, see `comparison.weighted`.
    """
    metrics = [METRICS.find(name, "--objective") for name in names]
    rows = LabelledScores.read(labels, probability, np.zeros(len(labels), np.int32), 1)
    found = weighted(metrics, criterion, rows, np.ones((1, 1)))[:, 0]
    return {metric.name: float(value) for metric, value in zip(metrics, found, strict=True)}
