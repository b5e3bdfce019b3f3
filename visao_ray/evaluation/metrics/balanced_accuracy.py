"""Balanced accuracy: the mean recall over the classes that have rows, as in scikit-learn."""

from visao_ray.evaluation.bootstrap import Floats
from visao_ray.evaluation.metric import Metric
from visao_ray.evaluation.sample import Sample, mean_over_classes


def _compute(sample: Sample) -> Floats:
    return mean_over_classes(sample.recall, sample.support > 0)


BALANCED_ACCURACY = Metric(
    name="balanced_accuracy",
    title="balanced accuracy",
    greater_is_better=True,
    bounded=(0.0, 1.0),
    compute=_compute,
    unit="percent",
)
