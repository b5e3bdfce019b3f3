"""A layer that runs a network in inference mode at all times."""

from __future__ import annotations

from typing import Any

import keras


class InferenceMode(keras.layers.Layer):  # type: ignore[misc]
    """Calls a network as `predict` does, also in training; its weights may still learn.

    `network(x, training=False)` in a functional model does not do it: Keras 3.15 replaces that
    False by what the model around it is called with.

    Args:
        network: a keras.Model.
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
