"""Siamese networks: embeddings in which images of a class lie together, and classification by them.

A trunk turns an image (or its features) into a unit-length embedding. It is trained on pairs within
each batch, in one of two ways:

- contrastive (Hadsell, Chopra, LeCun 2006): pull pairs of a class together, push others apart;
- concatenation: the study's join (04-RedesSiamesas), a small network that tells from both
  embeddings whether the classes differ; here it sees both orders of every pair (ledger, D25).

Afterwards an image is classified by comparing it with a few train images of each class, the
anchors (04b). `with_anchors` puts them into the model, which then needs nothing but Keras.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.models.family import BatchSource, GradientFamily
from visao_ray.models.normalization import FeatureStats
from visao_ray.models.pools import standardised_pools
from visao_ray.models.settings import EitherSettings, GradientSettings, Pool
from visao_ray.models.simple_cnn import trunk

_NEAR = 1e-12  # squared distance below which a pair counts as coincident


class SiameseSettings(EitherSettings, GradientSettings):
    """Fit an embedding on pairs of images; a few train images of each class then tell classes."""

    example: ClassVar[str] = "--family siamese --store s3://bucket/store --out out/siamese"
    about_vectors: ClassVar[tuple[str, ...]] = (*EitherSettings.about_vectors, "units", "dropout")

    family: Literal["siamese"] = "siamese"
    units: int = Field(256, ge=1, le=4096, description="of each hidden layer on vectors")
    dropout: float = Field(0.2, ge=0, lt=1, description="before later layers on vectors")
    join: Literal["contrastive", "concatenation"] = Field(
        "contrastive", description="distance with a margin, or the study's dense layers"
    )
    embedding: int = Field(128, ge=2, le=4096, description="numbers of the embedding")
    margin: float = Field(1.0, gt=0, le=2, description="distance that classes must keep")
    anchors: int = Field(5, ge=1, description="train images a class to compare with")

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.batch_size // self.workers % 2:
            raise ValueError("--family siamese needs an even number of rows a worker")
        if self.xla and self.join == "concatenation" and self.workers > 1:
            raise ValueError("--xla cannot compile the join of several workers; leave it out")
        return self


class Siamese(GradientFamily[SiameseSettings]):
    """The family `siamese`: a trunk that embeds; classes come from train anchors at the end."""

    title = "an embedding in which classes lie together, from vectors or pixels"
    settings_type = SiameseSettings
    pairs = True

    @classmethod
    def known_classes(
        cls, classes: tuple[str, ...], labels: npt.NDArray[np.int32]
    ) -> tuple[str, ...]:
        """Those of the anchors, which are train images."""
        return tuple(classes[number] for number in np.unique(labels))

    def build(self) -> Any:
        """The trunk, or the trunk with the study's join on it."""
        settings, shape = self.settings, self.shape
        if shape.image_size:
            trunk = build_trunk_images(shape.image_size, settings.embedding)
        else:
            trunk = build_trunk_features(
                shape.width,
                shape.stats,
                settings.pool,
                units=settings.units,
                dropout=settings.dropout,
                embedding=settings.embedding,
            )
        return build_concatenation(trunk) if self._joined else trunk

    def losses(self, inputs: Any, labels: Any, outputs: Any, weights: Any) -> Any:
        """Contrastive, or cross-entropy of "the classes differ"."""
        keras = import_keras()

        if self._joined:
            target = keras.ops.expand_dims(partner_differs(labels), -1)
            return keras.losses.binary_crossentropy(target, outputs)
        return contrastive_losses(labels, outputs, weights, self.settings.margin)

    def checkpoint_model(self, model: Any) -> Any:
        """What embeds: its inputs to {"embedding"}."""
        keras = import_keras()

        trunk = embedder(model)
        return keras.Model(trunk.input, {"embedding": trunk.output}, name="embedder")

    def final_model(self, model: Any, train: BatchSource) -> Any:
        """With the anchors of every class in it."""
        settings = self.settings
        known, labels = np.unique(train.labels, return_inverse=True)
        numbers = draw_anchors(labels.astype(np.int32), len(known), settings.anchors, settings.seed)
        trunk = embedder(model)
        anchors = np.stack([trunk.predict_on_batch(train.take(rows)) for rows in numbers])
        return with_anchors(model, anchors)

    @property
    def _joined(self) -> bool:
        return self.settings.join == "concatenation"


def build_trunk_images(image_size: int, embedding: int = 128) -> Any:
    """Pixels to embedding: the trunk of CNN-B, as in the study's SIAM-V, and a Dense layer.

    Args:
        image_size: S of the input `pixels`, uint8[N, S, S, 3] in 0-255.
        embedding: E of the output, float32[N, E] of unit length.

    Raises:
        InputError: images too small for the layers.
    """
    keras = import_keras()

    pixels = keras.Input((image_size, image_size, 3), dtype="uint8", name="pixels")
    output = _unit_length(trunk("cnn_b", pixels), embedding)
    return keras.Model(pixels, output, name="siamese_images")


