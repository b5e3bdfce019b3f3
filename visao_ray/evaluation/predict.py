"""The predict job: every image of a store that a model has not predicted yet, labelled or not."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any

from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import current_cluster, fit_actors, remotely
from visao_ray.core.run import Run
from visao_ray.evaluation.inference import (
    UNIT_IMAGES,
    find_source,
    missing_contents,
    open_model,
    predict_contents,
    table_name,
)
from visao_ray.evaluation.settings import PredictSettings
from visao_ray.evaluation.worklist import (
    Decision,
    Request,
    Worklist,
    look_before,
    read_decision,
    write_worklist,
)
from visao_ray.features.extract import Source, maintain_store, read_new
from visao_ray.inference.engines.keras import KerasModel
from visao_ray.store import schemas
from visao_ray.store.store import Store, Writer

CSV = "predictions.csv"


@dataclass(frozen=True)
class Predicted:
    """What a start of the job predicted and listed.

    Attributes:
        dataset: its name.
        model: whose predictions they are.
        since, batch: which images were asked for, as the settings say it.
        decision: how probabilities become a decision.
        worklist: the images, first what should be looked at first.
    """

    dataset: str
    model: KerasModel
    since: str | None
    batch: str | None
    decision: Decision
    worklist: Worklist

    def check_errors(self, most: float) -> None:
        """Fail where too many new images could not be predicted; all is written by now.

        Raises:
            InputError: a larger share of them than `most`.
        """
        counts = self.worklist.counts
        errors, new = counts["errors"], counts["new"]
        if errors and errors > most * new:
            reasons = counts["errors_by_reason"].items()
            raise InputError(
                f"{errors:,} of {new:,} new images could not be predicted "
                f"({', '.join(f'{count:,} {name}' for name, count in reasons)}), more than "
                f"--max-errors {most:g} allows; the column 'error' of {CSV} says why"
            )


def predict_new(settings: PredictSettings, run: Run[Any]) -> Predicted:
    """Predict what has no predictions by the model, and write `predictions.csv`.

    Images below --data enter the store first; a model of pixels predicts them while they are read.

    Raises:
        InputError: no such store, data, model or evaluation, or they do not fit; somebody else
            writes to the store.
    """
    model = open_model(settings.model, settings.batch_size)
    decision = read_decision(model, settings.evaluation)
    source = find_source(settings, model)
    start_ray()
    pool = fit_actors(settings.workers, settings.worker(), current_cluster())
    with _writing(settings, source, run) as writer:
        images, results = writer.store.images, writer.store.predictions(table_name(model))
        writer.ensure(images, schemas.IMAGES)
        there = writer.version(results) if results.exists() else None
        before = remotely(look_before, writer.version(images), there, keep=True)
        if source is not None:
            read_new(run, writer, source, model, results, pool, UNIT_IMAGES)
            run.counts = {"read": run.counts}
        there = writer.version(results) if results.exists() else None
        missing = remotely(missing_contents, writer.version(images), there, keep=True)
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
        worklist = remotely(write_worklist, request, before, run.out.join(CSV))
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
    _say(run, worklist)
    dataset = model.model_metadata.dataset.name
    return Predicted(dataset, model, settings.since, settings.batch, decision, worklist)


def _writing(
    settings: PredictSettings, source: Source | None, run: Run[Any]
) -> AbstractContextManager[Writer]:
    if source is None:
        return Store.open(settings.store_uri()).writing(run.owner, run.say, run.predecessor)
    writing: AbstractContextManager[Writer] = source.writing(run)
    return writing


def _since(settings: PredictSettings) -> datetime | None:
    """The beginning of the day that --since names, in UTC."""
    if settings.since is None:
        return None
    if settings.since == "today":
        return datetime.combine(datetime.now(UTC).date(), time(), UTC)
    return datetime.fromisoformat(settings.since).replace(tzinfo=UTC)


def _say(run: Run[Any], worklist: Worklist) -> None:
    counts = worklist.counts
    without = counts["without_vectors"]
    rest = f" + {without:,} without vectors" if without else ""
    run.say(
        f"{counts['listed']:,} listed = {counts['new']:,} new + {counts['known']:,} known; "
        f"{counts['new']:,} new = {counts['predicted']:,} predicted + {counts['errors']:,} errors"
        f"{rest}"
    )
    run.say(f"{worklist.states.total():,} images in {run.out.join(CSV).uri}")
