"""The tables that jobs write beside a store: Parquet folders with one schema each.

A table is a folder of Parquet files below a job's output (`OUT/predictions/…`). Its name and
version stand in the schema metadata; the classes of predictions stand there too.
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

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]

_CURRENT = b"1"
_NAME, _VERSION, _METADATA = b"visao_ray.table", b"visao_ray.version", b"visao_ray.about"

SPLITS = ("train", "val", "test")

_AHEAD = 4  # files read at once


def named_schema(name: str, fields: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    """A table's schema with its name and version in the metadata, as `validate` looks for them."""
    return pa.schema(fields, metadata={_NAME: name.encode(), _VERSION: _CURRENT})


def predictions(classes: Sequence[str]) -> pa.Schema:
    """Schema of a predictions table: `probability` is float32[C] in the order of `classes`."""
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
    """Schema of an embeddings table: `embedding` is float32[width], one row an image."""
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
    """A table in its files: nothing of them is read before its rows are asked for.

    Rows are chosen by `filter` and columns by `columns`, as pyarrow's datasets do. Reads raise
    OSError when the store fails for good.
    """

    dataset: pads.Dataset

    @property
    def schema(self) -> pa.Schema:
        return self.dataset.schema

    def count_rows(self, filter: pads.Expression | None = None) -> int:
        """Rows there are; from the footers alone where all are counted."""
        return sum(self._each(lambda file: file.count_rows(filter=filter)))

    def head(self, rows: int, columns: Sequence[str]) -> pa.Table:
        """The first rows."""
        return with_retries(lambda: self.dataset.head(rows, columns=columns))

    def to_table(
        self, columns: Sequence[str] | None = None, filter: pads.Expression | None = None
    ) -> pa.Table:
        """The rows in memory."""
        return pa.concat_tables(self._read(columns, filter))

    def to_batches(
        self, columns: Sequence[str] | None = None, filter: pads.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Stream the rows; memory stays at a few files."""
        for table in self._read(columns, filter):
            yield from table.to_batches()

    def _read(
        self, columns: Sequence[str] | None, filter: pads.Expression | None
    ) -> Iterator[pa.Table]:
        schema = self.dataset.schema
        yield from self._each(
            lambda file: file.to_table(schema=schema, columns=columns, filter=filter)
        )

    def _each(self, read: Callable[[pads.Fragment], T]) -> Iterator[T]:
        """Of each file in turn; retried one by one, for hundreds in a row may not succeed."""
        fragments = self.dataset.get_fragments()
        with ThreadPoolExecutor(_AHEAD) as pool:
            while some := list(itertools.islice(fragments, _AHEAD)):
                yield from pool.map(lambda file: with_retries(lambda: read(file)), some)


def open_table(location: Location, name: str) -> Table:
    """A table, of which nothing but the list of files and one schema is read.

    Raises:
        InputError: no such table there, it is another table or version, or no Parquet file.
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


def validate(schema: pa.Schema, name: str, where: str) -> None:
    """Check that a schema is that of the table `name`, in the version this code writes.

    Raises:
        InputError: it is not; the message says which table it is instead.
    """
    metadata = schema.metadata or {}
    found = metadata.get(_NAME, b"none of visao_ray's").decode()
    if found != name:
        raise InputError(f"{where}: a table '{name}' is needed, but this one is '{found}'")
    version = metadata.get(_VERSION, b"?")
    if version != _CURRENT:
        raise InputError(
            f"{where}: table '{name}' has version {version.decode()}, this program reads "
            f"{_CURRENT.decode()}; make it again"
        )


def rows(location: Location) -> int:
    """Rows of a folder of Parquet files, from their footers alone; 0 when there is none."""
    files = _parquet_files(location)
    if not files:
        return 0
    return Table(pads.dataset(files, filesystem=location.filesystem)).count_rows()


def matrix(column: pa.ChunkedArray) -> Vectors:
    """A column of vectors without nulls as float32[N, D]."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(len(column), column.type.list_size)


def vectors(values: Vectors) -> pa.FixedSizeListArray:
    """float32[N, D] as a column of vectors."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def write(location: Location, table: pa.Table, schema: pa.Schema) -> None:
    """Write a small table as one file, atomically, replacing what was there under that name."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.select(schema.names).cast(schema), sink)
    location.join("part-0.parquet").write_bytes(sink.getvalue().to_pybytes())
