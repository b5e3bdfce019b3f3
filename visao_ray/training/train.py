"""The train job: any family of models, on any number of workers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
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
from visao_ray.training.progress import report_epochs

_CHECK_S = "0.5"  # interval of Ray Train's health checks of workers, in seconds
_PREDICT_ROWS = 32  # rows per batch of the final model


@dataclass(frozen=True)
class Inputs:
    """Inputs of training, as far as they are known before Ray starts.

    Attributes:
        dataset: Dataset of the images.
        source: Images to read first; None if they are in the store already.
        extractor: Name of the extractor of the vectors; None for training on pixels.
    """

    dataset: Dataset
    source: Source | None
    extractor: str | None


@dataclass(frozen=True)
class WorkerResources:
    """Resources of a worker and of its tasks.

    Attributes:
        worker: GPUs, memory and custom resources of a worker.
        cpus: CPUs of a worker.
        loaders: Number of concurrent loading tasks per worker.
        task: Options of tasks that hold the data or the model before and after training. They run
            on the same nodes as workers, and request no CPU and no GPU.
    """

    worker: Worker
    cpus: float
    loaders: int
    task: Mapping[str, Any]

    def request(self) -> dict[str, float]:
        """Return the resources of a worker with the names of Ray Train."""
        return {"CPU": self.cpus, **self.worker.request()}


def train_model(settings: TrainSettings, run: Run[Any]) -> None:
    """Run the train job: write the model, its predictions or embeddings, and its metrics.

    Args:
        settings: Settings of the job.
        run: The run of the job.

    Raises:
        InputError: Data, settings and cluster do not fit (before training begins), or training
            diverged.
    """
    inputs = _check(settings)
    start_ray()
    resources = _fit_resources(settings)
    if inputs.source is not None:
        _read_images(run, inputs.source)
    snapshot = _pin(settings, inputs, run)
    _count_files(run, inputs, snapshot, resources)
    rows, spec = _prepare(settings, inputs, snapshot, run, resources)
    trained = run.work.join("trained")
    in_steps = not issubclass(FAMILIES[settings.family], GridFamily)
    fit = _fit_in_steps if in_steps else _fit_candidates
    run.once("train", lambda: fit(run, spec, rows, resources))
    summary = json.loads(trained.join("summary.json").read_bytes())
    model = run.out.join("model.keras")
    exported = run.work.join("exported.json")

    def export_model() -> None:
        exported.write_bytes(
            to_json(_export(trained, model, run.out.join("savedmodel"), resources))
        )

    run.once("export", export_model)
    _evaluate(run, snapshot, model, resources)
    run.details |= {
        "export": json.loads(exported.read_bytes()),
        **{name: value for name, value in summary.items() if name != "starts"},
    }
    if in_steps:
        _report_training(run, summary)


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
                "remove --dataset"
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


def _fit_resources(settings: TrainSettings) -> WorkerResources:
    """Fit the workers to the cluster; the remaining cores load images.

    Raises:
        InputError: The cluster can never hold the workers.
    """
    cluster = current_cluster()
    worker = fit_workers(settings.workers, settings.worker(), cluster)
    cpus = cluster.total("CPU") / settings.workers
    loaders = max(1, math.floor(cpus) - 1)
    task = {**replace(worker, gpus=0.0).options(0.0), **cluster.zero_cpu_options}
    return WorkerResources(worker, min(1.0, cpus / 2), loaders, task)


def _read_images(run: Run[Any], source: Source) -> None:
    """Read each image of --data once; images that can be decoded are `ok` in OUT/store."""
    file = run.work.join("read.json")

    def read() -> None:
        pool = fit_actors(None, Worker(gpus=0.0), current_cluster())  # there is no network yet
        with source.writing(run) as writer:
            writer.ensure(writer.store.images, schemas.IMAGES)
            read_new(run, writer, source, None, None, pool, UNIT_IMAGES)
            maintain_store(run, writer)
        report = {"counts": run.counts, "details": run.details, "warnings": run.warnings}
        file.write_bytes(to_json(report))

    run.once("read", read)
    report = json.loads(file.read_bytes())
    run.counts |= report["counts"]
    run.details |= report["details"]
    run.warnings[:] = report["warnings"]


def _pin(settings: TrainSettings, inputs: Inputs, run: Run[Any]) -> Snapshot:
    """Pin the versions of the store that this run reads, the same after a restart."""
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


def _count_files(
    run: Run[Any], inputs: Inputs, snapshot: Snapshot, resources: WorkerResources
) -> None:
    """Count the files of the store by status, the same after a restart.

    Raises:
        InputError: More files of --data than --max-errors cannot be used.
    """
    import ray

    from visao_ray.training.preparation import count_files

    task = ray.remote(count_files).options(**resources.task)
    run.counts |= ray.get(task.remote(snapshot.images))
    if inputs.source is None:
        return
    files = run.counts["images"]
    run.counts |= {"listed": files, "new": files, "known": 0, "read": files}
    inputs.source.check_errors(run, run.counts["errors"], run.settings.max_errors)


def _prepare(
    settings: TrainSettings,
    inputs: Inputs,
    snapshot: Snapshot,
    run: Run[Any],
    resources: WorkerResources,
) -> tuple[Any, Any]:
    """Prepare the train and val rows; return their object reference and the TrainSpec.

    Raises:
        InputError: The rows and the settings do not fit.
    """
    import ray

    from visao_ray.training.preparation import prepare_images, prepare_vectors

    prepare: Any = prepare_images
    detail: Any = resources.loaders
    if inputs.extractor is not None:
        prepare, detail = prepare_vectors, inputs.extractor
    task = ray.remote(prepare).options(num_returns=2, **resources.task)
    with run.timed("prepare"):
        prepared, rows = task.remote(settings, inputs.dataset, detail, snapshot, run.out)
        prepared = ray.get(prepared)
    run.counts["rows"] = prepared.rows
    for warning in prepared.warnings:
        run.warn(warning)
    return rows, prepared.spec


def _fit_candidates(run: Run[Any], spec: Any, rows: Any, resources: WorkerResources) -> None:
    """Fit the candidates of a `GridFamily` in tasks."""
    from visao_ray.training.svm_search import search_grid

    search_grid(run, spec, rows, resources.task)


def _fit_in_steps(run: Run[Any], spec: Any, rows: Any, resources: WorkerResources) -> None:
    """Start the workers and report every epoch; after a failure they resume from a checkpoint."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _CHECK_S)
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from visao_ray.training.tensorflow_cluster import TensorflowCluster
    from visao_ray.training.worker_failures import WorkerFailures

    settings: GradientSettings = spec.settings
    checkpoints = run.out.join("checkpoints")
    trainer = DataParallelTrainer(
        _train_loop,
        backend_config=TensorflowCluster(),
        train_loop_config={"spec": spec, "rows": [rows]},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=bool(resources.worker.gpus),
            resources_per_worker=resources.request(),
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
            callbacks=[WorkerFailures(spec.work.join("lost"))],
        ),
    )
    run.say(
        f"{settings.family} on {settings.workers} {'GPU' if resources.worker.gpus else 'CPU'} "
        f"worker{'s' if settings.workers > 1 else ''}, {settings.batch_size} rows per step; "
        f"val {settings.monitor} selects the epoch"
    )
    with report_epochs(run, spec.work.join("epochs")), Waiting(run.say):
        trainer.fit()
    diverged = spec.work.join("diverged.txt")
    if diverged.exists():
        raise InputError(diverged.read_bytes().decode())


