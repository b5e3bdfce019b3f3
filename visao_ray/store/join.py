"""Read images, alone or joined with results, at the versions that a run has pinned.

Ids are joined first: `images` at its version, then the table of results at its version. Rows are
ordered by content; a content counts once, even if more than one file has it. Vectors are then read
in one sequential scan and put in their places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visao_ray.core.errors import InputError
from visao_ray.store import schemas
from visao_ray.store.proof import Contents, as_bytes
from visao_ray.store.store import PLAIN, RESULTS, Store, name_of
from visao_ray.store.table import TableVersion

#: Prefix of the tags on versions that a run reads; the id of the run follows.
RUN_TAG = "run-"

_SCAN_ROWS = 65_536
_VECTOR_ROWS = 2048
#: If a content has files in more than one split, it belongs to the first of these, so that no
#: content of the test split is used for training.
_PRECEDENCE = ("test", "val", "train")


@dataclass(frozen=True)
class Snapshot:
    """The table versions that a run reads; small and picklable.

    Attributes:
        store: URI of the store.
        images: table of files.
        verdicts: decisions of people; None if there are none.
        results: vectors of unaugmented images, or predictions; None if pixels are read.
        augmented: vectors of augmented views; None if they are not used.
    """

    store: str
    images: TableVersion
    verdicts: TableVersion | None
    results: TableVersion | None = None
    augmented: TableVersion | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the versions as result.json has them."""
        return {
            "store": self.store,
            "versions": {
                name_of(table, self.store): table.version
                for table in (self.images, self.verdicts, self.results, self.augmented)
                if table is not None
            },
        }


def pin(
    store: Store,
    run: str,
    results: str | None,
    recipe: str | None = None,
    as_of: str | None = None,
) -> Snapshot:
    """Tag the versions that a run is going to read, so that clean-up keeps them.

    A resumed run finds its tags and reads the same versions.

    Args:
        store: the store.
        run: id of the run.
        results: name of a table of results, as in `Store.tables`; None for images alone.
        recipe: recipe of augmented views to read in addition to the vectors, if any.
        as_of: id of an earlier run, to read its versions instead of the newest.

    Returns:
        The versions.

    Raises:
        InputError: the earlier run has no tags in the store, or there is no such table.
    """
    names = {"images": "images", "verdicts": "verdicts"}
    if results is not None:
        names["results"] = results
        if recipe is not None:
            names["augmented"] = f"{results.rpartition('/')[0]}/{recipe}"
    if not store.verdicts.exists() or (
        as_of is not None and RUN_TAG + as_of not in store.verdicts.tags()
    ):
        del names["verdicts"]  # there are none, or were none when the earlier run read the store
    found: dict[str, TableVersion | None] = {"verdicts": None}
    found |= {role: pin_table(store, name, run, as_of) for role, name in names.items()}
    return Snapshot(store=store.uri, **found)  # type: ignore[arg-type]


def pin_table(store: Store, name: str, run: str, as_of: str | None = None) -> TableVersion:
    """Tag the version of one table that a run is going to read; see `pin`.

    Args:
        store: the store.
        name: name of the table, as in `Store.tables`.
        run: id of the run.
        as_of: id of an earlier run, to read its version instead of the newest.

    Returns:
        The version.

    Raises:
        InputError: the earlier run has no tag on the table, or there is no such table.
    """
    tables = store.tables()
    if name not in tables:
        existing = ", ".join(each for each in tables if each.startswith(RESULTS)) or "no vectors"
        raise InputError(f"--store {store.uri}: has no {name}; it has {existing}")
    table = tables[name]
    tags = table.tags()
    read = RUN_TAG + (as_of if as_of is not None else run)
    if as_of is not None and read not in tags:
        raise InputError(
            f"--as-of {as_of}: no run of that id has read {name} of {store.uri}, or it was "
            "forgotten; the id is in the result.json of the run"
        )
    at = table.at(tags[read]) if read in tags else table.latest()
    table.tag(RUN_TAG + run, at.version)
    return at


