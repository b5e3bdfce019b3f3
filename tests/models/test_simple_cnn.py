"""The small networks: the layers and parameters of the study."""

import numpy as np
import pytest

from visao_ray.core.errors import InputError
from visao_ray.core.settings import from_values
from visao_ray.models.simple_cnn import NATIVE_SIZE, SimpleCnnSettings, build_simple_cnn


@pytest.mark.parametrize(("architecture", "study"), [("cnn_a2", 1_034_881), ("cnn_b", 1_589_281)])
def test_parameters_are_those_of_the_study(architecture, study):
    size = NATIVE_SIZE[architecture]
    model = build_simple_cnn(architecture, size, classes=2)
    # One more output than the study's single sigmoid: 256 weights and a bias.
    assert model.count_params() == study + 256 + 1
    dropouts = [layer.rate for layer in model.layers if layer.__class__.__name__ == "Dropout"]
    assert (
        dropouts
        == {
            "cnn_a2": [0.25, 0.25, 0.25, 0.25, 0.25, 0.2],
            "cnn_b": [0.2, 0.25, 0.25, 0.25, 0.4],
        }[architecture]
    )


@pytest.mark.parametrize(("architecture", "least"), [("cnn_a2", 78), ("cnn_b", 128)])
def test_smallest_size(architecture, least):
    model = build_simple_cnn(architecture, least, classes=3, l2=1e-3)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, least, least, 3), np.uint8)
    probability = model.predict_on_batch(pixels)
    assert probability.shape == (2, 3)
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-6)
    assert len(model.losses) == {"cnn_a2": 7, "cnn_b": 8}[architecture]
    # Scaling is inside: pixels that are 255 times too bright would saturate the softmax.
    assert probability.max() < 0.9
    with pytest.raises(InputError, match=f"--image-size {least - 1} .* takes {least} or more"):
        build_simple_cnn(architecture, least - 1, classes=3)
    given = {"family": "simple_cnn", "architecture": architecture, "image_size": least - 1}
    with pytest.raises(InputError, match=f"--image-size {least - 1} "):  # before Ray starts
        from_values(SimpleCnnSettings, {"dataset": "vazios", "data": "d", "out": "o", **given})
