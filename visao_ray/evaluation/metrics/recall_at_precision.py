"""The largest recall of one class at any threshold with a precision of at least a floor."""

import numpy as np
import numpy.typing as npt

from visao_ray.evaluation.bootstrap import Floats, group_sums, in_batches
from visao_ray.evaluation.metric import Metric, rows_of_class
from visao_ray.evaluation.sample import Sample, ratio


def _compute(sample: Sample) -> Floats:
    """Compute the recall; it is 0 if no threshold reaches the floor.

    Only the scores of the class's rows are candidates. Any other threshold has the same recall as
    the next candidate above it, and at least as many false positives. Rows of equal score are on
    the same side of every threshold.
    """
    from scipy import sparse

    scores, c, weight = sample.scores, sample.positive, sample.rows.weight
    assert c is not None
    score, is_class, group = scores.score(c), scores.label == c, scores.group
    steps, step = np.unique(score[is_class], return_inverse=True)
    if not len(steps):
        return np.full(weight.shape[1], np.nan)
    reached = np.searchsorted(steps, score[~is_class], "right")
    above = reached > 0
    shape = (len(steps), scores.groups)
    of_class = group_sums(step, group[is_class], shape)
    of_others = group_sums(reached[above] - 1, group[~is_class][above], shape)
    of_step = sparse.vstack([of_class, of_others]).tocsc()

    def of_batch(batch: npt.NDArray[np.floating]) -> Floats:
        highest_first = (of_step @ batch).reshape(2, len(steps), -1)[:, ::-1]
        found, alarms = np.cumsum(highest_first, axis=1)
        enough = ratio(found, found + alarms) >= sample.precision_floor
        return ratio(np.where(enough, found, 0.0).max(axis=0), found[-1])

    return in_batches(of_batch, weight, of_step.shape[0])


RECALL_AT_PRECISION = Metric(
    name="recall_at_precision",
    title="recall of {positive} at precision ≥ {floor}",
    greater_is_better=True,
    bounded=(0.0, 1.0),
    compute=_compute,
    of_class=True,
    basis=rows_of_class,
)
