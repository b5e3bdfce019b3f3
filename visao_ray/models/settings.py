"""The settings of the train job: those of every family, and groups that families put together.

A family's class of settings joins the groups that it needs and adds fields of its own, so that a
flag which does nothing for a family is none of its flags. `TrainSettings.variant` finds the class
by `--family`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, create_model, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from visao_ray.core.settings import (
    OPERATIONAL,
    CommandSettings,
    EvaluateOptions,
    JobSettings,
    PluginOptions,
    WorkerOptions,
)
from visao_ray.datasets.settings import SourceOptions, require_one_source
from visao_ray.models.optimizers import OptimizerName
from visao_ray.store.settings import VectorOptions, VersionOptions

Pool = Literal["avg", "max", "both"]
Activation = Literal["relu", "gelu", "tanh"]
ClassWeight = Literal["none", "balanced", "effective", "root"] | dict[str, float]


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


class TrainSettings(
    VersionOptions, SourceOptions, WorkerOptions, EvaluateOptions, PluginOptions, JobSettings
):
    """Fit a model on any number of workers; val chooses the epoch, test is used once, at the end.

    Flags with [NAMES] before their text are for these families alone; with --family NAME, --help
    shows the flags of that family.
    """

    job: ClassVar[str] = "train"
    example: ClassVar[str] = (
        "--family simple_cnn --dataset vazios --data s3://bucket/vazios --workers 2 --out out/cnn"
    )
    writes: ClassVar[tuple[str, ...]] = (
        "model.keras",
        "savedmodel",
        "predictions",
        "embeddings",
        "evaluation.json",
        "checkpoints",
        "tensorboard",
        "store",
    )

    family: str = Field(description="which kind of model")
    store: str | None = Field(None, description="store that jobs/extract.py made")
    workers: int = Field(1, ge=1, description="training processes", json_schema_extra=OPERATIONAL)

    @property
    def takes_vectors(self) -> bool:
        """Whether vectors of a store are trained on rather than pixels."""
        raise NotImplementedError(f"{type(self).__name__} joins no group of inputs")

    @classmethod
    def of_family(cls, name: str) -> type[TrainSettings]:
        """The settings of a family.

        Raises:
            InputError: there is no such family.
        """
        found: type[TrainSettings] = _families().find(name, "--family").settings_type
        return found

    @classmethod
    def variant(cls, arguments: Sequence[str], values: Mapping[str, Any]) -> type[TrainSettings]:
        """The settings of the family that is asked for; of all families where none is.

        Raises:
            InputError: there is no such family, or a plugin that cannot be imported.
        """
        asked = [argument for argument in arguments if argument not in ("--help", "-h")]
        family = _Choice(_cli_parse_args=asked, **values).family  # type: ignore[call-arg]
        return cls._of_all() if family is None else cls.of_family(family)

    @classmethod
    def foreign(cls, name: str) -> str | None:
        """Which families a setting is for that is none of this family."""
        owners = _owners().get(name)
        if owners is None:
            return None
        *others, last = owners
        names = f"{', '.join(others)} and {last}" if others else last
        family = cls.model_fields["family"].default
        return f"--{name.replace('_', '-')} is for --family {names}, not {family}"

    @classmethod
    def _of_all(cls) -> type[TrainSettings]:
        """The settings of all families in one class, for --help and for messages."""
        families = _families()
        titles = "; ".join(f"{family.name}: {family.title}" for family in families.values())
        names = Literal.__getitem__(tuple(families))
        fields: dict[str, Any] = {"family": (names, Field(description=titles))}
        for name, owners in _owners().items():
            field = copy(families[owners[0]].settings_type.model_fields[name])
            others = [family for family in families if family not in owners]
            most = len(owners) > len(others)
            which = f"all but {', '.join(others)}" if most else ", ".join(owners)
            field.description = f"[{which}] {field.description}" if others else field.description
            fields[name] = (field.annotation, field)
        found = create_model("TrainSettings", __base__=cls, **fields)
        found.__doc__ = cls.__doc__
        return found

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        require_one_source(self)
        if self.data is not None and self.as_of is not None:
            raise ValueError("--as-of belongs to --store; --data is read as it is now")
        return self


class PixelSettings(ImageOptions, TrainSettings):
    """Of families that are trained on pixels."""

    image_size: int | None = Field(
        None, ge=32, le=1024, description="side in pixels (what the family usually takes)"
    )
    augment: Literal["none", "G1", "G2", "G3", "G4", "G5"] = Field(
        "none", description="the study's augmentation recipe, drawn anew every epoch, on train only"
    )

    @property
    def takes_vectors(self) -> bool:
        """Pixels."""
        return False


class VectorSettings(VectorOptions, TrainSettings):
    """Of families that are trained on vectors."""

    views: int | None = Field(
        None, ge=1, description="most augmented views of --recipe that are used (all)"
    )
    pool: Pool = Field("both", description="which of the pooled vectors are taken")

    @property
    def takes_vectors(self) -> bool:
        """Vectors."""
        return True

    @model_validator(mode="after")
    def _check_vectors(self) -> Self:
        if self.takes_vectors and self.store is None:
            raise ValueError(f"{self._reason}: give --store")
        if self.views is not None and self.recipe is None:
            raise ValueError("--views is about the augmented views of a --recipe: give that too")
        return self

    @property
    def _reason(self) -> str:
        """Why vectors are needed."""
        return f"--family {self.family} is trained on vectors"


class EitherSettings(PixelSettings, VectorSettings):
    """Of families that are trained on vectors or on pixels."""

    #: Settings that matter with vectors alone, and with pixels alone.
    about_vectors: ClassVar[tuple[str, ...]] = ("extractor", "recipe", "pool")
    about_pixels: ClassVar[tuple[str, ...]] = ("image_size", "resize", "augment")

    inputs: Literal["vectors", "pixels"] | None = Field(
        None, description="what is trained on (vectors of --store, pixels of --data)"
    )

    @property
    def takes_vectors(self) -> bool:
        """As --inputs says, else vectors where there is a store."""
        return self.inputs == "vectors" or (self.inputs is None and self.store is not None)

    @property
    def _reason(self) -> str:
        return "--inputs vectors"

    @model_validator(mode="after")
    def _check_inputs(self) -> Self:
        kinds = ("pixels", "vectors") if self.takes_vectors else ("vectors", "pixels")
        for name in self.about_pixels if self.takes_vectors else self.about_vectors:
            if getattr(self, name) != type(self).model_fields[name].default:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{flag} is about {kinds[0]}, and --family {self.family} takes {kinds[1]} here"
                )
        return self


class GradientSettings(TrainSettings):
    """Of families that are fitted by gradient steps on Ray Train."""

    epochs: int | None = Field(None, ge=1, description="most epochs (30)")
    batch_size: int = Field(
        64, ge=2, description="rows a step, shared out evenly among the workers"
    )
    optimizer: OptimizerName = Field("adam", description="optimizer")
    learning_rate: float = Field(1e-3, gt=0, description="at the start")
    patience: int = Field(8, ge=1, description="epochs without a better --monitor to stop")
    schedule: Literal["plateau", "constant", "cosine"] = Field(
        "plateau", description="of the learning rate: reduced on plateaus, as it is, or a cosine"
    )
    reduce_patience: int = Field(
        3, ge=1, description="epochs without a better --monitor to reduce the learning rate"
    )
    reduce_factor: float = Field(0.5, gt=0, lt=1, description="what the rate is multiplied by then")
    monitor: Literal["loss"] = Field("loss", description="val figure that picks the best epoch")
    class_weight: ClassWeight = Field(
        "none",
        description='balanced, effective, root, or {"CLASS": factor}: how much a row counts by its '
        "class",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the computation; weights stay float32"
    )
    xla: bool = Field(False, description="compile each step with XLA")
    keep: int = Field(2, ge=1, description="best checkpoints kept", json_schema_extra=OPERATIONAL)
    max_failures: int = Field(
        3,
        ge=0,
        description="lost workers after which the job gives up; each time all go on from the last "
        "checkpoint",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.batch_size % self.workers:
            raise ValueError(
                f"--batch-size {self.batch_size} cannot be shared evenly by --workers "
                f"{self.workers}"
            )
        return self


class ClassifierSettings(GradientSettings):
    """Of families whose network gives a probability for each class."""

    monitor: Literal["loss", "accuracy", "auc"] = Field(  # type: ignore[assignment]
        "loss", description="val figure that picks the best epoch (auc: two classes only)"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the classes' targets")


class _Choice(PluginOptions, CommandSettings):
    """What decides which settings there are."""

    model_config = SettingsConfigDict(cli_ignore_unknown_args=True, extra="ignore")

    family: str | None = None


def _owners() -> dict[str, list[str]]:
    """Settings that not all families share by definition, and the families that have each."""
    owners: dict[str, list[str]] = {}
    for family in _families().values():
        for name in family.settings_type.model_fields:
            if name not in TrainSettings.model_fields:
                owners.setdefault(name, []).append(family.name)
    return dict(sorted(owners.items(), key=lambda item: -len(item[1])))


def _families() -> Any:
    from visao_ray.models.registry import FAMILIES  # its families are made of these settings

    return FAMILIES
