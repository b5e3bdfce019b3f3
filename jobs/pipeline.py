"""From a bucket of images to a judged classifier: list, extract, sweep, evaluate, report.

Each stage is a job of its own with its own folder below --out, and each goes on where it was.
"""

from typing import Any

from visao_ray.bases.scanner.job import render_scans
from visao_ray.datasets.registry import find_dataset
from visao_ray.evaluation.judge import evaluate_model
from visao_ray.features.pipeline import extract_features
from visao_ray.reports.pipeline import pipeline_report
from visao_ray.runs import Run, execute, main
from visao_ray.settings import (
    EvaluateSettings,
    ExtractSettings,
    PipelineSettings,
    ScannerSettings,
    SweepSettings,
)
from visao_ray.storage import locate
from visao_ray.tuning.several import sweep_all


def run_pipeline(settings: PipelineSettings, run: Run[Any]) -> None:
    """Chain the stages; each one's result.json is its record, this run's sums them up."""
    find_dataset(settings.dataset)  # before Ray: it is often mistyped
    out = run.out
    stages: dict[str, dict[str, Any]] = {}
    data = settings.data
    if data is None:
        rendered = settings.part(ScannerSettings, out=out.join("scanner").uri, fresh=False)
        with run.timed("scanner"):
            stages["scanner"] = execute(rendered, render_scans)
        data = out.join("scanner", "images").uri
        run.warn("the images are rendered, not real: this run shows the machinery (no --data)")
    features = out.join("extract", "features").uri
    model = out.join("sweep", "head.keras").uri
    parts = {
        "extract": (
            settings.part(ExtractSettings, out=out.join("extract").uri, data=data, fresh=False),
            extract_features,
        ),
        "sweep": (
            settings.part(
                SweepSettings, out=out.join("sweep").uri, features=[features], fresh=False
            ),
            sweep_all,
        ),
        "evaluate": (
            EvaluateSettings(
                out=out.join("evaluate").uri,
                features=features,
                model=model,
                seed=settings.seed,
                target_recall=settings.target_recall,
                replicates=settings.replicates,
            ),
            evaluate_model,
        ),
    }
    for name, (part, work) in parts.items():
        with run.timed(name):
            stages[name] = execute(part, work)
    run.counts = stages["extract"]["counts"]
    run.metrics = stages["evaluate"]["metrics"]
    run.inputs = stages["extract"]["inputs"]
    for name, result in stages.items():
        run.warnings += [text for text in result["warnings"] if text not in run.warnings]
        run.throughput |= {f"{name}.{key}": value for key, value in result["throughput"].items()}
        run.details |= {name: result["details"]}
    with run.timed("report"):
        report = out.join("report.html")
        report.write_bytes(pipeline_report(run, locate(data), stages).encode())
    run.say(f"report: {report.uri}")


if __name__ == "__main__":
    main(PipelineSettings, run_pipeline)
