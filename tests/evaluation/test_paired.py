"""Paired tests: known values, and agreement with their definitions."""

from math import comb

import numpy as np
import pytest

from visao_ray.evaluation.paired import holm, mcnemar


def test_mcnemar_is_the_binomial_test_of_the_images_on_which_one_is_right():
    first = np.array([True] * 10 + [False] * 2 + [True] * 30 + [False] * 5)
    second = np.array([False] * 10 + [True] * 2 + [True] * 30 + [False] * 5)
    found = mcnemar(first, second)
    assert (found.first_only, found.second_only) == (10, 2)
    by_hand = 2 * sum(comb(12, k) for k in range(3)) / 2**12
    assert found.p == pytest.approx(by_hand)
    assert mcnemar(second, first).p == pytest.approx(by_hand)
    assert mcnemar(first, first).p == 1.0
    assert mcnemar(np.zeros(0, bool), np.zeros(0, bool)).p == 1.0


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_wrong_difference():
    """Ten true null hypotheses: in about 5 % of the draws, not in 40 %, any is below 5 %."""
    rng = np.random.default_rng(0)
    draws = rng.random((2000, 10))
    share = np.mean([min(holm(row)) < 0.05 for row in draws])
    assert 0.03 < share < 0.07
