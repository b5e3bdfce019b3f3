import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from visao_ray.evaluation.ranking import ranking_areas


@pytest.mark.parametrize("levels", [2, 7, 40, 10**9])
def test_areas_equal_scikit_learn_with_weights_and_ties(levels):
    rng = np.random.default_rng([levels])
    for rows in (5, 60, 400):
        score = (rng.integers(0, levels, rows) / levels).astype(np.float32)
        positive = rng.random(rows) < 0.4
        positive[:2] = True, False
        weight = rng.integers(0, 4, (rows, 6)).astype(float)
        weight[:2] += 1
        area, precision = ranking_areas(score, positive, np.arange(rows), weight)
        for column in range(weight.shape[1]):
            w = weight[:, column]
            assert area[column] == pytest.approx(
                roc_auc_score(positive, score, sample_weight=w), abs=1e-12
            )
            assert precision[column] == pytest.approx(
                average_precision_score(positive, score, sample_weight=w), abs=1e-12
            )


def test_group_weights_are_the_weights_of_the_groups_rows():
    rng = np.random.default_rng(3)
    score, positive = rng.random(50), rng.random(50) < 0.5
    group = rng.integers(0, 9, 50)
    weight = rng.integers(1, 4, (9, 4)).astype(float)
    by_group = ranking_areas(score, positive, group, weight)
    by_row = ranking_areas(score, positive, np.arange(50), weight[group])
    np.testing.assert_allclose(by_group, by_row, atol=1e-12)


def test_areas_are_undefined_where_a_kind_has_no_weight():
    score, positive = np.array([0.1, 0.9]), np.array([False, True])
    # Both kinds, positives only, negatives only.
    weight = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    area, precision = ranking_areas(score, positive, np.arange(2), weight)
    np.testing.assert_array_equal(area, [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(precision, [1.0, 1.0, np.nan])
