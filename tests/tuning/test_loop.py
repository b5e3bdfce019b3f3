"""The compiled epoch is Keras's own training, only faster."""

import keras
import numpy as np
import pyarrow as pa
import pytest

from visao_ray.features.vectors import Features, Moments, Rows
from visao_ray.models.head import HeadSettings, build_head, compile_head

WIDTH, BATCH = 6, 16


def rows(count, seed):
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 3).astype(np.int32)
    avg = (rng.normal(size=(count, WIDTH)) + labels[:, None]).astype(np.float32)
    groups = pa.array([str(number) for number in range(count)])
    return Rows(avg, avg + 1, labels, groups, np.zeros(count, np.int16))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "sgd"])
def test_an_epoch_is_that_of_keras(optimizer):
    from visao_ray.tuning.loop import Loop, Table

    train = rows(72, 0)
    data = Features(train, rows(30, 1), {pool: Moments.of(v) for pool, v in train.vectors.items()})
    settings = HeadSettings(
        units=8, dropout=0.0, l1=1e-4, l2=1e-3, optimizer=optimizer, learning_rate=0.01
    )
    weights = np.linspace(0.5, 1.5, 102).astype(np.float32)

    def head():
        keras.utils.set_random_seed(0)
        model = build_head(settings, WIDTH, 3, data.moments)
        compile_head(model, settings)
        return model

    ours, theirs = head(), head()
    loop = Loop(Table(data), ours, weights, BATCH)
    order = np.random.default_rng(2).permutation(72)
    for _ in range(3):
        loop.run_epoch(order, 0.01)
    theirs.fit(
        {pool: vectors[order] for pool, vectors in train.vectors.items()},
        train.labels[order],
        sample_weight=weights[order],
        batch_size=BATCH,
        epochs=3,
        shuffle=False,
        verbose=0,
    )
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)
    found = loop.predict(np.arange(72, 102))
    np.testing.assert_allclose(found, ours.predict(data.val.vectors, verbose=0), atol=1e-6)
