"""What is to be trained, decided before the workers start. Light: drivers import it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from visao_ray.models.normalization import FeatureStats
from visao_ray.models.saved import ModelAbout
from visao_ray.settings import TrainSettings
from visao_ray.storage import Location

FINE_TUNE = "fine-tune"
_EPOCHS = 30


@dataclass(frozen=True)
class Phase:
    """A stretch of training with an optimizer of its own.

    Attributes:
        name: as progress and result tell it.
        epochs: at most.
        learning_rate: at its start.
        trained: the weights it begins with are kept if it makes nothing better of them.
    """

    name: str
    epochs: int
    learning_rate: float
    trained: bool = False


@dataclass(frozen=True)
class Shape:
    """What the data decide of a model.

    Attributes:
        classes: in index order.
        positive: index of the class that must not be missed, where there are two.
        image_size: S, where it takes images.
        width: D, where it takes features.
        stats: of the train features, by pool.
    """

    classes: tuple[str, ...]
    positive: int
    image_size: int = 0
    width: int = 0
    stats: Mapping[str, FeatureStats] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What all workers are told.

    Attributes:
        settings: of the job.
        shape: what the data decide of the model.
        rows: of train.
        phases: of training, in order.
        about: of the model, for its file.
        backbone: where the backbone is kept (transfer).
        head: the head to start from, if any (transfer, head).
        work: folder for what the run leaves behind for its driver.
        board: folder for TensorBoard.
    """

    settings: TrainSettings
    shape: Shape
    rows: int
    phases: tuple[Phase, ...]
    about: ModelAbout
    backbone: Location | None
    head: Location | None
    work: Location
    board: Location


def phases(settings: TrainSettings) -> tuple[Phase, ...]:
    """The phases that the settings ask for; those of no epochs are left out."""
    epochs = settings.epochs
    if epochs is None:
        epochs = 0 if settings.family == "transfer" and settings.head is not None else _EPOCHS
    found = [Phase("train", epochs, settings.learning_rate, trained=settings.head is not None)]
    if settings.fine_tune_from is not None:
        rate = settings.fine_tune_learning_rate
        found.append(Phase(FINE_TUNE, settings.fine_tune_epochs, rate, trained=True))
    return tuple(phase for phase in found if phase.epochs)
