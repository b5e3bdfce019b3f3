"""How good the best heads of a sweep are, and how much of their lead is luck."""

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


def judge_on_val(
    data: list[Any],
    dataset: Dataset,
    classes: Sequence[str],
    outcomes: TrialResults,
    finalists: Sequence[int],
    references: dict[str, int],
    measure: Measure,
    every_metric: bool,
    replicates: int,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Standings of finalists, and every metric of the first if asked for. Runs in a Ray task.

    Both rest on val, which chose them: they favour the winner, and test alone is fair to it.

    Args:
        data: a list with one reference to the LabelledVectors.
        dataset: that they are of.
        classes: in index order.
        outcomes: where their heads are.
        finalists: numbers of trials.
        references: name to number of the trials that each is compared with.
        measure: what they are judged by.
        every_metric: judge the first by all metrics as well.
        replicates: of the grouped bootstrap.
        seed: of the bootstrap.
    """
    import ray

    rows: LabelledVectors = ray.get(data[0])
    mapped, val = rows.open(), rows.val_rows()
    labels, groups = rows.labels[val], rows.groups[val]
    numbers = list(dict.fromkeys([*finalists, *references.values()]))
    probabilities = [
        predict_head(artifact.load(outcomes.head(number))[0], mapped.vectors, val)
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
    told = [
        {"trial": number, **standing.to_json()}
        for number, standing in zip(finalists, standings, strict=False)
    ]
    if not every_metric:
        return told, {}
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
    return told, metrics


def judge_on_folds(
    found: Sequence[TrialResult],
    references: dict[str, TrialResult],
    criterion: Criterion,
    rows: int,
) -> list[dict[str, Any]]:
    """Standings of finalists by their folds: Student's t over folds, paired for leads.

    Folds share most of their train rows, so the intervals are somewhat too narrow (Bengio &
    Grandvalet, JMLR 5, 2004).
    """
    values = np.array([outcome.folds for outcome in found])
    sign = -1.0 if criterion.lower_is_better else 1.0
    first = (sign * values).argmax(axis=0)
    return [
        {
            "trial": outcome.number,
            "objective": _over_folds(np.array(outcome.folds), rows).to_json(),
            **{
                f"over_{name}": _over_folds(
                    sign * (np.array(outcome.folds) - np.array(other.folds)), rows
                ).to_json()
                for name, other in references.items()
            },
            "first": float((first == place).mean()),
        }
        for place, outcome in enumerate(found)
    ]


def _over_folds(values: Any, rows: int) -> Estimate:
    from scipy import stats

    mean, error = float(values.mean()), float(stats.sem(values))
    if not error:
        return Estimate(mean, mean, mean, rows)
    low, high = stats.t.interval(_LEVEL, len(values) - 1, mean, error)
    return Estimate(mean, float(low), float(high), rows)
