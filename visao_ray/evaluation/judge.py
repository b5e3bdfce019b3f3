"""The evaluate job: a trained model meets val and, once, test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from visao_ray import tables
from visao_ray.bases.manifest import check_errors
from visao_ray.datasets.registry import find_dataset
from visao_ray.datasets.spec import Dataset
from visao_ray.errors import InputError
from visao_ray.evaluation.inference import predict
from visao_ray.evaluation.predictions import evaluate_predictions
from visao_ray.evaluation.retrieval import SPLITS, retrieval_metrics
from visao_ray.features.pipeline import check_source, list_images
from visao_ray.models import saved
from visao_ray.models.saved import ModelAbout
from visao_ray.resources import fit_actors, look
from visao_ray.runs import Run, start_ray, to_json
from visao_ray.settings import EvaluateSettings
from visao_ray.storage import Location, locate

_MISTAKES_KEPT = 200
_NEIGHBOURS = 20


def evaluate_model(settings: EvaluateSettings, run: Run[Any]) -> None:
    """The evaluate job: writes `predictions`, `embeddings`, `evaluation.json`, and the metrics.

    The threshold comes from val alone.

    Raises:
        InputError: no such table, dataset or model, or they do not fit; too many unreadable images.
    """
    about = _check(settings)
    start_ray()
    pool = fit_actors(settings.workers, settings.worker(), look())
    if settings.features is not None:
        source = locate(settings.features)
        run.inputs |= {
            "features": source.uri,
            "about": tables.about(tables.open_table(source, "features").schema),
        }
    else:
        _warn_of_other_splits(settings, about, run)
        source = list_images(settings, about.dataset, settings.manifest, run)
        run.inputs["manifest"] = source.uri
    model = locate(settings.model)
    run.inputs |= {"model": model.uri, "dataset": about.dataset.to_json()}
    covered = predict(
        run,
        source,
        model,
        about,
        pool,
        batch_size=settings.batch_size,
    )
    if covered.images == 0:
        raise InputError(f"{source.uri}: no val or test rows to judge")
    run.counts |= {
        "images": covered.images,
        "ok": covered.ok,
        "errors": sum(covered.errors.values()),
        "errors_by_reason": dict(covered.errors),
    }
    check_errors(run, settings.max_errors)
    if "predict" in run.timings:
        run.throughput["images_per_second"] = covered.ok / run.timings["predict"]
    evaluation = judge_run(
        run,
        about,
        target=settings.target_recall,
        seed=settings.seed,
        replicates=settings.replicates,
    )
    run.counts["by_split"] = evaluation["counts"]
    run.details |= {"threshold": evaluation["threshold"], "classes": list(about.classes)}
    run.details["model"] = about.name


def _check(settings: EvaluateSettings) -> ModelAbout:
    """Look at the source and the model, and whether they fit, before Ray starts."""
    where = f"--model {settings.model}"
    dataset = find_dataset(settings.dataset) if settings.dataset else None
    if settings.features is not None:
        schema = tables.open_table(locate(settings.features), "features").schema
        about = saved.read_about(saved.read(locate(settings.model)), where)
        width = schema.field("avg").type.list_size
        about.check_features(dataset, width, tables.about(schema), where)
    else:
        about = saved.read_about(saved.read(locate(settings.model)), where)
        about.check_images(dataset, where)
        check_source(settings, about.dataset, settings.manifest)
    return about


def _warn_of_other_splits(settings: EvaluateSettings, about: ModelAbout, run: Run[Any]) -> None:
    """Say so where carving may put images that the model was trained on into val or test."""
    if settings.data is None:
        return
    for name in ("seed", "val_share", "test_share", "groups"):
        before, now = about.settings.get(name), getattr(settings, name)
        if name in about.settings and before != now:
            flag = f"--{name.replace('_', '-')}"
            run.warn(
                f"{flag} is {now}, but the model was trained with {before}: where splits are "
                "carved, images that it was trained on may stand in val and test"
            )


def judge_run(
    run: Run[Any], about: ModelAbout, *, target: float, seed: int, replicates: int
) -> dict[str, Any]:
    """Judge what `predict` left below `run.out`: `evaluation.json`, metrics, warnings, summary.

    Models without classes have retrieval metrics alone; models that do not embed have none.

    Raises:
        InputError: there is nothing to judge.
    """
    import ray

    embeddings = run.out.join("embeddings")
    with run.timed("judge"):
        if about.classes:
            judged = ray.remote(judge).remote(
                run.out.join("predictions"), about.dataset, about.classes, target, seed, replicates
            )
            evaluation: dict[str, Any] = ray.get(judged)
        else:
            evaluation = ray.get(ray.remote(_without_classes).remote(embeddings))
        if embeddings.exists():
            found = ray.remote(retrieval_metrics).remote(embeddings, _NEIGHBOURS, replicates, seed)
            evaluation["retrieval"] = ray.get(found)
            for split, metrics in evaluation["retrieval"].items():
                evaluation["metrics"][split] |= metrics
    run.out.join("evaluation.json").write_bytes(to_json(evaluation))
    run.metrics |= evaluation["metrics"]
    for warning in evaluation["warnings"]:
        run.warn(warning)
    for line in summary(evaluation):
        run.say(line)
    return evaluation


def judge(
    predictions: Location,
    dataset: Dataset,
    classes: Sequence[str],
    target: float,
    seed: int,
    replicates: int,
) -> dict[str, Any]:
    """Everything that `evaluate_predictions` says of a table, and the most confident mistakes."""
    table = tables.open_table(predictions, "predictions").to_table().sort_by("key")
    unknown = sorted(set(table["label"].to_pylist()) - set(classes))
    evaluation = evaluate_predictions(
        _widened(table, len(unknown)),
        (*classes, *unknown),
        dataset.positive_among(classes),
        target_recall=target,
        seed=seed,
        replicates=replicates,
        chapter_digits=dataset.chapter_digits,
    ).to_json()
    if unknown:
        told = f"{len(unknown)} classes ({', '.join(unknown[:5])}{', …' if unknown[5:] else ''})"
        evaluation["warnings"] = [
            *evaluation["warnings"],
            f"{told} stand in no train or val image: their test images count as wrong",
        ]
    test = table.filter(pc.equal(table["split"], "test"))
    wrong = test.filter(pc.not_equal(test["label"], test["predicted"]))
    confidence = tables.matrix(wrong["probability"]).max(axis=1) if wrong.num_rows else np.zeros(0)
    order = np.argsort(-confidence, kind="stable")[:_MISTAKES_KEPT]
    rows = wrong.select(["key", "label", "predicted"]).take(pa.array(order)).to_pylist()
    evaluation["mistakes"] = [
        {**row, "probability": float(confidence[index])}
        for row, index in zip(rows, order, strict=True)
    ]
    return evaluation


def _without_classes(embeddings: Location) -> dict[str, Any]:
    """What there is to say of a model that only embeds, before its retrieval is judged."""
    table = tables.open_table(embeddings, "embeddings")
    counts = {}
    for split in SPLITS:
        rows = table.to_table(columns=["key", "group"], filter=pads.field("split") == split)
        groups = pc.coalesce(rows["group"], rows["key"])
        counts[split] = {"images": rows.num_rows, "groups": len(pc.unique(groups))}
    return {
        "classes": [],
        "positive": None,
        "threshold": None,
        "metrics": {split: {} for split in SPLITS},
        "counts": counts,
        "warnings": [],
    }


def _widened(table: pa.Table, more: int) -> pa.Table:
    """Predictions with `more` classes of probability 0 behind those that the model knows."""
    if not more:
        return table
    wide = np.pad(tables.matrix(table["probability"]), ((0, 0), (0, more)))
    position = table.schema.get_field_index("probability")
    return table.set_column(position, "probability", tables.vectors(wide))


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
    names = ["accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "average_precision", "top5"]
    names += ["chapter_accuracy", "chapter_accuracy_summed", f"precision_at_{_NEIGHBOURS}"]
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
