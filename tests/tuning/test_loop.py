"""The compiled epoch equals Keras's own training, with vectors in memory or in a file."""

import keras
import numpy as np
import pytest

from visao_ray.models.head import HeadSettings, build_head, compile_head
from visao_ray.models.normalization import FeatureStats

WIDTH, BATCH, TRAIN, ROWS = 6, 16, 72, 102


@pytest.fixture
def labels():
    return (np.arange(ROWS) % 3).astype(np.int32)


@pytest.fixture
def vectors(labels):
    rng = np.random.default_rng(0)
    avg = (rng.normal(size=(ROWS, WIDTH)) + labels[:, None]).astype(np.float32)
    return {"avg": avg, "max": avg + 1}


def head(settings, vectors):
    keras.utils.set_random_seed(0)
    stats = {pool: FeatureStats.of(values[:TRAIN]) for pool, values in vectors.items()}
    model = build_head(settings, WIDTH, 3, stats)
    compile_head(model, settings)
    return model


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "sgd"])
def test_an_epoch_equals_that_of_keras(optimizer, vectors, labels):
    from visao_ray.tuning.loop import Loop, Table

    settings = HeadSettings(
        units=8, dropout=0.0, l1=1e-4, l2=1e-3, optimizer=optimizer, learning_rate=0.01
    )
    weights = np.linspace(0.5, 1.5, ROWS).astype(np.float32)
    ours, theirs = head(settings, vectors), head(settings, vectors)
    loop = Loop(Table(vectors, labels), ours, settings.pools, weights, BATCH)
    order = np.random.default_rng(2).permutation(TRAIN)
    for _ in range(3):
        loop.run_epoch(order, 0.01)
    theirs.fit(
        {pool: values[order] for pool, values in vectors.items()},
        labels[order],
        sample_weight=weights[order],
        batch_size=BATCH,
        epochs=3,
        shuffle=False,
        verbose=0,
    )
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)
    found = loop.predict(np.arange(TRAIN, ROWS))
    val = {pool: values[TRAIN:] for pool, values in vectors.items()}
    np.testing.assert_allclose(found, ours.predict(val, verbose=0), atol=1e-6)


@pytest.mark.parametrize("pool", ["both", "max"])
def test_vectors_in_memory_and_in_a_file_give_the_same_weights(
    pool, vectors, labels, tmp_path, monkeypatch
):
    """Bit for bit, with dropout, and with a last batch and a last chunk that are not full."""
    from visao_ray.tuning import loop as module

    settings = HeadSettings(units=8, dropout=0.3, pool=pool, batch_size=BATCH)
    mapped = {}
    for name, values in vectors.items():
        np.save(tmp_path / f"{name}.npy", values)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    monkeypatch.setattr(module, "_CHUNK_BYTES", 40 * 4 * WIDTH * len(settings.pools))
    weights = np.linspace(0.5, 1.5, ROWS).astype(np.float32)
    found = []
    for resident_bytes in (10**6, 0):
        model = head(settings, vectors)
        table = module.Table(mapped, labels, resident_bytes)
        loop = module.Loop(table, model, settings.pools, weights, BATCH)
        shuffle = np.random.default_rng(2)
        losses = [loop.run_epoch(shuffle.permutation(TRAIN - 3), 0.01) for _ in range(3)]
        probability = loop.predict(np.arange(TRAIN, ROWS))
        found.append([np.array(losses), probability, *model.get_weights()])
    chunks = list(table.chunks(np.arange(TRAIN - 3), settings.pools, BATCH))
    assert [len(rows) for _, _, rows in chunks] == [32, 32, 5]
    for resident, streamed in zip(*found, strict=True):
        np.testing.assert_array_equal(resident, streamed)
