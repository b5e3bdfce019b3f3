"""What differs between the families of models: how one is built, judged in training and kept."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import keras
import numpy as np

from visao_ray.models import saved, siamese
from visao_ray.models.autoencoder import build_autoencoder, encoder, reconstruction_losses
from visao_ray.models.backbones import Backbone
from visao_ray.models.head import HeadSettings, build_head
from visao_ray.models.simple_cnn import build_simple_cnn
from visao_ray.models.transfer import bare_transfer, build_transfer, unfreeze
from visao_ray.settings import TrainSettings
from visao_ray.training.plan import FINE_TUNE, Phase, Plan, Shape
from visao_ray.training.rows import Rows

_AUC_THRESHOLDS = 1000


class Family(Protocol):
    """One way of making a model. `model` below is what `build` returned."""

    pairs: bool

    def build(self) -> Any:
        """The model to train, not compiled."""

    def enter(self, model: Any, phase: Phase) -> None:
        """Decide which of its layers learn in this phase."""

    def losses(self, inputs: Any, labels: Any, outputs: Any, weights: Any) -> Any:
        """Loss of every row, float32[B]."""

    def scores(self) -> list[Any]:
        """Keras metrics to watch beside the loss, fresh ones."""

    def kept(self, model: Any) -> Any:
        """The model as a checkpoint keeps it: it loads with plain Keras."""

    def finished(self, model: Any, train: Rows) -> Any:
        """The model as it is used afterwards; may look at train rows."""


class PositiveAUC(keras.metrics.AUC):  # type: ignore[misc]
    """Area under the ROC curve of one class's probability; approximate, for watching."""

    def __init__(self, positive: int) -> None:
        super().__init__(num_thresholds=_AUC_THRESHOLDS, name="auc")
        self._positive = positive

    def update_state(self, labels: Any, outputs: Any, sample_weight: Any = None) -> Any:
        """Labels int[B], probabilities float[B, C]."""
        return super().update_state(
            keras.ops.equal(labels, self._positive),
            outputs[:, self._positive],
            sample_weight=sample_weight,
        )


class Classifier:
    """A model whose output is probability float32[B, C]: simple_cnn, head."""

    pairs = False

    def __init__(self, settings: TrainSettings, shape: Shape, head: Any | None = None) -> None:
        self.settings, self.shape, self.head = settings, shape, head

    def build(self) -> Any:
        """The network of the family."""
        settings, shape = self.settings, self.shape
        if self.head is not None:
            return self.head
        if settings.family == "simple_cnn":
            return build_simple_cnn(
                settings.architecture, shape.image_size, len(shape.classes), settings.l2
            )
        return build_head(head_settings(settings), shape.width, len(shape.classes), shape.stats)

    def enter(self, model: Any, phase: Phase) -> None:
        """All layers learn."""

    def losses(self, inputs: Any, labels: Any, outputs: Any, weights: Any) -> Any:
        """Cross-entropy."""
        hot = keras.ops.one_hot(labels, len(self.shape.classes))
        return keras.losses.categorical_crossentropy(
            hot, outputs, label_smoothing=self.settings.label_smoothing
        )

    def scores(self) -> list[Any]:
        """Accuracy, and for two classes the AUC."""
        found: list[Any] = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
        if len(self.shape.classes) == 2:
            found.append(PositiveAUC(self.shape.positive))
        return found

    def kept(self, model: Any) -> Any:
        """The model itself."""
        return model

    def finished(self, model: Any, train: Rows) -> Any:
        """As kept."""
        return self.kept(model)


class Transfer(Classifier):
    """A backbone and a head: frozen at first, then learning from a block on."""

    def __init__(
        self, settings: TrainSettings, shape: Shape, backbone: Backbone, head: Any | None
    ) -> None:
        if head is None:
            # Standardising needs a look at all features first; a sweep's head brings its own.
            plain = head_settings(settings).model_copy(update={"standardise": False})
            head = build_head(plain, backbone.width, len(shape.classes), {})
        super().__init__(settings, shape, head)
        self._backbone = backbone

    def build(self) -> Any:
        """The stack."""
        return build_transfer(self._backbone, self.head)

    def enter(self, model: Any, phase: Phase) -> None:
        """The head alone, or the backbone as well from the block on."""
        if phase.name == FINE_TUNE:
            unfreeze(model, self.settings.fine_tune_from or "")

    def kept(self, model: Any) -> Any:
        """Without the layer that plain Keras does not know."""
        self._bare.set_weights(model.get_weights())
        return self._bare

    @cached_property
    def _bare(self) -> Any:
        return bare_transfer(self._backbone, self.head)


