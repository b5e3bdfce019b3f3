"""Accuracy: the share of rows with a correct predicted class."""

from visao_ray.evaluation.bootstrap import Floats
from visao_ray.evaluation.metric import Metric
from visao_ray.evaluation.sample import Sample


def _compute(sample: Sample) -> Floats:
    share: Floats = sample.hits.sum(axis=0) / sample.total
    return share


ACCURACY = Metric(
    name="accuracy",
    title="accuracy",
    greater_is_better=True,
    bounded=(0.0, 1.0),
    compute=_compute,
    unit="share",
)
