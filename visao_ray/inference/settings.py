"""Settings of the computation of vectors from pixels."""

from __future__ import annotations

from pydantic import Field, model_validator

from visao_ray.core.settings import OPERATIONAL, ActorOptions
from visao_ray.images.settings import RECIPE_NAMES, AugmentOptions
from visao_ray.models.settings import BackboneOptions


class ExtractOptions(BackboneOptions, AugmentOptions, ActorOptions):
    """Engine, augmentation and batches of an extraction."""

    engine: str = Field(
        "keras", description="engine that computes vectors: keras, or one added by a --plugin"
    )
    augment: str = Field(
        "none",
        description=f"augmentation recipe for extra views of train images: {RECIPE_NAMES}",
    )
    views: int | None = Field(
        None,
        ge=0,
        le=100,
        description="augmented views per train image, besides the image itself (default: 1)",
    )
    batch_size: int = Field(
        32, ge=1, le=1024, description="images per batch", json_schema_extra=OPERATIONAL
    )
    rows_per_block: int = Field(
        64,
        ge=1,
        description="images per block: read and extracted together",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _views(self) -> ExtractOptions:
        if self.augment == "none" and self.views:
            raise ValueError("--views needs an --augment recipe (G1 to G5)")
        return self

    @property
    def augmented_views(self) -> int:
        """Number of augmented views of a train image, besides the image itself."""
        if self.augment == "none":
            return 0
        return 1 if self.views is None else self.views
