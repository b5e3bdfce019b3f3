"""The predict job: predict all images of a store that a model has not predicted yet."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any

from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import current_cluster, fit_actors, remotely
from visao_ray.core.run import Run
from visao_ray.evaluation.inference import (
    UNIT_IMAGES,
    check_errors,
    find_source,
    missing_contents,
    open_model,
    predict_contents,
    table_name,
)
from visao_ray.evaluation.settings import PredictSettings
from visao_ray.evaluation.worklist import (
    DecisionRule,
    Request,
    Worklist,
    read_decision_rule,
    read_known_images,
    write_worklist,
)
from visao_ray.features.extract import Source, maintain_store, read_new
from visao_ray.inference.engines.keras import KerasModel
from visao_ray.store import schemas
from visao_ray.store.store import Store, Writer

CSV = "predictions.csv"


@dataclass(frozen=True)
class PredictionResult:
    """What one run of the job predicted and listed.

    Attributes:
        dataset: name of the dataset.
        model: the model that predicted.
        since: `--since` of the settings.
        batch: `--batch` of the settings.
        decision: how probabilities become a decision.
        worklist: the listed images; those to check first come first.
    """

    dataset: str
    model: KerasModel
    since: str | None
    batch: str | None
    decision: DecisionRule
    worklist: Worklist

    def check_errors(self, max_errors: float) -> None:
        """Fail if too many new images could not be predicted; see `inference.check_errors`."""
        counts = self.worklist.counts
        advice = f"; the column 'error' of {CSV} says why"
        check_errors(counts["errors_by_reason"], counts["new"], max_errors, "new images", advice)


def predict_new(settings: PredictSettings, run: Run[Any]) -> PredictionResult:
    """Predict the images that have no predictions by the model, and write `predictions.csv`.

    Images below --data are added to the store first; a model of pixels predicts them in the same
    pass.

    Args:
        settings: settings of the job.
        run: the run of the job.

    Returns:
        The listed images.

    Raises:
        InputError: no such store, data, model or evaluation, or they do not match; another job is
            writing to the store.
    """
    model = open_model(settings.model, settings.batch_size)
    decision = read_decision_rule(model, settings.evaluation)
    source = find_source(settings, model)
    start_ray()
    pool = fit_actors(settings.workers, settings.worker(), current_cluster())
    with _writing(settings, source, run) as writer:
        images, results = writer.store.images, writer.store.predictions(table_name(model))
        writer.ensure(images, schemas.IMAGES)
        existing = writer.version(results) if results.exists() else None
        known = remotely(read_known_images, writer.version(images), existing, keep=True)
        if source is not None:
            read_new(run, writer, source, model, results, pool, UNIT_IMAGES)
            run.counts = {"read": run.counts}
        existing = writer.version(results) if results.exists() else None
        missing = remotely(missing_contents, writer.version(images), existing, keep=True)
        done = predict_contents(run, writer, model, missing, pool)
        maintain_store(run, writer)
        request = Request(
            writer.version(images),
            writer.version(results),
            decision,
            _since(settings),
            settings.batch,
            model.model_metadata.takes == "features",
        )
    with run.timed("list"):
        worklist = remotely(write_worklist, request, known, run.out.join(CSV))
    run.counts |= worklist.counts
    run.inputs |= {
        "model": model.at.uri,
        "model_digest": model.digest,
        "predictions": f"predictions/{table_name(model)}",
        "evaluation": settings.evaluation,
    }
    run.details |= {"model": model.name, "threshold": decision.threshold}
    if done.computed and run.timings["predict"]:
        run.throughput["images_per_second"] = done.computed / run.timings["predict"]
    _print_counts(run, worklist)
    dataset = model.model_metadata.dataset.name
    return PredictionResult(dataset, model, settings.since, settings.batch, decision, worklist)


def _writing(
    settings: PredictSettings, source: Source | None, run: Run[Any]
) -> AbstractContextManager[Writer]:
    if source is None:
        return Store.open(settings.store_uri()).writing(run.owner, run.say, run.predecessor)
    writing: AbstractContextManager[Writer] = source.writing(run)
    return writing


def _since(settings: PredictSettings) -> datetime | None:
    """Return the start of the day of --since, in UTC."""
    if settings.since is None:
        return None
    if settings.since == "today":
        return datetime.combine(datetime.now(UTC).date(), time(), UTC)
    return datetime.fromisoformat(settings.since).replace(tzinfo=UTC)


def _print_counts(run: Run[Any], worklist: Worklist) -> None:
    counts = worklist.counts
    without = counts["without_vectors"]
    rest = f" + {without:,} without vectors" if without else ""
    run.say(
        f"{counts['listed']:,} listed = {counts['new']:,} new + {counts['known']:,} known; "
        f"{counts['new']:,} new = {counts['predicted']:,} predicted + {counts['errors']:,} errors"
        f"{rest}"
    )
    run.say(f"{worklist.states.total():,} images in {run.out.join(CSV).uri}")
