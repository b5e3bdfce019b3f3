"""Training a backbone in inference mode: `fit` and `predict` agree on the same images."""

import json
import zipfile

import numpy as np
import pytest

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.models.backbones import Backbone
from visao_ray.models.head import HeadSettings, build_head
from visao_ray.models.transfer import bare_transfer, build_transfer, unfreeze

SIDE, WIDTH, ROWS, BATCH = 16, 6, 24, 8


@pytest.fixture(scope="module")
def network():
    """Two blocks with batch normalisation and dropout; its statistics differ from any batch's."""
    keras = import_keras()
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            layers.Rescaling(1 / 255, name="scale"),
            layers.Conv2D(4, 3, name="block1_conv"),
            layers.BatchNormalization(name="block1_norm"),
            layers.ReLU(name="block1_relu"),
            layers.Conv2D(WIDTH, 3, name="block2_conv"),
            layers.BatchNormalization(name="block2_norm"),
            layers.ReLU(name="block2_relu"),
            layers.Dropout(0.5, name="block2_dropout"),
        ],
        name="small",
    )
    for name in ("block1_norm", "block2_norm"):
        norm = model.get_layer(name)
        norm.moving_mean.assign(norm.moving_mean - 3)
        norm.moving_variance.assign(norm.moving_variance * 9)
    return model


@pytest.fixture
def backbone(network, tmp_path):
    path = tmp_path / "small.keras"
    network.save(path)
    return Backbone("small", "small.keras", "", SIDE, WIDTH, "imagenet", file=path.read_bytes())


@pytest.fixture
def head():
    import_keras().utils.set_random_seed(2)
    settings = HeadSettings(standardise=False, units=8, dropout=0)
    return build_head(settings, WIDTH, 2, {})


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (ROWS, SIDE, SIDE, 3), np.uint8), np.arange(ROWS) % 2


def fitted(model, images, rate):
    """Return the loss and accuracy that `fit` reports for one epoch."""
    keras = import_keras()
    loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"])
    history = model.fit(*images, batch_size=BATCH, epochs=1, shuffle=False, verbose=0).history
    return history["loss"][0], history["accuracy"][0]


def predicted(model, images):
    """Compute the same by hand from the output of `predict`."""
    pixels, labels = images
    probability = model.predict(pixels, verbose=0)
    loss = -np.log(probability[np.arange(ROWS), labels]).mean()
    return loss, (probability.argmax(1) == labels).mean()


def statistics(network):
    return [
        values.numpy()
        for layer in network.layers
        if hasattr(layer, "moving_mean")
        for values in (layer.moving_mean, layer.moving_variance)
    ]


@pytest.mark.parametrize("block", ["", "block1", "block2"])
def test_fit_and_predict_agree(backbone, head, images, block):
    model = build_transfer(backbone, head)
    network = model.get_layer("backbone").network
    if block:
        assert unfreeze(model, block) == {"block1": 4, "block2": 2}[block]
    before = statistics(network)
    expected = predicted(model, images)
    assert fitted(model, images, rate=0.0) == pytest.approx(expected, abs=1e-6)
    for now, then in zip(statistics(network), before, strict=True):
        np.testing.assert_array_equal(now, then)

    weights = {layer.name: layer.get_weights() for layer in network.layers if layer.weights}
    own = head.get_weights()
    fitted(model, images, rate=0.1)
    for now, then in zip(statistics(network), before, strict=True):
        np.testing.assert_array_equal(now, then)
    for name, then in weights.items():
        trained = bool(block) and name >= block
        now = network.get_layer(name).get_weights()
        # Kernel and bias, or gamma and beta; the statistics come after them.
        moved = [bool((now[place] != then[place]).any()) for place in (0, 1)]
        assert moved == [trained, trained], name
    assert any((now != old).any() for now, old in zip(head.get_weights(), own, strict=True))


def test_plain_keras_does_not_keep_training_false(network, images):
    """The reason for `InferenceMode`. If this fails, Keras is fixed and the layer can go."""
    keras = import_keras()
    pixels = keras.Input((SIDE, SIDE, 3))
    naive = keras.Model(pixels, network(pixels, training=False))
    given = images[0].astype(np.float32)
    training, predicting = (np.asarray(naive(given, training=mode)) for mode in (True, False))
    assert np.abs(training - predicting).max() > 0.1


def test_bare_is_the_same_and_plain(backbone, head, images, tmp_path):
    keras = import_keras()
    model = build_transfer(backbone, head)
    unfreeze(model, "block2")
    fitted(model, images, rate=0.1)
    bare = bare_transfer(backbone, head)
    bare.set_weights(model.get_weights())
    expected = model.predict(images[0], verbose=0)
    np.testing.assert_allclose(bare.predict(images[0], verbose=0), expected, atol=1e-6)

    path = tmp_path / "bare.keras"
    bare.save(path)
    with zipfile.ZipFile(path) as archive:
        assert "visao_ray" not in json.dumps(json.loads(archive.read("config.json")))
    loaded = keras.saving.load_model(path, safe_mode=True)
    np.testing.assert_allclose(loaded.predict(images[0], verbose=0), expected, atol=1e-6)


def test_an_unknown_block(backbone, head):
    with pytest.raises(InputError, match=r"--fine-tune-from block9.*block1, block2"):
        unfreeze(build_transfer(backbone, head), "block9")
