"""A backbone with a head on top: first the head alone is trained, then part of the backbone too.

The 2019 study took its fine-tuning for overfitting (.907 in `fit`, .502 in `predict` on the same
images: ledger 2e). It was batch normalisation: batch statistics in one, moving averages in the
other. Here the backbone runs as it predicts at all times.
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
    """Fit a head on a backbone, then part of the backbone too."""

    example: ClassVar[str] = (
        "--family transfer --dataset vazios --data s3://bucket/vazios "
        "--fine-tune-from conv5_block1 --out out/transfer"
    )

    family: Literal["transfer"] = "transfer"
    epochs: int | None = Field(
        None, ge=0, description="most epochs (30; 0 with --head, which is trained already)"
    )
    pool: Pool = Field("both", description="which of the pooled vectors are taken")
    fine_tune_from: str | None = Field(
        None,
        description="layer or block of the backbone from which on it is trained too, after the "
        "head, e.g. conv5_block1",
    )
    fine_tune_epochs: int = Field(10, ge=0, description="most epochs of fine-tuning")
    fine_tune_learning_rate: float = Field(1e-5, gt=0, description="at its start")


class Transfer(HeadClassifier[TransferSettings]):
    """The family `transfer`: frozen at first, then learning from a block on."""

    title = "a head on a backbone, from pixels"
    settings_type = TransferSettings

    @classmethod
    def fetch(
        cls, settings: TransferSettings, dataset: Dataset, work: Location
    ) -> tuple[int, str | None]:
        """Keep the backbone, and check that the head fits it."""
        backbone, warning = resolve(settings, settings.seed)
        backbone.write(work.join(_BACKBONE))
        if settings.head is not None:
            made = backbone.metadata(settings.resize)
            where = f"--head {settings.head}"
            read_head(settings.head).check_features(dataset, backbone.width, made, where)
        return backbone.image_size, warning

    @property
    def usual_epochs(self) -> int:
        """None where the head is trained already."""
        return 0 if self.settings.head is not None else super().usual_epochs

    def phases(self) -> tuple[Phase, ...]:
        """The head; then the backbone too, if that is asked for."""
        settings = self.settings
        found = super().phases()
        if settings.fine_tune_from is None or not settings.fine_tune_epochs:
            return found
        rate = settings.fine_tune_learning_rate
        return (*found, Phase(_FINE_TUNE, settings.fine_tune_epochs, rate, trained=True))

    def build(self) -> Any:
        """The stack."""
        return build_transfer(self._backbone, self._head)

    def set_trainable(self, model: Any, phase: Phase) -> None:
        """The head alone, or the backbone as well from the block on."""
        if phase.name == _FINE_TUNE:
            unfreeze(model, self.settings.fine_tune_from or "")

    def checkpoint_model(self, model: Any) -> Any:
        """Without the layer that plain Keras does not know."""
        self._bare.set_weights(model.get_weights())
        return self._bare

    @cached_property
    def _backbone(self) -> Backbone:
        return Backbone.read(self.work.join(_BACKBONE))

    @cached_property
    def _head(self) -> Any:
        if self.settings.head is not None:
            return artifact.load(locate(self.settings.head))[0]
        # Standardising needs a look at all features first; a sweep's head brings its own.
        plain = self.settings.to_head().model_copy(update={"standardise": False})
        return build_head(plain, self._backbone.width, len(self.shape.classes), {})

    @cached_property
    def _bare(self) -> Any:
        return bare_transfer(self._backbone, self._head)


def build_transfer(backbone: Backbone, head: Any) -> Any:
    """The model to train: uint8 RGB [B, S, S, 3] → probability float32[B, C]; backbone frozen.

    Args:
        backbone: the network without its top.
        head: takes {"avg": float32[B, D], "max": float32[B, D]}, as `models.head` builds it.
    """
    import_keras()
    from visao_ray.models.inference_mode import InferenceMode

    return _stack(build(backbone, InferenceMode), head)


def bare_transfer(backbone: Backbone, head: Any) -> Any:
    """The same without the layer around the backbone: its file loads with plain Keras.

    Weights come in the same order; the head is the very same, the backbone a copy.
    """
    return _stack(build(backbone), head)


def _stack(pools: Any, head: Any) -> Any:
    keras = import_keras()

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
