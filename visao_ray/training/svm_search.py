"""Grid search of a family: fit and evaluate each candidate in a Ray task, then fit the best one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from visao_ray.core.run import Run
from visao_ray.training.artifacts import write_artifacts
from visao_ray.training.spec import TrainSpec


def search_grid(run: Run[Any], spec: TrainSpec, rows: Any, options: Mapping[str, Any]) -> None:
    """Evaluate each candidate on val in its own task, then fit the best one and write its files.

    Args:
        run: Run of the train job.
        spec: Specification of the training run; its family is a `GridFamily`.
        rows: Object reference of the train and val rows.
        options: Options of the tasks; each fit also requests one CPU.
    """
    candidates = spec.family().candidates()
    read = ray.remote(_read).options(num_returns=2, **options)
    state, table = read.remote(spec, [rows])
    names = ", ".join(candidates[0])
    run.say(
        f"{spec.settings.family}: {len(candidates)} combinations of {names}, one task each; "
        "the best on val is used"
    )
    score = ray.remote(_score).options(**{**options, "num_cpus": 1})
    scores = [score.remote(spec, table, candidate) for candidate in candidates]
    numbers = {reference: number for number, reference in enumerate(scores)}
    metrics: dict[int, dict[str, float]] = {}
    waiting = list(scores)
    while waiting:
        (done,), waiting = ray.wait(waiting)
        number = numbers[done]
        metrics[number] = ray.get(done)
        values = ", ".join(f"{name} {value:.4f}" for name, value in metrics[number].items())
        parameters = ", ".join(f"{name} {value:g}" for name, value in candidates[number].items())
        run.say(f"{len(metrics)}/{len(candidates)} {parameters}: {values}")
    criterion = next(iter(metrics[0]))
    best = max(metrics, key=lambda number: (metrics[number][criterion], -number))
    history = [{**candidate, **metrics[number]} for number, candidate in enumerate(candidates)]
    fit = ray.remote(_fit).options(**{**options, "num_cpus": 1})
    ray.get(fit.remote(spec, [rows], state, table, candidates[best], history))


def _read(spec: TrainSpec, rows: list[Any]) -> tuple[Any, Any]:
    return spec.family().read(*ray.get(rows[0]))  # type: ignore[no-any-return]


def _score(spec: TrainSpec, table: Any, candidate: Mapping[str, float]) -> dict[str, float]:
    return spec.family().score(table, candidate)  # type: ignore[no-any-return]


def _fit(
    spec: TrainSpec,
    rows: list[Any],
    state: Any,
    table: Any,
    candidate: Mapping[str, float],
    history: list[dict[str, float]],
) -> None:
    train, val = ray.get(rows[0])
    model, details = spec.family().fit(state, table, train, candidate)
    summary = {"history": history, **candidate, **details}
    write_artifacts(spec, model, spec.metadata, val, summary)
