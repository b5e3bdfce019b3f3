"""A sweep whose vectors are loaded: what the steps of the job have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from visao_ray.datasets.spec import Dataset
from visao_ray.features.labelled import Summary
from visao_ray.tuning.objective import Criterion
from visao_ray.tuning.settings import SweepSettings
from visao_ray.tuning.trial_results import TrialResults


@dataclass(frozen=True)
class LoadedSweep:
    """A sweep whose rows are known.

    Attributes:
        settings: of the job.
        dataset: of the store.
        extractor: name of the vectors.
        summary: of the vectors.
        data: references to the LabelledVectors of the search, and to all rows if those are a
            sample.
        sample: rows of the search by split, if they are a sample.
        resources: of a trial, by Ray's names.
        criterion: the objective.
        trial_results: where results are recorded.
    """

    settings: SweepSettings
    dataset: Dataset
    extractor: str
    summary: Summary
    data: tuple[Any, ...]
    sample: dict[str, int] | None
    resources: dict[str, float]
    criterion: Criterion
    trial_results: TrialResults

    @property
    def positive(self) -> str | None:
        """The class that must not be missed, if there are two classes."""
        classes = self.summary.classes
        return self.dataset.positive_among(classes) if len(classes) == 2 else None

    @property
    def objective(self) -> str:
        """Title of the objective."""
        return self.criterion.describe(self.summary.classes)
