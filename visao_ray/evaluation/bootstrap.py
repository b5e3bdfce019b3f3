"""Grouped bootstrap: it draws whole patients or containers, never single images.

Images of one patient are similar, so drawing single images would give intervals that are too
narrow. A replicate is a vector: how often each group was drawn. A metric that is a function of
weighted counts needs nothing else, so no row is ever copied.

Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), percentile interval;
Field & Welsh, Bootstrapping clustered data, JRSS-B 69 (2007), cluster bootstrap.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if (
    TYPE_CHECKING
):  # SciPy is imported where it is used: settings list the metrics, and --help is quick
    from scipy import sparse

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]
Multiplicities = npt.NDArray[np.uint8]

LEVEL = 0.95
# Multiplicities in a chunk, one byte each: a thousand replicates of 700,000 groups.
_CHUNK_ELEMENTS = 700_000_000
# Replicates that are computed together, and the limit on their weights and sums in a thread.
_BATCH = 64
_BATCH_ELEMENTS = 8_000_000
# Each thread holds about 200 MB for a million rows.
_MAX_THREADS = 8
_STREAM = 9_301


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the number of rows it was computed from.

    Attributes:
        value: None (and n 0) if the metric is undefined.
        low: lower limit; None if fewer than two groups contribute to the value, because one group
            says nothing about the spread.
        high: upper limit; None in the same cases.
        n: number of rows.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        """Return `{"value", "low", "high", "n"}` for result.json; undefined values are None."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


UNDEFINED = Estimate(None, None, None, 0)


def group_multiplicities(groups: int, replicates: int, seed: int) -> Iterator[Multiplicities]:
    """Draw groups with replacement and yield how often each was drawn, in chunks of replicates.

    Args:
        groups: number of groups.
        replicates: number of bootstrap replicates, without the observed data.
        seed: seed of the draws.

    Yields:
        uint8 [groups, R_i]; the R_i add up to `replicates + 1`. Column 0 of the first chunk is all
        ones: the observed data, so that values and replicates share one formula. uint8 is enough:
        the probability that a group is drawn more than 255 times is below 1e-500.
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
    """Apply a function to batches of replicates, on all cores of the task.

    Args:
        compute: function from contiguous weights [G, r] to [..., r]; it runs in multiple threads.
        weight: [G, R], one column per replicate.
        sums: numbers that `compute` holds for each replicate; more of them make batches smaller.
        dtype: dtype of the weights that `compute` gets.

    Returns:
        float64 [..., R].
    """
    size = max(1, min(_BATCH, _BATCH_ELEMENTS // max(len(weight), sums, 1)))

    def of_batch(start: int) -> npt.NDArray[np.floating]:
        return compute(np.ascontiguousarray(weight[:, start : start + size], dtype=dtype))

    starts = range(0, weight.shape[1], size)
    return np.concatenate(in_threads(of_batch, starts), axis=-1, dtype=np.float64)


def group_sums(cell: Integers, group: Integers, shape: tuple[int, int]) -> sparse.csr_array:
    """Count rows per cell and group: sparse float64 [cells, groups].

    Its product with weights [groups, R] is the weighted count of every cell in every replicate.
    """
    from scipy import sparse

    return sparse.csr_array((np.ones(len(cell)), (cell, group)), shape=shape)


def weighted_sums(counts: Any, weight: npt.NDArray[Any]) -> Floats:
    """Return weighted sums [M, R] of counts [M, G], dense or sparse, with weights [G, R]."""
    from scipy import sparse

    by_group = sparse.csc_array(counts)  # column by column, the weights are read once, in order
    return in_batches(lambda batch: by_group @ batch, weight, counts.shape[0])


def in_threads(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
    """Run a function that releases the GIL in threads; return results in the order of the tasks."""
    threads = min(len(tasks), _threads(), _MAX_THREADS)
    if threads < 2:
        return [function(task) for task in tasks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, tasks))


def _threads() -> int:
    """Return the cores of this task: Ray sets OMP_NUM_THREADS to the CPUs that a task reserved."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else len(os.sched_getaffinity(0))


def estimates(
    values: Floats,
    n: npt.ArrayLike,
    contributing_groups: npt.ArrayLike,
    bounded: tuple[float, float] = (0.0, 1.0),
    share: bool = False,
) -> list[Estimate]:
    """Turn observed values and replicates into estimates.

    The interval is the percentile interval, shifted by the bootstrap estimate of the bias (mean of
    the replicates minus the value) and clipped to the bounds. For plain shares the shift is about
    zero. Without it, the intervals of macro averages over rare classes would exclude the value:
    a rare image that is drawn twice seems easier to rank than it is.

    Args:
        values: float64 [M, 1 + R]; column 0 is the observed value, the rest are replicates; NaN if
            undefined. Undefined replicates (a class that was not drawn) are left out.
        n: int [M], number of rows behind each value.
        contributing_groups: int [M], number of groups that contribute to each value; below 2 there
            is no interval.
        bounded: the smallest and the largest value that the metric can have.
        share: whether the values are shares of rows. A share of exactly 0 or 1 is the same in every
            replicate, so its interval comes from the binomial distribution instead, with the groups
            as trials (Clopper & Pearson, Biometrika 26, 1934).

    Returns:
        M estimates.
    """
    counts = np.broadcast_to(np.asarray(n, dtype=np.int64), values.shape[:1])
    contributing = np.broadcast_to(np.asarray(contributing_groups, dtype=np.int64), counts.shape)
    tail = (1 - LEVEL) / 2
    result = []
    for row, count, groups in zip(values, counts, contributing, strict=True):
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
                limit = tail ** (1 / int(groups))
                low, high = (limit, 1.0) if value else (0.0, 1 - limit)
        result.append(Estimate(value, low, high, int(count)))
    return result
