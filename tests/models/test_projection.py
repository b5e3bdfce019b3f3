"""The learned metric: losses equal plain loops, and training brings classes together."""

import numpy as np
import pytest

from visao_ray.core.backend import import_keras
from visao_ray.models.family import Shape
from visao_ray.models.normalization import FeatureStats
from visao_ray.models.projection import (
    Projection,
    ProjectionSettings,
    supervised_contrastive_losses,
)

WIDTH = 12


def by_hand(labels, points, weights, temperature):
    losses = []
    for i, own in enumerate(points):
        others = [j for j in range(len(points)) if j != i and weights[i] and weights[j]]
        similarity = {j: float(own @ points[j]) / temperature for j in others}
        same = [j for j in others if labels[j] == labels[i]]
        total = sum(np.exp(value) for value in similarity.values())
        losses.append(np.mean([np.log(total) - similarity[j] for j in same]) if same else 0)
    return losses


def test_the_loss_is_that_of_a_plain_loop():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(9, 4)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    labels = np.array([0, 1, 1, 2, 0, 0, 1, 0, 2], np.int32)
    for weights in (np.ones(9), np.array([1, 1, 1, 1, 1, 1, 2, 0, 0])):  # then class 2 has one row
        weights = weights.astype(np.float32)
        for temperature in (0.05, 0.5):
            losses = supervised_contrastive_losses(labels, points, weights, temperature)
            expected = by_hand(labels, points, weights, temperature)
            np.testing.assert_allclose(np.asarray(losses), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["contrastive", "proxy"])
def test_training_brings_the_images_of_a_class_together(loss):
    """The classes differ in two of 24 values only; the others are large noise."""
    keras = import_keras()
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600).astype(np.int32)
    avg = rng.normal(0, 3, (600, WIDTH)).astype(np.float32)
    avg[:, :2] = np.array([[0, 0], [1, 0], [0, 1]])[labels] * 4 + rng.normal(0, 0.5, (600, 2))
    vectors = {"avg": avg, "max": rng.normal(0, 3, (600, WIDTH)).astype(np.float32)}
    settings = ProjectionSettings(
        store="s", out="o", loss=loss, units=32, embedding=8, learning_rate=0.01
    )
    stats = {pool: FeatureStats.of(part) for pool, part in vectors.items()}
    family = Projection(settings, Shape(("a", "b", "c"), 0, 400, width=WIDTH, stats=stats), None)
    model = family.build()
    optimizer = keras.optimizers.Adam(settings.learning_rate)
    weights = np.ones(100, np.float32)

    import tensorflow as tf

    for step in range(60):
        rows = rng.choice(400, 100, replace=False)
        batch = {pool: part[rows] for pool, part in vectors.items()}
        with tf.GradientTape() as tape:
            outputs = model(batch, training=True)
            value = tf.reduce_mean(family.losses(batch, labels[rows], outputs, weights))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))
        if not step:
            first = float(value)
    assert float(value) < first
    final = family.final_model(model, None)
    assert set(final.output) == {"embedding"}
    points = np.asarray(final(vectors)["embedding"])
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)

    def share(space):
        """How many of the 10 nearest train rows have the class of the row, outside train."""
        apart = np.linalg.norm(space[400:, None] - space[None, :400], axis=2)
        near = np.argsort(apart, axis=1)[:, :10]
        return (labels[near] == labels[400:, None]).mean()

    assert share(points) > 0.9
    assert share(np.concatenate(list(vectors.values()), axis=1)) < 0.75
    assert Projection.known_classes(("a", "b"), labels) == ()
