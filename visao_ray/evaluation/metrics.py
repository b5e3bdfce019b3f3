"""Classification metrics, each with its sample size and a 95 % grouped bootstrap interval.

Conventions follow scikit-learn: balanced accuracy averages the recall of the classes that are
present, macro F1 averages over the classes that are present or predicted, log loss clips
probabilities at the float32 epsilon, and areas count ties half.

An interval is the spread that other patients or containers would bring, for a fixed model and a
fixed threshold; see ``bootstrap.estimates``. An area or F1 of exactly 1 gets an interval without
width; its n says how little that means.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.errors import InputError
from visao_ray.evaluation.bootstrap import (
    UNDEFINED,
    Estimate,
    Floats,
    Integers,
    estimates,
    group_multiplicities,
)
from visao_ray.evaluation.ranking import group_sums, ranking_areas

PER_CLASS = ("precision", "recall", "f1", "roc_auc", "average_precision")
OVERALL = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "log_loss",
    "roc_auc",
    "average_precision",
)
# A dense matrix of more classes than this is large and unreadable; top_confusions tells it.
DENSE_CONFUSION_CLASSES = 100
TOP_CONFUSIONS = 50


def class_indices(
    labels: Sequence[str] | npt.NDArray[np.integer], classes: Sequence[str]
) -> Integers:
    """Labels as int64 [N] positions in the declared class order.

    Raises:
        InputError: a label is not one of the classes.
    """
    array = np.asarray(labels)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if np.issubdtype(array.dtype, np.integer):
        if array.min() < 0 or array.max() >= len(classes):
            raise InputError(f"class index outside 0..{len(classes) - 1} among the labels")
        return np.asarray(array, dtype=np.int64)
    position = {name: index for index, name in enumerate(classes)}
    unknown = sorted({str(name) for name in array.tolist() if name not in position})
    if unknown:
        raise InputError(
            f"label {unknown[0]!r} is not one of the {len(classes)} classes"
            f" ({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"
        )
    return np.array([position[name] for name in array.tolist()], dtype=np.int64)


def checked_probability(
    probability: npt.NDArray[np.floating], rows: int, classes: int
) -> npt.NDArray[np.floating]:
    """Probabilities of the right shape [N, C] and finite, or InputError."""
    array = np.asarray(probability)
    if array.shape != (rows, classes):
        raise InputError(
            f"probabilities have shape {array.shape}, expected {(rows, classes)}"
            " (one row per image, one column per class)"
        )
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise InputError(
            f"{int(bad.sum())} of {rows} predictions hold NaN or infinite probabilities;"
            " the model diverged or its input was not finite"
        )
    return array


def predicted_classes(
    probability: npt.NDArray[np.floating], positive: int | None, threshold: float | None
) -> Integers:
    """Predicted class indices [N]: the most probable class, or for two classes p >= threshold.

    With a positive class and no threshold, 0.5 is the threshold, so that "at 0.5" and "at the
    operating threshold" follow the same rule.
    """
    if probability.shape[1] == 2 and positive is not None:
        cut = 0.5 if threshold is None else threshold
        return np.where(probability[:, positive] >= cut, positive, 1 - positive).astype(np.int64)
    if threshold is not None:
        raise ValueError("a threshold needs two classes and a positive one")
    if len(probability) == 0:
        return np.zeros(0, dtype=np.int64)
    most_probable: Integers = probability.argmax(axis=1).astype(np.int64)
    return most_probable


def classification_metrics(
    labels: Sequence[str] | npt.NDArray[np.integer],
    probability: npt.NDArray[np.floating],
    groups: Sequence[str] | npt.NDArray[Any],
    classes: Sequence[str],
    positive: str | None,
    threshold: float | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge predictions against labels.

    Args:
        labels: [N] class names, or class indices.
        probability: [N, C], columns in the order of ``classes``.
        groups: [N] patient, container or whatever must be drawn as one.
        classes: the C declared class names.
        positive: the class whose ROC AUC and average precision are the overall ones when there
            are two classes. Otherwise those are macro one-vs-rest averages over the classes
            that have both kinds.
        threshold: for two classes only; positive is predicted where p(positive) >= threshold.
        replicates: bootstrap replicates.
        seed: of the bootstrap; the same seed draws the same groups.

    Returns:
        JSON-ready: every overall name as ``{"value", "low", "high", "n"}`` (more than two
        classes add ``top1`` and ``top5``); ``per_class.CLASS`` with precision, recall, f1,
        roc_auc, average_precision likewise and ``support`` (int); ``confusion`` [true][predicted]
        counts (None above 100 classes); ``top_confusions``, the most frequent mistakes;
        ``groups``, how many groups there were. Undefined values are None with n 0.

    Raises:
        InputError: unknown label, wrong shape, or a probability that is not finite.
    """
    label = class_indices(labels, classes)
    count, width = len(label), len(classes)
    if len(groups) != count:
        raise InputError(f"{count} labels but {len(groups)} groups")
    p = checked_probability(probability, count, width)
    if positive is not None and positive not in classes:
        raise InputError(f"positive class {positive!r} is not one of {', '.join(classes[:5])}")
    positive_index = classes.index(positive) if positive is not None else None
    predicted = predicted_classes(p, positive_index, threshold)
    if count == 0:
        return _undefined_metrics(classes)

    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    group = inverse.astype(np.int64)
    group_count = len(names)
    hit = predicted == label
    of_label = group_sums(label, group, (width, group_count))
    of_predicted = group_sums(predicted, group, (width, group_count))
    of_hit = group_sums(label[hit], group[hit], (width, group_count))
    row_values = _row_values(label, p)
    row_sums = np.stack([np.bincount(group, v, group_count) for v in row_values.values()])

    overall_chunks: list[Floats] = []
    class_chunks: list[Floats] = []
    for weight in group_multiplicities(group_count, replicates, seed, count):
        support, guessed, right = of_label @ weight, of_predicted @ weight, of_hit @ weight
        total = support.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = right / guessed
            recall = right / support
            f1 = 2 * right / (support + guessed)
            simple = np.concatenate([right.sum(axis=0)[None], row_sums @ weight]) / total
        areas = [ranking_areas(p[:, c], label == c, group, weight) for c in range(width)]
        area, average_precision = (np.stack(kind) for kind in zip(*areas, strict=True))
        class_chunks.append(np.stack([precision, recall, f1, area, average_precision]))
        if width == 2 and positive_index is not None:
            ranking = np.stack([area[positive_index], average_precision[positive_index]])
        else:
            both = np.isfinite(area)
            ranking = np.stack([_mean(area, both), _mean(average_precision, both)])
        macro = np.stack([_mean(recall, support > 0), _mean(f1, support + guessed > 0)])
        overall_chunks.append(np.concatenate([simple, macro, ranking]))

    overall_names = (
        "accuracy",
        *row_values,
        "balanced_accuracy",
        "macro_f1",
        "roc_auc",
        "average_precision",
    )
    overall: dict[str, Estimate] = {}
    for name, values in zip(overall_names, np.concatenate(overall_chunks, axis=1), strict=True):
        ceiling = np.inf if name == "log_loss" else 1.0
        share = name in {"accuracy", "top5"}
        overall[name] = estimates(values[None], count, group_count, ceiling, share)[0]
    if width > 2:
        overall["top1"] = overall["accuracy"]
    result: dict[str, Any] = {name: e.to_json() for name, e in overall.items()}

    support_count = np.bincount(label, minlength=width)
    predicted_count = np.bincount(predicted, minlength=width)
    hit_count = np.bincount(label[hit], minlength=width)
    labelled, guessed_in = _nonzero(of_label), _nonzero(of_predicted)
    size = np.bincount(group, minlength=group_count)
    # Groups made of one class only have nothing to say about the other side of its ROC curve.
    other = np.array([_others(of_label, c, size) for c in range(width)])
    rows_and_groups: dict[str, tuple[npt.ArrayLike, npt.ArrayLike]] = {
        "precision": (predicted_count, guessed_in),
        "recall": (support_count, labelled),
        "f1": (support_count + predicted_count - hit_count, _nonzero(of_label + of_predicted)),
        "roc_auc": (count, np.minimum(labelled, other)),
        "average_precision": (count, labelled),
    }
    per_class: dict[str, dict[str, Any]] = {
        name: {"support": int(s)} for name, s in zip(classes, support_count, strict=True)
    }
    for metric, values in zip(PER_CLASS, np.concatenate(class_chunks, axis=2), strict=True):
        n, bearing = rows_and_groups[metric]
        share = metric in {"precision", "recall"}
        judged = estimates(values, n, bearing, share=share)
        for name, estimate in zip(classes, judged, strict=True):
            per_class[name][metric] = estimate.to_json()
    if width == 2 and positive is not None:
        # One quantity, one interval: the overall areas are the positive class's.
        for metric in ("roc_auc", "average_precision"):
            result[metric] = per_class[positive][metric]
    result["per_class"] = per_class
    result["groups"] = group_count
    result.update(_confusions(label, predicted, classes))
    return result


