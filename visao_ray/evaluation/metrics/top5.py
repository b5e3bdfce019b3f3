"""Top-5 accuracy: the share of rows with the true class among the five most probable ones.

Equal probabilities count against the true class, so a constant prediction earns no credit.
"""

import numpy as np

from visao_ray.evaluation.bootstrap import Floats
from visao_ray.evaluation.metric import Metric
from visao_ray.evaluation.sample import Sample

_K = 5


def _compute(sample: Sample) -> Floats:
    return sample.mean((sample.scores.rank <= _K).astype(np.float64))


TOP5 = Metric(
    name="top5",
    title="top-5 accuracy",
    greater_is_better=True,
    bounded=(0.0, 1.0),
    compute=_compute,
    unit="share",
    decides=False,
    fewest_classes=3,
    fewest_to_rank=_K + 1,
)
