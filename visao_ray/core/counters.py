"""Counters of our own among the metrics of a Ray cluster.

Those of images count where rows are written, once a block. A write that fails after its files were
written, or whose process is lost then, is counted again when it is tried again; `result.json` is
exact. Metrics belong to clusters: a Ray that a job starts for itself collects none.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from visao_ray.core.profiling import Stages

#: Not `job`: that name is Prometheus's own.
_OF_ALL = ("verb", "step", "dataset")

#: Name: what it counts, and what it is told apart by.
COUNTERS = {
    "visao_ray_images": ("Images written, to a table or to errors", ("status", *_OF_ALL)),
    "visao_ray_stage_seconds": (
        "Seconds of loaders (read, decode), actors (wait, extract) and writers (write)",
        ("stage", *_OF_ALL),
    ),
    "visao_ray_read_bytes": ("Bytes of image files read", _OF_ALL),
    "visao_ray_retries": ("What was tried again after a failure", ("what", *_OF_ALL)),
    "visao_ray_lease_lost": ("Leases on a store that another driver took over", _OF_ALL),
}


def exported(counter: str) -> str:
    """The name of a counter on Prometheus endpoints."""
    return f"ray_{counter}_total"


def count(stages: Stages, labels: Mapping[str, str]) -> None:
    """Add what a block cost to the counters of this process, which Ray's agent collects."""
    tags = {name: labels[name] for name in _OF_ALL}
    for status in ("ok", "errors"):
        _add("visao_ray_images", getattr(stages, status), {**tags, "status": status.rstrip("s")})
    for stage in ("read", "decode", "wait", "extract", "write"):
        _add("visao_ray_stage_seconds", getattr(stages, stage), {**tags, "stage": stage})
    _add("visao_ray_read_bytes", stages.read_bytes, tags)


def count_retries(what: str, labels: Mapping[str, str], times: int = 1) -> None:
    """Count what was tried again, in the process that tried.

    Args:
        what: 'read', 'write', 'list' or 'commit'; few values, for each makes a series.
        labels: of the step, as `Run.labels` has them.
        times: how often since it was counted last.
    """
    tags = {name: labels[name] for name in _OF_ALL}
    _add("visao_ray_retries", times, {**tags, "what": what})


def count_lease_lost(labels: Mapping[str, str]) -> None:
    """Count a lost lease, in the driver that lost it; Ray reports it also if the driver exits.

    Args:
        labels: of the step, as `Run.labels` has them.
    """
    _add("visao_ray_lease_lost", 1, {name: labels[name] for name in _OF_ALL})


def _add(name: str, value: float, tags: Mapping[str, str]) -> None:
    if value > 0:
        _counter(name).inc(value, tags=dict(tags))


@cache
def _counter(name: str) -> Any:
    """One a process: Ray takes a second counter of a name for the same, but builds it anew."""
    from ray.util.metrics import Counter

    told, tags = COUNTERS[name]
    return Counter(name, description=told, tag_keys=tags)
