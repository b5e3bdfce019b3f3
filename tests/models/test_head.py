"""The outputs of the head."""

import numpy as np
import pytest

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.models.head import HeadSettings, build_head, class_factors, compile_head
from visao_ray.models.normalization import FeatureStats

WIDTH = 6


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    avg = rng.normal(5, [1, 2, 3, 0.1, 1, 1], size=(200, WIDTH)).astype(np.float32)
    avg[:, 4] = 0  # a channel that is constant in train
    return {"avg": avg, "max": avg + 1}


@pytest.fixture(scope="module")
def stats(vectors):
    return {pool: FeatureStats.of(part) for pool, part in vectors.items()}


def test_only_the_chosen_pool_counts(vectors, stats):
    model = build_head(HeadSettings(pool="avg"), WIDTH, 2, stats)
    expected = model.predict(vectors, verbose=0)
    other = {"avg": vectors["avg"], "max": vectors["max"] * 9}
    np.testing.assert_array_equal(model.predict(other, verbose=0), expected)
    other = {"avg": vectors["avg"] * 9, "max": vectors["max"]}
    assert np.abs(model.predict(other, verbose=0) - expected).max() > 0.01


def test_statistics_match_numpy_and_constant_channels_are_bounded(vectors):
    avg = vectors["avg"]
    found = FeatureStats.of(avg)
    np.testing.assert_allclose(found.mean, avg.mean(axis=0), rtol=1e-5)
    live = [0, 1, 2, 3, 5]
    np.testing.assert_allclose(found.deviation[live], avg.std(axis=0)[live], rtol=1e-5)
    assert 0.01 < found.deviation[4] < 0.1


def test_standardising_uses_the_statistics(vectors, stats):
    keras = import_keras()
    model = build_head(HeadSettings(pool="max", layers=0), WIDTH, 2, stats)
    layer = model.get_layer("standardise_max")
    found = keras.ops.convert_to_numpy(layer(vectors["max"]))
    live = [0, 1, 2, 3, 5]
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(found.std(axis=0)[live], 1, atol=1e-4)


def test_label_smoothing_bounds_probabilities(vectors, stats):
    labels = (np.arange(200) % 2).astype(np.int32)
    inputs = {pool: part + 9 * labels[:, None] for pool, part in vectors.items()}
    stats = {pool: FeatureStats.of(part) for pool, part in inputs.items()}
    confidence = []
    for smoothing in (0.0, 0.4):
        import_keras().utils.set_random_seed(0)
        settings = HeadSettings(layers=0, dropout=0, learning_rate=0.1, label_smoothing=smoothing)
        model = build_head(settings, WIDTH, 2, stats)
        compile_head(model, settings)
        model.fit(inputs, labels, epochs=60, batch_size=200, verbose=0)
        confidence.append(model.predict(inputs, verbose=0).max(axis=1).mean())
    assert confidence[0] > 0.95
    assert confidence[1] == pytest.approx(0.8, abs=0.05)  # 1 - smoothing / 2


def test_class_factors():
    labels = np.array([0, 0, 0, 2], np.int32)
    classes = ("nvazio", "other", "vazio")

    def weights(class_weight):
        return class_factors(class_weight, labels, classes)[labels]

    np.testing.assert_allclose(weights("none"), [1, 1, 1, 1])
    np.testing.assert_allclose(weights("balanced"), [2 / 3, 2 / 3, 2 / 3, 2])
    np.testing.assert_allclose(weights({"nvazio": 3}), np.array([3, 3, 3, 1]) / 2.5)
    with pytest.raises(InputError, match="zebra"):
        weights({"zebra": 2})
