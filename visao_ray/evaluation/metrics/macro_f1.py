"""Macro F1: the mean F1 over the classes that have rows or are predicted."""

from visao_ray.evaluation.bootstrap import Floats
from visao_ray.evaluation.metric import Metric
from visao_ray.evaluation.sample import Sample, mean_over_classes


def _compute(sample: Sample) -> Floats:
    return mean_over_classes(sample.f1, sample.support + sample.predicted > 0)


MACRO_F1 = Metric(
    name="macro_f1",
    title="macro F1",
    greater_is_better=True,
    bounded=(0.0, 1.0),
    compute=_compute,
)
