"""The optimizers and learning rates that settings name."""

from __future__ import annotations

import math
from typing import Any, Literal

from visao_ray.core.backend import import_keras

OptimizerName = Literal["adam", "adamw", "rmsprop", "sgd"]


def make_optimizer(name: OptimizerName, learning_rate: float) -> Any:
    """A Keras optimizer with Keras's defaults; SGD with a momentum of 0.9."""
    optimizers = import_keras().optimizers
    if name == "sgd":
        return optimizers.SGD(learning_rate, momentum=0.9)
    makers = {"adam": optimizers.Adam, "adamw": optimizers.AdamW, "rmsprop": optimizers.RMSprop}
    return makers[name](learning_rate)


def cosine(learning_rate: float, epoch: int, epochs: int) -> float:
    """The rate of an epoch, counted from 0, that falls to nearly zero over `epochs`.

    Source: Loshchilov & Hutter, SGDR, ICLR 2017, without restarts.
    """
    return learning_rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
