"""A backbone with a head on top: first the head alone is trained, then part of the backbone too.

The 2019 study took its fine-tuning for overfitting (.907 in `fit`, .502 in `predict` on the same
images: ledger 2e). It was batch normalisation: batch statistics in one, moving averages in the
other. Here the backbone runs as it predicts at all times.
"""

from __future__ import annotations

from typing import Any

import keras

from visao_ray.errors import InputError
from visao_ray.models.backbones import Backbone, build


class AsPredicting(keras.layers.Layer):  # type: ignore[misc]
    """Calls a network as `predict` does, also in training; its weights may still learn.

    `network(x, training=False)` in a functional model does not do it: Keras 3.15 replaces that
    False by what the model around it is called with.
    """

    def __init__(self, network: Any) -> None:
        super().__init__(name="backbone")
        self.network = network

    def call(self, inputs: Any) -> Any:
        """The network's feature map."""
        return self.network(inputs, training=False)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the network."""
        return self.network.compute_output_shape(input_shape)


def build_transfer(backbone: Backbone, head: Any) -> Any:
    """The model to train: uint8 RGB [B, S, S, 3] → probability float32[B, C]; backbone frozen.

    Args:
        backbone: the network without its top.
        head: takes {"avg": float32[B, D], "max": float32[B, D]}, as `models.head` builds it.
    """
    return _stack(build(backbone, AsPredicting), head)


def bare_transfer(backbone: Backbone, head: Any) -> Any:
    """The same without the layer around the backbone: its file loads with plain Keras.

    Weights come in the same order; the head is the very same, the backbone a copy.
    """
    return _stack(build(backbone), head)


def _stack(pools: Any, head: Any) -> Any:
    average, maximum = pools.outputs
    return keras.Model(pools.inputs[0], head({"avg": average, "max": maximum}), name="transfer")


def unfreeze(model: Any, block: str) -> int:
    """Let the backbone learn from the first layer on whose name begins with `block`.

    Returns how many layers with weights learn now.

    Raises:
        InputError: no such layer; the message names the blocks there are.
    """
    network = model.get_layer("backbone").network
    names = [layer.name for layer in network.layers]
    first = next((place for place, name in enumerate(names) if name.startswith(block)), None)
    if first is None:
        blocks = dict.fromkeys(name.split("_")[0] for name in names)
        raise InputError(
            f"--fine-tune-from {block}: no layer of the backbone begins so; there are "
            f"{', '.join(blocks)}"
        )
    network.trainable = True
    for place, layer in enumerate(network.layers):
        layer.trainable = place >= first
    return sum(bool(layer.trainable_variables) for layer in network.layers)
