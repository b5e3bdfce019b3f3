"""The file format of trained models, the same for all families.

A model is a `.keras` file that plain Keras can load. The file is a zip archive. It also holds
`visao_ray.json` with metadata that Keras does not store: the dataset, the classes and the inputs.
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
#: Keys of an extractor's description that may differ between training and use of a model:
#: augmented views are used in training only, and the same weights may be read from another place
#: (their digest is compared).
_IGNORED = frozenset({"augment", "views", "weights"})


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of a model, stored in its file.

    Attributes:
        dataset: Dataset that the model was trained on.
        family: head, simple_cnn, transfer, siamese, projection, autoencoder or svm.
        classes: Class names in the order of the probabilities; () if the model gives no
            probabilities (autoencoder).
        takes: `images`, uint8 RGB [N, S, S, 3] in 0-255, or `features`, {"avg", "max"} of
            float32[N, D] each.
        settings: Settings that built and trained the model, as JSON.
        image_size: S in pixels; 0 if the model takes features.
        resize: How images are made square, stretch or letterbox.
        width: D; 0 if the model takes images.
        features: Description of the extractor of the vectors that the model was trained on.
        extractor: Name of that extractor; its table in a store is `vectors/EXTRACTOR/none`. Empty
            if the model takes images.
        trial: Number of the trial that trained the model; -1 if there was none.
        epoch: Epoch of the weights, counted from 1; 0 if the model is not trained in epochs.
        outputs: Width of each output: {"probability": C, "embedding": E} or one of the two. `pack`
            sets it.
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
        """The value of the column `model` in tables: `head trial 3`, `simple_cnn epoch 7`."""
        if self.trial >= 0:
            return f"{self.family} trial {self.trial}"
        return f"{self.family} epoch {self.epoch}" if self.epoch else self.family

    def check_features(
        self, dataset: Dataset | None, width: int, features: Mapping[str, Any], where: str
    ) -> None:
        """Check that vectors are of the kind that this model was trained on.

        Args:
            dataset: Dataset of the vectors; None for the dataset of the model.
            width: Number of values per pool.
            features: Description of the extractor of the vectors.
            where: Start of the error message.

        Raises:
            InputError: The model takes images, or the dataset, width or extractor differs; the
                message names the difference.
        """
        if self.takes != "features":
            raise InputError(f"{where}: the model ({self.name}) takes images, not vectors")
        self._check_dataset(dataset, where)
        if width != self.width:
            raise InputError(
                f"{where}: features have {width} values per pool, the model takes {self.width}"
            )
        for name in sorted((self.features.keys() | features.keys()) - _IGNORED):
            ours, theirs = self.features.get(name), features.get(name)
            if ours != theirs:
                raise InputError(
                    f"{where}: features were made with {name} {theirs}, but the model was trained "
                    f"with {ours}; extract again or use another model"
                )

    def check_images(self, dataset: Dataset | None, where: str) -> None:
        """Check that this model takes the images of a dataset.

        Args:
            dataset: Dataset of the images; None for the dataset of the model.
            where: Start of the error message.

        Raises:
            InputError: The model takes features, or is for another dataset.
        """
        if self.takes != "images":
            raise InputError(
                f"{where}: the model ({self.name}) takes vectors from a store: give --store"
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
            f"but now it is {theirs[key]}"
        )


def pack(model: Any, metadata: ModelMetadata) -> bytes:
    """Return the content of a `.keras` file: the model without its optimizer, and its metadata.

    Args:
        model: Functional Keras model. Its output is probabilities, float32[N, C], or a dict with
            `probability`, float32[N, C], or `embedding`, float32[N, E], or both.
        metadata: Metadata of the model.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: The model has none of these outputs, or not one probability per class.
    """
    keras = import_keras()

    widths = {name: int(tensor.shape[-1]) for name, tensor in _named(model.output).items()}
    if not widths or widths.get("probability", 0) != len(metadata.classes):
        raise ValueError(f"a model of {len(metadata.classes)} classes has outputs {widths}")
    metadata = replace(metadata, outputs=widths)
    bare = keras.Model(model.input, model.output, name=model.name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        bare.save(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_METADATA, json.dumps(asdict(metadata), indent=2, ensure_ascii=False))
        return path.read_bytes()


def read_metadata(data: bytes, where: str) -> ModelMetadata:
    """Read the metadata of a packed model without Keras.

    Args:
        data: Content of the file.
        where: Start of the error message.

    Returns:
        The metadata.

    Raises:
        InputError: The file was not made by `pack`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            values = json.loads(archive.read(_METADATA))
        return ModelMetadata(
            **{
                **values,
                "classes": tuple(values["classes"]),
                "dataset": Dataset.from_json(values["dataset"]),
            }
        )
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"{where}: is not a model of visao_ray ({reason(error)})") from None


def load(location: Location) -> tuple[Any, ModelMetadata]:
    """Load a model.

    Args:
        location: Location of the file.

    Returns:
        The keras.Model, ready to predict, and its metadata.

    Raises:
        InputError: The file is missing, unreadable, or was not made by `pack`.
    """
    keras = import_keras()

    data = read(location)
    metadata = read_metadata(data, location.uri)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        path.write_bytes(data)
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True), metadata
        except Exception as error:  # Keras raises several types for a broken file
            raise InputError(f"{location.uri}: Keras cannot load it: {reason(error)}") from error


def read(location: Location) -> bytes:
    """Return the content of a model file.

    Args:
        location: Location of the file.

    Returns:
        The bytes of the file.

    Raises:
        InputError: The file is missing or unreadable.
    """
    try:
        return location.read_bytes()
    except OSError as error:
        raise InputError(f"{location.uri}: cannot be read: {reason(error)}") from error


def outputs(model: Any, inputs: Any) -> dict[str, Vectors]:
    """Predict one batch: `probability` float32[N, C], `embedding` float32[N, E], or both."""
    named = _named(model.predict_on_batch(inputs))
    return {name: np.asarray(values, np.float32) for name, values in named.items()}


def _named(outputs: Any) -> dict[str, Any]:
    """The outputs that tables store, by name; a single output is the probability."""
    named = outputs if isinstance(outputs, dict) else {"probability": outputs}
    return {name: named[name] for name in ("probability", "embedding") if name in named}
