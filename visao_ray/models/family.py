"""Interface of a model family: its settings, and the hooks that the train job calls.

A family is one class in one file. It extends `GradientFamily`, whose networks are trained by
gradient steps on Ray Train, or `GridFamily`, whose candidates are fitted in one Ray task each.
Class methods are called before the rows are known; an instance belongs to one training run. Keras
is imported inside the functions that need it, because settings are checked without it.
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
        """Group (patient or container) of each row, int32[N]."""

    def take(self, numbers: npt.NDArray[np.int64]) -> Any:
        """Return the model inputs of these rows for prediction, without augmentation."""

    def stream(self, steps: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> Iterator[Any]:
        """Load the model inputs of each step in order.

        Args:
            steps: int64[steps, rows], row numbers of each step.
            views: int64[steps], number of the augmented view in each step.

        Returns:
            Iterator over the inputs of each step.
        """


@dataclass(frozen=True)
class Shape:
    """Properties of the data that a model is built for.

    Attributes:
        classes: Class names in index order.
        positive: Index of the class that must not be missed, if there are two classes.
        rows: Number of train rows.
        image_size: S in pixels, if the model takes images.
        width: D, if the model takes vectors.
        stats: Statistics of the train vectors, by pool.
    """

    classes: tuple[str, ...]
    positive: int
    rows: int
    image_size: int = 0
    width: int = 0
    stats: Mapping[str, FeatureStats] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredVectors:
    """Properties of the stored vectors that a model is trained on.

    Attributes:
        width: D, number of values per pool.
        made: Description of their extractor.
    """

    width: int
    made: Mapping[str, Any]


@dataclass(frozen=True)
class Phase:
    """A phase of training with its own optimizer.

    Attributes:
        name: Name of the phase in progress lines and in the result.
        epochs: Maximum number of epochs.
        learning_rate: Initial learning rate.
        trained: Whether the initial weights are trained already. They are then the result of the
            phase if no epoch improves on them.
    """

    name: str
    epochs: int
    learning_rate: float
    trained: bool = False


class Family(ABC, Generic[S]):
    """Base class of model families.

    Args:
        settings: Settings of the train job.
        shape: Properties of the data.
        work: Work folder of the run, which holds the files that `fetch` wrote.

    Attributes:
        title: A short description for --help.
        settings_type: Class of the settings; the default of its `family` is the family's name.
        name: Name of the family.
        image_size: Default of S in pixels, for families that take images.
    """

    title: ClassVar[str]
    settings_type: ClassVar[type[TrainSettings]]
    name: ClassVar[str]
    image_size: ClassVar[int] = 224

    def __init_subclass__(cls) -> None:
        """Set the name from the settings."""
        super().__init_subclass__()
        if "settings_type" in vars(cls):
            cls.name = cls.settings_type.model_fields["family"].default

    def __init__(self, settings: S, shape: Shape, work: Location) -> None:
        self.settings, self.shape, self.work = settings, shape, work

    @classmethod
    def check(cls, settings: S, dataset: Dataset, vectors: StoredVectors | None) -> None:
        """Check the settings against the dataset, before Ray starts.

        Args:
            settings: Settings of the train job.
            dataset: Dataset to train on.
            vectors: Properties of the stored vectors; None if the model is trained on pixels.

        Raises:
            InputError: The settings do not fit the dataset or the vectors.
        """

    @classmethod
    def fetch(cls, settings: S, dataset: Dataset, work: Location) -> tuple[int, str | None]:
        """Write to `work` what an image model needs beside its rows, such as weights.

        This runs once, in a Ray task.

        Args:
            settings: Settings of the train job.
            dataset: Dataset to train on.
            work: Work folder of the run.

        Returns:
            S, the side of the images in pixels, and a warning to show, or None.

        Raises:
            InputError: Something cannot be loaded or does not fit.
        """
        assert isinstance(settings, PixelSettings)
        return settings.image_size or cls.image_size, None

    @classmethod
    def known_classes(
        cls, classes: tuple[str, ...], labels: npt.NDArray[np.int32]
    ) -> tuple[str, ...]:
        """Return the classes of the final model's probabilities, in index order.

        Args:
            classes: Classes of the dataset.
            labels: int32[N] class indices of the train rows.

        Returns:
            The class names; () if the model gives no probabilities.
        """
        return classes

    def try_build(self) -> None:
        """Build once what the workers will build, so that errors end the job before they start.

        Raises:
            InputError: The settings and the data do not fit.
        """


class GradientFamily(Family[G]):
    """Base class of families that are trained by gradient steps on any number of workers.

    Attributes:
        pairs: Whether the rows of a batch come in pairs, of one class or of two; see
            `training.schedule`.
    """

    pairs: ClassVar[bool] = False

    @abstractmethod
    def build(self) -> Any:
        """Build the keras.Model to train, not compiled; the other hooks get it as `model`."""

    @abstractmethod
    def losses(self, inputs: Any, labels: Any, outputs: Any, weights: Any) -> Any:
        """Compute the loss of each row.

        Args:
            inputs: Inputs of the model.
            labels: int32[B] class indices.
            outputs: Outputs of the model.
            weights: float32[B]; 0 for the rows that pad a batch.

        Returns:
            float32[B].
        """

    @property
    def usual_epochs(self) -> int:
        """Maximum number of epochs if --epochs is not given."""
        return _EPOCHS

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of training, in order."""
        epochs = self.usual_epochs if self.settings.epochs is None else self.settings.epochs
        return (Phase("train", epochs, self.settings.learning_rate),)

    def set_trainable(self, model: Any, phase: Phase) -> None:
        """Set which layers are trainable in a phase; by default all of them."""

    def metrics(self) -> list[Any]:
        """Return new Keras metrics beside the loss; they are updated with labels and outputs."""
        return []

    def checkpoint_model(self, model: Any) -> Any:
        """Return the model that a checkpoint stores; plain Keras can load it."""
        return model

    def final_model(self, model: Any, train: BatchSource) -> Any:
        """Return the model that the job writes; it may include train rows, such as anchors."""
        return self.checkpoint_model(model)

    def try_build(self) -> None:
        """Build the network and set it up for each phase."""
        model = self.build()
        for phase in self.phases():
            self.set_trainable(model, phase)


class GridFamily(Family[S]):
    """Base class of families that fit each candidate in its own Ray task and select on val."""

    @abstractmethod
    def candidates(self) -> list[dict[str, float]]:
        """Return the candidates, each a mapping of parameter names to values.

        Returns:
            The candidates, in the order in which they are reported.

        Raises:
            InputError: Fitting would take days.
        """

    @abstractmethod
    def read(self, train: BatchSource, val: BatchSource) -> tuple[Any, Any]:
        """Read the rows once; returns `state`, for `fit`, and `table`, for `score` and `fit`."""

    @abstractmethod
    def score(self, table: Any, candidate: Mapping[str, float]) -> dict[str, float]:
        """Fit a candidate and evaluate it on val.

        Args:
            table: The second value of `read`.
            candidate: One of `candidates`.

        Returns:
            Metrics by name; the candidate with the highest first metric is selected.
        """

    @abstractmethod
    def fit(
        self, state: Any, table: Any, train: BatchSource, candidate: Mapping[str, float]
    ) -> tuple[Any, dict[str, Any]]:
        """Fit the selected candidate.

        Args:
            state: The first value of `read`.
            table: The second value of `read`.
            train: The train rows.
            candidate: The candidate that was selected on val.

        Returns:
            A keras.Model, and details for `result.json`.
        """
