"""The head: a small classifier on feature vectors.

A head takes the two pooled vectors of an image as they stand in the features table and gives class
probabilities; what it needs of them (which pool, how standardised) is inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from visao_ray.backend import import_keras
from visao_ray.errors import InputError
from visao_ray.features.vectors import Moments, Vectors
from visao_ray.models.pools import standardised_pools


class HeadSettings(BaseModel):
    """Everything that decides what a head is and how it is trained.

    The defaults are the head of the 2019 study (02c2, 02c3: Dense 256, dropout, Adam) on both
    pools, standardised; `class_weight` {class: factor} is its `{nvazio: 3, vazio: 1}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool: Literal["avg", "max", "both"] = "both"
    standardise: bool = True
    units: int = Field(default=256, ge=0, le=4096)  # of the hidden layer; 0: logistic regression
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = Field(default=0.2, ge=0, lt=1)
    l2: float = Field(default=0.0, ge=0)
    optimizer: Literal["adam", "rmsprop"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    batch_size: int = Field(default=64, ge=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weight: Literal["none", "balanced"] | dict[str, float] = "none"


def build_head(
    settings: HeadSettings, width: int, classes: int, moments: Mapping[str, Moments]
) -> Any:
    """A compiled head for features of `width` numbers a pool.

    Args:
        settings: what to build.
        width: D of the inputs `avg` and `max`, float32[N, D] each.
        classes: C of the output, float32[N, C]: softmax probabilities in class order.
        moments: of the train rows, for `avg` and `max`; standardisation uses them.

    Returns:
        keras.Model. Weights depend on Keras's global seed (`keras.utils.set_random_seed`).
    """
    keras = import_keras()

    pools = ("avg", "max") if settings.pool == "both" else (settings.pool,)
    inputs, x = standardised_pools(pools, width, moments if settings.standardise else None)
    penalty = keras.regularizers.L2(settings.l2) if settings.l2 else None
    if settings.units:
        x = keras.layers.Dense(
            settings.units, settings.activation, kernel_regularizer=penalty, name="hidden"
        )(x)
    if settings.dropout:
        x = keras.layers.Dropout(settings.dropout, name="dropout")(x)
    output = keras.layers.Dense(
        classes, "softmax", kernel_regularizer=penalty, dtype="float32", name="probability"
    )(x)
    return keras.Model(inputs, output, name="head")


def compile_head(model: Any, settings: HeadSettings) -> None:
    """Give a head its optimizer and loss."""
    keras = import_keras()

    optimizers = {"adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}
    loss: Any = keras.losses.SparseCategoricalCrossentropy()
    if settings.label_smoothing:
        classes, smoothing = model.output_shape[-1], settings.label_smoothing

        def loss(target: Any, probability: Any) -> Any:
            hot = keras.ops.one_hot(keras.ops.reshape(target, (-1,)), classes)
            return keras.losses.categorical_crossentropy(
                hot, probability, label_smoothing=smoothing
            )

    model.compile(optimizers[settings.optimizer](settings.learning_rate), loss=loss)


def class_factors(
    class_weight: Literal["none", "balanced"] | Mapping[str, float],
    labels: npt.NDArray[np.int32],
    classes: Sequence[str],
) -> npt.NDArray[np.float32]:
    """How much a row of each class counts, float32[C]; mean 1 over the rows, so that a learning
    rate means the same throughout.

    `balanced` is scikit-learn's N / (C · count), over the classes that have rows.

    Raises:
        InputError: a weight is given for a class that is not there, or is not positive.
    """
    of_class = np.ones(len(classes), np.float64)
    if class_weight == "balanced":
        counts = np.bincount(labels, minlength=len(classes))
        of_class = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    elif isinstance(class_weight, Mapping):
        for name, weight in class_weight.items():
            if name not in classes:
                raise InputError(f"class_weight names '{name}', which is no class of this base")
            if not weight > 0:
                raise InputError(f"class_weight of '{name}' is {weight}, but must be positive")
            of_class[list(classes).index(name)] = weight
    factors: Vectors = (of_class / of_class[labels].mean()).astype(np.float32)
    return factors
