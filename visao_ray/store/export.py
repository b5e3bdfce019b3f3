"""The export job: write a table of a store as Parquet files, optionally joined with images.

Each task streams one range of rows into one file, and renames the file when it is complete. Types
are simple: digests are hexadecimal text, vectors are lists of floats.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import current_cluster, remotely
from visao_ray.core.run import Run
from visao_ray.core.storage import Location
from visao_ray.store import schemas
from visao_ray.store.join import pin_table
from visao_ray.store.settings import ExportSettings
from visao_ray.store.store import PLAIN, Store
from visao_ray.store.table import LOOKUP_INDEX_CACHE, TableVersion, quoted, reason_of_lance

#: Files between half and twice this size suit DuckDB, Spark and object stores.
FILE_BYTES = 256 * 1024**2

_GROUP_BYTES = 64 * 1024**2  # of rows that a task collects for one row group
_SAMPLE_BYTES = 8 * 1024**2  # of rows in a sample, from which the size in Parquet is estimated
_BATCH_ROWS = 4096  # also the number of images in one query of an index
_IO_BUFFER = 64 * 1024**2
_PROGRESS_S = 10.0


@dataclass(frozen=True)
class Selection:
    """The rows and columns of an export; small and picklable.

    Attributes:
        table: the table to export.
        where: SQL condition on its rows; None: all rows.
        images: table of files to join; None: no join.
        images_where: SQL condition on the files; None: all files.
        on: column of both tables for the join.
    """

    table: TableVersion
    where: str | None = None
    images: TableVersion | None = None
    images_where: str | None = None
    on: str = "content_id"

    def schema(self) -> pa.Schema:
        """Return the schema of the export: first the columns of images, then those of the table."""
        own = self.table.schema
        fields = [
            *(field.with_name(name) for field, name in self.image_columns()),
            *(field for field in own if self.images is None or field.name != self.on),
        ]
        return pa.schema(
            [pa.field(field.name, _plain_type(field.type)) for field in fields],
            metadata=own.metadata,
        )

    def image_columns(self) -> list[tuple[pa.Field, str]]:
        """Return the columns of images in the export, each with its name there."""
        if self.images is None:
            return []
        own = set(self.table.schema.names) - {self.on}
        return [
            (field, f"image_{field.name}" if field.name in own else field.name)
            for field in schemas.IMAGES
        ]


@dataclass(frozen=True)
class Part:
    """The rows of one file.

    Attributes:
        number: number of the file, from 0.
        ranges: fragment, first row among its selected rows, and number of rows.
    """

    number: int
    ranges: tuple[tuple[int, int, int], ...]

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"part-{self.number:05}.parquet"


def export_table(settings: ExportSettings, run: Run[Any]) -> None:
    """Export a table of a store: the export job.

    Args:
        settings: settings of the job.
        run: the run.

    Raises:
        InputError: no such store, table, model or run, or an invalid condition.
    """
    store = Store.open(settings.store)
    name = _table_name(store, settings)
    start_ray()
    images = None
    if settings.join:  # pinned before the table, so that all of its contents are in the table
        images = pin_table(store, "images", run.id, settings.as_of)
    table = pin_table(store, name, run.id, settings.as_of)
    selection = _select(settings, table, images)
    with run.timed("plan"):
        parts = _plan_once(run, selection)
    rows = sum(count for part in parts for _, _, count in part.ranges)
    run.say(f"{rows:,} rows of {name} in {len(parts):,} files")
    with run.timed("write"):
        written, size = write_parts(run, selection, parts, settings.table)
    if images is None and written != rows:
        raise RuntimeError(f"the counts do not add up: {rows:,} rows, {written:,} were written")
    run.counts = {"rows": rows, "exported": written, "files": len(parts), "bytes": size}
    versions = {"images": images.version} if images is not None else {}
    run.inputs = {"store": store.uri, "versions": {**versions, name: table.version}}
    run.say(f"{written:,} rows, {size / 1e6:,.1f} MB: {run.out.join(settings.table).uri}")


def _table_name(store: Store, settings: ExportSettings) -> str:
    """Return the name of the table, as in `Store.tables`."""
    if settings.table == "vectors":
        extractor = store.the_extractor(settings.extractor)
        return f"vectors/{extractor}/{settings.recipe or PLAIN}"
    if settings.table == "predictions":
        models = store.models()
        if settings.model is None and not models:
            raise InputError(f"--store {store.uri}: has no predictions yet")
        if settings.model is None and len(models) > 1:
            raise InputError(
                f"--store {store.uri}: has predictions of {', '.join(models)}; choose one with "
                "--model"
            )
        return f"predictions/{settings.model or models[0]}"
    return settings.table


def _select(
    settings: ExportSettings, table: TableVersion, images: TableVersion | None
) -> Selection:
    of_table, of_images = _place_condition(settings.where, table, images)
    if settings.split:
        split = f"split IN ({', '.join(quoted(name) for name in settings.split)})"
        if images is None:
            of_table = _and(split, of_table)
        else:
            of_images = _and(split, of_images)
    on = "key" if settings.table == "verdicts" else "content_id"
    return Selection(table, of_table, images, of_images, on)


def _place_condition(
    where: str | None, table: TableVersion, images: TableVersion | None
) -> tuple[str | None, str | None]:
    """Return the conditions on the table and on images; --where applies to one of the two.

    Raises:
        InputError: it names other columns, or is not a condition.
    """
    if where is None:
        return None, None
    wrong = _wrong_condition(table, where)
    if wrong is None:
        return where, None
    if images is not None:
        wrong = _wrong_condition(images, where)
        if wrong is None:
            return None, where
    columns = ", ".join(dict.fromkeys(table.schema.names + (images.schema.names if images else [])))
    of_one = " of one of the two tables" if images is not None else ""
    raise InputError(f"--where {where}: {wrong}; write a condition on columns{of_one}: {columns}")


def _wrong_condition(table: TableVersion, where: str) -> str | None:
    try:
        table.open().scanner(columns=[table.schema.names[0]], filter=where).explain_plan()
    except ValueError as error:
        return reason_of_lance(error)
    return None


def _and(first: str, second: str | None) -> str:
    return first if second is None else f"({first}) AND ({second})"


def _plan_once(run: Run[Any], selection: Selection) -> list[Part]:
    """Return the parts; a resumed run reads those of its earlier start."""
    file = run.work.join("plan.json")
    if not file.exists():
        parts = remotely(plan_parts, selection)
        file.write_bytes(json.dumps([part.ranges for part in parts]).encode())
    ranges = json.loads(file.read_bytes())
    return [Part(number, tuple(map(tuple, each))) for number, each in enumerate(ranges)]


def plan_parts(selection: Selection, file_bytes: int = FILE_BYTES) -> list[Part]:
    """Divide the selected rows, in order, into files of about `file_bytes`. For a task.

    The size of a row in Parquet is measured on the first rows.
    """
    dataset = selection.table.open()
    counts = {
        fragment.fragment_id: fragment.count_rows(selection.where)
        for fragment in dataset.get_fragments()
    }
    total = sum(counts.values())
    files = max(1, round(total * _row_bytes(selection, counts) / file_bytes))
    edges = np.linspace(0, total, files + 1).astype(int)
    parts: list[list[tuple[int, int, int]]] = [[] for _ in range(files)]
    start = 0
    for fragment, count in counts.items():
        for number in range(files):
            begin, end = max(edges[number], start), min(edges[number + 1], start + count)
            if begin < end:
                parts[number].append((fragment, int(begin - start), int(end - begin)))
        start += count
    return [Part(number, tuple(ranges)) for number, ranges in enumerate(parts)]


def _row_bytes(selection: Selection, counts: dict[int, int]) -> float:
    """Estimate the bytes in Parquet per selected row of the table, including joined columns."""
    every = Part(0, tuple((fragment, 0, count) for fragment, count in counts.items()))
    sampled, batches = 0, []
    for rows, batch in read_part(every, selection):
        sampled += rows
        batches.append(batch)
        if sum(one.nbytes for one in batches) >= _SAMPLE_BYTES:
            break
    if not sampled:
        return 0.0
    sink = io.BytesIO()
    with _parquet_writer(sink, selection.schema()) as writer:
        writer.write_table(pa.concat_tables(batches))
    return sink.tell() / sampled


def write_parts(
    run: Run[Any], selection: Selection, parts: Sequence[Part], folder: str
) -> tuple[int, int]:
    """Write the files of a table below `run.out` in tasks; return rows and bytes."""
    import ray

    cluster = current_cluster()
    task = ray.remote(write_part).options(
        num_cpus=1, max_retries=3, retry_exceptions=[OSError], **cluster.avoid_gpu_nodes
    )
    waiting = [
        task.remote(part, selection, run.out.join(folder, part.name), run.work.join(part.name))
        for part in parts
    ]
    rows = size = 0
    said = time.monotonic()
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=_PROGRESS_S)
        for written, held in ray.get(ready):
            rows, size = rows + written, size + held
        if time.monotonic() - said >= _PROGRESS_S:
            said = time.monotonic()
            run.say(f"{len(parts) - len(waiting):,} of {len(parts):,} files, {size / 1e6:,.1f} MB")
    return rows, size


def write_part(
    part: Part, selection: Selection, target: Location, scratch: Location
) -> tuple[int, int]:
    """Write one file, unless it exists. For a task.

    Args:
        part: rows of the file.
        selection: selection that they belong to.
        target: location of the complete file.
        scratch: location of the file until it is complete.

    Returns:
        Rows and bytes of the file.
    """
    if not target.exists():
        if scratch.is_local:
            os.makedirs(os.path.dirname(scratch.path), exist_ok=True)
        schema = selection.schema()
        with (
            scratch.filesystem.open_output_stream(scratch.path) as stream,
            _parquet_writer(stream, schema) as writer,
        ):
            for group in _row_groups(batch for _, batch in read_part(part, selection)):
                writer.write_table(group)
        scratch.move(target)
    with target.filesystem.open_input_file(target.path) as file:
        return pq.ParquetFile(file).metadata.num_rows, file.size()


def read_part(part: Part, selection: Selection) -> Iterator[tuple[int, pa.Table]]:
    """Stream the rows of a part in the types of the export.

    Args:
        part: the part.
        selection: selection that it belongs to.

    Yields:
        Number of rows that were read from the table, and the rows of the export: with a join, one
        row per file.
    """
    dataset = selection.table.open()
    images = selection.images.open(LOOKUP_INDEX_CACHE) if selection.images is not None else None
    schema = selection.schema()
    fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
    for fragment, offset, rows in part.ranges:
        scanner = dataset.scanner(
            columns=selection.table.schema.names,
            filter=selection.where,
            fragments=[fragments[fragment]],
            offset=offset,
            limit=rows,
            batch_size=_BATCH_ROWS,
            batch_readahead=2,
            io_buffer_size=_IO_BUFFER,
            scan_in_order=True,
            use_scalar_index=False,  # an index would return the rows in another order
        )
        for batch in scanner.to_batches():
            found = pa.table(batch)
            if images is not None:
                found = _with_images(found, images, selection)
            yield batch.num_rows, _plain(found.select(schema.names), schema)


def _with_images(rows: pa.Table, images: lance.LanceDataset, selection: Selection) -> pa.Table:
    """Join rows with images: one row per file, in the order of the rows, then of the keys."""
    on = selection.on
    wanted = rows[on].to_pylist()
    columns = selection.image_columns()
    listed = ", ".join(_literal(value) for value in dict.fromkeys(wanted))
    found = images.to_table(
        columns=[field.name for field, _ in columns],
        filter=_and(f"{on} IN ({listed})", selection.images_where),
    ).sort_by("key")
    places: dict[Any, list[int]] = {}
    for place, value in enumerate(found[on].to_pylist()):
        places.setdefault(value, []).append(place)
    pairs = [(row, place) for row, value in enumerate(wanted) for place in places.get(value, ())]
    left = rows.take(pa.array([row for row, _ in pairs], pa.int64()))
    right = found.take(pa.array([place for _, place in pairs], pa.int64()))
    joined = right.rename_columns([name for _, name in columns])
    for name in left.schema.names:
        if name != on:
            joined = joined.append_column(name, left[name])
    return joined


def _plain(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Convert rows to the types of `_plain_type`."""
    columns = [
        pa.array([value and value.hex() for value in column.to_pylist()], pa.string())
        if column.type == schemas.CONTENT_ID
        else column
        for column in rows.columns
    ]
    return pa.table(columns, names=schema.names).cast(schema)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if kind == schemas.CONTENT_ID:
        return pa.string()
    return pa.binary() if pa.types.is_fixed_size_binary(kind) else kind


def _row_groups(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Combine batches into tables of at least `_GROUP_BYTES`, one for each row group."""
    held: list[pa.Table] = []
    size = 0
    for batch in batches:
        held.append(batch)
        size += batch.nbytes
        if size >= _GROUP_BYTES:
            yield pa.concat_tables(held)
            held, size = [], 0
    if held:
        yield pa.concat_tables(held)


def _parquet_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a writer with dictionaries for text columns only; numbers do not profit from them."""
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    return pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=texts)


def _literal(value: bytes | str) -> str:
    """Return a value as a literal of SQL."""
    return f"X'{value.hex()}'" if isinstance(value, bytes) else quoted(value)
