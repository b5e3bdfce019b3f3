"""Counters of our own among the metrics of a Ray cluster.

They count where rows are written, once a block. A write that fails after its files were written, or
whose process is lost then, is counted again when it is tried again; `result.json` is exact. Metrics
belong to clusters: a Ray that a job starts for itself collects none.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from visao_ray.stages import Stages

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


def _add(name: str, value: float, tags: Mapping[str, str]) -> None:
    if value > 0:
        _counter(name).inc(value, tags=dict(tags))


@cache
def _counter(name: str) -> Any:
    """One a process: Ray takes a second counter of a name for the same, but builds it anew."""
    from ray.util.metrics import Counter

    told, tags = COUNTERS[name]
    return Counter(name, description=told, tag_keys=tags)
