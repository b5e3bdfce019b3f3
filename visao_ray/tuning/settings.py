"""Settings of the sweep."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings

from visao_ray.core.settings import JobSettings, PluginOptions, WorkerOptions
from visao_ray.evaluation.metrics import METRICS
from visao_ray.store.settings import VectorOptions


class SweepOptions(BaseSettings):
    """Options of the search."""

    trials: int = Field(16, ge=1, description="heads to try")
    epochs: int = Field(30, ge=1, description="most epochs of a trial")
    patience: int = Field(
        6, ge=1, description="epochs without a better val objective after which a trial stops"
    )
    objective: str | None = Field(
        None,
        description=f"val metric that ranks heads: {', '.join(METRICS.built_in)} (roc_auc for two "
        "classes, else macro_f1)",
    )
    objective_class: str | None = Field(
        None, description="class of a metric of one class (the dataset's positive class)"
    )
    precision_floor: float = Field(
        0.9, gt=0, le=1, description="least precision of recall_at_precision"
    )
    search: Literal["random", "tpe"] = Field(
        "random", description="draw heads, or let Optuna's TPE learn from earlier trials"
    )
    reduction_factor: int = Field(
        3,
        ge=1,
        description="N of successive halving: after epochs N, N², … only one trial in N goes on "
        "(1: off)",
    )
    max_concurrent_trials: int = Field(
        8,
        ge=1,
        description="most trials at the same time; trial n learns from those up to "
        "n - MAX_CONCURRENT_TRIALS, so results depend on this number but not on the machine",
    )
    folds: int = Field(
        1,
        ge=1,
        le=20,
        description="1: evaluate on val; more: grouped folds of train and val together",
    )
    finalists: int = Field(
        10,
        ge=0,
        description="best trials that get intervals, and class-weight curves for two classes",
    )
    space: dict[str, Any] = Field(
        {},
        description='what to search, as JSON or a TOML table [space]: {"units": [64, 128], '
        '"learning_rate": {"low": 1e-4, "high": 1e-2, "log": true}}; the names are those of the '
        "settings of a head; visao_ray/tuning/space.py has the defaults",
    )

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, name: str | None) -> str | None:
        return name if name is None else METRICS.find(name, "--objective").name


class SweepSettings(SweepOptions, VectorOptions, WorkerOptions, PluginOptions, JobSettings):
    """Search the head's hyperparameters and class weights on a store's vectors; val chooses."""

    job: ClassVar[str] = "sweep"
    example: ClassVar[str] = "--store s3://bucket/store --out s3://bucket/runs/sweep"
    writes: ClassVar[tuple[str, ...]] = (
        "trials",
        "history",
        "class_weight_curves",
        "head.keras",
        "head.toml",
        "report.html",
        "tensorboard",
        "tune",
    )

    store: list[str] = Field(
        min_length=1,
        description="store that jobs/extract.py made; repeat the flag to sweep several datasets "
        "side by side under one report",
    )
    rows: int | None = Field(
        None,
        ge=2,
        description="search on a sample of about N train and val images (whole groups, same class "
        "proportions); the best heads are then fitted on all rows",
    )

    @model_validator(mode="after")
    def _one_store(self) -> SweepSettings:
        if len(self.store) > 1 and (self.extractor is not None or self.as_of is not None):
            raise ValueError("--extractor and --as-of are for one --store")
        return self
