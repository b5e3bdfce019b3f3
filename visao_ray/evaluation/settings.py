"""Settings of the evaluate and predict jobs."""

from __future__ import annotations

from datetime import date
from typing import ClassVar

from pydantic import Field, model_validator

from visao_ray.core.settings import (
    OPERATIONAL,
    ActorOptions,
    EvaluateOptions,
    JobSettings,
    PluginOptions,
    StoreJobSettings,
)
from visao_ray.datasets.settings import SourceOptions, refuse_source, require_one_source
from visao_ray.store.settings import VersionOptions


class EvaluateSettings(
    VersionOptions, EvaluateOptions, ActorOptions, SourceOptions, PluginOptions, JobSettings
):
    """Evaluate a model: threshold from val, then every metric on test, once, with intervals."""

    job: ClassVar[str] = "evaluate"
    example: ClassVar[str] = (
        "--store s3://bucket/store --model out/sweep/head.keras --out out/evaluate"
    )
    writes: ClassVar[tuple[str, ...]] = ("predictions", "embeddings", "evaluation.json", "store")

    model: str = Field(description="model of jobs/sweep.py or jobs/train.py (.keras)")
    store: str | None = Field(None, description="store of jobs/extract.py")
    batch_size: int = Field(
        32, ge=1, le=4096, description="rows per batch", json_schema_extra=OPERATIONAL
    )

    @model_validator(mode="after")
    def _source(self) -> EvaluateSettings:
        require_one_source(self)
        return self


class PredictSettings(ActorOptions, SourceOptions, PluginOptions, StoreJobSettings):
    """Predict every image that a model has not seen yet, labelled or not.

    Writes predictions to the store, predictions.csv, and day.html, which shows the images to check
    first. Without --since and --batch, both files list the images that were new to the model.
    """

    job: ClassVar[str] = "predict"
    example: ClassVar[str] = (
        "--model out/sweep/head.keras --evaluation out/evaluate/evaluation.json "
        "--store s3://bucket/store --since today"
    )

    model: str = Field(description="model of jobs/sweep.py or jobs/train.py (.keras)")
    evaluation: str | None = Field(
        None,
        description="evaluation.json of this model by jobs/evaluate.py: use the threshold that was "
        "chosen on val (default: 0.5)",
        json_schema_extra=OPERATIONAL,
    )
    since: str | None = Field(
        None,
        description="list images first seen on or after this day (UTC): today, or 2026-11-24",
        json_schema_extra=OPERATIONAL,
    )
    batch: str | None = Field(
        None,
        description="list images that were added under this batch name; new images get it too "
        "(default: today's date)",
        json_schema_extra=OPERATIONAL,
    )
    batch_size: int = Field(
        32, ge=1, le=4096, description="images per batch", json_schema_extra=OPERATIONAL
    )

    @model_validator(mode="after")
    def _choice(self) -> PredictSettings:
        if self.data is None:
            refuse_source(self, but="batch")
        if self.since is not None and self.since != "today":
            try:
                date.fromisoformat(self.since)
            except ValueError:
                raise ValueError(
                    f"--since {self.since}: must be today, or a day such as 2026-11-24"
                ) from None
        return self
