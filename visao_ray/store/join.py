"""Images, alone or joined with results, at the versions that a run has pinned.

Ids are joined first: `images` at its version, then the table of results at its own. Rows are
ordered by content; one content counts once, whatever the number of files that hold it. Vectors are
then read in one sequential scan and put in their places.
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
from visao_ray.store.store import PLAIN, Store, name_of
from visao_ray.store.table import TableVersion

#: Before the id of a run, the name of the tags on versions that it reads.
RUN_TAG = "run-"

_SCAN_ROWS = 65_536
_VECTOR_ROWS = 2048
#: Where a content has files in several splits, it belongs to the first of these: what test holds
#: is never trained on.
_PRECEDENCE = ("test", "val", "train")


@dataclass(frozen=True)
class Snapshot:
    """What a run reads of a store; small and picklable.

    Attributes:
        store: URI.
        images: table of files.
        verdicts: people's decisions; None where there are none.
        results: vectors of images as they are, or predictions; None where pixels are read.
        augmented: vectors of augmented views; None where they are not asked for.
    """

    store: str
    images: TableVersion
    verdicts: TableVersion | None
    results: TableVersion | None = None
    augmented: TableVersion | None = None

    def to_json(self) -> dict[str, Any]:
        """The versions, as result.json keeps them."""
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

    A run that goes on finds its tags again and reads the same versions.

    Args:
        store: the store.
        run: id of the run.
        results: name of a table of results, as `Store.tables` has it; None for images alone.
        recipe: of augmented views beside the vectors, if any.
        as_of: id of an earlier run, whose versions are read instead of the newest.

    Raises:
        InputError: that run has no tags in the store, or there is no such table.
    """
    names = {"images": "images", "verdicts": "verdicts"}
    if results is not None:
        names["results"] = results
        if recipe is not None:
            names["augmented"] = f"{results.rpartition('/')[0]}/{recipe}"
    if not store.verdicts.exists() or (
        as_of is not None and RUN_TAG + as_of not in store.verdicts.tags()
    ):
        del names["verdicts"]  # there are none, or there were none when that run read the store
    found: dict[str, TableVersion | None] = {"verdicts": None}
    found |= {role: pin_table(store, name, run, as_of) for role, name in names.items()}
    return Snapshot(store=store.uri, **found)  # type: ignore[arg-type]


def pin_table(store: Store, name: str, run: str, as_of: str | None = None) -> TableVersion:
    """Tag the version of one table that a run is going to read; see `pin`.

    Raises:
        InputError: as `pin`.
    """
    tables = store.tables()
    if name not in tables:
        there = ", ".join(each for each in tables if "/" in each) or "no vectors"
        raise InputError(f"--store {store.uri}: has no {name}; it has {there}")
    table = tables[name]
    tags = table.tags()
    read = RUN_TAG + (as_of if as_of is not None else run)
    if as_of is not None and read not in tags:
        raise InputError(
            f"--as-of {as_of}: no run of that id has read {name} of {store.uri}, or it was "
            "forgotten; the id stands in the run's result.json"
        )
    at = table.at(tags[read]) if read in tags else table.latest()
    table.tag(RUN_TAG + run, at.version)
    return at


def plain_vectors(extractor: str) -> str:
    """Name of the table of an extractor's vectors of images as they are."""
    return f"vectors/{extractor}/{PLAIN}"


@dataclass(frozen=True)
class Examples:
    """Images that have results (or that can be read), one a content, in the order of contents.

    Attributes:
        contents: `S32`[N], sorted.
        keys: string[N], one file of each; the first in alphabetical order of those with a label, or
            of all where none has one.
        labels: dictionary of strings [N]; null where it is not known.
        groups: dictionary of strings [N].
        splits: dictionary of strings [N]; null where there is none.
        conflicts: contents that were left out because their files have different labels.
        mixed: contents whose files stand in several splits.
        without: contents that were left out because they have no results.
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

    def take(self, rows: npt.NDArray[np.int64]) -> Examples:
        """These rows, which must be in ascending order."""
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
    """The images of some splits that have results, or that can be read where there are none.

    For a task: 200 bytes a file at the peak.

    Args:
        snapshot: what to read.
        splits: of train, val and test; None: images of every split and of none.
        labelled: leave out images without a label.
    """
    columns = ["content_id", "key", "label", "group", "split"]
    # A file of another split may hold the same content, so all are read.
    rows = _decided(snapshot, snapshot.images.read(columns, f"status = '{schemas.OK}'"))
    if labelled:
        rows = rows.filter(rows["label"].is_valid())
    rows = _encoded(rows)
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
    """Vectors of some contents, in the order in which they lie: one scan of the table.

    Yields the places in `contents` int64[n], vectors float32[n, D] by column, and views int16[n].

    Args:
        results: table of results.
        contents: `S32`[N], sorted.
        columns: of vectors.
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


def _decided(snapshot: Snapshot, rows: pa.Table) -> pa.Table:
    """Rows as people decided: relabelled, or left out."""
    if snapshot.verdicts is None or not snapshot.verdicts.count():
        return rows
    verdicts = snapshot.verdicts.read(["key", "verdict", "label", "when"]).sort_by("when")
    latest = {row["key"]: row for row in verdicts.to_pylist()}
    places = pc.index_in(rows["key"], pa.array(latest)).to_numpy(zero_copy_only=False)
    labels = rows["label"].to_pylist() if latest else []
    keep = np.ones(rows.num_rows, bool)
    decisions = list(latest.values())
    for row in np.flatnonzero(~np.isnan(places.astype(float))):
        decision = decisions[int(places[row])]
        if decision["verdict"] == "drop":
            keep[row] = False
        elif decision["verdict"] == "relabel":
            labels[row] = decision["label"]
    place = rows.schema.get_field_index("label")
    rows = rows.set_column(place, "label", pa.array(labels, pa.string()))
    return rows.filter(pa.array(keep))


def _encoded(rows: pa.Table) -> pa.Table:
    for name in ("label", "group", "split"):
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, rows[name].combine_chunks().dictionary_encode())
    return rows


def _ranks(splits: pa.DictionaryArray) -> npt.NDArray[np.int64]:
    """Place of each row's split in `_PRECEDENCE`, int64[N]; its length where there is none."""
    rank = {name: place for place, name in enumerate(_PRECEDENCE)}
    of_code = np.array([rank[name] for name in splits.dictionary.to_pylist()], np.int64)
    codes = splits.indices.fill_null(-1).to_numpy()
    return np.asarray(np.append(of_code, len(_PRECEDENCE))[codes], np.int64)


def _differs(
    column: pa.DictionaryArray, order: npt.NDArray[np.int64], first: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether the rows of a content have several values, bool[contents]; null is none."""
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
