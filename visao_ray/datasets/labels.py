"""Read labels, groups and splits from a CSV or Parquet file; all values are text."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location, is_outage, locate, reason
from visao_ray.datasets.spec import SPLITS, Dataset

#: Columns of a labels file, all text; null means that the file has no value.
SCHEMA = pa.schema(
    [("key", pa.string()), ("label", pa.string()), ("group", pa.string()), ("split", pa.string())]
)
_COLUMNS = SCHEMA.names
_ROWS = 8192


def read_labels(uri: str, dataset: Dataset, root: Location) -> Iterator[pa.RecordBatch]:
    """Stream the rows of a labels file in order, and check each one.

    Args:
        uri: a .csv or .csv.gz file with a header, or a .parquet file, with the column key and any
            of label, group and split.
        dataset: dataset that defines the valid labels.
        root: folder to which keys without a scheme are relative.

    Yields:
        Batches of `SCHEMA` with at most 8,192 rows. Keys are URIs as in the store. Cells are null
        if the file has no such column or an empty cell.

    Raises:
        InputError: the file cannot be read, has unknown columns, or has a row with a missing key,
            an unknown label or an unknown split. The message names the file, the line (empty lines
            are not counted; the row for a Parquet file), the value and the fix.
    """
    name, first, batches = "line", 2, _csv_batches
    if uri.lower().endswith(".parquet"):
        name, first, batches = "row", 1, _parquet_batches
    elif not uri.lower().endswith((".csv", ".csv.gz")):
        raise InputError(f"--labels {uri}: write a .csv or a .parquet file")
    with _readable(uri):
        for found in batches(locate(uri)):
            for start in range(0, found.num_rows, _ROWS):
                batch = _as_text(found.slice(start, _ROWS), uri)
                _check(batch, dataset, f"--labels {uri}: {name}", first)
                first += batch.num_rows
                yield batch.set_column(0, "key", _canonical(batch["key"], root))


def check_labels(uri: str, dataset: Dataset, root: Location) -> int:
    """Read a whole labels file, and check that it names no image twice.

    Call it in a task: it holds all keys as an Arrow column, about 300 bytes per row.

    Args:
        uri: labels file, see `read_labels`.
        dataset: dataset that defines the valid labels.
        root: folder to which keys without a scheme are relative.

    Returns:
        The number of rows.

    Raises:
        InputError: see `read_labels`; or the file names an image twice.
    """
    keys = pa.chunked_array(
        [batch["key"] for batch in read_labels(uri, dataset, root)], pa.string()
    )
    counts = pc.value_counts(keys)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(twice):
        raise InputError(
            f"--labels {uri}: key '{twice[0]}' appears more than once, and so do "
            f"{len(twice) - 1:,} other keys; keep one row per image"
        )
    return len(keys)


def _csv_batches(location: Location) -> Iterator[pa.RecordBatch]:
    convert = pacsv.ConvertOptions(
        # Read as text: 007 and 7 are different containers.
        column_types=dict.fromkeys(_COLUMNS, pa.string()),
        strings_can_be_null=True,
        null_values=[""],
    )
    with location.filesystem.open_input_stream(location.path) as stream:
        # One thread, so that errors report the right line.
        reading = pacsv.ReadOptions(use_threads=False)
        with pacsv.open_csv(stream, read_options=reading, convert_options=convert) as reader:
            _check_columns(reader.schema.names, location.uri)  # also for a file without rows
            yield from reader


def _parquet_batches(location: Location) -> Iterator[pa.RecordBatch]:
    with (
        location.filesystem.open_input_file(location.path) as source,
        pq.ParquetFile(source) as file,
    ):
        _check_columns(file.schema_arrow.names, location.uri)
        yield from file.iter_batches(_ROWS)


@contextlib.contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Turn read errors into one-line `InputError`s, but let outages of the object store pass."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        if is_outage(error):
            raise
        raise InputError(f"--labels {uri}: cannot be read: {reason(error)}") from error


def _check_columns(names: Sequence[str], uri: str) -> None:
    known = ", ".join(_COLUMNS)
    for place, name in enumerate(names):
        if name not in _COLUMNS:
            raise InputError(
                f"--labels {uri}: unknown column '{name}'; the columns are {known}, separated by "
                "commas"
            )
        if name in names[:place]:
            raise InputError(f"--labels {uri}: column '{name}' appears twice; remove one")
    if "key" not in names:
        raise InputError(f"--labels {uri}: column 'key' is missing; the columns are {known}")


def _as_text(found: pa.RecordBatch, uri: str) -> pa.RecordBatch:
    """Return the columns of `SCHEMA` as text; empty text becomes null."""
    columns = []
    for name in _COLUMNS:
        if name not in found.schema.names:
            columns.append(pa.nulls(found.num_rows, pa.string()))
            continue
        column = found[name]
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        numbers = pa.types.is_integer(kind) and name != "key"
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or numbers):
            raise InputError(f"--labels {uri}: column '{name}' holds {kind}; write it as text")
        text = column.cast(kind).cast(pa.string())
        columns.append(pc.if_else(pc.equal(text, ""), None, text))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _check(batch: pa.RecordBatch, dataset: Dataset, where: str, first: int) -> None:
    """Check keys, labels and splits; `first` is the number of the first row in the batch."""
    if batch["key"].null_count:
        row = pc.index(pc.is_null(batch["key"]), True).as_py()
        raise InputError(f"{where} {first + row}: column 'key' is empty; write the image's key")
    classes = ", ".join(dataset.classes) or f"names that match {dataset.class_pattern}"
    columns: dict[str, tuple[Callable[[str], bool], str]] = {
        "label": (
            dataset.has_class,
            f"not a class of dataset {dataset.name}; choose one of {classes}",
        ),
        "split": (SPLITS.__contains__, f"not a split; choose one of {', '.join(SPLITS)}"),
    }
    for column, (fits, fix) in columns.items():
        values = batch[column].unique().drop_null().to_pylist()
        wrong = next((value for value in values if not fits(value)), None)
        if wrong is not None:
            row = pc.index(batch[column], wrong).as_py()
            raise InputError(
                f"{where} {first + row}: column '{column}', value '{wrong}' is {fix}, or leave it "
                "empty"
            )


def _canonical(keys: pa.Array, root: Location) -> pa.Array:
    """Return keys as URIs; keys that are neither URIs nor absolute paths are put below `root`."""
    prefix = pa.scalar(root.uri.rstrip("/") + "/")
    below = pc.binary_join_element_wise(
        prefix, pc.replace_substring_regex(keys, r"^(?:\./)+", ""), ""
    )
    whole = pc.match_substring_regex(keys, r"^[a-z0-9]+://")
    if root.is_local:
        whole = pc.or_(whole, pc.starts_with(keys, "/"))
    keys = pc.if_else(whole, keys, below)
    local = pc.starts_with(keys, "file://")
    if pc.any(local).as_py():
        texts = keys.to_pylist()
        keys = pa.array([locate(text).uri if text.startswith("file:") else text for text in texts])
    return keys
