"""The last task of the graph: it writes rows as files of tables, which the driver commits."""

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

#: Columns of `images` that are updated if a file has new bytes; label, group and split stay.
UPDATED = ("key", "etag", "bytes", "content_id", "width", "height", "mode", "status", "error")
UPDATES = pa.schema([schemas.IMAGES.field(name) for name in UPDATED])


@dataclass(frozen=True)
class Target:
    """Where rows are written.

    Attributes:
        images: URI of the table `images`.
        results: URI of the table of results, or None.
        schema: schema of the table of results, or None.
        updates: folder for updated rows of known files, which the driver merges.
    """

    images: str
    results: str | None
    schema: pa.Schema | None
    updates: Location


@dataclass(frozen=True)
class WriteResult:
    """Result of one writing task: uncommitted files, and counts.

    Attributes:
        results: metadata of fragments of the results, as JSON.
        images: metadata of fragments of `images`, as JSON.
        late: metadata of fragments of `images` that are committed after the last results, as JSON.
        updates: URIs of Parquet files of schema `UPDATES`.
        updated: number of rows in these files.
        files: number of files of the listing that the rows belong to.
        errors: number of unusable files by reason.
        computed: number of views that went through the engine.
        stages: time and bytes of all stages, the fields of `profiling.Stages`.
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
        """Return the result as a table of one row, for Ray Data."""
        return pa.table({"written": [json.dumps(asdict(self))]})

    @classmethod
    def from_json(cls, text: str) -> WriteResult:
        """Restore the result from the value that `to_row` wrote."""
        return cls(**json.loads(text))


def write_rows(block: pa.Table, target: Target, labels: Mapping[str, str]) -> pa.Table:
    """Write rows from the engine, or from loading if there is no engine.

    A task that is retried leaves files that are never committed.

    Args:
        block: rows of `computed_schema` or `LOADED`.
        target: where to write.
        labels: labels of the run for its metrics.

    Returns:
        A table of one row, a `WriteResult`.
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
        # A new name, because an earlier attempt of the task may have written its file already.
        place = target.updates.join(f"{uuid.uuid4().hex}.parquet")
        sink = pa.BufferOutputStream()
        pq.write_table(changed, sink)
        place.write_bytes(sink.getvalue().to_pybytes())
        updates.append(place.uri)
    costs = profiling.sum_costs(
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
    """Return the columns of `images` for the files of the rows; their split is still null."""
    columns = {
        field.name: block[f"image_{field.name}" if field.name != "content_id" else field.name]
        for field in schemas.IMAGES
    }
    return pa.table(columns)


def _failed(block: pa.Table) -> pa.ChunkedArray:
    """Return whether each row's file was unusable."""
    return pc.not_equal(block["image_status"], schemas.OK)


def _reasons(block: pa.Table) -> dict[str, int]:
    rows = block.filter(pa.array(profiling.first_views(block[profiling.SPENT])))
    failed = rows.filter(_failed(rows))["image_error"].to_pylist()
    return dict(Counter(str(error).split(":", 1)[0] for error in failed))
