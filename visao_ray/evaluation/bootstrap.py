"""Grouped bootstrap: whole patients or containers are drawn, never single images.

Images of one patient resemble each other, so drawing them one by one would pretend to more
evidence than there is. A replicate is a vector of group multiplicities; a metric that is a
function of weighted counts needs nothing else, so no row is ever copied.

Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), percentile interval;
Field & Welsh, Bootstrapping clustered data, JRSS-B 69 (2007), cluster bootstrap.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]
Multiplicities = npt.NDArray[np.uint8]

LEVEL = 0.95
# Multiplicities of a chunk, a byte each: a thousand replicates of 700,000 groups.
_CHUNK_ELEMENTS = 700_000_000
# Replicates that are computed together, and what bounds their weights and sums in a thread.
_BATCH = 64
_BATCH_ELEMENTS = 8_000_000
# Each thread holds some 200 MB at a million rows.
_MOST_THREADS = 8
_STREAM = 9_301


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the number of rows it rests on.

    `value` is None (and n 0) where the metric is undefined; `low` and `high` are None
    where fewer than two groups bear on it, because one group says nothing about the spread.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        """The contract's `{"value", "low", "high", "n"}`; None where undefined, never NaN."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


UNDEFINED = Estimate(None, None, None, 0)


def group_multiplicities(groups: int, replicates: int, seed: int) -> Iterator[Multiplicities]:
    """How often each group is drawn in each replicate, in chunks of replicates.

    Yields uint8 [groups, R_i]; the R_i add up to `replicates + 1`. Column 0 of the first chunk is
    all ones: the observed data, so that values and replicates share one formula. That a group is
    drawn more than 255 times has a probability below 1e-500.
    """
    rng = np.random.default_rng([seed, _STREAM])
    size = max(1, min(replicates + 1, _CHUNK_ELEMENTS // max(groups, 1)))
    for start in range(0, replicates + 1, size):
        chunk = np.empty((groups, min(size, replicates + 1 - start)), np.uint8)
        for first in range(0, chunk.shape[1], _BATCH):
            columns = chunk[:, first : first + _BATCH]
            rows = np.ones(columns.shape[::-1], np.uint8)
            for replicate in range(1 if start + first == 0 else 0, len(rows)):
                drawn = rng.integers(0, groups, size=groups)
                rows[replicate] = np.bincount(drawn, minlength=groups)
            columns[:] = rows.T
        yield chunk


def in_batches(
    compute: Callable[[npt.NDArray[np.floating]], npt.NDArray[np.floating]],
    weight: npt.NDArray[Any],
    sums: int = 0,
    dtype: npt.DTypeLike = np.float64,
) -> Floats:
    """Compute something for each replicate, some replicates at a time, on all cores of the task.

    Args:
        compute: from weights [G, r], contiguous, to [..., r]; it runs in several threads.
        weight: [G, R], one column per replicate.
        sums: numbers that `compute` holds for each replicate, which bound r.
        dtype: of the weights that `compute` gets.

    Returns:
        [..., R].
    """
    size = max(1, min(_BATCH, _BATCH_ELEMENTS // max(len(weight), sums, 1)))

    def of_batch(start: int) -> npt.NDArray[np.floating]:
        return compute(np.ascontiguousarray(weight[:, start : start + size], dtype=dtype))

    starts = range(0, weight.shape[1], size)
    return np.concatenate(in_threads(of_batch, starts), axis=-1, dtype=np.float64)


def group_sums(cell: Integers, group: Integers, shape: tuple[int, int]) -> sparse.csr_array:
    """Count rows per (cell, group): sparse float64 [cells, groups].

    Multiplied by weights [groups, R] it gives the weighted count of every cell in every
    replicate.
    """
    return sparse.csr_array((np.ones(len(cell)), (cell, group)), shape=shape)


def weighted_sums(counts: Any, weight: npt.NDArray[Any]) -> Floats:
    """Sums over groups in each replicate: counts [M, G], dense or sparse, and weights [G, R]."""
    by_group = sparse.csc_array(counts)  # by columns the weights are read once, in order
    return in_batches(lambda batch: by_group @ batch, weight, counts.shape[0])


def in_threads(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
    """Results of a function that releases Python's lock, in the order of the tasks."""
    threads = min(len(tasks), _threads(), _MOST_THREADS)
    if threads < 2:
        return [function(task) for task in tasks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, tasks))


def _threads() -> int:
    """Cores of this task: Ray sets OMP_NUM_THREADS to the CPUs that a task has reserved."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else len(os.sched_getaffinity(0))


def estimates(
    values: Floats,
    n: npt.ArrayLike,
    bearing_groups: npt.ArrayLike,
    bounded: tuple[float, float] = (0.0, 1.0),
    share: bool = False,
) -> list[Estimate]:
    """Turn observed values and replicates into estimates.

    The interval is the percentile interval moved by the bootstrap's own estimate of bias (mean
    of the replicates minus the value) and kept within bounds. For plain shares the move is
    nothing; without it, macro averages over rare classes would get intervals that exclude them,
    because a rare image drawn twice looks easier to rank than it is.

    Args:
        values: [M, 1 + R]; column 0 is the observed value, the rest the replicates; NaN where
            undefined. Undefined replicates (a class that was not drawn) are left out.
        n: [M] rows behind each value.
        bearing_groups: [M] groups that bear on each value; below 2 there is no interval.
        bounded: the least and the largest value that the metric can have.
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
            low = min(max(float(lower), bounded[0]), value)
            high = max(min(float(upper), bounded[1]), value)
            if share and value in (0.0, 1.0):
                reach = tail ** (1 / int(groups))
                low, high = (reach, 1.0) if value else (0.0, 1 - reach)
        result.append(Estimate(value, low, high, int(count)))
    return result
