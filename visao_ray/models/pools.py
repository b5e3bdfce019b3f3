"""The two pooled vectors of an image as inputs of a model, standardised if wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visao_ray.core.backend import import_keras
from visao_ray.models.normalization import FeatureStats


def standardised_pools(
    pools: Sequence[str], width: int, stats: Mapping[str, FeatureStats] | None
) -> tuple[dict[str, Any], Any]:
    """Symbolic inputs `avg` and `max`, float32[N, D], and the pools asked for side by side.

    Args:
        pools: which, in order.
        width: D.
        stats: to standardise with; None leaves the features as they are.
    """
    keras = import_keras()

    inputs = {pool: keras.Input((width,), name=pool) for pool in ("avg", "max")}
    parts = [
        standardised(inputs[pool], stats[pool], f"standardise_{pool}") if stats else inputs[pool]
        for pool in pools
    ]
    return inputs, keras.layers.Concatenate(name="pools")(parts) if len(parts) > 1 else parts[0]


def standardised(vectors: Any, stats: FeatureStats, name: str) -> Any:
    """Symbolic float[N, D] brought to mean 0 and deviation 1."""
    layer = import_keras().layers.Normalization(name=name)
    # Two rows of just these statistics: kept as weights, where `mean=` would fill the JSON config.
    layer.adapt(np.stack([stats.mean - stats.deviation, stats.mean + stats.deviation]))
    return layer(vectors)
