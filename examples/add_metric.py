"""A metric that the library lacks: Matthews correlation, as an objective and in every report.

    python jobs/pipeline.py --dataset vazios --plugin examples/add_metric.py \
      --objective matthews_correlation --out out/matthews

The correlation between true and predicted classes: 1 is perfect, 0 is what guessing reaches however
rare a class is. For more than two classes as in Gorodkin (Computational Biology and Chemistry 28,
2004). Sums of a sample hold one column a bootstrap replicate, so the interval costs nothing extra;
`of_decisions(sklearn.metrics.matthews_corrcoef)` would do the same, one replicate at a time.
"""

import numpy as np

from visao_ray.evaluation.bootstrap import Floats
from visao_ray.evaluation.metric import Metric
from visao_ray.evaluation.metrics import register
from visao_ray.evaluation.sample import Sample


def matthews_correlation(sample: Sample) -> Floats:
    """[R]; 0 where all rows are of one class, or are predicted to be."""
    support, predicted, total = sample.support, sample.predicted, sample.total
    covariance = sample.hits.sum(axis=0) * total - (support * predicted).sum(axis=0)
    variances = (total**2 - (support**2).sum(axis=0)) * (total**2 - (predicted**2).sum(axis=0))
    return np.divide(covariance, np.sqrt(variances), out=np.zeros_like(total), where=variances > 0)


register(
    Metric(
        name="matthews_correlation",
        title="Matthews correlation",
        greater_is_better=True,
        bounded=(-1.0, 1.0),
        compute=matthews_correlation,
    )
)
