"""A backbone with a head on top: first only the head is trained, then part of the backbone too.

The 2019 study diagnosed overfitting in its fine-tuning (.907 in `fit`, .502 in `predict` on the
same images: ledger 2e). The cause was batch normalisation, which uses batch statistics in `fit` and
moving averages in `predict`. Here the backbone always runs in inference mode.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location, locate
from visao_ray.datasets.spec import Dataset
from visao_ray.models import artifact
from visao_ray.models.backbones import Backbone, build, resolve
from visao_ray.models.family import Phase
from visao_ray.models.head import HeadClassifier, HeadOptions, build_head, read_head
from visao_ray.models.settings import BackboneOptions, PixelSettings, Pool

_FINE_TUNE = "fine-tune"
_BACKBONE = "backbone.npz"


class TransferSettings(HeadOptions, BackboneOptions, PixelSettings):
    """Fit a head on a backbone, then fine-tune part of the backbone."""

    example: ClassVar[str] = (
        "--family transfer --dataset vazios --data s3://bucket/vazios "
        "--fine-tune-from conv5_block1 --out out/transfer"
    )

    family: Literal["transfer"] = "transfer"
    epochs: int | None = Field(
        None, ge=0, description="maximum number of epochs (30; 0 with a trained --head)"
    )
    pool: Pool = Field("both", description="pooled vectors to use")
    fine_tune_from: str | None = Field(
        None,
        description="first layer or block of the backbone to fine-tune after the head, e.g. "
        "conv5_block1",
    )
    fine_tune_epochs: int = Field(10, ge=0, description="maximum number of epochs of fine-tuning")
    fine_tune_learning_rate: float = Field(
        1e-5, gt=0, description="initial learning rate of fine-tuning"
    )


class Transfer(HeadClassifier[TransferSettings]):
    """The family `transfer`: a backbone, frozen at first and then fine-tuned from a block on."""

    title = "a head on a backbone, from pixels"
    settings_type = TransferSettings

    @classmethod
    def fetch(
        cls, settings: TransferSettings, dataset: Dataset, work: Location
    ) -> tuple[int, str | None]:
        """Write the backbone to `work`, and check that the head fits it."""
        backbone, warning = resolve(settings, settings.seed)
        backbone.write(work.join(_BACKBONE))
        if settings.head is not None:
            made = backbone.metadata(settings.resize)
            where = f"--head {settings.head}"
            read_head(settings.head).check_features(dataset, backbone.width, made, where)
        return backbone.image_size, warning

    @property
    def usual_epochs(self) -> int:
        """0 if the head is trained already."""
        return 0 if self.settings.head is not None else super().usual_epochs

    def phases(self) -> tuple[Phase, ...]:
        """Return the phase of the head, then that of fine-tuning if --fine-tune-from is given."""
        settings = self.settings
        phases = super().phases()
        if settings.fine_tune_from is None or not settings.fine_tune_epochs:
            return phases
        rate = settings.fine_tune_learning_rate
        return (*phases, Phase(_FINE_TUNE, settings.fine_tune_epochs, rate, trained=True))

    def build(self) -> Any:
        """Build the backbone with the head on top."""
        return build_transfer(self._backbone, self._head)

    def set_trainable(self, model: Any, phase: Phase) -> None:
        """Unfreeze the backbone from the block on, for fine-tuning."""
        if phase.name == _FINE_TUNE:
            unfreeze(model, self.settings.fine_tune_from or "")

    def checkpoint_model(self, model: Any) -> Any:
        """Return the model without `InferenceMode`, which plain Keras does not know."""
        self._bare.set_weights(model.get_weights())
        return self._bare

    @cached_property
    def _backbone(self) -> Backbone:
        return Backbone.read(self.work.join(_BACKBONE))

    @cached_property
    def _head(self) -> Any:
        if self.settings.head is not None:
            return artifact.load(locate(self.settings.head))[0]
        # Standardising needs the statistics of all features; the head of a sweep includes them.
        plain = self.settings.to_head().model_copy(update={"standardise": False})
        return build_head(plain, self._backbone.width, len(self.shape.classes), {})

    @cached_property
    def _bare(self) -> Any:
        return bare_transfer(self._backbone, self._head)


def build_transfer(backbone: Backbone, head: Any) -> Any:
    """Build the model to train, with a frozen backbone.

    Args:
        backbone: The network without its top.
        head: Model of `models.head` with inputs {"avg": float32[B, D], "max": float32[B, D]}.

    Returns:
        keras.Model from uint8 RGB [B, S, S, 3] in 0-255 to probability float32[B, C].
    """
    import_keras()
    from visao_ray.models.inference_mode import InferenceMode

    return _stack(build(backbone, InferenceMode), head)


def bare_transfer(backbone: Backbone, head: Any) -> Any:
    """Build the same model without `InferenceMode`, so that plain Keras can load its file.

    The weights have the same order. The head is the same object, the backbone is a copy.
    """
    return _stack(build(backbone), head)


def _stack(pools: Any, head: Any) -> Any:
    keras = import_keras()

    average, maximum = pools.outputs
    return keras.Model(pools.inputs[0], head({"avg": average, "max": maximum}), name="transfer")


def unfreeze(model: Any, block: str) -> int:
    """Make the backbone trainable from the first layer whose name starts with `block`.

    Args:
        model: Model of `build_transfer`.
        block: Start of the name of a layer.

    Returns:
        Number of trainable layers with weights.

    Raises:
        InputError: There is no such layer; the message names the blocks.
    """
    network = model.get_layer("backbone").network
    names = [layer.name for layer in network.layers]
    first = next((place for place, name in enumerate(names) if name.startswith(block)), None)
    if first is None:
        blocks = dict.fromkeys(name.split("_")[0] for name in names)
        raise InputError(
            f"--fine-tune-from {block}: no layer of the backbone starts with it; known are "
            f"{', '.join(blocks)}"
        )
    network.trainable = True
    for place, layer in enumerate(network.layers):
        layer.trainable = place >= first
    return sum(bool(layer.trainable_variables) for layer in network.layers)
