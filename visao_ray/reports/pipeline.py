"""The report of a pipeline run, from the output of its stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from visao_ray.core import tables
from visao_ray.core.run import Run
from visao_ray.evaluation.metrics import METRICS
from visao_ray.reports.audit import SERIOUS
from visao_ray.reports.pictures import read_pictures
from visao_ray.reports.report import (
    ERRORS_SHOWN,
    GALLERY_SHOWN,
    GalleryItem,
    ReportInputs,
    write_report,
)
from visao_ray.store import schemas
from visao_ray.store.store import Store
from visao_ray.store.table import TableVersion, quoted

_SAMPLES = 24


def pipeline_report(run: Run[Any], store: str, stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the report of a finished pipeline: images, sweep, metrics and mistakes.

    Args:
        run: run of the pipeline; the report shows its settings, timings and warnings.
        store: URI of the store; the report shows images from it.
        stages: result.json of `extract`, `audit`, `sweep` and `evaluate`.

    Returns:
        The HTML.
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
    counts = stages["extract"]["counts"]["store"]
    images = Store.open(store).images.latest()
    return write_report(
        ReportInputs(
            title=f"{dataset}: from images to an evaluated classifier",
            dataset=dataset,
            command=run.command,
            settings=settings.model_dump(mode="json"),
            counts={**counts, "splits": counts["by_split"]},
            throughput=run.throughput,
            timings=run.timings,
            warnings=run.warnings,
            evaluation=evaluation,
            trials=trials,
            objective=objective,
            objective_mode="max" if METRICS[objective].greater_is_better else "min",
            history={
                "loss": history["train_loss"].to_pylist(),
                "val_loss": history["val_loss"].to_pylist(),
            },
            gallery=_gallery(evaluation["mistakes"][:GALLERY_SHOWN]),
            samples=_gallery(_samples(images, counts["by_split"])),
            vectors_note=_vectors_note(stages["extract"]),
            errors=_errors(images),
            audit=_audit_sentence(stages["audit"]),
        )
    )


def _audit_sentence(audit: Mapping[str, Any]) -> str:
    """Say what an audit found of the problems that make metrics wrong."""
    summaries = audit["details"]["summaries"]
    found = "; ".join(summaries[name] for name in SERIOUS)
    return f"Audit: {found}. The page of the audit is audit/audit.html."


def _vectors_note(extract: Mapping[str, Any]) -> str:
    """Return the name of the vectors, and the digest of the weights of an engine that has some."""
    digest = extract["details"]["metadata"].get("weights_digest", "")
    weights = f" (weights with sha256 {digest[:12]}…)" if digest else ""
    return f"vectors of {extract['inputs']['extractor']}{weights}"


def _samples(
    images: TableVersion, by_split: Mapping[str, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """Return a few images of every class, the first ones in the table."""
    labels = sorted({label for found in by_split.values() for label in found if label})[:_SAMPLES]
    each = max(1, _SAMPLES // max(len(labels), 1))
    table = images.open()
    rows = []
    for label in labels:
        where = f"status = '{schemas.OK}' AND label = {quoted(label)}"
        keys = table.to_table(columns=["key"], filter=where, limit=each)["key"].to_pylist()
        rows += [
            {"key": key, "label": label, "predicted": None, "probability": None}
            for key in sorted(keys)
        ]
    return rows


def _gallery(rows: Sequence[Mapping[str, Any]]) -> list[GalleryItem]:
    pictures = read_pictures(row["key"] for row in rows)
    return [
        GalleryItem(row["key"], row["label"], row["predicted"], row["probability"], picture)
        for row, picture in zip(rows, pictures, strict=True)
        if picture is not None  # else deleted since it was extracted
    ]


def _errors(images: TableVersion) -> list[tuple[str, str, str]]:
    """Return key, status and reason of images that cannot be used."""
    where = f"status != '{schemas.OK}'"
    columns = ["key", "status", "error"]
    rows = images.open().to_table(columns=columns, filter=where, limit=ERRORS_SHOWN).to_pylist()
    return sorted((row["key"], row["status"], row["error"] or "") for row in rows)
