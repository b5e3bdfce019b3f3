"""The head: a small classifier on feature vectors.

A head takes the two pooled vectors of an image as they stand in the features table and gives class
probabilities; what it needs of them (which pool, how standardised) is inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.core.storage import locate
from visao_ray.datasets.spec import Dataset
from visao_ray.models import artifact
from visao_ray.models.artifact import ModelMetadata
from visao_ray.models.classifier import Classifier
from visao_ray.models.family import Phase, StoredVectors
from visao_ray.models.normalization import FeatureStats, Vectors
from visao_ray.models.optimizers import OptimizerName, cosine, make_optimizer
from visao_ray.models.pools import standardised_pools
from visao_ray.models.settings import (
    Activation,
    ClassifierSettings,
    ClassWeight,
    Pool,
    VectorSettings,
)

_BETA = 0.999
_PREDICT_ROWS = 4096  # at once


class HeadSettings(BaseModel):
    """Everything that decides what a head is and how it is trained.

    The defaults are the head of the 2019 study (02c2, 02c3: Dense 256, dropout, Adam) on both
    pools, standardised; `class_weight` {class: factor} is its `{nvazio: 3, vazio: 1}`.

    Attributes:
        kind: dense layers trained by gradient descent; or scikit-learn's logistic regression or
            RBF support vector machine, of which only pool, standardise, views, class_weight
            (logistic), c and gamma (svm) matter.
        layers, units: hidden layers, and the size of each; no layer: logistic regression.
        dropout: before every layer but the first (before the only one, without hidden layers).
        l1, l2: penalties on the weights of all dense layers.
        schedule: of the learning rate over the epochs asked for.
        views: augmented views of train images that are used; None: all that the table has.
        class_weight: see `class_factors`.
        c: inverse of the penalty of logistic regression and svm, as scikit-learn has it.
        gamma: of the svm, in units of 1 / (numbers · variance).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dense", "logistic", "svm"] = "dense"
    pool: Pool = "both"
    standardise: bool = True
    layers: int = Field(default=1, ge=0, le=2)
    units: int = Field(default=256, ge=1, le=4096)
    activation: Activation = "relu"
    dropout: float = Field(default=0.2, ge=0, lt=1)
    l1: float = Field(default=0.0, ge=0)
    l2: float = Field(default=0.0, ge=0)
    optimizer: OptimizerName = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    batch_size: int = Field(default=64, ge=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    views: int | None = Field(default=None, ge=0)
    class_weight: ClassWeight = "none"
    c: float = Field(default=1.0, gt=0)
    gamma: float = Field(default=1.0, gt=0)

    @property
    def pools(self) -> tuple[str, ...]:
        """The pooled vectors it takes, in order."""
        return ("avg", "max") if self.pool == "both" else (self.pool,)

    def rate(self, epoch: int, epochs: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        if self.schedule == "constant":
            return self.learning_rate
        return cosine(self.learning_rate, epoch, epochs)


class HeadOptions(ClassifierSettings):
    """Of families with a head, which may be one that is trained already."""

    epochs: int | None = Field(None, ge=0, description="most epochs (30)")
    head: str | None = Field(None, description="head.keras of jobs/sweep.py to start from")
    layers: int = Field(1, ge=0, le=2, description="hidden layers of the head")
    units: int = Field(256, ge=1, le=4096, description="of each hidden layer")
    activation: Activation = Field("relu", description="of the head's hidden layers")
    dropout: float = Field(0.2, ge=0, lt=1, description="before later layers")
    l1: float = Field(0.0, ge=0, description="penalty on the weights of the head")
    l2: float = Field(0.0, ge=0, description="penalty on the weights of dense layers")

    @model_validator(mode="after")
    def _check_epochs(self) -> Self:
        if self.epochs == 0 and self.head is None:
            raise ValueError("--epochs 0 needs a --head that is trained already")
        return self

    def to_head(self) -> HeadSettings:
        """The head that is built where there is none to start from."""
        shared = HeadSettings.model_fields.keys() & type(self).model_fields.keys()
        return HeadSettings(**{name: getattr(self, name) for name in shared - {"schedule"}})


H = TypeVar("H", bound=HeadOptions)


class HeadClassifier(Classifier[H]):
    """A family with a head, which may be one that is trained already."""

    @classmethod
    def check(cls, settings: H, dataset: Dataset, vectors: StoredVectors | None) -> None:
        """The head to start from fits the vectors."""
        super().check(settings, dataset, vectors)
        if settings.head is None:
            return
        metadata = read_head(settings.head)
        if vectors is not None:
            where = f"--head {settings.head}"
            metadata.check_features(dataset, vectors.width, vectors.made, where)

    def phases(self) -> tuple[Phase, ...]:
        """None without epochs; a head that is trained is kept, where nothing better comes of it."""
        trained = self.settings.head is not None
        return tuple(replace(phase, trained=trained) for phase in super().phases() if phase.epochs)


class TrainHeadSettings(HeadOptions, VectorSettings):
    """Fit a head on the vectors of a store."""

    example: ClassVar[str] = "--family head --store s3://bucket/store --workers 4 --out out/head"

    family: Literal["head"] = "head"
    standardise: bool = Field(True, description="bring features to mean 0, deviation 1")


class Head(HeadClassifier[TrainHeadSettings]):
    """The family `head`."""

    title = "the sweep's head, from vectors"
    settings_type = TrainHeadSettings

    def build(self) -> Any:
        """The head to start from, or a new one."""
        if self.settings.head is not None:
            return artifact.load(locate(self.settings.head))[0]
        shape = self.shape
        return build_head(self.settings.to_head(), shape.width, len(shape.classes), shape.stats)


def read_head(uri: str) -> ModelMetadata:
    """What the file of a head says of it.

    Raises:
        InputError: missing, unreadable, or no head.
    """
    where = f"--head {uri}"
    metadata = artifact.read_metadata(artifact.read(locate(uri)), where)
    if metadata.takes != "features" or not metadata.classes:
        raise InputError(f"{where}: is a model of family {metadata.family}, not a head")
    return metadata


def build_head(
    settings: HeadSettings, width: int, classes: int, stats: Mapping[str, FeatureStats]
) -> Any:
    """A head for features of `width` numbers a pool, not compiled.

    Args:
        settings: what to build.
        width: D of the inputs `avg` and `max`, float32[N, D] each.
        classes: C of the output, float32[N, C]: softmax probabilities in class order.
        stats: of the train rows, for `avg` and `max`; standardisation uses them.

    Returns:
        keras.Model. Weights depend on Keras's global seed (`keras.utils.set_random_seed`).
    """
    keras = import_keras()
    layers = keras.layers

    inputs, x = standardised_pools(settings.pools, width, stats if settings.standardise else None)
    penalty = keras.regularizers.L1L2(settings.l1, settings.l2)
    penalty = penalty if settings.l1 or settings.l2 else None
    for number in range(settings.layers):
        name = f"hidden_{number + 1}"
        x = layers.Dense(
            settings.units, settings.activation, kernel_regularizer=penalty, name=name
        )(x)
        if settings.dropout:
            x = layers.Dropout(settings.dropout, name=f"dropout_{number + 1}")(x)
    if settings.dropout and not settings.layers:
        x = layers.Dropout(settings.dropout, name="dropout")(x)
    output = layers.Dense(
        classes, "softmax", kernel_regularizer=penalty, dtype="float32", name="probability"
    )(x)
    return keras.Model(inputs, output, name="head")


def compile_head(model: Any, settings: HeadSettings) -> None:
    """Give a head its optimizer and loss."""
    keras = import_keras()

    loss: Any = keras.losses.SparseCategoricalCrossentropy()
    if settings.label_smoothing:
        classes, smoothing = model.output_shape[-1], settings.label_smoothing

        def loss(target: Any, probability: Any) -> Any:
            hot = keras.ops.one_hot(keras.ops.reshape(target, (-1,)), classes)
            return keras.losses.categorical_crossentropy(
                hot, probability, label_smoothing=smoothing
            )

    model.compile(make_optimizer(settings.optimizer, settings.learning_rate), loss=loss)


def class_factors(
    class_weight: ClassWeight,
    labels: npt.NDArray[np.int32],
    classes: Sequence[str],
) -> npt.NDArray[np.float32]:
    """How much a row of each class counts, float32[C]; mean 1 over the rows, so that a learning
    rate means the same throughout.

    With n rows of a class: `balanced` is 1 / n (scikit-learn's), `root` 1 / √n, and `effective`
    1 / (1 - βⁿ) with β = 0.999, the inverse of the effective number of rows (Cui et al., CVPR
    2019): 1 / n for rare classes, level for those of thousands. A mapping gives factors by name.

    Raises:
        InputError: a weight is given for a class that is not there, or is not positive.
    """
    of_class = np.ones(len(classes), np.float64)
    counts = np.maximum(np.bincount(labels, minlength=len(classes)), 1)
    if class_weight == "balanced":
        of_class = 1 / counts
    elif class_weight == "root":
        of_class = 1 / np.sqrt(counts)
    elif class_weight == "effective":
        of_class = 1 / (1 - _BETA**counts)
    elif isinstance(class_weight, Mapping):
        for name, weight in class_weight.items():
            if name not in classes:
                raise InputError(f"class_weight names '{name}', which is no class of this dataset")
            if not weight > 0:
                raise InputError(f"class_weight of '{name}' is {weight}, but must be positive")
            of_class[list(classes).index(name)] = weight
    factors: Vectors = (of_class / of_class[labels].mean()).astype(np.float32)
    return factors


def predict_head(
    model: Any, vectors: Mapping[str, Vectors], rows: npt.NDArray[np.int64]
) -> Vectors:
    """A head's probabilities of some rows, float32[n, C], block by block.

    Args:
        model: a head.
        vectors: `avg` and `max`, float32[R, D] each, in memory or memory-mapped.
        rows: which of them, int64[n]; n ≥ 1.
    """
    blocks = (rows[start : start + _PREDICT_ROWS] for start in range(0, len(rows), _PREDICT_ROWS))
    return np.concatenate(
        [
            model.predict_on_batch({pool: values[block] for pool, values in vectors.items()})
            for block in blocks
        ]
    )
