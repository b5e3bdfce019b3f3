"""Average precision, the area under the precision-recall curve; the mean over the ranked classes.

A class counts if it has positive and negative rows.
"""

import numpy as np

from visao_ray.evaluation.bootstrap import Floats
from visao_ray.evaluation.labelled_scores import LabelledScores
from visao_ray.evaluation.metric import Metric, all_rows
from visao_ray.evaluation.sample import Sample, mean_over_classes


def _compute(sample: Sample) -> Floats:
    return mean_over_classes(sample.average_precision, np.isfinite(sample.roc_auc))


def _basis(scores: LabelledScores, positive: int | None) -> tuple[int, int]:
    if scores.probability.width > 2 or positive is None:
        return all_rows(scores, positive)
    return len(scores), int(scores.groups_with[0][positive])


AVERAGE_PRECISION = Metric(
    name="average_precision",
    title="average precision",
    greater_is_better=True,
    bounded=(0.0, 1.0),
    compute=_compute,
    decides=False,
    basis=_basis,
)
