"""Log loss: the mean of -log p(true class), with p clipped to [eps, 1 - eps] of float32."""

import numpy as np

from visao_ray.evaluation.bootstrap import Floats
from visao_ray.evaluation.metric import Metric
from visao_ray.evaluation.sample import Sample

_EPSILON = float(np.finfo(np.float32).eps)


def _compute(sample: Sample) -> Floats:
    of_true = np.clip(sample.scores.of_true.astype(np.float64), _EPSILON, 1 - _EPSILON)
    return sample.mean(-np.log(of_true))


LOG_LOSS = Metric(
    name="log_loss",
    title="log loss",
    greater_is_better=False,
    bounded=(0.0, np.inf),
    compute=_compute,
    decides=False,
)
