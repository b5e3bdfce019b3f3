"""The train job: any family of models, on any number of workers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import muted_stderr, start_ray
from visao_ray.core.resources import Worker, current_cluster, fit_actors, fit_workers
from visao_ray.core.run import Run, to_json
from visao_ray.core.storage import Location
from visao_ray.core.waiting import Waiting
from visao_ray.datasets.registry import find_dataset
from visao_ray.datasets.spec import Dataset
from visao_ray.evaluation.evaluate import evaluate_in
from visao_ray.evaluation.inference import UNIT_IMAGES, open_model
from visao_ray.features.extract import Source, maintain_store, open_source, read_new
from visao_ray.models.family import GridFamily, StoredVectors
from visao_ray.models.registry import FAMILIES
from visao_ray.models.settings import GradientSettings, TrainSettings, VectorSettings
from visao_ray.store import schemas
from visao_ray.store.join import Snapshot, pin, plain_vectors
from visao_ray.store.store import Store
from visao_ray.training.progress import telling

_CHECK_S = "0.5"  # how often Ray Train looks after its workers, in seconds


_PREDICTED_ROWS = 32  # that the finished model sees at once


@dataclass(frozen=True)
class Inputs:
    """What is trained on, as far as it is known before Ray starts.

    Attributes:
        dataset: that the images are of.
        source: images to read first; None where the store has them.
        extractor: whose vectors are read; None where pixels are.
    """

    dataset: Dataset
    source: Source | None
    extractor: str | None


@dataclass(frozen=True)
class Share:
    """What each worker takes of the cluster.

    Attributes:
        worker: GPUs, memory and resources of one.
        cpus: of one.
        loaders: tasks that load images for one at once.
        task: options of tasks that hold the data or the model before and after the workers do:
            they go where workers go, and ask for no CPU and no GPU.
    """

    worker: Worker
    cpus: float
    loaders: int
    task: Mapping[str, Any]

    def resources(self) -> dict[str, float]:
        """By Ray Train's names."""
        return {"CPU": self.cpus, **self.worker.request()}


def train_model(settings: TrainSettings, run: Run[Any]) -> None:
    """The train job: writes the model, its predictions or embeddings, and what it was like.

    Raises:
        InputError: data, settings and cluster do not fit, before training begins; training
            diverged.
    """
    inputs = _check(settings)
    start_ray()
    share = _share(settings)
    if inputs.source is not None:
        _read_images(run, inputs.source)
    snapshot = _pin(settings, inputs, run)
    _count_files(run, inputs, snapshot, share)
    rows, spec = _prepare(settings, inputs, snapshot, run, share)
    trained = run.work.join("trained")
    in_steps = not issubclass(FAMILIES[settings.family], GridFamily)
    fit = _fit_in_steps if in_steps else _fit_at_once
    run.once("train", lambda: fit(run, spec, rows, share))
    summary = json.loads(trained.join("summary.json").read_bytes())
    model = run.out.join("model.keras")
    exported = run.work.join("exported.json")

    def export_model() -> None:
        exported.write_bytes(to_json(_export(trained, model, run.out.join("savedmodel"), share)))

    run.once("export", export_model)
    _evaluate(run, snapshot, model, share)
    run.details |= {
        "export": json.loads(exported.read_bytes()),
        **{name: value for name, value in summary.items() if name != "starts"},
    }
    if in_steps:
        _report_steps(run, summary)


def _check(settings: TrainSettings) -> Inputs:
    """Check everything that can be checked before Ray starts."""
    source = store = extractor = None
    if settings.data is not None:
        source = open_source(settings)
        dataset = source.dataset
    else:
        store = Store.open(settings.store_uri())
        dataset = Dataset.from_json(store.description.dataset)
        if settings.dataset is not None and find_dataset(settings.dataset) != dataset:
            raise InputError(
                f"--store {store.uri}: is for dataset {dataset.name} as it was described then; "
                "leave --dataset out"
            )
    vectors = None
    if settings.takes_vectors:
        assert store is not None
        assert isinstance(settings, VectorSettings)
        extractor = store.the_extractor(settings.extractor)
        schema = store.vectors(extractor).latest().schema
        vectors = StoredVectors(schemas.outputs(schema)["avg"], schemas.description(schema))
    FAMILIES[settings.family].check(settings, dataset, vectors)
    if source is not None:
        source.require_classes()
    return Inputs(dataset, source, extractor)


