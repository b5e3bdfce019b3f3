"""F-beta of one class with beta 2: a false negative weighs more than a false positive."""

import numpy as np

from visao_ray.evaluation.bootstrap import Floats
from visao_ray.evaluation.metric import Metric, rows_of_class
from visao_ray.evaluation.sample import Sample, ratio


def _compute(sample: Sample) -> Floats:
    c = sample.positive
    hits, support = sample.hits[c], sample.support[c]
    missed, alarms = support - hits, sample.predicted[c] - hits
    return np.where(support > 0, ratio(5 * hits, 5 * hits + 4 * missed + alarms), np.nan)


F2 = Metric(
    name="f2",
    title="F2 of {positive}",
    greater_is_better=True,
    bounded=(0.0, 1.0),
    compute=_compute,
    of_class=True,
    basis=rows_of_class,
)
