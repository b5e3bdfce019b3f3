"""Search indexes: a table of the store per space, whose vectors Lance indexes.

A row has the vector of a content and the columns to filter by, so that a filtered search needs no
join. An update compares the table with images, verdicts and vectors at their newest versions: new
contents are added, dropped ones deleted, changed labels written. Every step is a commit, and a
killed update continues with what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visao_ray.core import tables
from visao_ray.core.resources import remotely
from visao_ray.core.run import Run
from visao_ray.core.waiting import Waiting
from visao_ray.datasets.spec import Dataset
from visao_ray.search.spaces import Space
from visao_ray.store import schemas, table
from visao_ray.store.join import Snapshot, read_examples
from visao_ray.store.proof import Contents, as_bytes, as_column
from visao_ray.store.rows import find_rows, places_of, read_rows
from visao_ray.store.store import Writer
from visao_ray.store.table import TableVersion

VECTOR = "vector"

_UNIT_BYTES = 64 * 1024**2  # of the vectors that a task writes as one file
_LEAST_ROWS, _MOST_ROWS = 4096, 65_536
_IN_FLIGHT = 4  # tasks at once
_COLUMNS = [name for name, _ in schemas.INDEX_COLUMNS]
#: Columns with few values, and columns that are searched by value or range.
_BITMAPS = ("label", "split", "chapter", "batch")
_TREES = ("content_id", "key", "group", "first_seen")
_INDEX = f"{VECTOR}_idx"
#: Facts about the index of the vectors, in the configuration of its table.
_TRAINED, _PARTITIONS = "visao_ray.trained_rows", "visao_ray.partitions"


@dataclass(frozen=True)
class Sizes:
    """When vectors are indexed, and how.

    Attributes:
        indexed_from: number of rows from which on there is an index. Fewer are all compared, which
            takes milliseconds and is exact.
        partition_rows: rows of a partition, on average.
        most_parts: number of parts, one per update, from which on they are merged. Every part is
            searched.
    """

    indexed_from: int = 20_000
    partition_rows: int = 4096
    most_parts: int = 8


SIZES = Sizes()


@dataclass(frozen=True)
class Updated:
    """What an update of an index did.

    Attributes:
        rows: number of rows.
        added: number of new rows.
        removed: number of deleted rows: their images were dropped, or have no vectors any more.
        changed: number of rows with a changed column, such as a new label.
    """

    rows: int
    added: int
    removed: int
    changed: int


def index_name(space: Space) -> str:
    """Return the name of the index of a space: EXTRACTOR-avg, or the name of a model."""
    _, name, *_ = space.table.split("/")
    return name if space.table.startswith("predictions/") else f"{name}-{space.name}"


def update_index(run: Run[Any], writer: Writer, space: Space, sizes: Sizes = SIZES) -> Updated:
    """Create the index of a space, or bring it to the newest versions of the store.

    Args:
        run: the run of any job.
        writer: writer of the store.
        space: a space without components.
        sizes: when vectors are indexed, and how.

    Returns:
        What changed.
    """
    store = writer.store
    vectors = writer.version(store.tables()[space.table])
    place = store.index(index_name(space))
    description = {"table": space.table, "columns": list(space.columns), "name": space.name}
    writer.ensure(place, schemas.index(space.width(vectors), description))
    source = _Source.of(writer, space, vectors)
    wanted = remotely(_wanted, source, keep=True)
    at, new, counts = remotely(_change_rows, writer.version(place), wanted)
    writer.moved(place, at)
    writer.check()
    with Waiting(run.say):
        for fragments in _written(source, at, [wanted], new):
            writer.append(place, fragments)
    writer.moved(place, remotely(_index, writer.version(place), sizes))
    return Updated(writer.version(place).count(), len(new), *counts)


def update_indexes(run: Run[Any], writer: Writer) -> dict[str, Updated]:
    """Update all indexes of a store; see `update_index`."""
    found = {}
    for name in writer.store.indexes():
        place = writer.store.index(name)
        if place.exists():
            space = space_of(writer.version(place))
            found[name] = update_index(run, writer, space)
    return found


def space_of(index: TableVersion) -> Space:
    """Return the space that an index was made from."""
    made = schemas.description(index.schema)
    return Space(made["name"], made["table"], tuple(made["columns"]))


@dataclass(frozen=True)
class _Source:
    """What an index is made from.

    Attributes:
        snapshot: images and verdicts, and the table of vectors as results.
        columns: columns that make the vector.
        chapter_digits: leading digits of a class that name its chapter; 0: there are no chapters.
    """

    snapshot: Snapshot
    columns: tuple[str, ...]
    chapter_digits: int

    @classmethod
    def of(cls, writer: Writer, space: Space, vectors: TableVersion) -> _Source:
        store = writer.store
        verdicts = writer.version(store.verdicts) if store.verdicts.exists() else None
        snapshot = Snapshot(store.uri, writer.version(store.images), verdicts, vectors)
        digits = Dataset.from_json(store.description.dataset).chapter_digits
        return cls(snapshot, space.columns, digits)


def _wanted(source: _Source) -> pa.Table:
    """Return the rows that the index should have, without vectors, in the order of contents."""
    examples = read_examples(source.snapshot, labelled=False)
    columns = ["key", "batch", "first_seen", "width", "height", "mode", "bytes"]
    images = source.snapshot.images.read(columns, f"status = '{schemas.OK}'")
    images = images.take(pc.index_in(examples.keys, images["key"].combine_chunks()))
    labels = examples.labels.dictionary_decode()
    digits = source.chapter_digits
    chapters = pc.utf8_slice_codeunits(labels, 0, digits) if digits else pa.nulls(len(labels))
    found = {
        **{name: images[name] for name in columns},
        "content_id": as_column(examples.contents),
        "label": labels,
        "group": examples.group_names,
        "split": examples.splits.dictionary_decode(),
        "chapter": chapters,
    }
    kinds = {"content_id": schemas.CONTENT_ID, **dict(schemas.INDEX_COLUMNS)}
    return pa.table({name: found[name] for name in kinds}, schema=pa.schema(kinds.items()))


def _change_rows(
    at: TableVersion, wanted: list[Any]
) -> tuple[TableVersion, npt.NDArray[np.int64], tuple[int, int]]:
    """Delete and change rows of an index; return the positions of new rows in `wanted`.

    For a task; it commits, so it is not tried again.
    """
    import ray

    rows: pa.Table = ray.get(wanted[0])
    contents = as_bytes(rows["content_id"])
    scanner = at.open().scanner(columns=["content_id", *_COLUMNS], with_row_id=True)
    existing = scanner.to_table()
    numbers = existing["_rowid"].to_numpy()
    places = places_of(as_bytes(existing["content_id"]), contents)
    gone = places < 0
    new = np.setdiff1d(np.arange(len(contents)), places)
    kept = existing.filter(pa.array(~gone))
    same = rows.take(pa.array(places[~gone]))
    differs = np.zeros(len(kept), bool)
    for name in _COLUMNS:
        differs |= _differ(kept[name], same[name])
    changed = same.filter(pa.array(differs))
    at = table.delete(at, numbers[gone].tolist())
    if changed.num_rows:
        schema = pa.schema([at.schema.field(name) for name in changed.schema.names])
        at, written = table.merge(at, changed.cast(schema))
        if written != changed.num_rows:
            raise RuntimeError(f"{written:,} of {changed.num_rows:,} changed rows were written")
    return at, new, (int(gone.sum()), changed.num_rows)


def _differ(one: pa.ChunkedArray, other: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Whether the values of two columns differ; two nulls do not."""
    equal = pc.fill_null(pc.equal(one, other), False)
    both_null = pc.and_(one.is_null(), other.is_null())
    return np.asarray(pc.invert(pc.or_(equal, both_null)).to_numpy(zero_copy_only=False), bool)


