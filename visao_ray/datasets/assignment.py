"""Set labels, groups and splits of images in the store by key, without reading a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visao_ray.core.storage import Location
from visao_ray.datasets.labels import check_labels, read_labels
from visao_ray.datasets.spec import Dataset
from visao_ray.datasets.splits import decide_splits
from visao_ray.store import schemas
from visao_ray.store.proof import as_bytes
from visao_ray.store.store import Description
from visao_ray.store.table import TableVersion, insert_new, merge, quoted

_LOOKUP_BATCH = 2048  # contents or groups per query of an index
#: Column of a labels file, and the column of `images` that it sets.
_SET = {"label": "label", "group": "group", "split": "wanted_split"}


@dataclass(frozen=True)
class LabelChanges:
    """Counts of what a labels file changed.

    Attributes:
        rows: number of rows in the file.
        named: number of images in the store that the file names.
        changed: number of images whose value changed, by column of `images`.
    """

    rows: int
    named: int
    changed: dict[str, int]


@dataclass(frozen=True)
class SplitAssignment:
    """Result of assigning splits to images that had none.

    Attributes:
        images: number of images that got a split.
        groups: number of new groups.
        contradictions: groups or contents that are in more than one split, as text.
    """

    images: int
    groups: int
    contradictions: list[str]


def apply_labels(
    images: TableVersion, uri: str, dataset: Dataset, root: Location
) -> tuple[TableVersion, LabelChanges]:
    """Set labels, groups and wanted splits of images from a file.

    Call it in a task. An empty cell leaves the value in the store unchanged. Rows of images that
    are not in the store are ignored.

    Args:
        images: version of the table `images`.
        uri: labels file, see `read_labels`.
        dataset: dataset that defines the valid labels.
        root: folder to which keys without a scheme are relative.

    Returns:
        The new version of the table, and the counts.

    Raises:
        InputError: the file, a label or a split is not valid.
        LeaseLost: another process changed the table since.
    """
    rows = check_labels(uri, dataset, root)  # the whole file, before anything is changed
    changed = {}
    for column, target in _SET.items():
        schema = pa.schema([schemas.IMAGES.field("key"), schemas.IMAGES.field(target)])

        def values(column: str = column, schema: pa.Schema = schema) -> Iterator[pa.RecordBatch]:
            for batch in read_labels(uri, dataset, root):
                found = batch.filter(batch[column].is_valid())
                if found.num_rows:
                    yield pa.RecordBatch.from_arrays([found["key"], found[column]], schema=schema)

        differs = f"target.{_sql(target)} IS NULL OR target.{_sql(target)} != source.{_sql(target)}"
        reader = pa.RecordBatchReader.from_batches(schema, values())
        images, changed[target] = merge(images, reader, differs)
    return images, LabelChanges(rows, _named(images, uri, dataset, root), changed)


def _named(images: TableVersion, uri: str, dataset: Dataset, root: Location) -> int:
    count = 0
    for batch in read_labels(uri, dataset, root):
        keys = batch["key"].to_pylist()
        for start in range(0, len(keys), _LOOKUP_BATCH):
            part = ",".join(quoted(key) for key in keys[start : start + _LOOKUP_BATCH])
            count += images.count(f"key IN ({part})")
    return count


def assign_splits(
    images: TableVersion, groups: TableVersion, description: Description
) -> tuple[TableVersion, TableVersion, SplitAssignment]:
    """Assign a permanent split to every readable image that has none.

    Call it in a task. Groups are written first, so an interrupted step decides the same when it is
    repeated.

    Args:
        images: version of the table `images`.
        groups: version of the table `groups`.
        description: the store's description, with its seed and shares.

    Returns:
        The new versions of both tables, and the counts.

    Raises:
        LeaseLost: another process changed a table since.
    """
    columns = ["key", "content_id", "group", "wanted_split", "split"]
    undecided = images.read(columns, f"split IS NULL AND status = '{schemas.OK}'")
    if not undecided.num_rows:
        return images, groups, SplitAssignment(0, 0, [])
    known = groups.count() > 0
    rows = undecided
    if known:
        rows = pa.concat_tables(
            [undecided, _with_contents(images, columns, undecided["content_id"])]
        )
    names = pc.unique(rows["group"].combine_chunks()).to_pylist()
    before = _groups(groups, names) if known else schemas.GROUPS.empty_table()
    decision = decide_splits(
        rows,
        before,
        seed=description.seed,
        val_share=description.val_share,
        test_share=description.test_share,
    )
    added = decision.groups
    now = pa.array([datetime.now(UTC)] * added.num_rows, schemas.TIME)
    fresh = pa.table([added["group"], added["split"], now], schema=schemas.GROUPS)
    groups, _ = insert_new(groups, fresh)
    chosen = decision.splits
    schema = pa.schema([schemas.IMAGES.field("key"), schemas.IMAGES.field("split")])
    images, changed = merge(images, pa.table([chosen["key"], chosen["split"]], schema=schema))
    if changed != undecided.num_rows:
        raise RuntimeError(f"{undecided.num_rows} images had no split, {changed} got one")
    contradictions = [str(contradiction) for contradiction in decision.contradictions]
    return images, groups, SplitAssignment(changed, fresh.num_rows, contradictions)


def _with_contents(images: TableVersion, columns: list[str], contents: pa.ChunkedArray) -> pa.Table:
    """Read the images that have a split and one of these contents."""
    parts = [images.read(columns, "false")]
    unique = np.unique(as_bytes(contents))
    for start in range(0, len(unique), _LOOKUP_BATCH):
        digests = unique[start : start + _LOOKUP_BATCH].tolist()
        part = ",".join(f"X'{digest.ljust(32, bytes(1)).hex()}'" for digest in digests)
        parts.append(images.read(columns, f"content_id IN ({part}) AND split IS NOT NULL"))
    return pa.concat_tables(parts)


def _groups(groups: TableVersion, names: list[Any]) -> pa.Table:
    parts = []
    for start in range(0, len(names), _LOOKUP_BATCH):
        part = ",".join(quoted(name) for name in names[start : start + _LOOKUP_BATCH] if name)
        if part:
            parts.append(groups.read(schemas.GROUPS.names, f"{_sql('group')} IN ({part})"))
    return pa.concat_tables([groups.read(schemas.GROUPS.names, "false"), *parts])


def _sql(column: str) -> str:
    """Return a column's name quoted for SQL, where `group` is a keyword."""
    return f"`{column}`"
