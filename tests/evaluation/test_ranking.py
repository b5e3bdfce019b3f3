import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from visao_ray.evaluation import bootstrap, ranking
from visao_ray.evaluation.probabilities import Probabilities
from visao_ray.evaluation.ranking import ranking_areas


def areas(score, positive, group, weight):
    """Both areas of one class, [R] each."""
    both = ranking_areas(Probabilities.of(score[:, None]), ~positive, group, weight, range(1))
    return [values[0] for values in both]


@pytest.mark.parametrize("levels", [2, 7, 40, 10**9])
def test_areas_equal_scikit_learn_with_weights_and_ties(levels):
    rng = np.random.default_rng([levels])
    for rows in (5, 60, 400):
        score = (rng.integers(0, levels, rows) / levels).astype(np.float32)
        positive = rng.random(rows) < 0.4
        positive[:2] = True, False
        weight = rng.integers(0, 4, (rows, 6)).astype(float)
        weight[:2] += 1
        area, precision = areas(score, positive, np.arange(rows), weight)
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
    by_group = areas(score, positive, group, weight)
    by_row = areas(score, positive, np.arange(50), weight[group])
    np.testing.assert_allclose(by_group, by_row, atol=1e-12)


def test_areas_are_undefined_without_positive_or_negative_weight():
    score, positive = np.array([0.1, 0.9]), np.array([False, True])
    # Positives and negatives, positives only, negatives only.
    weight = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    area, precision = areas(score, positive, np.arange(2), weight)
    np.testing.assert_array_equal(area, [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(precision, [1.0, 1.0, np.nan])


def many_classes(rows=300, width=9):
    """Scores with ties; class 8 has no row."""
    rng = np.random.default_rng(11)
    p = np.round(rng.random((rows, width)), 1).astype(np.float32)
    label, group = rng.integers(0, width - 1, rows), rng.integers(0, 80, rows)
    weight = rng.integers(0, 4, (80, 30)).astype(np.uint8)
    return Probabilities.of(p), label, group, weight, range(width)


def test_integer_weights_are_summed_exactly_in_either_precision(monkeypatch):
    problem = many_classes()
    single = ranking_areas(*problem)
    np.testing.assert_array_equal(np.isnan(single[0]).all(axis=1), np.arange(9) == 8)
    monkeypatch.setattr(ranking, "_EXACT", 1)
    np.testing.assert_array_equal(ranking_areas(*problem), single)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_blocks_of_classes_and_batches_of_replicates_change_nothing(monkeypatch, threads):
    problem = many_classes()
    whole = ranking_areas(*problem)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(ranking, "_COLUMN_ELEMENTS", 2 * 300)
    monkeypatch.setattr(bootstrap, "_BATCH", 7)
    np.testing.assert_array_equal(ranking_areas(*problem), whole)
    some = ranking_areas(*problem[:-1], range(3, 5))
    np.testing.assert_array_equal(some, [kind[3:5] for kind in whole])


def test_a_class_is_sorted_once_for_all_replicates(monkeypatch):
    sorted_classes = []
    original = ranking.RankingCells.of

    def count(*arguments):
        sorted_classes.append(1)
        return original(*arguments)

    monkeypatch.setattr(ranking.RankingCells, "of", count)
    monkeypatch.setattr(bootstrap, "_BATCH", 7)
    ranking_areas(*many_classes())
    assert len(sorted_classes) == 9
