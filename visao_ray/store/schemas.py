"""The tables of a store: their columns, keys and format version.

A table's name and format version stand in the metadata of its schema. What made a table of results
(`vectors`, `predictions`) stands there too, as JSON: see `description`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from visao_ray.core.errors import InputError

#: Raised whenever a column changes its meaning; a store of another format is refused.
FORMAT = "1"
_NAME, _FORMAT, _DESCRIPTION = b"visao_ray.table", b"visao_ray.format", b"visao_ray.description"

#: Lance's own mark of a key column: without it, two upserts of one new key insert two rows.
KEY_MARK = {b"lance-schema:unenforced-primary-key": b"true"}

#: SHA-256 of a file's bytes.
CONTENT_ID = pa.binary(32)
TIME = pa.timestamp("us", tz="UTC")

#: What became of a file. Images that are `ok` or `error` are not read again while they stay as
#: they are; `unread` ones could not be fetched, `missing` ones were there before.
OK, ERROR, UNREAD, MISSING = "ok", "error", "unread", "missing"
LASTING = (OK, ERROR)

VERDICT_KINDS = ("keep", "relabel", "drop")


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
    metadata = {_NAME: name.encode(), _FORMAT: FORMAT.encode()}
    if description is not None:
        metadata[_DESCRIPTION] = json.dumps(dict(description), sort_keys=True).encode()
    return pa.schema(columns, metadata=metadata)


#: One row a file that was ever seen. `wanted_split` is what its folder or the labels file asks for;
#: `split` is what was decided, once, and null until then.
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

#: One row a patient, container or whatever must stay on one side.
GROUPS = _schema(
    "groups", [("group", pa.string()), ("split", pa.string()), ("first_seen", TIME)], key="group"
)

#: One row a decision of a person about an image; the latest of a key counts.
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


def results(outputs: Mapping[str, int], description: Mapping[str, Any]) -> pa.Schema:
    """Schema of `vectors` and `predictions`: one row a content and view, `ok` or `error`.

    Args:
        outputs: name and width of each output, float32[width]; null on error rows.
        description: what made them; all of it decides the numbers.
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
        ],
        description=description,
    )


def outputs(schema: pa.Schema) -> dict[str, int]:
    """Name and width of each output of a table of results."""
    return {
        field.name: field.type.list_size
        for field in schema
        if pa.types.is_fixed_size_list(field.type)
    }


def description(schema: pa.Schema) -> dict[str, Any]:
    """What made a table of results; empty where it says nothing."""
    return dict(json.loads((schema.metadata or {}).get(_DESCRIPTION, b"{}")))


def validate(schema: pa.Schema, name: str, where: str) -> None:
    """Check that a schema is that of the table `name`, in the format this code writes.

    Raises:
        InputError: it is not; the message says which table or format it is instead.
    """
    metadata = schema.metadata or {}
    found = metadata.get(_NAME, b"none of visao_ray's").decode()
    if found != name:
        raise InputError(f"{where}: a table '{name}' is needed, but this one is '{found}'")
    version = metadata.get(_FORMAT, b"?").decode()
    if version != FORMAT:
        raise InputError(
            f"{where}: table '{name}' has format {version}, this program reads {FORMAT}; use the "
            "release of visao_ray that made it, or extract into a new store"
        )
