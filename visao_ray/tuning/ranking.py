"""Ranking of a sweep's trials: references, the choice of the winner, and standings of finalists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visao_ray.core.errors import InputError
from visao_ray.core.run import Run
from visao_ray.evaluation.metrics import METRICS
from visao_ray.reports.sweep import describe_head
from visao_ray.tuning.finalists import evaluate_on_folds, evaluate_on_val
from visao_ray.tuning.loaded_sweep import LoadedSweep
from visao_ray.tuning.objective import Criterion
from visao_ray.tuning.trial_results import TrialResult

_PRINTED = 5
_REPLICATES = 1000


def ranked(results: Sequence[TrialResult], criterion: Criterion) -> list[TrialResult]:
    """Return the trials that succeeded, best first; of equal trials the earlier one comes first."""
    sign = 1 if criterion.lower_is_better else -1
    succeeded = [result for result in results if result.status == "ok"]
    return sorted(succeeded, key=lambda one: (sign * one.objective, one.number))


def references(ranking: Sequence[TrialResult], default: TrialResult) -> dict[str, TrialResult]:
    """Return the trials that finalists are compared with: the median and the default, by name."""
    median = {"median": ranking[len(ranking) // 2]}
    return {"default": default, **median} if default.status == "ok" else median


def choose(
    sweep: LoadedSweep, ranking: Sequence[TrialResult], refits: Mapping[int, TrialResult]
) -> list[TrialResult]:
    """Rank the heads that the winner is chosen from: as searched, or as refitted on all rows.

    Args:
        sweep: that was searched.
        ranking: trials of the search that succeeded, best first.
        refits: results on all train rows, by number of the trial of the search.

    Returns:
        The results on val, best first.

    Raises:
        InputError: no head could be fitted on all rows.
    """
    if sweep.sample is None:
        return list(ranking)
    if not refits:
        raise InputError("no head could be fitted on all train rows; see the warnings above")
    return ranked(list(refits.values()), sweep.criterion)


def report_winner(
    run: Run[Any],
    sweep: LoadedSweep,
    final: Sequence[TrialResult],
    compared: Mapping[str, TrialResult],
    refits: Mapping[int, TrialResult],
) -> None:
    """Add finalists with intervals and the winner to the run's result, and print them.

    Args:
        run: of the job.
        sweep: that was searched.
        final: see `choose`.
        compared: trials of the search that finalists are compared with, see `references`.
        refits: results on all train rows, by number of the trial of the search.
    """
    settings, criterion, val = sweep.settings, sweep.criterion, sweep.summary.rows["val"]
    if sweep.sample is not None:
        compared = {
            name: refits[one.number] for name, one in compared.items() if one.number in refits
        }
    searched = {refit.number: number for number, refit in refits.items()}
    finalists = list(final[: settings.finalists])
    standings: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {
        name: {
            "value": value if np.isfinite(value) else None,
            "low": None,
            "high": None,
            "n": val if np.isfinite(value) else 0,
        }
        for name, value in final[0].metrics.items()
    }
    if finalists and sweep.sample is None and settings.folds > 1:
        standings = evaluate_on_folds(finalists, dict(compared), criterion, sweep.summary.images)
    elif finalists:
        standings, evaluated = evaluate(run, sweep, sweep.data[-1], finalists, compared)
        metrics |= evaluated
    run.metrics["val"] = metrics
    by_number = {result.number: result for result in final}
    run.details["finalists"] = [
        {
            "settings": by_number[one["trial"]].head,
            "n": val,
            **one,
            "trial": searched.get(one["trial"], one["trial"]),
        }
        for one in standings
    ]
    reported = {"winner": final[0], "default": compared.get("default")}
    run.details |= {
        name: _summary(one, searched.get(one.number, one.number)) if one else None
        for name, one in reported.items()
    }
    _print_best(run, sweep, final, searched)
    for one in standings[:1]:
        run.say(
            f"{sweep.dataset.name}: {sweep.objective} of trial "
            f"{searched.get(one['trial'], one['trial'])} is "
            + "; ".join(
                f"{what} {interval(one[name], sign)}"
                for name, what, sign in (
                    ("objective", "", ""),
                    ("over_default", "over the default", "+"),
                    ("over_median", "over the median trial", "+"),
                )
                if name in one
            ).strip()
        )


def evaluate(
    run: Run[Any],
    sweep: LoadedSweep,
    data: Any,
    finalists: Sequence[TrialResult],
    compared: Mapping[str, TrialResult],
    every_metric: bool = True,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run `evaluate_on_val` in a Ray task, because the driver never holds vectors.

    Args:
        run: of the job.
        sweep: that was searched.
        data: reference to the LabelledVectors.
        finalists: to evaluate.
        compared: trials that each finalist is compared with, by name.
        every_metric: compute all metrics of the first finalist as well.

    Returns:
        As `evaluate_on_val`.
    """
    import ray

    with run.timed("evaluate"):
        task = ray.remote(evaluate_on_val).remote(
            [data],
            sweep.dataset,
            sweep.summary.classes,
            sweep.trial_results,
            [one.number for one in finalists],
            {name: one.number for name, one in compared.items()},
            sweep.criterion,
            every_metric,
            _REPLICATES,
            sweep.settings.seed,
        )
        found: tuple[list[dict[str, Any]], dict[str, Any]] = ray.get(task)
    return found


def interval(estimate: Mapping[str, Any], sign: str) -> str:
    """Return an estimate and its interval as text.

    Args:
        estimate: value, low and high.
        sign: "+" for an explicit plus sign, else empty.

    Returns:
        Such as "0.9812 (0.9700 to 0.9900)", or "undefined".
    """
    if estimate["value"] is None:
        return "undefined"
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    return f"{value:{sign}.4f}" + ("" if low is None else f" ({low:{sign}.4f} to {high:{sign}.4f})")


def _print_best(
    run: Run[Any], sweep: LoadedSweep, final: Sequence[TrialResult], searched: Mapping[int, int]
) -> None:
    criterion = sweep.criterion
    fitted = "" if sweep.sample is None else ", fitted on all rows"
    run.say(
        f"{sweep.dataset.name}: best {min(_PRINTED, len(final))} of {run.counts['trials']} "
        f"trials{fitted}:"
    )
    names = [criterion.name, *(name for name in METRICS if name != criterion.name)][:5]
    print("   trial " + " ".join(f"{name:>19}" for name in names) + "  epoch  head")
    for result in final[:_PRINTED]:
        values = " ".join(f"{result.metrics[name]:19.4f}" for name in names)
        number, head = searched.get(result.number, result.number), describe_head(result.head)
        print(f"   {number:5d} {values}  {result.epoch:5d}  {head}", flush=True)


def _summary(result: TrialResult, trial: int) -> dict[str, Any]:
    return {
        "trial": trial,
        "epoch": result.epoch,
        "settings": result.head,
        "objective": result.objective,
        "metrics": result.metrics,
    }
