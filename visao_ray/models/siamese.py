"""Siamese networks: embeddings in which images of a class are close, and classification by them.

A trunk turns an image (or its features) into a unit-length embedding. It is trained on pairs within
each batch, in one of two ways:

- contrastive (Hadsell, Chopra, LeCun 2006): pull pairs of a class together, push others apart;
- concatenation: the study's join (04-RedesSiamesas), a small network that predicts from both
  embeddings whether the classes differ; here it sees both orders of every pair (ledger, D25).

The final model classifies an image by comparing it with a few train images of each class, the
anchors (04b). `with_anchors` stores them in the model, so that it needs only Keras.
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
from visao_ray.models.simple_cnn import check_size, trunk

_NEAR = 1e-12  # squared distance below which a pair counts as coincident


class SiameseSettings(EitherSettings, GradientSettings):
    """Fit an embedding on pairs of images; classify by a few train images of each class."""

    example: ClassVar[str] = "--family siamese --store s3://bucket/store --out out/siamese"
    vector_settings: ClassVar[tuple[str, ...]] = (
        *EitherSettings.vector_settings,
        "units",
        "dropout",
    )

    family: Literal["siamese"] = "siamese"
    units: int = Field(256, ge=1, le=4096, description="units of the hidden layer on vectors")
    dropout: float = Field(
        0.2, ge=0, lt=1, description="dropout rate of the hidden layer on vectors"
    )
    join: Literal["contrastive", "concatenation"] = Field(
        "contrastive", description="how pairs are compared: distance, or the study's dense layers"
    )
    embedding: int = Field(128, ge=2, le=4096, description="width of the embedding")
    margin: float = Field(1.0, gt=0, le=2, description="minimum distance between classes")
    anchors: int = Field(5, ge=1, description="train images per class to compare with")

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.batch_size // self.workers % 2:
            raise ValueError("--family siamese needs an even number of rows per worker")
        if self.xla and self.join == "concatenation" and self.workers > 1:
            raise ValueError(
                "--xla cannot compile --join concatenation with several workers; remove --xla"
            )
        if self.image_size is not None and not self.takes_vectors:
            check_size("cnn_b", self.image_size)
        return self


class Siamese(GradientFamily[SiameseSettings]):
    """The family `siamese`: a trunk gives embeddings, and train anchors give the classes."""

    title = "an embedding in which images of a class are close, from vectors or pixels"
    settings_type = SiameseSettings
    pairs = True

    @classmethod
    def known_classes(
        cls, classes: tuple[str, ...], labels: npt.NDArray[np.int32]
    ) -> tuple[str, ...]:
        """Return the classes that have train rows, which are the classes of the anchors."""
        return tuple(classes[number] for number in np.unique(labels))

    def build(self) -> Any:
        """Build the trunk, with the study's join for --join concatenation."""
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
        """Contrastive loss, or cross-entropy of "the classes differ", float32[B]."""
        keras = import_keras()

        if self._joined:
            target = keras.ops.expand_dims(partner_differs(labels), -1)
            return keras.losses.binary_crossentropy(target, outputs)
        return contrastive_losses(labels, outputs, weights, self.settings.margin)

    def checkpoint_model(self, model: Any) -> Any:
        """Return the trunk with the output {"embedding"}."""
        keras = import_keras()

        trunk = embedder(model)
        return keras.Model(trunk.input, {"embedding": trunk.output}, name="embedder")

    def final_model(self, model: Any, train: BatchSource) -> Any:
        """Return the classifier, which includes the anchors of every class."""
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
    """Build a trunk on pixels: the trunk of CNN-B, as in the study's SIAM-V, and a Dense layer.

    Args:
        image_size: S of the input `pixels`, uint8[N, S, S, 3] in 0-255.
        embedding: E of the output, float32[N, E] of unit length.

    Returns:
        keras.Model.

    Raises:
        InputError: The images are too small for the layers.
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
    input_dropout: float = 0.0,
) -> Any:
    """Build a trunk on features, with the same inputs as a head.

    Args:
        width: D of the inputs `avg` and `max`, float32[N, D] each.
        stats: Statistics of the train rows for `avg` and `max`, used to standardise.
        pool: Pooled vectors to use.
        standardise: Whether features are standardised to mean 0 and standard deviation 1.
        units: Units of the hidden layer; 0 for no hidden layer.
        dropout: Dropout rate.
        embedding: E of the output, float32[N, E] of unit length.
        input_dropout: Dropout rate of the features.

    Returns:
        keras.Model.
    """
    keras = import_keras()

    pools = ("avg", "max") if pool == "both" else (pool,)
    inputs, x = standardised_pools(pools, width, stats if standardise else None)
    if input_dropout:
        x = keras.layers.Dropout(input_dropout, name="input_dropout")(x)
    if units:
        x = keras.layers.Dense(units, "relu", name="hidden")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, _unit_length(x, embedding), name="siamese_features")


def _unit_length(x: Any, embedding: int) -> Any:
    """Apply a Dense layer of E units, then normalise to unit length.

    The study's layer had relu and no normalisation. On the unit sphere, distances are in 0..2. So a
    margin and a temperature have the same meaning for every trunk, and the squared distance to an
    anchor is linear in the embedding. With relu, all points would be in one orthant of the sphere,
    where distances are at most √2: different classes could at best be orthogonal.
    """
    keras = import_keras()

    # No zeros: the embedding of a black image (or of a padding row) would be 0, where the direction
    # and its gradient are undefined.
    bias = keras.initializers.RandomNormal(stddev=0.01)
    x = keras.layers.Dense(embedding, bias_initializer=bias, dtype="float32", name="direction")(x)
    return keras.layers.UnitNormalization(dtype="float32", name="embedding")(x)


def embedder(model: Any) -> Any:
    """Return the trunk of a model of this file, with output float32[N, E]; weights are shared."""
    keras = import_keras()

    return keras.Model(model.input, model.get_layer("embedding").output, name="embedder")


def contrastive_losses(labels: Any, embeddings: Any, weights: Any, margin: float = 1.0) -> Any:
    """Compute the contrastive loss of each row against all others of its batch.

    For row i: ½ · mean of d² over the other rows of its class, plus ½ · mean of max(margin − d, 0)²
    over the rows of other classes. The two means have the same weight for any number of classes. A
    term without partners is 0. Memory grows with B²·E.

    Args:
        labels: int[B] class indices.
        embeddings: float[B, E].
        weights: float[B]; a row of weight 0 is padding: it has no partners, is no partner of other
            rows, and its loss is 0. Other weights do not scale the result.
        margin: Distance beyond which rows of different classes have no loss.

    Returns:
        float32[B].
    """
    ops = import_keras().ops

    embeddings = ops.cast(embeddings, "float32")
    same, different = pair_masks(labels, weights)
    # Differences, not the Gram matrix: its rounding errors exceed the distances of close pairs.
    squares = ops.sum(ops.square(embeddings[:, None] - embeddings[None, :]), axis=-1)
    distance = ops.sqrt(ops.maximum(squares, _NEAR))  # the gradient of √ at 0 is infinite
    push = ops.square(ops.maximum(margin - distance, 0))
    return 0.5 * (_row_mean(squares, same) + _row_mean(push, different))


def pair_masks(labels: Any, weights: Any) -> tuple[Any, Any]:
    """Mark the pairs of a batch: other rows of the same class, and rows of other classes.

    Args:
        labels: int[B] class indices.
        weights: float[B]; rows of weight 0 are padding and in no pair.

    Returns:
        float32[B, B] each, 1 for a pair; the diagonal is 0.
    """
    ops = import_keras().ops

    labels = ops.reshape(labels, (-1,))
    real = ops.cast(ops.reshape(weights, (-1,)) > 0, "float32")
    pairs = real[:, None] * real[None, :]
    same_class = ops.cast(labels[:, None] == labels[None, :], "float32")
    different = pairs * (1 - same_class)
    same = pairs * same_class * (1 - ops.eye(ops.shape(labels)[0]))
    return same, different


def _row_mean(values: Any, mask: Any) -> Any:
    ops = import_keras().ops

    return ops.sum(values * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1)


def build_concatenation(trunk: Any) -> Any:
    """Build a trunk with the study's join, made symmetric.

    Rows come in pairs, 2i with 2i + 1, so a batch has an even number of rows. The embeddings of a
    row and of its partner are concatenated: [own, partner] – Dense 16 – BN – relu – Dense 4 – BN –
    relu – Dense 1. So both orders of a pair are seen. The embedding has unit length here too. Only
    the norm is lost (the join can rescale), and search by distance works the same after both ways
    of training.

    Args:
        trunk: Model of `build_trunk_images` or `build_trunk_features`.

    Returns:
        keras.Model with the inputs and the weights of the trunk. Its output, float32[B, 1], is the
        probability that the partner is of another class.
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
    """Compute the target of `build_concatenation`.

    Args:
        labels: int[B], B even; rows 2i and 2i + 1 are a pair.

    Returns:
        float32[B], 1 where the classes of a pair differ.
    """
    ops = import_keras().ops

    pairs = ops.reshape(labels, (-1, 2))
    differs = ops.cast(pairs[:, :1] != pairs[:, 1:], "float32")
    return ops.reshape(ops.repeat(differs, 2, axis=1), (-1,))


