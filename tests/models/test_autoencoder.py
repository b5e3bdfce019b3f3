"""The autoencoder: output shapes, the loss, and learning."""

import numpy as np
import pytest

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.models.autoencoder import build_autoencoder, encoder, reconstruction_losses

SIZE = 32


@pytest.fixture(scope="module")
def pixels():
    """Images of a bright square at a random place, in false colour."""
    rng = np.random.default_rng(0)
    images = np.zeros((64, SIZE, SIZE, 3), np.uint8)
    for image, (x, y) in zip(images, rng.integers(0, SIZE - 12, (64, 2)), strict=True):
        image[y : y + 12, x : x + 12] = (255, 200, 100)
    return images


@pytest.mark.parametrize("ground", ["black", "white"])
def test_learns_to_reconstruct(ground, pixels, tmp_path):
    # On such images a sigmoid output saturates at the background.
    pixels = pixels if ground == "black" else 255 - pixels
    keras = import_keras()
    keras.utils.set_random_seed(0)
    model = build_autoencoder(SIZE, code=8)
    half = encoder(model)

    class Trained(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = model

        def call(self, x):
            return reconstruction_losses(x, self.inner(x)["reconstruction"])

    trained = Trained()
    trained.compile(keras.optimizers.Adam(3e-3), loss=lambda _, losses: losses)
    trained.fit(pixels, np.zeros(len(pixels)), batch_size=16, epochs=30, verbose=0)

    outputs = model.predict_on_batch(pixels)
    assert outputs["embedding"].shape == (64, 8)
    assert outputs["reconstruction"].shape == (64, SIZE, SIZE, 1)
    grey = pixels.mean(axis=-1, keepdims=True) / 255
    by_hand = np.square(grey - outputs["reconstruction"]).mean(axis=(1, 2, 3))
    losses = np.asarray(reconstruction_losses(pixels, outputs["reconstruction"]))
    np.testing.assert_allclose(losses, by_hand, rtol=1e-4)
    assert by_hand.mean() < 0.5 * grey.var(axis=0).mean()  # better than the mean image by far

    assert outputs["reconstruction"].min() >= -1e-6
    assert outputs["reconstruction"].max() <= 1 + 1e-6

    for saved, names in ((half, {"embedding"}), (model, {"embedding", "reconstruction"})):
        saved.save(tmp_path / "model.keras")
        plain = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
        again = plain.predict_on_batch(pixels)
        assert set(again) == names
        for name in names:
            np.testing.assert_allclose(again[name], outputs[name], atol=1e-5)


@pytest.mark.parametrize(("size", "offer"), [(100, 96), (8, 16), (0, 16)])
def test_size_must_fit(size, offer):
    with pytest.raises(InputError, match=f"image_size {size}: .* e.g. {offer}"):
        build_autoencoder(size)
