"""Settings of the train job: the settings of all families, and groups that families combine.

The settings class of a family inherits the groups that it needs and adds its own fields, so that a
family has no flags without effect. `TrainSettings.variant` finds the class by `--family`.
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
from visao_ray.images.settings import RECIPE_NAMES, AugmentOptions
from visao_ray.models.optimizers import OptimizerName
from visao_ray.store.settings import VectorOptions, VersionOptions

Pool = Literal["avg", "max", "both"]
Activation = Literal["relu", "gelu", "tanh"]
ClassWeight = Literal["none", "balanced", "effective", "root"] | dict[str, float]


class ImageOptions(BaseSettings):
    """Settings of how images become pixels."""

    image_size: int | None = Field(
        None,
        ge=32,
        le=1024,
        description="side in pixels (224, or the input size of the .keras model)",
    )
    resize: Literal["stretch", "letterbox"] = Field(
        "stretch", description="how images are made square"
    )


class BackboneOptions(ImageOptions):
    """Settings of the backbone, its weights and its input."""

    backbone: str | None = Field(
        None,
        description="name of a keras.applications model (densenet121 unless --weights is a whole "
        "model)",
    )
    weights: str = Field(
        "imagenet",
        description="imagenet | random | URI of a .weights.h5 for the backbone | URI of a .keras "
        "model that takes RGB 0-255 and ends in a feature map",
    )
    weights_fallback: Literal["none", "random"] = Field(
        "none",
        description="if the imagenet weights cannot be downloaded: fail, or continue with random "
        "weights and a warning in every output (for demonstrations)",
    )
    preprocessing: Literal["imagenet", "unit"] = Field(
        "imagenet",
        description="imagenet: as the weights were trained; unit: divide by 255 (2019 study)",
    )


class TrainSettings(
    VersionOptions, SourceOptions, WorkerOptions, EvaluateOptions, PluginOptions, JobSettings
):
    """Fit a model on any number of workers; select the epoch on val, use test once, at the end.

    Flags with [NAMES] before their text are for these families only; with --family NAME, --help
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

    family: str = Field(description="model family")
    store: str | None = Field(None, description="store written by jobs/extract.py")
    workers: int = Field(
        1, ge=1, description="number of training processes", json_schema_extra=OPERATIONAL
    )

    @property
    def takes_vectors(self) -> bool:
        """Whether the model is trained on vectors of a store, not on pixels."""
        raise NotImplementedError(f"{type(self).__name__} inherits no group of input settings")

    @classmethod
    def of_family(cls, name: str) -> type[TrainSettings]:
        """Return the settings class of a family.

        Args:
            name: Name of the family.

        Returns:
            The settings class.

        Raises:
            InputError: There is no such family.
        """
        settings_type: type[TrainSettings] = _families().find(name, "--family").settings_type
        return settings_type

    @classmethod
    def variant(cls, arguments: Sequence[str], values: Mapping[str, Any]) -> type[TrainSettings]:
        """Return the settings class for a command line.

        Args:
            arguments: Arguments of the command line.
            values: Values of the settings file.

        Returns:
            The settings class of the requested family; without --family, one with the flags of all
            families.

        Raises:
            InputError: There is no such family, or a plugin cannot be imported.
        """
        without_help = [argument for argument in arguments if argument not in ("--help", "-h")]
        family = _FamilyChoice(_cli_parse_args=without_help, **values).family  # type: ignore[call-arg]
        return cls._of_all() if family is None else cls.of_family(family)

    @classmethod
    def foreign(cls, name: str) -> str | None:
        """Return a message that names the families of a setting, or None if it has no family."""
        owners = _owners().get(name)
        if owners is None:
            return None
        *others, last = owners
        names = f"{', '.join(others)} and {last}" if others else last
        family = cls.model_fields["family"].default
        return f"--{name.replace('_', '-')} is for --family {names}, not {family}"

    @classmethod
    def _of_all(cls) -> type[TrainSettings]:
        """Create one class with the settings of all families, for --help and for messages."""
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
        created = create_model("TrainSettings", __base__=cls, **fields)
        created.__doc__ = cls.__doc__
        return created

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        require_one_source(self)
        if self.data is not None and self.as_of is not None:
            raise ValueError("--as-of belongs to --store; --data is read as it is now")
        return self


class PixelSettings(AugmentOptions, ImageOptions, TrainSettings):
    """Settings of families that are trained on pixels."""

    image_size: int | None = Field(
        None, ge=32, le=1024, description="side in pixels (the default of the family)"
    )
    augment: str = Field(
        "none",
        description=f"augmentation recipe of train images, new in every epoch: {RECIPE_NAMES}",
    )

    @property
    def takes_vectors(self) -> bool:
        """False: the model is trained on pixels."""
        return False


