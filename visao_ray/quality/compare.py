"""The compare job: models on the same images, with tests of their differences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visao_ray.core import tables
from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import current_cluster, fit_actors, remotely
from visao_ray.core.run import Run
from visao_ray.core.storage import Location
from visao_ray.evaluation.classification import classification_metrics
from visao_ray.evaluation.comparison import MetricMeasure, Standing, compare
from visao_ray.evaluation.evaluate import predict_labelled
from visao_ray.evaluation.inference import check_model, find_vectors, open_model, table_name
from visao_ray.evaluation.metrics import METRICS
from visao_ray.evaluation.paired import McNemar, holm, mcnemar
from visao_ray.inference.engines.base import EngineFactory
from visao_ray.inference.engines.keras import KerasModel
from visao_ray.quality.settings import CompareSettings
from visao_ray.quality.timings import Timing, choose_sample, find_networks, measure_all
from visao_ray.reports.compare import ComparePage, Missed, write_compare
from visao_ray.store.join import Examples, Snapshot, pin, read_examples
from visao_ray.store.mapped import TableRows, VectorFile
from visao_ray.store.store import Store

_SHOWN = 12  # images on the page that all models miss, or only one
_MOST_VALUES = 30  # values of a column by which results are listed

IMAGES = tables.named_schema(
    "images",
    [
        ("key", pa.string()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("predicted", pa.list_(pa.string())),
        ("probability", pa.list_(pa.float32())),
        ("wrong", pa.int32()),
    ],
)

Matrices = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Pairing:
    """Two models on the same images.

    Attributes:
        first: number of the first model.
        second: number of the second model.
        test: test of McNemar.
        p_holm: its probability, corrected for the number of pairs.
        disagree: share of images with different predictions.
    """

    first: int
    second: int
    test: McNemar
    p_holm: float
    disagree: float


@dataclass(frozen=True)
class Compared:
    """What was found, for the driver.

    Attributes:
        images: number of images that all models predicted.
        left_out: number of labelled images that some model has not predicted.
        metrics: figures of each model.
        standings: the metric of each model, and its lead over every other one.
        pairs: every pair of models.
        all_wrong: number of images on which all models are wrong.
        one_wrong: number of images on which only this model is wrong, for each model.
        by: value of the column, number of images, and the metric of each model.
        missed: images to look at.
    """

    images: int
    left_out: int
    metrics: list[dict[str, Any]]
    standings: list[Standing]
    pairs: list[Pairing]
    all_wrong: int
    one_wrong: list[int]
    by: list[tuple[str, int, list[dict[str, Any]]]]
    missed: tuple[Missed, ...]


def compare_models(settings: CompareSettings, run: Run[Any]) -> None:
    """Run the compare job.

    Args:
        settings: settings of the job.
        run: the run.

    Raises:
        InputError: no such store, model, metric or column; models of different classes.
    """
    metric = METRICS.find(settings.metric, "--metric")  # before models are read
    store = Store.open(settings.store)
    models = [open_model(uri, settings.batch_size) for uri in settings.models]
    _check(models, settings, store)
    start_ray()
    pool = fit_actors(settings.workers, settings.worker(), current_cluster())
    snapshot = pin(store, run.id, results=None, as_of=settings.as_of)
    split = "test" if settings.test else "val"
    networks = _networks(models, settings, run)  # before images are predicted
    predicted = [predict_labelled(run, snapshot, model, pool, (split,))[0] for model in models]
    names = _names(models)
    timings = _measure(run, models, networks, snapshot, split, settings)
    with run.timed("compare"):
        found = remotely(compare_task, predicted, models, names, split, settings, run.out)
    title = metric.title.format(positive=_positive(models[0]), floor="0.90")
    sizes = [len(model.at.read_bytes()) for model in models]
    _report(run, settings, found, models, sizes, names, split, title)
    for name, measured in zip(names, timings, strict=True):
        run.details["models"][name]["timings"] = [asdict(timing) for timing in measured]
    run.inputs = {
        "store": store.uri,
        "dataset": models[0].model_metadata.dataset.to_json(),
        "models": {name: model.at.uri for name, model in zip(names, models, strict=True)},
        "versions": {
            name: version
            for one in predicted
            for name, version in one.to_json()["versions"].items()
        },
    }
    page = ComparePage(
        dataset=models[0].model_metadata.dataset.name,
        store=store.uri,
        split=split,
        metric=title,
        names=names,
        sizes=sizes,
        compared=run.details,
        metrics=found.metrics,
        images=found.images,
        left_out=found.left_out,
        column=settings.by,
        missed=found.missed,
        command=run.command,
    )
    with run.timed("page"):
        remotely(write_compare, page, run.out.join("compare.html"))
    run.say(f"page: {run.out.join('compare.html').uri}")


def _check(models: Sequence[KerasModel], settings: CompareSettings, store: Store) -> None:
    """Check that the models can be compared on the store, before Ray starts."""
    first = models[0].model_metadata
    for uri, model in zip(settings.models, models, strict=True):
        check_model(model, store, f"--models {uri}")
        classes = model.model_metadata.classes
        if not classes:
            raise InputError(f"--models {uri}: the model ({model.name}) predicts no classes")
        if set(classes) != set(first.classes):
            raise InputError(
                f"--models {uri}: its classes ({', '.join(classes[:5])}) are not those of "
                f"{settings.models[0]} ({', '.join(first.classes[:5])})"
            )
    digests = [model.digest for model in models]
    for place, digest in enumerate(digests):
        if digest in digests[:place]:
            raise InputError(f"--models {settings.models[place]}: the same model is given twice")
    if METRICS[settings.metric].of_class and _positive(models[0]) is None:
        raise InputError(
            f"--metric {settings.metric}: it is computed for the positive class, and dataset "
            f"{first.dataset.name} has none; choose another metric"
        )
    if settings.by and settings.by not in store.images.latest().schema.names:
        raise InputError(
            f"--by {settings.by}: the table images has no such column; it has "
            f"{', '.join(store.images.latest().schema.names)}"
        )


def _networks(
    models: Sequence[KerasModel], settings: CompareSettings, run: Run[Any]
) -> Sequence[EngineFactory | None]:
    """Return the network that makes the vectors of each model, if --timings needs it."""
    if not settings.timings:
        return [None] * len(models)
    found: list[EngineFactory | None] = remotely(
        find_networks, models, settings.weights, settings.batch_size, settings.seed, run.work
    )
    return found


def _measure(
    run: Run[Any],
    models: Sequence[KerasModel],
    networks: Sequence[EngineFactory | None],
    snapshot: Snapshot,
    split: str,
    settings: CompareSettings,
) -> list[list[Timing]]:
    """Measure time and memory of each model if --timings asks for it."""
    if not settings.timings:
        return [[] for _ in models]
    store = Store.open(snapshot.store)
    vectors = [
        None if network is None else find_vectors(model, store, "--models").latest()
        for model, network in zip(models, networks, strict=True)
    ]
    sample = remotely(choose_sample, snapshot, split, settings.timings)
    with run.timed("timings"):
        return measure_all(run, models, networks, vectors, sample)


def _names(models: Sequence[KerasModel]) -> list[str]:
    """Return a name for each model; models of one kind get a part of their digest."""
    names = [model.name for model in models]
    return [
        table_name(model) if names.count(name) > 1 else name
        for name, model in zip(names, models, strict=True)
    ]


def _positive(model: KerasModel) -> str | None:
    metadata = model.model_metadata
    return metadata.dataset.positive_among(metadata.classes)


def compare_task(
    predicted: list[Snapshot],
    models: list[KerasModel],
    names: list[str],
    split: str,
    settings: CompareSettings,
    out: Location,
) -> Compared:
    """Compare the predictions of models and write the table `images`. For a task.

    Args:
        predicted: for each model, the store with its predictions.
        models: the models.
        names: their names.
        split: the split.
        settings: settings of the job.
        out: folder of the run.

    Returns:
        What was found.

    Raises:
        InputError: there is no image that all models have predicted.
    """
    examples = [read_examples(snapshot, (split,)) for snapshot in predicted]
    contents = examples[0].contents
    for other in examples[1:]:
        contents = np.intersect1d(contents, other.contents, assume_unique=True)
    if not len(contents):
        raise InputError(f"{predicted[0].store}: no labelled image of {split} has predictions")
    labelled = len(read_examples(_without_results(predicted[0]), (split,)))
    rows = examples[0].take(np.flatnonzero(np.isin(examples[0].contents, contents)))
    classes = list(models[0].model_metadata.classes)
    names_of_labels = rows.labels.dictionary_decode().to_pylist()
    classes += sorted(set(names_of_labels) - set(classes))
    matrices = [
        _probabilities(snapshot, rows, model, classes)
        for snapshot, model in zip(predicted, models, strict=True)
    ]
    place = {name: index for index, name in enumerate(classes)}
    labels = np.array([place[name] for name in names_of_labels], np.int32)
    groups = np.array(rows.group_names.to_pylist(), object)
    positive = _positive(models[0])
    metrics = [
        classification_metrics(
            labels, matrix, groups, classes, positive, None, settings.replicates, settings.seed
        )
        for matrix in matrices
    ]
    measure = MetricMeasure(METRICS[settings.metric], classes.index(positive) if positive else 0)

    def standings(chosen: npt.NDArray[np.int64]) -> list[Standing]:
        return compare(
            [matrix[chosen] for matrix in matrices],
            labels[chosen],
            groups[chosen],
            measure,
            references={name: number for number, name in enumerate(names)},
            replicates=settings.replicates,
            seed=settings.seed,
        )

    guesses = np.stack([matrix.argmax(axis=1) for matrix in matrices])
    right = guesses == labels
    wrong = len(models) - right.sum(axis=0)
    _write_images(out.join("images"), rows, classes, guesses, matrices, wrong)
    everything = np.arange(len(labels))
    by = [
        (value, len(chosen), [one.objective.to_json() for one in standings(chosen)])
        for value, chosen in _values(predicted[0], rows, settings.by)
    ]
    only = [(wrong == 1) & ~right[number] for number in range(len(models))]
    return Compared(
        images=len(labels),
        left_out=labelled - len(labels),
        metrics=[_without_matrix(found) for found in metrics],
        standings=standings(everything),
        pairs=_pairs(right, guesses),
        all_wrong=int((wrong == len(models)).sum()),
        one_wrong=[int(rows.sum()) for rows in only],
        by=by,
        missed=_missed(rows, classes, guesses, matrices, wrong, only, names),
    )


def _without_results(snapshot: Snapshot) -> Snapshot:
    return Snapshot(snapshot.store, snapshot.images, snapshot.verdicts)


def _probabilities(
    snapshot: Snapshot, rows: Examples, model: KerasModel, classes: list[str]
) -> npt.NDArray[np.float32]:
    """Return the probabilities of the rows, float32[N, C], in the order of `classes`."""
    assert snapshot.results is not None
    numbers = np.arange(len(rows))[:, None]
    part = TableRows(snapshot.results, rows.contents, 0, numbers)
    file = VectorFile(snapshot.images, ("probability",), (part,), len(rows)).open()
    found = np.zeros((len(rows), len(classes)), np.float32)
    for column, name in enumerate(model.model_metadata.classes):
        found[:, classes.index(name)] = file.vectors["probability"][:, column]
    return found


def _pairs(right: npt.NDArray[np.bool_], guesses: npt.NDArray[np.int64]) -> list[Pairing]:
    numbers = list(itertools.combinations(range(len(right)), 2))
    found = [mcnemar(right[first], right[second]) for first, second in numbers]
    corrected = holm([test.p for test in found])
    return [
        Pairing(first, second, test, p, float((guesses[first] != guesses[second]).mean()))
        for (first, second), test, p in zip(numbers, found, corrected, strict=True)
    ]


def _write_images(
    place: Location,
    rows: Examples,
    classes: list[str],
    guesses: npt.NDArray[np.int64],
    matrices: Matrices,
    wrong: npt.NDArray[np.int64],
) -> None:
    highest = np.stack([matrix.max(axis=1) for matrix in matrices], axis=1)
    names = np.array(classes, object)[guesses.T]
    table = pa.table(
        {
            "key": rows.keys,
            "label": rows.labels.dictionary_decode(),
            "group": rows.groups.dictionary_decode(),
            "predicted": pa.array(names.tolist(), pa.list_(pa.string())),
            "probability": pa.array(highest.tolist(), pa.list_(pa.float32())),
            "wrong": pa.array(wrong.astype(np.int32)),
        }
    )
    tables.write(place, table.cast(IMAGES), IMAGES)


def _values(
    snapshot: Snapshot, rows: Examples, column: str | None
) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """Return the values of a column of `images` and their rows, the most frequent first."""
    if column is None:
        return []
    found = snapshot.images.read(["key", column])
    of_key = dict(zip(found["key"].to_pylist(), found[column].to_pylist(), strict=True))
    texts = np.array([str(of_key[key]) for key in rows.keys.to_pylist()], object)
    values, counts = np.unique(texts, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_VALUES]
    return [(str(values[place]), np.flatnonzero(texts == values[place])) for place in order]


def _without_matrix(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out the counts by class and class, which nobody compares."""
    return {name: found[name] for name in found if "confusion" not in name}


