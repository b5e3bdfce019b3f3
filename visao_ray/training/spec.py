"""The specification of a training run. Drivers import this module, so it imports no TensorFlow."""

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
    """Specification of a training run, the same for all workers.

    Attributes:
        settings: Settings of the job.
        shape: Properties of the data.
        metadata: Metadata of the model.
        work: Folder for files that the driver reads.
        tensorboard: Folder for TensorBoard files.
    """

    settings: TrainSettings
    shape: Shape
    metadata: ModelMetadata
    work: Location
    tensorboard: Location

    def family(self) -> Any:
        """Create the family that the settings name."""
        return FAMILIES[self.settings.family](self.settings, self.shape, self.work)
