"""One self-contained HTML page about a run: metrics, curves, mistakes and the sweep."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import pyarrow as pa

from visao_ray.core.run import duration
from visao_ray.evaluation.metrics import METRICS
from visao_ray.reports import figures
from visao_ray.reports.figures import Figure
from visao_ray.reports.formats import SPACE, estimate, number, plain, with_interval
from visao_ray.reports.titles import heading, kind, overall

SPLITS = ("val", "test")
TABLE_CLASSES = 12
PER_CLASS_SHOWN = 30
TRIALS_SHOWN = 10
ERRORS_SHOWN = 50
GALLERY_SHOWN = 48
GALLERY_BYTES = 1_200_000


@dataclass(frozen=True)
class GalleryItem:
    """One picture of a gallery.

    Attributes:
        key: key of the image.
        label: true class.
        predicted: predicted class; None for samples.
        probability: probability of the predicted class; None for samples.
        thumbnail_jpeg: a small JPEG or PNG.
    """

    key: str
    label: str
    predicted: str | None
    probability: float | None
    thumbnail_jpeg: bytes


@dataclass
class ReportInputs:
    """The content of a report, which computes no metric itself.

    Attributes:
        title: title of the page.
        dataset: name of the dataset.
        command: command line of the run.
        settings: resolved settings, name to value.
        counts: `images`, `ok`, `errors`; optionally `splits` {split: {class: images}} and
            `errors_by_reason` {reason: images}. Other numbers are listed as they are.
        throughput: name to number, such as `images_per_second`.
        timings: stage to seconds.
        warnings: shown at the top, before those of the evaluation.
        evaluation: `Evaluation.to_json()`, or empty if nothing was evaluated.
        trials: the trials table, or None.
        objective: metric column of `trials` that chose the winner; the first one if None.
        objective_mode: "max" if a higher objective is better, else "min".
        history: metric to values per epoch of the winning trial (`loss`, `val_loss`, …).
        gallery: mistakes; the most confident ones are shown first.
        samples: a few images of each class.
        vectors_note: a few words about the engine that computed the vectors.
        errors: (key, stage, reason) of unreadable images; the first ones are shown.
        audit: what an audit of the images found, in one sentence; empty without one.
    """

    title: str
    dataset: str
    command: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    throughput: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    trials: pa.Table | None = None
    objective: str | None = None
    objective_mode: str = "max"
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    gallery: Sequence[GalleryItem] = ()
    samples: Sequence[GalleryItem] = ()
    vectors_note: str = ""
    errors: Sequence[tuple[str, str, str]] = ()
    audit: str = ""


def write_report(inputs: ReportInputs) -> str:
    """Render the report as one HTML document that needs no network.

    Labels, keys, paths and messages are escaped, because they come from file names of the dataset.
    """
    return render("report.html.j2", _page(inputs))


def render(template: str, page: Mapping[str, Any]) -> str:
    """Render a template of this folder as HTML; all values are escaped."""
    import jinja2

    folder = resources.files(__package__ or "visao_ray.reports")
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, duration=duration, svg_uri=_svg_uri, plain=plain)
    return environment.get_template(template).render(page)


def _page(inputs: ReportInputs) -> dict[str, Any]:
    evaluation = inputs.evaluation
    shown = "test" if evaluation.get("counts", {}).get("test", {}).get("images") else "val"
    mistakes = sorted(inputs.gallery, key=lambda item: -(item.probability or 0.0))
    return {
        "inputs": inputs,
        "shown": shown,
        "headline": [*_headline(evaluation, shown), *filter(None, [inputs.audit])],
        "warnings": list(dict.fromkeys([*inputs.warnings, *evaluation.get("warnings", ())])),
        "tiles": _tiles(evaluation, shown),
        "tables": _metric_tables(evaluation),
        "per_class": _per_class(evaluation, shown),
        "confusions": _confusion_tables(evaluation, shown),
        "top_confusions": _top_confusions(evaluation, shown),
        "confusion_map": _confusion_map(evaluation, shown),
        "quality_figures": _quality_figures(evaluation, shown),
        "probability_figures": _probability_figures(evaluation, shown),
        "sweep": _sweep(inputs),
        "mistakes": _thumbnails(mistakes),
        "mistakes_total": len(mistakes),
        "samples": _thumbnails(inputs.samples),
        "samples_total": len(inputs.samples),
        "data": _data(inputs.counts),
        "errors": list(inputs.errors[:ERRORS_SHOWN]),
        "threshold": evaluation.get("threshold"),
        "positive": evaluation.get("positive"),
        "per_class_shown": PER_CLASS_SHOWN,
    }


def _binary(evaluation: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the positive and the negative class if there are two classes and a positive one."""
    classes, positive = evaluation.get("classes", ()), evaluation.get("positive")
    if len(classes) != 2 or positive is None:
        return None
    return positive, next(name for name in classes if name != positive)


