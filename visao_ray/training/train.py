"""The train job: any family of models, on any number of workers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import pyarrow.dataset as pads

from visao_ray import tables
from visao_ray.bases.manifest import check_errors
from visao_ray.core.waiting import Waiting
from visao_ray.datasets.registry import find_dataset
from visao_ray.datasets.spec import Dataset
from visao_ray.errors import InputError
from visao_ray.evaluation.inference import predict
from visao_ray.evaluation.judge import judge_run
from visao_ray.features.pipeline import check_source, list_images
from visao_ray.models import saved
from visao_ray.resources import Worker, fit_actors, fit_workers, look
from visao_ray.runs import Run, muted_stderr, start_ray, to_json
from visao_ray.settings import TrainSettings
from visao_ray.storage import Location, locate
from visao_ray.training.checked import check_images
from visao_ray.training.progress import telling

_CHECK_S = "0.5"  # how often Ray Train looks after its workers, in seconds


@dataclass(frozen=True)
class Share:
    """What each worker takes of the cluster, and `light`: the options of tasks beside them."""

    worker: Worker
    cpus: float
    loaders: int
    light: Mapping[str, Any]

    def resources(self) -> dict[str, float]:
        """By Ray Train's names."""
        return {"CPU": self.cpus, **self.worker.request()}


def train_model(settings: TrainSettings, run: Run[Any]) -> None:
    """The train job: writes the model, its predictions or embeddings, and what it was like.

    Raises:
        InputError: data, settings and cluster do not fit, before training begins; training
            diverged.
    """
    dataset = find_dataset(settings.dataset)
    _check(settings, dataset)
    start_ray()
    share = _share(settings)
    source, rows, plan = _prepare(settings, dataset, run, share)
    trained = run.work.join("trained")

    def fit() -> None:
        if settings.family == "svm":
            from visao_ray.training.grid import search_svm

            search_svm(run, plan, rows)
        else:
            _fit(run, plan, rows, share)

    run.once("train", fit)
    summary = json.loads(trained.join("summary.json").read_bytes())
    model = run.out.join("model.keras")
    exported = run.work.join("exported.json")

    def export_model() -> None:
        exported.write_bytes(to_json(_export(trained, model, run.out.join("savedmodel"), share)))

    run.once("export", export_model)
    about = saved.read_about(saved.read(model), model.uri)
    covered = predict(run, source, model, about, fit_actors(None, share.worker, look()))
    run.counts["errors"] += sum(covered.errors.values())
    run.counts["ok"] = run.counts["images"] - run.counts["errors"]
    evaluation = judge_run(
        run,
        about,
        target=settings.target_recall,
        seed=settings.seed,
        replicates=settings.replicates,
    )
    run.counts["by_split"] = evaluation["counts"]
    run.details |= {
        "model": about.name,
        "classes": list(about.classes),
        "threshold": evaluation["threshold"],
        "export": json.loads(exported.read_bytes()),
        **{name: value for name, value in summary.items() if name != "starts"},
    }
    if settings.family != "svm":
        _tell_training(run, summary)


def _check(settings: TrainSettings, dataset: Dataset) -> None:
    """Check everything that can be checked before Ray starts."""
    if settings.monitor == "auc" and len(dataset.classes) != 2:
        raise InputError(
            f"--monitor auc is for datasets of two classes, and {dataset.name} has others; "
            "choose loss or accuracy"
        )
    if settings.features is not None:
        schema = tables.open_table(locate(settings.features), "features").schema
        features = tables.about(schema)
        width = schema.field("avg").type.list_size
    else:
        check_source(settings, dataset, settings.manifest)
    if settings.head is not None:
        where = f"--head {settings.head}"
        about = saved.read_about(saved.read(locate(settings.head)), where)
        if about.takes != "features" or not about.classes:
            raise InputError(f"{where}: is a model of family {about.family}, not a head")
        if settings.features is not None:
            about.check_features(dataset, width, features, where)


def _share(settings: TrainSettings) -> Share:
    """Fit the workers to the cluster; cores that they do not need load images for them.

    Raises:
        InputError: the cluster can never hold them.
    """
    cluster = look()
    worker = fit_workers(settings.workers, settings.worker(), cluster)
    each = cluster.total("CPU") / settings.workers
    loaders = max(1, math.floor(each) - 1)
    return Share(worker, min(1.0, each / 2), loaders, cluster.light)


def _prepare(
    settings: TrainSettings, dataset: Dataset, run: Run[Any], share: Share
) -> tuple[Location, Any, Any]:
    """Where rows to predict lie, a reference to the train and val Rows, and the plan."""
    import ray

    from visao_ray.training.preparation import prepare_features, prepare_images

    run.inputs["dataset"] = dataset.to_json()
    if settings.features is not None:
        source = locate(settings.features)
        task = ray.remote(prepare_features).options(num_returns=2, **share.light)
        with run.timed("prepare"):
            plan_ref, rows = task.remote(settings, dataset, run.out)
            plan, summary = ray.get(plan_ref)
        run.inputs |= {"features": source.uri, "about": summary.about}
        # Those of test too: they are predicted at the end.
        table = tables.open_table(source, "features")
        images = table.count_rows(filter=pads.field("view") == 0)
        run.counts |= {"images": images, "ok": images, "errors": 0, "rows": summary.rows}
    else:
        manifest = list_images(settings, dataset, settings.manifest, run)
        run.inputs["manifest"] = manifest.uri
        with run.timed("check"):
            source = check_images(run, dataset.name, manifest)
        check_errors(run, settings.max_errors)
        task = ray.remote(prepare_images).options(num_returns=2, **share.light)
        with run.timed("prepare"):
            plan_ref, rows = task.remote(settings, dataset, source, run.out, share.loaders)
            plan, warning = ray.get(plan_ref)
        if warning:
            run.warn(warning)
    return source, rows, plan


def _fit(run: Run[Any], plan: Any, rows: Any, share: Share) -> None:
    """Start the workers and tell of every epoch; lost workers go on from the last checkpoint."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _CHECK_S)
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    with muted_stderr():  # Ray Train imports TensorFlow here too, which tells of its CPU
        from ray.train.tensorflow import TensorflowTrainer

    from visao_ray.training.lost import LostWorkers

    settings: TrainSettings = plan.settings
    checkpoints = run.out.join("checkpoints")
    trainer = TensorflowTrainer(
        _work,
        train_loop_config={"plan": plan, "rows": [rows]},
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
            callbacks=[LostWorkers(plan.work.join("lost"))],
        ),
    )
    run.say(
        f"{settings.family} on {settings.workers} {'GPU' if share.worker.gpus else 'CPU'} "
        f"worker{'s' if settings.workers > 1 else ''}, {settings.batch_size} rows a step; "
        f"val {settings.monitor} picks the epoch"
    )
    with telling(run, plan.work.join("epochs")), Waiting(run.say):
        trainer.fit()
    diverged = plan.work.join("diverged.txt")
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

    task = ray.remote(export).options(**share.light)
    found: dict[str, Any] = ray.get(task.remote(trained, model, savedmodel))
    return found


def _tell_training(run: Run[Any], summary: dict[str, Any]) -> None:
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
