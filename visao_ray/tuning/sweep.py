"""The sweep job: many heads on cached features, val chooses one."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from visao_ray import tables
from visao_ray.bases.base import BASES
from visao_ray.errors import InputError
from visao_ray.features.vectors import Summary, load_features
from visao_ray.models.head import HeadSettings
from visao_ray.runs import Run, start_ray
from visao_ray.settings import SweepSettings
from visao_ray.storage import Location, locate, reason
from visao_ray.tuning.objective import OBJECTIVES, Objective, default_objective
from visao_ray.tuning.outcomes import (
    HISTORY,
    TRIALS,
    Outcome,
    Outcomes,
    flat,
    history_table,
    trials_table,
)
from visao_ray.tuning.space import propose

_RETRIES = 2  # of a trial whose process was lost
_TRIALS_A_GPU = 8
_TOP = 5
#: Tune reads these from the environment only.
_TUNE = {
    # Its own CSV, JSON and TensorBoard files of every epoch would cost more than the epochs.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The newer terminal output prints tables even at verbose=0.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Its handler ends a sweep at Ctrl-C as if it were finished.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


def make_sweep(settings: SweepSettings, run: Run[Any]) -> None:
    """The sweep job: writes `trials`, `history` and `head.keras`.

    Raises:
        InputError: features that are missing or do not fit the base, an objective that is undefined
            on val, settings under which every head fails.
    """
    search(settings, run, propose(settings.trials, settings.seed, BASES[settings.base].positive))


def search(settings: SweepSettings, run: Run[Any], heads: list[HeadSettings]) -> None:
    """Try the given heads, the first of which is the default that others are measured against."""
    import ray

    tables.open_table(locate(settings.features), "features")  # before Ray: it is often mistyped
    start_ray()
    with run.timed("load"):
        load = ray.remote(load_features).options(num_returns=2)
        summary_ref, features_ref = load.remote(settings.features, settings.base)
        summary: Summary = ray.get(summary_ref)
    classes = len(summary.classes)
    objective: Objective = settings.objective or default_objective(classes)
    _report_features(run, summary, objective)
    outcomes = Outcomes(run.out.join("tune", "trials"))
    before = len(outcomes.numbers())
    positive = BASES[settings.base].positive
    documents = [head.model_dump(mode="json") for head in heads]
    start = time.perf_counter()
    with run.timed("search"):
        lost = _tune(
            run,
            features_ref,
            {
                "base": settings.base,
                "seed": settings.seed,
                "epochs": settings.epochs,
                "patience": settings.patience,
                "objective": objective,
                "positive": summary.classes.index(positive) if positive else 0,
                "summary": summary,
                "heads": documents,
                "outcomes": outcomes.folder.uri,
            },
        )
    minutes = (time.perf_counter() - start) / 60
    found = []
    for number in range(len(heads)):
        outcome = outcomes.read(number)
        if outcome is None and number not in lost:
            raise RuntimeError(f"Tune ended before trial {number} did")
        found.append(outcome or Outcome(number, "", "error", lost[number]))
    tables.write(run.out.join("trials"), trials_table(found, documents), TRIALS)
    tables.write(run.out.join("history"), history_table(found), HISTORY)
    run.counts |= {
        "trials": len(found),
        "failed": sum(outcome.status != "ok" for outcome in found),
    }
    run.throughput["trials_per_minute"] = (len(found) - before) / minutes
    ranked = _ranked(found, objective)
    if not ranked:
        first = found[0].error
        raise InputError(
            f"all {len(found)} trials failed, the first with: {first}; see {outcomes.folder.uri}"
        )
    winner = ranked[0]
    run.out.join("head.keras").write_bytes(outcomes.head(winner.number).read_bytes())
    _report_winner(run, summary, objective, documents, found[0], ranked)


def _tune(run: Run[Any], features: Any, plan: dict[str, Any]) -> dict[int, str]:
    """Run the trials that have not ended yet; returns those lost without an outcome, and why."""
    os.environ |= _TUNE
    from ray import tune
    from ray.tune.execution import class_cache

    from visao_ray.tuning.progress import Progress
    from visao_ray.tuning.trainable import HeadTrainable, Plan

    # Tune would hand the driver's AWS keys to every trial, and Ray's agent would log them. Workers
    # find credentials as in all other jobs: in their node's own environment or role.
    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")
    }
    trainable = tune.with_resources(
        tune.with_parameters(HeadTrainable, features=[features], plan=Plan(**plan)), _resources()
    )
    space = {"number": tune.grid_search(list(range(len(plan["heads"]))))}
    folder = run.out.join("tune")
    experiment = folder.join("search")
    tuner = None
    if _has_snapshot(experiment):
        try:
            # The features and the plan are given again: object references die with their cluster.
            tuner = tune.Tuner.restore(
                experiment.path,
                trainable,
                param_space=space,
                storage_filesystem=experiment.filesystem,
            )
        except Exception as error:  # killed while the snapshot was written; outcomes stay valid
            run.say(f"Tune's snapshot cannot be read ({reason(error)}); going on without it")
    if tuner is None:
        experiment.delete()
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder.path,
                storage_filesystem=folder.filesystem,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
                callbacks=[Progress(run.settings.job, plan["objective"], len(plan["heads"]))],
            ),
        )
    results = tuner.fit()
    return {
        result.config["number"]: f"{type(result.error).__name__}: {reason(result.error)}"
        for result in results
        if result.error is not None and result.config
    }


def _has_snapshot(experiment: Location) -> bool:
    names = [entry.name for entry in experiment.children()]
    return "tuner.pkl" in names and any(name.startswith("experiment_state") for name in names)


def _resources() -> dict[str, float]:
    """What a trial takes: a CPU, and a share of a GPU where the cluster has any."""
    import ray

    there = ray.cluster_resources()
    if not there.get("GPU"):
        return {"CPU": 1}
    a_gpu = max(1, min(_TRIALS_A_GPU, int(there["CPU"] // there["GPU"])))
    return {"CPU": 1, "GPU": 1 / a_gpu}


def _ranked(found: list[Outcome], objective: Objective) -> list[Outcome]:
    """The trials that succeeded, best first; the earlier one first where they are equal."""
    sign = 1 if objective == "log_loss" else -1
    succeeded = [outcome for outcome in found if outcome.status == "ok"]
    return sorted(succeeded, key=lambda one: (sign * one.metrics[objective], one.number))


def _report_features(run: Run[Any], summary: Summary, objective: Objective) -> None:
    run.inputs |= {
        "features": run.settings.features,
        "classes": list(summary.classes),
        "about": summary.about,
    }
    run.counts |= {"images": summary.images, "ok": summary.images, "errors": 0}
    run.counts["rows"] = summary.rows
    run.details["objective"] = objective
    run.say(
        f"{summary.rows['train']:,} train and {summary.rows['val']:,} val rows of "
        f"{summary.width} numbers twice, {len(summary.classes)} classes; {objective} on val chooses"
    )
    if summary.untrained:
        run.warn(
            f"{len(summary.untrained)} classes of val have no train image "
            f"({', '.join(summary.untrained[:5])}, …): no head can know them"
        )


def _report_winner(
    run: Run[Any],
    summary: Summary,
    objective: Objective,
    heads: list[dict[str, Any]],
    default: Outcome,
    ranked: list[Outcome],
) -> None:
    winner = ranked[0]
    rows = summary.rows["val"]
    run.metrics["val"] = {
        name: {
            "value": value if np.isfinite(value) else None,
            "low": None,
            "high": None,
            "n": rows if np.isfinite(value) else 0,
        }
        for name, value in winner.metrics.items()
    }
    run.details["winner"] = {
        "trial": winner.number,
        "epoch": winner.epoch,
        "settings": heads[winner.number],
        objective: winner.metrics[objective],
    }
    run.details["default"] = {
        "trial": default.number,
        "settings": heads[default.number],
        objective: default.metrics.get(objective),
    }
    run.say(f"best {min(_TOP, len(ranked))} of {run.counts['trials']} trials:")
    names = [objective, *(name for name in OBJECTIVES if name != objective)]
    print("   trial " + " ".join(f"{name:>17}" for name in names) + "  epoch  head")
    for outcome in ranked[:_TOP]:
        values = " ".join(f"{outcome.metrics[name]:17.4f}" for name in names)
        head = _short(heads[outcome.number])
        print(f"   {outcome.number:5d} {values}  {outcome.epoch:5d}  {head}", flush=True)


def _short(head: dict[str, Any]) -> str:
    """A head in half a line."""
    size = f"{head['units']} {head['activation']}" if head["units"] else "logistic"
    parts = [
        head["pool"],
        size,
        f"dropout {head['dropout']:g}",
        f"L2 {head['l2']:g}",
        f"{head['optimizer']} {head['learning_rate']:g}",
        f"batch {head['batch_size']}",
        f"weights {flat(head['class_weight'])}",
    ]
    return ", ".join(parts if head["standardise"] else [*parts, "raw"])
