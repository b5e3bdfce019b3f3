"""Checks of a table of results at the end of a job: no row is missing, none is duplicated."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visao_ray.store import schemas, table
from visao_ray.store.table import TableVersion

Contents = npt.NDArray[np.bytes_]
_SCAN_ROWS = 65_536


def contents_without(images: TableVersion, results: TableVersion | None, views: int) -> Contents:
    """Return the contents of readable images without results of all views, sorted, S32[N].

    An error counts as a result of all views.
    """
    wanted = np.unique(ids(images, f"status = '{schemas.OK}'"))
    if results is None or not len(wanted):
        return wanted
    found, count = np.unique(ids(results), return_counts=True)
    failed = np.unique(ids(results, f"status = '{schemas.ERROR}'"))
    done = np.union1d(found[count >= views], failed)
    return np.setdiff1d(wanted, done, assume_unique=True)


def repeated_rows(results: TableVersion) -> npt.NDArray[np.uint64]:
    """Return the ids of rows that repeat content and view of an earlier row, uint64[N]."""
    scanner = results.open().scanner(
        columns=["content_id", "view"], with_row_id=True, batch_size=_SCAN_ROWS
    )
    rows = pa.Table.from_batches(scanner.to_batches(), schema=scanner.projected_schema)
    if not rows.num_rows:
        return np.zeros(0, np.uint64)
    contents, views = as_bytes(rows["content_id"]), rows["view"].to_numpy()
    numbers = rows["_rowid"].to_numpy()
    order = np.lexsort((numbers, views, contents))
    same = (contents[order][1:] == contents[order][:-1]) & (views[order][1:] == views[order][:-1])
    return np.asarray(numbers[order][1:][same])


def remove_repeated(results: TableVersion) -> tuple[TableVersion, int]:
    """Remove repeated rows of each content and view; return the new version and their number.

    Rows can be duplicated if the actor that assigns contents was lost in the middle of a job.
    """
    surplus = repeated_rows(results).tolist()
    return table.delete(results, surplus), len(surplus)


def ids(of: TableVersion, where: str | None = None) -> Contents:
    """Return the contents of a table's rows in physical order, S32[N]."""
    parts = [as_bytes(batch["content_id"]) for batch in of.scan(["content_id"], where, _SCAN_ROWS)]
    return np.concatenate([*parts, np.zeros(0, "S32")])


def as_column(contents: Contents) -> pa.Array:
    """Convert S32[N] to a column of digests; numpy's own elements lack zeros at their end."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(contents).view(np.uint8))]
    return pa.FixedSizeBinaryArray.from_buffers(schemas.CONTENT_ID, len(contents), buffers)


def as_bytes(column: pa.Array | pa.ChunkedArray) -> Contents:
    """Convert a column of digests without nulls to S32[N], which sorts like the bytes."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    start = column.offset * 32
    raw = np.frombuffer(column.buffers()[1], np.uint8)[start : start + 32 * len(column)]
    return raw.view("S32")
