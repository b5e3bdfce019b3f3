"""A new metric: Matthews correlation, as an objective and in every report.

    python jobs/pipeline.py --dataset vazios --plugin examples/add_metric.py \
      --objective matthews_correlation --out out/matthews

It is the correlation between true and predicted classes: 1 is perfect, 0 is the value of guessing,
however rare a class is. For more than two classes it is defined as in Gorodkin (Computational
Biology and Chemistry 28, 2004). The sums of a sample have one column per bootstrap replicate, so
the interval costs nothing extra. `of_decisions(sklearn.metrics.matthews_corrcoef)` computes the
same, one replicate at a time.
"""

import numpy as np

from visao_ray.evaluation.bootstrap import Floats
from visao_ray.evaluation.metric import Metric
from visao_ray.evaluation.metrics import register
from visao_ray.evaluation.sample import Sample


def matthews_correlation(sample: Sample) -> Floats:
    """Return the metric of each replicate, float64[R]; 0 if only one class is true or predicted."""
    support, predicted, total = sample.support, sample.predicted, sample.total
    covariance = sample.hits.sum(axis=0) * total - (support * predicted).sum(axis=0)
    variances = (total**2 - (support**2).sum(axis=0)) * (total**2 - (predicted**2).sum(axis=0))
    found: Floats = np.zeros_like(total)
    np.divide(covariance, np.sqrt(variances), out=found, where=variances > 0)
    return found


register(
    Metric(
        name="matthews_correlation",
        title="Matthews correlation",
        greater_is_better=True,
        bounded=(-1.0, 1.0),
        compute=matthews_correlation,
    )
)