def _row_values(label: Integers, p: npt.NDArray[np.floating]) -> dict[str, Floats]:
    """Quantities that are plain averages over rows: [N] each."""
    epsilon = float(np.finfo(np.float32).eps)
    of_true = p[np.arange(len(label)), label]
    values = {"log_loss": -np.log(np.clip(of_true.astype(np.float64), epsilon, 1 - epsilon))}
    if p.shape[1] > 2:
        # Ties rank against the true class: a constant prediction earns no credit.
        rank = (p >= of_true[:, None]).sum(axis=1)
        values["top5"] = (rank <= 5).astype(np.float64)
    return values


def _mean(values: Floats, mask: npt.NDArray[np.bool_]) -> Floats:
    """Mean over classes (axis 0) where the mask holds; NaN where it holds nowhere."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: Floats = np.where(mask, values, 0.0).sum(axis=0) / mask.sum(axis=0)
    return mean


def _nonzero(counts: Any) -> Integers:
    """Groups with at least one row, per class: [C] from sparse [C, G]."""
    filled: Integers = np.diff(counts.indptr).astype(np.int64)
    return filled


def _others(of_label: Any, c: int, size: Integers) -> int:
    """Number of groups holding at least one row of another class than c."""
    start, stop = of_label.indptr[c], of_label.indptr[c + 1]
    full = of_label.data[start:stop] == size[of_label.indices[start:stop]]
    return len(size) - int(full.sum())


def _confusions(label: Integers, predicted: Integers, classes: Sequence[str]) -> dict[str, Any]:
    width = len(classes)
    pairs, counts = np.unique(label * width + predicted, return_counts=True)
    wrong = pairs // width != pairs % width
    order = np.argsort(-counts[wrong], kind="stable")[:TOP_CONFUSIONS]
    top = [
        {"label": classes[pair // width], "predicted": classes[pair % width], "count": int(n)}
        for pair, n in zip(pairs[wrong][order], counts[wrong][order], strict=True)
    ]
    dense: list[list[int]] | None = None
    if width <= DENSE_CONFUSION_CLASSES:
        flat = np.bincount(label * width + predicted, minlength=width * width)
        dense = flat.reshape(width, width).tolist()
    return {"confusion": dense, "top_confusions": top}


def _undefined_metrics(classes: Sequence[str]) -> dict[str, Any]:
    """What an empty split gets: every name present, every value None."""
    names = OVERALL + (("top1", "top5") if len(classes) > 2 else ())
    empty: Estimate = UNDEFINED
    result: dict[str, Any] = {name: empty.to_json() for name in names}
    result["per_class"] = {
        name: {"support": 0} | {metric: empty.to_json() for metric in PER_CLASS} for name in classes
    }
    none = np.zeros(0, dtype=np.int64)
    return result | {"groups": 0} | _confusions(none, none, classes)
