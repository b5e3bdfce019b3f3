"""The evaluate job: a head meets val and, once, test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visao_ray import tables
from visao_ray.bases.base import BASES
from visao_ray.errors import InputError
from visao_ray.evaluation.predictions import evaluate_predictions
from visao_ray.models.head import load_head, read_about
from visao_ray.runs import Run, start_ray, to_json
from visao_ray.settings import EvaluateSettings
from visao_ray.storage import Location, locate, reason

_MISTAKES_KEPT = 200


class Predictor:
    """Holds a head; turns a block of features rows into predictions of its val and test images."""

    def __init__(self, uri: str) -> None:
        self._head, self._about = load_head(locate(uri))
        self._schema = tables.predictions(self._about.classes)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Features rows → predictions rows (with the sink's column `table`)."""
        judged = pc.and_(pc.not_equal(block["split"], "train"), pc.equal(block["view"], 0))
        rows = block.filter(judged)
        classes = self._about.classes
        if rows.num_rows:
            vectors = {pool: _matrix(rows[pool]) for pool in ("avg", "max")}
            probability = np.asarray(self._head.predict_on_batch(vectors), np.float32)
        else:
            probability = np.zeros((0, len(classes)), np.float32)
        predicted = [classes[index] for index in probability.argmax(axis=1)]
        columns = {name: rows[name] for name in ("key", "split", "group", "label")}
        columns["predicted"] = pa.array(predicted, pa.string())
        columns["probability"] = pa.FixedSizeListArray.from_arrays(
            pa.array(probability.reshape(-1)), len(classes)
        )
        columns["model"] = pa.array([f"trial {self._about.trial}"] * rows.num_rows, pa.string())
        table = pa.table(columns).select(self._schema.names).cast(self._schema)
        return table.append_column("table", pa.array(["predictions"] * table.num_rows, pa.string()))


def evaluate_head(settings: EvaluateSettings, run: Run[Any]) -> None:
    """The evaluate job: writes `predictions` and `evaluation.json`, and the metrics.

    The threshold comes from val alone; test is read here and nowhere before.

    Raises:
        InputError: no such table or head, or the two do not fit.
    """
    import ray

    features, model = locate(settings.features), locate(settings.model)
    schema = tables.open_table(features, "features").schema
    try:
        about = read_about(model.read_bytes(), model.uri)
    except OSError as error:
        raise InputError(f"--model {model.uri}: cannot be read: {reason(error)}") from error
    width = schema.field("avg").type.list_size
    about.check(settings.base, width, tables.about(schema), f"--model {model.uri}")
    start_ray()

    def predict() -> None:
        from visao_ray.sink import TablesSink

        ray.data.read_parquet(features.path, filesystem=features.filesystem).map_batches(
            Predictor,
            fn_constructor_args=(settings.model,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0,
        ).write_datasink(TablesSink(run.out, {"predictions": tables.predictions(about.classes)}))

    predictions = run.out.join("predictions")
    run.once("predict", predict, predictions)
    with run.timed("judge"):
        evaluation = ray.get(
            ray.remote(judge).remote(predictions, settings, about.classes, settings.target_recall)
        )
    run.out.join("evaluation.json").write_bytes(to_json(evaluation))
    run.metrics = evaluation["metrics"]
    images = sum(split["images"] for split in evaluation["counts"].values())
    run.counts |= {"images": images, "ok": images, "errors": 0, "by_split": evaluation["counts"]}
    run.details |= {"threshold": evaluation["threshold"], "classes": list(about.classes)}
    run.inputs |= {"features": features.uri, "model": model.uri, "about": tables.about(schema)}
    for warning in evaluation["warnings"]:
        run.warn(warning)
    for line in summary(evaluation):
        run.say(line)


def judge(
    predictions: Location, settings: EvaluateSettings, classes: tuple[str, ...], target: float
) -> dict[str, Any]:
    """Everything that `evaluate_predictions` says of a table, and the most confident mistakes."""
    table = tables.open_table(predictions, "predictions").to_table().sort_by("key")
    unknown = sorted(set(table["label"].to_pylist()) - set(classes))
    evaluation = evaluate_predictions(
        _widened(table, len(unknown)),
        (*classes, *unknown),
        BASES[settings.base].positive,
        target_recall=target,
        seed=settings.seed,
        replicates=settings.replicates,
    ).to_json()
    if unknown:
        told = f"{len(unknown)} classes ({', '.join(unknown[:5])}{', …' if unknown[5:] else ''})"
        evaluation["warnings"] = [
            *evaluation["warnings"],
            f"{told} stand in no train or val image: their test images count as wrong",
        ]
    test = table.filter(pc.equal(table["split"], "test"))
    wrong = test.filter(pc.not_equal(test["label"], test["predicted"]))
    confidence = _matrix(wrong["probability"]).max(axis=1) if wrong.num_rows else np.zeros(0)
    order = np.argsort(-confidence, kind="stable")[:_MISTAKES_KEPT]
    rows = wrong.select(["key", "label", "predicted"]).take(pa.array(order)).to_pylist()
    evaluation["mistakes"] = [
        {**row, "probability": float(confidence[index])}
        for row, index in zip(rows, order, strict=True)
    ]
    return evaluation


def _widened(table: pa.Table, more: int) -> pa.Table:
    """Predictions with `more` classes of probability 0 behind those that the head knows."""
    if not more:
        return table
    wide = np.pad(_matrix(table["probability"]), ((0, 0), (0, more)))
    column = pa.FixedSizeListArray.from_arrays(pa.array(wide.reshape(-1)), wide.shape[1])
    return table.set_column(table.schema.get_field_index("probability"), "probability", column)


def summary(evaluation: dict[str, Any]) -> list[str]:
    """The figures people look for first, as lines of text: name, val and test with intervals."""

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
    names = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "average_precision", "top5")
    lines += [
        line(name, cell(metrics["val"][name]), cell(metrics["test"][name]))
        for name in names
        if name in metrics["val"]
    ]
    threshold = evaluation["threshold"]
    if threshold is None:
        return lines
    positive = threshold["positive"]
    for suffix, told in (("", "0.5"), ("_at_threshold", f"{threshold['threshold']:.3f}")):
        val, test = (
            metrics[f"{split}{suffix}"]["per_class"][positive] for split in ("val", "test")
        )
        for name in ("recall", "precision"):
            lines.append(line(f"{name} of {positive} at {told}", cell(val[name]), cell(test[name])))
    return lines


def _matrix(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A fixed-size-list column as float32[N, D]."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(len(column), -1)
