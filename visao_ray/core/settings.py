"""Base classes of the typed settings of jobs, and the parser of flags and TOML files.

Each setting is one field: its flag, its key in a TOML file, its default, its check and its line in
`--help` come from the field. Flags override the file given by `--settings`.
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

#: Marks settings that do not change the result of a job: a resumed run may change them.
OPERATIONAL: dict[str, Any] = {"operational": True}

#: Marks settings that are positional arguments, without a flag.
_POSITIONAL = get_args(CliPositionalArg[str])[1]


def split_commas(given: object) -> object:
    """Accept `leak,conflict` beside repeated flags and lists; to be used before validation."""
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list) and all(isinstance(one, str) for one in given):
        return [name.strip() for one in given for name in one.split(",") if name.strip()]
    return given


class CommandSettings(BaseSettings):
    """Base of the settings of all commands.

    Attributes:
        model_config: configuration of pydantic.
        job: name of the file in jobs/; empty for groups of settings.
        example: example flags, for `--help`.
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
        """Add an example command to the end of `--help`."""
        super().__pydantic_init_subclass__(**kwargs)
        if cls.job:
            command = f"  %(prog)s {cls.example}"  # argparse writes the name of the program there
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__ or '')}\n\n{command}\n\n{cls.again}"

    @classmethod
    def variant(cls, arguments: Sequence[str], values: Mapping[str, Any]) -> type[Self]:
        """Choose the class that checks the settings; a job may have more than one.

        Args:
            arguments: arguments of the command line.
            values: values of the TOML file, by name.

        Returns:
            This class, or another variant of it.
        """
        return cls

    @classmethod
    def by_action(cls) -> dict[str, type[CommandSettings]]:
        """Return the class of each action of the command; {} if it has no actions."""
        return {}

    @classmethod
    def foreign(cls, name: str) -> str | None:
        """Explain why a setting is not part of this class, if it belongs to another variant."""
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
        """Read no environment variables, so that a command line describes a run completely."""
        return (init_settings,)


class JobSettings(CommandSettings):
    """Base of the settings of all jobs, which write an output folder with a result.json.

    Attributes:
        again: what the same command does the second time, for `--help`.
        writes: names that the job writes below `out`, in addition to run.json and result.json.
        out: output folder.
        seed: seed of all random numbers.
        fresh: start again; move the earlier run's files to `previous/`.
    """

    again: ClassVar[str] = "The same command again resumes an interrupted run."
    writes: ClassVar[tuple[str, ...]] = ()

    out: str = Field(description="folder or s3://bucket/prefix for the tables and result.json")
    seed: int = Field(0, ge=0, description="the same seed gives the same result")
    fresh: bool = Field(
        False,
        description="start again; the files of an earlier run in --out are moved to OUT/previous/. "
        "Without it (or with --resume) an unfinished run is resumed",
        json_schema_extra=OPERATIONAL,
    )

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result: a resumed run must have the same ones."""
        operational = {
            name
            for name, field in type(self).model_fields.items()
            if (field.json_schema_extra or {}) == OPERATIONAL
        }
        return self.model_dump(mode="json", exclude=operational | {"out"})

    def part(self, kind: type[S], without: type[BaseSettings] | None = None, **changes: Any) -> S:
        """Build the settings of another job that this job contains.

        Args:
            kind: class of the other job's settings.
            without: a group of settings to leave at their defaults.
            **changes: values by name that replace those of this job.

        Returns:
            The settings of the other job.
        """
        left_out = without.model_fields if without is not None else {}
        shared = {
            name: value
            for name, value in self
            if name in kind.model_fields and name not in left_out
        }
        return kind(**{**shared, **changes})


class PluginOptions(BaseSettings):
    """Options that add datasets, metrics, families and engines to those of the library."""

    plugin: list[str] = Field(
        [],
        description="FILE.py, or import path of a module on all nodes, that registers a dataset, "
        "metric, family, recipe, engine or check (see examples/); may be repeated",
    )

    @model_validator(mode="before")
    @classmethod
    def _load_plugins(cls, values: Any) -> Any:
        """Load plugins before other settings are checked, because these may use their names."""
        given = values.get("plugin", ())
        if isinstance(given, list | tuple) and all(isinstance(one, str) for one in given):
            plugins.load(given)  # the check of the field refuses values of other types
        return values


class StoreOptions(BaseSettings):
    """Option that names the dataset's store."""

    store: str | None = Field(
        None, description="folder or s3://bucket/prefix of the dataset's store (OUT/store)"
    )

    def store_uri(self) -> str:
        """Return the URI of the store: --store, or a folder below --out."""
        if self.store is not None:
            return self.store
        return f"{str(getattr(self, 'out', None) or '').rstrip('/')}/store"


