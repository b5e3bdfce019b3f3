"""Find rows of a table of results by content in one scan of ids, and read them in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visao_ray.store.proof import Contents, as_bytes
from visao_ray.store.table import TableVersion

Positions = npt.NDArray[np.int64]

_SCAN_ROWS = 65_536
_BATCH_ROWS = 2048  # a row of vectors has 8 kB
#: Rows are read by a scan if at least one in so many is wanted, otherwise one by one.
_SPARSE = 8


def places_of(ids: Contents, contents: Contents) -> Positions:
    """Return the position of each id in sorted contents, int64[N]; -1 if it is not among them."""
    if not len(contents):
        return np.full(len(ids), -1, np.int64)
    places = np.minimum(np.searchsorted(contents, ids), len(contents) - 1)
    return np.where(contents[places] == ids, places, -1).astype(np.int64)


def find_rows(results: TableVersion, contents: Contents, status: str) -> Positions:
    """Find the rows of some contents, one row per content.

    Args:
        results: table of results of one view.
        contents: S32[N], sorted.
        status: status that the rows must have.

    Returns:
        Positions of the rows, int64[n], ascending.
    """
    seen = np.zeros(len(contents), bool)
    found = [np.zeros(0, np.int64)]
    start = 0
    for batch in results.scan(["content_id", "status"], batch_rows=_SCAN_ROWS):
        places = places_of(as_bytes(batch["content_id"]), contents)
        matches = pc.equal(batch["status"], status).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero((places >= 0) & matches)
        rows = rows[~seen[places[rows]]]
        _, first = np.unique(places[rows], return_index=True)
        rows = rows[np.sort(first)]
        seen[places[rows]] = True
        found.append(start + rows)
        start += len(places)
    return np.concatenate(found)


def read_rows(
    results: TableVersion, rows: Positions, columns: Sequence[str], batch_rows: int = _BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Read the rows at some positions, in this order.

    Args:
        results: the table version of the positions.
        rows: positions, int64[N], ascending.
        columns: columns to read.
        batch_rows: number of rows that are in memory at once.

    Yields:
        Batches of the columns.
    """
    if not len(rows):
        return
    dataset = results.open()
    first, last = int(rows[0]), int(rows[-1])
    if len(rows) * _SPARSE < last - first + 1:
        for start in range(0, len(rows), batch_rows):
            chosen = rows[start : start + batch_rows].tolist()
            yield from dataset.take(chosen, columns=list(columns)).combine_chunks().to_batches()
        return
    scanner = dataset.scanner(
        columns=list(columns),
        offset=first,
        limit=last - first + 1,
        batch_size=batch_rows,
        batch_readahead=4,
        fragment_readahead=2,
        scan_in_order=True,
    )
    start = first
    for batch in scanner.to_batches():
        inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + len(batch))]
        if len(inside):
            yield batch if len(inside) == len(batch) else batch.take(pa.array(inside - start))
        start += len(batch)