def draw_anchors(
    labels: npt.NDArray[np.int32], classes: int, k: int, seed: int
) -> npt.NDArray[np.int64]:
    """Draw k random rows of each class, distinct if the class has k rows.

    Args:
        labels: int[N] class indices of the train rows. (The study took an anchor from test.)
        classes: C.
        k: Anchors per class.
        seed: Random seed.

    Returns:
        int64[C, k] positions in `labels`.

    Raises:
        InputError: A class has no rows.
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
    """Build the classifier by anchors, the final form of a trained model.

    - A trunk: softmax over the classes of −(mean d² to the anchors of the class) / temperature.
    - A concatenation: 1 − mean of p(different) over the anchors of the class and both orders,
      divided by its sum over the classes. BatchNormalization at inference is folded into the
      weights.

    The model has only standard layers, so that plain Keras can load its file, also in safe mode.

    Args:
        model: Model of `build_trunk_images`, `build_trunk_features` or `build_concatenation`.
        anchors: float32[C, k, E], output of `embedder(model)` for the anchors of each class.
        temperature: Temperature of the softmax; a concatenation has none.

    Returns:
        keras.Model with outputs `probability` float32[N, C] and `embedding` float32[N, E].
    """
    keras = import_keras()

    embedding = model.get_layer("embedding").output
    if model.name == "siamese_concatenation":
        logits = _join_logits(model, embedding, anchors)
    else:
        # Both have unit length: −d² = 2 e·a − 2, and a constant does not change a softmax.
        kernel = 2 / temperature * anchors.mean(axis=1, dtype=np.float64).T
        logits = _dense(embedding, "anchors", kernel)
    probability = keras.layers.Softmax(dtype="float32", name="probability")(logits)
    outputs = {"probability": probability, "embedding": embedding}
    return keras.Model(model.input, outputs, name=f"{model.name}_anchors")


def _join_logits(model: Any, embedding: Any, anchors: npt.NDArray[np.float32]) -> Any:
    """Log of the sum of p(same) over the anchors of a class and both orders, float32[N, C]."""
    keras = import_keras()

    classes, k, width = anchors.shape
    kernel, bias = _folded(model, 1)
    own, other = kernel[:width], kernel[width:]
    # Dense on [image, anchor] is Dense on the image plus a constant per anchor. One layer does both
    # orders, first [image, anchor], then [anchor, image].
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
    """Fold BatchNormalization at inference into kernel and bias of a Dense layer of the join."""
    norm = model.get_layer(f"join{number}_norm")
    kernel, bias = (w.astype(np.float64) for w in model.get_layer(f"join{number}").get_weights())
    gamma, beta, mean, variance = (w.astype(np.float64) for w in norm.get_weights())
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return kernel * scale, (bias - mean) * scale + beta


def _dense(x: Any, name: str, kernel: Any, bias: Any = None, activation: str | None = None) -> Any:
    """Apply a Dense layer with these weights."""
    layer = import_keras().layers.Dense(
        kernel.shape[1], activation, use_bias=bias is not None, dtype="float32", name=name
    )
    output = layer(x)
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return output
