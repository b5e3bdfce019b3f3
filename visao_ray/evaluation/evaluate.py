"""The evaluate job: metrics of a trained model on val and, once, on test."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from visao_ray.core import tables
from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import ActorPool, current_cluster, fit_actors, remotely
from visao_ray.core.run import Run, to_json
from visao_ray.core.settings import EvaluateOptions
from visao_ray.core.storage import Location
from visao_ray.evaluation.inference import (
    UNIT_IMAGES,
    check_errors,
    find_source,
    missing_contents,
    open_model,
    predict_contents,
    table_name,
)
from visao_ray.evaluation.metrics import METRICS
from visao_ray.evaluation.predictions import SPLITS, evaluate_predictions
from visao_ray.evaluation.retrieval import retrieval_metrics
from visao_ray.evaluation.settings import EvaluateSettings
from visao_ray.features.extract import Source, maintain_store, read_new
from visao_ray.inference.engines.keras import KerasModel
from visao_ray.models.artifact import ModelMetadata
from visao_ray.models.normalization import Vectors
from visao_ray.store import schemas
from visao_ray.store.join import RUN_TAG, Examples, Snapshot, pin, pin_table, read_examples
from visao_ray.store.mapped import MappedVectors, TableRows, VectorFile
from visao_ray.store.proof import Contents
from visao_ray.store.rows import find_rows, read_rows
from visao_ray.store.store import Store
from visao_ray.store.table import TableVersion

_MAX_MISTAKES = 200
_NEIGHBOURS = 20
_FILE_ROWS = 32_768  # rows of an output file: 114 MB with 868 classes
_PIECE_ROWS = 4096  # rows of probabilities read at once


@dataclass(frozen=True)
class EvaluationResult:
    """The result of `evaluate_in`.

    Attributes:
        evaluation: the content of evaluation.json.
        ok: number of labelled images that were predicted.
        errors: number of labelled images that could not be predicted, by reason.
    """

    evaluation: dict[str, Any]
    ok: int
    errors: Counter[str]

    def to_counts(self) -> dict[str, Any]:
        """Return the counts for result.json."""
        errors = self.errors.total()
        return {
            "images": self.ok + errors,
            "ok": self.ok,
            "errors": errors,
            "errors_by_reason": dict(self.errors.most_common()),
            "by_split": self.evaluation["counts"],
        }


def evaluate_model(settings: EvaluateSettings, run: Run[Any]) -> None:
    """Run the evaluate job: write `predictions`, `embeddings`, `evaluation.json` and the metrics.

    The threshold is chosen on val only.

    Args:
        settings: settings of the job.
        run: the run of the job.

    Raises:
        InputError: no such store, data or model, or they do not match; too many unreadable images.
    """
    model = open_model(settings.model, settings.batch_size)
    source = find_source(settings, model)
    start_ray()
    pool = fit_actors(settings.workers, settings.worker(), current_cluster())
    if source is not None:
        run.once("read", lambda: _read_images(run, source, model, pool))
        run.counts = json.loads(run.work.join("read.json").read_bytes())
        source.check_errors(run, run.counts["errors"], settings.max_errors)
        run.counts = {"read": run.counts}
    store = Store.open(settings.store_uri())
    snapshot = pin(store, run.id, results=None, as_of=settings.as_of)
    result = evaluate_in(run, snapshot, model, pool, settings)
    run.counts |= result.to_counts()
    run.inputs |= {"dataset": model.model_metadata.dataset.to_json()}
    run.details |= {
        "threshold": result.evaluation["threshold"],
        "classes": list(model.model_metadata.classes),
        "model": model.model_metadata.name,
    }
    total = result.ok + result.errors.total()
    check_errors(dict(result.errors.most_common()), total, settings.max_errors)


def evaluate_in(
    run: Run[Any], snapshot: Snapshot, model: KerasModel, pool: ActorPool, options: EvaluateOptions
) -> EvaluationResult:
    """Evaluate a model on the labelled val and test images of a snapshot.

    First predicts the images that have no predictions by this model in the store. If the model
    embeds, this includes train images, because they are the gallery of the retrieval metrics. This
    takes the lease of the store, so the caller must not hold it. Writes `predictions`, `embeddings`
    and `evaluation.json` below `run.out`, and sets metrics, warnings and inputs of the run. A
    resumed run does only what is missing.

    Args:
        run: the run of any job; its `seed` is the seed of the bootstrap, its id tags the
            predictions that it reads.
        snapshot: the result of `pin` for this run; only its images and verdicts are used, its
            results need not be predictions.
        model: see `inference.open_model`.
        pool: actors that hold the model.
        options: target recall of the threshold, and number of bootstrap replicates.

    Returns:
        The evaluation, and counts of the images.

    Raises:
        InputError: no labelled val or test image was predicted, the store has no vectors that the
            model takes, or another job is writing to the store.
    """
    splits = (*SPLITS, "train") if "embedding" in model.outputs else SPLITS
    predicted, wanted, failed = predict_labelled(run, snapshot, model, pool, splits)
    run.inputs |= {
        **predicted.to_json(),
        "model": model.at.uri,
        "model_digest": model.digest,
        "predictions": f"predictions/{table_name(model)}",
    }
    with run.timed("evaluate"):
        default = "gone" if model.model_metadata.takes == "images" else "no_vectors"
        ok, errors = remotely(_count, predicted, wanted, failed, default)
        task = _Task(predicted, model.model_metadata, splits, options, run.settings.seed)
        evaluation = remotely(evaluate_task, task, run.out)
    evaluation["model"] = {"name": model.name, "digest": model.digest}
    run.out.join("evaluation.json").write_bytes(to_json(evaluation))
    run.metrics |= evaluation["metrics"]
    for warning in evaluation["warnings"]:
        run.warn(warning)
    for line in summary(evaluation):
        run.say(line)
    return EvaluationResult(evaluation, ok, errors)


def predict_labelled(
    run: Run[Any], snapshot: Snapshot, model: KerasModel, pool: ActorPool, splits: Sequence[str]
) -> tuple[Snapshot, Any, Counter[str]]:
    """Predict the labelled images of some splits that have no predictions by a model yet.

    Args:
        run: the run of any job; its id tags the predictions.
        snapshot: the result of `pin` for this run.
        model: see `inference.open_model`.
        pool: actors that hold the model.
        splits: the splits.

    Returns:
        The snapshot with the predictions, a reference to the contents of the images, and the number
        of images that could not be predicted, by reason.

    Raises:
        InputError: the store has no vectors that the model takes, or another job is writing to it.
    """
    store = Store.open(snapshot.store)
    images = replace(snapshot, results=None, augmented=None)
    wanted = remotely(_labelled_contents, images, splits, keep=True)
    table = store.predictions(table_name(model))
    before = table.latest() if table.exists() else None
    missing = remotely(_missing, images.images, before, wanted, keep=True)
    failed: Counter[str] = Counter()
    if before is None or remotely(_length, missing):
        with store.writing(run.owner, run.say, run.predecessor) as writer:
            done = predict_contents(run, writer, model, missing, pool)
            maintain_store(run, writer)
        table.untag(RUN_TAG + run.id)  # an earlier start tagged a version that lacks some rows
        failed = done.errors
        if done.computed and run.timings.get("predict"):
            run.throughput["images_per_second"] = done.computed / run.timings["predict"]
    at = pin_table(store, f"predictions/{table_name(model)}", run.id)
    return replace(images, results=at), wanted, failed


def _read_images(run: Run[Any], source: Source, model: KerasModel, pool: ActorPool) -> None:
    """Add the images of --data to the store; a model that embeds predicts them in the same pass."""
    engine = model if "embedding" in model.outputs else None
    with source.writing(run) as writer:
        writer.ensure(writer.store.images, schemas.IMAGES)
        results = writer.store.predictions(table_name(model)) if engine else None
        read_new(run, writer, source, engine, results, pool, UNIT_IMAGES)
        maintain_store(run, writer)
    run.work.join("read.json").write_bytes(to_json(run.counts))


def _labelled_contents(snapshot: Snapshot, splits: Sequence[str]) -> Contents:
    return read_examples(snapshot, splits).contents


def _missing(images: TableVersion, results: TableVersion | None, wanted: Sequence[Any]) -> Contents:
    import ray

    return missing_contents(images, results, ray.get(wanted[0]))


def _length(array: Sequence[Any]) -> int:
    import ray

    return len(ray.get(array[0]))


def _count(
    snapshot: Snapshot, wanted: Sequence[Any], failed: Counter[str], default: str
) -> tuple[int, Counter[str]]:
    """Count the contents that were predicted, and the others by reason. Runs in a task.

    Args:
        snapshot: snapshot with predictions.
        wanted: list with a reference to the contents that should be predicted.
        failed: reasons that the graph reported; they are assigned to contents without any row.
        default: reason for contents that the graph did not report.
    """
    import ray

    contents, results = ray.get(wanted[0]), snapshot.results
    assert results is not None
    ok = len(find_rows(results, contents, schemas.OK))
    error_rows = find_rows(results, contents, schemas.ERROR)
    errors: Counter[str] = Counter()
    for batch in read_rows(results, error_rows, ["error_type"]):
        errors.update(batch["error_type"].to_pylist())
    without = len(contents) - ok - len(error_rows)
    for reason, count in (failed - errors).items():
        errors[reason] += min(count, without)
        without -= min(count, without)
    errors[default] += without
    return ok, +errors


@dataclass(frozen=True)
class _Task:
    """What to evaluate, and how.

    Attributes:
        snapshot: snapshot with predictions.
        metadata: metadata of the model.
        splits: splits of the images that were predicted.
        options: target recall and number of replicates.
        seed: seed of the bootstrap.
    """

    snapshot: Snapshot
    metadata: ModelMetadata
    splits: Sequence[str]
    options: EvaluateOptions
    seed: int


def evaluate_task(task: _Task, out: Location) -> dict[str, Any]:
    """Evaluate the predictions of a snapshot, and write `predictions` and `embeddings`.

    Runs in a Ray task. Models without classes have only retrieval metrics; models that do not embed
    have none. Probabilities and embeddings are mapped from a file, in the order of contents.

    Args:
        task: what to evaluate.
        out: folder of the output.

    Returns:
        The content of evaluation.json.

    Raises:
        InputError: there is nothing to evaluate, or a number is not finite.
    """
    metadata, options = task.metadata, task.options
    examples = read_examples(task.snapshot, task.splits)
    evaluated = np.flatnonzero(np.isin(_texts(examples.splits), SPLITS))
    if not len(evaluated):
        raise InputError(f"{task.snapshot.store}: no val or test images were predicted")
    if metadata.classes:
        evaluation = _of_predictions(task, examples.take(evaluated), out.join("predictions"))
    else:
        evaluation = _without_classes(examples)
    if "embedding" in metadata.outputs:
        place = out.join("embeddings")
        _write_embeddings(task, examples, place)
        found = retrieval_metrics(place, _NEIGHBOURS, options.replicates, task.seed)
        evaluation["retrieval"] = found
        for split, metrics in found.items():
            evaluation["metrics"][split] |= metrics
    if examples.conflicts:
        warning = (
            f"{examples.conflicts:,} images have files with different labels and are left out."
        )
        evaluation["warnings"] = [*evaluation["warnings"], warning]
    return evaluation


def _of_predictions(task: _Task, examples: Examples, place: Location) -> dict[str, Any]:
    """Return the result of `evaluate_predictions`, and the most confident mistakes."""
    metadata, options = task.metadata, task.options
    mapped = _mapped(task, examples, "probability")
    probability = mapped.vectors["probability"]
    predicted, highest = _most_probable(probability)
    columns = {
        **_columns(examples, metadata),
        "predicted": pa.array(metadata.classes).take(pa.array(predicted)),
        "probability": tables.vectors(probability),
    }
    _write_files(place, columns, tables.predictions(metadata.classes))
    known = {*metadata.classes}
    unknown = sorted({*examples.labels.unique().dictionary_decode().to_pylist()} - known)
    if unknown:
        columns["probability"] = tables.vectors(np.pad(probability, ((0, 0), (0, len(unknown)))))
    evaluation = evaluate_predictions(
        pa.table(columns),
        (*metadata.classes, *unknown),
        metadata.dataset.positive_among(metadata.classes),
        target_recall=options.target_recall,
        seed=task.seed,
        replicates=options.replicates,
        chapter_digits=metadata.dataset.chapter_digits,
    ).to_json()
    if unknown:
        named = f"{len(unknown)} classes ({', '.join(unknown[:5])}{', …' if unknown[5:] else ''})"
        evaluation["warnings"] = [
            *evaluation["warnings"],
            f"{named} have no train or val images: their test images count as wrong",
        ]
    evaluation["mistakes"] = _mistakes(
        examples, np.array(metadata.classes, object)[predicted], highest
    )
    return evaluation


def _mistakes(
    examples: Examples, predicted: npt.NDArray[np.object_], highest: Vectors
) -> list[dict[str, Any]]:
    """Return test images with a wrong most probable class, the most confident first."""
    labels = _texts(examples.labels)
    wrong = np.flatnonzero((_texts(examples.splits) == "test") & (predicted != labels))
    order = np.argsort(-highest[wrong], kind="stable")[:_MAX_MISTAKES]
    return [
        {
            "key": examples.keys[row].as_py(),
            "label": labels[row],
            "predicted": predicted[row],
            "probability": float(highest[row]),
        }
        for row in wrong[order].tolist()
    ]


def _without_classes(examples: Examples) -> dict[str, Any]:
    """Return the evaluation of a model that only embeds, without its retrieval metrics."""
    splits = _texts(examples.splits)
    groups = examples.group_names
    counts = {}
    for split in SPLITS:
        rows = np.flatnonzero(splits == split)
        counts[split] = {"images": len(rows), "groups": len(groups.take(pa.array(rows)).unique())}
    return {
        "classes": [],
        "positive": None,
        "threshold": None,
        "metrics": {split: {} for split in SPLITS},
        "counts": counts,
        "warnings": [],
    }


def _write_embeddings(task: _Task, examples: Examples, place: Location) -> None:
    mapped = _mapped(task, examples, "embedding")
    vectors = mapped.vectors["embedding"]
    columns = {
        **_columns(examples, task.metadata),
        "content_id": pa.array([one.ljust(32, b"\0").hex() for one in examples.contents.tolist()]),
        "embedding": tables.vectors(vectors),
    }
    _write_files(place, columns, tables.embeddings(vectors.shape[1]))


def _mapped(task: _Task, examples: Examples, column: str) -> MappedVectors:
    """Map an output of the model, float32 [N, width] in the order of the examples."""
    assert task.snapshot.results is not None
    count = len(examples)
    rows = TableRows(task.snapshot.results, examples.contents, 0, np.arange(count)[:, None])
    return VectorFile(task.snapshot.images, (column,), (rows,), count).open()


def _columns(examples: Examples, metadata: ModelMetadata) -> dict[str, pa.Array]:
    """Return the columns that the tables of predictions and embeddings share."""
    return {
        "key": examples.keys,
        "split": examples.splits.cast(pa.string()),
        "group": examples.groups.cast(pa.string()),
        "label": examples.labels.cast(pa.string()),
        "model": pa.array([metadata.name] * len(examples), pa.string()),
    }


def _write_files(place: Location, columns: Mapping[str, pa.Array], schema: pa.Schema) -> None:
    """Write a table as Parquet files; replace those of an earlier start."""
    place.delete()
    table = pa.table(columns).select(schema.names)
    for number, start in enumerate(range(0, table.num_rows, _FILE_ROWS)):
        sink = pa.BufferOutputStream()
        pq.write_table(table.slice(start, _FILE_ROWS).cast(schema), sink)
        file = place.join(f"part-{number:05}.parquet")
        file.write_bytes(sink.getvalue().to_pybytes())


def _most_probable(probability: Vectors) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Return class and probability of the most probable class of each row: int64[N], float32[N]."""
    predicted = np.zeros(len(probability), np.int64)
    highest = np.zeros(len(probability), np.float32)
    for start in range(0, len(probability), _PIECE_ROWS):
        piece = slice(start, start + _PIECE_ROWS)
        predicted[piece] = probability[piece].argmax(axis=1)
        highest[piece] = probability[piece].max(axis=1)
    return predicted, highest


