"""What a worker feeds to `fit`: its share of every step, epoch after epoch, ahead of time."""

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

_AHEAD = 2  # steps
_STEPS_A_STREAM = 2048
_KEPT_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class Batches:
    """(inputs, labels int32[B], weights float32[B]) for each step of a worker.

    Attributes:
        rows: of a split.
        schedule: which of them stand in which step, for all workers together.
        rank: which worker this is.
        workers: how many there are.
        class_factors: float32[C], how much a row counts by its class.
    """

    rows: BatchSource
    schedule: Schedule
    rank: int
    workers: int
    class_factors: npt.NDArray[np.float32]

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return self.schedule.steps

    def dataset(self, first: int, last: int, kept: bool = False) -> Any:
        """A tf.data.Dataset of the epochs `first` to `last` (exclusive), one after the other.

        `kept`: it will be gone through again; where it is small, it stays in memory.
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
        found = tf.data.Dataset.from_generator(
            lambda: self._generate(first, last), output_signature=signature
        )
        if kept and self.steps * share * _bytes(example) <= _KEPT_BYTES:
            found = found.cache()
        options = tf.data.Options()
        # Nothing is left to tune, and the tuner's thread delays the end of an iterator by seconds.
        options.autotune.enabled = False
        return found.prefetch(_AHEAD).with_options(options)

    def _generate(self, first: int, last: int) -> Iterator[Any]:
        share = self.schedule.batch // self.workers
        mine = slice(self.rank * share, (self.rank + 1) * share)
        # One stream for several epochs: it loads ahead, over the end of an epoch too.
        together = max(1, _STEPS_A_STREAM // self.steps)
        for begin in range(first, last, together):
            epochs = range(begin, min(begin + together, last))
            scheduled = [self.schedule.epoch(epoch) for epoch in epochs]
            numbers = np.concatenate([rows for rows, _ in scheduled])[:, mine]
            weights = np.concatenate([weights for _, weights in scheduled])[:, mine]
            views = np.repeat(np.array(epochs, np.int64) + 1, self.steps)
            stream = self.rows.stream(numbers, views)
            for chosen, weight, inputs in zip(numbers, weights, stream, strict=True):
                labels = self.schedule.labels[chosen]
                yield inputs, labels, weight * self.class_factors[labels]


def _bytes(example: Any) -> int:
    """What a row of inputs like this takes."""
    specs = tf.nest.flatten(example)
    return int(sum(math.prod(spec.shape[1:]) * spec.dtype.size for spec in specs))
