"""The typed settings of every job, and the one place where their values are checked.

A setting is a field here and nowhere else: its flag, its key in a TOML file, its default, its check
and its line in `--help` come from the field. Flags win over the file given by `--settings`.
"""

from __future__ import annotations

import difflib
import inspect
import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from visao_ray.core import plugins
from visao_ray.core.errors import InputError
from visao_ray.core.resources import Worker

C = TypeVar("C", bound="CommandSettings")
S = TypeVar("S", bound="JobSettings")

#: Marks settings that change how a job runs but not what it makes: a resumed run may change them.
OPERATIONAL: dict[str, Any] = {"operational": True}

#: Marks settings that stand in a fixed place on the command line, without a flag.
_POSITIONAL = get_args(CliPositionalArg[str])[1]

#: Datasets whose scans can be rendered.
Synthetic = Literal["chest_xray", "vazios", "ncm"]
Activation = Literal["relu", "gelu", "tanh"]
_DATASET = "chest_xray, vazios, ncm, or FILE.toml that describes another dataset"
ClassWeight = Literal["none", "balanced", "effective", "root"] | dict[str, float]


class CommandSettings(BaseSettings):
    """What all commands share.

    Attributes:
        job: name of the file in jobs/; empty for groups of settings.
        example: flags to try, for `--help`.
        again: what the same command does the second time, for `--help`.
    """

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
        extra="forbid",
        frozen=True,
    )

    job: ClassVar[str] = ""
    example: ClassVar[str] = ""
    again: ClassVar[str] = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Let `--help` end with a command to try."""
        super().__pydantic_init_subclass__(**kwargs)
        if cls.job:
            command = f"  %(prog)s {cls.example}"  # argparse writes the name of the program there
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__ or '')}\n\n{command}\n\n{cls.again}"

    @classmethod
    def variant(cls, arguments: Sequence[str], values: Mapping[str, Any]) -> type[Self]:
        """The class that settings are checked by; a job may have several.

        Args:
            arguments: of the command line.
            values: of the TOML file, by name.
        """
        return cls

    @classmethod
    def foreign(cls, name: str) -> str | None:
        """Why a setting is none of this class, if it is one of another variant."""
        return None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # never from environment variables: a run must be told in full


class JobSettings(CommandSettings):
    """What all jobs share: an output folder with a result.json.

    Attributes:
        writes: what the job writes below `out`, beside run.json and result.json.
    """

    again: ClassVar[str] = "The same command again goes on where an interrupted run was."
    writes: ClassVar[tuple[str, ...]] = ()

    out: str = Field(description="folder or s3://bucket/prefix for the tables and result.json")
    seed: int = Field(0, ge=0, description="same seed, same result")
    fresh: bool = Field(
        False,
        description="start anew; what an earlier run left in --out is moved to OUT/previous/. "
        "Without it (or with --resume) an unfinished run goes on where it was",
        json_schema_extra=OPERATIONAL,
    )

    def identity(self) -> dict[str, Any]:
        """The settings that decide what the job makes: those that a resumed run must repeat."""
        how = {
            name
            for name, field in type(self).model_fields.items()
            if (field.json_schema_extra or {}) == OPERATIONAL
        }
        return self.model_dump(mode="json", exclude=how | {"out"})

    def part(self, kind: type[S], without: type[BaseSettings] | None = None, **changes: Any) -> S:
        """The settings of another job that this one contains, with `changes`.

        Args:
            kind: of the other job.
            without: a group of settings that are left at their defaults.
            changes: values by name.
        """
        left_out = without.model_fields if without is not None else {}
        shared = {
            name: value
            for name, value in self
            if name in kind.model_fields and name not in left_out
        }
        return kind(**{**shared, **changes})


class PluginOptions(BaseSettings):
    """What is added to the library's datasets, metrics, families and engines."""

    plugin: list[str] = Field(
        [],
        description="FILE.py, or import path of a module on all nodes, that registers a dataset, "
        "metric, family or engine (see examples/); may be given again",
    )

    @model_validator(mode="before")
    @classmethod
    def _load_plugins(cls, values: Any) -> Any:
        """Before other settings are checked: they may be names that a plugin registers."""
        given = values.get("plugin", ())
        if isinstance(given, list | tuple) and all(isinstance(one, str) for one in given):
            plugins.load(given)  # a value of another type is refused as that of any setting is
        return values


