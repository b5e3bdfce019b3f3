"""The sweep job: trains many heads on a store's vectors and ranks them on val; never reads test."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visao_ray.core import tables
from visao_ray.core.errors import InputError
from visao_ray.core.ray_internals import keep_aws_keys_from_trials
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import Worker, current_cluster, fit_workers
from visao_ray.core.run import Run
from visao_ray.core.storage import Location
from visao_ray.core.waiting import Waiting
from visao_ray.datasets.spec import Dataset
from visao_ray.evaluation.metrics import METRICS
from visao_ray.features.labelled import LabelledVectors, Summary, load_vectors
from visao_ray.models.head import HeadSettings
from visao_ray.reports.sweep import SweepPage, describe_head, sweep_report
from visao_ray.store.join import Snapshot, pin, plain_vectors
from visao_ray.store.store import Store
from visao_ray.tuning.finalists import evaluate_on_folds, evaluate_on_val
from visao_ray.tuning.importance import importance
from visao_ray.tuning.objective import Criterion, default_objective
from visao_ray.tuning.samplers import Fixed, Sampler, Tpe
from visao_ray.tuning.settings import SweepSettings
from visao_ray.tuning.space import propose, read_space
from visao_ray.tuning.trial_results import (
    CLASS_WEIGHT_CURVES,
    HISTORY,
    TrialResult,
    TrialResults,
    class_weight_curves_table,
    history_table,
    refits_schema,
    refits_table,
    trials_schema,
    trials_table,
)

_TRIALS_A_GPU = 8
_TOP = 5
_CURVE_FINALISTS = 3  # finalists that get class-weight curves
_FACTORS = (1.0, 2.0, 4.0, 8.0)
_ABLATION_FINALISTS = (
    2  # finalists that are trained with every class weight, where there are many classes
)
_WEIGHTS = ("none", "root", "effective", "balanced")
_REPLICATES = 1000
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


@dataclass(frozen=True)
class _Sweep:
    """A sweep whose rows are known.

    Attributes:
        extractor: name of the vectors.
        data: references to the LabelledVectors of the search, and to all where those are a sample.
        sample: rows of the search by split, where they are a sample.
        resources: of a trial, by Ray's names.
    """

    settings: SweepSettings
    dataset: Dataset
    extractor: str
    summary: Summary
    data: tuple[Any, ...]
    sample: dict[str, int] | None
    resources: dict[str, float]
    criterion: Criterion
    trial_results: TrialResults

    @property
    def positive(self) -> str | None:
        """The class that must not be missed, where there are two."""
        classes = self.summary.classes
        return self.dataset.positive_among(classes) if len(classes) == 2 else None


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
    found = [recorded[number] for number in range(len(heads))]
    tables.write(run.out.join("trials"), trials_table(found), trials_schema())
    tables.write(run.out.join("history"), history_table(found), HISTORY)
    run.counts |= {
        "trials": len(found),
        "failed": sum(result.status != "ok" for result in found),
    }
    run.throughput["trials_per_minute"] = (len(recorded) - before) / (run.timings["search"] / 60)
    ranked = _ranked(found, sweep.criterion)
    if not ranked:
        raise InputError(
            f"all {len(found)} trials failed, the first with: {found[0].error}; see "
            f"{sweep.trial_results.folder.uri}"
        )
    further = [recorded[number] for number in sorted(recorded) if number >= len(heads)]
    refits = _pair_refits(run, sweep, found, further)
    _write_class_weight_curves(run, sweep, found, further)
    final = _choose(sweep, ranked, refits)
    _keep_winner(run, sweep, final[0], refits)
    run.details["class_weights"] = _evaluate_class_weights(run, sweep, ranked, further)
    _tell_winner(run, sweep, final, _references(ranked, found[0]), refits)
    run.details["importance"] = importance(found, sweep.criterion)
    run.details["seconds"] = time.perf_counter() - started
    page = sweep_page(run.out, sweep.dataset, vars(run))
    write_report(run, f"{sweep.dataset.name}: a sweep of heads", [page])


def sweep_page(out: Location, dataset: Dataset, result: Mapping[str, Any]) -> SweepPage:
    """What the report shows of a sweep, from the tables below `out` and its result.json."""
    classes, counts, details = result["inputs"]["classes"], result["counts"], result["details"]
    class_weight_curves, refits = out.join("class_weight_curves"), out.join("refits")
    objective = details["objective"]["name"]
    return SweepPage(
        dataset=dataset.name,
        objective=details["objective"]["text"],
        objective_mode="max" if METRICS[objective].greater_is_better else "min",
        trials=tables.open_table(out.join("trials"), "trials").to_table(),
        history=tables.open_table(out.join("history"), "history").to_table(),
        finalists=details["finalists"],
        importance=details["importance"],
        class_weight_curves=tables.open_table(class_weight_curves, "class_weight_curves").to_table()
        if tables.rows(class_weight_curves)
        else None,
        class_weights=details["class_weights"],
        metrics=result["metrics"]["val"],
        positive=dataset.positive_among(classes) if len(classes) == 2 else None,
        classes=len(classes),
        counts={"images": counts["images"], **counts["rows"]},
        sample=counts.get("sample"),
        refits=tables.open_table(refits, "refits").to_table() if tables.rows(refits) else None,
        seconds=details["seconds"],
        warnings=result["warnings"],
    )


def write_report(run: Run[Any], title: str, pages: Sequence[SweepPage]) -> None:
    """Write `report.html`."""
    report = run.out.join("report.html")
    report.write_bytes(sweep_report(title, run.command, pages, run.warnings).encode())
    run.say(f"report: {report.uri}")


def describe(uri: str) -> tuple[Store, Dataset]:
    """A store, and the dataset that it is for.

    Raises:
        InputError: there is no such store.
    """
    store = Store.open(uri)
    return store, Dataset.from_json(store.description.dataset)


def _load(settings: SweepSettings, run: Run[Any]) -> _Sweep:
    import ray

    (uri,) = settings.store
    store, dataset = describe(uri)  # before Ray: it is often mistyped
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
        import visao_ray.tuning.trainable  # noqa: F401 - seconds of imports, while rows are read

        summary, sample = ray.get(known)
    sweep = _Sweep(
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
    _tell_start(run, sweep)
    return sweep


def _read(
    snapshot: Snapshot, dataset: Dataset, images: int | None, seed: int
) -> tuple[tuple[Summary, dict[str, int] | None], LabelledVectors, LabelledVectors]:
    """What the driver needs, the rows of the search and all rows; those of the search are opened.

    Trials would find what is wrong with the vectors too late.
    """
    summary, everything = load_vectors(snapshot, dataset)
    search = everything if images is None else everything.sample(images, seed)
    search.open()
    return (summary, None if search is everything else search.rows), search, everything


def _tell_start(run: Run[Any], sweep: _Sweep) -> None:
    """What is searched on what, in details, on the terminal and in warnings."""
    settings, summary, criterion = sweep.settings, sweep.summary, sweep.criterion
    objective = criterion.describe(summary.classes)
    of_class = criterion.metric.of_class
    run.details["objective"] = {
        "name": criterion.name,
        "class": summary.classes[criterion.positive] if of_class else None,
        "floor": criterion.floor if "{floor}" in criterion.metric.title else None,
        "text": objective,
    }
    where = "val" if settings.folds == 1 else f"{settings.folds} grouped folds of train and val"
    run.say(
        f"{sweep.dataset.name}: {summary.rows['train']:,} train and {summary.rows['val']:,} val "
        f"rows of {summary.width} numbers twice, {len(summary.classes)} classes; "
        f"{objective} on {where} chooses"
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


def _tune(run: Run[Any], sweep: _Sweep, sampler: Sampler, trials: int) -> None:
    """Run the trials that have not ended yet, and those that the finalists ask for."""
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
    order = OrderedSearcher(
        trials,
        settings.max_concurrent_trials,
        settings.reduction_factor,
        settings.epochs,
        sweep.criterion,
        sampler,
        lambda found: _further(sweep, found),
        sweep.trial_results,
    )
    if order.finished():
        return
    folder = run.out.join("tune")
    # Files of an earlier start of this run are not needed: the recorded results replace them.
    folder.join("search").delete()
    start = f"[{settings.job}] {sweep.dataset.name}: "
    progress = Progress(start, sweep.criterion, trials, sweep.trial_results, order.ended)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=order,
            num_samples=MOST_LOSSES
            * (trials + _most_further(settings)),  # at most; `order` ends it
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
            failure_config=tune.FailureConfig(max_failures=0),  # `order` hands out what was lost
            callbacks=[progress],
        ),
    )
    with progress, Waiting(run.say):
        tuner.fit()


def _name(trial: Any) -> str:
    """A trial's name in Tune's logs and folders: its number, as in tables and reports."""
    return f"trial_{trial.config['number']}"


def _most_further(settings: SweepSettings) -> int:
    """The most trials that the finalists can ask for."""
    again = settings.finalists + 3  # the winner and the references too
    return again + max(_CURVE_FINALISTS * len(_FACTORS), _ABLATION_FINALISTS * len(_WEIGHTS))


def _further(sweep: _Sweep, found: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """Further trials of the finalists: refits, class-weight curves, class-weight ablation."""
    ranked = _ranked(found, sweep.criterion)
    if not ranked:
        return []
    same = {"holdout": True}  # trained on train, evaluated on val
    configs: list[dict[str, Any]] = [
        {**same, "all_rows": True, "head": one.head, "seed_of": one.number}
        for one in _to_refit(sweep, ranked, found[0])
    ]
    for finalist, factor in _curve_trials(sweep, ranked):
        head = {**finalist.head, "class_weight": {sweep.positive: factor}}
        configs.append({**same, "head": head, "seed_of": finalist.number, "curve": True})
    for finalist, weight in _ablation_trials(sweep, ranked):
        head = {**finalist.head, "class_weight": weight}
        configs.append({**same, "head": head, "seed_of": finalist.number})
    return configs


def _references(ranked: Sequence[TrialResult], default: TrialResult) -> dict[str, TrialResult]:
    """The trials that finalists are compared with."""
    median = {"median": ranked[len(ranked) // 2]}
    return {"default": default, **median} if default.status == "ok" else median


def _to_refit(
    sweep: _Sweep, ranked: Sequence[TrialResult], default: TrialResult
) -> list[TrialResult]:
    """Trials whose heads are fitted anew on all train rows.

    After a search on a sample: the finalists, and what they are compared with. After one on folds:
    the winner.
    """
    if sweep.sample is None:
        return list(ranked[: sweep.settings.folds > 1])
    finalists = sweep.settings.finalists
    chosen = list(ranked[: max(1, finalists)])
    chosen += _references(ranked, default).values() if finalists else []
    return list({one.number: one for one in chosen}.values())


def _pair_refits(
    run: Run[Any], sweep: _Sweep, found: Sequence[TrialResult], further: Sequence[TrialResult]
) -> dict[int, TrialResult]:
    """Number of a trial of the search to how its head did on all rows; `refits` tells them."""
    ranked = _ranked(found, sweep.criterion)
    searched = _to_refit(sweep, ranked, found[0])
    refits = {one.number: again for one, again in zip(searched, further, strict=False)}
    for number, again in refits.items():
        if again.status != "ok":
            run.warn(f"trial {number} could not be fitted on all train rows: {again.error}")
    if sweep.sample is not None:
        tables.write(run.out.join("refits"), refits_table(refits), refits_schema())
    return {number: again for number, again in refits.items() if again.status == "ok"}


def _choose(
    sweep: _Sweep, ranked: Sequence[TrialResult], refits: Mapping[int, TrialResult]
) -> list[TrialResult]:
    """The heads by which val chooses, best first: as searched, or as fitted on all rows.

    Raises:
        InputError: none could be fitted on all rows.
    """
    if sweep.sample is None:
        return list(ranked)
    if not refits:
        raise InputError("no head could be fitted on all train rows; see the warnings above")
    return _ranked(list(refits.values()), sweep.criterion)


def _ablation_trials(sweep: _Sweep, ranked: Sequence[TrialResult]) -> list[tuple[TrialResult, str]]:
    """Finalists and the class weights that they are trained with anew, all else being equal."""
    if sweep.positive is not None or not sweep.settings.finalists:
        return []
    return [(one, weight) for one in ranked[:_ABLATION_FINALISTS] for weight in _WEIGHTS]


def _curve_trials(sweep: _Sweep, ranked: Sequence[TrialResult]) -> list[tuple[TrialResult, float]]:
    if sweep.positive is None or not sweep.settings.finalists:
        return []
    finalists = [one for one in ranked if one.head["kind"] != "svm"]  # it takes no class weights
    count = min(_CURVE_FINALISTS, sweep.settings.finalists)
    return [(one, factor) for one in finalists[:count] for factor in _FACTORS]


def _resources(worker: Worker) -> dict[str, float]:
    """What a trial takes: a CPU, and a share of a GPU where the cluster has any.

    Raises:
        InputError: the cluster can never hold one.
    """
    cluster = current_cluster()
    gpus = worker.gpus
    if gpus is None:
        there = cluster.total("GPU")
        gpus = 1 / max(1, min(_TRIALS_A_GPU, cluster.total("CPU") // there)) if there else 0.0
    worker = fit_workers(1, Worker(gpus, worker.memory, worker.resources), cluster)
    return {"CPU": 1, **worker.request()}


def _ranked(found: Sequence[TrialResult], criterion: Criterion) -> list[TrialResult]:
    """The trials that succeeded, best first; the earlier one first where they are equal."""
    sign = 1 if criterion.lower_is_better else -1
    succeeded = [result for result in found if result.status == "ok"]
    return sorted(succeeded, key=lambda one: (sign * one.objective, one.number))


def _write_class_weight_curves(
    run: Run[Any], sweep: _Sweep, found: Sequence[TrialResult], further: Sequence[TrialResult]
) -> None:
    """The curves of the finalists' further trials as a table."""
    pairs = _curve_trials(sweep, _ranked(found, sweep.criterion))
    if not pairs:
        return
    tried = further[len(further) - len(pairs) :]
    curves = [
        (finalist.number, factor, result)
        for (finalist, factor), result in zip(pairs, tried, strict=True)
        if result.status == "ok"
    ]
    tables.write(
        run.out.join("class_weight_curves"), class_weight_curves_table(curves), CLASS_WEIGHT_CURVES
    )


