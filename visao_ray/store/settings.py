"""Settings of the export and store jobs, and options that select what jobs read from a store."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg

from visao_ray.core.settings import CommandSettings, JobSettings


class VersionOptions(BaseSettings):
    """Option for the version of a store to read."""

    as_of: str | None = Field(
        None,
        description="id of an earlier run (see its result.json): read the same versions of the "
        "store",
    )


class VectorOptions(VersionOptions):
    """Options for the vectors of a store to read."""

    extractor: str | None = Field(
        None,
        description="extractor of the vectors, if the store has more than one (see jobs/store.py)",
    )
    recipe: str | None = Field(
        None,
        description="augmented views of train to use in training too, such as G1@0 (recipe@seed)",
    )


class ExportSettings(VersionOptions, JobSettings):
    """Write a table of a store as Parquet files for DuckDB, Spark or pandas."""

    job: ClassVar[str] = "export"
    example: ClassVar[str] = (
        "--store s3://bucket/store --table predictions --join --out s3://bucket/exports/today"
    )
    writes: ClassVar[tuple[str, ...]] = ("images", "groups", "verdicts", "vectors", "predictions")

    store: str = Field(description="store that jobs/extract.py created")
    table: Literal["images", "groups", "verdicts", "vectors", "predictions"] = Field(
        description="table to export"
    )
    extractor: str | None = Field(
        None,
        description="vectors: extractor, if the store has more than one (see jobs/store.py)",
    )
    recipe: str | None = Field(
        None, description="vectors: augmented views, such as G1@0 (unaugmented images)"
    )
    model: str | None = Field(
        None,
        description="predictions: model, if the store has more than one (see jobs/store.py)",
    )
    join: bool = Field(
        False,
        description="vectors, predictions, verdicts: add the columns of images; one row per file",
    )
    where: str | None = Field(
        None,
        description="SQL condition on columns of the table or, with --join, of images, such as "
        "label = 'vazio'",
    )
    split: list[Literal["train", "val", "test"]] = Field(
        [], description="export only images of this split; may be repeated (all)"
    )

    @model_validator(mode="after")
    def _fits_table(self) -> ExportSettings:
        for flag, value, table in (
            ("--extractor", self.extractor, "vectors"),
            ("--recipe", self.recipe, "vectors"),
            ("--model", self.model, "predictions"),
        ):
            if value is not None and self.table != table:
                raise ValueError(f"{flag} is for --table {table}, not {self.table}")
        if self.join and self.table in ("images", "groups"):
            raise ValueError(f"--join is for vectors, predictions and verdicts, not {self.table}")
        if self.split and not self.join and self.table not in ("images", "groups"):
            raise ValueError(f"--split: {self.table} has no column split; add --join")
        return self


class StoreToolSettings(CommandSettings):
    """Show the status of a store, verify it, and keep it small.

    status and verify only read; the other actions take the store's lease. verify exits with status
    1 if it finds a problem.
    """

    job: ClassVar[str] = "store"
    example: ClassVar[str] = "status --store s3://bucket/store"

    action: CliPositionalArg[Literal["status", "verify", "compact", "clean", "forget"]] = Field(
        description="status: show tables, images, coverage, runs; verify: check that no row is "
        "missing or duplicated; compact: merge small files; clean: remove old versions; forget: "
        "release the versions that a run read"
    )
    run: CliPositionalArg[str | None] = Field(
        None, description="forget: id of the run, from status or its result.json"
    )
    store: str = Field(description="folder or s3://bucket/prefix of the store")
    as_json: bool = Field(False, alias="json", description="status: print JSON")
    older_than: timedelta | None = Field(
        None,
        ge=timedelta(0),
        description="clean: remove versions of this age that no run has read, such as 7d (14d)",
    )

    @model_validator(mode="after")
    def _fits_action(self) -> StoreToolSettings:
        for name, value, action in (
            ("RUN", self.run, "forget"),
            ("--json", self.as_json or None, "status"),
            ("--older-than", self.older_than, "clean"),
        ):
            if value is not None and self.action != action:
                raise ValueError(f"{name} is for {action}, not {self.action}")
        if self.action == "forget" and self.run is None:
            raise ValueError("forget: RUN is missing: id of a run, from status")
        return self
