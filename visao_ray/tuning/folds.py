"""Train and evaluation rows of a trial: a hold-out, or grouped folds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError
from visao_ray.features.labelled import LabelledVectors
from visao_ray.models.normalization import FeatureStats, Vectors

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Row numbers int64[n] of labelled vectors.

    Attributes:
        train: rows to learn from, all views.
        val: rows to evaluate on, without augmented views.
        number: of the fold; None for the hold-out.
    """

    train: Numbers
    val: Numbers
    number: int | None = None


class Folds:
    """Labelled vectors in this process, with their hold-out and their folds.

    Args:
        data: train and val.
        count: 1 for train and val as they are, or the number of grouped folds of both together.
        seed: of the folds.

    Attributes:
        vectors: `avg` and `max`, float32[R, D], memory-mapped.
        labels: int32[R] class indices.
        groups: int32[R].
        views: int16[R].
    """

    vectors: Mapping[str, Vectors]
    labels: npt.NDArray[np.int32]
    groups: npt.NDArray[np.int32]
    views: npt.NDArray[np.int16]

    def __init__(self, data: LabelledVectors, count: int, seed: int) -> None:
        self._data, self._count, self._seed = data, count, seed
        self._mapped = data.open()
        self.vectors = self._mapped.vectors
        self.labels, self.groups, self.views = data.labels, data.groups, data.views
        self._stats: dict[int | None, dict[str, FeatureStats]] = {}

    def stats(self, fold: Fold) -> dict[str, FeatureStats]:
        """Mean and deviation of `avg` and `max` over all views of a fold's train rows."""
        if fold.number not in self._stats:
            whole = self._holdout if fold.number is None else self._kfold[fold.number]
            self._stats[fold.number] = {
                pool: FeatureStats.of(vectors, whole.train)
                for pool, vectors in self.vectors.items()
            }
        return self._stats[fold.number]

    def parts(self, views: int | None, holdout: bool) -> Sequence[Fold]:
        """Return the folds.

        Args:
            views: how many augmented views are used; None: all.
            holdout: train and val as they are, whatever the number of folds.

        Returns:
            One fold for the hold-out, else `count` folds.

        Raises:
            InputError: fewer groups than folds.
        """
        folds = [self._holdout] if holdout or self._count == 1 else self._kfold
        if views is None:
            return folds
        return [
            Fold(fold.train[self.views[fold.train] <= views], fold.val, fold.number)
            for fold in folds
        ]

    @cached_property
    def _holdout(self) -> Fold:
        return Fold(self._data.train_rows(), self._data.val_rows())

    @cached_property
    def _kfold(self) -> list[Fold]:
        """Folds that keep a patient or container on one side, and stratify classes if possible."""
        from sklearn.model_selection import StratifiedGroupKFold

        if len(np.unique(self.groups)) < self._count:
            raise InputError(
                f"--folds {self._count}: train and val hold {len(np.unique(self.groups))} groups"
            )
        fold_of = StratifiedGroupKFold(self._count, shuffle=True, random_state=self._seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class")
            found = list(fold_of.split(self.labels, self.labels, self.groups))
        return [
            Fold(train, val[self.views[val] == 0], number)
            for number, (train, val) in enumerate(found)
        ]
