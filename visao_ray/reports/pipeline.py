"""The page of a whole pipeline run, gathered from what its stages left behind."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.compute as pc

from visao_ray import tables
from visao_ray.images.decode import DecodeError, thumbnail
from visao_ray.reports.report import (
    ERRORS_SHOWN,
    GALLERY_SHOWN,
    GalleryItem,
    ReportInputs,
    write_report,
)
from visao_ray.runs import Run
from visao_ray.storage import Location

_THUMBNAIL = 224  # longer side in pixels
_SAMPLES = 24
_LOWER_IS_BETTER = frozenset({"log_loss"})


def pipeline_report(run: Run[Any], data: Location, stages: Mapping[str, Mapping[str, Any]]) -> str:
    """HTML of a finished pipeline: what was read, which head won, how good it is, where it fails.

    Args:
        run: the pipeline's run; its counts, timings and warnings are told.
        data: the dataset; pictures of mistakes and samples are read from it.
        stages: result.json of `extract`, `sweep` and `evaluate`.
    """
    settings = run.settings
    dataset = stages["evaluate"]["inputs"]["dataset"]["name"]
    evaluation = json.loads(run.out.join("evaluate", "evaluation.json").read_bytes())
    sweep = run.out.join("sweep")
    trials = tables.open_table(sweep.join("trials"), "trials").to_table()
    winner = stages["sweep"]["details"]["winner"]["trial"]
    history = tables.open_table(sweep.join("history"), "history").to_table()
    history = history.filter(pc.equal(history["number"], winner)).sort_by("epoch")
    objective = stages["sweep"]["details"]["objective"]["name"]
    about = stages["extract"]["details"]["about"]
    counts = stages["extract"]["counts"]
    return write_report(
        ReportInputs(
            title=f"{dataset}: from images to a judged classifier",
            dataset=dataset,
            command=f"python jobs/pipeline.py {' '.join(sys.argv[1:])}".strip(),
            settings=settings.model_dump(mode="json"),
            counts={**counts, "splits": counts["by_split"]},
            throughput=run.throughput,
            timings=run.timings,
            warnings=run.warnings,
            evaluation=evaluation,
            trials=trials,
            objective=objective,
            objective_mode="min" if objective in _LOWER_IS_BETTER else "max",
            history={
                "loss": history["train_loss"].to_pylist(),
                "val_loss": history["val_loss"].to_pylist(),
            },
            gallery=_gallery(data, evaluation["mistakes"][:GALLERY_SHOWN]),
            samples=_gallery(data, _samples(run.out.join("extract", "features"))),
            weights_note=f"{about['backbone']}, {about['weights']} weights "
            f"(sha256 {about['weights_digest'][:12]}…)",
            errors=_errors(run.out.join("extract", "errors")),
        )
    )


def _samples(features: Location) -> list[dict[str, Any]]:
    """A few images of every class, the first in the table, taken in turn."""
    by_label: dict[str, list[str]] = {}
    table = tables.open_table(features, "features")
    for batch in table.to_batches(columns=["key", "label"], filter=pc.field("view") == 0):
        for row in batch.to_pylist():
            keys = by_label.setdefault(row["label"], [])
            if len(keys) < _SAMPLES:
                keys.append(row["key"])
    each = max(1, _SAMPLES // max(len(by_label), 1))
    labels = sorted(by_label)[:_SAMPLES]
    return [
        {"key": key, "label": label, "predicted": None, "probability": None}
        for label in labels
        for key in sorted(by_label[label])[:each]
    ]


def _gallery(data: Location, rows: Sequence[Mapping[str, Any]]) -> list[GalleryItem]:
    with ThreadPoolExecutor(8) as pool:
        pictures: Iterable[bytes | None] = pool.map(lambda row: _picture(data, row["key"]), rows)
    return [
        GalleryItem(row["key"], row["label"], row["predicted"], row["probability"], picture)
        for row, picture in zip(rows, pictures, strict=True)
        if picture is not None
    ]


def _picture(data: Location, key: str) -> bytes | None:
    try:
        image = thumbnail(data.join(key).read_bytes(), _THUMBNAIL)
    except (OSError, DecodeError):
        return None  # gone since it was extracted: the page does without its picture
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=80)
    return sink.getvalue()


def _errors(location: Location) -> list[tuple[str, str, str]]:
    if not tables.rows(location):
        return []
    found: list[tuple[str, str, str]] = []
    for batch in tables.batches(location, "errors", ["key", "stage", "message"]):
        found += [(row["key"], row["stage"], row["message"]) for row in batch.to_pylist()]
        if len(found) >= ERRORS_SHOWN:
            break
    return sorted(found)[:ERRORS_SHOWN]
