"""The last task of the graph: rows become files of tables, which the driver then commits."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visao_ray.core import counters, profiling
from visao_ray.core.storage import Location
from visao_ray.datasets.listing import APPEND, LATE, UPDATE
from visao_ray.store import schemas
from visao_ray.store.table import write_fragments

#: Columns of `images` that a file's new bytes change; label, group and split stay.
UPDATED = ("key", "etag", "bytes", "content_id", "width", "height", "mode", "status", "error")
UPDATES = pa.schema([schemas.IMAGES.field(name) for name in UPDATED])


@dataclass(frozen=True)
class Target:
    """Where rows go.

    Attributes:
        images: URI of the table of files.
        results: URI of the table of results; None where there are none to make.
        schema: of the table of results.
        updates: folder for rows of files that are there already, which the driver merges.
    """

    images: str
    results: str | None
    schema: pa.Schema | None
    updates: Location


@dataclass(frozen=True)
class WriteResult:
    """What one writing task left: files that no version names yet, and counts.

    Attributes:
        results, images, late: metadata of fragments, as JSON; `late` ones are committed after the
            last results.
        updates: files of `UPDATES`.
        updated: rows in them.
        files: files of the listing that these rows stand for.
        errors: those that could not be used, by reason.
        computed: images that went through the engine.
        stages: what the rows cost.
    """

    results: list[str]
    images: list[str]
    late: list[str]
    updates: list[str]
    updated: int
    files: int
    errors: dict[str, int]
    computed: int
    stages: dict[str, Any]

    def to_row(self) -> pa.Table:
        """As Ray Data hands it to the driver."""
        return pa.table({"written": [json.dumps(asdict(self))]})

    @classmethod
    def from_json(cls, text: str) -> WriteResult:
        """What `to_row` made."""
        return cls(**json.loads(text))


def write_rows(block: pa.Table, target: Target, labels: Mapping[str, str]) -> pa.Table:
    """Write rows that come from the engine, or straight from loading where there is none.

    Returns one row, `WriteResult`. A task that is tried again leaves files that nobody commits.
    """
    start = time.perf_counter()
    results: list[str] = []
    if target.results is not None and target.schema is not None:
        rows = block.filter(block["result"])
        if rows.num_rows:
            results = write_fragments(target.results, target.schema, rows)
    images = _images(block)
    action = block["image"]
    parts = {
        name: write_fragments(target.images, schemas.IMAGES, rows) if rows.num_rows else []
        for name in (APPEND, LATE)
        for rows in (images.filter(pc.equal(action, name)),)
    }
    changed = images.filter(pc.equal(action, UPDATE)).select(list(UPDATED)).cast(UPDATES)
    updates = []
    if changed.num_rows:
        # Not under the names of what an attempt before this one wrote.
        place = target.updates.join(f"{uuid.uuid4().hex}.parquet")
        sink = pa.BufferOutputStream()
        pq.write_table(changed, sink)
        place.write_bytes(sink.getvalue().to_pybytes())
        updates.append(place.uri)
    costs = profiling.summed(
        block[profiling.SPENT],
        _failed(block),
        block.nbytes,
        time.perf_counter() - start,
        time.time(),
    )
    counters.count(costs, labels)
    return WriteResult(
        results=results,
        images=parts[APPEND],
        late=parts[LATE],
        updates=updates,
        updated=changed.num_rows,
        files=costs.images,
        errors=_reasons(block),
        computed=int(
            pc.sum(pc.and_(block["result"], pc.equal(block["status"], "ok"))).as_py() or 0
        ),
        stages=asdict(costs),
    ).to_row()


def _images(block: pa.Table) -> pa.Table:
    """The rows' files, in the columns of `images`; their split is not decided yet."""
    columns = {
        field.name: block[f"image_{field.name}" if field.name != "content_id" else field.name]
        for field in schemas.IMAGES
    }
    return pa.table(columns)


def _failed(block: pa.Table) -> pa.ChunkedArray:
    """Whether a row's file could not be used."""
    return pc.not_equal(block["image_status"], schemas.OK)


def _reasons(block: pa.Table) -> dict[str, int]:
    rows = block.filter(pa.array(profiling.counted(block[profiling.SPENT])))
    failed = rows.filter(_failed(rows))["image_error"].to_pylist()
    return dict(Counter(str(error).split(":", 1)[0] for error in failed))
