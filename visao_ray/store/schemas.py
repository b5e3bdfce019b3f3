"""Schemas of the tables of a store: columns, keys and format version.

The metadata of a schema holds the table's name and format version. For a table of results
(`vectors`, `predictions`) it also describes, as JSON, what produced the results: see `description`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from visao_ray.core.table_format import TableFormat

#: Increased whenever the meaning of a column changes; a store of another format is refused.
FORMAT = "1"
_FORMAT = TableFormat(
    "format",
    FORMAT,
    "use the release of visao_ray that made it, or extract into a new store",
)
_DESCRIPTION = b"visao_ray.description"

#: Lance's mark of a key column. Without it, two upserts of the same new key insert two rows.
KEY_MARK = {b"lance-schema:unenforced-primary-key": b"true"}

#: SHA-256 of a file's bytes.
CONTENT_ID = pa.binary(32)
TIME = pa.timestamp("us", tz="UTC")

#: Status of a file. Images with `ok` or `error` are not read again until the file changes. `unread`
#: files could not be fetched; `missing` files no longer exist.
OK, ERROR, UNREAD, MISSING = "ok", "error", "unread", "missing"
LASTING = (OK, ERROR)

#: Decisions of people: the label is right, another label is right, the image is of no use, or
#: nobody can tell. Only the second and the third change what jobs read.
KEEP, RELABEL, DROP, UNSURE = "keep", "relabel", "drop", "unsure"
VERDICT_KINDS = (KEEP, RELABEL, DROP, UNSURE)

#: Side in pixels of the small grey copy of each image that is stored beside its vectors.
THUMBNAIL_SIDE = 64
_PICTURE = (("thumbnail", pa.binary(THUMBNAIL_SIDE**2)), ("sharpness", pa.float32()))


def _schema(
    name: str,
    fields: Sequence[tuple[str, pa.DataType]],
    key: str | None = None,
    description: Mapping[str, Any] | None = None,
) -> pa.Schema:
    columns = [
        pa.field(column, kind, nullable=column != key, metadata=KEY_MARK if column == key else None)
        for column, kind in fields
    ]
    metadata = _FORMAT.metadata(name)
    if description is not None:
        metadata[_DESCRIPTION] = json.dumps(dict(description), sort_keys=True).encode()
    return pa.schema(columns, metadata=metadata)


#: One row per file that was ever listed. `wanted_split` is the split that its folder or the labels
#: file names; `split` is the final split, which is decided once and null until then.
IMAGES = _schema(
    "images",
    [
        ("key", pa.string()),
        ("etag", pa.string()),
        ("bytes", pa.int64()),
        ("content_id", CONTENT_ID),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("wanted_split", pa.string()),
        ("first_seen", TIME),
        ("batch", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
    ],
    key="key",
)

#: One row per patient, container or other group of images that must stay in one split.
GROUPS = _schema(
    "groups", [("group", pa.string()), ("split", pa.string()), ("first_seen", TIME)], key="group"
)

#: One row per decision of a person on an image; the latest one for a key counts.
VERDICTS = _schema(
    "verdicts",
    [
        ("key", pa.string()),
        ("verdict", pa.string()),
        ("label", pa.string()),
        ("source", pa.string()),
        ("when", TIME),
        ("note", pa.string()),
    ],
)


#: Columns of a table of augmented copies: one row per JPEG file.
_COPY = [
    ("key", pa.string()),
    ("content_id", CONTENT_ID),
    ("source", pa.string()),
    ("recipe", pa.string()),
    ("seed", pa.int64()),
    ("view", pa.int16()),
    ("label", pa.string()),
    ("bytes", pa.int64()),
]


def copies(description: Mapping[str, Any]) -> pa.Schema:
    """Build the schema of a table of augmented copies: one row per file, with its source.

    `key` is the URI of the file, `content_id` and `source` are the content and the key of the image
    that it shows, `view` is the number of the draw; 0 is the image itself.

    Args:
        description: everything that decides the files.

    Returns:
        The schema.
    """
    return _schema("copies", _COPY, description=description)


#: Columns of a search index beside the vector: what search shows and filters by.
INDEX_COLUMNS = (
    ("key", pa.string()),
    ("label", pa.string()),
    ("group", pa.string()),
    ("split", pa.string()),
    ("chapter", pa.string()),
    ("batch", pa.string()),
    ("first_seen", TIME),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("mode", pa.string()),
    ("bytes", pa.int64()),
)


def index(width: int, description: Mapping[str, Any]) -> pa.Schema:
    """Build the schema of a search index: one row per content, with one of its files.

    Args:
        width: number of values of a vector.
        description: where the vectors come from.

    Returns:
        The schema; `vector` is float32[width].
    """
    fields = [("content_id", CONTENT_ID), ("vector", pa.list_(pa.float32(), width))]
    return _schema("index", [*fields, *INDEX_COLUMNS], "content_id", description)


def results(
    outputs: Mapping[str, int], description: Mapping[str, Any], pictures: bool = False
) -> pa.Schema:
    """Build the schema of `vectors` or `predictions`: one row per content and view.

    Args:
        outputs: name and width of each output, float32[width]; null in rows with an error.
        description: everything that decides the numbers.
        pictures: add `thumbnail`, uint8[64, 64] grey, and `sharpness`; see `images.summary`.

    Returns:
        The schema.
    """
    return _schema(
        "results",
        [
            ("content_id", CONTENT_ID),
            ("view", pa.int16()),
            ("status", pa.string()),
            ("error_type", pa.string()),
            ("message", pa.string()),
            *((output, pa.list_(pa.float32(), width)) for output, width in outputs.items()),
            *(_PICTURE if pictures else ()),
        ],
        description=description,
    )


def outputs(schema: pa.Schema) -> dict[str, int]:
    """Return name and width of each output of a table of results."""
    return {
        field.name: field.type.list_size
        for field in schema
        if pa.types.is_fixed_size_list(field.type)
    }


def pictures(schema: pa.Schema) -> list[str]:
    """Return the columns about the picture itself in a table of results; empty if it has none."""
    return [name for name, _ in _PICTURE if name in schema.names]


def description(schema: pa.Schema) -> dict[str, Any]:
    """Return the description of what produced a table of results; empty if there is none."""
    return dict(json.loads((schema.metadata or {}).get(_DESCRIPTION, b"{}")))


#: Checks that a schema belongs to a table of a store; see `TableFormat.validate`.
validate = _FORMAT.validate