class VectorSettings(VectorOptions, TrainSettings):
    """Settings of families that are trained on vectors."""

    views: int | None = Field(
        None, ge=1, description="maximum number of augmented views of --recipe to use (all)"
    )
    pool: Pool = Field("both", description="pooled vectors to use")

    @property
    def takes_vectors(self) -> bool:
        """True: the model is trained on vectors."""
        return True

    @model_validator(mode="after")
    def _check_vectors(self) -> Self:
        if self.takes_vectors and self.store is None:
            raise ValueError(f"{self._reason}: give --store")
        if self.views is not None and self.recipe is None:
            raise ValueError("--views limits the augmented views of a --recipe: give --recipe too")
        return self

    @property
    def _reason(self) -> str:
        """Reason why vectors are needed, for messages."""
        return f"--family {self.family} is trained on vectors"


class EitherSettings(PixelSettings, VectorSettings):
    """Settings of families that are trained on vectors or on pixels."""

    #: Settings with an effect on vectors only, and on pixels only.
    vector_settings: ClassVar[tuple[str, ...]] = ("extractor", "recipe", "pool")
    pixel_settings: ClassVar[tuple[str, ...]] = ("image_size", "resize", "augment")

    inputs: Literal["vectors", "pixels"] | None = Field(
        None, description="what to train on (vectors with --store, pixels with --data)"
    )

    @property
    def takes_vectors(self) -> bool:
        """The value of --inputs; without it, whether there is a store."""
        return self.inputs == "vectors" or (self.inputs is None and self.store is not None)

    @property
    def _reason(self) -> str:
        return "--inputs vectors"

    @model_validator(mode="after")
    def _check_inputs(self) -> Self:
        kinds = ("pixels", "vectors") if self.takes_vectors else ("vectors", "pixels")
        for name in self.pixel_settings if self.takes_vectors else self.vector_settings:
            if getattr(self, name) != type(self).model_fields[name].default:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{flag} is for {kinds[0]}, but --family {self.family} takes {kinds[1]} here"
                )
        return self


class GradientSettings(TrainSettings):
    """Settings of families that are trained by gradient steps on Ray Train."""

    epochs: int | None = Field(None, ge=1, description="maximum number of epochs (30)")
    batch_size: int = Field(64, ge=2, description="rows per step, divided among the workers")
    optimizer: OptimizerName = Field("adam", description="optimizer")
    learning_rate: float = Field(1e-3, gt=0, description="initial learning rate")
    patience: int = Field(
        8, ge=1, description="stop after so many epochs without a better --monitor"
    )
    schedule: Literal["plateau", "constant", "cosine"] = Field(
        "plateau", description="learning rate: reduced on plateaus, constant, or a cosine"
    )
    reduce_patience: int = Field(
        3,
        ge=1,
        description="reduce the learning rate after so many epochs without a better --monitor",
    )
    reduce_factor: float = Field(0.5, gt=0, lt=1, description="factor by which it is reduced")
    monitor: Literal["loss"] = Field("loss", description="val metric that selects the best epoch")
    class_weight: ClassWeight = Field(
        "none",
        description='weight of a row by its class: balanced, effective, root, or {"CLASS": factor}',
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="dtype of the computation; weights stay float32"
    )
    xla: bool = Field(False, description="compile each step with XLA")
    keep: int = Field(
        2, ge=1, description="number of best checkpoints to keep", json_schema_extra=OPERATIONAL
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="maximum number of worker failures; after each, all workers resume from the "
        "last checkpoint",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.batch_size % self.workers:
            raise ValueError(
                f"--batch-size {self.batch_size} cannot be divided evenly among --workers "
                f"{self.workers}"
            )
        return self


class ClassifierSettings(GradientSettings):
    """Settings of families whose network gives a probability for each class."""

    monitor: Literal["loss", "accuracy", "auc"] = Field(  # type: ignore[assignment]
        "loss", description="val metric that selects the best epoch (auc: two classes only)"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the targets")


class _FamilyChoice(PluginOptions, CommandSettings):
    """The settings that decide which class of settings is used."""

    model_config = SettingsConfigDict(cli_ignore_unknown_args=True, extra="ignore")

    family: str | None = None


def _owners() -> dict[str, list[str]]:
    """Return each setting that is not in `TrainSettings`, with the families that have it."""
    owners: dict[str, list[str]] = {}
    for family in _families().values():
        for name in family.settings_type.model_fields:
            if name not in TrainSettings.model_fields:
                owners.setdefault(name, []).append(family.name)
    return dict(sorted(owners.items(), key=lambda item: -len(item[1])))


def _families() -> Any:
    from visao_ray.models.registry import FAMILIES  # the families import this module

    return FAMILIES