def _headline(evaluation: Mapping[str, Any], shown: str) -> list[str]:
    """Return one or two sentences that are clear without knowledge of statistics."""
    if not evaluation:
        return ["Nothing was evaluated in this run."]
    images = evaluation["counts"][shown]["images"]
    who = (
        f"On {images:,} test images that were not used for tuning,"
        if shown == "test"
        else f"There were no test images. On {images:,} val images, which were used for tuning,"
    )
    metrics, both = evaluation["metrics"], _binary(evaluation)
    if not both:
        entry = metrics[shown]
        first = (
            f"{who} the model predicted the correct class for {with_interval(entry['accuracy'])}"
        )
        if "top5" in entry:
            first += (
                f", and had it among its five most probable classes for"
                f" {with_interval(entry['top5'])}"
            )
        return [f"{first}."]
    positive, other = both
    threshold = evaluation.get("threshold")
    at = metrics[f"{shown}_at_threshold" if threshold else shown]["per_class"]
    sentences = [
        f"{who} the model found {with_interval(at[positive]['recall'])} of {positive}"
        f" and correctly passed {with_interval(at[other]['recall'])} of {other}."
    ]
    if threshold:
        sentences.append(
            f"It predicts {positive} if its probability is at least {threshold['threshold']:.3g}."
            f" This threshold was chosen on val, where it finds at least"
            f" {100 * threshold['target_recall']:g}{SPACE}% of {positive}."
        )
    return sentences


def _tiles(evaluation: Mapping[str, Any], shown: str) -> list[dict[str, Any]]:
    if not evaluation:
        return []
    metrics = evaluation["metrics"]
    both = _binary(evaluation)
    if not both:
        names = [n for n in ("top1", "top5", "balanced_accuracy", "roc_auc") if n in metrics[shown]]
        if "top1" not in names:
            names.insert(0, "accuracy")
        return [_tile(heading(name), metrics[shown][name], kind(name)) for name in names]
    positive, other = both
    suffix = "_at_threshold" if evaluation.get("threshold") else ""
    at = metrics[shown + suffix]["per_class"]
    return [
        _tile(f"of {positive} found (recall)", at[positive]["recall"], "share"),
        _tile(f"of {other} passed (recall)", at[other]["recall"], "share"),
        _tile(f"of alarms were {positive} (precision)", at[positive]["precision"], "share"),
        _tile("ROC AUC", metrics[shown]["roc_auc"], "area"),
    ]