def _keep_winner(
    run: Run[Any], sweep: _Sweep, winner: TrialResult, refits: Mapping[int, TrialResult]
) -> None:
    """Write the best head, and its settings as jobs/train.py takes them.

    Raises:
        InputError: it was evaluated on folds, and could not be trained on train with val.
    """
    kept = refits.get(winner.number, winner)
    head = sweep.trial_results.head(kept.number)
    if sweep.settings.folds > 1 and not head.exists():
        raise InputError("the winner could not be trained on train alone; see the warnings above")
    run.out.join("head.keras").write_bytes(head.read_bytes())
    run.out.join("head.toml").write_bytes(_train_settings(sweep, winner).encode())


def _train_settings(sweep: _Sweep, winner: TrialResult) -> str:
    """The settings of jobs/train.py that fit the winner's head again."""
    head, settings = winner.head, sweep.settings
    values: dict[str, Any] = {
        "store": settings.store[0],
        "extractor": sweep.extractor,
        "seed": settings.seed,
        "pool": head["pool"],
    }
    values |= {} if settings.recipe is None else {"recipe": settings.recipe}
    values |= {} if head["views"] is None else {"views": head["views"]}
    if head["kind"] == "svm":
        values |= {"family": "svm", "svm_c": [head["c"]], "svm_gamma": [head["gamma"]]}
    else:
        names = ["standardise", "layers", "units", "activation", "dropout", "l1", "l2"]
        names += ["optimizer", "learning_rate", "schedule", "batch_size", "label_smoothing"]
        names += ["class_weight"]
        values |= {"family": "head", "epochs": settings.epochs, "patience": settings.patience}
        values |= {name: head[name] for name in names}
        if values["schedule"] == "constant":
            values["reduce_patience"] = settings.epochs
        if head["kind"] == "logistic":  # scikit-learn's penalty of the sum, as one of the mean
            rows = sweep.summary.rows["train"]
            values |= {"standardise": True, "layers": 0, "dropout": 0.0, "l1": 0.0}
            values["l2"] = float(f"{1 / (2 * head['c'] * rows):.4g}")
    lines = [f"# python jobs/train.py --settings head.toml --out …   (trial {winner.number})"]
    lines += [f"{name} = {_toml(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _tell_winner(
    run: Run[Any],
    sweep: _Sweep,
    final: Sequence[TrialResult],
    references: Mapping[str, TrialResult],
    refits: Mapping[int, TrialResult],
) -> None:
    """Finalists with intervals, and how the winner compares, in details and on the terminal.

    Args:
        final: see `_choose`.
        references: trials of the search that they are compared with.
        refits: by number of a trial of the search, how its head did on all rows.
    """
    settings, criterion, val = sweep.settings, sweep.criterion, sweep.summary.rows["val"]
    if sweep.sample is not None:
        references = {
            name: refits[one.number] for name, one in references.items() if one.number in refits
        }
    searched = {again.number: number for number, again in refits.items()}
    finalists = list(final[: settings.finalists])
    standings: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {
        name: {
            "value": value if np.isfinite(value) else None,
            "low": None,
            "high": None,
            "n": val if np.isfinite(value) else 0,
        }
        for name, value in final[0].metrics.items()
    }
    if finalists and sweep.sample is None and settings.folds > 1:
        standings = evaluate_on_folds(finalists, dict(references), criterion, sweep.summary.images)
    elif finalists:
        standings, evaluated = _evaluate(run, sweep, sweep.data[-1], finalists, references)
        metrics |= evaluated
    run.metrics["val"] = metrics
    by_number = {result.number: result for result in final}
    run.details["finalists"] = [
        {
            "settings": by_number[one["trial"]].head,
            "n": val,
            **one,
            "trial": searched.get(one["trial"], one["trial"]),
        }
        for one in standings
    ]
    reported = {"winner": final[0], "default": references.get("default")}
    run.details |= {
        name: _summary(one, searched.get(one.number, one.number)) if one else None
        for name, one in reported.items()
    }
    _print_best(run, sweep, final, searched)
    for one in standings[:1]:
        run.say(
            f"{sweep.dataset.name}: {criterion.describe(sweep.summary.classes)} of trial "
            f"{searched.get(one['trial'], one['trial'])} is "
            + "; ".join(
                f"{what} {_interval(one[name], sign)}"
                for name, what, sign in (
                    ("objective", "", ""),
                    ("over_default", "over the default", "+"),
                    ("over_median", "over the median trial", "+"),
                )
                if name in one
            ).strip()
        )


