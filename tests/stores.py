"""Create small stores from arrays, with the store's own writer."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visao_ray.core.lease import Owner
from visao_ray.datasets.spec import Dataset
from visao_ray.store import schemas
from visao_ray.store.store import PLAIN, Description, Store, create_or_open
from visao_ray.store.table import write_fragments

Vectors = Mapping[str, npt.NDArray[np.float32]]

FIRST_SEEN = datetime(2026, 1, 1, tzinfo=UTC)


def make_store(
    place: Path | str,
    dataset: Dataset,
    rows: Sequence[Mapping[str, Any]],
    vectors: Vectors | None = None,
    extractor: str = "tiny-00000000",
    description: Mapping[str, Any] | None = None,
    augmented: Mapping[str, Sequence[Vectors]] | None = None,
    fragment_rows: int = 1024**2,
) -> Store:
    """Create a store with these images and their vectors, or add them to an existing store.

    Args:
        place: folder or URI.
        dataset: dataset of the store.
        rows: one image each: `key` and, if different from the default, `label` (None), `group`
            (the key), `split` (None: not decided), `content` (text or bytes in place of the
            file's; the key) and any other column of `images`. Rows with the same content have one
            vector, that of the first row.
        vectors: float32[N, D] by column, of unaugmented images; None: write images only.
        extractor: name of the vectors.
        description: description of what produced the vectors.
        augmented: views by recipe; the first is view 1. Only views of train rows are written.
        fragment_rows: rows per file of `images` and of vectors.

    Returns:
        The store.
    """
    rows = [{**_DEFAULTS, "group": row["key"], "content": row["key"], **row} for row in rows]
    contents = [content_id(row["content"]) for row in rows]
    first = sorted(
        {content: place for place, content in reversed(list(enumerate(contents)))}.values()
    )
    seed = Description(dataset.to_json(), seed=0, val_share=0.15, test_share=0.15)
    with create_or_open(str(place), seed, Owner.here(job="test", run="make-store")) as writer:
        store = writer.store

        def add(table: Any, schema: pa.Schema, data: pa.Table) -> None:
            writer.ensure(table, schema)
            for start in range(0, data.num_rows, fragment_rows):
                part = data.slice(start, fragment_rows)
                writer.append(table, write_fragments(table.uri, schema, part))

        plain = vectors or {}
        tables = {PLAIN: [(0, plain, first)]} if plain else {}
        train = [place for place in first if rows[place]["split"] == "train"]
        for recipe, views in (augmented or {}).items():
            tables[recipe] = [(number, view, train) for number, view in enumerate(views, start=1)]
        for recipe, views in tables.items():
            widths = {name: array.shape[1] for name, array in views[0][1].items()}
            schema = schemas.results(widths, description or {"backbone": "tiny"})
            for number, view, places in views:
                data = results_table(
                    schema, [contents[one] for one in places], number, view, places
                )
                add(store.vectors(extractor, recipe), schema, data)
        columns = {
            name: [row.get(name) for row in rows]
            for name in schemas.IMAGES.names
            if name != "content_id"
        }
        images = pa.table(
            [pa.array(contents if name == "content_id" else columns[name], field.type)
             for name, field in zip(schemas.IMAGES.names, schemas.IMAGES, strict=True)],
            schema=schemas.IMAGES,
        )  # fmt: skip
        add(store.images, schemas.IMAGES, images)
    return store


def content_id(content: str | bytes) -> bytes:
    """Return the SHA-256 of a file with this text or these bytes."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(data).digest()


def results_table(
    schema: pa.Schema,
    contents: Sequence[bytes],
    view: int,
    vectors: Vectors,
    places: Sequence[int],
) -> pa.Table:
    """Build rows of a table of results, with the vectors `vectors[name][places]`."""
    count = len(contents)
    columns: dict[str, Any] = {
        "content_id": pa.array(contents, schemas.CONTENT_ID),
        "view": pa.array(np.full(count, view, np.int16)),
        "status": [schemas.OK] * count,
        "error_type": pa.nulls(count, pa.string()),
        "message": pa.nulls(count, pa.string()),
    }
    for name, array in vectors.items():
        flat = np.ascontiguousarray(array[list(places)], np.float32).reshape(-1)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat), array.shape[1])
    return pa.table(columns, schema=schema)


_DEFAULTS: dict[str, Any] = {
    "etag": "1",
    "bytes": 1,
    "width": 1,
    "height": 1,
    "mode": "L",
    "label": None,
    "split": None,
    "first_seen": FIRST_SEEN,
    "batch": "first",
    "status": schemas.OK,
}
