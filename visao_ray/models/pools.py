"""Model inputs for the two pooled vectors of an image, optionally standardised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visao_ray.core.backend import import_keras
from visao_ray.models.normalization import FeatureStats


def standardised_pools(
    pools: Sequence[str], width: int, stats: Mapping[str, FeatureStats] | None
) -> tuple[dict[str, Any], Any]:
    """Create the inputs of a model on vectors.

    Args:
        pools: Names of the pools to use, in order.
        width: D.
        stats: Statistics to standardise with; None leaves the features unchanged.

    Returns:
        Symbolic inputs `avg` and `max`, float32[N, D] each, and the concatenation of `pools`.
    """
    keras = import_keras()

    inputs = {pool: keras.Input((width,), name=pool) for pool in ("avg", "max")}
    parts = [
        standardised(inputs[pool], stats[pool], f"standardise_{pool}") if stats else inputs[pool]
        for pool in pools
    ]
    return inputs, keras.layers.Concatenate(name="pools")(parts) if len(parts) > 1 else parts[0]


def standardised(vectors: Any, stats: FeatureStats, name: str) -> Any:
    """Standardise symbolic vectors, float[N, D], to mean 0 and standard deviation 1."""
    layer = import_keras().layers.Normalization(name=name)
    # These two rows have exactly these statistics. `adapt` stores them as weights; the argument
    # `mean` would store them in the JSON config.
    layer.adapt(np.stack([stats.mean - stats.deviation, stats.mean + stats.deviation]))
    return layer(vectors)
