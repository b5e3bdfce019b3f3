"""The pipeline job: from images to an evaluated classifier, in one command.

Extract, audit (its quick part), sweep, evaluate, report. Each stage is a job with its own folder
below --out, and resumes by itself after an interruption.
"""

from __future__ import annotations

from typing import Any

from visao_ray.core.run import Run, execute
from visao_ray.datasets.registry import find_dataset
from visao_ray.datasets.settings import SourceOptions
from visao_ray.evaluation.evaluate import evaluate_model
from visao_ray.evaluation.settings import EvaluateSettings
from visao_ray.features.extract import extract_images, open_source
from visao_ray.features.settings import ExtractSettings
from visao_ray.inference.engines.registry import find_engine
from visao_ray.jobs.settings import PipelineSettings
from visao_ray.quality.audit import audit_store
from visao_ray.quality.settings import AuditSettings
from visao_ray.reports.pipeline import pipeline_report
from visao_ray.synthetic.job import render_scans
from visao_ray.synthetic.settings import RenderSettings
from visao_ray.tuning.multi_dataset import sweep_all
from visao_ray.tuning.settings import SweepSettings


def run_pipeline(settings: PipelineSettings, run: Run[Any]) -> None:
    """Run the stages; each writes its own result.json, this run writes a summary."""
    if settings.dataset is not None:
        find_dataset(settings.dataset)  # before Ray starts: names are often mistyped
    find_engine(settings)
    out, store = run.out, settings.store_uri()
    stages: dict[str, dict[str, Any]] = {}
    data = settings.data
    if data is None:
        rendered = settings.part(RenderSettings, out=out.join("synthetic").uri, fresh=False)
        with run.timed("render"):
            stages["render"] = execute(rendered, render_scans, run.command)
        data = out.join("synthetic", "images").uri
        run.warn("the images are rendered, not real: this run shows the machinery (no --data)")
    place: dict[str, Any] = {"store": store, "fresh": False}
    model = out.join("sweep", "head.keras").uri
    extract = settings.part(ExtractSettings, out=out.join("extract").uri, data=data, **place)
    if settings.data is not None:
        open_source(extract).require_classes()
    with run.timed("extract"):
        stages["extract"] = execute(extract, extract_images, run.command)
    read = {"extractor": stages["extract"]["inputs"]["extractor"]}
    if extract.augmented_views:
        read["recipe"] = f"{extract.augment}@{extract.seed}"
    audit = settings.part(AuditSettings, out=out.join("audit").uri, quick=True, **place)
    with run.timed("audit"):
        stages["audit"] = execute(audit, audit_store, run.command)
    sweep = settings.part(
        SweepSettings, out=out.join("sweep").uri, **{**place, **read, "store": [store]}
    )
    with run.timed("sweep"):
        stages["sweep"] = execute(sweep, sweep_all, run.command)
    evaluate = settings.part(
        EvaluateSettings, SourceOptions, out=out.join("evaluate").uri, model=model, **place
    )
    with run.timed("evaluate"):
        stages["evaluate"] = execute(evaluate, evaluate_model, run.command)
    run.counts = stages["extract"]["counts"]
    run.metrics = stages["evaluate"]["metrics"]
    run.inputs = {name: stages[name]["inputs"] for name in ("extract", "sweep", "evaluate")}
    for name, result in stages.items():
        run.warnings += [text for text in result["warnings"] if text not in run.warnings]
        run.throughput |= {f"{name}.{key}": value for key, value in result["throughput"].items()}
        run.details |= {name: result["details"]}
    with run.timed("report"):
        report = out.join("report.html")
        report.write_bytes(pipeline_report(run, store, stages).encode())
    run.say(f"report: {report.uri}")
