"""The head: a small classifier on feature vectors.

A head takes the two pooled vectors of an image, as a table of vectors stores them, and gives class
probabilities. Selecting the pool and standardising are part of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

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

_BETA = 0.999  # of `effective` class weights
_PREDICT_ROWS = 4096  # rows per block


class HeadSettings(BaseModel, extra="forbid", frozen=True):
    """Settings that determine a head and its training.

    The defaults are the head of the 2019 study (02c2, 02c3: Dense 256, dropout, Adam) on both
    pools, standardised. The study's class weights are `class_weight` `{nvazio: 3, vazio: 1}`.

    Attributes:
        kind: Dense layers trained by gradient descent, or scikit-learn's logistic regression or
            RBF support vector machine. These two use only pool, standardise, views, class_weight
            (logistic), c and gamma (svm).
        pool: Pooled vectors to use.
        standardise: Whether features are standardised to mean 0 and standard deviation 1.
        layers: Number of hidden layers; 0 is logistic regression.
        units: Units of each hidden layer.
        activation: Activation of the hidden layers.
        dropout: Dropout rate before every layer but the first, or before the only layer.
        l1: L1 penalty on the weights of all dense layers.
        l2: L2 penalty on the weights of all dense layers.
        optimizer: Optimizer.
        learning_rate: Initial learning rate.
        schedule: Schedule of the learning rate over the epochs.
        batch_size: Rows per step.
        label_smoothing: Label smoothing of the targets.
        views: Number of augmented views of train images to use; None for all in the table.
        class_weight: See `class_factors`.
        c: Inverse of the penalty of logistic regression and svm, as in scikit-learn.
        gamma: Gamma of the svm in units of 1 / (features · variance).
    """

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
        """Names of the pooled vectors that the head uses, in order."""
        return ("avg", "max") if self.pool == "both" else (self.pool,)

    def rate(self, epoch: int, epochs: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        if self.schedule == "constant":
            return self.learning_rate
        return cosine(self.learning_rate, epoch, epochs)


class HeadOptions(ClassifierSettings):
    """Settings of families with a head, which may be trained already."""

    epochs: int | None = Field(None, ge=0, description="maximum number of epochs (30)")
    head: str | None = Field(None, description="head.keras of jobs/sweep.py to start from")
    layers: int = Field(1, ge=0, le=2, description="hidden layers of the head")
    units: int = Field(256, ge=1, le=4096, description="units of each hidden layer")
    activation: Activation = Field("relu", description="activation of the head's hidden layers")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout rate before later layers")
    l1: float = Field(0.0, ge=0, description="L1 penalty on the weights of the head")
    l2: float = Field(0.0, ge=0, description="L2 penalty on the weights of dense layers")

    @model_validator(mode="after")
    def _check_epochs(self) -> Self:
        if self.epochs == 0 and self.head is None:
            raise ValueError("--epochs 0 needs a trained --head")
        return self

    def to_head(self) -> HeadSettings:
        """Return the settings of a new head."""
        shared = HeadSettings.model_fields.keys() & type(self).model_fields.keys()
        return HeadSettings(**{name: getattr(self, name) for name in shared - {"schedule"}})


H = TypeVar("H", bound=HeadOptions)


class HeadClassifier(Classifier[H]):
    """A family with a head, which may be trained already."""

    @classmethod
    def check(cls, settings: H, dataset: Dataset, vectors: StoredVectors | None) -> None:
        """Check that the head to start from fits the vectors."""
        super().check(settings, dataset, vectors)
        if settings.head is None:
            return
        metadata = read_head(settings.head)
        if vectors is not None:
            where = f"--head {settings.head}"
            metadata.check_features(dataset, vectors.width, vectors.made, where)

    def phases(self) -> tuple[Phase, ...]:
        """Return no phase for 0 epochs; otherwise mark the phase as trained if --head is given."""
        trained = self.settings.head is not None
        return tuple(replace(phase, trained=trained) for phase in super().phases() if phase.epochs)


class TrainHeadSettings(HeadOptions, VectorSettings):
    """Fit a head on the vectors of a store."""

    example: ClassVar[str] = "--family head --store s3://bucket/store --workers 4 --out out/head"

    family: Literal["head"] = "head"
    standardise: bool = Field(True, description="standardise features to mean 0, deviation 1")


class Head(HeadClassifier[TrainHeadSettings]):
    """The family `head`."""

    title = "the head of a sweep, from vectors"
    settings_type = TrainHeadSettings

    def build(self) -> Any:
        """Load the head to start from, or build a new one."""
        if self.settings.head is not None:
            return artifact.load(locate(self.settings.head))[0]
        shape = self.shape
        return build_head(self.settings.to_head(), shape.width, len(shape.classes), shape.stats)


def read_head(uri: str) -> ModelMetadata:
    """Read the metadata of a head from its file.

    Args:
        uri: Value of --head.

    Returns:
        The metadata.

    Raises:
        InputError: The file is missing, unreadable, or not a head.
    """
    where = f"--head {uri}"
    metadata = artifact.read_metadata(artifact.read(locate(uri)), where)
    if metadata.takes != "features" or not metadata.classes:
        raise InputError(f"{where}: is a model of family {metadata.family}, not a head")
    return metadata


def build_head(
    settings: HeadSettings, width: int, classes: int, stats: Mapping[str, FeatureStats]
) -> Any:
    """Build a head, not compiled.

    Args:
        settings: Settings of the head.
        width: D of the inputs `avg` and `max`, float32[N, D] each.
        classes: C of the output, float32[N, C]: softmax probabilities in class order.
        stats: Statistics of the train rows for `avg` and `max`, used to standardise.

    Returns:
        keras.Model. The initial weights depend on Keras's global seed
        (`keras.utils.set_random_seed`).
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
    """Compile a head with its optimizer and loss."""
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
    """Compute the weight of a row of each class.

    The mean weight over the rows is 1, so that a learning rate has the same effect with all class
    weights. For a class with n rows, `balanced` is 1 / n (as in scikit-learn), `root` is 1 / √n,
    and `effective` is 1 / (1 - βⁿ) with β = 0.999, the inverse of the effective number of rows
    (Cui et al., CVPR 2019): about 1 / n for rare classes, constant for classes of thousands of
    rows.

    Args:
        class_weight: One of these names, `none`, or a mapping of class names to factors.
        labels: int32[N] class indices of the train rows.
        classes: Class names in index order.

    Returns:
        float32[C].

    Raises:
        InputError: A factor is given for an unknown class, or is not positive.
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
                raise InputError(
                    f"class_weight names '{name}', which is not a class of this dataset"
                )
            if not weight > 0:
                raise InputError(f"class_weight of '{name}' is {weight}, but must be positive")
            of_class[list(classes).index(name)] = weight
    factors: Vectors = (of_class / of_class[labels].mean()).astype(np.float32)
    return factors


def predict_head(
    model: Any, vectors: Mapping[str, Vectors], rows: npt.NDArray[np.int64]
) -> Vectors:
    """Predict some rows with a head, block by block.

    Args:
        model: A head.
        vectors: `avg` and `max`, float32[R, D] each, in memory or memory-mapped.
        rows: int64[n], numbers of the rows to predict; n ≥ 1.

    Returns:
        Probabilities, float32[n, C].
    """
    blocks = (rows[start : start + _PREDICT_ROWS] for start in range(0, len(rows), _PREDICT_ROWS))
    return np.concatenate(
        [
            model.predict_on_batch({pool: values[block] for pool, values in vectors.items()})
            for block in blocks
        ]
    )
