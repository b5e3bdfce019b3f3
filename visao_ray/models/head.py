"""The head: a small classifier on feature vectors, and the one file that keeps it.

A head takes the two pooled vectors of an image as they stand in the features table and gives class
probabilities; what it needs of them (which pool, how standardised) is inside. Its `.keras` file
loads with plain Keras anywhere; what Keras has no place for (the classes, which features it was
made from) travels in the same file, a zip archive, as `visao_ray.json`.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from visao_ray.backend import import_keras
from visao_ray.errors import InputError
from visao_ray.storage import Location, reason

Vectors = npt.NDArray[np.float32]

_ABOUT = "visao_ray.json"
#: What of a features table's `about` may differ between training and use of a head: augmented views
#: are for training alone, and the same weights may lie in another place (their digest tells).
_FREE = frozenset({"augment", "views", "weights"})
#: A feature that hardly varies in train is not blown up: its standard deviation counts as at least
#: this share of a feature's usual one. (A channel dead in train need not be dead elsewhere.)
_LEAST_DEVIATION = 0.03
_BLOCK = 4096  # rows in float64 at once


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


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each feature, float32[D], the deviation never vanishing."""

    mean: Vectors
    deviation: Vectors

    @classmethod
    def of(cls, vectors: Vectors) -> Moments:
        """The moments of float32[N, D]."""
        mean = vectors.mean(axis=0, dtype=np.float64)
        blocks = range(0, len(vectors), _BLOCK)
        squares = sum(np.square(vectors[i : i + _BLOCK] - mean).sum(axis=0) for i in blocks)
        variance = squares / len(vectors)
        least = max(_LEAST_DEVIATION * float(np.sqrt(variance.mean())), 1e-6)
        deviation = np.maximum(np.sqrt(variance), least)
        return cls(mean.astype(np.float32), deviation.astype(np.float32))


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

    inputs = {pool: keras.Input((width,), name=pool) for pool in ("avg", "max")}
    pools = list(inputs) if settings.pool == "both" else [settings.pool]
    parts = []
    for pool in pools:
        part = inputs[pool]
        if settings.standardise:
            layer = keras.layers.Normalization(name=f"standardise_{pool}")
            mean, deviation = moments[pool].mean, moments[pool].deviation
            # Two rows with just that mean and deviation: `adapt` need not read all rows every time.
            layer.adapt(np.stack([mean - deviation, mean + deviation]))
            part = layer(part)
        parts.append(part)
    x = keras.layers.Concatenate(name="pools")(parts) if len(parts) > 1 else parts[0]
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


def row_weights(
    settings: HeadSettings, labels: npt.NDArray[np.int32], classes: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Weight of every row by its class, mean 1 so that a learning rate means the same throughout.

    `balanced` is scikit-learn's N / (C · count), over the classes that have rows.

    Raises:
        InputError: a weight is given for a class that is not there, or is not positive.
    """
    of_class = np.ones(len(classes), np.float64)
    if settings.class_weight == "balanced":
        counts = np.bincount(labels, minlength=len(classes))
        of_class = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    elif isinstance(settings.class_weight, dict):
        for name, weight in settings.class_weight.items():
            if name not in classes:
                raise InputError(f"class_weight names '{name}', which is no class of this base")
            if not weight > 0:
                raise InputError(f"class_weight of '{name}' is {weight}, but must be positive")
            of_class[list(classes).index(name)] = weight
    weights: Vectors = (of_class / of_class[labels].mean()).astype(np.float32)[labels]
    return weights


@dataclass(frozen=True)
class HeadAbout:
    """What a head is, beside its weights.

    Attributes:
        base: the image base it belongs to.
        classes: names in the order of its probabilities.
        width: D, the numbers a pool that it takes.
        features: how the features it was trained on were made (`about` of their table).
        settings: its HeadSettings, as JSON.
        trial: the trial that made it; -1 if none.
        epoch: of its weights, from 1.
    """

    base: str
    classes: tuple[str, ...]
    width: int
    features: dict[str, Any]
    settings: dict[str, Any]
    trial: int = -1
    epoch: int = 0

    def check(self, base: str, width: int, features: Mapping[str, Any], where: str) -> None:
        """Check that a features table is of the kind that this head was trained on.

        Raises:
            InputError: other base, width or way of making; the message names the difference.
        """
        if base != self.base:
            raise InputError(f"{where}: the head is for base {self.base}, not {base}")
        if width != self.width:
            raise InputError(
                f"{where}: features have {width} numbers a pool, the head takes {self.width}"
            )
        for name in sorted((self.features.keys() | features.keys()) - _FREE):
            ours, theirs = self.features.get(name), features.get(name)
            if ours != theirs:
                raise InputError(
                    f"{where}: features were made with {name} {theirs}, those of the head with "
                    f"{ours}; extract again or take another head"
                )


def pack_head(model: Any, about: HeadAbout) -> bytes:
    """The content of a `.keras` file: the head without its optimizer, and what it is."""
    keras = import_keras()

    bare = keras.Model(
        {tensor.name: tensor for tensor in model.inputs}, model.outputs[0], name=model.name
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "head.keras")
        bare.save(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_ABOUT, json.dumps(asdict(about), indent=2, ensure_ascii=False))
        return path.read_bytes()


def read_about(data: bytes, where: str) -> HeadAbout:
    """What a packed head is; Keras is not needed.

    Raises:
        InputError: not a head that `pack_head` wrote.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            told = json.loads(archive.read(_ABOUT))
        return HeadAbout(**{**told, "classes": tuple(told["classes"])})
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: is no head of jobs/sweep.py ({reason(error)})") from None


def load_head(location: Location) -> tuple[Any, HeadAbout]:
    """Read a head: the keras.Model and what it is.

    `model.predict({"avg": float32[N, D], "max": float32[N, D]})` gives float32[N, C].

    Raises:
        InputError: missing, unreadable, or not a head.
    """
    keras = import_keras()

    try:
        data = location.read_bytes()
    except OSError as error:
        raise InputError(f"{location.uri}: cannot be read: {reason(error)}") from error
    about = read_about(data, location.uri)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "head.keras")
        path.write_bytes(data)
        return keras.saving.load_model(path, compile=False), about