def plain_vectors(extractor: str) -> str:
    """Return the name of the table with an extractor's vectors of unaugmented images."""
    return f"vectors/{extractor}/{PLAIN}"


@dataclass(frozen=True)
class Examples:
    """Images that have results (or that can be read), one per content, in the order of contents.

    Attributes:
        contents: S32[N], sorted.
        keys: string[N], one file of each content: the first in alphabetical order of those with a
            label, or of all if none has a label.
        labels: dictionary of strings [N]; null if unknown.
        groups: dictionary of strings [N].
        splits: dictionary of strings [N]; null if there is none.
        conflicts: number of contents that were left out because their files have different labels.
        mixed: number of contents with files in more than one split.
        without: number of contents that were left out because they have no results.
    """

    contents: Contents
    keys: pa.Array
    labels: pa.DictionaryArray
    groups: pa.DictionaryArray
    splits: pa.DictionaryArray
    conflicts: int
    mixed: int
    without: int

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def group_names(self) -> pa.Array:
        """Group of each image, string[N]; an image without a group is one of its own, its key."""
        return pc.coalesce(self.groups.dictionary_decode(), self.keys)

    def take(self, rows: npt.NDArray[np.int64]) -> Examples:
        """Return these rows, int64[n] in ascending order."""
        chosen = pa.array(rows)
        return replace(
            self,
            contents=self.contents[rows],
            keys=self.keys.take(chosen),
            labels=self.labels.take(chosen),
            groups=self.groups.take(chosen),
            splits=self.splits.take(chosen),
        )


def read_examples(
    snapshot: Snapshot, splits: Sequence[str] | None = None, labelled: bool = True
) -> Examples:
    """Read the images of some splits that have results; without results, all readable ones.

    For a task: 200 bytes per file at the peak.

    Args:
        snapshot: versions to read.
        splits: a selection of train, val and test; None: all images, also those without a split.
        labelled: leave out images without a label.

    Returns:
        The images.
    """
    columns = ["content_id", "key", "label", "group", "split"]
    # A file of another split may have the same content, so all files are read.
    rows = apply_verdicts(snapshot, snapshot.images.read(columns, f"status = '{schemas.OK}'"))
    if labelled:
        rows = rows.filter(rows["label"].is_valid())
    rows = _dictionary_encoded(rows)
    contents = as_bytes(rows["content_id"])
    names = rows["split"].combine_chunks()
    rank = _ranks(names)
    keys = rows["key"].combine_chunks()
    by_key = np.empty(len(keys), np.int64)
    by_key[pc.sort_indices(keys).to_numpy()] = np.arange(len(keys))
    unlabelled = rows["label"].combine_chunks().is_null().to_numpy(zero_copy_only=False)
    order = np.lexsort((by_key, unlabelled, contents))
    ordered = contents[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
    conflicting = _differs(rows["label"].combine_chunks(), order, first)
    mixed = _differs(names, order, first)
    best = np.minimum.reduceat(rank[order], first) if len(first) else np.zeros(0, np.int64)
    keep = ~conflicting
    found = ordered[first]
    if snapshot.results is not None:
        keep &= np.isin(found, _with_results(snapshot.results), assume_unique=True)
    without = int((~keep & ~conflicting).sum())
    if splits is not None:
        keep &= np.isin(best, [_PRECEDENCE.index(split) for split in splits])
    chosen = pa.array(order[first[keep]])
    split = pa.DictionaryArray.from_arrays(
        pa.array(
            np.where(best[keep] < len(_PRECEDENCE), best[keep], 0),
            pa.int32(),
            mask=best[keep] >= len(_PRECEDENCE),
        ),
        pa.array(_PRECEDENCE),
    )
    return Examples(
        contents=found[keep],
        keys=keys.take(chosen),
        labels=rows["label"].combine_chunks().take(chosen),
        groups=rows["group"].combine_chunks().take(chosen),
        splits=split,
        conflicts=int(conflicting.sum()),
        mixed=int(mixed.sum()),
        without=without,
    )


def scan_vectors(
    results: TableVersion, contents: Contents, columns: Sequence[str]
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float32]], pa.Array]]:
    """Read the vectors of some contents in one scan, in the physical order of the table.

    Args:
        results: table of results.
        contents: S32[N], sorted.
        columns: columns of vectors.

    Yields:
        Positions in `contents` int64[n], vectors float32[n, D] by column, and views int16[n].
    """
    names = ["content_id", "view", *columns]
    for batch in results.scan(names, f"status = '{schemas.OK}'", _VECTOR_ROWS):
        ids = as_bytes(batch["content_id"])
        places = np.searchsorted(contents, ids)
        hit = places < len(contents)
        hit[hit] = contents[places[hit]] == ids[hit]
        if not hit.any():
            continue
        vectors = {}
        for name in columns:
            column = batch[name]
            flat = column.flatten().to_numpy(zero_copy_only=False)
            values = flat.reshape(len(batch), column.type.list_size)
            vectors[name] = values if hit.all() else values[hit]
        yield places[hit].astype(np.int64), vectors, batch["view"].filter(pa.array(hit))


