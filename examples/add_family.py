"""A model family in one file: separable convolutions, trained with the focal loss.

    python jobs/train.py --plugin examples/add_family.py --family separable_cnn \
      --dataset vazios --data s3://bucket/vazios --workers 2 --out out/separable

Separable convolutions (Chollet, Xception, CVPR 2017) have about an eighth of the weights of plain
ones. The focal loss (Lin et al., ICCV 2017) gives less weight to images that are already classified
well, which helps if a class is rare.

Three parts make a family: a class of settings, a class of hooks, and the line that registers it.
`visao_ray/models/family.py` has all hooks.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from visao_ray.core.backend import import_keras
from visao_ray.models.classifier import Classifier
from visao_ray.models.registry import register
from visao_ray.models.settings import ClassifierSettings, PixelSettings


class SeparableCnnSettings(PixelSettings, ClassifierSettings):
    """Fit a small network of separable convolutions from random weights."""

    example: ClassVar[str] = (
        "--plugin examples/add_family.py --family separable_cnn --dataset vazios "
        "--data s3://bucket/vazios --workers 2 --out out/separable"
    )

    family: Literal["separable_cnn"] = "separable_cnn"
    filters: int = Field(
        32, ge=1, le=512, description="filters of the first block, doubled in each next one"
    )
    blocks: int = Field(4, ge=1, le=6, description="number of blocks; each halves the image")
    focal: float = Field(2.0, ge=0, le=5, description="exponent of the focal loss (0: none)")


class SeparableCnn(Classifier[SeparableCnnSettings]):
    """The family `separable_cnn`."""

    title = "separable convolutions with the focal loss, from pixels"
    settings_type = SeparableCnnSettings
    image_size = 128

    def build(self) -> Any:
        """Build the network: pixels uint8[B, S, S, 3] in 0-255 to probability float32[B, C]."""
        keras = import_keras()
        layers, side = keras.layers, self.shape.image_size

        pixels = keras.Input((side, side, 3), dtype="uint8", name="pixels")
        x = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(pixels)
        for number in range(self.settings.blocks):
            x = layers.SeparableConv2D(
                self.settings.filters * 2**number,
                3,
                padding="same",
                activation="relu",
                name=f"conv{number + 1}",
            )(x)
            x = layers.MaxPooling2D(padding="same", name=f"pool{number + 1}")(x)
        x = layers.GlobalAveragePooling2D(name="average")(x)
        output = layers.Dense(
            len(self.shape.classes), "softmax", dtype="float32", name="probability"
        )(x)
        return keras.Model(pixels, output, name=self.name)

    def losses(self, inputs: Any, labels: Any, outputs: Any, weights: Any) -> Any:
        """Return the focal loss of each row, float32[B]: cross-entropy times (1 - p)^`focal`."""
        keras = import_keras()

        losses = super().losses(inputs, labels, outputs, weights)
        hot = keras.ops.one_hot(labels, len(self.shape.classes))
        missing = 1 - keras.ops.sum(hot * outputs, axis=-1)
        # For exponents below 1, the derivative of the power at 0 is infinite.
        return losses * keras.ops.maximum(missing, 1e-6) ** self.settings.focal


register(SeparableCnn)
