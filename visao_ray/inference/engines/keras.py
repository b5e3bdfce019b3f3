"""Keras engines: a backbone without its top, or a model that was trained on pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from visao_ray.core.storage import Location
from visao_ray.inference.engines.base import EngineFactory
from visao_ray.inference.settings import ExtractOptions
from visao_ray.models import artifact
from visao_ray.models.backbones import Backbone, build, resolve
from visao_ray.models.settings import BackboneOptions

Pixels = npt.NDArray[np.uint8]
Outputs = dict[str, npt.NDArray[np.float32]]


class KerasEngine:
    """Engine that calls a function on batches of fixed size.

    The last batch is padded, so the network sees one shape, and the results of an image do not
    depend on the number of other images.

    Args:
        predict: computes outputs float32[B, width] by name from pixels uint8[B, S, S, 3].
        image_size: S, in pixels.
        batch_size: B.
        outputs: see `Engine`.
        metadata: see `Engine`.
    """

    def __init__(
        self,
        predict: Callable[[Pixels], Outputs],
        image_size: int,
        batch_size: int,
        outputs: Mapping[str, int],
        metadata: Mapping[str, Any],
    ) -> None:
        self._predict = predict
        self._shape = (batch_size, image_size, image_size, 3)
        self.outputs, self.metadata = outputs, metadata
        # Call it once before threads share it: Keras builds its function at the first call.
        self._predict(np.zeros(self._shape, np.uint8))

    def __call__(self, pixels: Pixels) -> Outputs:
        """Compute outputs float32[N, width] by name from pixels uint8[N, S, S, C], C = 1 or 3."""
        found = {
            name: np.empty((len(pixels), width), np.float32) for name, width in self.outputs.items()
        }

        def fill(start: int) -> None:
            chosen = pixels[start : start + self._shape[0]]
            batch = np.zeros(self._shape, np.uint8)
            batch[: len(chosen)] = chosen
            for name, values in self._predict(batch).items():
                found[name][start : start + len(chosen)] = values[: len(chosen)]

        # Two batches at a time: one computes while the other waits for its slowest thread.
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(fill, range(0, len(pixels), self._shape[0])))
        return found


@dataclass(frozen=True)
class KerasBackbone:
    """Factory of a backbone's engine; its outputs are `avg` and `max`, float32[N, D] each.

    Attributes:
        at: file that `Backbone.write` saved. It is in storage and not in Ray's object store,
            because an actor that is restarted after its node was lost must find the weights again.
        backbone: the backbone without its weights.
        resize: how an image is made square.
        batch_size: images per batch.
    """

    at: Location
    backbone: Backbone
    resize: Literal["stretch", "letterbox"]
    batch_size: int

    @property
    def name(self) -> str:
        """Name of the backbone."""
        return self.backbone.name

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        return self.backbone.image_size

    @property
    def outputs(self) -> Mapping[str, int]:
        """Width of both pooled outputs."""
        return {"avg": self.backbone.width, "max": self.backbone.width}

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Everything that determines the results."""
        return self.backbone.metadata(self.resize)

    def build(self) -> KerasEngine:
        """Read the weights and build the network."""
        model = build(Backbone.read(self.at))

        def predict(batch: Pixels) -> Outputs:
            average, maximum = model.predict_on_batch(batch)
            return {"avg": average, "max": maximum}

        return KerasEngine(predict, self.image_size, self.batch_size, self.outputs, self.metadata)


class KerasBackbones:
    """The engine kind `keras`: any keras.applications network, or a `.keras` file."""

    name = "keras"
    options = frozenset(BackboneOptions.model_fields)

    def resolve(
        self, options: ExtractOptions, seed: int, work: Location
    ) -> tuple[EngineFactory, str | None]:
        """Find the backbone and its weights, and save them in a file for the actors.

        Args:
            options: settings of the extraction.
            seed: seed of random weights.
            work: folder of the run.

        Returns:
            The factory, and a warning to show, or None.

        Raises:
            InputError: the backbone or its weights are not available.
        """
        backbone, warning = resolve(options, seed)
        saved = work.join("backbone.npz")
        backbone.write(saved)
        without_weights = replace(backbone, arrays=(), file=b"")
        return KerasBackbone(saved, without_weights, options.resize, options.batch_size), warning


@dataclass(frozen=True)
class KerasModel:
    """Factory of a trained model's engine; its outputs are `probability`, `embedding` or both.

    Attributes:
        at: file of the model.
        model_metadata: metadata in the file.
        digest: SHA-256 of the file.
        batch_size: images per batch.
    """

    at: Location
    model_metadata: artifact.ModelMetadata
    digest: str
    batch_size: int

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model_metadata.name

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        return self.model_metadata.image_size

    @property
    def resize(self) -> Literal["stretch", "letterbox"]:
        """How an image is made square."""
        return self.model_metadata.resize

    @property
    def outputs(self) -> Mapping[str, int]:
        """Name and width of each output."""
        return self.model_metadata.outputs

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Name and digest of the model, and its classes."""
        classes = list(self.model_metadata.classes)
        return {"model": self.model_metadata.name, "digest": self.digest, "classes": classes}

    def build(self) -> KerasEngine:
        """Load the model from its file."""
        model, _ = artifact.load(self.at)
        return KerasEngine(
            lambda batch: artifact.outputs(model, batch),
            self.image_size,
            self.batch_size,
            self.outputs,
            self.metadata,
        )
