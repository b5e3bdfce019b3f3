"""Settings that say how images are augmented."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from visao_ray.images.recipes import RECIPES

#: For the help of `--augment`.
RECIPE_NAMES = f"{', '.join(RECIPES.built_in)}, or a recipe that a --plugin registers"


class AugmentOptions(BaseSettings):
    """Which recipe augments images of train."""

    augment: str = Field("none", description=f"augmentation recipe: {RECIPE_NAMES}")

    @field_validator("augment")
    @classmethod
    def _known_recipe(cls, name: str) -> str:
        return RECIPES.find(name, "--augment").name
