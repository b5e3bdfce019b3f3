"""Which rows a trial learns from and which judge it: a hold-out, or grouped folds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from visao_ray.errors import InputError
from visao_ray.features.vectors import Features, Moments, Vectors

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Row numbers int64[n]: train's rows come first in a table, then val's.

    Attributes:
        train: rows to learn from, all views.
        val: rows to judge by, as the images are.
    """

    train: Numbers
    val: Numbers


class Folds:
    """Features, and the ways of parting their rows. Test rows are not among them."""

    def __init__(self, features: Features, count: int, seed: int) -> None:
        """`count`: 1 for train and val as they are, or how many grouped folds of both together.

        Raises:
            InputError: fewer groups than folds.
        """
        self._features, self._count, self._seed = features, count, seed
        splits = (features.train, features.val)
        self.labels = np.concatenate([rows.labels for rows in splits])
        self.views = np.concatenate([rows.views for rows in splits])
        self._moments: dict[int, dict[str, Moments]] = {}

    def moments(self, number: int) -> dict[str, Moments]:
        """Of the rows that fold `number` learns from, for either pool."""
        if self._count == 1:
            return self._features.moments
        if number not in self._moments:
            rows = self._kfold[number].train
            self._moments[number] = {
                pool: Moments.of(self.take(pool, rows)) for pool in self._features.train.vectors
            }
        return self._moments[number]

    def parts(self, views: int | None, holdout: bool) -> Sequence[Fold]:
        """The folds; `views` limits the augmented views, `holdout` asks for train and val."""
        folds = self._holdout if holdout or self._count == 1 else self._kfold
        if views is None:
            return folds
        return [Fold(fold.train[self.views[fold.train] <= views], fold.val) for fold in folds]

    def take(self, pool: str, numbers: Numbers) -> Vectors:
        """Vectors float32[n, D] of these rows."""
        train, val = self._features.train.vectors[pool], self._features.val.vectors[pool]
        if numbers.max(initial=0) < len(train):
            return train[numbers]
        inside = numbers < len(train)
        found = np.empty((len(numbers), train.shape[1]), np.float32)
        found[inside] = train[numbers[inside]]
        found[~inside] = val[numbers[~inside] - len(train)]
        return found

    @cached_property
    def groups(self) -> npt.NDArray[np.int64]:
        """Of each row, numbered."""
        splits = (self._features.train, self._features.val)
        names = np.concatenate([rows.groups.to_numpy(zero_copy_only=False) for rows in splits])
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def _holdout(self) -> list[Fold]:
        rows = len(self._features.train.labels)
        return [Fold(np.arange(rows), np.arange(rows, len(self.labels)))]

    @cached_property
    def _kfold(self) -> list[Fold]:
        """Folds that keep a patient or container on one side, and classes even where they can."""
        from sklearn.model_selection import StratifiedGroupKFold

        if len(np.unique(self.groups)) < self._count:
            raise InputError(
                f"--folds {self._count}: train and val hold {len(np.unique(self.groups))} groups"
            )
        fold_of = StratifiedGroupKFold(self._count, shuffle=True, random_state=self._seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class")
            found = list(fold_of.split(self.labels, self.labels, self.groups))
        return [Fold(train, val[self.views[val] == 0]) for train, val in found]
