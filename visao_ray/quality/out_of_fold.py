"""Probabilities of the labels of images, from models that saw neither the image nor its group.

The rows to judge are split into folds by group, several times. For each fold, a logistic regression
is fitted on the other folds, and on val if that is not judged; it gives the probabilities of this
fold. There is no other way to probabilities here, so no model ever judges a label that it was
fitted on (Kohavi, IJCAI 1995, for the estimate; Northcutt, Jiang & Chuang, JAIR 70, 2021, for its
use on labels).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError
from visao_ray.datasets.classes import class_numbers, find_classes
from visao_ray.datasets.spec import SPLITS, Dataset
from visao_ray.models.logistic import fit_logistic
from visao_ray.models.normalization import FeatureStats, Vectors
from visao_ray.store import schemas
from visao_ray.store.join import Examples, Snapshot, read_examples, scan_vectors

Numbers = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float32]

#: Principal components of the standardised vectors; more find no more wrong labels on real films.
_COMPONENTS = 256
_SAMPLE = 20_000  # vectors from which the components are found
_BLOCK = 8192
#: In place of the number of a fold.
ALWAYS, NEVER = -1, -2
#: Inverse penalties that are tried, for vectors of mean square 1.
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Rows:
    """Labelled images of the splits that are read, one per content.

    Attributes:
        examples: the images, in the order of their contents.
        classes: classes in index order.
        values: float32[N, K], principal components of the standardised vectors; the mean square of
            a row is 1.
        labels: int32[N], class indices.
        groups: int32[N], group numbers; an image without a group is a group of its own.
        splits: [N], names of splits.
        judged: bool[N], whether the label is to be judged.
        folds: int8[R, N], the fold of each judged row in each repeat; ALWAYS for rows that every
            model is fitted on (val, if it is not judged), NEVER for those of test.
    """

    examples: Examples
    classes: tuple[str, ...]
    values: Vectors
    labels: npt.NDArray[np.int32]
    groups: npt.NDArray[np.int32]
    splits: npt.NDArray[np.str_]
    judged: npt.NDArray[np.bool_]
    folds: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.labels)

    def of_fold(self, repeat: int, fold: int) -> tuple[Numbers, Numbers]:
        """Return the rows to fit on and the rows of the fold, int64[n] each."""
        of_row = self.folds[repeat]
        fitted = (of_row != fold) & (of_row != NEVER)
        return np.flatnonzero(fitted), np.flatnonzero(of_row == fold)


def read_rows(
    snapshot: Snapshot,
    dataset: Dataset,
    splits: Sequence[str],
    judged: Sequence[str],
    folds: int,
    repeats: int,
    seed: int,
) -> Rows:
    """Read labelled vectors, and draw the folds. For a task: 1.1 kB per image.

    Args:
        snapshot: versions to read, with vectors.
        dataset: dataset of the store.
        splits: splits to read.
        judged: splits of which the labels are judged.
        folds: number of folds.
        repeats: how often folds are drawn.
        seed: seed of folds and components.

    Returns:
        The rows.

    Raises:
        InputError: there are fewer groups than folds, or the labels do not fit the dataset.
    """
    assert snapshot.results is not None
    examples = read_examples(snapshot, splits)
    of_split = np.array(examples.splits.to_pylist(), str)
    is_judged = np.isin(of_split, judged)
    names = examples.labels.to_pylist()
    classes = find_classes(
        dataset,
        {name for name, one in zip(names, is_judged, strict=True) if one},
        names,
        snapshot.store,
    )
    numbers = examples.group_names.dictionary_encode().indices.to_numpy().astype(np.int32)
    labels = class_numbers(names, classes)
    return Rows(
        examples=examples,
        classes=classes,
        values=_components(snapshot, examples, seed),
        labels=labels,
        groups=numbers,
        splits=of_split,
        judged=is_judged,
        folds=_draw_folds(labels, numbers, of_split, is_judged, folds, repeats, seed),
    )


def _components(snapshot: Snapshot, examples: Examples, seed: int) -> Vectors:
    from sklearn.decomposition import PCA

    assert snapshot.results is not None
    pools = tuple(schemas.outputs(snapshot.results.schema))
    contents = examples.contents
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.choice(len(contents), min(len(contents), _SAMPLE), replace=False))
    sample = np.concatenate(
        [
            np.concatenate([values[pool] for pool in pools], axis=1)
            for _, values, _ in scan_vectors(snapshot.results, contents[sampled], pools)
        ]
    )
    stats = FeatureStats.of(sample)
    kept = min(_COMPONENTS, *sample.shape)
    pca = PCA(kept, svd_solver="randomized", random_state=seed)
    pca.fit((sample - stats.mean) / stats.deviation)
    found = np.zeros((len(contents), kept), np.float32)
    for places, values, _ in scan_vectors(snapshot.results, contents, pools):
        batch = np.concatenate([values[pool] for pool in pools], axis=1)
        found[places] = pca.transform((batch - stats.mean) / stats.deviation)
    square = float(np.mean(np.square(found, dtype=np.float64).sum(axis=1))) if len(found) else 1.0
    return np.asarray(found / (np.sqrt(square) or 1.0), np.float32)


def _draw_folds(
    labels: npt.NDArray[np.int32],
    groups: npt.NDArray[np.int32],
    splits: npt.NDArray[np.str_],
    judged: npt.NDArray[np.bool_],
    folds: int,
    repeats: int,
    seed: int,
) -> npt.NDArray[np.int8]:
    from sklearn.model_selection import StratifiedGroupKFold

    rows = np.flatnonzero(judged)
    count = len(np.unique(groups[rows]))
    if count < folds:
        raise InputError(
            f"--folds {folds}: the labels to judge are of {count} groups; folds keep a group "
            f"together, so choose at most {count}"
        )
    others = np.where(splits == SPLITS[-1], NEVER, ALWAYS).astype(np.int8)
    found = np.tile(others, (repeats, 1))
    for repeat in range(repeats):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + repeat)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class")
            parts = list(splitter.split(rows, labels[rows], groups[rows]))
        for fold, (_, held) in enumerate(parts):
            found[repeat, rows[held]] = fold
    return found


def fold_probabilities(rows: Rows, repeat: int, fold: int, c: float) -> Probabilities:
    """Fit on the other folds, and return the probabilities of this fold's rows.

    For a task.

    Args:
        rows: the labelled images.
        repeat: number of the repeat.
        fold: number of the fold.
        c: inverse of the L2 penalty.

    Returns:
        float32[n, C], in the order of `Rows.of_fold`; NaN in the column of a class that the other
        folds do not have.
    """
    train, held = rows.of_fold(repeat, fold)
    found = fit_and_predict(rows, train, rows.labels[train], held, c)
    absent = np.setdiff1d(np.arange(len(rows.classes)), rows.labels[train])
    found[:, absent] = np.nan
    return found


def fold_loss(rows: Rows, repeat: int, fold: int, c: float) -> tuple[float, int]:
    """Return the summed log loss of a fold, and the number of its rows. For a task."""
    found = fold_probabilities(rows, repeat, fold, c)
    _, held = rows.of_fold(repeat, fold)
    own = found[np.arange(len(held)), rows.labels[held]].astype(np.float64)
    known = np.isfinite(own)
    return float(-np.log(np.maximum(own[known], 1e-12)).sum()), int(known.sum())


def fit_and_predict(
    rows: Rows, train: Numbers, labels: npt.NDArray[np.int32], held: Numbers, c: float
) -> Probabilities:
    """Fit a logistic regression on some rows, and predict others.

    Args:
        rows: the labelled images.
        train: int64[n], rows to fit on.
        labels: int32[n], their labels.
        held: int64[m], other rows.
        c: inverse of the L2 penalty.

    Returns:
        float32[m, C].
    """

    def blocks() -> Iterator[Vectors]:
        for start in range(0, len(train), _BLOCK):
            yield rows.values[train[start : start + _BLOCK]]

    weights = np.ones(len(train), np.float32)
    kernel, bias = fit_logistic(blocks, labels, weights, len(rows.classes), c)
    logits = rows.values[held] @ kernel + bias
    logits -= logits.max(axis=1, keepdims=True)
    shares = np.exp(logits)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float32)