def build_trunk_features(
    width: int,
    stats: Mapping[str, FeatureStats],
    pool: Pool = "both",
    standardise: bool = True,
    units: int = 256,
    dropout: float = 0.2,
    embedding: int = 128,
) -> Any:
    """Features to embedding, on the same inputs as a head.

    Args:
        width: D of the inputs `avg` and `max`, float32[N, D] each.
        stats: of the train rows, for `avg` and `max`; standardisation uses them.
        pool: which of them is used.
        standardise: to mean 0 and deviation 1 in train.
        units: of the hidden layer; 0: none.
        dropout: share of the hidden units left out in training.
        embedding: E of the output, float32[N, E] of unit length.
    """
    keras = import_keras()

    pools = ("avg", "max") if pool == "both" else (pool,)
    inputs, x = standardised_pools(pools, width, stats if standardise else None)
    if units:
        x = keras.layers.Dense(units, "relu", name="hidden")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, _unit_length(x, embedding), name="siamese_features")


def _unit_length(x: Any, embedding: int) -> Any:
    """Dense to E numbers, then unit length.

    The study's layer was relu and not normalised. On the unit sphere distances lie in 0..2, so that
    a margin and a temperature mean the same for every trunk, and the squared distance to an anchor
    is linear in the embedding. With relu the sphere would shrink to one orthant, where no two
    points are farther apart than √2: unlike classes could at best be orthogonal.
    """
    keras = import_keras()

    # Not zeros: an all-black image (or a filling row) would embed at 0, where direction, and with
    # it the gradient, is undefined.
    start = keras.initializers.RandomNormal(stddev=0.01)
    x = keras.layers.Dense(embedding, bias_initializer=start, dtype="float32", name="direction")(x)
    return keras.layers.UnitNormalization(dtype="float32", name="embedding")(x)


def embedder(model: Any) -> Any:
    """The trunk in a model of this file: its inputs to float32[N, E]; weights are shared."""
    keras = import_keras()

    return keras.Model(model.input, model.get_layer("embedding").output, name="embedder")


def contrastive_losses(labels: Any, embeddings: Any, weights: Any, margin: float = 1.0) -> Any:
    """Contrastive loss of every row against all others of its batch, float32[B].

    For row i: ½ · mean of d² over the others of its class, plus ½ · mean of max(margin − d, 0)²
    over the rows of other classes. The two means weigh the same however many classes there are; a
    row without partners of a kind has no such half. Memory grows with B²·E.

    Args:
        labels: int[B].
        embeddings: float[B, E].
        weights: float[B]; a row of weight 0 fills the batch: it is neither anchor nor partner, and
            its loss is 0. Otherwise weights do not scale the result.
        margin: distance beyond which different classes are left alone.
    """
    ops = import_keras().ops

    labels = ops.reshape(labels, (-1,))
    embeddings = ops.cast(embeddings, "float32")
    real = ops.cast(ops.reshape(weights, (-1,)) > 0, "float32")
    pairs = real[:, None] * real[None, :]
    same_class = ops.cast(labels[:, None] == labels[None, :], "float32")
    different = pairs * (1 - same_class)
    same = pairs * same_class * (1 - ops.eye(ops.shape(labels)[0]))
    # Differences, not the Gram matrix: near pairs would be lost in its rounding.
    squares = ops.sum(ops.square(embeddings[:, None] - embeddings[None, :]), axis=-1)
    distance = ops.sqrt(ops.maximum(squares, _NEAR))  # the gradient of √ at 0 is infinite
    push = ops.square(ops.maximum(margin - distance, 0))
    return 0.5 * (_row_mean(squares, same) + _row_mean(push, different))


def _row_mean(values: Any, mask: Any) -> Any:
    ops = import_keras().ops

    return ops.sum(values * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1)


def build_concatenation(trunk: Any) -> Any:
    """A trunk with the study's join on it, made symmetric.

    Rows come as pairs, 2i with 2i + 1, so a batch has an even number of rows. Each row's embedding
    is joined with its partner's, [own, partner's] – Dense 16 – BN – relu – Dense 4 – BN – relu –
    Dense 1, so both orders of a pair are seen. The trunk keeps its unit length here too: nothing is
    lost but the norm (the join scales as it needs), and search by distance means the same for both
    ways of training.

    Args:
        trunk: a model of `build_trunk_images` or `build_trunk_features`.

    Returns:
        keras.Model on the trunk's inputs; output float32[B, 1], the probability that the partner is
        of another class. It shares the trunk's weights.
    """
    keras = import_keras()
    ops = keras.ops

    own = trunk.output
    pairs = ops.reshape(own, (-1, 2, own.shape[-1]))
    partner = ops.reshape(ops.flip(pairs, axis=1), (-1, own.shape[-1]))
    x = keras.layers.Concatenate(name="pair")([own, partner])
    for number, units in enumerate((16, 4), start=1):
        x = keras.layers.Dense(units, name=f"join{number}")(x)
        x = keras.layers.BatchNormalization(synchronized=True, name=f"join{number}_norm")(x)
        x = keras.layers.ReLU(name=f"join{number}_relu")(x)
    differs = keras.layers.Dense(1, "sigmoid", dtype="float32", name="differs")(x)
    return keras.Model(trunk.input, differs, name="siamese_concatenation")