def apply_verdicts(snapshot: Snapshot, rows: pa.Table) -> pa.Table:
    """Relabel or drop rows by the latest verdict on each file.

    Args:
        snapshot: versions to read.
        rows: rows of `images` with the columns `key` and `label`.

    Returns:
        The rows without dropped ones.
    """
    if snapshot.verdicts is None or not snapshot.verdicts.count():
        return rows
    latest = latest_verdicts(snapshot.verdicts)
    places = pc.index_in(rows["key"], pa.array(latest)).to_numpy(zero_copy_only=False)
    labels = rows["label"].to_pylist() if latest else []
    keep = np.ones(rows.num_rows, bool)
    decisions = list(latest.values())
    for row in np.flatnonzero(~np.isnan(places.astype(float))):
        decision = decisions[int(places[row])]
        if decision["verdict"] == schemas.DROP:
            keep[row] = False
        elif decision["verdict"] == schemas.RELABEL:
            labels[row] = decision["label"]
    place = rows.schema.get_field_index("label")
    rows = rows.set_column(place, "label", pa.array(labels, pa.string()))
    return rows.filter(pa.array(keep))


def latest_verdicts(verdicts: TableVersion) -> dict[str, dict[str, Any]]:
    """Return the row of the latest verdict on each file, by key."""
    rows = verdicts.read(schemas.VERDICTS.names).to_pylist()
    rows.sort(key=lambda row: row["when"])  # of two at one time, the one that was written later
    return {row["key"]: row for row in rows}


def _dictionary_encoded(rows: pa.Table) -> pa.Table:
    for name in ("label", "group", "split"):
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, rows[name].combine_chunks().dictionary_encode())
    return rows


def _ranks(splits: pa.DictionaryArray) -> npt.NDArray[np.int64]:
    """Return each row's position of its split in `_PRECEDENCE`, int64[N]; 3 without a split."""
    rank = {name: place for place, name in enumerate(_PRECEDENCE)}
    of_code = np.array([rank[name] for name in splits.dictionary.to_pylist()], np.int64)
    codes = splits.indices.fill_null(-1).to_numpy()
    return np.asarray(np.append(of_code, len(_PRECEDENCE))[codes], np.int64)


def _differs(
    column: pa.DictionaryArray, order: npt.NDArray[np.int64], first: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether the rows of a content have different values, bool[contents]; nulls do not count."""
    if not len(first):
        return np.zeros(0, bool)
    codes = column.indices.fill_null(-1).to_numpy()[order]
    most = np.maximum.reduceat(codes, first)
    least = np.minimum.reduceat(np.where(codes < 0, len(column.dictionary), codes), first)
    return np.asarray((most >= 0) & (least != most))


def _with_results(results: TableVersion) -> Contents:
    parts = [
        as_bytes(batch["content_id"])
        for batch in results.scan(["content_id"], f"status = '{schemas.OK}'", _SCAN_ROWS)
    ]
    return np.unique(np.concatenate([*parts, np.zeros(0, "S32")]))
