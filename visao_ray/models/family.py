"""What a family of models is: its settings, and the hooks that the train job calls.

A family is one class in one file. It extends `GradientFamily`, whose networks learn by gradient
steps on Ray Train, or `GridFamily`, whose candidates are fitted in a task each. Class methods are
called before the rows are known; an instance belongs to one training. Keras is imported inside the
functions that need it: settings are checked without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from visao_ray.core.storage import Location
from visao_ray.datasets.spec import Dataset
from visao_ray.models.normalization import FeatureStats
from visao_ray.models.settings import GradientSettings, PixelSettings, TrainSettings

S = TypeVar("S", bound=TrainSettings)
G = TypeVar("G", bound=GradientSettings)

_EPOCHS = 30


class BatchSource(Protocol):
    """The rows of a split: labels, groups and inputs."""

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """Class index of each row, int32[N]."""

    @property
    def groups(self) -> npt.NDArray[np.int32]:
        """Number of each row's patient or container, int32[N]."""

    def take(self, numbers: npt.NDArray[np.int64]) -> Any:
        """What the model takes of these rows, as it predicts (no augmentation)."""

    def stream(self, steps: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> Iterator[Any]:
        """What the model takes of each step, int64[steps, rows], in order.

        `views`, int64[steps], is the augmented view of its rows that each step shows.
        """


@dataclass(frozen=True)
class Shape:
    """What the data decide of a model.

    Attributes:
        classes: in index order.
        positive: index of the class that must not be missed, where there are two.
        rows: of train.
        image_size: S, where it takes images.
        width: D, where it takes vectors.
        stats: of the train vectors, by pool.
    """

    classes: tuple[str, ...]
    positive: int
    rows: int
    image_size: int = 0
    width: int = 0
    stats: Mapping[str, FeatureStats] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredVectors:
    """The vectors that a store has for a training.

    Attributes:
        width: D, numbers a pool.
        made: how they were made (the description of their extractor).
    """

    width: int
    made: Mapping[str, Any]


@dataclass(frozen=True)
class Phase:
    """A stretch of training with an optimizer of its own.

    Attributes:
        name: as progress and result name it.
        epochs: at most.
        learning_rate: at its start.
        trained: the weights it begins with are kept if it makes nothing better of them.
    """

    name: str
    epochs: int
    learning_rate: float
    trained: bool = False


class Family(ABC, Generic[S]):
    """One way of making a model.

    Args:
        settings: of the training.
        shape: what its data decide.
        work: folder of the run, with what `fetch` left there.

    Attributes:
        title: a few words for --help.
        settings_type: class of its settings; their `family` is the name of the family.
        name: of the family.
        image_size: S, unless its settings say otherwise, where it takes pixels.
    """

    title: ClassVar[str]
    settings_type: ClassVar[type[TrainSettings]]
    name: ClassVar[str]
    image_size: ClassVar[int] = 224

    def __init_subclass__(cls) -> None:
        """Take the name from the settings."""
        super().__init_subclass__()
        if "settings_type" in vars(cls):
            cls.name = cls.settings_type.model_fields["family"].default

    def __init__(self, settings: S, shape: Shape, work: Location) -> None:
        self.settings, self.shape, self.work = settings, shape, work

    @classmethod
    def check(cls, settings: S, dataset: Dataset, vectors: StoredVectors | None) -> None:
        """Check settings against the dataset, before Ray starts.

        Args:
            settings: of the training.
            dataset: that it is of.
            vectors: what the store has; None where pixels are trained on.

        Raises:
            InputError: they do not fit.
        """

    @classmethod
    def fetch(cls, settings: S, dataset: Dataset, work: Location) -> tuple[int, str | None]:
        """Keep in `work` what a model from pixels is built of beside its rows, such as weights.

        Runs once, in a task.

        Returns:
            S, the side of its images in pixels, and a warning to show, if any.

        Raises:
            InputError: it cannot be had.
        """
        assert isinstance(settings, PixelSettings)
        return settings.image_size or cls.image_size, None

    @classmethod
    def known_classes(
        cls, classes: tuple[str, ...], labels: npt.NDArray[np.int32]
    ) -> tuple[str, ...]:
        """The classes that the finished model gives probabilities of, in index order.

        Args:
            classes: of the dataset.
            labels: int32[N] class indices of the train rows.
        """
        return classes

    def try_build(self) -> None:
        """Build what workers will build, once, to end the job before they start.

        Raises:
            InputError: settings and data do not fit.
        """


class GradientFamily(Family[G]):
    """A network that learns by gradient steps, on any number of workers.

    Attributes:
        pairs: a batch holds pairs of rows, of one class and of two, as `schedule` draws them.
    """

    pairs: ClassVar[bool] = False

    @abstractmethod
    def build(self) -> Any:
        """The keras.Model to train, not compiled; `model` below is what this returned."""

    @abstractmethod
    def losses(self, inputs: Any, labels: Any, outputs: Any, weights: Any) -> Any:
        """Loss of every row, float32[B].

        Args:
            inputs: what the model took.
            labels: int32[B] class indices.
            outputs: what it gave.
            weights: float32[B]; 0 for rows that fill up a batch.
        """

    @property
    def usual_epochs(self) -> int:
        """Most epochs, unless --epochs says otherwise."""
        return _EPOCHS

    def phases(self) -> tuple[Phase, ...]:
        """The phases of training, in order."""
        epochs = self.usual_epochs if self.settings.epochs is None else self.settings.epochs
        return (Phase("train", epochs, self.settings.learning_rate),)

    def set_trainable(self, model: Any, phase: Phase) -> None:
        """Decide which layers learn in a phase; all, unless a family says otherwise."""

    def metrics(self) -> list[Any]:
        """Keras metrics beside the loss, new ones; they are called with labels and outputs."""
        return []

    def checkpoint_model(self, model: Any) -> Any:
        """The model as a checkpoint keeps it: it loads with plain Keras."""
        return model

    def final_model(self, model: Any, train: BatchSource) -> Any:
        """The model as it is used afterwards; may take train rows into it."""
        return self.checkpoint_model(model)

    def try_build(self) -> None:
        """The network, as each phase has it."""
        model = self.build()
        for phase in self.phases():
            self.set_trainable(model, phase)


class GridFamily(Family[S]):
    """A model that is fitted at once: every candidate in a task of its own, and val chooses."""

    @abstractmethod
    def candidates(self) -> list[dict[str, float]]:
        """What to try, by name.

        Raises:
            InputError: fitting would take days.
        """

    @abstractmethod
    def read(self, train: BatchSource, val: BatchSource) -> tuple[Any, Any]:
        """What candidates are fitted to, made once: what `fit` alone takes, and what both take."""

    @abstractmethod
    def score(self, table: Any, candidate: Mapping[str, float]) -> dict[str, float]:
        """Figures of a candidate on val; the first chooses, more is better.

        Args:
            table: the second value of `read`.
            candidate: one of `candidates`.
        """

    @abstractmethod
    def fit(
        self, state: Any, table: Any, train: BatchSource, candidate: Mapping[str, float]
    ) -> tuple[Any, dict[str, Any]]:
        """Fit the chosen candidate; returns a keras.Model, and facts for the result.

        Args:
            state, table: both values of `read`.
            train: rows of train.
            candidate: that val chose.
        """