def partner_differs(labels: Any) -> Any:
    """The target of `build_concatenation`, float32[B]: 1 where the classes of a pair differ.

    Args:
        labels: int[B], B even; rows 2i and 2i + 1 are a pair.
    """
    ops = import_keras().ops

    pairs = ops.reshape(labels, (-1, 2))
    differs = ops.cast(pairs[:, :1] != pairs[:, 1:], "float32")
    return ops.reshape(ops.repeat(differs, 2, axis=1), (-1,))


def draw_anchors(
    labels: npt.NDArray[np.int32], classes: int, k: int, seed: int
) -> npt.NDArray[np.int64]:
    """Positions int64[C, k] of k random rows of each class, distinct where the class has k.

    Args:
        labels: int[N] class indices of the train rows. (The study took an anchor from test.)
        classes: C.
        k: anchors per class.
        seed: of the draw.

    Raises:
        InputError: a class has no rows.
    """
    rng = np.random.default_rng([seed, classes, k])
    drawn = np.empty((classes, k), np.int64)
    for index in range(classes):
        rows = np.flatnonzero(labels == index)
        if not len(rows):
            raise InputError(f"class number {index} has no train rows to take anchors from")
        drawn[index] = rng.choice(rows, size=k, replace=len(rows) < k)
    return drawn


def with_anchors(model: Any, anchors: npt.NDArray[np.float32], temperature: float = 0.1) -> Any:
    """The classifier by anchors: what is kept of a trained model.

    - A trunk: softmax over the classes of −(mean d² to the anchors of the class) / temperature.
    - A concatenation: 1 − mean of p(different) over the anchors of the class and both orders,
      divided by its sum over the classes. Inference of BatchNormalization is folded in.

    Standard layers only, so that the file loads in plain Keras, safe mode included.

    Args:
        model: of `build_trunk_images`, `build_trunk_features` or `build_concatenation`.
        anchors: float32[C, k, E], what `embedder(model)` gives for the anchors of each class.
        temperature: of the softmax; a concatenation has none.

    Returns:
        keras.Model with outputs `probability` float32[N, C] and `embedding` float32[N, E].
    """
    keras = import_keras()

    embedding = model.get_layer("embedding").output
    if model.name == "siamese_concatenation":
        logits = _join_logits(model, embedding, anchors)
    else:
        # Both of unit length: −d² = 2 e·a − 2, and what all classes share drops out of a softmax.
        kernel = 2 / temperature * anchors.mean(axis=1, dtype=np.float64).T
        logits = _dense(embedding, "anchors", kernel)
    probability = keras.layers.Softmax(dtype="float32", name="probability")(logits)
    outputs = {"probability": probability, "embedding": embedding}
    return keras.Model(model.input, outputs, name=f"{model.name}_anchors")


def _join_logits(model: Any, embedding: Any, anchors: npt.NDArray[np.float32]) -> Any:
    """Symbolic log of the sum of p(same) over a class's anchors and both orders, float32[N, C]."""
    keras = import_keras()

    classes, k, width = anchors.shape
    kernel, bias = _folded(model, 1)
    own, other = kernel[:width], kernel[width:]
    # Dense on [image, anchor] is a Dense on the image plus a constant per anchor; both orders in
    # one, first [image, anchor], then [anchor, image].
    flat = anchors.reshape(classes * k, width).astype(np.float64)
    constant = np.concatenate([flat @ other + bias, flat @ own + bias], axis=1)
    x = keras.layers.RepeatVector(classes * k, dtype="float32", name="anchors")(embedding)
    layer = keras.layers.EinsumDense(
        "nae,eh->nah",
        output_shape=constant.shape,
        bias_axes="ah",
        activation="relu",
        dtype="float32",
        name="join1",
    )
    x = layer(x)
    layer.set_weights([np.concatenate([own, other], axis=1), constant])
    x = keras.layers.Reshape((2 * classes * k, -1), dtype="float32", name="orders")(x)
    x = _dense(x, "join2", *_folded(model, 2), activation="relu")
    # 1 − σ(z) is σ(−z).
    kernel, bias = model.get_layer("differs").get_weights()
    x = _dense(x, "same", -kernel, -bias, activation="log_sigmoid")
    x = keras.layers.Reshape((classes, 2 * k), dtype="float32", name="classes")(x)
    return keras.ops.logsumexp(x, axis=-1)


def _folded(model: Any, number: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Kernel and bias of a join's Dense layer with its BatchNormalization at inference."""
    norm = model.get_layer(f"join{number}_norm")
    kernel, bias = (w.astype(np.float64) for w in model.get_layer(f"join{number}").get_weights())
    gamma, beta, mean, variance = (w.astype(np.float64) for w in norm.get_weights())
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return kernel * scale, (bias - mean) * scale + beta


def _dense(x: Any, name: str, kernel: Any, bias: Any = None, activation: str | None = None) -> Any:
    """A Dense layer with these weights, applied."""
    layer = import_keras().layers.Dense(
        kernel.shape[1], activation, use_bias=bias is not None, dtype="float32", name=name
    )
    output = layer(x)
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return output
