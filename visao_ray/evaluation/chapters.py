"""Accuracy of chapters, the first digits of a tariff heading.

Headings of the Harmonized System have four digits. The first two are the chapter: 8703 belongs to
chapter 87, vehicles.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from visao_ray.evaluation.bootstrap import (
    UNDEFINED,
    Integers,
    estimates,
    group_multiplicities,
    group_sums,
    weighted_sums,
)
from visao_ray.evaluation.labelled_scores import Codes, Values, sorted_codes
from visao_ray.evaluation.probabilities import Matrix, Probabilities


def chapter_metrics(
    label: Integers,
    probability: Matrix | Probabilities,
    group: Values,
    classes: Sequence[str],
    digits: int,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute the share of images with a correctly predicted chapter, overall and per chapter.

    Args:
        label: int [N], class indices.
        probability: float [N, C], finite.
        group: [N], the unit that the bootstrap draws.
        classes: the C headings, in any order.
        digits: number of leading digits that make a chapter.
        replicates: number of bootstrap replicates.
        seed: seed of the bootstrap; the draws are those of `classification_metrics`.

    Returns:
        `chapter_accuracy` (chapter of the most probable heading) and `chapter_accuracy_summed`
        (chapter with the largest sum of probabilities over its headings), each as `{"value",
        "low", "high", "n"}`, and `per_chapter.CHAPTER` with `support`, `accuracy` and
        `accuracy_summed` (for the images of that chapter, so a recall). Undefined values are None
        with n 0.
    """
    of_class = np.array([name[:digits] for name in classes])
    chapters, chapter = np.unique(of_class, return_inverse=True)
    width, truth = len(chapters), chapter[label]
    support = np.bincount(truth, minlength=width)
    per_chapter: dict[str, dict[str, Any]] = {
        str(name): {"support": int(n)} for name, n in zip(chapters, support, strict=True)
    }
    result: dict[str, Any] = {}
    guesses = _guesses(Probabilities.of(probability), chapter, width)
    if len(label) == 0:
        for name in guesses:
            result[f"chapter_{name}"] = UNDEFINED.to_json()
            for entry in per_chapter.values():
                entry[name] = UNDEFINED.to_json()
        return result | {"per_chapter": per_chapter}

    drawn, group_count = sorted_codes(group)
    of_chapter = group_sums(truth, drawn, (width, group_count))
    hits = [guess == truth for guess in guesses.values()]
    of_hit = [group_sums(truth[hit], drawn[hit], (width, group_count)) for hit in hits]
    chunks = []
    for weight in group_multiplicities(group_count, replicates, seed):
        total = weighted_sums(of_chapter, weight)
        right = np.stack([weighted_sums(counts, weight) for counts in of_hit])
        with np.errstate(invalid="ignore"):  # a chapter that was not drawn
            shares = right / total
        overall = right.sum(axis=1, keepdims=True) / total.sum(axis=0)
        chunks.append(np.concatenate([overall, shares], axis=1))
    n = [len(label), *support]
    contributing = [group_count, *np.diff(of_chapter.indptr)]
    for name, values in zip(guesses, np.concatenate(chunks, axis=2), strict=True):
        found = [estimate.to_json() for estimate in estimates(values, n, contributing, share=True)]
        result[f"chapter_{name}"] = found[0]
        for entry, estimate in zip(per_chapter.values(), found[1:], strict=True):
            entry[name] = estimate
    return result | {"per_chapter": per_chapter}


def _guesses(probability: Probabilities, chapter: Integers, width: int) -> dict[str, Codes]:
    """Return the chapters of the most probable heading and of the largest sum: int32[N] each."""
    of_largest = np.empty(len(probability), np.int32)
    summed = np.empty(len(probability), np.int32)
    by_chapter = np.argsort(chapter, kind="stable")
    first = np.searchsorted(chapter[by_chapter], np.arange(width))
    for place, piece in probability.pieces():
        of_largest[place] = chapter[piece.argmax(axis=1)]
        sums = np.add.reduceat(piece[:, by_chapter], first, axis=1, dtype=np.float64)
        summed[place] = sums.argmax(axis=1)
    return {"accuracy": of_largest, "accuracy_summed": summed}
