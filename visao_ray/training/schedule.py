"""Which rows stand in which step of which epoch: a pure function of seed and epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Schedule:
    """Shares rows out in steps of one size, the same however many workers take part.

    Every row stands in an epoch once (in pairs: once as the first of a pair). The last step is
    filled up with rows that stand in the epoch already, and weight 0 tells them.

    Attributes:
        labels: int32[N], class index of each row.
        batch: rows a step, of all workers together.
        seed: of the order.
        shuffled: draw a new order every epoch; otherwise rows come as they are.
        pairs: rows 2i and 2i + 1 of a step are a pair; half of the pairs are of one class.
    """

    labels: npt.NDArray[np.int32]
    batch: int
    seed: int
    shuffled: bool = True
    pairs: bool = False

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return -(-self._rows // self.batch)

    @property
    def _rows(self) -> int:
        return len(self.labels) * (2 if self.pairs else 1)

    def epoch(self, number: int) -> tuple[Integers, npt.NDArray[np.float32]]:
        """Row numbers int64[steps, batch] and their weights, 1 or, for filling, 0."""
        rng = np.random.default_rng([self.seed, number if self.shuffled else 0])
        order = np.arange(len(self.labels))
        if self.shuffled:
            order = rng.permutation(order)
        if self.pairs:
            order = np.stack([order, self._partners(order, rng)], axis=1).reshape(-1)
        size = self.steps * self.batch
        weights = (np.arange(size) < len(order)).astype(np.float32)
        filled = np.resize(order, size)  # repeats from the start
        return filled.reshape(-1, self.batch), weights.reshape(-1, self.batch)

    def _partners(self, order: Integers, rng: np.random.Generator) -> Integers:
        """A partner for each row: of its own class or of another, evenly, where there are both."""
        by_class = np.argsort(self.labels, kind="stable")
        counts = np.bincount(self.labels)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        labels = self.labels[order]
        own, first = counts[labels], starts[labels]
        others = len(self.labels) - own
        same = (rng.random(len(order)) < 0.5) & (own > 1) | (others == 0)
        within = first + (rng.random(len(order)) * own).astype(np.int64)
        # The rows of other classes are those before and after the class's own stretch.
        across = (rng.random(len(order)) * others).astype(np.int64)
        across += np.where(across >= first, own, 0)
        return by_class[np.where(same, within, across)]
