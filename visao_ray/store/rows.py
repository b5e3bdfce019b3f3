"""Rows of a table of results by their content: found by one scan of ids, then read in order."""

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
#: Rows are read by a scan where one of so many is wanted, and one by one where fewer are.
_SPARSE = 8


def places_of(ids: Contents, contents: Contents) -> Positions:
    """Place of each id in sorted contents, int64[N]; -1 where it is none of them."""
    if not len(contents):
        return np.full(len(ids), -1, np.int64)
    places = np.minimum(np.searchsorted(contents, ids), len(contents) - 1)
    return np.where(contents[places] == ids, places, -1).astype(np.int64)


def find_rows(results: TableVersion, contents: Contents, status: str) -> Positions:
    """Positions of the rows of some contents, int64[n], ascending; one row a content.

    Args:
        results: table of results of one view.
        contents: `S32`[N], sorted.
        status: that the rows must have.
    """
    seen = np.zeros(len(contents), bool)
    found = [np.zeros(0, np.int64)]
    start = 0
    for batch in results.scan(["content_id", "status"], batch_rows=_SCAN_ROWS):
        places = places_of(as_bytes(batch["content_id"]), contents)
        there = pc.equal(batch["status"], status).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero((places >= 0) & there)
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
    """Columns of the rows at some positions, in their order.

    Args:
        results: the table in which the positions were found.
        rows: int64[N], ascending.
        columns: to read.
        batch_rows: rows that are in memory at once.
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
