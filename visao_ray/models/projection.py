"""A learned metric: a projection of stored vectors in which images of a class are close.

Search in the projection needs a tenth of the numbers, and finds images with the same label instead
of images with the same brightness or posture. Two losses, on embeddings of unit length:

- contrastive (Khosla et al., Supervised contrastive learning, NeurIPS 2020): each row against all
  others of its batch; those of its class should be the most similar;
- proxy (Zhai & Wu, Classification is a strong baseline for deep metric learning, BMVC 2019): each
  row against one learned direction per class, so that the batch need not hold other rows of the
  class. It suits many classes with few images each.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from visao_ray.core.backend import import_keras
from visao_ray.models.family import GradientFamily
from visao_ray.models.settings import GradientSettings, VectorSettings
from visao_ray.models.siamese import build_trunk_features, pair_masks

_FAR = 1e9  # subtracted from similarities that do not count


class ProjectionSettings(VectorSettings, GradientSettings):
    """Fit a projection of vectors for search: images of a class are close in it."""

    example: ClassVar[str] = "--family projection --store s3://bucket/store --out out/projection"

    family: Literal["projection"] = "projection"
    loss: Literal["contrastive", "proxy"] = Field(
        "contrastive",
        description="contrastive: other rows of the batch; proxy: a direction for each class, for "
        "many classes with few images",
    )
    units: int = Field(256, ge=0, le=4096, description="units of the hidden layer (0: none)")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout rate of the hidden layer")
    input_dropout: float = Field(0.2, ge=0, lt=1, description="dropout rate of the vectors")
    embedding: int = Field(128, ge=2, le=4096, description="width of the embedding")
    temperature: float = Field(
        0.1, gt=0, le=1, description="the smaller, the more the closest other rows count"
    )
    batch_size: int = Field(256, ge=22, description="rows per step, divided among the workers")
    monitor: Literal["precision", "loss"] = Field(  # type: ignore[assignment]
        "precision",
        description="val metric that selects the best epoch (precision: share of the 10 nearest "
        "rows of a batch with the class of the row)",
    )
    schedule: Literal["plateau", "constant", "cosine"] = Field(
        "cosine", description="learning rate: a cosine, constant, or reduced on plateaus"
    )
    patience: int = Field(
        15, ge=1, description="stop after so many epochs without a better --monitor"
    )


class Projection(GradientFamily[ProjectionSettings]):
    """The family `projection`."""

    title = "an embedding for search, from vectors"
    settings_type = ProjectionSettings
    usual_epochs = 15

    @classmethod
    def known_classes(
        cls, classes: tuple[str, ...], labels: npt.NDArray[np.int32]
    ) -> tuple[str, ...]:
        """Return no classes: the model gives no probabilities."""
        return ()

    def build(self) -> Any:
        """Build the projection; with proxies its output is the similarity to each class."""
        settings, shape = self.settings, self.shape
        trunk = build_trunk_features(
            shape.width,
            shape.stats,
            settings.pool,
            units=settings.units,
            dropout=settings.dropout,
            embedding=settings.embedding,
            input_dropout=settings.input_dropout,
        )
        return trunk if settings.loss == "contrastive" else with_proxies(trunk, len(shape.classes))

    def losses(self, inputs: Any, labels: Any, outputs: Any, weights: Any) -> Any:
        """Contrastive loss, or cross-entropy of the similarities to the classes, float32[B]."""
        temperature = self.settings.temperature
        if self.settings.loss == "contrastive":
            return supervised_contrastive_losses(labels, outputs, weights, temperature)
        return import_keras().losses.sparse_categorical_crossentropy(
            labels, outputs / temperature, from_logits=True
        )

    def metrics(self) -> list[Any]:
        """How many of the nearest rows of the batch have the class, or of the nearest proxies."""
        if self.settings.loss == "proxy":
            return [import_keras().metrics.SparseCategoricalAccuracy(name="precision")]
        from visao_ray.models.neighbour_precision import NeighbourPrecision

        return [NeighbourPrecision()]

    def checkpoint_model(self, model: Any) -> Any:
        """Return the projection with the output {"embedding"}."""
        keras = import_keras()

        embedding = model.get_layer("embedding").output
        return keras.Model(model.input, {"embedding": embedding}, name="projection")


def with_proxies(trunk: Any, classes: int) -> Any:
    """Add a direction of unit length for each class to a trunk with embeddings of unit length.

    Args:
        trunk: Model of `siamese.build_trunk_features`.
        classes: C.

    Returns:
        keras.Model with the inputs and the weights of the trunk. Its output, float32[B, C], is the
        cosine of the embedding and the direction of each class.
    """
    keras = import_keras()

    directions = keras.layers.Dense(
        classes,
        use_bias=False,
        kernel_constraint=keras.constraints.UnitNorm(axis=0),
        dtype="float32",
        name="proxies",
    )
    return keras.Model(trunk.input, directions(trunk.output), name="projection_proxies")


def supervised_contrastive_losses(
    labels: Any, embeddings: Any, weights: Any, temperature: float = 0.1
) -> Any:
    """Compute the supervised contrastive loss of each row against the others of its batch.

    For row i with similarities s = cosine / temperature to the other rows: the mean, over the other
    rows p of its class, of log(sum of exp(s) over all other rows) − s of p. A row without another
    row of its class has the loss 0.

    Args:
        labels: int[B] class indices.
        embeddings: float[B, E] of unit length.
        weights: float[B]; a row of weight 0 is padding: it is no partner of other rows, and its
            loss is 0. Other weights do not scale the result.
        temperature: Temperature.

    Returns:
        float32[B].
    """
    ops = import_keras().ops

    embeddings = ops.cast(embeddings, "float32")
    same, different = pair_masks(labels, weights)
    others = same + different
    similarity = ops.matmul(embeddings, ops.transpose(embeddings)) / temperature
    total = ops.logsumexp(similarity - _FAR * (1 - others), axis=1)
    partners = ops.sum(same, axis=1)
    mean = ops.sum(same * similarity, axis=1) / ops.maximum(partners, 1)
    return ops.where(partners > 0, total - mean, 0)
