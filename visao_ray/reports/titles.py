"""Names and formats of metrics in reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from visao_ray.evaluation.metrics import METRICS

#: Metrics that are not in `METRICS`: of the most probable class, of chapters, of one class.
_OTHERS = {
    "top1": "top-1 accuracy",
    "chapter_accuracy": "chapter accuracy (2 digits)",
    "chapter_accuracy_summed": "chapter accuracy, headings summed",
    "recall": "recall",
    "precision": "precision",
}


def title(name: str) -> str:
    """Return the name of a metric in the middle of a sentence."""
    return METRICS[name].title if name in METRICS else _OTHERS[name]


def heading(name: str) -> str:
    """Return the name of a metric at the start of a line."""
    words = title(name)
    return words[0].upper() + words[1:]


def kind(name: str) -> Literal["share", "area"]:
    """Return how `formats.estimate` formats a metric: in percent, or as a plain number."""
    if name in METRICS:
        return "area" if METRICS[name].unit == "number" else "share"
    return "share" if name in _OTHERS else "area"


def overall(found: Mapping[str, Any]) -> list[str]:
    """Return the names of the overall metrics of an evaluation, in the order of lines.

    Metrics whose titles name a class or a floor are no overall metrics.
    """
    metrics = [name for name, metric in METRICS.items() if "{" not in metric.title]
    names = ["top1", *metrics, "chapter_accuracy", "chapter_accuracy_summed"]
    present = [name for name in names if name in found]
    return [name for name in present if name != "accuracy" or "top1" not in present]
