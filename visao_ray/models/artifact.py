"""The one file that keeps a trained model, whatever its family.

It is a `.keras` file that loads with plain Keras anywhere; what Keras has no place for (the
dataset, the classes, what its inputs are) travels in the same file, a zip archive, as
`visao_ray.json`.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location, reason
from visao_ray.datasets.spec import Dataset
from visao_ray.models.normalization import Vectors

_METADATA = "visao_ray.json"
#: What of a description of vectors may differ between training and use of a model: augmented
#: views are for training alone, and the same weights may lie in another place (their digest tells).
_FREE = frozenset({"augment", "views", "weights"})


@dataclass(frozen=True)
class ModelMetadata:
    """What a model is, beside its weights.

    Attributes:
        dataset: the dataset it was trained on.
        family: head, simple_cnn, transfer, siamese, autoencoder or svm.
        classes: names in the order of its probabilities; () where it has none (autoencoder).
        takes: `images`, uint8 RGB [N, S, S, 3] in 0-255, or `features`, {"avg", "max"} of
            float32[N, D] each.
        settings: those that built and trained it, as JSON.
        image_size: S; 0 where it takes features.
        resize: how images are made square, stretch or letterbox.
        width: D; 0 where it takes images.
        features: how the vectors it was trained on were made (the description of their extractor).
        extractor: name of that extractor; its table in a store is `vectors/EXTRACTOR/none`. Empty
            where the model takes images.
        trial: the trial that made it; -1 if none.
        epoch: of its weights, from 1; 0 where it is not trained in epochs.
        outputs: what it gives, and how many numbers of it: {"probability": C, "embedding": E} or
            one of the two. `pack` fills it in.
    """

    dataset: Dataset
    family: str
    classes: tuple[str, ...]
    takes: Literal["images", "features"]
    settings: dict[str, Any]
    image_size: int = 0
    resize: Literal["stretch", "letterbox"] = "stretch"
    width: int = 0
    features: dict[str, Any] = field(default_factory=dict)
    extractor: str = ""
    trial: int = -1
    epoch: int = 0
    outputs: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """As the column `model` of tables has it: `head trial 3`, `simple_cnn epoch 7`."""
        if self.trial >= 0:
            return f"{self.family} trial {self.trial}"
        return f"{self.family} epoch {self.epoch}" if self.epoch else self.family

    def check_features(
        self, dataset: Dataset | None, width: int, features: Mapping[str, Any], where: str
    ) -> None:
        """Check that vectors are of the kind that this model was trained on.

        Args:
            dataset: that the features are said to be of; None for the model's own.
            width: numbers a pool.
            features: description of what made them.
            where: begins the message of an error.

        Raises:
            InputError: the model takes images, or another dataset, width or way of making; the
                message names the difference.
        """
        if self.takes != "features":
            raise InputError(f"{where}: the model ({self.name}) takes images, not vectors")
        self._check_dataset(dataset, where)
        if width != self.width:
            raise InputError(
                f"{where}: features have {width} numbers a pool, the model takes {self.width}"
            )
        for name in sorted((self.features.keys() | features.keys()) - _FREE):
            ours, theirs = self.features.get(name), features.get(name)
            if ours != theirs:
                raise InputError(
                    f"{where}: features were made with {name} {theirs}, those of the model with "
                    f"{ours}; extract again or take another model"
                )

    def check_images(self, dataset: Dataset | None, where: str) -> None:
        """Check that this model can be shown the images of a dataset.

        Args:
            dataset: None for the model's own.
            where: begins the message of an error.

        Raises:
            InputError: the model takes features, or is for another dataset.
        """
        if self.takes != "images":
            raise InputError(
                f"{where}: the model ({self.name}) takes vectors, which a store has: give --store"
            )
        self._check_dataset(dataset, where)

    def _check_dataset(self, dataset: Dataset | None, where: str) -> None:
        if dataset is None or dataset == self.dataset:
            return
        ours, theirs = self.dataset.to_json(), dataset.to_json()
        if ours["name"] != theirs["name"]:
            raise InputError(
                f"{where}: the model is for dataset {ours['name']}, not {theirs['name']}"
            )
        key = next(key for key in ours if ours[key] != theirs[key])
        raise InputError(
            f"{where}: {key} of dataset {dataset.name} was {ours[key]} when the model was trained, "
            f"now it is {theirs[key]}"
        )


def pack(model: Any, metadata: ModelMetadata) -> bytes:
    """The content of a `.keras` file: a functional model without optimizer, and what it is.

    The model's output is probabilities, float32[N, C], or a dict with `probability` and / or
    `embedding`, float32[N, E].

    Raises:
        ValueError: the model gives neither, or not a probability a class.
    """
    keras = import_keras()

    widths = {name: int(tensor.shape[-1]) for name, tensor in _named(model.output).items()}
    if not widths or widths.get("probability", 0) != len(metadata.classes):
        raise ValueError(f"a model of {len(metadata.classes)} classes gives {widths}")
    metadata = replace(metadata, outputs=widths)
    bare = keras.Model(model.input, model.output, name=model.name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        bare.save(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_METADATA, json.dumps(asdict(metadata), indent=2, ensure_ascii=False))
        return path.read_bytes()


def read_metadata(data: bytes, where: str) -> ModelMetadata:
    """What a packed model is; Keras is not needed.

    Raises:
        InputError: not a file that `pack` made.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            told = json.loads(archive.read(_METADATA))
        return ModelMetadata(
            **{
                **told,
                "classes": tuple(told["classes"]),
                "dataset": Dataset.from_json(told["dataset"]),
            }
        )
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"{where}: is no model that visao_ray trained ({reason(error)})") from None


def load(location: Location) -> tuple[Any, ModelMetadata]:
    """Read a model: the keras.Model, ready to predict, and what it is.

    Raises:
        InputError: missing, unreadable, or not a file that `pack` made.
    """
    keras = import_keras()

    data = read(location)
    metadata = read_metadata(data, location.uri)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        path.write_bytes(data)
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True), metadata
        except Exception as error:  # Keras has no one error for a broken file
            raise InputError(f"{location.uri}: Keras cannot load it: {reason(error)}") from error


def read(location: Location) -> bytes:
    """The file as it lies there.

    Raises:
        InputError: missing or unreadable.
    """
    try:
        return location.read_bytes()
    except OSError as error:
        raise InputError(f"{location.uri}: cannot be read: {reason(error)}") from error


def outputs(model: Any, inputs: Any) -> dict[str, Vectors]:
    """What a model says of one batch: `probability` float32[N, C], `embedding` float32[N, E]."""
    found = _named(model.predict_on_batch(inputs))
    return {name: np.asarray(values, np.float32) for name, values in found.items()}


def _named(found: Any) -> dict[str, Any]:
    """The outputs that tables keep, by name; a single one is the probability."""
    named = found if isinstance(found, dict) else {"probability": found}
    return {name: named[name] for name in ("probability", "embedding") if name in named}