def _share(settings: TrainSettings) -> Share:
    """Fit the workers to the cluster; cores that they do not need load images for them.

    Raises:
        InputError: the cluster can never hold them.
    """
    cluster = current_cluster()
    worker = fit_workers(settings.workers, settings.worker(), cluster)
    each = cluster.total("CPU") / settings.workers
    loaders = max(1, math.floor(each) - 1)
    task = {**replace(worker, gpus=0.0).options(0.0), **cluster.zero_cpu_options}
    return Share(worker, min(1.0, each / 2), loaders, task)


def _read_images(run: Run[Any], source: Source) -> None:
    """Read each image of --data once: those that can be decoded stand in OUT/store as `ok`."""
    found = run.work.join("read.json")

    def read() -> None:
        pool = fit_actors(None, Worker(gpus=0.0), current_cluster())  # nothing holds a network yet
        with source.writing(run) as writer:
            writer.ensure(writer.store.images, schemas.IMAGES)
            read_new(run, writer, source, None, None, pool, UNIT_IMAGES)
            maintain_store(run, writer)
        kept = {"counts": run.counts, "details": run.details, "warnings": run.warnings}
        found.write_bytes(to_json(kept))

    run.once("read", read)
    kept = json.loads(found.read_bytes())
    run.counts |= kept["counts"]
    run.details |= kept["details"]
    run.warnings[:] = kept["warnings"]


def _pin(settings: TrainSettings, inputs: Inputs, run: Run[Any]) -> Snapshot:
    """The versions of the store that this run reads, however often it is started."""
    store = Store.open(settings.store_uri())
    results = recipe = None
    if inputs.extractor is not None:
        assert isinstance(settings, VectorSettings)
        results, recipe = plain_vectors(inputs.extractor), settings.recipe
    snapshot = pin(store, run.id, results, recipe, settings.as_of)
    run.inputs |= snapshot.to_json()
    run.inputs["dataset"] = inputs.dataset.to_json()
    if inputs.extractor is not None:
        run.inputs["extractor"] = inputs.extractor
    return snapshot


def _count_files(run: Run[Any], inputs: Inputs, snapshot: Snapshot, share: Share) -> None:
    """What became of every file of the store, however often this run was started.

    Raises:
        InputError: more files of --data than --max-errors cannot be used.
    """
    import ray

    from visao_ray.training.preparation import count_files

    task = ray.remote(count_files).options(**share.task)
    run.counts |= ray.get(task.remote(snapshot.images))
    if inputs.source is None:
        return
    files = run.counts["images"]
    run.counts |= {"listed": files, "new": files, "known": 0, "read": files}
    inputs.source.check_errors(run, run.counts["errors"], run.settings.max_errors)


def _prepare(
    settings: TrainSettings, inputs: Inputs, snapshot: Snapshot, run: Run[Any], share: Share
) -> tuple[Any, Any]:
    """A reference to the train and val rows, and what is to be trained.

    Raises:
        InputError: rows and settings do not fit.
    """
    import ray

    from visao_ray.training.preparation import prepare_images, prepare_vectors

    prepare: Any = prepare_images
    detail: Any = share.loaders
    if inputs.extractor is not None:
        prepare, detail = prepare_vectors, inputs.extractor
    task = ray.remote(prepare).options(num_returns=2, **share.task)
    with run.timed("prepare"):
        prepared, rows = task.remote(settings, inputs.dataset, detail, snapshot, run.out)
        prepared = ray.get(prepared)
    run.counts["rows"] = prepared.rows
    for warning in prepared.warnings:
        run.warn(warning)
    return rows, prepared.spec


def _fit_at_once(run: Run[Any], spec: Any, rows: Any, share: Share) -> None:
    """Fit the candidates of a family in tasks."""
    from visao_ray.training.svm_search import search_grid

    search_grid(run, spec, rows, share.task)


