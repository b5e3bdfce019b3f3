"""Backbones: the requested network, its pools, its preprocessing, and its error messages."""

import re
from urllib.request import install_opener

import numpy as np
import pytest

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.core.storage import locate
from visao_ray.features.settings import ExtractSettings
from visao_ray.models.backbones import Backbone, build, resolve

SMALL = {"backbone": "MobileNetV2", "weights": "random", "image_size": 32}


def options(**values) -> ExtractSettings:
    return ExtractSettings(dataset="vazios", data="in", out="out", **values)


def found(seed: int = 0, **values) -> Backbone:
    backbone, warning = resolve(options(**values), seed)
    assert warning is None
    return backbone


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def mobilenet() -> Backbone:
    return found(**SMALL)


def pools(feature_map) -> tuple[np.ndarray, np.ndarray]:
    assert feature_map.ndim == 4
    return feature_map.mean(axis=(1, 2)), feature_map.max(axis=(1, 2))


def test_a_whole_model(tiny_backbone, images):
    backbone = found(weights=tiny_backbone)
    assert (backbone.name, backbone.image_size, backbone.width) == ("tiny", 32, 8)
    assert backbone.metadata("stretch") == {
        "backbone": "tiny",
        "weights": "tiny.keras",
        "weights_digest": backbone.digest,
        "image_size": 32,
        "preprocessing": "imagenet",
        "resize": "stretch",
        "dtype": "float32",
    }
    trunk = import_keras().saving.load_model(tiny_backbone)
    # The file normalises its input; it must not be normalised twice.
    expected = pools(trunk.predict(images.astype(np.float32), verbose=0))
    for value, right in zip(build(backbone).predict_on_batch(images), expected, strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.1


def test_the_digest_is_that_of_the_weights(tiny_backbone, mobilenet):
    assert found(weights=tiny_backbone).digest == found(weights=tiny_backbone, seed=9).digest
    assert found(**SMALL).digest == mobilenet.digest
    assert found(**SMALL, seed=1).digest != mobilenet.digest


@pytest.mark.parametrize("preprocessing", ["imagenet", "unit"])
def test_pixels_are_preprocessed_as_the_settings_say(preprocessing, mobilenet, images):
    keras = import_keras()
    backbone = found(**SMALL, preprocessing=preprocessing)
    assert backbone.digest == mobilenet.digest
    trunk = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3))
    trunk.set_weights(list(backbone.arrays))
    pixels = images.astype(np.float32)
    if preprocessing == "unit":
        prepared = pixels / 255
    else:
        prepared = keras.applications.mobilenet_v2.preprocess_input(pixels.copy())
    expected = pools(trunk.predict(prepared, verbose=0))
    for value, right in zip(build(backbone).predict_on_batch(images), expected, strict=True):
        assert value.shape == (5, 1280)
        np.testing.assert_allclose(value, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["application", "file"])
def test_written_and_read_again(kind, mobilenet, tiny_backbone, tmp_path, images):
    backbone = mobilenet if kind == "application" else found(weights=tiny_backbone)
    place = locate(f"{tmp_path}/backbone.npz")
    backbone.write(place)
    again = Backbone.read(place)
    assert again.metadata("stretch") == backbone.metadata("stretch")
    assert again.file == backbone.file
    assert (again.width, len(again.arrays)) == (backbone.width, len(backbone.arrays))
    for one, other in zip(backbone.arrays, again.arrays, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(
        build(again).predict_on_batch(images), build(backbone).predict_on_batch(images), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_weights_of_a_file(mobilenet, tmp_path):
    keras = import_keras()
    model = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3))
    path = tmp_path / "mine.weights.h5"
    model.save_weights(path)
    backbone = found(backbone="mobilenetv2", weights=str(path), image_size=32)
    assert backbone.digest != mobilenet.digest
    for array, right in zip(backbone.arrays, model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, right)
    with pytest.raises(InputError, match=r"mine\.weights\.h5 do not fit --backbone mobilenet "):
        resolve(options(backbone="mobilenet", weights=str(path), image_size=32), 0)


def keras_file(path, *layers):
    keras = import_keras()
    keras.Sequential([keras.Input((32, 32, 3)), *layers]).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "densenet120"}, "--backbone densenet120: not a keras.applications model"),
        ({"weights": "{tmp}/no.keras"}, "no.keras: cannot be read"),
        ({"weights": "{tmp}/no.weights.h5", "backbone": "mobilenetv2"}, "no.weights.h5: cannot be"),
        ({"weights": "{tmp}/text.keras"}, "text.keras: not a usable .keras model"),
        ({"weights": "{tmp}/flat.keras"}, "flat.keras: the output shape is (None, 3072)"),
        ({"weights": "somewhere.txt"}, "somewhere.txt: use imagenet, random"),
        ({"weights": "{tiny}", "backbone": "resnet50"}, "remove --backbone"),
        ({"weights": "{tiny}", "image_size": 64}, "--image-size 64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(values, message, tmp_path, tiny_backbone):
    (tmp_path / "text.keras").write_text("no model")
    if "flat" in str(values):
        keras_file(tmp_path / "flat.keras", import_keras().layers.Flatten())
    given = {
        name: value.format(tmp=tmp_path, tiny=tiny_backbone) if isinstance(value, str) else value
        for name, value in values.items()
    }
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        resolve(options(**given), 0)
    assert "\n" not in str(caught.value)


@pytest.fixture
def fresh_opener():
    """Make urllib read the proxies of the environment again, because it caches them."""
    install_opener(None)
    yield
    install_opener(None)


def test_imagenet_weights_cannot_be_downloaded(monkeypatch, fresh_opener):
    """A proxy that refuses every connection simulates a machine without a network."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    values = {"backbone": "mobilenet", "image_size": 128}  # unlikely to be in a cache
    with pytest.raises(InputError, match=r"mobilenet .*https://\S+\.h5.*--weights FILE"):
        resolve(options(**values), 0)
    backbone, warning = resolve(options(**values, weights_fallback="random"), 0)
    assert "RANDOM" in warning
    assert "\n" not in warning
    assert backbone.weights == "random"
    assert backbone.digest == found(**values, weights="random").digest
