"""All jobs by verb: the settings that a job takes and the function that does the work.

Nothing heavy is imported here: the function is imported when its job runs.
"""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import dataclass
from typing import Any

from visao_ray.core.errors import InputError
from visao_ray.core.settings import CommandSettings
from visao_ray.evaluation.settings import EvaluateSettings, PredictSettings
from visao_ray.features.settings import ExtractSettings, ManifestSettings
from visao_ray.jobs.settings import PipelineSettings
from visao_ray.models.settings import TrainSettings
from visao_ray.quality.settings import (
    AuditSettings,
    AugmentSettings,
    CleanSettings,
    CompareSettings,
    VerdictsSettings,
)
from visao_ray.search.settings import SearchSettings
from visao_ray.store.settings import ExportSettings, StoreToolSettings
from visao_ray.synthetic.settings import RenderSettings
from visao_ray.tuning.settings import SweepSettings


@dataclass(frozen=True)
class Job:
    """A job that users can run.

    Attributes:
        settings: class of its settings; `settings.job` is its verb.
        path: `module:function` of the work. The function takes the settings and a `Run`. For a
            command without an output folder it takes the settings and returns an exit status.
    """

    settings: type[CommandSettings]
    path: str

    @property
    def verb(self) -> str:
        """The name of the job on the command line."""
        return self.settings.job

    @property
    def summary(self) -> str:
        """The first line of its help."""
        return inspect.cleandoc(self.settings.__doc__ or "").splitlines()[0]

    def work(self, *given: Any) -> Any:
        """Import the function that does the work, and call it: after --help and all checks."""
        return pkgutil.resolve_name(self.path)(*given)


#: By verb, in the order in which `visao-ray --help` lists them.
JOBS = {
    job.verb: job
    for job in (
        Job(PipelineSettings, "visao_ray.jobs.pipeline:run_pipeline"),
        Job(RenderSettings, "visao_ray.synthetic.job:render_scans"),
        Job(ExtractSettings, "visao_ray.jobs.indexed:extract_images"),
        Job(ManifestSettings, "visao_ray.jobs.indexed:make_manifest"),
        Job(SweepSettings, "visao_ray.tuning.multi_dataset:sweep_all"),
        Job(TrainSettings, "visao_ray.training.train:train_model"),
        Job(EvaluateSettings, "visao_ray.evaluation.evaluate:evaluate_model"),
        Job(PredictSettings, "visao_ray.jobs.indexed:predict_images"),
        Job(SearchSettings, "visao_ray.search.job:search_store"),
        Job(AuditSettings, "visao_ray.quality.audit:audit_store"),
        Job(CleanSettings, "visao_ray.quality.clean:find_label_issues"),
        Job(AugmentSettings, "visao_ray.quality.augment:augment_images"),
        Job(CompareSettings, "visao_ray.quality.compare:compare_models"),
        Job(VerdictsSettings, "visao_ray.jobs.indexed:record_verdicts"),
        Job(StoreToolSettings, "visao_ray.store.operate:operate_store"),
        Job(ExportSettings, "visao_ray.store.export:export_table"),
    )
}


def find_job(verb: str) -> Job:
    """Return the job of a verb.

    Args:
        verb: name of the job.

    Returns:
        The job.

    Raises:
        InputError: unknown verb.
    """
    if verb not in JOBS:
        raise InputError(f"'{verb}': no such job; there are {', '.join(sorted(JOBS))}")
    return JOBS[verb]
