"""Settings that say how pixels become vectors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from visao_ray.core.settings import OPERATIONAL, ActorOptions
from visao_ray.models.settings import BackboneOptions


class ExtractOptions(BackboneOptions, ActorOptions):
    """How pixels become vectors."""

    engine: str = Field("keras", description="what computes them: keras, or what a --plugin adds")
    augment: Literal["none", "G1", "G2", "G3", "G4", "G5"] = Field(
        "none", description="the study's augmentation recipe for extra views of train images"
    )
    views: int | None = Field(
        None, ge=0, le=100, description="augmented views an image, beside the image as it is (1)"
    )
    batch_size: int = Field(
        32, ge=1, le=1024, description="images a step", json_schema_extra=OPERATIONAL
    )
    rows_per_block: int = Field(
        64,
        ge=1,
        description="images a block: what is read, extracted and committed together",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _views(self) -> ExtractOptions:
        if self.augment == "none" and self.views:
            raise ValueError("--views needs an --augment recipe (G1 to G5)")
        return self

    @property
    def augmented_views(self) -> int:
        """How many augmented views a train image gets beside itself."""
        if self.augment == "none":
            return 0
        return 1 if self.views is None else self.views
