"""Statistics of rows that are never in memory all at once."""

import numpy as np

from visao_ray.models.normalization import FeatureStats


def test_statistics_in_blocks_match_numpy(tmp_path):
    """More rows than a block, means far from 0, a subset of the rows in any order."""
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 5.0, 0.5])
    values = (rng.normal(size=(10_000, 3)) * scale + [0, 1000, -20]).astype(np.float32)
    np.save(tmp_path / "v.npy", values)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    rows = rng.permutation(10_000)[:9001]
    for found, expected in (
        (FeatureStats.of(mapped), values.astype(np.float64)),
        (FeatureStats.of(mapped, rows), values[rows].astype(np.float64)),
    ):
        np.testing.assert_allclose(found.mean, expected.mean(axis=0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.deviation, expected.std(axis=0), rtol=1e-6)
