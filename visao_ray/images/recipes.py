"""The augmentation recipes by name: those of the 2019 study, and those that plugins add.

The study used five groups of settings of Keras's `ImageDataGenerator`, G1 to G5 (section 0 of its
ledger).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from visao_ray.core.errors import InputError
from visao_ray.core.registry import Registry


@dataclass(frozen=True)
class Recipe:
    """Ranges from which one augmented view is drawn.

    Attributes:
        name: its name in `RECIPES`: letters, digits and `_`. It is part of the name of the table
            of augmented vectors, so a recipe with other ranges needs another name.
        width_shift: largest horizontal shift, as a share of the width.
        height_shift: largest vertical shift, as a share of the height.
        brightness: lowest and highest factor, or None to leave the brightness unchanged.
        horizontal_flip: mirror left and right with probability 0.5.
    """

    name: str
    width_shift: float = 0.0
    height_shift: float = 0.0
    brightness: tuple[float, float] | None = None
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise InputError(f"augmentation recipe '{self.name}': use letters, digits and _")


#: What `--augment` offers.
RECIPES: Registry[Recipe] = Registry(
    "augmentation recipe",
    (
        Recipe("none"),
        Recipe("G1", 0.10, 0.10, (0.80, 1.20), True),
        Recipe("G2", 0.00, 0.00, (0.90, 1.10), True),
        Recipe("G3", 0.10, 0.05, (0.95, 1.05), True),
        Recipe("G4", 0.10, 0.10, (0.90, 1.10), True),
        Recipe("G5", 0.00, 0.00, None, True),
    ),
)

#: Adds a recipe; a plugin calls it when it is imported.
register = RECIPES.register