class StoreOptions(BaseSettings):
    """Where the dataset's store is."""

    store: str | None = Field(
        None, description="folder or s3://bucket/prefix of the dataset's store (OUT/store)"
    )

    def store_uri(self) -> str:
        """The store: --store, or one below --out."""
        if self.store is not None:
            return self.store
        return f"{str(getattr(self, 'out', None) or '').rstrip('/')}/store"


class StoreJobSettings(StoreOptions, JobSettings):
    """What jobs share that read and write a store."""

    again: ClassVar[str] = "The same command again does what is new."

    out: str | None = Field(  # type: ignore[assignment]
        None, description="folder or s3://bucket/prefix for result.json (STORE/runs/DATE-JOB)"
    )

    @model_validator(mode="after")
    def _places(self) -> StoreJobSettings:
        if self.out is None and self.store is None:
            raise ValueError("--store is missing: folder or s3://bucket/prefix of the store")
        if self.fresh:
            raise ValueError("--fresh: a store only grows; choose another --store to start anew")
        return self

    def out_uri(self, started: str) -> str:
        """The folder of a start at that time: --out, or one below the store."""
        if self.out is not None:
            return self.out
        return f"{self.store_uri().rstrip('/')}/runs/{started.replace(':', '-')}-{self.job}"


class SourceOptions(StoreOptions):
    """Which images, and what is known of them."""

    dataset: str | None = Field(
        None,
        description=f"{_DATASET}; a store that exists knows its own",
        json_schema_extra=OPERATIONAL,
    )
    data: str | None = Field(
        None,
        description="folder or s3://bucket/prefix of images. A folder named like a class gives its "
        "label, a train, val or test folder above it the split; other images have no label",
    )
    labels: str | None = Field(
        None,
        description="CSV or Parquet with the columns key, label, group, split (key needed): sets "
        "them for images that are in the store or enter now",
    )
    batch: str | None = Field(
        None,
        description="name under which new images enter (today's date)",
        json_schema_extra=OPERATIONAL,
    )
    mark_missing: bool = Field(
        False,
        description="write down which images of the store are not below --data any more",
        json_schema_extra=OPERATIONAL,
    )
    val_share: float = Field(0.1, gt=0, lt=1, description="share drawn for val if no val/ folder")
    test_share: float = Field(
        0.1, gt=0, lt=1, description="share drawn for test if no test/ folder"
    )
    ignore: list[str] = Field(
        [], description="name of a folder to leave out; may be given again (hidden ones always are)"
    )
    limit: int | None = Field(
        None, ge=1, description="at most N images, taken evenly from the class folders"
    )
    max_errors: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of unusable new images above which the job fails (after writing them)",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _leave_train(self) -> SourceOptions:
        if self.val_share + self.test_share >= 1:
            raise ValueError("--val-share and --test-share leave nothing to train on")
        return self


class ManifestSettings(SourceOptions, PluginOptions, StoreJobSettings):
    """List --data against a store: what is new, changed or gone. Reads no pixel; sets --labels."""

    job: ClassVar[str] = "manifest"
    example: ClassVar[str] = "--data s3://bucket/vazios --store s3://bucket/store"

    @model_validator(mode="after")
    def _needs_data(self) -> ManifestSettings:
        _require_data(self)
        for name in ("batch", "max_errors", "val_share", "test_share"):
            if getattr(self, name) != type(self).model_fields[name].default:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} belongs to jobs/extract.py: a manifest reads no image")
        return self


def _require_data(settings: SourceOptions) -> None:
    if settings.data is None:
        raise ValueError("--data is missing: folder or s3://bucket/prefix of images")


def _refuse_source(settings: SourceOptions, but: str = "") -> None:
    """A flag that belongs to --data would do nothing without it."""
    for name in ("labels", "batch", "mark_missing", "val_share", "test_share", "ignore", "limit"):
        if name != but and getattr(settings, name) != type(settings).model_fields[name].default:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} belongs to --data; a store is read as it is")


