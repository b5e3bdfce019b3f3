"""Protocols of an engine, its factory, and the kind of engine that `--engine` names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from visao_ray.core.storage import Location
from visao_ray.inference.settings import ExtractOptions


class Engine(Protocol):
    """Computes results from pixels in an actor, on the actor's device."""

    @property
    def outputs(self) -> Mapping[str, int]:
        """Name and width of each output."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Everything that determines the results; it goes into the name of their table."""

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Compute outputs float32[N, width] by name from pixels uint8[N, S, S, C], C = 1 or 3."""


class EngineFactory(Protocol):
    """Builds an engine in an actor; the factory is small and picklable."""

    @property
    def name(self) -> str:
        """Name of the engine in progress messages."""

    @property
    def image_size(self) -> int:
        """S, the side of the engine's input in pixels."""

    @property
    def resize(self) -> Literal["stretch", "letterbox"]:
        """How an image is made square."""

    @property
    def outputs(self) -> Mapping[str, int]:
        """Outputs of the engine."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata of the engine."""

    def build(self) -> Engine:
        """Build the engine; this takes seconds."""


class EngineKind(Protocol):
    """A kind of engine that `--engine` names; it resolves settings to an engine factory.

    The outputs of its engines must be `avg` and `max` with the same width, because models take
    these two. If its results differ from those of the kind `keras`, the metadata of its engines
    must hold its name under the key `engine`.
    """

    @property
    def name(self) -> str:
        """Value of `--engine`."""

    @property
    def options(self) -> Collection[str]:
        """Names of the settings of `BackboneOptions` that it supports; others are refused."""

    def resolve(
        self, options: ExtractOptions, seed: int, work: Location
    ) -> tuple[EngineFactory, str | None]:
        """Find the parts of the engine, and save in `work` the files that actors build it from.

        Runs in a task. Actors may be restarted after their node was lost, so large data goes to
        `work` and not into the factory.

        Args:
            options: settings of the extraction.
            seed: seed of the run, also used for random weights.
            work: folder of the run.

        Returns:
            The factory, and a warning to show, or None.

        Raises:
            InputError: the engine is not available with these settings.
        """
