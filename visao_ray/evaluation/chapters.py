"""Chapters: the first digits of a tariff heading, and how often they at least are right.

Headings of the Harmonized System have four digits, of which two are the chapter: 8703 is of
chapter 87, vehicles.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.evaluation.bootstrap import UNDEFINED, Integers, estimates, group_multiplicities
from visao_ray.evaluation.ranking import group_sums


def chapter_metrics(
    label: npt.NDArray[np.integer],
    probability: npt.NDArray[np.floating],
    group: Sequence[str] | npt.NDArray[Any],
    classes: Sequence[str],
    digits: int,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Share of images whose chapter is right, over all and per chapter.

    Args:
        label: [N] class indices.
        probability: [N, C], finite.
        group: [N] what must be drawn as one.
        classes: the C headings, in any order.
        digits: how many first digits make a chapter.
        replicates: of the bootstrap.
        seed: of the bootstrap; the draws are those of ``classification_metrics``.

    Returns:
        ``chapter_accuracy`` (chapter of the most probable heading) and ``chapter_accuracy_summed``
        (chapter with the largest sum of its headings' probabilities), each ``{"value", "low",
        "high", "n"}``, and ``per_chapter.CHAPTER`` with ``support``, ``accuracy`` and
        ``accuracy_summed`` (the share of its own images, a recall). Undefined ones are None with
        n 0.
    """
    of_class = np.array([name[:digits] for name in classes])
    chapters, chapter = np.unique(of_class, return_inverse=True)
    width, truth = len(chapters), chapter[label]
    support = np.bincount(truth, minlength=width)
    per_chapter: dict[str, dict[str, Any]] = {
        str(name): {"support": int(n)} for name, n in zip(chapters, support, strict=True)
    }
    result: dict[str, Any] = {}
    guesses = {
        "accuracy": chapter[probability.argmax(axis=1)],
        "accuracy_summed": _summed(probability, chapter, width).argmax(axis=1),
    }
    if len(label) == 0:
        for name in guesses:
            result[f"chapter_{name}"] = UNDEFINED.to_json()
            for entry in per_chapter.values():
                entry[name] = UNDEFINED.to_json()
        return result | {"per_chapter": per_chapter}

    names, inverse = np.unique(np.asarray(group), return_inverse=True)
    drawn, group_count = inverse.astype(np.int64), len(names)
    of_chapter = group_sums(truth, drawn, (width, group_count))
    hits = [guess == truth for guess in guesses.values()]
    of_hit = [group_sums(truth[hit], drawn[hit], (width, group_count)) for hit in hits]
    chunks = []
    for weight in group_multiplicities(group_count, replicates, seed, len(label)):
        total, right = of_chapter @ weight, np.stack([counts @ weight for counts in of_hit])
        with np.errstate(invalid="ignore"):  # a chapter that was not drawn
            shares = right / total
        overall = right.sum(axis=1, keepdims=True) / total.sum(axis=0)
        chunks.append(np.concatenate([overall, shares], axis=1))
    n = [len(label), *support]
    bearing = [group_count, *np.diff(of_chapter.indptr)]
    for name, values in zip(guesses, np.concatenate(chunks, axis=2), strict=True):
        judged = [estimate.to_json() for estimate in estimates(values, n, bearing, share=True)]
        result[f"chapter_{name}"] = judged[0]
        for entry, estimate in zip(per_chapter.values(), judged[1:], strict=True):
            entry[name] = estimate
    return result | {"per_chapter": per_chapter}


def _summed(
    probability: npt.NDArray[np.floating], chapter: Integers, width: int
) -> npt.NDArray[np.float64]:
    """Probabilities of the chapters [N, K], from those of the headings."""
    summed = np.empty((len(probability), width))
    for index in range(width):
        summed[:, index] = probability[:, chapter == index].sum(axis=1, dtype=np.float64)
    return summed
