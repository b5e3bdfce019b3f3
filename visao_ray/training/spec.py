"""What is to be trained, decided before the workers start. Light: drivers import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from visao_ray.core.storage import Location
from visao_ray.models.artifact import ModelMetadata
from visao_ray.models.family import Shape
from visao_ray.models.registry import FAMILIES
from visao_ray.models.settings import TrainSettings


@dataclass(frozen=True)
class TrainSpec:
    """What all workers of a training are given.

    Attributes:
        settings: of the job.
        shape: what the data decide of the model.
        about: of the model, for its file.
        work: folder for what the run leaves behind for its driver.
        board: folder for TensorBoard.
    """

    settings: TrainSettings
    shape: Shape
    metadata: ModelMetadata
    work: Location
    board: Location

    def family(self) -> Any:
        """The family that the settings name, for this training."""
        return FAMILIES[self.settings.family](self.settings, self.shape, self.work)
