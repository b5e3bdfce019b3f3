"""One worker and two end with the same weights; two workers are equal bit for bit."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SIDE, BATCH, EPOCHS = 8, 20, 4
ROWS = 203  # eleven steps, the last one padded
SEED = 5


@dataclass(frozen=True)
class Arrays:
    """Rows in memory, with the interface of BatchSource."""

    inputs: np.ndarray
    labels: np.ndarray

    def take(self, numbers: np.ndarray) -> np.ndarray:
        return self.inputs[numbers]

    def stream(self, steps: np.ndarray, epoch: int) -> Any:
        return map(self.take, steps)


def rows_of(count: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)
    inputs = rng.normal(labels[:, None, None, None] / 2, size=(count, SIDE, SIDE, 3))
    return Arrays(inputs.astype(np.float32), labels)


def build_model(seed: int) -> Any:
    """Build a convolution and batch normalisation over all workers, without dropout.

    The convolution has no bias: before a normalisation, its gradient would be rounding error only.
    """
    import keras

    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            keras.layers.Conv2D(8, 3, use_bias=False),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2, "softmax"),
        ]
    )


def sgd() -> Any:
    import keras

    return keras.optimizers.SGD(0.05, momentum=0.9)


def fit(
    model: Any, strategy: Any, rank: int, workers: int, rows: int = ROWS
) -> tuple[list[np.ndarray], dict[str, list[float]]]:
    """Train on the rows of this worker; return the initial weights and the history."""
    import keras

    from visao_ray.training.batches import Batches
    from visao_ray.training.schedule import Schedule
    from visao_ray.training.synchronous import DataParallel

    cross_entropy = keras.losses.SparseCategoricalCrossentropy(reduction="none")
    parallel = DataParallel(
        model,
        lambda _inputs, labels, outputs, _weights: cross_entropy(labels, outputs),
        [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        strategy,
    )
    start = model.get_weights()
    parallel.compile(optimizer=sgd(), jit_compile=False)
    batches = []
    for split, shuffled in ((rows_of(rows, 0), True), (rows_of(ROWS // 2, 1), False)):
        schedule = Schedule(split.labels, BATCH, SEED, shuffled=shuffled)
        batches.append(Batches(split, schedule, rank, workers, np.ones(2, np.float32)))
    train, val = batches
    history = parallel.fit(
        train.dataset(0, EPOCHS),
        steps_per_epoch=train.steps,
        validation_data=val.dataset(0, 1),
        validation_steps=val.steps,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
    ).history
    assert train.steps * EPOCHS >= 30
    return start, history


def work(config: dict[str, str]) -> None:
    """The training loop of a worker; the ranks start with different weights on purpose."""
    import ray.train
    import tensorflow as tf

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    model = build_model(SEED + rank)
    own = model.get_weights()
    start, history = fit(model, strategy, rank, workers)
    weights = {"own": own, "start": start, "end": model.get_weights()}
    sink = io.BytesIO()
    np.savez(
        sink, **{f"{name}{n}": part for name in weights for n, part in enumerate(weights[name])}
    )
    folder = Path(config["folder"])
    (folder / f"{workers}-{rank}.npz").write_bytes(sink.getvalue())
    (folder / f"{workers}-{rank}.json").write_text(json.dumps(history))


@dataclass(frozen=True)
class WorkerResult:
    """Weights and history of a worker."""

    own: list[np.ndarray]
    start: list[np.ndarray]
    end: list[np.ndarray]
    history: dict[str, list[float]]


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, _ray_at_end: None
) -> dict[tuple[int, int], WorkerResult]:
    """The result of worker `rank` of `workers`, by (workers, rank)."""
    from conftest import join_ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from visao_ray.training.tensorflow_cluster import TensorflowCluster

    join_ray()
    folder = tmp_path_factory.mktemp("synchronous")
    for workers in (1, 2):
        DataParallelTrainer(
            work,
            backend_config=TensorflowCluster(),
            train_loop_config={"folder": str(folder)},
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(storage_path=str(folder), name=f"fit{workers}"),
        ).fit()
    found = {}
    for workers, rank in ((1, 0), (2, 0), (2, 1)):
        with np.load(folder / f"{workers}-{rank}.npz") as stored:
            parts = {
                name: [stored[key] for key in stored.files if key.startswith(name)]
                for name in ("own", "start", "end")
            }
        history = json.loads((folder / f"{workers}-{rank}.json").read_text())
        found[workers, rank] = WorkerResult(**parts, history=history)
    return found


def difference(some: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Return the largest ‖a − b‖ / ‖a‖ of the arrays."""
    return max(
        float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(some, others, strict=True)
    )


def test_all_begin_with_the_weights_of_rank_0(results):
    first, second = results[2, 0], results[2, 1]
    assert difference(first.own[:1], second.own[:1]) > 0.1
    for mine, theirs, own in zip(first.start, second.start, first.own, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(mine, own)


def test_two_workers_are_equal_bit_for_bit(results):
    first, second = results[2, 0], results[2, 1]
    assert len(first.end) == 7  # two kernels, a bias, and four of the normalisation
    for mine, theirs in zip(first.end, second.end, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert first.history == second.history


def test_one_worker_and_two_end_with_the_same_weights(results):
    one, two = results[1, 0], results[2, 0]
    assert difference(one.end, two.end) <= 1e-4
    moved = [not np.array_equal(a, b) for a, b in zip(one.start, one.end, strict=True)]
    assert all(moved), "every weight and every statistic has changed"
    assert difference(one.start[:1], one.end[:1]) > 0.01
    assert one.history.keys() == two.history.keys()
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= one.history.keys()
    for name, values in one.history.items():
        assert len(values) == EPOCHS
        np.testing.assert_allclose(two.history[name], values, atol=1e-5)
    assert one.history["loss"][-1] < one.history["loss"][0]


def test_metrics_count_every_row_once(results):
    """Accuracies are whole numbers of rows: padding does not count, on any number of workers."""
    for one in results.values():
        for name, rows in (("accuracy", ROWS), ("val_accuracy", ROWS // 2)):
            hits = np.array(one.history[name]) * rows
            np.testing.assert_allclose(hits, hits.round(), atol=1e-3)


def test_alone_it_is_plain_fit():
    """Without padding, in the default strategy of TensorFlow, it equals `keras.Model.fit`."""
    import tensorflow as tf

    from visao_ray.training.schedule import Schedule

    rows = ROWS - ROWS % BATCH
    alone, plain = build_model(SEED), build_model(SEED)
    _, history = fit(alone, tf.distribute.get_strategy(), 0, 1, rows)

    train, val = rows_of(rows, 0), rows_of(ROWS // 2, 1)
    schedule = Schedule(train.labels, BATCH, SEED)
    plain.compile(sgd(), "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    expected: dict[str, list[float]] = {}
    for epoch in range(EPOCHS):
        order = schedule.epoch(epoch)[0].reshape(-1)
        metrics = plain.fit(
            train.inputs[order],
            train.labels[order],
            batch_size=BATCH,
            validation_data=(val.inputs, val.labels),
            shuffle=False,
            verbose=0,
        ).history
        for name, (value,) in metrics.items():
            expected.setdefault(name, []).append(value)
    assert difference(plain.get_weights(), alone.get_weights()) <= 1e-4
    assert history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, atol=1e-5)
