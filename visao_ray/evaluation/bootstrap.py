"""Grouped bootstrap: whole patients or containers are drawn, never single images.

Images of one patient resemble each other, so drawing them one by one would pretend to more
evidence than there is. A replicate is a vector of group multiplicities; a metric that is a
function of weighted counts needs nothing else, so no row is ever copied.

Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), percentile interval;
Field & Welsh, Bootstrapping clustered data, JRSS-B 69 (2007), cluster bootstrap.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

LEVEL = 0.95
# Bounds the largest temporary (rows x replicates of float64) to about 64 MB.
_CHUNK_ELEMENTS = 8_000_000
_STREAM = 9_301


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the number of rows it rests on.

    ``value`` is None (and n 0) where the metric is undefined; ``low`` and ``high`` are None
    where fewer than two groups bear on it, because one group says nothing about the spread.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        """The contract's ``{"value", "low", "high", "n"}``; None where undefined, never NaN."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


UNDEFINED = Estimate(None, None, None, 0)


def group_multiplicities(groups: int, replicates: int, seed: int, rows: int) -> Iterator[Floats]:
    """Weights of each group in each replicate, in chunks of replicates.

    Yields float64 [groups, R_i]; the R_i add up to ``replicates + 1``. Column 0 of the first
    chunk is all ones: the observed data, so that values and replicates share one formula.
    ``rows`` sets the chunk size only.
    """
    rng = np.random.default_rng([seed, _STREAM])
    step = max(1, min(replicates + 1, _CHUNK_ELEMENTS // max(rows, groups, 1)))
    first = np.ones((groups, 1))
    remaining = replicates
    while remaining > 0 or first.shape[1]:
        size = min(step, remaining)
        drawn = rng.integers(0, groups, size=(size, groups))
        drawn += np.arange(size)[:, None] * groups
        counts = np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups)
        yield np.ascontiguousarray(np.concatenate([first, counts.T], axis=1), dtype=np.float64)
        first = np.ones((groups, 0))
        remaining -= size


def estimates(
    values: Floats,
    n: npt.ArrayLike,
    bearing_groups: npt.ArrayLike,
    ceiling: float = 1.0,
    share: bool = False,
) -> list[Estimate]:
    """Turn observed values and replicates into estimates.

    The interval is the percentile interval moved by the bootstrap's own estimate of bias (mean
    of the replicates minus the value) and kept within 0 … ceiling. For plain shares the move is
    nothing; without it, macro averages over rare classes would get intervals that exclude them,
    because a rare image drawn twice looks easier to rank than it is.

    Args:
        values: [M, 1 + R]; column 0 is the observed value, the rest the replicates; NaN where
            undefined. Undefined replicates (a class that was not drawn) are left out.
        n: [M] rows behind each value.
        bearing_groups: [M] groups that bear on each value; below 2 there is no interval.
        ceiling: the largest value the metric can take.
        share: the values are shares of rows. A share of exactly 0 or 1 is the same in every
            replicate, so its interval comes from the binomial distribution instead, with the
            groups as the trials (Clopper & Pearson, Biometrika 26, 1934).
    """
    counts = np.broadcast_to(np.asarray(n, dtype=np.int64), values.shape[:1])
    bearing = np.broadcast_to(np.asarray(bearing_groups, dtype=np.int64), values.shape[:1])
    tail = (1 - LEVEL) / 2
    result = []
    for row, count, groups in zip(values, counts, bearing, strict=True):
        value = float(row[0])
        if not np.isfinite(value):
            result.append(UNDEFINED)
            continue
        replicates = row[1:][np.isfinite(row[1:])]
        low = high = None
        if groups >= 2 and replicates.size:
            bias = float(replicates.mean()) - value
            lower, upper = np.quantile(replicates, [tail, 1 - tail]) - bias
            low = min(max(float(lower), 0.0), value)
            high = max(min(float(upper), ceiling), value)
            if share and value in (0.0, 1.0):
                reach = tail ** (1 / int(groups))
                low, high = (reach, 1.0) if value else (0.0, 1 - reach)
        result.append(Estimate(value, low, high, int(count)))
    return result
