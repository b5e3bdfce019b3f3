"""Area under the ROC curve; the mean over the ranked classes, each against the rest.

Equal scores count half. A class counts if it has positive and negative rows.
"""

import numpy as np

from visao_ray.evaluation.bootstrap import Floats
from visao_ray.evaluation.labelled_scores import LabelledScores
from visao_ray.evaluation.metric import Metric, all_rows
from visao_ray.evaluation.sample import Sample, mean_over_classes


def _compute(sample: Sample) -> Floats:
    return mean_over_classes(sample.roc_auc, np.isfinite(sample.roc_auc))


def _basis(scores: LabelledScores, positive: int | None) -> tuple[int, int]:
    if scores.probability.width > 2 or positive is None:
        return all_rows(scores, positive)
    return len(scores), min(int(groups[positive]) for groups in scores.groups_with)


ROC_AUC = Metric(
    name="roc_auc",
    title="ROC AUC",
    greater_is_better=True,
    bounded=(0.0, 1.0),
    compute=_compute,
    decides=False,
    basis=_basis,
)
