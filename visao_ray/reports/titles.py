"""What reports call a figure of an evaluation, and how they write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from visao_ray.evaluation.metrics import METRICS

#: Figures beside those of `METRICS`: of the most probable class, of chapters, of one class.
_OTHERS = {
    "top1": "top-1 accuracy",
    "chapter_accuracy": "chapter (2 digits) right",
    "chapter_accuracy_summed": "chapter right, headings summed",
    "recall": "recall",
    "precision": "precision",
}


def title(name: str) -> str:
    """A figure's name in the middle of a sentence."""
    return METRICS[name].title if name in METRICS else _OTHERS[name]


def heading(name: str) -> str:
    """A figure's name at the start of a line."""
    words = title(name)
    return words[0].upper() + words[1:]


def kind(name: str) -> Literal["share", "area"]:
    """How `formats.estimate` writes a figure: in percent, or as a plain number."""
    if name in METRICS:
        return "area" if METRICS[name].unit == "number" else "share"
    return "share" if name in _OTHERS else "area"


def overall(found: Mapping[str, Any]) -> list[str]:
    """The figures over all classes that an evaluation has, in the order of lines."""
    names = ["top1", *METRICS, "chapter_accuracy", "chapter_accuracy_summed"]
    there = [name for name in names if name in found]
    return [name for name in there if name != "accuracy" or "top1" not in there]