def _texts(column: pa.DictionaryArray) -> npt.NDArray[np.object_]:
    """Return the texts of a column without nulls; equal texts are the same object."""
    names = np.array(column.dictionary.to_pylist(), object)
    return np.asarray(names[column.indices.to_numpy()])


def summary(evaluation: dict[str, Any]) -> list[str]:
    """Format the main metrics as lines of text: name, val and test with intervals."""

    def cell(found: dict[str, Any] | None) -> str:
        if not found or found["value"] is None:
            return "–"
        if found["low"] is None:
            return f"{found['value']:.3f}"
        return f"{found['value']:.3f} ({found['low']:.3f}–{found['high']:.3f})"

    def line(name: str, val: str, test: str) -> str:
        return f"{name:<34} {val:<22} {test:<22}".rstrip()

    counts, metrics = evaluation["counts"], evaluation["metrics"]
    lines = [line("", *(f"{split} (n={counts[split]['images']:,})" for split in ("val", "test")))]
    names = [*METRICS, "chapter_accuracy", "chapter_accuracy_summed"]
    names += [f"precision_at_{_NEIGHBOURS}"]
    lines += [
        line(name, cell(metrics["val"][name]), cell(metrics["test"][name]))
        for name in names
        if name in metrics["val"]
    ]
    threshold = evaluation["threshold"]
    if threshold is None:
        return lines
    positive = threshold["positive"]
    for suffix, cut in (("", "0.5"), ("_at_threshold", f"{threshold['threshold']:.3f}")):
        val, test = (
            metrics[f"{split}{suffix}"]["per_class"][positive] for split in ("val", "test")
        )
        for name in ("recall", "precision"):
            lines.append(line(f"{name} of {positive} at {cut}", cell(val[name]), cell(test[name])))
    return lines
