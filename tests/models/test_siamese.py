"""Siamese networks: losses equal plain loops; the exported model equals the trained one."""

import numpy as np
import pytest

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.models.normalization import FeatureStats
from visao_ray.models.siamese import (
    build_concatenation,
    build_trunk_features,
    build_trunk_images,
    contrastive_losses,
    draw_anchors,
    embedder,
    partner_differs,
    with_anchors,
)

WIDTH = 6


@pytest.fixture(scope="module")
def vectors():
    avg = np.random.default_rng(0).normal(5, 2, size=(120, WIDTH)).astype(np.float32)
    return {"avg": avg, "max": avg + 1}


@pytest.fixture(scope="module")
def labels(vectors):
    return np.digitize(vectors["avg"][:, 0], [4, 6]).astype(np.int32)


@pytest.fixture
def trunk(vectors):
    import_keras().utils.set_random_seed(0)
    stats = {pool: FeatureStats.of(part) for pool, part in vectors.items()}
    return build_trunk_features(WIDTH, stats, units=16, embedding=5)


def by_hand(labels, points, weights, margin):
    losses = []
    for i, own in enumerate(points):
        same, other = [], []
        for j, point in enumerate(points):
            if j != i and weights[i] and weights[j]:
                distance = np.linalg.norm(own - point)
                if labels[i] == labels[j]:
                    same.append(distance**2)
                else:
                    other.append(max(margin - distance, 0) ** 2)
        losses.append(sum(np.mean(part) / 2 for part in (same, other) if part))
    return losses


def test_contrastive_losses():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(9, 4)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    labels = np.array([0, 1, 1, 2, 0, 0, 1, 0, 2], np.int32)
    for weights in (np.ones(9), np.array([1, 1, 1, 1, 1, 1, 2, 0, 0])):  # then class 2 has one row
        weights = weights.astype(np.float32)
        losses = np.asarray(contrastive_losses(labels, points, weights, 1.2))
        np.testing.assert_allclose(losses, by_hand(labels, points, weights, 1.2), atol=1e-5)
    one_class = np.asarray(contrastive_losses(labels * 0, points, weights, 1.2))
    np.testing.assert_allclose(one_class, by_hand(labels * 0, points, weights, 1.2), atol=1e-5)


def test_gradient_is_finite_where_images_are_equal_or_black():
    import tensorflow as tf

    model = build_trunk_images(128, embedding=4)
    # Two black images of different classes, one more image, and a black padding row.
    pixels = np.zeros((4, 128, 128, 3), np.uint8)
    pixels[2] = np.random.default_rng(0).integers(0, 256, (128, 128, 3))
    with tf.GradientTape() as tape:
        embeddings = model(pixels, training=True)
        losses = contrastive_losses(
            np.array([0, 1, 0, 0]), embeddings, np.array([1, 1, 1, 0], np.float32)
        )
        total = tf.reduce_sum(losses)
    gradients = tape.gradient(total, model.trainable_variables)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert any(np.abs(gradient).max() > 0 for gradient in gradients)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_image_trunk_is_that_of_the_study():
    study = 1_064_608
    assert build_trunk_images(224).count_params() == study
    join = 4_265
    assert build_concatenation(build_trunk_images(224)).count_params() == study + join


def test_partner_differs():
    differs = np.asarray(partner_differs(np.array([0, 0, 1, 2, 2, 1], np.int32)))
    assert differs.tolist() == [0, 0, 1, 1, 1, 1]


def saved_and_loaded(model, folder):
    """Save a model, and load it with plain Keras in safe mode."""
    model.save(folder / "model.keras")
    return import_keras().saving.load_model(folder / "model.keras", safe_mode=True)


def test_contrastive_training_and_anchors(trunk, vectors, labels, tmp_path):
    keras = import_keras()
    trunk.compile(
        keras.optimizers.Adam(0.01),
        loss=lambda target, e: contrastive_losses(target, e, keras.ops.ones_like(e[:, 0])),
    )
    trunk.fit(vectors, labels, batch_size=40, epochs=30, verbose=0)
    embeddings = trunk.predict(vectors, verbose=0)
    anchors = embeddings[draw_anchors(labels, 3, k=4, seed=0)]
    model = saved_and_loaded(with_anchors(trunk, anchors, temperature=0.3), tmp_path)
    outputs = model.predict(vectors, verbose=0)

    np.testing.assert_allclose(outputs["embedding"], embeddings, atol=1e-5)
    squares = np.square(embeddings[:, None, None] - anchors).sum(axis=-1).mean(axis=-1)
    expected = np.exp(-squares / 0.3)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["probability"], expected, atol=1e-5)
    assert (outputs["probability"].argmax(axis=1) == labels).mean() > 0.9


def test_concatenation_training_and_anchors(trunk, vectors, labels, tmp_path):
    keras = import_keras()
    model = build_concatenation(trunk)
    model.compile(keras.optimizers.Adam(0.01), loss="binary_crossentropy")
    rng = np.random.default_rng(0)
    for _ in range(60):
        rows = rng.permutation(len(labels))
        batch = {pool: part[rows] for pool, part in vectors.items()}
        differs = np.asarray(partner_differs(labels[rows]))
        model.train_on_batch(batch, differs)
    k = 3
    chosen = draw_anchors(labels, 3, k, seed=0)
    embeddings = embedder(model).predict(vectors, verbose=0)
    exported = saved_and_loaded(with_anchors(model, embeddings[chosen]), tmp_path)
    outputs = exported.predict(vectors, verbose=0)
    np.testing.assert_allclose(outputs["embedding"], embeddings, atol=1e-5)

    # The same through the trained model itself, pair by pair, in both orders.
    similar = np.zeros((len(labels), 3))
    for index in range(3):
        for anchor in chosen[index]:
            pairs = np.stack([np.arange(len(labels)), np.full(len(labels), anchor)], 1).reshape(-1)
            differs = model.predict_on_batch({p: part[pairs] for p, part in vectors.items()})
            similar[:, index] += 1 - differs.reshape(-1, 2).mean(axis=1)
    np.testing.assert_allclose(
        outputs["probability"], similar / similar.sum(axis=1, keepdims=True), atol=1e-5
    )
    # Both orders give different outputs, and the trained network depends on the pair.
    assert np.abs(differs[::2] - differs[1::2]).max() > 1e-3
    assert (outputs["probability"].argmax(axis=1) == labels).mean() > 0.8


def test_draw_anchors(labels):
    drawn = draw_anchors(labels, 3, k=5, seed=7)
    assert (labels[drawn] == np.arange(3)[:, None]).all()
    assert all(len(set(rows)) == 5 for rows in drawn)
    np.testing.assert_array_equal(drawn, draw_anchors(labels, 3, k=5, seed=7))
    assert (drawn != draw_anchors(labels, 3, k=5, seed=8)).any()
    few = draw_anchors(np.array([0, 1, 1], np.int32), 2, k=3, seed=0)
    assert few[0].tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="class number 3 has no train rows"):
        draw_anchors(labels, 4, k=5, seed=0)
