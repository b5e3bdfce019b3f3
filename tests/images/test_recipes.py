"""The registry of augmentation recipes: what settings accept, and what a plugin adds."""

import numpy as np
import pytest
from job_runs import ROOT

from visao_ray.core.errors import InputError
from visao_ray.core.settings import from_values
from visao_ray.features.settings import ExtractSettings
from visao_ray.images.augment import augment_view
from visao_ray.images.recipes import RECIPES, Recipe, register
from visao_ray.models.settings import TrainSettings

PLUGIN = str(ROOT / "examples" / "add_recipe.py")


def test_settings_know_the_recipe_of_a_plugin(no_plugins):
    values = {"data": "in", "store": "out", "augment": "small_shifts"}
    with pytest.raises(InputError, match="--augment small_shifts: unknown augmentation recipe"):
        from_values(ExtractSettings, values)
    settings = from_values(ExtractSettings, {**values, "plugin": [PLUGIN]})
    assert (settings.augment, settings.augmented_views) == ("small_shifts", 1)
    train = {"family": "simple_cnn", "data": "in", "out": "out", "augment": "small_shifts"}
    assert from_values(TrainSettings, {**train, "plugin": [PLUGIN]}).augment == "small_shifts"


def test_a_recipe_of_a_plugin_draws_views(no_plugins):
    from_values(ExtractSettings, {"data": "in", "store": "out", "plugin": [PLUGIN]})
    places = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, axis=0)
    views = [augment_view(places, RECIPES["small_shifts"], 0, "a.png", n) for n in range(1, 20)]
    assert all(view.shape == places.shape for view in views)
    assert all(view[0, 50, 0] < view[0, 150, 0] for view in views)  # never mirrored
    assert len({view.tobytes() for view in views}) == len(views)


def test_names_are_unique_and_fit_the_name_of_a_table(no_plugins):
    with pytest.raises(InputError, match="augmentation recipe 'G1' exists already"):
        register(Recipe("G1", 0.5))
    with pytest.raises(InputError, match="use letters, digits and _"):
        Recipe("G1@0")
