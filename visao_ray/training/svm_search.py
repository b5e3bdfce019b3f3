"""Families that are fitted at once: every candidate in a Ray task, and the best one kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from visao_ray.core.run import Run
from visao_ray.training.artifacts import keep
from visao_ray.training.spec import TrainSpec


def search_grid(run: Run[Any], spec: TrainSpec, rows: Any, options: Mapping[str, Any]) -> None:
    """Score every candidate on val in a task of its own, then fit and keep the best.

    Args:
        run: of the train job.
        spec: what is to be fitted, of a `GridFamily`.
        rows: reference to the train and val rows.
        options: of the tasks, beside the CPU that each fit takes.
    """
    candidates = spec.family().candidates()
    read = ray.remote(_read).options(num_returns=2, **options)
    state, table = read.remote(spec, [rows])
    names = ", ".join(candidates[0])
    run.say(
        f"{spec.settings.family}: {len(candidates)} combinations of {names}, a task each; val "
        "chooses"
    )
    score = ray.remote(_score).options(**{**options, "num_cpus": 1})
    scores = [score.remote(spec, table, candidate) for candidate in candidates]
    numbers = {reference: number for number, reference in enumerate(scores)}
    found: dict[int, dict[str, float]] = {}
    waiting = list(scores)
    while waiting:
        (done,), waiting = ray.wait(waiting)
        number = numbers[done]
        found[number] = ray.get(done)
        figures = ", ".join(f"{name} {value:.4f}" for name, value in found[number].items())
        tried = ", ".join(f"{name} {value:g}" for name, value in candidates[number].items())
        run.say(f"{len(found)}/{len(candidates)} {tried}: {figures}")
    criterion = next(iter(found[0]))
    best = max(found, key=lambda number: (found[number][criterion], -number))
    history = [{**candidate, **found[number]} for number, candidate in enumerate(candidates)]
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
    model, facts = spec.family().fit(state, table, train, candidate)
    keep(spec, model, spec.metadata, val, {"history": history, **candidate, **facts})