def _written(
    source: _Source, place: TableVersion, wanted: list[Any], new: npt.NDArray[np.int64]
) -> Iterator[list[str]]:
    """Write the vectors of new rows in tasks; yield the fragments of each task."""
    import ray

    task = ray.remote(_write_unit).options(num_cpus=1)
    numbers, rows = [ray.put(new)], _unit_rows(place)
    running: list[Any] = []
    for start in range(0, len(new), rows):
        if len(running) == _IN_FLIGHT:
            (done,), running = ray.wait(running)
            yield ray.get(done)
        running.append(task.remote(source, place, wanted, numbers, slice(start, start + rows)))
    for reference in running:
        yield ray.get(reference)


def _unit_rows(place: TableVersion) -> int:
    """Return the number of rows of a task and of its file: 64 MB, so that few are merged later."""
    width = schemas.outputs(place.schema)[VECTOR]
    return min(max(_UNIT_BYTES // (4 * width), _LEAST_ROWS), _MOST_ROWS)


def _write_unit(
    source: _Source, place: TableVersion, wanted: list[Any], new: list[Any], chosen: slice
) -> list[str]:
    import ray

    rows: pa.Table = ray.get(wanted[0])
    part = rows.take(pa.array(ray.get(new[0])[chosen]))
    contents = as_bytes(part["content_id"])
    vectors, schema = source.snapshot.results, place.schema
    assert vectors is not None
    found = np.empty((len(part), schemas.outputs(schema)[VECTOR]), np.float32)
    seen = np.zeros(len(part), bool)
    for batch in _read(vectors, contents, source.columns):
        places = places_of(as_bytes(batch["content_id"]), contents)
        pieces = [tables.matrix(pa.chunked_array([batch[name]])) for name in source.columns]
        found[places] = np.concatenate(pieces, axis=1)
        seen[places] = True
    if not seen.all():
        raise RuntimeError(f"{(~seen).sum():,} of {len(seen):,} images have no vectors any more")
    with_vectors = part.append_column(VECTOR, tables.vectors(found))
    return table.write_fragments(place.uri, schema, with_vectors)


def _read(
    vectors: TableVersion, contents: Contents, columns: tuple[str, ...]
) -> Iterator[pa.RecordBatch]:
    yield from read_rows(
        vectors, find_rows(vectors, contents, schemas.OK), ["content_id", *columns]
    )


def count_partitions(dataset: Any) -> int:
    """Return the number of partitions of the index of the vectors; 1 without an index."""
    return int(dataset.config().get(_PARTITIONS, 1))


def _index(at: TableVersion, sizes: Sizes) -> TableVersion:
    """Create what is missing of the indexes, and add new rows to the others. For a task."""
    dataset = at.open()
    rows = dataset.count_rows()
    if not rows:
        return at
    existing = {found.name for found in dataset.describe_indices()}
    for column in _BITMAPS:
        if f"{column}_idx" not in existing:
            dataset.create_scalar_index(column, "BITMAP")
    for column in _TREES:
        if f"{column}_idx" not in existing:
            dataset.create_scalar_index(column, "BTREE")
    trained = int(dataset.config().get(_TRAINED, 0))
    if rows >= sizes.indexed_from and rows >= 2 * trained:
        partitions = max(1, rows // sizes.partition_rows)
        dataset = dataset.create_index(
            VECTOR, "IVF_RQ", name=_INDEX, metric="l2", replace=True, num_partitions=partitions
        )
        dataset.update_config({_TRAINED: str(rows), _PARTITIONS: str(partitions)})
    # New rows become a part of their own, so that an update costs what is new.
    parts = [len(found.segments) for found in dataset.describe_indices() if found.name == _INDEX]
    many = parts and parts[0] >= sizes.most_parts
    dataset.optimize.optimize_indices(**({"num_indices_to_merge": parts[0]} if many else {}))
    return TableVersion(at.uri, int(dataset.version))
