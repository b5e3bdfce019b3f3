"""Settings of the audit job."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from visao_ray.core.settings import (
    OPERATIONAL,
    ActorOptions,
    JobSettings,
    PluginOptions,
    StoreJobSettings,
)
from visao_ray.store.settings import VersionOptions


def _split_commas(given: object) -> object:
    """Accept `leak,conflict` beside repeated flags and lists."""
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list) and all(isinstance(one, str) for one in given):
        return [name.strip() for one in given for name in one.split(",") if name.strip()]
    return given


class AuditSettings(VersionOptions, PluginOptions, JobSettings):
    """Check a store before a model is trusted: leaks, duplicates, conflicts, outliers, shifts.

    Reads no image file but those on its page: vectors and small copies come from the store. Writes
    audit.html, a table with a score and a flag per file and check, and a table of pairs.
    """

    job: ClassVar[str] = "audit"
    example: ClassVar[str] = "--store s3://bucket/store --fail-on leak,conflict --out out/audit"
    writes: ClassVar[tuple[str, ...]] = ("audit.html", "findings", "pairs")

    store: str = Field(description="store of jobs/extract.py")
    extractor: str | None = Field(
        None,
        description="extractor of the vectors, if the store has more than one (see jobs/store.py)",
    )
    fail_on: Annotated[list[str], BeforeValidator(_split_commas)] = Field(
        [],
        description="checks that must find nothing, such as leak,conflict: else the exit status is "
        "1, so that the command can be a gate",
    )
    quick: bool = Field(
        False,
        description="only checks that need no vectors or pictures: seconds for a million images",
    )


class CleanSettings(VersionOptions, PluginOptions, JobSettings):
    """Find labels that are probably wrong, and make a page to decide on them.

    Every label is judged by models that saw neither the image nor its group, and by the labels of
    the other images of the group. Writes the table issues (a row per file), filter.csv (the flagged
    files as decisions to drop them) and clean.html, where keys decide: its CSV is what
    jobs/verdicts.py reads. Test labels are never judged.
    """

    job: ClassVar[str] = "clean"
    example: ClassVar[str] = "--store s3://bucket/store --minutes 30 --out out/clean"
    writes: ClassVar[tuple[str, ...]] = ("clean.html", "filter.csv", "issues")

    store: str = Field(description="store of jobs/extract.py")
    extractor: str | None = Field(
        None,
        description="extractor of the vectors, if the store has more than one (see jobs/store.py)",
    )
    rule: Literal["confident", "thresholds"] = Field(
        "confident",
        description="which labels are flagged: confident learning (cleanlab), or the study's "
        "thresholds --high and --low",
    )
    high: float = Field(
        0.9, gt=0.5, lt=1, description="thresholds: least probability of another class"
    )
    low: float = Field(
        0.3, gt=0, lt=0.5, description="thresholds: greatest probability of the positive class"
    )
    minutes: float = Field(
        10, gt=0, description="minutes that a person has: so many images are on the page"
    )
    seconds_per_image: float = Field(6, gt=0, description="seconds that a decision takes")
    include_val: bool = Field(False, description="judge the labels of val too")
    test: bool = Field(
        False,
        description="compare the ways to train on test instead of val: once, at the very end",
    )
    folds: int = Field(5, ge=2, le=100, description="parts that are judged by the others")
    repeats: int = Field(3, ge=1, le=20, description="how often the parts are drawn anew")
    c: float | None = Field(
        None, gt=0, description="inverse L2 penalty of the models (the one with the least log loss)"
    )
    replicates: int = Field(1000, ge=100, description="bootstrap replicates (whole groups)")

    @property
    def shown(self) -> int:
        """How many images are on the page."""
        return max(1, int(self.minutes * 60 / self.seconds_per_image))


class CompareSettings(VersionOptions, ActorOptions, PluginOptions, JobSettings):
    """Compare models on the same images: metrics with intervals, paired tests, disagreements.

    Predictions that the store has are read, others are computed. Writes compare.html and the table
    images (a row per image with the prediction of each model). Compares on val; with --test on
    test, once.
    """

    job: ClassVar[str] = "compare"
    example: ClassVar[str] = (
        "--store s3://bucket/store --models out/a/head.keras --models out/b/model.keras "
        "--out out/compare"
    )
    writes: ClassVar[tuple[str, ...]] = ("compare.html", "images")

    store: str = Field(description="store with the images")
    models: Annotated[list[str], BeforeValidator(_split_commas)] = Field(
        min_length=2, description="models of jobs/sweep.py or jobs/train.py (.keras): two or more"
    )
    metric: str = Field("accuracy", description="metric that differences are computed for")
    by: str | None = Field(
        None, description="column of the table images, such as batch: results for each value"
    )
    test: bool = Field(False, description="compare on test instead of val: once, at the very end")
    replicates: int = Field(1000, ge=100, description="bootstrap replicates (whole groups)")
    batch_size: int = Field(
        32, ge=1, le=4096, description="rows per batch", json_schema_extra=OPERATIONAL
    )


class VerdictsSettings(PluginOptions, StoreJobSettings):
    """Write people's decisions on images to a store: keep, relabel, drop, unsure.

    Every later job reads the store with them; no image is read again. The latest verdict on a file
    counts: keep undoes a relabel or a drop.
    """

    job: ClassVar[str] = "verdicts"
    example: ClassVar[str] = "--store s3://bucket/store --file decisions.csv --source 'Dr. Silva'"
    again: ClassVar[str] = "The same command again adds only decisions that are new."

    file: str | None = Field(
        None,
        description="CSV with the columns key, verdict (keep, relabel, drop, unsure) and, if "
        "needed, label and note",
    )
    source: str | None = Field(None, description="who decided (the name of --file)")
    save: str | None = Field(
        None, description="write the latest verdict on each file as such a CSV, after --file"
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> VerdictsSettings:
        if self.file is None and self.save is None:
            raise ValueError("--file is missing: a CSV of decisions (or --save, to write one)")
        return self
