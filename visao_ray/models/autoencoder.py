"""A convolutional autoencoder: a short embedding per image, learnt without labels.

The study published no code for its autoencoder (ledger, section 2b: only a trace of a vector of 128
numbers in use), so the layers are standard: strided convolutions and their transposes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.models.family import GradientFamily
from visao_ray.models.settings import GradientSettings, PixelSettings

_FILTERS = (16, 32, 64, 128)
_SHRINK = 2 ** len(_FILTERS)


class AutoencoderSettings(PixelSettings, GradientSettings):
    """Fit an autoencoder of grey images; its code is the embedding, and labels are not used."""

    example: ClassVar[str] = (
        "--family autoencoder --dataset vazios --data s3://bucket/vazios --out out/autoencoder"
    )

    family: Literal["autoencoder"] = "autoencoder"
    embedding: int = Field(128, ge=2, le=4096, description="width of the embedding")


class Autoencoder(GradientFamily[AutoencoderSettings]):
    """The family `autoencoder`."""

    title = "an embedding learnt without labels, from pixels"
    settings_type = AutoencoderSettings
    image_size = 128

    @classmethod
    def known_classes(
        cls, classes: tuple[str, ...], labels: npt.NDArray[np.int32]
    ) -> tuple[str, ...]:
        """Return no classes: the model gives no probabilities."""
        return ()

    def build(self) -> Any:
        """Build the encoder and the decoder."""
        return build_autoencoder(self.shape.image_size, self.settings.embedding)

    def losses(self, inputs: Any, labels: Any, outputs: Any, weights: Any) -> Any:
        """Mean squared error of grey values, float32[B]."""
        return reconstruction_losses(inputs, outputs["reconstruction"])

    def checkpoint_model(self, model: Any) -> Any:
        """Return the encoder."""
        return encoder(model)


def build_autoencoder(image_size: int, code: int = 128) -> Any:
    """Build an autoencoder of grey images, not compiled.

    Colour in X-ray images is false colour only, so the mean of the three channels is encoded.

    Args:
        image_size: S of the input `pixels`, uint8[N, S, S, 3] in 0-255; a multiple of 16.
        code: Width of the embedding.

    Returns:
        keras.Model with outputs `embedding` float32[N, code] and `reconstruction`
        float32[N, S, S, 1] in 0..1. The initial weights depend on Keras's global seed.

    Raises:
        InputError: image_size is not a multiple of 16.
    """
    keras = import_keras()

    if image_size < _SHRINK or image_size % _SHRINK:
        raise InputError(
            f"image_size {image_size}: the autoencoder takes multiples of {_SHRINK}, "
            f"e.g. {max(round(image_size / _SHRINK), 1) * _SHRINK}"
        )
    pixels = keras.Input((image_size, image_size, 3), dtype="uint8", name="pixels")
    x = _grey(pixels)
    for filters in _FILTERS:
        x = keras.layers.Conv2D(
            filters, 3, strides=2, padding="same", activation="relu", name=f"encode{filters}"
        )(x)
    smallest = x.shape[1:]
    x = keras.layers.Flatten(name="flat")(x)
    embedding = keras.layers.Dense(code, dtype="float32", name="embedding")(x)
    x = keras.layers.Dense(
        smallest[0] * smallest[1] * smallest[2], activation="relu", name="unflat"
    )(embedding)
    x = keras.layers.Reshape(smallest, name="reshape")(x)
    for filters in reversed(_FILTERS[:-1]):
        x = keras.layers.Conv2DTranspose(
            filters, 3, strides=2, padding="same", activation="relu", name=f"decode{filters}"
        )(x)
    grey = keras.layers.Conv2DTranspose(
        1,
        3,
        strides=2,
        padding="same",
        bias_initializer=keras.initializers.Constant(0.5),
        dtype="float32",
        name="grey",
    )(x)
    # No sigmoid: scans are mostly white or black, and a sigmoid saturates there within a few steps
    # and never recovers. A clipped value with the gradient of the unclipped one cannot saturate.
    excess = keras.ops.stop_gradient(keras.ops.clip(grey, 0, 1) - grey)
    reconstruction = keras.layers.Add(dtype="float32", name="reconstruction")([grey, excess])
    outputs = {"embedding": embedding, "reconstruction": reconstruction}
    return keras.Model(pixels, outputs, name="autoencoder")


def reconstruction_losses(pixels: Any, reconstruction: Any) -> Any:
    """Compute the mean squared error of each image on grey values in 0..1.

    Args:
        pixels: uint8[B, S, S, 3], input of the autoencoder.
        reconstruction: float32[B, S, S, 1], output of the autoencoder.

    Returns:
        float32[B].
    """
    ops = import_keras().ops

    return ops.mean(ops.square(_grey(pixels) - reconstruction), axis=(1, 2, 3))


def encoder(model: Any) -> Any:
    """Return the encoder: pixels to {"embedding": float32[N, code]}; it shares its weights."""
    keras = import_keras()

    return keras.Model(model.input, {"embedding": model.output["embedding"]}, name="encoder")


def _grey(pixels: Any) -> Any:
    """Mean of the channels, float32[N, S, S, 1] in 0..1."""
    ops = import_keras().ops

    return ops.mean(ops.cast(pixels, "float32") / 255, axis=-1, keepdims=True)
