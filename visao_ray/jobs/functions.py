"""Jobs as Python functions: `visao_ray.extract(data=…, store=…)` does what the command does.

Keyword arguments are the job's settings: the names of its flags with `_` for `-`. Each function
prints the job's progress and returns the content of its `result.json`. It raises `InputError` where
the command would exit with status 2.
"""

from __future__ import annotations

from typing import Any

from visao_ray.core.errors import InputError, cause_of
from visao_ray.core.run import execute
from visao_ray.core.settings import JobSettings, from_values
from visao_ray.jobs.registry import JOBS

#: Content of `result.json`.
Result = dict[str, Any]


def pipeline(**settings: Any) -> Result:
    """Extract, sweep, evaluate and report, from images to an evaluated classifier."""
    return _run("pipeline", settings)


def render(**settings: Any) -> Result:
    """Render synthetic scans with known labels."""
    return _run("render", settings)


def extract(**settings: Any) -> Result:
    """Extract feature vectors of new images and add them to the store."""
    return _run("extract", settings)


def manifest(**settings: Any) -> Result:
    """List a dataset against its store without reading an image; set labels."""
    return _run("manifest", settings)


def sweep(**settings: Any) -> Result:
    """Search the head's hyperparameters and class weights on a store's vectors."""
    return _run("sweep", settings)


def train(**settings: Any) -> Result:
    """Train a model of any family on any number of workers."""
    return _run("train", settings)


def evaluate(**settings: Any) -> Result:
    """Choose a threshold on val and compute every metric on test, with intervals."""
    return _run("evaluate", settings)


def predict(**settings: Any) -> Result:
    """Predict all images that are new to a model."""
    return _run("predict", settings)


def search(**settings: Any) -> Result:
    """Build or query an index of similar images, or evaluate it: action="build", and so on."""
    return _run("search", settings)


def audit(**settings: Any) -> Result:
    """Check a store for leaks, duplicates, conflicts, outliers and shifts."""
    return _run("audit", settings)


def clean(**settings: Any) -> Result:
    """Find labels that are probably wrong, and make a page to decide on them."""
    return _run("clean", settings)


def augment(**settings: Any) -> Result:
    """Write augmented copies of train images as JPEG files."""
    return _run("augment", settings)


def compare(**settings: Any) -> Result:
    """Compare models on the same images, with tests of their differences."""
    return _run("compare", settings)


def verdicts(**settings: Any) -> Result:
    """Write people's decisions on images to a store, or save them as a CSV."""
    return _run("verdicts", settings)


def export(**settings: Any) -> Result:
    """Write a table of a store as Parquet files."""
    return _run("export", settings)


def _run(verb: str, values: dict[str, Any]) -> Result:
    job = JOBS[verb]
    assert issubclass(job.settings, JobSettings)
    given = ", ".join(f"{name}={value!r}" for name, value in values.items())
    settings = from_values(job.settings, values)
    try:
        return execute(settings, job.work, f"visao_ray.{verb}({given})")
    except Exception as error:
        cause = cause_of(error)
        if isinstance(cause, InputError):
            raise cause from error
        raise