def require_one_source(settings: Any) -> None:
    """Either images to read first, or a store that has them."""
    if (settings.data is None) == (settings.store is None):
        raise ValueError("give either --store or --data (images outside a store)")
    if settings.data is None:
        _refuse_source(settings)


class ImageOptions(BaseSettings):
    """How images become pixels."""

    image_size: int | None = Field(
        None, ge=32, le=1024, description="side in pixels (224, or what the .keras model takes)"
    )
    resize: Literal["stretch", "letterbox"] = Field("stretch", description="how to make it square")


class BackboneOptions(ImageOptions):
    """Which network, with which weights, and how images fit its input."""

    backbone: str | None = Field(
        None,
        description="any keras.applications model by name (densenet121 unless --weights is a whole "
        "model)",
    )
    weights: str = Field(
        "imagenet",
        description="imagenet | random | URI of a .weights.h5 for the backbone | URI of a .keras "
        "model that takes RGB 0-255 and ends in a feature map",
    )
    weights_fallback: Literal["none", "random"] = Field(
        "none",
        description="what to do when the imagenet weights cannot be downloaded: fail, or go on "
        "with random ones and say so in every output (for demonstrations)",
    )
    preprocessing: Literal["imagenet", "unit"] = Field(
        "imagenet",
        description="imagenet: as the weights were trained; unit: divide by 255 as the 2019 study",
    )


class WorkerOptions(BaseSettings):
    """What each process that holds a network takes of the cluster."""

    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        description="GPUs a worker, fractions allowed (1 where there is a GPU, else 0)",
        json_schema_extra=OPERATIONAL,
    )
    memory_per_worker: float | None = Field(
        None,
        gt=0,
        description="GiB a worker; it goes where a node has them left",
        json_schema_extra=OPERATIONAL,
    )
    worker_resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="NAME=AMOUNT of a resource that nodes declare (ray start --resources): workers "
        "run on those nodes alone",
        json_schema_extra=OPERATIONAL,
    )

    def worker(self) -> Worker:
        """As the cluster is asked for it."""
        return Worker(self.gpus_per_worker, self.memory_per_worker, self.worker_resources)


class ActorOptions(WorkerOptions):
    """The actors that hold a network."""

    workers: int | None = Field(
        None,
        ge=1,
        description="actors that hold the network (one a GPU share; without GPUs one a node)",
        json_schema_extra=OPERATIONAL,
    )


