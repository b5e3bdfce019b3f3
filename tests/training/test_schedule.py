"""Every row once per epoch with any number of workers; pairs of one class and of two."""

import numpy as np
import pytest
from stores import content_id, make_store

from visao_ray.datasets.registry import find_dataset
from visao_ray.store.mapped import TableRows, VectorFile
from visao_ray.training.schedule import Schedule


def labels_of(*counts: int) -> np.ndarray:
    """Return shuffled labels, int32[N], with the given number of rows of each class."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    return np.random.default_rng(7).permutation(labels)


@pytest.mark.parametrize(
    ("rows", "batch"), [(203, 20), (200, 20), (7, 20), (1, 2), (41, 12)], ids=str
)
def test_every_row_once_and_padding_without_weight(rows, batch):
    schedule = Schedule(labels_of(rows - rows // 3, rows // 3), batch, seed=3)
    numbers, weights = schedule.epoch(5)
    assert numbers.shape == weights.shape == (schedule.steps, batch)
    assert schedule.steps == int(np.ceil(rows / batch))
    assert weights.dtype == np.float32
    assert set(np.unique(weights)) <= {0.0, 1.0}
    assert sorted(numbers[weights == 1]) == list(range(rows))
    flat = weights.reshape(-1)
    assert (np.diff(flat) <= 0).all(), "padding comes last"
    assert np.isin(numbers[weights == 0], np.arange(rows)).all()


def test_each_epoch_and_seed_has_its_own_order():
    labels = labels_of(60, 40)
    orders = {
        (seed, epoch): tuple(Schedule(labels, 10, seed).epoch(epoch)[0].reshape(-1))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(set(orders.values())) == 6
    for (seed, epoch), order in orders.items():
        again = Schedule(labels, 10, seed).epoch(epoch)[0]
        assert tuple(again.reshape(-1)) == order


@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
def test_unshuffled_is_the_same_in_every_epoch(pairs):
    schedule = Schedule(labels_of(9, 8), 6, seed=1, shuffled=False, pairs=pairs)
    first, _ = schedule.epoch(0)
    for epoch in (1, 2):
        np.testing.assert_array_equal(schedule.epoch(epoch)[0], first)
    order = first.reshape(-1)[: 2 * 17 : 2] if pairs else first.reshape(-1)[:17]
    assert order.tolist() == list(range(17))


@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
def test_workers_divide_the_same_steps(pairs, tmp_path):
    from visao_ray.training.batches import Batches
    from visao_ray.training.rows import VectorRows

    labels = labels_of(30, 20, 7)
    numbers = np.arange(57)
    vectors = {"avg": numbers.astype(np.float32)[:, None]}
    images = [{"key": f"{number}.jpg"} for number in numbers]
    store = make_store(tmp_path / "store", find_dataset("vazios"), images, vectors)
    contents = np.array([content_id(image["key"]) for image in images], "S32")
    order = np.argsort(contents)
    table = store.vectors(store.the_extractor(None)).latest()
    part = TableRows(table, contents[order], 0, order[:, None])
    file = VectorFile(store.images.latest(), ("avg",), (part,), len(images))
    rows = VectorRows(file, numbers, labels, groups=np.zeros(57, np.int32))
    schedule = Schedule(labels, 24, seed=2, pairs=pairs)
    factors = np.array([1, 2, 3], np.float32)
    steps = {}
    for workers in (1, 2, 4):
        shares = [
            list(Batches(rows, schedule, rank, workers, factors).dataset(1, 3).as_numpy_iterator())
            for rank in range(workers)
        ]
        assert all(len(share) == 2 * schedule.steps for share in shares)
        steps[workers] = [
            tuple(
                np.concatenate(part)
                for part in zip(*((i["avg"][:, 0], y, w) for i, y, w in parts), strict=True)
            )
            for parts in zip(*shares, strict=True)
        ]
    for number, (inputs, targets, weights) in enumerate(steps[1]):
        epoch, step = divmod(number, schedule.steps)
        chosen, real = (part[step] for part in schedule.epoch(1 + epoch))
        np.testing.assert_array_equal(inputs, chosen)
        np.testing.assert_array_equal(targets, labels[chosen])
        np.testing.assert_array_equal(weights, real * factors[labels[chosen]])
        for workers in (2, 4):
            for several, one in zip(steps[workers][number], steps[1][number], strict=True):
                np.testing.assert_array_equal(several, one)


def pairs_of(labels: np.ndarray, epoch: int) -> np.ndarray:
    """Return the pairs of an epoch without padding, int64[N, 2]."""
    schedule = Schedule(labels, 10, seed=4, pairs=True)
    numbers, weights = schedule.epoch(epoch)
    found = numbers[weights == 1].reshape(-1, 2)
    assert sorted(found[:, 0]) == list(range(len(labels)))
    padding = numbers[weights == 0].reshape(-1, 2)
    pairs = {tuple(pair) for pair in found.tolist()}
    assert {tuple(pair) for pair in padding.tolist()} <= pairs, "padding is whole pairs"
    return found


def test_half_of_the_pairs_are_of_one_class():
    labels = labels_of(70, 20, 9, 4)
    found = np.concatenate([pairs_of(labels, epoch) for epoch in range(100)])
    same = labels[found[:, 0]] == labels[found[:, 1]]
    assert same.mean() == pytest.approx(0.5, abs=0.02)  # four standard deviations
    for index in range(4):
        own = labels[found[:, 0]] == index
        assert same[own].mean() == pytest.approx(0.5, abs=0.12)
        # Every row of the class and every row of the others is drawn as a partner.
        assert set(found[own & same, 1]) == set(np.flatnonzero(labels == index))
        assert set(found[own & ~same, 1]) <= set(np.flatnonzero(labels != index))
    assert set(found[~same, 1]) == set(range(len(labels)))


@pytest.mark.parametrize("counts", [(5, 1), (1, 5, 1), (1, 1)], ids=str)
def test_a_class_of_one_row_is_paired_with_others(counts):
    labels = labels_of(*counts)
    found = np.concatenate([pairs_of(labels, epoch) for epoch in range(20)])
    single = np.isin(labels[found[:, 0]], np.flatnonzero(np.array(counts) == 1))
    assert (labels[found[single, 0]] != labels[found[single, 1]]).all()


@pytest.mark.parametrize("rows", [1, 6])
def test_pairs_of_one_class_alone(rows):
    found = pairs_of(np.zeros(rows, np.int32), 0)
    assert np.isin(found, np.arange(rows)).all()