def _print_best(
    run: Run[Any], sweep: _Sweep, final: Sequence[TrialResult], searched: Mapping[int, int]
) -> None:
    criterion = sweep.criterion
    fitted = "" if sweep.sample is None else ", fitted on all rows"
    run.say(
        f"{sweep.dataset.name}: best {min(_TOP, len(final))} of {run.counts['trials']} "
        f"trials{fitted}:"
    )
    names = [criterion.name, *(name for name in METRICS if name != criterion.name)][:5]
    print("   trial " + " ".join(f"{name:>19}" for name in names) + "  epoch  head")
    for result in final[:_TOP]:
        values = " ".join(f"{result.metrics[name]:19.4f}" for name in names)
        number, head = searched.get(result.number, result.number), describe_head(result.head)
        print(f"   {number:5d} {values}  {result.epoch:5d}  {head}", flush=True)


def _evaluate_class_weights(
    run: Run[Any], sweep: _Sweep, ranked: Sequence[TrialResult], further: Sequence[TrialResult]
) -> list[dict[str, Any]]:
    """What class weights do to finalists at the same budget: objective, and lead over none."""
    pairs = _ablation_trials(sweep, ranked)
    tried = further[len(further) - len(pairs) :]
    found = []
    for finalist in ranked[: _ABLATION_FINALISTS if pairs else 0]:
        by_weight = {
            weight: result
            for (other, weight), result in zip(pairs, tried, strict=True)
            if other is finalist and result.status == "ok"
        }
        if "none" not in by_weight:
            continue
        standings, _ = _evaluate(
            run,
            sweep,
            sweep.data[0],
            list(by_weight.values()),
            {"none": by_weight["none"]},
            every_metric=False,
        )
        found += [
            {**standing, "trial": finalist.number, "class_weight": weight}
            for weight, standing in zip(by_weight, standings, strict=True)
        ]
    for one in found:
        if one["class_weight"] != "none":
            run.say(
                f"{sweep.dataset.name}: trial {one['trial']} with class weights "
                f"{one['class_weight']}: "
                f"{sweep.criterion.describe(sweep.summary.classes)} "
                f"{_interval(one['objective'], '')}; over none {_interval(one['over_none'], '+')}"
            )
    return found


