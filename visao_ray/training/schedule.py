"""The rows of each training step: a pure function of seed and epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Schedule:
    """Divide rows into steps of equal size, independent of the number of workers.

    Every row is in an epoch once (with pairs: once as the first of a pair). The last step is padded
    with rows that are in the epoch already; these have weight 0.

    Attributes:
        labels: int32[N], class index of each row.
        batch: Rows per step, of all workers together.
        seed: Seed of the order.
        shuffled: Draw a new order in every epoch; otherwise rows keep their order.
        pairs: Rows 2i and 2i + 1 of a step are a pair; half of the pairs are of one class.
    """

    labels: npt.NDArray[np.int32]
    batch: int
    seed: int
    shuffled: bool = True
    pairs: bool = False

    @property
    def steps(self) -> int:
        """Number of steps per epoch."""
        return -(-self._rows // self.batch)

    @property
    def _rows(self) -> int:
        return len(self.labels) * (2 if self.pairs else 1)

    def epoch(self, number: int) -> tuple[Integers, npt.NDArray[np.float32]]:
        """Return row numbers, int64[steps, batch], and weights: 1, or 0 for padding."""
        rng = np.random.default_rng([self.seed, number if self.shuffled else 0])
        order = np.arange(len(self.labels))
        if self.shuffled:
            order = rng.permutation(order)
        if self.pairs:
            order = np.stack([order, self._partners(order, rng)], axis=1).reshape(-1)
        size = self.steps * self.batch
        weights = (np.arange(size) < len(order)).astype(np.float32)
        padded = np.resize(order, size)  # repeats from the start
        return padded.reshape(-1, self.batch), weights.reshape(-1, self.batch)

    def _partners(self, order: Integers, rng: np.random.Generator) -> Integers:
        """Draw a partner for each row, of its own class or of another with equal probability."""
        by_class = np.argsort(self.labels, kind="stable")
        counts = np.bincount(self.labels)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        labels = self.labels[order]
        own, first = counts[labels], starts[labels]
        others = len(self.labels) - own
        same = (rng.random(len(order)) < 0.5) & (own > 1) | (others == 0)
        within = first + (rng.random(len(order)) * own).astype(np.int64)
        # The rows of other classes are those before and after the rows of the own class.
        across = (rng.random(len(order)) * others).astype(np.int64)
        across += np.where(across >= first, own, 0)
        return by_class[np.where(same, within, across)]
