"""A layer that runs a network in inference mode at all times."""

from __future__ import annotations

from typing import Any

import keras


class InferenceMode(keras.layers.Layer):  # type: ignore[misc]
    """Call a network in inference mode, also during training; its weights can still be trained.

    `network(x, training=False)` in a functional model is not enough: Keras 3.15 replaces that
    False with the `training` argument of the outer model.

    Args:
        network: A keras.Model.
    """

    def __init__(self, network: Any) -> None:
        super().__init__(name="backbone")
        self.network = network

    def call(self, inputs: Any) -> Any:
        """Return the feature map of the network."""
        return self.network(inputs, training=False)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the output shape of the network."""
        return self.network.compute_output_shape(input_shape)
