"""Settings of the jobs that look into a store, and groups that say what of it is read."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg

from visao_ray.core.settings import CommandSettings, JobSettings


class VersionOptions(BaseSettings):
    """At which version a store is read."""

    as_of: str | None = Field(
        None,
        description="id of an earlier run (in its result.json): read the store as that run did",
    )


class VectorOptions(VersionOptions):
    """Which vectors of a store are read, and at which version."""

    extractor: str | None = Field(
        None, description="whose vectors, where the store has those of several (jobs/store.py)"
    )
    recipe: str | None = Field(
        None, description="augmented views of train to learn from too, such as G1@0 (recipe@seed)"
    )


class ExportSettings(VersionOptions, JobSettings):
    """Write a table of a store as Parquet files for DuckDB, Spark or pandas."""

    job: ClassVar[str] = "export"
    example: ClassVar[str] = (
        "--store s3://bucket/store --table predictions --join --out s3://bucket/exports/today"
    )
    writes: ClassVar[tuple[str, ...]] = ("images", "groups", "verdicts", "vectors", "predictions")

    store: str = Field(description="store that jobs/extract.py made")
    table: Literal["images", "groups", "verdicts", "vectors", "predictions"] = Field(
        description="which table"
    )
    extractor: str | None = Field(
        None, description="vectors: whose, where the store has those of several (jobs/store.py)"
    )
    recipe: str | None = Field(
        None, description="vectors: augmented views, such as G1@0 (images as they are)"
    )
    model: str | None = Field(
        None, description="predictions: whose, where the store has those of several (jobs/store.py)"
    )
    join: bool = Field(
        False,
        description="vectors, predictions, verdicts: with the columns of images, one row a file "
        "that has them",
    )
    where: str | None = Field(
        None,
        description="SQL condition on columns of the table; with --join on columns of the table or "
        "of images: label = 'vazio'",
    )
    split: list[Literal["train", "val", "test"]] = Field(
        [], description="images of this split alone; may be given again (all)"
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
            raise ValueError(f"--split: {self.table} have no split; add --join")
        return self


class StoreToolSettings(CommandSettings):
    """What is in a store, whether it is sound, and how to keep it small.

    status and verify only read; the others take the store's lease. verify ends with status 1 where
    something is wrong.
    """

    job: ClassVar[str] = "store"
    example: ClassVar[str] = "status --store s3://bucket/store"

    action: CliPositionalArg[Literal["status", "verify", "compact", "clean", "forget"]] = Field(
        description="status: tables, images, coverage, runs; verify: is all there, once; compact: "
        "join small files; clean: remove old versions; forget: release what a run read"
    )
    run: CliPositionalArg[str | None] = Field(
        None, description="forget: id of the run, as status and its result.json have it"
    )
    store: str = Field(description="folder or s3://bucket/prefix of the store")
    as_json: bool = Field(False, alias="json", description="status: print JSON")
    older_than: timedelta | None = Field(
        None,
        ge=timedelta(0),
        description="clean: age from which on versions go that no run has read, such as 7d (14d)",
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
            raise ValueError("forget: RUN is missing: id of a run, as status shows it")
        return self
