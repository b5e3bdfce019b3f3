"""The SVM: the Keras model computes the same as scikit-learn."""

import numpy as np
import pytest
from sklearn.svm import SVC

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.models.normalization import FeatureStats
from visao_ray.models.svm import (
    fit_calibrated,
    gamma_scale,
    score_svm,
    svm_inputs_features,
    svm_inputs_images,
    to_keras,
)

WIDTH = 8


def rows(count, classes, seed=0):
    """Overlapping rings, which no linear classifier can separate."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).astype(np.int32)
    avg = rng.normal(size=(count, WIDTH))
    avg *= ((1 + labels) / np.linalg.norm(avg, axis=1))[:, None]
    avg = (3 + avg + rng.normal(0, 0.25, avg.shape)).astype(np.float32)
    return {"avg": avg, "max": 2 * avg}, labels


@pytest.mark.parametrize("classes", [2, 4])
def test_keras_computes_the_same_as_scikit_learn(classes, tmp_path):
    keras = import_keras()
    vectors, labels = rows(300, classes)
    new, truth = rows(100, classes, seed=1)
    groups = np.array([f"g{index // 3}" for index in range(300)])
    stats = {pool: FeatureStats.of(part) for pool, part in vectors.items()}
    inputs = svm_inputs_features(WIDTH, "both", stats)
    x, x_new = inputs.predict(vectors, verbose=0), inputs.predict(new, verbose=0)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-3)

    fitted = fit_calibrated(x, labels, groups, classes, C=10, gamma=2, seed=0)
    to_keras(inputs, fitted).save(tmp_path / "svm.keras")
    model = keras.saving.load_model(tmp_path / "svm.keras", safe_mode=True)
    probability = model.predict(new, verbose=0)

    columns = []
    for place, index in enumerate([1] if classes == 2 else range(classes)):
        machine = SVC(C=10, gamma=2 / (2 * WIDTH * x.var())).fit(x, labels == index)
        z = fitted.slope[place] * machine.decision_function(x_new) + fitted.offset[place]
        columns.append(1 / (1 + np.exp(-z)))
    expected = np.stack(columns, axis=1)
    if classes == 2:
        expected = np.concatenate([1 - expected, expected], axis=1)
    else:
        expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probability, expected, atol=1e-5)
    # It is also accurate, and its confidence is close to its accuracy (lower with many classes).
    hit = probability.argmax(axis=1) == truth
    assert hit.mean() > 0.75
    assert -0.2 < probability.max(axis=1).mean() - hit.mean() < 0.1


def test_calibration_leaves_groups_out():
    """Labels are noise, but equal within a group of copies: leaking copies gives confidence."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(60, WIDTH)), 4, axis=0).astype(np.float32)
    groups = np.repeat(np.arange(60), 4)
    labels = np.repeat(rng.permutation(np.arange(60) % 2), 4).astype(np.int32)
    fitted = fit_calibrated(x, labels, groups, 2, C=100, gamma=4, seed=0)
    leaking = fit_calibrated(x, labels, np.arange(240), 2, C=100, gamma=4, seed=0)
    assert abs(fitted.slope[0]) < 1 < leaking.slope[0]


def test_classes_with_few_or_no_rows():
    vectors, labels = rows(120, 2)
    x = vectors["avg"]
    groups = np.arange(120)
    labels[:2], groups[:2] = 3, 0  # class 3: one group; class 2: no rows
    fitted = fit_calibrated(x, labels, groups, 4, C=1, gamma=1, seed=0)
    stats = {pool: FeatureStats.of(part) for pool, part in vectors.items()}
    probability = to_keras(svm_inputs_features(WIDTH, "avg", stats), fitted).predict_on_batch(
        vectors
    )
    assert np.isfinite(probability).all()
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
    assert probability[:, 2].max() < 1e-6
    assert set(score_svm(x, labels, x, labels, 4, C=1, gamma=1)) == {"macro_f1"}

    with pytest.raises(InputError, match="single class"):
        score_svm(x, labels * 0, x, labels, 2, C=1, gamma=1)
    with pytest.raises(InputError, match="2 groups"):
        fit_calibrated(x, labels, groups % 2, 4, C=1, gamma=1, seed=0)


def test_score_ranks_val():
    (x, y), (x_val, y_val) = rows(200, 2), rows(100, 2, seed=1)
    good = score_svm(x["avg"], y, x_val["avg"], y_val, 2, C=10, gamma=1)["roc_auc"]
    # With such a small γ the SVM is linear, and cannot separate rings.
    linear = score_svm(x["avg"], y, x_val["avg"], y_val, 2, C=1e-2, gamma=1e-4)["roc_auc"]
    assert good > 0.95 > 0.7 > linear
    assert np.isnan(score_svm(x["avg"], y, x_val["avg"], y_val * 0, 2, C=1, gamma=1)["roc_auc"])


def test_reduced_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3), np.uint8)
    reduced = svm_inputs_images(96).predict_on_batch(pixels)
    tiles = pixels.reshape(40, 32, 3, 32, 3, 3).mean(axis=(2, 4, 5)) / 255
    np.testing.assert_allclose(reduced, tiles.reshape(40, 1024), atol=1e-5)

    inputs = svm_inputs_images(96, FeatureStats.of(reduced))
    x = inputs.predict_on_batch(pixels)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-2)
    assert gamma_scale(x) == pytest.approx(1 / 1024, rel=0.05)
    labels = (np.arange(40) % 2).astype(np.int32)
    model = to_keras(inputs, fit_calibrated(x, labels, np.arange(40), 2, C=1, gamma=1, seed=0))
    assert model.predict_on_batch(pixels).shape == (40, 2)
    with pytest.raises(InputError, match=r"image_size 150: .* e.g. 160"):
        svm_inputs_images(150)