def _fit_in_steps(run: Run[Any], spec: Any, rows: Any, share: Share) -> None:
    """Start the workers and report every epoch; lost workers go on from the last checkpoint."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _CHECK_S)
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    with muted_stderr():  # Ray Train imports TensorFlow here too, which tells of its CPU
        from ray.train.tensorflow import TensorflowTrainer

    from visao_ray.training.worker_failures import LostWorkers

    settings: GradientSettings = spec.settings
    checkpoints = run.out.join("checkpoints")
    trainer = TensorflowTrainer(
        _work,
        train_loop_config={"spec": spec, "rows": [rows]},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=bool(share.worker.gpus),
            resources_per_worker=share.resources(),
        ),
        run_config=RunConfig(
            name="fit",
            storage_path=checkpoints.path,
            storage_filesystem=checkpoints.filesystem,
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=settings.keep,
                checkpoint_score_attribute=f"val_{settings.monitor}",
                checkpoint_score_order="min" if settings.monitor == "loss" else "max",
            ),
            callbacks=[LostWorkers(spec.work.join("lost"))],
        ),
    )
    run.say(
        f"{settings.family} on {settings.workers} {'GPU' if share.worker.gpus else 'CPU'} "
        f"worker{'s' if settings.workers > 1 else ''}, {settings.batch_size} rows a step; "
        f"val {settings.monitor} picks the epoch"
    )
    with telling(run, spec.work.join("epochs")), Waiting(run.say):
        trainer.fit()
    diverged = spec.work.join("diverged.txt")
    if diverged.exists():
        raise InputError(diverged.read_bytes().decode())


def _work(config: dict[str, Any]) -> None:
    from visao_ray.training.worker import train_worker

    train_worker(config)


def _export(
    trained: Location, model: Location, savedmodel: Location, share: Share
) -> dict[str, Any]:
    import ray

    from visao_ray.training.export import export

    task = ray.remote(export).options(**share.task)
    found: dict[str, Any] = ray.get(task.remote(trained, model, savedmodel))
    return found


def _evaluate(run: Run[Any], snapshot: Snapshot, model: Location, share: Share) -> None:
    """Evaluate the finished model on val and, once, on test."""
    engine = open_model(model.uri, _PREDICTED_ROWS)
    pool = fit_actors(None, share.worker, current_cluster())
    found = evaluate_in(run, snapshot, engine, pool, run.settings)
    counts = found.to_counts()
    run.counts |= {"by_split": counts.pop("by_split"), "evaluated": counts}
    if found.errors:
        reasons = ", ".join(f"{count:,} {name}" for name, count in found.errors.most_common())
        run.warn(
            f"{counts['errors']:,} of {counts['images']:,} images could not be predicted "
            f"({reasons}): figures are of the others"
        )
    run.inputs["versions"] |= snapshot.to_json()["versions"]
    run.details |= {
        "model": engine.name,
        "classes": list(engine.model_metadata.classes),
        "threshold": found.evaluation["threshold"],
    }


def _report_steps(run: Run[Any], summary: dict[str, Any]) -> None:
    """How fast it was, where time went, and what was lost on the way."""
    work, workers = run.work, run.settings.workers
    history = summary["history"]
    # The first epoch of a start traces and compiles.
    usual = history[1:] or history
    if usual:
        run.throughput |= {
            "images_per_second_per_worker": median(row["images_per_second"] for row in usual)
            / workers
        }
        for name in ("share_waiting_for_data", "share_all_reduce"):
            shares = [row[name] for row in usual if row[name] is not None]
            if shares:
                run.throughput[name] = median(shares)
    usage, lost = (
        [
            json.loads(file.read_bytes())
            for file in sorted(work.join(name).files(), key=lambda file: file.uri)
            if file.uri.endswith(".json")  # not one that a killed process was writing
        ]
        for name in ("workers", "lost")
    )
    run.details |= {
        "peak_memory_bytes": max(one["peak_memory_bytes"] for one in usage),
        "restarts": {"from_epochs": summary["starts"][1:], "lost_workers": lost},
    }
    for one in lost:
        run.warn(f"workers were lost and training went on from its last checkpoint: {one}")