def _train_loop(config: dict[str, Any]) -> None:
    import_keras()  # before TensorFlow, to keep it quiet and its import short
    from visao_ray.training.worker import train_worker

    train_worker(config)


def _export(
    trained: Location, model: Location, savedmodel: Location, resources: WorkerResources
) -> dict[str, Any]:
    import ray

    from visao_ray.training.export import export

    task = ray.remote(export).options(**resources.task)
    report: dict[str, Any] = ray.get(task.remote(trained, model, savedmodel))
    return report


def _evaluate(
    run: Run[Any], snapshot: Snapshot, model: Location, resources: WorkerResources
) -> None:
    """Evaluate the final model on val and, once, on test."""
    engine = open_model(model.uri, _PREDICT_ROWS)
    pool = fit_actors(None, resources.worker, current_cluster())
    found = evaluate_in(run, snapshot, engine, pool, run.settings)
    counts = found.to_counts()
    run.counts |= {"by_split": counts.pop("by_split"), "evaluated": counts}
    if found.errors:
        reasons = ", ".join(f"{count:,} {name}" for name, count in found.errors.most_common())
        run.warn(
            f"{counts['errors']:,} of {counts['images']:,} images could not be predicted "
            f"({reasons}): metrics are of the others"
        )
    run.inputs["versions"] |= snapshot.to_json()["versions"]
    run.details |= {
        "model": engine.name,
        "classes": list(engine.model_metadata.classes),
        "threshold": found.evaluation["threshold"],
    }


def _report_training(run: Run[Any], summary: dict[str, Any]) -> None:
    """Report throughput, peak memory and worker failures."""
    work, workers = run.work, run.settings.workers
    history = summary["history"]
    # The first epoch after a start includes tracing and compiling.
    epochs = history[1:] or history
    if epochs:
        run.throughput |= {
            "images_per_second_per_worker": median(row["images_per_second"] for row in epochs)
            / workers
        }
        for name in ("share_waiting_for_data", "share_all_reduce"):
            shares = [row[name] for row in epochs if row[name] is not None]
            if shares:
                run.throughput[name] = median(shares)
    usage, failures = (
        [
            json.loads(file.read_bytes())
            for file in sorted(work.join(name).files(), key=lambda file: file.uri)
            if file.uri.endswith(".json")  # not an incomplete file of a killed process
        ]
        for name in ("workers", "lost")
    )
    run.details |= {
        "peak_memory_bytes": max(worker["peak_memory_bytes"] for worker in usage),
        "restarts": {"from_epochs": summary["starts"][1:], "lost_workers": failures},
    }
    for failure in failures:
        run.warn(f"workers failed and training resumed from its last checkpoint: {failure}")
