"""Differences between splits, and between the newest batch and those before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visao_ray.datasets.spec import SPLITS
from visao_ray.evaluation.bootstrap import Estimate, estimates, group_multiplicities
from visao_ray.quality.check import Check, Found
from visao_ray.quality.evidence import Evidence

#: Two sets of images differ if the lower limit of the AUC that tells them apart is above this.
LIMIT = 0.6
_MOST = 5000  # images of each set that the classifier is fitted on
_LEAST_GROUPS = 20  # groups that each set must have
_FOLDS = 5
_REPLICATES = 200
_SHOWN = 12


@dataclass(frozen=True)
class Comparison:
    """Two sets of images to compare.

    Attributes:
        name: name of the figure, such as `test_against_train`.
        text: the two sets in words.
        split: split of the figure in `metrics`: that of the second set, or `all`.
        first: bool[P], images of the first set.
        second: bool[P], images of the second set.
    """

    name: str
    text: str
    split: str
    first: npt.NDArray[np.bool_]
    second: npt.NDArray[np.bool_]


def find_shifts(evidence: Evidence) -> Found:
    """Ask whether a classifier can tell two sets of images apart (two-sample test).

    A logistic regression on the vectors is cross-validated by groups. If the sets are alike, its
    AUC is 0.5. The images with the highest probability of the second set show the difference.

    Source: Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests, ICLR 2017.
    """
    files, vectors = evidence.files, evidence.vectors
    assert vectors is not None
    first = files.first[vectors.contents]
    scores = np.ones(len(first), np.float32)
    flagged = np.zeros(len(first), bool)
    metrics: dict[str, dict[str, object]] = {}
    lines, shown, notes, texts = [], [], {}, []
    groups = np.where(
        files.group.codes[first] >= 0, files.group.codes[first], len(files.group.names) + first
    )
    for comparison in _comparisons(evidence, first):
        probability, auc = tell_apart(vectors.values, comparison, groups, evidence.seed)
        metrics.setdefault(comparison.split, {})[comparison.name] = auc.to_json()
        lines.append((comparison.text, _interval(auc), f"{auc.n:,}"))
        rows = np.flatnonzero(comparison.second)
        scores[rows] = np.minimum(scores[rows], 1 - probability[rows])
        if auc.low is None or auc.low <= LIMIT:
            continue
        texts.append(f"{comparison.text}: AUC {_interval(auc)}")
        flagged[rows[probability[rows] > 0.9]] = True
        for row in rows[np.argsort(-probability[rows], kind="stable")][:_SHOWN]:
            shown.append(int(first[row]))
            notes[int(first[row])] = f"{comparison.text}: probability {probability[row]:.3f}"
    if texts:
        summary = "some images are not like the others: " + "; ".join(texts)
    else:
        summary = (
            "the compared sets of images are alike"
            if lines
            else f"no two sets with at least {_LEAST_GROUPS} groups to compare"
        )
    return Found(
        evidence.of_files(vectors.contents, scores, 1.0),
        evidence.of_files(vectors.contents, flagged.astype(np.float32), 0.0) > 0,
        summary,
        metrics,
        rows=tuple(dict.fromkeys(shown)),
        notes=notes,
        table=(("sets", "AUC (95 % interval)", "images"), tuple(lines)) if lines else None,
    )


def _comparisons(evidence: Evidence, first: npt.NDArray[np.int64]) -> list[Comparison]:
    """Return val and test against train, and the last batch against those before it."""
    files = evidence.files
    side = files.split.among(SPLITS)[first]
    found = [
        Comparison(f"{split}_against_train", f"{split} and train", split, side == 0, side == place)
        for place, split in enumerate(SPLITS[1:], start=1)
    ]
    batches = sorted(files.batch.names)
    if len(batches) > 1:
        place = files.batch.among(batches)[first]
        last = len(batches) - 1
        found.append(
            Comparison(
                "last_batch_against_others",
                f"batch {batches[-1]} and those before it",
                "all",
                (place >= 0) & (place < last),
                place == last,
            )
        )
    groups = files.group.codes[first]
    return [
        each
        for each in found
        if min(len(np.unique(groups[each.first])), len(np.unique(groups[each.second])))
        >= _LEAST_GROUPS
    ]


def tell_apart(
    values: npt.NDArray[np.float32],
    comparison: Comparison,
    groups: npt.NDArray[np.int64],
    seed: int,
) -> tuple[npt.NDArray[np.float32], Estimate]:
    """Cross-validate a classifier of two sets of images.

    Args:
        values: float32[P, D], vectors.
        comparison: the sets.
        groups: int64[P], groups of the images, which stay on one side of each fold.
        seed: seed of the sample, the folds and the bootstrap.

    Returns:
        Probability that an image is of the second set, float32[P], by models that did not see it;
        and the AUC with its interval over groups.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(seed)
    sides = [np.flatnonzero(comparison.first), np.flatnonzero(comparison.second)]
    chosen = np.sort(
        np.concatenate([rng.choice(rows, min(len(rows), _MOST), replace=False) for rows in sides])
    )
    target = comparison.second[chosen].astype(int)
    probability = np.zeros(len(values), np.float32)
    others = np.setdiff1d(np.concatenate(sides), chosen)
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    for seen, unseen in folds.split(chosen, target, groups[chosen]):
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500)
        ).fit(values[chosen[seen]], target[seen])
        probability[chosen[unseen]] = model.predict_proba(values[chosen[unseen]])[:, 1]
        if len(others):
            probability[others] += model.predict_proba(values[others])[:, 1] / _FOLDS
    _, group = np.unique(groups[chosen], return_inverse=True)
    count = int(group.max()) + 1
    drawn = np.concatenate(list(group_multiplicities(count, _REPLICATES, seed)), axis=1)
    areas = np.full((1, drawn.shape[1]), np.nan)
    for replicate, weights in enumerate(drawn.T):
        weight = weights[group]
        if weight[target == 0].any() and weight[target == 1].any():
            areas[0, replicate] = roc_auc_score(target, probability[chosen], sample_weight=weight)
    return probability, estimates(areas, len(chosen), count)[0]


def _interval(auc: Estimate) -> str:
    if auc.value is None or auc.low is None or auc.high is None:
        return "undefined"
    return f"{auc.value:.2f} ({auc.low:.2f} to {auc.high:.2f})"


SHIFT = Check(
    "shift",
    "Splits and batches that differ",
    "Whether a classifier can tell test from train, or the newest batch from the others, by the "
    "vectors alone: another device, another hospital, another kind of cargo. Metrics on one kind "
    "of image say little about the other.",
    "vectors",
    find_shifts,
)