class StoreJobSettings(StoreOptions, JobSettings):
    """Base of the settings of jobs that read and write a store."""

    again: ClassVar[str] = "The same command again processes only what is new."

    out: str | None = Field(  # type: ignore[assignment]
        None, description="folder or s3://bucket/prefix for result.json (STORE/runs/DATE-JOB)"
    )

    @model_validator(mode="after")
    def _places(self) -> StoreJobSettings:
        if self.out is None and self.store is None:
            raise ValueError("--store is missing: folder or s3://bucket/prefix of the store")
        if self.fresh:
            raise ValueError("--fresh: a store only grows; choose another --store to start again")
        return self

    def out_uri(self, started: str) -> str:
        """Return the output folder of a start at that time: --out, or a folder below the store."""
        if self.out is not None:
            return self.out
        return f"{self.store_uri().rstrip('/')}/runs/{started.replace(':', '-')}-{self.job}"


class WorkerOptions(BaseSettings):
    """Resources of each process that runs a network."""

    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        description="GPUs per worker, fractions allowed (1 if there is a GPU, else 0)",
        json_schema_extra=OPERATIONAL,
    )
    memory_per_worker: float | None = Field(
        None,
        gt=0,
        description="GiB per worker; workers run only on nodes with so much free memory",
        json_schema_extra=OPERATIONAL,
    )
    worker_resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="NAME=AMOUNT of a resource that nodes declare (ray start --resources): workers "
        "run only on those nodes",
        json_schema_extra=OPERATIONAL,
    )

    def worker(self) -> Worker:
        """Return the resources of one worker."""
        return Worker(self.gpus_per_worker, self.memory_per_worker, self.worker_resources)


class ActorOptions(WorkerOptions):
    """Number and resources of the actors that run a network."""

    workers: int | None = Field(
        None,
        ge=1,
        description="actors that run the network (one per GPU share; without GPUs one per node)",
        json_schema_extra=OPERATIONAL,
    )


class EvaluateOptions(BaseSettings):
    """Options of the evaluation of a model."""

    target_recall: float = Field(
        0.95,
        gt=0,
        le=1,
        description="recall of the positive class that the threshold must reach on val",
    )
    replicates: int = Field(1000, ge=100, description="bootstrap replicates (whole groups)")


def from_values(kind: type[C], values: Mapping[str, Any]) -> C:
    """Build the settings of a job from values by name.

    Args:
        kind: class of the settings.
        values: values by name.

    Returns:
        The settings.

    Raises:
        InputError: unknown name, wrong value or missing value; the message is one line.
    """
    try:
        kind = kind.variant((), values)
        return kind(**values)
    except ValidationError as error:
        raise _input_error(kind, error) from None


def parse(kind: type[C], arguments: Sequence[str], program: str | None = None) -> C:
    """Build the settings of a job from its command line and the TOML file of `--settings`.

    Args:
        kind: class of the settings.
        arguments: arguments of the command line.
        program: first words of the command line, for `--help`; None: the name of the script.

    Returns:
        The settings.

    Raises:
        InputError: unknown flag, wrong value or missing value; the message is one line.
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
    except SystemExit:  # after --help, which lists only the fields
        print("  --settings FILE       TOML file with any of these settings; flags override it")
        if issubclass(kind, JobSettings):
            print("  --resume              resume an unfinished run; this is the default")
        raise
    except ValidationError as error:
        raise _input_error(kind, error) from None
    except SettingsError as error:
        raise InputError(_explain_flag(kind, str(error))) from None


def _take_file(arguments: list[str]) -> str | None:
    """Remove `--settings FILE` from a command line and return the name of the file.

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
    """Return the flag of a setting, or the upper-case name of a positional argument."""
    field = kind.model_fields.get(name)
    if field is not None and _POSITIONAL in field.metadata:
        return name.upper()
    public = field.alias or name if field is not None else name
    return "--" + public.replace("_", "-")


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
            message = kind.foreign(key) or f"unknown key '{key}'" + _suggest(kind, key)
            raise InputError(f"--settings {name}: {message}")


def _suggest(kind: type[CommandSettings], name: str) -> str:
    flag = "--" + name.lstrip("-").replace("_", "-")
    close = difflib.get_close_matches(flag, _flags(kind), n=1)
    return f"; did you mean {close[0]}?" if close else "; see --help"


def _input_error(kind: type[CommandSettings], error: ValidationError) -> InputError:
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
        return f"unknown setting {flag}" + _suggest(kind, flag)
    return f"{flag} {problem['input']}: {message[0].lower()}{message[1:]}"


def _explain_flag(kind: type[CommandSettings], text: str) -> str:
    unknown = re.search(r"unrecognized arguments: (\S+)", text)
    if unknown and not unknown.group(1).startswith("-"):
        return f"unexpected word {unknown.group(1)}: words without a flag come first; see --help"
    if unknown:
        flag = unknown.group(1).split("=")[0]
        foreign = kind.foreign(flag.removeprefix("--").removeprefix("no-").replace("-", "_"))
        return foreign or f"unknown flag {unknown.group(1)}" + _suggest(kind, flag)
    missing = re.search(r"arguments are required: (\w+)", text)
    if missing:
        field = kind.model_fields[missing.group(1).lower()]
        return f"{missing.group(1)} is missing: {field.description}"
    return re.sub(r"^error parsing CLI: ", "", text).splitlines()[0]
