"""Mean and standard deviation of features, which models use to standardise their input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

#: Lower bound of a standard deviation, as a share of the typical one. It keeps standardising from
#: amplifying a feature that hardly varies in train. (A channel that is constant in train may vary
#: elsewhere.)
_MIN_DEVIATION = 0.03
_BLOCK = 4096  # rows in float64 at once


@dataclass(frozen=True)
class FeatureStats:
    """Mean and standard deviation of each feature; the deviation is never 0.

    Attributes:
        mean: float32[D] means.
        deviation: float32[D] standard deviations.
    """

    mean: Vectors
    deviation: Vectors

    @classmethod
    def of(cls, vectors: Vectors, rows: npt.NDArray[np.integer] | None = None) -> FeatureStats:
        """Compute the statistics in float64, block by block (Chan, Golub & LeVeque, 1979).

        Args:
            vectors: float32[N, D], in memory or memory-mapped; N ≥ 1.
            rows: int[n], numbers of the rows to use; None for all.

        Returns:
            The statistics.
        """
        count = 0
        mean = np.zeros(vectors.shape[1])
        squares = np.zeros(vectors.shape[1])
        for block in _blocks(vectors, rows):
            part = block.astype(np.float64)
            part_mean = part.mean(axis=0)
            part -= part_mean
            both = count + len(part)
            shift = part_mean - mean
            squares += np.square(part).sum(axis=0) + np.square(shift) * (count * len(part) / both)
            mean += shift * (len(part) / both)
            count = both
        variance = squares / count
        least = max(_MIN_DEVIATION * float(np.sqrt(variance.mean())), 1e-6)
        deviation = np.maximum(np.sqrt(variance), least)
        return cls(mean.astype(np.float32), deviation.astype(np.float32))


def _blocks(vectors: Vectors, rows: npt.NDArray[np.integer] | None) -> Iterator[Vectors]:
    for start in range(0, len(vectors) if rows is None else len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        yield vectors[part] if rows is None else vectors[rows[part]]
