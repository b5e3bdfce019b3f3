"""The sweep job: trains many heads on a store's vectors and ranks them on val; never reads test."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from visao_ray.core import tables
from visao_ray.core.errors import InputError
from visao_ray.core.ray_internals import keep_aws_keys_from_trials
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import Worker, current_cluster, fit_workers
from visao_ray.core.run import Run
from visao_ray.core.waiting import Waiting
from visao_ray.datasets.spec import Dataset
from visao_ray.evaluation.metrics import METRICS
from visao_ray.features.labelled import LabelledVectors, Summary, load_vectors
from visao_ray.models.head import HeadSettings
from visao_ray.reports.sweep import read_sweep_page, write_sweep_report
from visao_ray.store.join import Snapshot, pin, plain_vectors
from visao_ray.store.store import Store
from visao_ray.tuning.follow_up import (
    collect_refits,
    evaluate_class_weights,
    further_trials,
    most_further_trials,
    write_class_weight_curves,
)
from visao_ray.tuning.head_export import export_head
from visao_ray.tuning.importance import importance
from visao_ray.tuning.loaded_sweep import LoadedSweep
from visao_ray.tuning.objective import Criterion, default_objective
from visao_ray.tuning.ranking import choose, ranked, references, report_winner
from visao_ray.tuning.samplers import Fixed, Sampler, Tpe
from visao_ray.tuning.settings import SweepSettings
from visao_ray.tuning.space import propose, read_space
from visao_ray.tuning.trial_results import (
    HISTORY,
    TrialResults,
    history_table,
    trials_schema,
    trials_table,
)

_TRIALS_A_GPU = 8
#: Settings that Tune reads only from the environment.
_TUNE = {
    # Tune's own CSV, JSON and TensorBoard files of every epoch would cost more than the epochs.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's newer terminal output prints tables even with verbose=0.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Tune's handler ends a sweep at Ctrl-C as if it were finished.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune's snapshots of the experiment are not needed: the recorded results replace them.
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
}


def make_sweep(settings: SweepSettings, run: Run[Any]) -> None:
    """Sweep one store; write its tables, the best head and a report.

    Args:
        settings: of the job, with one store.
        run: of the job.

    Raises:
        InputError: a store or vectors that are missing or do not fit the dataset, an objective
            that is undefined on val, a space or settings with which every head fails.
    """
    search(settings, run, None)


def search(settings: SweepSettings, run: Run[Any], heads: Sequence[HeadSettings] | None) -> None:
    """Run the sweep with the given heads, or heads of the space; the first is the default head."""
    started = time.perf_counter()
    space = read_space(settings.space)
    sweep = _load(settings, run)
    summary = sweep.summary
    if heads is None:
        rows = sweep.sample or summary.rows
        images = rows["train"] // (summary.views + 1)
        space = space.fitted(summary.classes, sweep.positive, images, summary.views)
        heads = propose(space, settings.trials, settings.seed)
    sampler: Sampler = Fixed(heads)
    if settings.search == "tpe":
        sampler = Tpe(space, settings.seed, sweep.criterion)
    before = len(sweep.trial_results.read_all())
    with run.timed("search"):
        _tune(run, sweep, sampler, len(heads))
    recorded = sweep.trial_results.read_all()
    results = [recorded[number] for number in range(len(heads))]
    tables.write(run.out.join("trials"), trials_table(results), trials_schema())
    tables.write(run.out.join("history"), history_table(results), HISTORY)
    run.counts |= {
        "trials": len(results),
        "failed": sum(result.status != "ok" for result in results),
    }
    run.throughput["trials_per_minute"] = (len(recorded) - before) / (run.timings["search"] / 60)
    ranking = ranked(results, sweep.criterion)
    if not ranking:
        raise InputError(
            f"all {len(results)} trials failed, the first with: {results[0].error}; see "
            f"{sweep.trial_results.folder.uri}"
        )
    further = [recorded[number] for number in sorted(recorded) if number >= len(heads)]
    refits = collect_refits(run, sweep, results, further)
    write_class_weight_curves(run, sweep, ranking, further)
    final = choose(sweep, ranking, refits)
    export_head(run, sweep, final[0], refits)
    run.details["class_weights"] = evaluate_class_weights(run, sweep, ranking, further)
    report_winner(run, sweep, final, references(ranking, results[0]), refits)
    run.details["importance"] = importance(results, sweep.criterion)
    run.details["seconds"] = time.perf_counter() - started
    page = read_sweep_page(run.out, sweep.dataset, vars(run))
    write_sweep_report(run, f"{sweep.dataset.name}: a sweep of heads", [page])


def open_store(uri: str) -> tuple[Store, Dataset]:
    """Open a store, and return it with its dataset.

    Args:
        uri: of the store.

    Returns:
        The store and the dataset.

    Raises:
        InputError: there is no such store.
    """
    store = Store.open(uri)
    return store, Dataset.from_json(store.description.dataset)


def _load(settings: SweepSettings, run: Run[Any]) -> LoadedSweep:
    import ray

    (uri,) = settings.store
    store, dataset = open_store(uri)  # before Ray starts: typing errors are common
    extractor = store.the_extractor(settings.extractor)
    start_ray()
    resources = _resources(settings.worker())
    snapshot = pin(store, run.id, plain_vectors(extractor), settings.recipe, settings.as_of)
    with run.timed("load"):
        read = ray.remote(_read).options(
            num_returns=3, max_retries=0, **current_cluster().zero_cpu_options
        )
        known, *data = read.remote(snapshot, dataset, settings.rows, settings.seed)
        os.environ |= _TUNE
        import visao_ray.tuning.trainable  # noqa: F401 - takes seconds, while rows are read

        summary, sample = ray.get(known)
    sweep = LoadedSweep(
        settings=settings,
        dataset=dataset,
        extractor=extractor,
        summary=summary,
        data=tuple(data if sample else data[:1]),
        sample=sample,
        resources=resources,
        criterion=_criterion(settings, dataset, summary.classes),
        trial_results=TrialResults(run.out.join("tune", "trials")),
    )
    run.inputs |= {
        **snapshot.to_json(),
        "dataset": dataset.to_json(),
        "extractor": extractor,
        "description": dict(summary.extractor),
        "classes": list(summary.classes),
    }
    run.counts |= {"images": summary.images, "ok": summary.images, "errors": 0}
    run.counts["rows"] = summary.rows
    if sample:
        run.counts["sample"] = sample
    _report_start(run, sweep)
    return sweep


def _read(
    snapshot: Snapshot, dataset: Dataset, images: int | None, seed: int
) -> tuple[tuple[Summary, dict[str, int] | None], LabelledVectors, LabelledVectors]:
    """Return a summary for the driver, the rows of the search, and all rows. Runs in a Ray task.

    The rows of the search are opened here, because trials would detect invalid vectors too late.
    """
    summary, everything = load_vectors(snapshot, dataset)
    search = everything if images is None else everything.sample(images, seed)
    search.open()
    return (summary, None if search is everything else search.rows), search, everything


def _report_start(run: Run[Any], sweep: LoadedSweep) -> None:
    """Describe the search in the run's details, on the terminal and in warnings."""
    settings, summary, criterion = sweep.settings, sweep.summary, sweep.criterion
    of_class = criterion.metric.of_class
    run.details["objective"] = {
        "name": criterion.name,
        "class": summary.classes[criterion.positive] if of_class else None,
        "floor": criterion.floor if "{floor}" in criterion.metric.title else None,
        "text": sweep.objective,
    }
    where = "val" if settings.folds == 1 else f"{settings.folds} grouped folds of train and val"
    run.say(
        f"{sweep.dataset.name}: {summary.rows['train']:,} train and {summary.rows['val']:,} val "
        f"rows of {summary.width} numbers twice, {len(summary.classes)} classes; "
        f"{sweep.objective} on {where} chooses"
    )
    if sweep.sample is not None:
        run.say(
            f"{sweep.dataset.name}: the search sees a sample of whole groups, "
            f"{sweep.sample['train']:,} train and {sweep.sample['val']:,} val rows; the best heads "
            "are then fitted on all train rows and evaluated on all val rows"
        )
    for why, count in summary.left_out.items():
        if count:
            run.warn(f"{count:,} images {why}: they are left out")
    if summary.untrained:
        run.warn(
            f"{len(summary.untrained)} classes of val have no train image "
            f"({', '.join(summary.untrained[:5])}, …): no head can know them"
        )


