import numpy as np
import pytest

from visao_ray.core.errors import InputError
from visao_ray.evaluation.thresholds import threshold_for_recall


@pytest.mark.parametrize("levels", [3, 20, 10**8])
@pytest.mark.parametrize("target", [0.5, 0.9, 0.95, 1.0])
def test_threshold_meets_the_target_and_no_larger_one_does(levels, target):
    rng = np.random.default_rng([levels, int(target * 100)])
    for rows in (2, 19, 300):
        score = (rng.integers(0, levels, rows) / levels).astype(np.float32)
        positive = rng.random(rows) < 0.4
        positive[0] = True
        chosen = threshold_for_recall(score, positive, target)
        predicted = score >= chosen.threshold
        assert chosen.recall == predicted[positive].mean() >= target
        larger = np.nextafter(np.float32(chosen.threshold), np.float32(2))
        assert (score >= larger)[positive].mean() < target
        assert chosen.precision == pytest.approx(positive[predicted].mean())
        if not positive.all():
            assert chosen.specificity == pytest.approx((~predicted)[~positive].mean())
        assert (chosen.support, chosen.n) == (positive.sum(), rows)


def test_rounding_of_the_target_costs_no_extra_positive():
    # 0.55 * 20 is 11.000000000000002; 11 of 20 positives are enough.
    score = np.linspace(0.05, 1, 20)
    assert threshold_for_recall(score, np.ones(20, bool), 0.55).recall == 0.55


def test_missing_positives_and_invalid_targets_are_errors():
    score = np.array([0.1, 0.7])
    with pytest.raises(InputError, match="no image of class 'nvazio'"):
        threshold_for_recall(score, np.zeros(2, bool), 0.95, "nvazio")
    for target in (0.0, 1.01, -1.0):
        with pytest.raises(InputError, match="outside"):
            threshold_for_recall(score, np.ones(2, bool), target)
    with pytest.raises(InputError, match="finite"):
        threshold_for_recall(np.array([np.nan, 0.2]), np.ones(2, bool), 0.9)