def _tile(name: str, entry: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {"name": name} | estimate(entry, kind)


def _metric_tables(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return tables of estimates: columns are splits (at thresholds), rows are metrics."""
    if not evaluation:
        return []
    metrics, both = evaluation["metrics"], _binary(evaluation)
    if not both:
        rows = [
            (heading(name), name, [metrics[split][name] for split in SPLITS])
            for name in overall(metrics["test"])
        ]
        return [_table("Overall", [("", list(SPLITS))], rows)]

    positive, other = both
    heads = [("at 0.5", list(SPLITS))]
    columns = [metrics[split] for split in SPLITS]
    threshold = evaluation.get("threshold")
    if threshold:
        heads.append((f"at the threshold, {threshold['threshold']:.3g}", list(SPLITS)))
        columns += [metrics[f"{split}_at_threshold"] for split in SPLITS]
    rows = [
        (f"{word} {name}", metric, [column["per_class"][name][metric] for column in columns])
        for word, metric in (
            ("Recall of", "recall"),
            ("Precision of", "precision"),
            ("F1 of", "f1"),
        )
        for name in (positive, other)
    ]
    found = [metric for name, metric in METRICS.items() if name in metrics["test"]]
    rows += [
        (heading(metric.name), metric.name, [column[metric.name] for column in columns])
        for metric in found
        if metric.decides
    ]
    free = [
        (heading(metric.name), metric.name, [metrics[split][metric.name] for split in SPLITS])
        for metric in found
        if not metric.decides
    ]
    return [
        _table("Decisions", heads, rows),
        _table(
            "Ranking and probabilities, independent of the threshold", [("", list(SPLITS))], free
        ),
    ]


def _table(
    title: str,
    heads: list[tuple[str, list[str]]],
    rows: Iterable[tuple[str, str, list[Mapping[str, Any]]]],
) -> dict[str, Any]:
    return {
        "title": title,
        "heads": heads,
        "rows": [
            {
                "name": name,
                "cells": [estimate(cell, kind(metric)) for cell in cells],
            }
            for name, metric, cells in rows
        ],
    }


def _per_class(evaluation: Mapping[str, Any], shown: str) -> list[dict[str, Any]]:
    """Return rows of the per-class table, largest classes first; no rows for two classes."""
    if not evaluation or _binary(evaluation):
        return []
    entries = evaluation["metrics"][shown]["per_class"]
    order = sorted(entries, key=lambda name: (-entries[name]["support"], name))
    return [
        {
            "name": name,
            "support": entries[name]["support"],
            "cells": [
                estimate(entries[name][metric], kind)
                for metric, kind in (
                    ("recall", "share"),
                    ("precision", "share"),
                    ("f1", "area"),
                    ("roc_auc", "area"),
                )
            ],
        }
        for name in order
    ]


def _confusion_tables(evaluation: Mapping[str, Any], shown: str) -> list[dict[str, Any]]:
    """Return confusion matrices that are small enough for tables."""
    if not evaluation or len(evaluation["classes"]) > TABLE_CLASSES:
        return []
    threshold = evaluation.get("threshold")
    variants = [(shown, "at 0.5" if _binary(evaluation) else "")]
    if threshold:
        variants.append(
            (f"{shown}_at_threshold", f"at the threshold, {threshold['threshold']:.3g}")
        )
    tables = []
    for name, where in variants:
        rows = []
        for label, counts in zip(
            evaluation["classes"], evaluation["metrics"][name]["confusion"], strict=True
        ):
            total = sum(counts)
            cells = [
                {
                    "n": n,
                    "share": f"{100 * n / total:.1f}{SPACE}%" if total else "",
                    "shade": round(0.85 * n / total, 3) if total else 0,
                    "right": other == label,
                }
                for other, n in zip(evaluation["classes"], counts, strict=True)
            ]
            rows.append({"label": label, "cells": cells, "total": total})
        title = f"{shown} {where}".strip()
        tables.append({"title": title, "classes": evaluation["classes"], "rows": rows})
    return tables


def _top_confusions(evaluation: Mapping[str, Any], shown: str) -> list[dict[str, Any]]:
    if not evaluation or len(evaluation["classes"]) <= TABLE_CLASSES:
        return []
    entry = evaluation["metrics"][shown]
    return [
        {**pair, "support": entry["per_class"][pair["label"]]["support"]}
        for pair in entry["top_confusions"][:20]
    ]


def _quality_figures(evaluation: Mapping[str, Any], shown: str) -> list[Figure]:
    if not evaluation:
        return []
    curves, metrics = evaluation["curves"], evaluation["metrics"]
    present = {split: part for split, part in curves.items() if part}
    both = _binary(evaluation)
    drawn: list[Figure] = []
    if both and present:
        areas = {s: f"area {with_interval(metrics[s]['roc_auc'], 'area')}" for s in present}
        drawn.append(figures.roc(present, areas, both[0]))
        areas = {
            s: f"area {with_interval(metrics[s]['average_precision'], 'area')}" for s in present
        }
        drawn.append(figures.precision_recall(present, areas, both[0]))
    elif not both:
        classes = evaluation["classes"]
        if present and len(classes) > 2:
            drawn.append(figures.top_k(present))
        drawn.append(figures.recall_by_support(metrics[shown]["per_class"], shown))
    return drawn


def _confusion_map(evaluation: Mapping[str, Any], shown: str) -> Figure | None:
    """Return the heat map if there are too many classes for a table and few enough for a figure."""
    classes = evaluation.get("classes", ())
    matrix = evaluation["metrics"][shown]["confusion"] if evaluation else None
    if matrix is None or len(classes) <= TABLE_CLASSES:
        return None
    return figures.confusion(matrix, classes, f"Confusion matrix, {shown}")


def _probability_figures(evaluation: Mapping[str, Any], shown: str) -> list[Figure]:
    if not evaluation or not evaluation["counts"][shown]["images"]:
        return []
    both = _binary(evaluation)
    threshold = evaluation.get("threshold")
    if both:
        colors = [
            figures.POSITIVE if name == both[0] else figures.NEGATIVE
            for name in evaluation["classes"]
        ]
        x, y = f"predicted probability of {both[0]}", f"observed share of {both[0]}"
        title = f"Probabilities on {shown}, by true class"
    else:
        colors = [figures.NEGATIVE, figures.POSITIVE]
        x, y = "probability of the predicted class", "observed share of correct predictions"
        title = f"Confidence on {shown}, right and wrong"
    x, y = figures.printable(x), figures.printable(y)
    cut = threshold["threshold"] if threshold else None
    return [
        figures.probabilities(evaluation["histograms"][shown], cut, title, x, colors),
        figures.calibration(evaluation["calibration"], x, y),
    ]


def _sweep(inputs: ReportInputs) -> dict[str, Any] | None:
    """Return plots and the best trials; settings with one value in all trials are listed once."""
    table = inputs.trials
    if table is None or table.num_rows == 0:
        return None
    metric_columns = [c for c in table.column_names if c.startswith("metric.")]
    objective = inputs.objective or (metric_columns[0] if metric_columns else None)
    if objective is not None and objective not in table.column_names:
        objective = f"metric.{objective}"
    if objective is None or objective not in table.column_names:
        return None
    rows = [
        row
        for row in table.to_pylist()
        if row[objective] is not None and math.isfinite(row[objective])
    ]
    if not rows:
        return None
    sign = -1 if inputs.objective_mode == "max" else 1
    rows.sort(key=lambda row: sign * row[objective])
    settings = [c for c in table.column_names if c.startswith("setting.")]
    varied = [c for c in settings if len({plain(v) for v in table[c].to_pylist()}) > 1]
    fixed = {c.removeprefix("setting."): rows[0][c] for c in settings if c not in varied}
    others = [c for c in metric_columns if c != objective]
    columns = [objective, *others[:3], *varied]
    columns += [c for c in ("epochs", "seconds", "status") if c in table.column_names]

    name = objective.removeprefix("metric.")
    values = [float(row[objective]) for row in rows]
    drawn = [figures.sweep(values, figures.printable(name))]
    rate = next((c for c in varied if c.split(".")[-1] in {"learning_rate", "lr"}), None)
    if rate:
        pairs = [(float(r[rate]), v) for r, v in zip(rows, values, strict=True) if r[rate]]
        # The winner is the first row; the figure marks it, so it needs a rate.
        if rows[0][rate] and len(pairs) > 1:
            drawn.append(
                figures.setting_effect(
                    [x for x, _ in pairs],
                    [y for _, y in pairs],
                    rate.removeprefix("setting.").replace("_", " "),
                    figures.printable(name),
                )
            )
    curves = [k for k in inputs.history if not k.startswith("val_") and inputs.history[k]]
    drawn += [figures.learning_curves(inputs.history, curve) for curve in curves[:2]]
    return {
        "trials": table.num_rows,
        "without": table.num_rows - len(rows),
        "objective": name,
        "columns": [c.removeprefix("metric.").removeprefix("setting.") for c in columns],
        "rows": [[row[c] for c in columns] for row in rows[:TRIALS_SHOWN]],
        "fixed": fixed,
        "figures": drawn,
    }


def _data(counts: Mapping[str, Any]) -> dict[str, Any]:
    splits: Mapping[str, Mapping[str, int]] = counts.get("splits") or {}
    order = [s for s in ("train", "val", "test") if s in splits]
    order += [s for s in splits if s not in order]
    classes = list(dict.fromkeys(name for split in order for name in splits[split]))
    rows = [
        {"name": name, "counts": [splits[split].get(name, 0) for split in order]}
        for name in classes
    ]
    extra = {
        name: value
        for name, value in counts.items()
        if name not in {"images", "ok", "errors"} and isinstance(value, int | float)
    }
    reasons: Mapping[str, int] = counts.get("errors_by_reason") or {}
    return {
        "splits": order,
        "rows": rows,
        "totals": [sum(splits[split].values()) for split in order],
        "reasons": sorted(reasons.items(), key=lambda item: -item[1]),
        "extra": extra,
    }


def _thumbnails(items: Sequence[GalleryItem]) -> list[dict[str, Any]]:
    """Return the first pictures as data URIs, limited in number and total size."""
    shown: list[dict[str, Any]] = []
    budget = GALLERY_BYTES
    for item in items[:GALLERY_SHOWN]:
        budget -= len(item.thumbnail_jpeg)
        if budget < 0:
            break
        kind = "png" if item.thumbnail_jpeg.startswith(b"\x89PNG") else "jpeg"
        data = base64.b64encode(item.thumbnail_jpeg).decode("ascii")
        shown.append({"item": item, "uri": f"data:image/{kind};base64,{data}"})
    return shown


def _svg_uri(figure: Figure) -> str:
    data = base64.b64encode(figure.svg.encode("utf-8")).decode("ascii")
    return f"data:image/svg+xml;base64,{data}"