def _missed(
    rows: Examples,
    classes: list[str],
    guesses: npt.NDArray[np.int64],
    matrices: Matrices,
    wrong: npt.NDArray[np.int64],
    only: list[npt.NDArray[np.bool_]],
    names: list[str],
) -> tuple[Missed, ...]:
    """Return images that all miss, then those that one misses, the surest mistakes first."""
    surest = np.stack([matrix.max(axis=1) for matrix in matrices])
    labels = rows.labels.dictionary_decode().to_pylist()

    def shown(title: str, chosen: npt.NDArray[np.bool_], sure: npt.NDArray[Any], model: int) -> Any:
        places = np.flatnonzero(chosen)
        places = places[np.argsort(-sure[places], kind="stable")[:_SHOWN]]
        return [
            Missed(
                title=title,
                key=rows.keys[int(place)].as_py(),
                label=labels[place],
                predicted=classes[guesses[model, place]],
                probability=float(sure[place]),
            )
            for place in places
        ]

    found = shown("All models", wrong == len(names), surest.min(axis=0), 0)
    for number, name in enumerate(names):
        found += shown(name, only[number], surest[number], number)
    return tuple(found)


def _report(
    run: Run[Any],
    settings: CompareSettings,
    found: Compared,
    models: Sequence[KerasModel],
    sizes: list[int],
    names: list[str],
    split: str,
    title: str,
) -> None:
    run.counts = {
        "images": found.images,
        "left_out": found.left_out,
        "all_wrong": found.all_wrong,
        "one_wrong": dict(zip(names, found.one_wrong, strict=True)),
    }
    run.metrics = {
        split: {
            f"{settings.metric} ({name})": standing.objective.to_json()
            for name, standing in zip(names, found.standings, strict=True)
        }
    }
    run.details = {
        "metric": settings.metric,
        "models": {
            name: {
                "file": model.at.uri,
                "file_bytes": size,
                "metrics": metrics,
                **standing.to_json(),
            }
            for name, model, size, metrics, standing in zip(
                names, models, sizes, found.metrics, found.standings, strict=True
            )
        },
        "pairs": [
            {
                "first": names[pair.first],
                "second": names[pair.second],
                "difference": found.standings[pair.first].over[names[pair.second]].to_json(),
                "mcnemar": asdict(pair.test),
                "p_holm": pair.p_holm,
                "disagree": pair.disagree,
            }
            for pair in found.pairs
        ],
        "by": [
            {"value": value, "n": n, "metrics": dict(zip(names, entries, strict=True))}
            for value, n, entries in found.by
        ],
    }
    if found.left_out:
        run.warn(
            f"{found.left_out:,} labelled images of {split} are left out: some model has no "
            "prediction for them"
        )
    for name, standing in zip(names, found.standings, strict=True):
        value = standing.objective
        interval = f" ({value.low:.3f}–{value.high:.3f})" if value.low is not None else ""
        shown = f"{value.value:.3f}" if value.value is not None else "–"
        run.say(f"{title} on {split} (n={value.n:,}): {name} {shown}{interval}")
