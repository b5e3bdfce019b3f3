"""The search space: which heads a sweep tries, as a pure function of the seed."""

from __future__ import annotations

import math

import numpy as np

from visao_ray.models.head import HeadSettings

_STREAM = 2_203  # keeps these draws apart from others under the same seed


def propose(trials: int, seed: int, positive: str | None) -> list[HeadSettings]:
    """The heads to try, in order: the default first, then logistic regression, then random ones.

    The first n are the same for any number of trials, so a longer sweep contains a shorter one.
    Learning rate and L2 are log-uniform (Bergstra & Bengio, JMLR 13, 2012: random search finds
    good heads among many settings of which few matter).

    Args:
        trials: how many.
        seed: of the draws.
        positive: the class that explicit class weights favour; without one they are not tried.
    """
    simple = HeadSettings(units=0, dropout=0.0, l2=1e-4)
    drawn = (_draw(np.random.default_rng([seed, _STREAM, n]), positive) for n in range(2, trials))
    return [HeadSettings(), simple, *drawn][:trials]


def _draw(rng: np.random.Generator, positive: str | None) -> HeadSettings:
    def choose(*values: object) -> object:
        return values[int(rng.integers(len(values)))]

    def log_uniform(low: float, high: float) -> float:
        # Four digits: a setting that people can type again.
        return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.4g}")

    weights: list[object] = ["none", "balanced"]
    if positive is not None:
        weights.append({positive: float(choose(2.0, 3.0, 5.0))})  # type: ignore[arg-type]
    return HeadSettings.model_validate(
        {
            "pool": choose("avg", "max", "both"),
            "standardise": choose(True, True, False),
            "units": choose(0, 64, 128, 256, 512),
            "dropout": choose(0.0, 0.2, 0.4, 0.6),
            "l2": choose(0.0, log_uniform(1e-6, 1e-2)),
            "optimizer": choose("adam", "adam", "rmsprop"),
            "learning_rate": log_uniform(1e-4, 1e-2),
            "batch_size": choose(32, 64, 128, 256),
            "class_weight": choose(*weights),
        }
    )
