"""Optimizers and learning-rate schedules, by the names that settings use."""

from __future__ import annotations

import math
from typing import Any, Literal

from visao_ray.core.backend import import_keras

OptimizerName = Literal["adam", "adamw", "rmsprop", "sgd"]


def make_optimizer(name: OptimizerName, learning_rate: float) -> Any:
    """Create an optimizer with the defaults of Keras; SGD has momentum 0.9."""
    optimizers = import_keras().optimizers
    if name == "sgd":
        return optimizers.SGD(learning_rate, momentum=0.9)
    makers = {"adam": optimizers.Adam, "adamw": optimizers.AdamW, "rmsprop": optimizers.RMSprop}
    return makers[name](learning_rate)


def cosine(learning_rate: float, epoch: int, epochs: int) -> float:
    """Return the learning rate of an epoch, counted from 0, on a cosine schedule to nearly zero.

    Source: Loshchilov & Hutter, SGDR, ICLR 2017, without restarts.
    """
    return learning_rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
