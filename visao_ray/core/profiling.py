"""Where the seconds of a job on Ray Data go: told row by row, summed where rows are written.

Loaders and actors tell what rows cost in one column, `SPENT`, which travels with the rows to the
sink and into no table. So nothing is asked of the driver, and work that was done twice (a task
tried again, a node lost) counts once: with the rows that were written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visao_ray.core import tables
from visao_ray.core.capacity import Nodes, StageCosts, forecast, gains

#: Column of a block with what its rows cost: 28 bytes a row, beside 150,000 of pixels.
SPENT = "spent"
_TOLD = ("images", "read_bytes", "block_bytes", "read", "decode", "wait", "extract")
FIELD = pa.field(SPENT, pa.list_(pa.float32(), len(_TOLD)))

_BUSY = 0.8  # share of their time from which on actors are what all wait for
_ENOUGH = 8  # blocks an actor, below which its waiting says little


@dataclass(frozen=True)
class Stages:
    """Sums over the images that one start of a run wrote; of a resumed run, since its last start.

    Attributes:
        ok, errors: images.
        blocks: written at once, each.
        read_bytes: of image files.
        block_bytes: of pixels made, which go from loaders to actors where there are any.
        write_bytes: of rows for the tables, before Parquet compresses them.
        read, decode: seconds of loading tasks; decoding includes augmenting. A task reads and
            decodes with several threads, and its seconds are split as those of its threads are.
        wait: seconds that actors had nothing to do, between one block and the next.
        extract: seconds that actors worked.
        write: seconds of writing tasks, from Ray's pending checkpoint to the end of the files.
        first, last: when the first and the last block were written, in seconds since 1970, by the
            clocks of the nodes; 0 where there was none.
    """

    ok: int = 0
    errors: int = 0
    blocks: int = 0
    read_bytes: float = 0.0
    block_bytes: float = 0.0
    write_bytes: float = 0.0
    read: float = 0.0
    decode: float = 0.0
    wait: float = 0.0
    extract: float = 0.0
    write: float = 0.0
    first: float = 0.0
    last: float = 0.0

    @property
    def images(self) -> int:
        return self.ok + self.errors

    @property
    def busy(self) -> float | None:
        """Share of their time that actors worked, between their first block and their last."""
        return self.extract / (self.extract + self.wait) if self.extract else None

    @property
    def images_per_second(self) -> float | None:
        """From the first written block on, so without the start; None for a single block."""
        if self.blocks < 2 or self.last <= self.first:
            return None
        return self.images * (1 - 1 / self.blocks) / (self.last - self.first)

    def costs(self) -> StageCosts:
        """What one image cost, as a forecast takes it."""
        names = [one.name for one in fields(StageCosts)]
        return StageCosts(**{name: getattr(self, name) / max(self.images, 1) for name in names})


def total(parts: Iterable[Stages]) -> Stages:
    """Several sums as one."""
    found = list(parts)
    if not found:
        return Stages()
    added = {one.name: sum(getattr(part, one.name) for part in found) for one in fields(Stages)}
    first, last = min(part.first for part in found), max(part.last for part in found)
    return Stages(**{**added, "first": first, "last": last})


def loaded(
    views: Sequence[int], told: Sequence[tuple[float, float, float, float]], seconds: float
) -> pa.Array:
    """The column of a block that a loader made of some images.

    Args:
        views: rows that each image became; the first of them bears the costs of all.
        told: of each image: bytes read, bytes of pixels, its thread's seconds of reading and of
            decoding.
        seconds: that the whole block took.
    """
    rows = np.zeros((sum(views), len(_TOLD)), np.float32)
    if views:
        costs = np.array(told, np.float64)
        costs[:, 2:] *= seconds / max(costs[:, 2:].sum(), 1e-9)
        firsts = np.cumsum([0, *views[:-1]])
        rows[firsts, 0] = 1
        rows[firsts, 1:5] = costs
    return tables.vectors(rows)


def extracted(spent: pa.ChunkedArray, wait: float, seconds: float) -> pa.Array:
    """The column of a block behind an actor, which waited and then worked for it."""
    rows = tables.matrix(spent).copy()
    rows[:, 5:] = np.array([wait, seconds]) / max(len(rows), 1)
    return tables.vectors(rows)


def summed(
    spent: pa.ChunkedArray, failed: pa.ChunkedArray, write_bytes: int, seconds: float, now: float
) -> Stages:
    """What the rows of one write cost.

    Args:
        spent: the column of their costs.
        failed: bool[N], whether a row's image could not be used.
        write_bytes: of the rows, as they are written.
        seconds: of the write.
        now: seconds since 1970.
    """
    costs = tables.matrix(spent).astype(np.float64)
    sums = dict(zip(_TOLD[1:], costs[:, 1:].sum(axis=0).tolist(), strict=True))
    bad = np.asarray(failed)
    return Stages(
        ok=round(costs[~bad, 0].sum()),
        errors=round(costs[bad, 0].sum()),
        blocks=1,
        write_bytes=write_bytes,
        write=seconds,
        first=now,
        last=now,
        **sums,
    )


def counted(spent: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Whether a row stands for an image of its own; further views of it do not."""
    return np.asarray(tables.matrix(spent)[:, 0] > 0)


def to_details(stages: Stages, nodes: Nodes, started: float) -> dict[str, Any]:
    """`stages` as result.json holds it, for a run that `started` then (seconds since 1970).

    `start` is the seconds until the first block was written; `twice` tells how many times as fast
    it would be with twice of each.
    """
    costs = stages.costs()
    sums = {name: value for name, value in asdict(stages).items() if name not in ("first", "last")}
    return {
        **sums,
        "start": max(0.0, stages.first - started) if stages.blocks else None,
        "busy": stages.busy,
        "images_per_second": stages.images_per_second,
        "slots": {"loaders": nodes.loaders, "actors": nodes.actors, "writers": nodes.writers},
        "forecast": asdict(forecast(costs, [nodes], stages.images)),
        "twice": gains(costs, [nodes]),
    }


def summary(stages: Stages, nodes: Nodes) -> str:
    """Where time went and what would make it faster, in one line for people."""
    costs = stages.costs()
    seconds = {name: getattr(costs, name) for name in ("read", "decode", "extract", "write")}
    if not stages.extract:
        del seconds["extract"]
    parts = ", ".join(f"{name} {_milliseconds(value)}" for name, value in seconds.items())
    told = f"of each image's {_milliseconds(sum(seconds.values()))} ms: {parts}"
    return f"{told}; {_advice(stages, nodes)}"


def _advice(stages: Stages, nodes: Nodes) -> str:
    """By how busy the actors were, as measured; where they waited, by the forecast."""
    costs, told = stages.costs(), ""
    if stages.blocks < _ENOUGH * max(nodes.actors, 1):
        return "too few images to tell what would make it faster"
    if stages.busy is not None:
        told = f"the network's actors were busy {100 * stages.busy:.0f} % of the time: "
        if stages.busy >= _BUSY:
            return told + "more actors (GPUs, nodes) or, on GPUs, larger batches make it faster"
    found = forecast(costs, [nodes], stages.images).stages
    if found["write"] < found["load"]:
        return told + "they wait for rows to be written: storage that writes faster"
    if stages.busy is not None and found["extract"] < found["load"]:
        return told + "loaders could keep up; more memory for blocks or smaller blocks may help"
    if costs.read > costs.decode:
        return told + "storage that reads faster or is nearer, or more CPU nodes, make it faster"
    return told + "more CPUs (nodes) to decode make it faster"


def _milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"
