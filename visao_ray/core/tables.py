"""Tables that runs write outside a store: folders of Parquet files with one schema each.

A table is a folder of Parquet files below the output folder (`OUT/predictions/…`). The metadata of
its schema holds its name and version, and for predictions the classes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location, reason, with_retries
from visao_ray.core.table_format import TableFormat

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]

_FORMAT = TableFormat("version", "1", "create it again")
_METADATA = b"visao_ray.metadata"

SPLITS = ("train", "val", "test")

_AHEAD = 4  # files read at once


def named_schema(name: str, fields: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    """Return a schema with the table's name and version in its metadata, for `validate`."""
    return pa.schema(fields, metadata=_FORMAT.metadata(name))


def predictions(classes: Sequence[str]) -> pa.Schema:
    """Return the schema of predictions: `probability` is float32[C] in the order of `classes`."""
    schema = named_schema(
        "predictions",
        [
            ("key", pa.string()),
            ("split", pa.string()),
            ("group", pa.string()),
            ("label", pa.string()),
            ("predicted", pa.string()),
            ("probability", pa.list_(pa.float32(), len(classes))),
            ("model", pa.string()),
        ],
    )
    metadata = {**schema.metadata, _METADATA: json.dumps({"classes": list(classes)}).encode()}
    return schema.with_metadata(metadata)


def embeddings(width: int) -> pa.Schema:
    """Return the schema of embeddings: one row per image, `embedding` is float32[width]."""
    return named_schema(
        "embeddings",
        [
            ("key", pa.string()),
            ("label", pa.string()),
            ("split", pa.string()),
            ("group", pa.string()),
            ("content_id", pa.string()),
            ("embedding", pa.list_(pa.float32(), width)),
            ("model", pa.string()),
        ],
    )


@dataclass(frozen=True)
class Table:
    """A table in Parquet files; no file is read before rows are requested.

    `filter` selects rows and `columns` selects columns, as for pyarrow's datasets. Reads raise
    OSError if the object store keeps failing.

    Attributes:
        dataset: the files.
    """

    dataset: pads.Dataset

    @property
    def schema(self) -> pa.Schema:
        """The schema of the rows."""
        return self.dataset.schema

    def count_rows(self, filter: pads.Expression | None = None) -> int:
        """Count rows; without a filter only footers are read."""
        return sum(self._map_files(lambda file: file.count_rows(filter=filter)))

    def head(self, rows: int, columns: Sequence[str]) -> pa.Table:
        """Read the first rows."""
        return with_retries(lambda: self.dataset.head(rows, columns=columns))

    def to_table(
        self, columns: Sequence[str] | None = None, filter: pads.Expression | None = None
    ) -> pa.Table:
        """Read rows into memory."""
        return pa.concat_tables(self._read(columns, filter))

    def to_batches(
        self, columns: Sequence[str] | None = None, filter: pads.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Stream rows; only a few files are in memory at once."""
        for table in self._read(columns, filter):
            yield from table.to_batches()

    def _read(
        self, columns: Sequence[str] | None, filter: pads.Expression | None
    ) -> Iterator[pa.Table]:
        schema = self.dataset.schema
        yield from self._map_files(
            lambda file: file.to_table(schema=schema, columns=columns, filter=filter)
        )

    def _map_files(self, read: Callable[[pads.Fragment], T]) -> Iterator[T]:
        """Read each file and yield the results in order.

        Each file is retried by itself: in an outage, hundreds of reads in a row may not succeed.
        """
        fragments = self.dataset.get_fragments()
        with ThreadPoolExecutor(_AHEAD) as pool:
            while some := list(itertools.islice(fragments, _AHEAD)):
                yield from pool.map(lambda file: with_retries(lambda: read(file)), some)


def open_table(location: Location, name: str) -> Table:
    """Open a table; this reads only the list of files and one schema.

    Args:
        location: folder of the table.
        name: expected name of the table.

    Returns:
        The table.

    Raises:
        InputError: there is no such table, it is another table or version, or not a Parquet file.
    """
    files = _parquet_files(location)
    if not files:
        raise InputError(f"{location.uri}: no {name} table there (no .parquet file)")
    try:
        schema = pq.read_schema(files[0], filesystem=location.filesystem)
    except pa.ArrowInvalid as error:
        raise InputError(f"{files[0]}: not a Parquet file: {reason(error)}") from error
    validate(schema, name, location.uri)
    return Table(pads.dataset(files, schema=schema, filesystem=location.filesystem))


def _parquet_files(location: Location) -> list[str]:
    return sorted(file.path for file in location.files() if file.path.endswith(".parquet"))


#: Checks that a schema belongs to a table of a run; see `TableFormat.validate`.
validate = _FORMAT.validate


def rows(location: Location) -> int:
    """Count the rows of a folder of Parquet files from their footers; 0 if there are no files."""
    files = _parquet_files(location)
    if not files:
        return 0
    return Table(pads.dataset(files, filesystem=location.filesystem)).count_rows()


def matrix(column: pa.ChunkedArray) -> Vectors:
    """Convert a column of vectors without nulls to float32[N, D]."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(len(column), column.type.list_size)


def vectors(values: Vectors) -> pa.FixedSizeListArray:
    """Convert float32[N, D] to a column of vectors."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def write(location: Location, table: pa.Table, schema: pa.Schema) -> None:
    """Write a small table atomically as one file, replacing an earlier one."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.select(schema.names).cast(schema), sink)
    location.join("part-0.parquet").write_bytes(sink.getvalue().to_pybytes())