class ExtractOptions(BackboneOptions, ActorOptions):
    """How pixels become vectors."""

    engine: str = Field("keras", description="what computes them: keras, or what a --plugin adds")
    augment: Literal["none", "G1", "G2", "G3", "G4", "G5"] = Field(
        "none", description="the study's augmentation recipe for extra views of train images"
    )
    views: int | None = Field(
        None, ge=0, le=100, description="augmented views an image, beside the image as it is (1)"
    )
    batch_size: int = Field(
        32, ge=1, le=1024, description="images a step", json_schema_extra=OPERATIONAL
    )
    rows_per_block: int = Field(
        64,
        ge=1,
        description="images a block: what is read, extracted and committed together",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _views(self) -> ExtractOptions:
        if self.augment == "none" and self.views:
            raise ValueError("--views needs an --augment recipe (G1 to G5)")
        return self

    @property
    def augmented_views(self) -> int:
        """How many augmented views a train image gets beside itself."""
        if self.augment == "none":
            return 0
        return 1 if self.views is None else self.views


class ExtractSettings(ExtractOptions, SourceOptions, PluginOptions, StoreJobSettings):
    """Run what is new below --data once through a network and keep its vectors in the store."""

    job: ClassVar[str] = "extract"
    example: ClassVar[str] = "--dataset vazios --data s3://bucket/vazios --store s3://bucket/store"

    @model_validator(mode="after")
    def _needs_data(self) -> ExtractSettings:
        _require_data(self)
        return self


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


class EvaluateOptions(BaseSettings):
    """How the judging is done."""

    target_recall: float = Field(
        0.95,
        gt=0,
        le=1,
        description="recall of the positive class that the threshold must reach on val",
    )
    replicates: int = Field(1000, ge=100, description="bootstrap replicates (whole groups)")


class EvaluateSettings(
    VersionOptions, EvaluateOptions, ActorOptions, SourceOptions, PluginOptions, JobSettings
):
    """Judge a model: threshold from val, then every metric on test, once, with intervals."""

    job: ClassVar[str] = "evaluate"
    example: ClassVar[str] = (
        "--store s3://bucket/store --model out/sweep/head.keras --out out/evaluate"
    )
    writes: ClassVar[tuple[str, ...]] = ("predictions", "embeddings", "evaluation.json", "store")

    model: str = Field(description="model that jobs/sweep.py or jobs/train.py made (.keras)")
    store: str | None = Field(None, description="store that jobs/extract.py made")
    batch_size: int = Field(
        32, ge=1, le=4096, description="rows a step", json_schema_extra=OPERATIONAL
    )

    @model_validator(mode="after")
    def _source(self) -> EvaluateSettings:
        require_one_source(self)
        return self


class PredictSettings(ActorOptions, SourceOptions, PluginOptions, StoreJobSettings):
    """Predict every image that a model has not seen yet, labelled or not.

    Writes the store's predictions, predictions.csv, and day.html, which shows first what should be
    looked at first. Without --since and --batch both are about the images that were new to the
    model.
    """

    job: ClassVar[str] = "predict"
    example: ClassVar[str] = (
        "--model out/sweep/head.keras --evaluation out/evaluate/evaluation.json "
        "--store s3://bucket/store --since today"
    )

    model: str = Field(description="model that jobs/sweep.py or jobs/train.py made (.keras)")
    evaluation: str | None = Field(
        None,
        description="evaluation.json of this model by jobs/evaluate.py: decide by the threshold "
        "that it chose on val (without it, by 0.5)",
        json_schema_extra=OPERATIONAL,
    )
    since: str | None = Field(
        None,
        description="list images first seen from this day on: today, or such as 2026-11-24, in UTC",
        json_schema_extra=OPERATIONAL,
    )
    batch: str | None = Field(
        None,
        description="list images that entered under this name; new ones enter under it (today's "
        "date)",
        json_schema_extra=OPERATIONAL,
    )
    batch_size: int = Field(
        32, ge=1, le=4096, description="images a step", json_schema_extra=OPERATIONAL
    )

    @model_validator(mode="after")
    def _choice(self) -> PredictSettings:
        if self.data is None:
            _refuse_source(self, but="batch")
        if self.since is not None and self.since != "today":
            try:
                date.fromisoformat(self.since)
            except ValueError:
                raise ValueError(
                    f"--since {self.since}: write today, or a day such as 2026-11-24"
                ) from None
        return self


class ScannerOptions(BaseSettings):
    """What a rendered dataset is like."""

    images: int = Field(1200, ge=4, description="images to render")
    classes: int = Field(868, ge=2, le=868, description="cargo headings (ncm only)")
    difficult: float = Field(0.1, ge=0, le=1, description="share of hard cases (blur, trucks, …)")
    wrong_labels: float = Field(0.0, ge=0, lt=0.5, description="share of planted wrong labels")
    duplicates: float = Field(0.0, ge=0, lt=0.5, description="share of planted duplicates")
    imbalance: Literal["even", "long_tail"] = Field(
        "even", description="how ncm images spread over the headings"
    )


class ScannerSettings(ScannerOptions, JobSettings):
    """Render synthetic scans: X-ray images that look real, with the truth written beside them."""

    job: ClassVar[str] = "scanner"
    example: ClassVar[str] = "--dataset ncm --images 5000 --classes 100 --out out/scans"
    writes: ClassVar[tuple[str, ...]] = ("images", "truth")

    dataset: Synthetic = Field(description="which dataset to render")
    unlabelled: bool = Field(
        False,
        description="in one folder, images/arrived/, as scans arrive before they are labelled",
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


def from_values(kind: type[C], values: Mapping[str, Any]) -> C:
    """Settings of a job from its values by name.

    Raises:
        InputError: unknown name, wrong value, missing value; one line that names it.
    """
    try:
        kind = kind.variant((), values)
        return kind(**values)
    except ValidationError as error:
        raise _refusal(kind, error) from None


def parse(kind: type[C], arguments: Sequence[str], program: str | None = None) -> C:
    """Settings of a job from its command line and the TOML file named by `--settings`.

    Args:
        kind: of the settings.
        arguments: of the command line.
        program: how the command line begins, for `--help`; the name of the script if None.

    Raises:
        InputError: unknown flag, wrong value, missing value; one line that names it.
        SystemExit: after `--help`.
    """
    rest = [argument for argument in arguments if argument != "--resume"]
    file = _take_file(rest)
    values = _read_toml(file) if file is not None else {}
    try:
        kind = kind.variant(rest, values)
        if file is not None:
            _check_keys(kind, file, values)
        return kind(_cli_parse_args=rest, _cli_prog_name=program, **values)  # type: ignore[call-arg]
    except SystemExit:  # after --help, which knows the fields alone
        print("  --settings FILE       TOML file with any of these settings; flags win over it")
        if issubclass(kind, JobSettings):
            print("  --resume              go on with an unfinished run, as without it")
        raise
    except ValidationError as error:
        raise _refusal(kind, error) from None
    except SettingsError as error:
        raise InputError(_explain_flag(kind, str(error))) from None


def _take_file(arguments: list[str]) -> str | None:
    """Remove `--settings FILE` from a command line; returns the file's name.

    Raises:
        InputError: the name is missing.
    """
    for position, argument in enumerate(arguments):
        if argument == "--settings" or argument.startswith("--settings="):
            _, equals, name = argument.partition("=")
            if not equals:
                if position + 1 == len(arguments):
                    raise InputError("--settings: the name of a TOML file is missing")
                name = arguments.pop(position + 1)
            arguments.pop(position)
            return name
    return None


def _flags(kind: type[CommandSettings]) -> list[str]:
    return [flag_of(kind, name) for name in kind.model_fields] + ["--settings"]


def flag_of(kind: type[CommandSettings], name: str) -> str:
    """A setting as people write it: a flag, or a word for what stands in a fixed place."""
    field = kind.model_fields.get(name)
    if field is not None and _POSITIONAL in field.metadata:
        return name.upper()
    called = field.alias or name if field is not None else name
    return "--" + called.replace("_", "-")


def _read_toml(name: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--settings {name}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--settings {name}: not valid TOML: {error}") from None
    return {key.replace("-", "_"): value for key, value in values.items()}


def _check_keys(kind: type[CommandSettings], name: str, values: Mapping[str, Any]) -> None:
    for key in values:
        if key not in kind.model_fields:
            told = kind.foreign(key) or f"unknown key '{key}'" + _closest(kind, key)
            raise InputError(f"--settings {name}: {told}")


def _closest(kind: type[CommandSettings], name: str) -> str:
    flag = "--" + name.lstrip("-").replace("_", "-")
    close = difflib.get_close_matches(flag, _flags(kind), n=1)
    return f"; did you mean {close[0]}?" if close else "; see --help"


def _refusal(kind: type[CommandSettings], error: ValidationError) -> InputError:
    return InputError("; ".join(_explain(kind, problem) for problem in error.errors()))


def _explain(kind: type[CommandSettings], problem: Any) -> str:
    message = re.sub(r"^Value error, ", "", problem["msg"])
    if not problem["loc"]:
        return message
    flag = flag_of(kind, str(problem["loc"][0]))
    if problem["type"] == "missing":
        field = kind.model_fields[str(problem["loc"][0])]
        return f"{flag} is missing: {field.description}"
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {flag}" + _closest(kind, flag)
    return f"{flag} {problem['input']}: {message[0].lower()}{message[1:]}"


def _explain_flag(kind: type[CommandSettings], text: str) -> str:
    unknown = re.search(r"unrecognized arguments: (\S+)", text)
    if unknown and not unknown.group(1).startswith("-"):
        return f"unexpected word {unknown.group(1)}: words without a flag come first; see --help"
    if unknown:
        flag = unknown.group(1).split("=")[0]
        foreign = kind.foreign(flag.removeprefix("--").removeprefix("no-").replace("-", "_"))
        return foreign or f"unknown flag {unknown.group(1)}" + _closest(kind, flag)
    missing = re.search(r"arguments are required: (\w+)", text)
    if missing:
        field = kind.model_fields[missing.group(1).lower()]
        return f"{missing.group(1)} is missing: {field.description}"
    return re.sub(r"^error parsing CLI: ", "", text).splitlines()[0]
