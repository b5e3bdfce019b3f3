"""Settings of the sweep."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings

from visao_ray.core.settings import JobSettings, PluginOptions, WorkerOptions
from visao_ray.evaluation.metrics import METRICS
from visao_ray.store.settings import VectorOptions


class SweepOptions(BaseSettings):
    """How the head is searched."""

    trials: int = Field(16, ge=1, description="heads to try")
    epochs: int = Field(30, ge=1, description="most epochs a trial")
    patience: int = Field(6, ge=1, description="epochs without a better val objective to stop")
    objective: str | None = Field(
        None,
        description=f"val metric that chooses: {', '.join(METRICS.built_in)} (roc_auc for two "
        "classes, else macro_f1)",
    )
    objective_class: str | None = Field(
        None, description="class that a metric of one class is about (the dataset's positive)"
    )
    precision_floor: float = Field(
        0.9, gt=0, le=1, description="precision that recall_at_precision must keep"
    )
    search: Literal["random", "tpe"] = Field(
        "random", description="draw heads, or let Optuna's TPE learn from those before"
    )
    halving: int = Field(
        3,
        ge=1,
        description="successive halving: past epochs N, N², … only one trial in N goes on (1: off)",
    )
    at_once: int = Field(
        8,
        ge=1,
        description="most trials at once; trial n learns from those up to n - AT_ONCE, so results "
        "depend on this number but not on the machine",
    )
    folds: int = Field(
        1, ge=1, le=20, description="1: val judges; more: grouped folds of train and val together"
    )
    finalists: int = Field(
        10, ge=0, description="best trials that get intervals, and levers for two classes"
    )
    space: dict[str, Any] = Field(
        {},
        description='what to search, as JSON or a TOML table [space]: {"units": [64, 128], '
        '"learning_rate": {"low": 1e-4, "high": 1e-2, "log": true}}; the names are those of a '
        "head's settings, the defaults stand in visao_ray/tuning/space.py",
    )

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return name if name is None else METRICS.find(name, "--objective").name


class SweepSettings(SweepOptions, VectorOptions, WorkerOptions, PluginOptions, JobSettings):
    """Search the head's hyperparameters and class weights on a store's vectors; val chooses."""

    job: ClassVar[str] = "sweep"
    example: ClassVar[str] = "--store s3://bucket/store --out s3://bucket/runs/sweep"
    writes: ClassVar[tuple[str, ...]] = (
        "trials",
        "history",
        "levers",
        "head.keras",
        "head.toml",
        "report.html",
        "tensorboard",
        "tune",
    )

    store: list[str] = Field(
        min_length=1,
        description="store that jobs/extract.py made; give several for several datasets, side by "
        "side under one report",
    )
    rows: int | None = Field(
        None,
        ge=2,
        description="search on a sample of about N train and val images, of whole groups, with the "
        "classes in their shares; the best heads are then fitted on all",
    )

    @model_validator(mode="after")
    def _one_store(self) -> SweepSettings:
        if len(self.store) > 1 and (self.extractor is not None or self.as_of is not None):
            raise ValueError("--extractor and --as-of are for one --store")
        return self
