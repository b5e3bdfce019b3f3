"""The SVM of the train job: its grid in Ray tasks, and the best machine as a Keras model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from visao_ray.errors import InputError
from visao_ray.models import svm
from visao_ray.models.normalization import FeatureStats, Vectors
from visao_ray.runs import Run
from visao_ray.training.outcome import keep
from visao_ray.training.plan import Plan
from visao_ray.training.rows import Rows

_BATCH = 256
_MOST = 1_000_000  # classes times rows


def search_svm(run: Run[Any], plan: Plan, rows: Any, options: Mapping[str, Any]) -> None:
    """Try every C and gamma in a task of its own, and keep the best on val, fitted and calibrated.

    Args:
        run: of the train job.
        plan: what is to be fitted.
        rows: reference to the train and val Rows.
        options: of the tasks, beside the CPU that each fit takes.
    """
    import ray

    settings = plan.settings
    classes, images = len(plan.shape.classes), plan.rows
    if classes * images > _MOST:
        raise InputError(
            f"--family svm: {classes} classes, one against the rest each, of {images} train rows "
            "would take days; give --limit, or another family"
        )
    vectors = ray.remote(_vectors).options(num_returns=2, **options)
    stats, table = vectors.remote(plan, [rows])
    grid = list(itertools.product(settings.svm_c, settings.svm_gamma))
    run.say(f"svm: {len(grid)} pairs of C and gamma, a task each; val chooses")
    score = ray.remote(_score).options(**{**options, "num_cpus": 1})
    scores = [score.remote(table, len(plan.shape.classes), *point) for point in grid]
    numbers = {reference: number for number, reference in enumerate(scores)}
    found: dict[int, dict[str, float]] = {}
    waiting = list(scores)
    while waiting:
        (done,), waiting = ray.wait(waiting)
        number = numbers[done]
        found[number] = ray.get(done)
        told = ", ".join(f"{name} {value:.4f}" for name, value in found[number].items())
        C, gamma = grid[number]
        run.say(f"{len(found)}/{len(grid)} C {C:g}, gamma {gamma:g}: {told}")
    name = "roc_auc" if len(plan.shape.classes) == 2 else "macro_f1"
    best = max(range(len(grid)), key=lambda number: (found[number][name], -number))
    history = [{"C": C, "gamma": gamma, **found[number]} for number, (C, gamma) in enumerate(grid)]
    finish = ray.remote(_finish).options(**{**options, "num_cpus": 1})
    ray.get(finish.remote(plan, [rows], stats, table, grid[best], history))


def _vectors(plan: Plan, rows: list[Any]) -> tuple[FeatureStats | None, dict[str, Any]]:
    """Statistics of reduced images, and standardised vectors and labels of train and val."""
    import ray

    train, val = ray.get(rows[0])
    stats = None
    if plan.shape.image_size:
        stats = FeatureStats.of(_run(svm.svm_inputs_images(plan.shape.image_size), train))
    inputs = _inputs(plan, stats)
    return stats, {
        "x_train": _run(inputs, train),
        "y_train": train.labels,
        "x_val": _run(inputs, val),
        "y_val": val.labels,
    }


def _inputs(plan: Plan, stats: FeatureStats | None) -> Any:
    """The part of the machine that turns its inputs into standardised vectors."""
    if plan.shape.image_size:
        return svm.svm_inputs_images(plan.shape.image_size, stats)
    return svm.svm_inputs_features(plan.shape.width, plan.settings.pool, plan.shape.stats)


def _run(model: Any, rows: Rows) -> Vectors:
    """What a model makes of all rows as they are, float32[N, D]; the last batch is filled up."""
    count = len(rows.labels)
    steps = np.resize(np.arange(count), (-(-count // _BATCH), _BATCH))
    as_they_are = np.zeros(len(steps), np.int64)
    parts = [
        np.asarray(model.predict_on_batch(inputs)) for inputs in rows.stream(steps, as_they_are)
    ]
    return np.concatenate(parts)[:count]


def _score(table: dict[str, Any], classes: int, C: float, gamma: float) -> dict[str, float]:
    return svm.score_svm(**table, classes=classes, C=C, gamma=gamma)


def _finish(
    plan: Plan,
    rows: list[Any],
    stats: FeatureStats | None,
    table: dict[str, Any],
    point: tuple[float, float],
    history: list[dict[str, float]],
) -> None:
    import ray

    train, val = ray.get(rows[0])
    C, gamma = point
    fitted = svm.fit_calibrated(
        table["x_train"],
        table["y_train"],
        train.groups,
        len(plan.shape.classes),
        C,
        gamma,
        plan.settings.seed,
    )
    model = svm.to_keras(_inputs(plan, stats), fitted)
    told = {"history": history, "C": C, "gamma": gamma, "support_vectors": len(fitted.support)}
    keep(plan, model, plan.about, val, told)
