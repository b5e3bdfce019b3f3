"""Labels, groups and splits of images that are in the store: updates by key that read no pixel."""

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

_LOOKED_UP = 2048  # contents or groups asked of an index at once
#: Column of a labels file, and the column of `images` that it sets.
_SET = {"label": "label", "group": "group", "split": "wanted_split"}


@dataclass(frozen=True)
class Labelled:
    """What a labels file did.

    Attributes:
        rows: of the file.
        named: images of the store that it names.
        changed: by column, images whose value it changed.
    """

    rows: int
    named: int
    changed: dict[str, int]


@dataclass(frozen=True)
class Assigned:
    """What became of images without a split.

    Attributes:
        images: that got one.
        groups: that are new.
        contradictions: groups or contents that stand in several splits, as text.
    """

    images: int
    groups: int
    contradictions: list[str]


def apply_labels(
    images: TableVersion, uri: str, dataset: Dataset, root: Location
) -> tuple[TableVersion, Labelled]:
    """Set labels, groups and wanted splits of images from a file. For a task.

    Empty cells leave what there is. Rows of images that are not in the store do nothing.

    Raises:
        InputError: the file, a label or a split is not valid.
        LeaseLost: somebody else changed the table since.
    """
    rows = check_labels(uri, dataset, root)  # of what comes last too, before anything is changed
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
    return images, Labelled(rows, _named(images, uri, dataset, root), changed)


def _named(images: TableVersion, uri: str, dataset: Dataset, root: Location) -> int:
    count = 0
    for batch in read_labels(uri, dataset, root):
        keys = batch["key"].to_pylist()
        for start in range(0, len(keys), _LOOKED_UP):
            part = ",".join(quoted(key) for key in keys[start : start + _LOOKED_UP])
            count += images.count(f"key IN ({part})")
    return count


def assign_splits(
    images: TableVersion, groups: TableVersion, description: Description
) -> tuple[TableVersion, TableVersion, Assigned]:
    """Decide the split of every readable image that has none, once and for all. For a task.

    Groups are written first, so that an interrupted step decides the same when it is repeated.

    Raises:
        LeaseLost: somebody else changed a table since.
    """
    columns = ["key", "content_id", "group", "wanted_split", "split"]
    undecided = images.read(columns, f"split IS NULL AND status = '{schemas.OK}'")
    if not undecided.num_rows:
        return images, groups, Assigned(0, 0, [])
    known = groups.count() > 0
    rows = undecided
    if known:
        rows = pa.concat_tables([undecided, _tied(images, columns, undecided["content_id"])])
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
    told = [str(contradiction) for contradiction in decision.contradictions]
    return images, groups, Assigned(changed, fresh.num_rows, told)


def _tied(images: TableVersion, columns: list[str], contents: pa.ChunkedArray) -> pa.Table:
    """Images with a split that have one of these contents."""
    parts = [images.read(columns, "false")]
    unique = np.unique(as_bytes(contents))
    for start in range(0, len(unique), _LOOKED_UP):
        digests = unique[start : start + _LOOKED_UP].tolist()
        part = ",".join(f"X'{digest.ljust(32, bytes(1)).hex()}'" for digest in digests)
        parts.append(images.read(columns, f"content_id IN ({part}) AND split IS NOT NULL"))
    return pa.concat_tables(parts)


def _groups(groups: TableVersion, names: list[Any]) -> pa.Table:
    parts = []
    for start in range(0, len(names), _LOOKED_UP):
        part = ",".join(quoted(name) for name in names[start : start + _LOOKED_UP] if name)
        if part:
            parts.append(groups.read(schemas.GROUPS.names, f"{_sql('group')} IN ({part})"))
    return pa.concat_tables([groups.read(schemas.GROUPS.names, "false"), *parts])


def _sql(column: str) -> str:
    """A column's name in SQL, where `group` is a word of the language."""
    return f"`{column}`"
