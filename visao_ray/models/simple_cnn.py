"""The two small convolutional networks of the 2019 study, layer by layer (ledger, section 0).

In the study, CNN-A2 was best at 150² and CNN-B at 224²; any size that the layers allow can be used.
Both start from random weights. Their input is raw pixels: the models scale them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location
from visao_ray.datasets.spec import Dataset
from visao_ray.models.classifier import Classifier
from visao_ray.models.settings import ClassifierSettings, PixelSettings

Architecture = Literal["cnn_a2", "cnn_b"]

#: Side in pixels in the study.
NATIVE_SIZE: dict[Architecture, int] = {"cnn_a2": 150, "cnn_b": 224}


@dataclass(frozen=True)
class _Block:
    """A 3×3 convolution with relu, optional 2×2 max pooling and optional dropout."""

    filters: int
    padding: Literal["same", "valid"]
    pool: bool
    dropout: float = 0.0

    def side(self, side: int) -> int:
        """Return the side of the output for a side of the input; 0 if the input is too small."""
        side = side if self.padding == "same" else max(side - 2, 0)
        return side // 2 if self.pool else side


_BLOCKS: dict[Architecture, tuple[_Block, ...]] = {
    "cnn_a2": (
        _Block(16, "valid", True, 0.25),
        _Block(64, "valid", True, 0.25),
        _Block(128, "valid", True, 0.25),
        _Block(256, "valid", True, 0.25),
        _Block(256, "valid", False, 0.25),
    ),
    "cnn_b": (
        _Block(16, "same", True),
        _Block(32, "same", True, 0.2),
        _Block(64, "same", True, 0.25),
        _Block(128, "same", True, 0.25),
        _Block(128, "valid", True, 0.25),
        _Block(256, "valid", False),
    ),
}
_TOP_DROPOUT: dict[Architecture, float] = {"cnn_a2": 0.2, "cnn_b": 0.4}


class SimpleCnnSettings(PixelSettings, ClassifierSettings):
    """Fit one of the study's two small convolutional networks from random weights."""

    example: ClassVar[str] = (
        "--family simple_cnn --dataset vazios --data s3://bucket/vazios --workers 2 --out out/cnn"
    )

    family: Literal["simple_cnn"] = "simple_cnn"
    architecture: Architecture = Field(
        "cnn_a2", description="layers: the study's CNN-A2 (150²) or CNN-B (224²)"
    )
    l2: float = Field(0.0, ge=0, description="L2 penalty on the weights of dense layers")

    @model_validator(mode="after")
    def _large_enough(self) -> SimpleCnnSettings:
        if self.image_size is not None:
            check_size(self.architecture, self.image_size)
        return self


class SimpleCnn(Classifier[SimpleCnnSettings]):
    """The family `simple_cnn`."""

    title = "the study's small CNNs, from pixels"
    settings_type = SimpleCnnSettings

    @classmethod
    def fetch(
        cls, settings: SimpleCnnSettings, dataset: Dataset, work: Location
    ) -> tuple[int, str | None]:
        """Return --image-size, or the size in the study."""
        return settings.image_size or NATIVE_SIZE[settings.architecture], None

    def build(self) -> Any:
        """Build the network; see `build_simple_cnn`."""
        settings, shape = self.settings, self.shape
        return build_simple_cnn(
            settings.architecture, shape.image_size, len(shape.classes), settings.l2
        )


def build_simple_cnn(
    architecture: Architecture, image_size: int, classes: int, l2: float = 0.0
) -> Any:
    """Build a classifier of images, not compiled.

    The study's single sigmoid for two classes is a softmax over two classes here, the same family
    of functions. Otherwise the number of parameters is the same as in the study.

    Args:
        architecture: Name of the network.
        image_size: S of the input `pixels`, uint8[N, S, S, 3] in 0-255.
        classes: C of the output, float32[N, C]: softmax probabilities in class order.
        l2: L2 penalty on all kernels; the study had none.

    Returns:
        keras.Model. The initial weights depend on Keras's global seed
        (`keras.utils.set_random_seed`).

    Raises:
        InputError: The images are too small for the layers.
    """
    keras = import_keras()

    pixels = keras.Input((image_size, image_size, 3), dtype="uint8", name="pixels")
    x = trunk(architecture, pixels, l2)
    x = keras.layers.Dense(256, "relu", kernel_regularizer=_penalty(l2), name="hidden")(x)
    x = keras.layers.Dropout(_TOP_DROPOUT[architecture], name="dropout")(x)
    output = keras.layers.Dense(
        classes, "softmax", kernel_regularizer=_penalty(l2), dtype="float32", name="probability"
    )(x)
    return keras.Model(pixels, output, name=architecture)


def trunk(architecture: Architecture, pixels: Any, l2: float = 0.0) -> Any:
    """Build the network up to one vector per image.

    Args:
        architecture: Name of the network.
        pixels: Symbolic uint8[N, S, S, 3] in 0-255.
        l2: L2 penalty on the kernels.

    Returns:
        Symbolic float[N, 256] for CNN-A2, float[N, 4096] for CNN-B at 224².

    Raises:
        InputError: The images are too small for the layers.
    """
    keras = import_keras()

    check_size(architecture, pixels.shape[1])
    x = keras.layers.Rescaling(1 / 255, name="scale")(pixels)
    for number, block in enumerate(_BLOCKS[architecture], start=1):
        x = keras.layers.Conv2D(
            block.filters,
            3,
            padding=block.padding,
            activation="relu",
            kernel_regularizer=_penalty(l2),
            name=f"conv{number}",
        )(x)
        if block.pool:
            x = keras.layers.MaxPooling2D(name=f"pool{number}")(x)
        if block.dropout:
            x = keras.layers.Dropout(block.dropout, name=f"dropout{number}")(x)
    if architecture == "cnn_a2":
        return keras.layers.GlobalAveragePooling2D(name="average")(x)
    return keras.layers.Flatten(name="flat")(x)


def _penalty(l2: float) -> Any:
    return import_keras().regularizers.L2(l2) if l2 else None


def check_size(architecture: Architecture, image_size: int) -> None:
    """Check that images are large enough for the layers.

    Args:
        architecture: Name of the network.
        image_size: Side of the images, in pixels.

    Raises:
        InputError: They are too small.
    """
    least = _least_size(architecture)
    if image_size < least:
        raise InputError(
            f"--image-size {image_size} is too small for {architecture}, which takes {least} or "
            f"more (the study: {NATIVE_SIZE[architecture]})"
        )


def _least_size(architecture: Architecture) -> int:
    size = 1
    while True:
        side = size
        for block in _BLOCKS[architecture]:
            side = block.side(side)
        if side:
            return size
        size += 1