def _evaluate(
    run: Run[Any],
    sweep: _Sweep,
    data: Any,
    finalists: Sequence[TrialResult],
    references: Mapping[str, TrialResult],
    every_metric: bool = True,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """`evaluate_on_val` in a Ray task: the driver never holds vectors."""
    import ray

    with run.timed("evaluate"):
        evaluated = ray.remote(evaluate_on_val).remote(
            [data],
            sweep.dataset,
            sweep.summary.classes,
            sweep.trial_results,
            [one.number for one in finalists],
            {name: one.number for name, one in references.items()},
            sweep.criterion,
            every_metric,
            _REPLICATES,
            sweep.settings.seed,
        )
        found: tuple[list[dict[str, Any]], dict[str, Any]] = ray.get(evaluated)
    return found


def _summary(result: TrialResult, trial: int) -> dict[str, Any]:
    return {
        "trial": trial,
        "epoch": result.epoch,
        "settings": result.head,
        "objective": result.objective,
        "metrics": result.metrics,
    }


def _interval(entry: dict[str, Any], sign: str) -> str:
    if entry["value"] is None:
        return "undefined"
    if entry["low"] is None:
        return f"{entry['value']:{sign}.4f}"
    return f"{entry['value']:{sign}.4f} ({entry['low']:{sign}.4f} to {entry['high']:{sign}.4f})"
