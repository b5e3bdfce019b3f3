"""Evaluate a predictions table: threshold from val, metrics of val and test."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from visao_ray.core.errors import InputError
from visao_ray.evaluation.chapters import chapter_metrics
from visao_ray.evaluation.classification import metrics_at
from visao_ray.evaluation.curves import (
    binary_curves,
    calibration_bins,
    histograms,
    top_k_curve,
)
from visao_ray.evaluation.labelled_scores import LabelledScores
from visao_ray.evaluation.probabilities import Probabilities
from visao_ray.evaluation.thresholds import OperatingThreshold, threshold_for_recall

SPLITS = ("val", "test")
FEW_ROWS = 100


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one model, for result files and reports.

    Attributes:
        classes: declared class order; rows and columns of confusion matrices.
        positive: the positive class, or None.
        threshold: chosen on val for the target recall; None with more than two classes, without a
            positive class, or without positive rows in val (then there is a warning).
        metrics: `val` and `test` at 0.5 (most probable class), and with a threshold
            `val_at_threshold` and `test_at_threshold`; see `classification_metrics`. If classes
            have chapters, `val` and `test` contain `chapter_metrics` too.
        curves: per split, ROC and precision-recall points, or the top-k curve; None if undefined.
        calibration: per split, the reliability diagram.
        histograms: per split, p(positive) by true class, or the highest probability by right and
            wrong.
        counts: per split, rows and groups.
        warnings: what limits the value of these metrics.
    """

    classes: tuple[str, ...]
    positive: str | None
    threshold: OperatingThreshold | None
    metrics: dict[str, dict[str, Any]]
    curves: dict[str, dict[str, Any] | None]
    calibration: dict[str, dict[str, Any] | None]
    histograms: dict[str, dict[str, Any]]
    counts: dict[str, dict[str, int]]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping without NaN."""
        return asdict(self) | {"classes": list(self.classes), "warnings": list(self.warnings)}


def evaluate_predictions(
    predictions: pa.Table,
    classes: Sequence[str],
    positive: str | None,
    target_recall: float = 0.95,
    seed: int = 0,
    replicates: int = 1000,
    *,
    chapter_digits: int = 0,
) -> Evaluation:
    """Evaluate the val and test rows of a predictions table (other splits are ignored).

    Only val rows determine the threshold; test rows never influence anything. Probabilities are
    read in place and never copied as a whole; a table in a mapped file needs little memory.

    Args:
        predictions: columns split, label, probability (fixed_size_list<float32>[C]), group, key;
            a row with a null group is a group of its own.
        classes: declared class order, the order of the probabilities.
        positive: with two classes, the class to choose the threshold for.
        target_recall: recall of the positive class that the threshold must reach, in (0, 1].
        seed: seed of the bootstrap.
        replicates: number of bootstrap replicates.
        chapter_digits: number of leading digits of a class that make its chapter; 0 without
            chapters.

    Returns:
        The evaluation.

    Raises:
        InputError: neither val nor test rows, a missing column, a label outside the classes,
            probabilities of another width or not finite, a target outside (0, 1].
    """
    if not 0 < target_recall <= 1:
        raise InputError(f"target recall {target_recall} is outside (0, 1]")
    names = tuple(classes)
    rows = {split: _rows(predictions, split, names) for split in SPLITS}
    if not any(map(len, rows.values())):
        raise InputError("predictions hold no val or test rows, so there is nothing to evaluate")
    warnings = [
        f"Only {len(part)} {split} images: differences of a few points are not significant."
        if len(part)
        else f"No {split} images: there are no metrics of {split}."
        for split, part in rows.items()
        if len(part) < FEW_ROWS
    ]

    binary = len(names) == 2 and positive is not None
    column = names.index(positive) if binary and positive in names else None
    threshold: OperatingThreshold | None = None
    if column is not None and positive is not None:
        val = rows["val"]
        if (val.label == column).any():
            threshold = threshold_for_recall(
                val.score(column), val.label == column, target_recall, positive
            )
        else:
            warnings.append(
                f"No operating threshold: val has no {positive} image to choose it from."
            )

    cuts: dict[str, float | None] = {"": None}
    if threshold is not None:
        cuts["_at_threshold"] = threshold.threshold
    by_split = {
        split: metrics_at(list(cuts.values()), part, names, positive, replicates, seed)
        for split, part in rows.items()
    }
    metrics = {
        split + suffix: by_split[split][number]
        for number, suffix in enumerate(cuts)
        for split in SPLITS
    }
    if chapter_digits:
        for split, part in rows.items():
            metrics[split] |= chapter_metrics(
                part.label, part.probability, part.group, names, chapter_digits, replicates, seed
            )

    curves: dict[str, dict[str, Any] | None] = {}
    calibration: dict[str, dict[str, Any] | None] = {}
    split_histograms: dict[str, dict[str, Any]] = {}
    for split, part in rows.items():
        if column is not None:
            score, event = part.score(column), part.label == column
            cut = threshold.threshold if threshold is not None else None
            curves[split] = binary_curves(score, event, cut)
            subsets = {name: part.label == index for index, name in enumerate(names)}
        else:
            score, event = part.highest, part.most_probable == part.label
            curves[split] = top_k_curve(part.rank, len(names))
            subsets = {"right": event, "wrong": ~event}
        calibration[split] = calibration_bins(score, event)
        split_histograms[split] = histograms(score, subsets)
    return Evaluation(
        classes=names,
        positive=positive,
        threshold=threshold,
        metrics=metrics,
        curves=curves,
        calibration=calibration,
        histograms=split_histograms,
        counts={
            split: {"images": len(part), "groups": int(metrics[split]["groups"])}
            for split, part in rows.items()
        },
        warnings=tuple(warnings),
    )


def _rows(predictions: pa.Table, split: str, classes: tuple[str, ...]) -> LabelledScores:
    for column in ("key", "split", "label", "probability", "group"):
        if column not in predictions.column_names:
            raise InputError(f"predictions have no column {column!r}")
    chosen = pc.fill_null(pc.equal(predictions["split"], split), False)
    probability = predictions["probability"]
    missing = pc.or_(pc.is_null(predictions["label"]), pc.is_null(probability))
    if pc.any(pc.and_(chosen, missing)).as_py():
        raise InputError(f"some {split} predictions have no label or no probability")
    narrow = predictions.select(["key", "label", "group"]).filter(chosen)
    return LabelledScores.of(
        narrow["label"],
        Probabilities.of_column(probability, chosen.to_numpy(), len(classes)),
        pc.coalesce(narrow["group"], narrow["key"]),
        classes,
    )