class Siamese:
    """A trunk that embeds, trained on pairs; classes come from train anchors at the end."""

    pairs = True

    def __init__(self, settings: TrainSettings, shape: Shape) -> None:
        self._settings, self._shape = settings, shape

    def build(self) -> Any:
        """The trunk, or the trunk with the study's join on it."""
        settings, shape = self._settings, self._shape
        if shape.image_size:
            trunk = siamese.build_trunk_images(shape.image_size, settings.embedding)
        else:
            trunk = siamese.build_trunk_features(
                shape.width,
                shape.stats,
                settings.pool,
                units=settings.units,
                dropout=settings.dropout,
                embedding=settings.embedding,
            )
        return siamese.build_concatenation(trunk) if self._joined else trunk

    @property
    def _joined(self) -> bool:
        return self._settings.join == "concatenation"

    def enter(self, model: Any, phase: Phase) -> None:
        """All layers learn."""

    def losses(self, inputs: Any, labels: Any, outputs: Any, weights: Any) -> Any:
        """Contrastive, or cross-entropy of "the classes differ"."""
        if self._joined:
            target = keras.ops.expand_dims(siamese.partner_differs(labels), -1)
            return keras.losses.binary_crossentropy(target, outputs)
        return siamese.contrastive_losses(labels, outputs, weights, self._settings.margin)

    def scores(self) -> list[Any]:
        """None but the loss: there are no probabilities of classes yet."""
        return []

    def kept(self, model: Any) -> Any:
        """What embeds: images or features to {"embedding"}."""
        trunk = siamese.embedder(model)
        return keras.Model(trunk.input, {"embedding": trunk.output}, name="embedder")

    def finished(self, model: Any, train: Rows) -> Any:
        """With the anchors of every class in it."""
        settings = self._settings
        known, labels = np.unique(train.labels, return_inverse=True)
        numbers = siamese.draw_anchors(
            labels.astype(np.int32), len(known), settings.anchors, settings.seed
        )
        embedder = siamese.embedder(model)
        anchors = np.stack([embedder.predict_on_batch(train.take(rows)) for rows in numbers])
        return siamese.with_anchors(model, anchors)


class Autoencoder:
    """A code that images can be rebuilt from; labels are not looked at."""

    pairs = False

    def __init__(self, settings: TrainSettings, shape: Shape) -> None:
        self._settings, self._shape = settings, shape

    def build(self) -> Any:
        """Encoder and decoder."""
        return build_autoencoder(self._shape.image_size, self._settings.embedding)

    def enter(self, model: Any, phase: Phase) -> None:
        """All layers learn."""

    def losses(self, inputs: Any, labels: Any, outputs: Any, weights: Any) -> Any:
        """Squared error of grey values."""
        return reconstruction_losses(inputs, outputs["reconstruction"])

    def scores(self) -> list[Any]:
        """None but the loss."""
        return []

    def kept(self, model: Any) -> Any:
        """The encoder."""
        return encoder(model)

    def finished(self, model: Any, train: Rows) -> Any:
        """As kept."""
        return self.kept(model)


def head_settings(settings: TrainSettings) -> HeadSettings:
    """The head that the flags of a train job describe."""
    shared = HeadSettings.model_fields.keys() & type(settings).model_fields.keys()
    told = {name: getattr(settings, name) for name in shared - {"schedule"}}
    return HeadSettings(**told)


def make_family(plan: Plan) -> Family:
    """The family that the settings name."""
    settings, shape = plan.settings, plan.shape
    if settings.family == "siamese":
        return Siamese(settings, shape)
    if settings.family == "autoencoder":
        return Autoencoder(settings, shape)
    head = saved.load(plan.head)[0] if plan.head is not None else None
    if settings.family == "transfer":
        assert plan.backbone is not None
        return Transfer(settings, shape, Backbone.read(plan.backbone), head)
    return Classifier(settings, shape, head)
