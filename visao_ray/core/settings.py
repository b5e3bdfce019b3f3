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
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

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


class EvaluateOptions(BaseSettings):
    """How the judging is done."""

    target_recall: float = Field(
        0.95,
        gt=0,
        le=1,
        description="recall of the positive class that the threshold must reach on val",
    )
    replicates: int = Field(1000, ge=100, description="bootstrap replicates (whole groups)")


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
