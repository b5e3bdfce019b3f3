"""Estimates of the best heads of a sweep and of their leads, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from visao_ray.datasets.spec import Dataset
from visao_ray.evaluation.bootstrap import Estimate
from visao_ray.evaluation.chapters import chapter_metrics
from visao_ray.evaluation.classification import classification_metrics
from visao_ray.evaluation.comparison import Measure, compare
from visao_ray.features.labelled import LabelledVectors
from visao_ray.models import artifact
from visao_ray.models.head import predict_head
from visao_ray.tuning.objective import Criterion
from visao_ray.tuning.trial_results import TrialResult, TrialResults

_LEVEL = 0.95


def evaluate_on_val(
    data: list[Any],
    dataset: Dataset,
    classes: Sequence[str],
    trial_results: TrialResults,
    finalists: Sequence[int],
    references: dict[str, int],
    measure: Measure,
    every_metric: bool,
    replicates: int,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Compare finalists on val; compute every metric of the first on request. Runs in a Ray task.

    The finalists were chosen on val, so these values are optimistic for the winner. Only test gives
    an unbiased value.

    Args:
        data: a list with one reference to the LabelledVectors.
        dataset: of the vectors.
        classes: in index order.
        trial_results: where the heads are.
        finalists: numbers of trials.
        references: name to number of the trials that each finalist is compared with.
        measure: the objective.
        every_metric: compute all metrics of the first finalist as well.
        replicates: number of replicates of the grouped bootstrap.
        seed: of the bootstrap.

    Returns:
        A standing for each finalist, and the metrics of the first finalist (else an empty dict).
    """
    import ray

    rows: LabelledVectors = ray.get(data[0])
    mapped, val = rows.open(), rows.val_rows()
    labels, groups = rows.labels[val], rows.groups[val]
    numbers = list(dict.fromkeys([*finalists, *references.values()]))
    probabilities = [
        predict_head(artifact.load(trial_results.head(number))[0], mapped.vectors, val)
        for number in numbers
    ]
    standings = compare(
        probabilities,
        labels,
        groups,
        measure,
        references={name: numbers.index(number) for name, number in references.items()},
        contenders=list(range(len(finalists))),
        replicates=replicates,
        seed=seed,
    )
    found = [
        {"trial": number, **standing.to_json()}
        for number, standing in zip(finalists, standings, strict=False)
    ]
    if not every_metric:
        return found, {}
    metrics = classification_metrics(
        labels,
        probabilities[0],
        groups,
        classes,
        dataset.positive_among(classes),
        replicates=replicates,
        seed=seed,
    )
    if dataset.chapter_digits:
        metrics |= chapter_metrics(
            labels, probabilities[0], groups, classes, dataset.chapter_digits, replicates, seed
        )
    return found, metrics


def evaluate_on_folds(
    finalists: Sequence[TrialResult],
    references: dict[str, TrialResult],
    criterion: Criterion,
    rows: int,
) -> list[dict[str, Any]]:
    """Compare finalists by their folds: Student's t over folds, paired for leads.

    Folds share most of their train rows, so the intervals are somewhat too narrow (Bengio &
    Grandvalet, JMLR 5, 2004).

    Args:
        finalists: with the objective of each fold.
        references: name to the trial that each finalist is compared with.
        criterion: the objective.
        rows: number of images in all folds.

    Returns:
        A standing for each finalist.
    """
    values = np.array([result.folds for result in finalists])
    sign = -1.0 if criterion.lower_is_better else 1.0
    first = (sign * values).argmax(axis=0)
    return [
        {
            "trial": result.number,
            "objective": _over_folds(np.array(result.folds), rows).to_json(),
            **{
                f"over_{name}": _over_folds(
                    sign * (np.array(result.folds) - np.array(other.folds)), rows
                ).to_json()
                for name, other in references.items()
            },
            "first": float((first == place).mean()),
        }
        for place, result in enumerate(finalists)
    ]


def _over_folds(values: Any, rows: int) -> Estimate:
    from scipy import stats

    mean, error = float(values.mean()), float(stats.sem(values))
    if not error:
        return Estimate(mean, mean, mean, rows)
    low, high = stats.t.interval(_LEVEL, len(values) - 1, mean, error)
    return Estimate(mean, float(low), float(high), rows)
