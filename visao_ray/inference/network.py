"""Find the network that made vectors: by its description and the place of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visao_ray.core.errors import InputError
from visao_ray.core.settings import CommandSettings, from_values
from visao_ray.core.storage import Location
from visao_ray.inference.engines.base import EngineFactory
from visao_ray.inference.engines.registry import ENGINES
from visao_ray.inference.settings import ExtractOptions

#: Parts of a description that are settings of the extraction.
_KNOWN = ("engine", "preprocessing", "image_size", "resize")


class _Network(ExtractOptions, CommandSettings):
    """The settings by which an engine is found; the environment is not read."""


def find_network(
    made: Mapping[str, Any],
    weights: Sequence[str],
    batch_size: int,
    seed: int,
    work: Location,
) -> EngineFactory:
    """Find the network that made vectors. For a task, because it imports Keras.

    Args:
        made: description of the vectors.
        weights: where to look for its weights, as in `extract --weights`.
        batch_size: images per batch.
        seed: seed of random weights.
        work: folder for the files that actors build the engine from.

    Returns:
        The factory of the network.

    Raises:
        InputError: none of the weights is that of the network; the message says why for each.
    """
    known = {name: made[name] for name in _KNOWN if made.get(name) is not None}
    reasons = []
    for uri in weights:
        own = {} if uri.endswith(".keras") else {"backbone": made.get("backbone")}
        try:
            given = {"weights": uri, "batch_size": batch_size, **known, **own}
            options = from_values(_Network, given)
            factory, _ = ENGINES[options.engine].resolve(options, seed, work)
        except InputError as error:
            reasons.append(str(error))
            continue
        if factory.metadata.get("weights_digest") == made.get("weights_digest"):
            return factory
        reasons.append(f"--weights {uri} are others")
    raise InputError("; ".join(reasons))
