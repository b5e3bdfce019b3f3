"""Profiling of a job on Ray Data: costs are recorded per row and summed where rows are written.

Loaders and actors record the costs of rows in one column, `SPENT`. It stays with the rows until
they are written, and is not written to any table. So the driver does no work for it, and repeated
work (a task retried, a node lost) counts once: with the rows that were written.
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

#: Column of a block with the costs of its rows: 28 bytes a row, next to 150,000 bytes of pixels.
SPENT = "spent"
_COSTS = ("images", "read_bytes", "block_bytes", "read", "decode", "wait", "extract")
FIELD = pa.field(SPENT, pa.list_(pa.float32(), len(_COSTS)))

_BUSY_SHARE = 0.8  # of their time; from here on actors are the bottleneck
_MIN_BLOCKS = 8  # per actor; with fewer, its waiting time says little


@dataclass(frozen=True)
class Stages:
    """Sums over the images that a run has written since its last start.

    Attributes:
        ok: images with results.
        errors: images without results.
        blocks: number of writes.
        read_bytes: bytes of image files.
        block_bytes: bytes of decoded pixels; loaders send them to actors, if there are any.
        write_bytes: bytes of rows for the tables, before compression.
        read: seconds of loading tasks for reading. A task reads and decodes with more than one
            thread; its seconds are divided in proportion to the seconds of its threads.
        decode: seconds of loading tasks for decoding and augmenting.
        wait: seconds that actors were idle between two blocks.
        extract: seconds that actors worked.
        write: seconds of writing tasks, from Ray's pending checkpoint to the end of the files.
        first: when the first block was written, in seconds since 1970 by the clock of the node; 0
            if there was none.
        last: when the last block was written, likewise.
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
        """Number of images."""
        return self.ok + self.errors

    @property
    def busy(self) -> float | None:
        """Share of their time that actors worked, between their first and their last block."""
        return self.extract / (self.extract + self.wait) if self.extract else None

    @property
    def images_per_second(self) -> float | None:
        """Speed after the first written block, so without the start; None for a single block."""
        if self.blocks < 2 or self.last <= self.first:
            return None
        return self.images * (1 - 1 / self.blocks) / (self.last - self.first)

    def costs(self) -> StageCosts:
        """Return the costs of one image, for `forecast`."""
        names = [one.name for one in fields(StageCosts)]
        return StageCosts(**{name: getattr(self, name) / max(self.images, 1) for name in names})


def sum_stages(parts: Iterable[Stages]) -> Stages:
    """Add up `Stages`; the result covers the time from the earliest to the latest block."""
    found = list(parts)
    if not found:
        return Stages()
    added = {one.name: sum(getattr(part, one.name) for part in found) for one in fields(Stages)}
    first, last = min(part.first for part in found), max(part.last for part in found)
    return Stages(**{**added, "first": first, "last": last})


def loader_costs(
    views: Sequence[int], costs: Sequence[tuple[float, float, float, float]], seconds: float
) -> pa.Array:
    """Build the `SPENT` column of a block from a loader.

    Args:
        views: number of rows of each image; the first row of an image gets all of its costs.
        costs: of each image: bytes read, bytes of pixels, and its thread's seconds of reading and
            of decoding.
        seconds: seconds that the whole block took.

    Returns:
        The column, float32[sum(views), 7].
    """
    rows = np.zeros((sum(views), len(_COSTS)), np.float32)
    if views:
        of_images = np.array(costs, np.float64)
        of_images[:, 2:] *= seconds / max(of_images[:, 2:].sum(), 1e-9)
        firsts = np.cumsum([0, *views[:-1]])
        rows[firsts, 0] = 1
        rows[firsts, 1:5] = of_images
    return tables.vectors(rows)


def add_actor_costs(spent: pa.ChunkedArray, wait: float, seconds: float) -> pa.Array:
    """Return the `SPENT` column of a block with an actor's seconds of waiting and of work added."""
    rows = tables.matrix(spent).copy()
    rows[:, 5:] = np.array([wait, seconds]) / max(len(rows), 1)
    return tables.vectors(rows)


def sum_costs(
    spent: pa.ChunkedArray, failed: pa.ChunkedArray, write_bytes: int, seconds: float, now: float
) -> Stages:
    """Sum the costs of the rows of one write.

    Args:
        spent: the `SPENT` column, float32[N, 7].
        failed: bool[N], whether a row's image could not be used.
        write_bytes: bytes of the rows as they are written.
        seconds: seconds of the write.
        now: current time, in seconds since 1970.

    Returns:
        The sums, with one block.
    """
    costs = tables.matrix(spent).astype(np.float64)
    sums = dict(zip(_COSTS[1:], costs[:, 1:].sum(axis=0).tolist(), strict=True))
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


def first_views(spent: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Return whether each row is the first view of its image, bool[N]."""
    return np.asarray(tables.matrix(spent)[:, 0] > 0)


def to_json(stages: Stages, nodes: Nodes, started: float) -> dict[str, Any]:
    """Return `details.stages` of result.json for a run that started at `started` (since 1970, s).

    `start` is the seconds until the first block was written; `twice` is the speed-up from twice the
    loaders, actors, writers or bandwidth.
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
    """Summarise the costs of an image and what would make the job faster, in one line."""
    costs = stages.costs()
    seconds = {name: getattr(costs, name) for name in ("read", "decode", "extract", "write")}
    if not stages.extract:
        del seconds["extract"]
    parts = ", ".join(f"{name} {_milliseconds(value)}" for name, value in seconds.items())
    total = f"each image took {_milliseconds(sum(seconds.values()))} ms: {parts}"
    return f"{total}; {_advice(stages, nodes)}"


def _advice(stages: Stages, nodes: Nodes) -> str:
    """Return advice from the measured share of busy actors and, if they waited, the forecast."""
    costs, busy = stages.costs(), ""
    if stages.blocks < _MIN_BLOCKS * max(nodes.actors, 1):
        return "too few images to say what would make it faster"
    if stages.busy is not None:
        busy = f"actors were busy {100 * stages.busy:.0f} % of the time: "
        if stages.busy >= _BUSY_SHARE:
            return busy + "more actors (GPUs, nodes) or, on GPUs, larger batches make it faster"
    rates = forecast(costs, [nodes], stages.images).stages
    if rates["write"] < rates["load"]:
        return busy + "writing rows limits the speed: storage that writes faster helps"
    if stages.busy is not None and rates["extract"] < rates["load"]:
        return busy + "loaders could keep up; more memory for blocks or smaller blocks may help"
    if costs.read > costs.decode:
        return busy + "storage that reads faster or is nearer, or more CPU nodes, make it faster"
    return busy + "more CPUs (nodes) to decode make it faster"


def _milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"
