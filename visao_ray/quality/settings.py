"""Settings of the jobs about the quality of data and models."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from visao_ray.core.settings import (
    OPERATIONAL,
    ActorOptions,
    JobSettings,
    PluginOptions,
    StoreJobSettings,
    split_commas,
)
from visao_ray.images.recipes import RECIPES
from visao_ray.images.settings import RECIPE_NAMES
from visao_ray.store.settings import VersionOptions


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
    fail_on: Annotated[list[str], BeforeValidator(split_commas)] = Field(
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


class AugmentSettings(PluginOptions, StoreJobSettings):
    """Write augmented copies of train images as JPEG files, for tools that train from folders.

    Val and test are never augmented. Each copy is a row of the store with its source, recipe, seed
    and view, and says so in its JPEG comment. Writes labels.csv (label, group and split of every
    copy, for --labels) and copies.jpg, a picture of some. The jobs of this library need no files:
    extract --augment and train --augment draw the same pixels.
    """

    job: ClassVar[str] = "augment"
    example: ClassVar[str] = "--store s3://bucket/store --recipe G1 --copies 3"
    again: ClassVar[str] = (
        "The same command again makes copies of new images, and removes those of images that were "
        "dropped or relabelled."
    )
    writes: ClassVar[tuple[str, ...]] = ("labels.csv", "copies.jpg")

    recipe: str = Field("G1", description=f"augmentation recipe: {RECIPE_NAMES}")
    copies: int = Field(2, ge=0, le=1000, description="augmented copies per image")
    balance: bool = Field(
        False,
        description="make as many copies of each class as of the largest one, which gets --copies "
        "per image",
    )
    most_copies: int = Field(20, ge=1, le=1000, description="most copies of one image: --balance")
    originals: bool = Field(
        False, description="write each image itself too, resized only, as view 0"
    )
    name: str | None = Field(
        None, pattern=r"^[\w@-]+$", description="name of the copies in the store (RECIPE@SEED)"
    )
    folder: str | None = Field(
        None, description="empty folder or s3://bucket/prefix for the files (STORE/copies/NAME)"
    )
    image_size: int = Field(224, ge=16, le=2048, description="side of the copies, in pixels")
    resize: Literal["stretch", "letterbox"] = Field(
        "stretch", description="stretch, or letterbox to keep the aspect ratio"
    )
    quality: int = Field(95, ge=1, le=100, description="quality of the JPEG files")
    rows_per_block: int = Field(
        64, ge=1, description="images that a task reads", json_schema_extra=OPERATIONAL
    )

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, name: str) -> str:
        return RECIPES.find(name, "--recipe").name

    @model_validator(mode="after")
    def _something_to_make(self) -> AugmentSettings:
        if self.copies and self.recipe == "none":
            raise ValueError(
                "--recipe none changes no pixel; choose another, or --copies 0 --originals"
            )
        if not self.copies and not self.originals:
            raise ValueError("--copies 0 makes nothing; add --originals, or ask for 1 or more")
        return self


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
    models: Annotated[list[str], BeforeValidator(split_commas)] = Field(
        min_length=2, description="models of jobs/sweep.py or jobs/train.py (.keras): two or more"
    )
    metric: str = Field("accuracy", description="metric that differences are computed for")
    by: str | None = Field(
        None, description="column of the table images, such as batch: results for each value"
    )
    test: bool = Field(False, description="compare on test instead of val: once, at the very end")
    timings: int = Field(
        0,
        ge=0,
        description="measure time and memory of each model on so many images, from files and, if "
        "it takes vectors, from those in the store; on an otherwise idle cluster",
    )
    weights: Annotated[list[str], BeforeValidator(split_commas)] = Field(
        ["imagenet"],
        description="--timings: weights of the networks that made the vectors, as in extract",
    )
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