def _criterion(settings: SweepSettings, dataset: Dataset, classes: tuple[str, ...]) -> Criterion:
    metric = METRICS[settings.objective or default_objective(len(classes))]
    wanted = settings.objective_class or dataset.positive_among(classes)
    if settings.objective_class is not None and settings.objective_class not in classes:
        raise InputError(
            f"--objective-class {settings.objective_class}: is no class of this store "
            f"({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"
        )
    if metric.of_class and wanted is None:
        raise InputError(
            f"--objective {metric.name} needs --objective-class for dataset {dataset.name}"
        )
    if len(classes) < metric.fewest_to_rank:
        raise InputError(f"--objective {metric.name}: there are {len(classes)} classes only")
    positive = classes.index(wanted) if wanted is not None else 0
    return Criterion(metric.name, positive, settings.precision_floor)


def _tune(run: Run[Any], sweep: LoadedSweep, sampler: Sampler, trials: int) -> None:
    """Run the trials that have not ended yet, and the further trials of the finalists."""
    settings = sweep.settings
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(settings.max_concurrent_trials)
    from ray import tune

    from visao_ray.tuning.ordered_searcher import MOST_LOSSES, OrderedSearcher
    from visao_ray.tuning.progress import Progress
    from visao_ray.tuning.trainable import HeadTrainable, SweepSpec

    keep_aws_keys_from_trials()
    positive = sweep.positive
    spec = SweepSpec(
        dataset=sweep.dataset,
        seed=settings.seed,
        epochs=settings.epochs,
        patience=settings.patience,
        criterion=sweep.criterion,
        positive=sweep.summary.classes.index(positive) if positive else None,
        has_class=bool(
            settings.objective_class or sweep.dataset.positive_among(sweep.summary.classes)
        ),
        folds=settings.folds,
        summary=sweep.summary,
        extractor=sweep.extractor,
        trial_results=sweep.trial_results.folder,
        tensorboard=run.out.join("tensorboard"),
    )
    trainable = tune.with_resources(
        tune.with_parameters(HeadTrainable, data=sweep.data, spec=spec),
        sweep.resources,
    )
    searcher = OrderedSearcher(
        trials,
        settings.max_concurrent_trials,
        settings.reduction_factor,
        settings.epochs,
        sweep.criterion,
        sampler,
        lambda results: further_trials(sweep, results),
        sweep.trial_results,
    )
    if searcher.finished():
        return
    folder = run.out.join("tune")
    # Files of an earlier start of this run are not needed: the recorded results replace them.
    folder.join("search").delete()
    start = f"[{settings.job}] {sweep.dataset.name}: "
    progress = Progress(start, sweep.criterion, trials, sweep.trial_results, searcher.ended)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            # An upper bound: the searcher ends the sweep.
            num_samples=MOST_LOSSES * (trials + most_further_trials(settings)),
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            # The searcher starts lost trials again, not Tune.
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[progress],
        ),
    )
    with progress, Waiting(run.say):
        tuner.fit()


def _name(trial: Any) -> str:
    """Name of a trial in Tune's logs and folders: its number, as in tables and reports."""
    return f"trial_{trial.config['number']}"


def _resources(worker: Worker) -> dict[str, float]:
    """Resources of a trial: one CPU, and a share of a GPU if the cluster has any.

    Raises:
        InputError: the cluster can never hold a trial.
    """
    cluster = current_cluster()
    gpus = worker.gpus
    if gpus is None:
        there = cluster.total("GPU")
        gpus = 1 / max(1, min(_TRIALS_A_GPU, cluster.total("CPU") // there)) if there else 0.0
    worker = fit_workers(1, Worker(gpus, worker.memory, worker.resources), cluster)
    return {"CPU": 1, **worker.request()}
