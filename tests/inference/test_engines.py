"""Engine kinds by name, and the names of the tables of their vectors."""

import pytest

from visao_ray.core.errors import InputError
from visao_ray.core.settings import parse
from visao_ray.core.storage import locate
from visao_ray.features.extract import extractor_name
from visao_ray.features.settings import ExtractSettings
from visao_ray.inference.engines.keras import KerasBackbone
from visao_ray.inference.engines.registry import ENGINES, find_engine
from visao_ray.jobs.settings import PipelineSettings
from visao_ray.models.backbones import Backbone

SOURCE = ("--dataset", "vazios", "--data", "in", "--out", "o")


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("densenet121", "imagenet", "densenet121-imagenet-224-avgmax-f32-0b33bcaf"),
        ("tiny", "tiny.keras", "tiny-224-avgmax-f32-1f35b848"),
    ],
)
def test_names_of_stored_vectors_do_not_change(name, weights, expected):
    """Vectors in existing stores are found by these names."""
    backbone = Backbone(name, weights, "ab" * 32, 224, 1024, "imagenet")
    assert extractor_name(KerasBackbone(locate("x"), backbone, "stretch", 32)) == expected


@pytest.mark.parametrize("kind", [ExtractSettings, PipelineSettings])
def test_keras_is_the_default(kind):
    assert find_engine(parse(kind, SOURCE)) is ENGINES["keras"]
    with pytest.raises(InputError, match=r"^--engine tpu: unknown engine; there are keras"):
        find_engine(parse(kind, [*SOURCE, "--engine", "tpu"]))
