"""The library's own counters among the metrics of a Ray cluster.

Images are counted where rows are written, once per block. If a write fails after its files were
written, or if its process is lost then, the retry counts the block again; `result.json` is exact.
Only clusters collect metrics: a Ray that a job starts for itself collects none.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from visao_ray.core.profiling import Stages

#: Labels of every counter. `job` is not among them: Prometheus uses that name itself.
_COMMON_LABELS = ("verb", "step", "dataset")

#: Description and labels of each counter, by its name.
COUNTERS = {
    "visao_ray_images": ("Images written, as results or as errors", ("status", *_COMMON_LABELS)),
    "visao_ray_stage_seconds": (
        "Seconds of loaders (read, decode), actors (wait, extract) and writers (write)",
        ("stage", *_COMMON_LABELS),
    ),
    "visao_ray_read_bytes": ("Bytes of image files read", _COMMON_LABELS),
    "visao_ray_retries": ("Operations retried after a failure", ("what", *_COMMON_LABELS)),
    "visao_ray_lease_lost": ("Leases on a store lost to another driver", _COMMON_LABELS),
}


def prometheus_name(counter: str) -> str:
    """Return the name of a counter on Prometheus endpoints."""
    return f"ray_{counter}_total"


def count(stages: Stages, labels: Mapping[str, str]) -> None:
    """Add the costs of a block to the counters of this process; Ray's agent collects them."""
    tags = {name: labels[name] for name in _COMMON_LABELS}
    for status in ("ok", "errors"):
        _add("visao_ray_images", getattr(stages, status), {**tags, "status": status.rstrip("s")})
    for stage in ("read", "decode", "wait", "extract", "write"):
        _add("visao_ray_stage_seconds", getattr(stages, stage), {**tags, "stage": stage})
    _add("visao_ray_read_bytes", stages.read_bytes, tags)


def count_retries(what: str, labels: Mapping[str, str], times: int = 1) -> None:
    """Count retries, in the process that retried.

    Args:
        what: 'read', 'write', 'list' or 'commit'; each value creates a time series.
        labels: labels of the step, from `Run.labels`.
        times: number of retries since the last call.
    """
    tags = {name: labels[name] for name in _COMMON_LABELS}
    _add("visao_ray_retries", times, {**tags, "what": what})


def count_lease_lost(labels: Mapping[str, str]) -> None:
    """Count a lost lease, in the driver that lost it; Ray reports it even if the driver exits.

    Args:
        labels: labels of the step, from `Run.labels`.
    """
    _add("visao_ray_lease_lost", 1, {name: labels[name] for name in _COMMON_LABELS})


def _add(name: str, value: float, tags: Mapping[str, str]) -> None:
    if value > 0:
        _counter(name).inc(value, tags=dict(tags))


@cache
def _counter(name: str) -> Any:
    """Return the counter of a name, created once per process.

    Ray treats a second counter of the same name as the same counter, but builds it again.
    """
    from ray.util.metrics import Counter

    description, tags = COUNTERS[name]
    return Counter(name, description=description, tag_keys=tags)
