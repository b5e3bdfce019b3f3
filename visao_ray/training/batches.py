"""The input of `fit` on one worker: its rows of every step, loaded in advance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from visao_ray.models.family import BatchSource
from visao_ray.training.schedule import Schedule

_PREFETCH_STEPS = 2
_STEPS_PER_STREAM = 2048
_MAX_CACHE_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class Batches:
    """(inputs, labels int32[B], weights float32[B]) for each step of a worker.

    Attributes:
        rows: Rows of a split.
        schedule: Rows of each step, for all workers together.
        rank: Rank of this worker.
        workers: Number of workers.
        class_factors: float32[C], weight of a row by its class.
    """

    rows: BatchSource
    schedule: Schedule
    rank: int
    workers: int
    class_factors: npt.NDArray[np.float32]

    @property
    def steps(self) -> int:
        """Number of steps per epoch."""
        return self.schedule.steps

    def dataset(self, first: int, last: int, cache: bool = False) -> Any:
        """Create a tf.data.Dataset of the epochs `first` to `last` (exclusive), in order.

        With `cache`, for a dataset that is read several times, a small one is held in memory.
        """
        share = self.schedule.batch // self.workers
        example = tf.nest.map_structure(
            lambda values: tf.TensorSpec((share, *values.shape[1:]), values.dtype),
            self.rows.take(np.zeros(1, np.int64)),
        )
        signature = (
            example,
            tf.TensorSpec((share,), tf.int32),
            tf.TensorSpec((share,), tf.float32),
        )
        dataset = tf.data.Dataset.from_generator(
            lambda: self._generate(first, last), output_signature=signature
        )
        if cache and self.steps * share * _row_bytes(example) <= _MAX_CACHE_BYTES:
            dataset = dataset.cache()
        options = tf.data.Options()
        # There is nothing to tune, and the autotuner's thread delays the end of an iterator by
        # seconds.
        options.autotune.enabled = False
        return dataset.prefetch(_PREFETCH_STEPS).with_options(options)

    def _generate(self, first: int, last: int) -> Iterator[Any]:
        share = self.schedule.batch // self.workers
        own = slice(self.rank * share, (self.rank + 1) * share)
        # One stream for several epochs, so that loading does not pause at the end of an epoch.
        per_stream = max(1, _STEPS_PER_STREAM // self.steps)
        for begin in range(first, last, per_stream):
            epochs = range(begin, min(begin + per_stream, last))
            scheduled = [self.schedule.epoch(epoch) for epoch in epochs]
            numbers = np.concatenate([rows for rows, _ in scheduled])[:, own]
            weights = np.concatenate([weights for _, weights in scheduled])[:, own]
            views = np.repeat(np.array(epochs, np.int64) + 1, self.steps)
            stream = self.rows.stream(numbers, views)
            for chosen, weight, inputs in zip(numbers, weights, stream, strict=True):
                labels = self.schedule.labels[chosen]
                yield inputs, labels, weight * self.class_factors[labels]


def _row_bytes(example: Any) -> int:
    """Return the size of one row of such inputs in bytes."""
    specs = tf.nest.flatten(example)
    return int(sum(math.prod(spec.shape[1:]) * spec.dtype.size for spec in specs))
