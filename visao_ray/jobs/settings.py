"""Settings of the pipeline: those of the jobs that it runs."""

from __future__ import annotations

from typing import ClassVar, get_args

from pydantic import model_validator

from visao_ray.core.settings import EvaluateOptions, JobSettings, PluginOptions
from visao_ray.datasets.settings import SourceOptions
from visao_ray.inference.settings import ExtractOptions
from visao_ray.synthetic.settings import RenderOptions, Synthetic
from visao_ray.tuning.settings import SweepOptions


class PipelineSettings(
    ExtractOptions,
    SweepOptions,
    EvaluateOptions,
    RenderOptions,
    SourceOptions,
    PluginOptions,
    JobSettings,
):
    """Extract, sweep, evaluate and report: from images to an evaluated classifier.

    Without --data, synthetic scans are rendered first, so that it runs anywhere.
    """

    job: ClassVar[str] = "pipeline"
    example: ClassVar[str] = "--dataset chest_xray --data chest_xray --out out/chest"
    writes: ClassVar[tuple[str, ...]] = (
        "synthetic",
        "store",
        "extract",
        "audit",
        "sweep",
        "evaluate",
        "report.html",
    )

    @model_validator(mode="after")
    def _source(self) -> PipelineSettings:
        if self.data is None and self.dataset not in get_args(Synthetic):
            raise ValueError(
                f"--dataset {self.dataset}: scans are rendered for "
                f"{', '.join(get_args(Synthetic))} alone; give --data"
            )
        return self
