"""Further trials of the finalists: refits on all rows, class-weight curves and the ablation.

For two classes, class-weight curves show recall and precision at several weights of the positive
class. For many classes, the class-weight ablation retrains finalists with every class weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visao_ray.core import tables
from visao_ray.core.run import Run
from visao_ray.tuning.loaded_sweep import LoadedSweep
from visao_ray.tuning.ranking import evaluate, interval, ranked, references
from visao_ray.tuning.settings import SweepSettings
from visao_ray.tuning.trial_results import (
    CLASS_WEIGHT_CURVES,
    TrialResult,
    class_weight_curves_table,
    refits_schema,
    refits_table,
)

_CURVE_FINALISTS = 3
_FACTORS = (1.0, 2.0, 4.0, 8.0)
_ABLATION_FINALISTS = 2
_WEIGHTS = ("none", "root", "effective", "balanced")


def most_further_trials(settings: SweepSettings) -> int:
    """Return an upper bound of the number of further trials."""
    refits = settings.finalists + 3  # the winner and the references too
    return refits + max(_CURVE_FINALISTS * len(_FACTORS), _ABLATION_FINALISTS * len(_WEIGHTS))


def further_trials(sweep: LoadedSweep, results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """Return the configurations of the further trials.

    Args:
        sweep: that was searched.
        results: of all trials of the search, by number.

    Returns:
        Configurations of `HeadTrainable`: first the refits, then the curves or the ablation.
    """
    ranking = ranked(results, sweep.criterion)
    if not ranking:
        return []
    holdout = {"holdout": True}  # trained on train, evaluated on val
    configs: list[dict[str, Any]] = [
        {**holdout, "all_rows": True, "head": one.head, "seed_of": one.number}
        for one in _to_refit(sweep, ranking, results[0])
    ]
    for finalist, factor in _curve_trials(sweep, ranking):
        head = {**finalist.head, "class_weight": {sweep.positive: factor}}
        configs.append({**holdout, "head": head, "seed_of": finalist.number, "curve": True})
    for finalist, weight in _ablation_trials(sweep, ranking):
        head = {**finalist.head, "class_weight": weight}
        configs.append({**holdout, "head": head, "seed_of": finalist.number})
    return configs


def collect_refits(
    run: Run[Any],
    sweep: LoadedSweep,
    results: Sequence[TrialResult],
    further: Sequence[TrialResult],
) -> dict[int, TrialResult]:
    """Match refits with the trials of the search; write `refits` after a search on a sample.

    Args:
        run: of the job; gets a warning for each refit that failed.
        sweep: that was searched.
        results: of all trials of the search, by number.
        further: results of the further trials, in order.

    Returns:
        Results of successful refits, by number of the trial of the search.
    """
    searched = _to_refit(sweep, ranked(results, sweep.criterion), results[0])
    refits = {one.number: refit for one, refit in zip(searched, further, strict=False)}
    for number, refit in refits.items():
        if refit.status != "ok":
            run.warn(f"trial {number} could not be fitted on all train rows: {refit.error}")
    if sweep.sample is not None:
        tables.write(run.out.join("refits"), refits_table(refits), refits_schema())
    return {number: refit for number, refit in refits.items() if refit.status == "ok"}


def write_class_weight_curves(
    run: Run[Any],
    sweep: LoadedSweep,
    ranking: Sequence[TrialResult],
    further: Sequence[TrialResult],
) -> None:
    """Write the curves of the finalists as a table.

    Args:
        run: of the job.
        sweep: that was searched.
        ranking: trials of the search that succeeded, best first.
        further: results of the further trials, in order.
    """
    pairs = _curve_trials(sweep, ranking)
    if not pairs:
        return
    curves = [
        (finalist.number, factor, result)
        for (finalist, factor), result in zip(pairs, further[-len(pairs) :], strict=True)
        if result.status == "ok"
    ]
    table = class_weight_curves_table(curves)
    tables.write(run.out.join("class_weight_curves"), table, CLASS_WEIGHT_CURVES)


def evaluate_class_weights(
    run: Run[Any],
    sweep: LoadedSweep,
    ranking: Sequence[TrialResult],
    further: Sequence[TrialResult],
) -> list[dict[str, Any]]:
    """Compare class weights of the finalists at the same budget, and print their leads over none.

    Args:
        run: of the job.
        sweep: that was searched.
        ranking: trials of the search that succeeded, best first.
        further: results of the further trials, in order.

    Returns:
        A standing for each finalist and class weight; empty without an ablation.
    """
    pairs = _ablation_trials(sweep, ranking)
    tried = further[len(further) - len(pairs) :]
    found = []
    for finalist in ranking[: _ABLATION_FINALISTS if pairs else 0]:
        by_weight = {
            weight: result
            for (other, weight), result in zip(pairs, tried, strict=True)
            if other is finalist and result.status == "ok"
        }
        if "none" not in by_weight:
            continue
        standings, _ = evaluate(
            run,
            sweep,
            sweep.data[0],
            list(by_weight.values()),
            {"none": by_weight["none"]},
            every_metric=False,
        )
        found += [
            {**standing, "trial": finalist.number, "class_weight": weight}
            for weight, standing in zip(by_weight, standings, strict=True)
        ]
    for one in found:
        if one["class_weight"] != "none":
            run.say(
                f"{sweep.dataset.name}: trial {one['trial']} with class weights "
                f"{one['class_weight']}: {sweep.objective} {interval(one['objective'], '')}; "
                f"over none {interval(one['over_none'], '+')}"
            )
    return found


def _to_refit(
    sweep: LoadedSweep, ranking: Sequence[TrialResult], default: TrialResult
) -> list[TrialResult]:
    """Trials whose heads are refitted on all train rows.

    After a search on a sample: the finalists and their references. After a search on folds: the
    winner.
    """
    if sweep.sample is None:
        return list(ranking[: sweep.settings.folds > 1])
    finalists = sweep.settings.finalists
    chosen = list(ranking[: max(1, finalists)])
    chosen += references(ranking, default).values() if finalists else []
    return list({one.number: one for one in chosen}.values())


def _curve_trials(
    sweep: LoadedSweep, ranking: Sequence[TrialResult]
) -> list[tuple[TrialResult, float]]:
    """Finalists and the factors of the positive class that they are retrained with."""
    if sweep.positive is None or not sweep.settings.finalists:
        return []
    finalists = [one for one in ranking if one.head["kind"] != "svm"]  # it takes no class weights
    count = min(_CURVE_FINALISTS, sweep.settings.finalists)
    return [(one, factor) for one in finalists[:count] for factor in _FACTORS]


def _ablation_trials(
    sweep: LoadedSweep, ranking: Sequence[TrialResult]
) -> list[tuple[TrialResult, str]]:
    """Finalists and the class weights that they are retrained with, everything else being equal."""
    if sweep.positive is not None or not sweep.settings.finalists:
        return []
    return [(one, weight) for one in ranking[:_ABLATION_FINALISTS] for weight in _WEIGHTS]
