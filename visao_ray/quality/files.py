"""The files of a store as arrays, with people's decisions applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visao_ray.datasets.spec import SPLITS
from visao_ray.store import schemas
from visao_ray.store.join import Snapshot, apply_verdicts
from visao_ray.store.proof import Contents, as_bytes

Codes = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]

_COLUMNS = (
    "key",
    "content_id",
    "label",
    "group",
    "split",
    "wanted_split",
    "batch",
    "status",
    "error",
    "width",
    "height",
)


@dataclass(frozen=True)
class Column:
    """A column of texts with few distinct values.

    Attributes:
        names: the distinct values.
        codes: int32[N], positions in `names`; -1 for null.
    """

    names: tuple[str, ...]
    codes: Codes

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Column:
        """Encode a column of strings."""
        encoded = column.combine_chunks().dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy().astype(np.int32)
        return cls(tuple(encoded.dictionary.to_pylist()), codes)

    def text(self, row: int) -> str | None:
        """Return the value of a row; None for null."""
        code = int(self.codes[row])
        return self.names[code] if code >= 0 else None

    def among(self, order: Sequence[str]) -> Codes:
        """Return the position of each value in `order`, int32[N]; -1 for others and null."""
        place = {name: position for position, name in enumerate(order)}
        found = np.array([place.get(name, -1) for name in self.names] + [-1], np.int32)
        return np.asarray(found[self.codes], np.int32)


@dataclass(frozen=True)
class Files:
    """The files of a store, in the order of their contents and then of their keys.

    Files that no longer exist are left out, and so are those that a person dropped.

    Attributes:
        keys: string[N].
        contents: S32[C], sorted; the distinct contents of readable files.
        content: int64[N], positions in `contents`; -1 for a file that cannot be used.
        label: label of each file.
        group: group of each file.
        split: split that the store decided.
        named: split that the folder or the labels file names; null if none does.
        batch: batch of each file.
        status: `ok`, `error` or `unread`.
        errors: string[N], why a file cannot be used; null for others.
        size: int32[N, 2], width and height in pixels; 0 if they are not known.
    """

    keys: pa.StringArray
    contents: Contents
    content: Rows
    label: Column
    group: Column
    split: Column
    named: Column
    batch: Column
    status: Column
    errors: pa.StringArray
    size: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def usable(self) -> npt.NDArray[np.bool_]:
        """Whether each file can be used, bool[N]."""
        return self.content >= 0

    @cached_property
    def first(self) -> Rows:
        """The first file of each content, int64[C]."""
        rows = np.flatnonzero(self.usable)
        _, first = np.unique(self.content[rows], return_index=True)
        return np.asarray(rows[first], np.int64)

    def key(self, row: int) -> str:
        """Return the key of a file."""
        return str(self.keys[row].as_py())


def read_files(snapshot: Snapshot) -> Files:
    """Read the files of a store. For a task: 400 bytes per file at the peak.

    Args:
        snapshot: versions to read.

    Returns:
        The files.
    """
    where = f"status != '{schemas.MISSING}'"
    rows = apply_verdicts(snapshot, snapshot.images.read(_COLUMNS, where))
    usable = pc.equal(rows["status"], schemas.OK).to_numpy()
    digests = np.zeros(rows.num_rows, "S32")
    digests[usable] = as_bytes(rows["content_id"].filter(pa.array(usable)))
    by_key = np.empty(rows.num_rows, np.int64)
    by_key[pc.sort_indices(rows["key"]).to_numpy()] = np.arange(rows.num_rows)
    order = np.lexsort((by_key, digests, ~usable))
    rows, usable, digests = rows.take(pa.array(order)), usable[order], digests[order]
    contents, content = np.unique(digests[usable], return_inverse=True)
    places = np.full(len(usable), -1, np.int64)
    places[usable] = content
    size = np.stack([rows[name].fill_null(0).to_numpy() for name in ("width", "height")], axis=1)
    return Files(
        keys=rows["key"].combine_chunks(),
        contents=contents,
        content=places,
        label=Column.of(rows["label"]),
        group=Column.of(rows["group"]),
        split=Column.of(rows["split"]),
        named=Column.of(_named_splits(rows)),
        batch=Column.of(rows["batch"]),
        status=Column.of(rows["status"]),
        errors=rows["error"].combine_chunks(),
        size=size.astype(np.int32),
    )


def _named_splits(rows: pa.Table) -> pa.ChunkedArray:
    """Return the split that the source of each file names.

    A listing takes a folder `train` as train and val if there is no folder of val, so it names no
    split for its files. Here they are train: whoever made that folder did not mean test.
    """
    in_train = pc.match_substring(rows["key"], f"/{SPLITS[0]}/")
    return pc.coalesce(rows["wanted_split"], pc.if_else(in_train, SPLITS[0], None))
