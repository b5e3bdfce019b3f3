import numpy as np
import pytest
from scipy import sparse

from visao_ray.evaluation import bootstrap
from visao_ray.evaluation.bootstrap import group_multiplicities, in_batches, weighted_sums


@pytest.mark.parametrize("chunk", [bootstrap._CHUNK_ELEMENTS, 40 * 33, 40, 1])
def test_replicates_are_plain_draws_with_replacement(monkeypatch, chunk):
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", chunk)
    chunks = list(group_multiplicities(40, 200, seed=3))
    weight = np.concatenate(chunks, axis=1)
    assert weight.dtype == np.uint8
    assert weight.shape == (40, 201)
    assert all(each.size <= max(chunk, 40) for each in chunks)
    assert (weight[:, 0] == 1).all()
    # The stream is part of the figures: other draws would change every interval.
    rng = np.random.default_rng([3, 9_301])
    for column in weight[:, 1:].T:
        np.testing.assert_array_equal(column, np.bincount(rng.integers(0, 40, 40), minlength=40))


def test_without_replicates_there_is_the_observed_data_alone():
    (weight,) = group_multiplicities(5, 0, seed=0)
    np.testing.assert_array_equal(weight, np.ones((5, 1)))


@pytest.mark.parametrize("batch", [1, 7, 1000])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_sums_of_batches_are_those_of_a_product(monkeypatch, batch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(bootstrap, "_BATCH", batch)
    rng = np.random.default_rng(1)
    weight = rng.integers(0, 256, (30, 50)).astype(np.uint8)
    counts = rng.integers(0, 3, (4, 30))
    expected = counts @ weight.astype(np.int64)
    np.testing.assert_array_equal(weighted_sums(counts, weight), expected)
    np.testing.assert_array_equal(weighted_sums(sparse.csr_array(counts), weight), expected)


def test_a_batch_is_as_small_as_its_sums_are_many(monkeypatch):
    monkeypatch.setattr(bootstrap, "_BATCH_ELEMENTS", 1000)
    widths = []

    def compute(weight):
        widths.append(weight.shape[1])
        return weight[:2]

    weight = np.arange(40, dtype=np.uint8).reshape(4, 10)
    result = in_batches(compute, weight, sums=300, dtype=np.float32)
    np.testing.assert_array_equal(result, weight[:2])
    assert sorted(widths) == [1, 3, 3, 3]
