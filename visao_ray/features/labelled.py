"""Labelled vectors of a store for training: train and val rows. Test rows are never read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visao_ray.core.errors import InputError
from visao_ray.datasets.classes import find_classes
from visao_ray.datasets.spec import Dataset
from visao_ray.features.sample import sample_groups
from visao_ray.store import schemas
from visao_ray.store.join import Examples, Snapshot, read_examples
from visao_ray.store.mapped import MappedVectors, TableRows, VectorFile
from visao_ray.store.proof import Contents, as_bytes
from visao_ray.store.table import TableVersion

POOLS = ("avg", "max")
_SPLITS = ("train", "val")
_SCAN_ROWS = 65_536


@dataclass(frozen=True)
class LabelledVectors:
    """Train rows (all views), then val rows (unaugmented images only), each ordered by content.

    The train rows start with view 0 of all images (the unaugmented image), then come all views 1,
    then all views 2, and so on.

    Attributes:
        file: the vectors `avg` and `max`, float32[R, D] each, which every node maps into memory.
        labels: int32[R] class indices.
        groups: int32[R] indices into `group_names`.
        views: int16[R]; 0 is the unaugmented image.
        group_names: string[G], sorted.
        train: number of train rows; the other rows are val.
    """

    file: VectorFile
    labels: npt.NDArray[np.int32]
    groups: npt.NDArray[np.int32]
    views: npt.NDArray[np.int16]
    group_names: pa.Array
    train: int

    @property
    def rows(self) -> dict[str, int]:
        """Number of rows of each split."""
        return {"train": self.train, "val": len(self.labels) - self.train}

    def train_rows(self, views: int | None = None) -> npt.NDArray[np.int64]:
        """Return the train row numbers, int64[N], without augmented views above `views`."""
        found = np.arange(self.train)
        return found if views is None else found[self.views[: self.train] <= views]

    def val_rows(self) -> npt.NDArray[np.int64]:
        """Return the val row numbers, int64[N]."""
        return np.arange(self.train, len(self.labels))

    def open(self) -> MappedVectors:
        """Open the vectors in this process; see `VectorFile.open`."""
        return self.file.open()

    def sample(self, images: int, seed: int) -> LabelledVectors:
        """Sample whole groups with about `images` images and all their views.

        Return self if there are no more images than that. See `sample_groups`.
        """
        plain = np.flatnonzero(self.views == 0)
        share = images / len(plain)
        if share >= 1:
            return self
        in_train = plain < self.train
        chosen = np.zeros(len(self.labels), bool)
        for rows in (plain[in_train], plain[~in_train]):
            groups = sample_groups(
                self.labels[rows], self.groups[rows], self.group_names, share, seed
            )
            of_split = slice(0, self.train) if rows[0] < self.train else slice(self.train, None)
            chosen[of_split] = groups[self.groups[of_split]]
        rows = np.flatnonzero(chosen)
        return LabelledVectors(
            self.file.take(rows),
            self.labels[rows],
            self.groups[rows],
            self.views[rows],
            self.group_names,
            int(np.count_nonzero(rows < self.train)),
        )


@dataclass(frozen=True)
class Summary:
    """Summary of labelled vectors for the driver.

    Attributes:
        classes: classes in index order.
        width: D, the width of one pooled output.
        extractor: metadata of the engine that made the vectors.
        images: number of distinct images in train and val.
        rows: number of rows in train (all views) and val (view 0).
        views: number of augmented views per train image.
        untrained: classes that are in val but not in train.
        left_out: number of images that were left out, by reason.
    """

    classes: tuple[str, ...]
    width: int
    extractor: Mapping[str, Any]
    images: int
    rows: dict[str, int]
    views: int
    untrained: tuple[str, ...]
    left_out: dict[str, int]


def load_vectors(snapshot: Snapshot, dataset: Dataset) -> tuple[Summary, LabelledVectors]:
    """Find the train and val rows of a store; the vectors are read when they are opened.

    Call it in a Ray task to keep the driver small: it needs up to 300 bytes per image.

    Args:
        snapshot: table versions to read; if `augmented` is set, train includes its views.
        dataset: dataset of the store.

    Returns:
        The summary, and the rows.

    Raises:
        InputError: there are no train or val rows, a label is not a class of the dataset, there is
            only one class, or a class of a dataset with fixed classes has no train rows.
    """
    assert snapshot.results is not None
    examples = read_examples(snapshot, _SPLITS)
    splits = _texts(examples.splits)
    by_split: dict[str, npt.NDArray[np.int64]] = {
        split: np.flatnonzero(pc.equal(splits, split).to_numpy(False)) for split in _SPLITS
    }
    for split, found in by_split.items():
        if not len(found):
            raise InputError(
                f"{snapshot.store}: no {split} rows; training needs labelled images with vectors "
                "in the splits train and val"
            )
    classes, labels, untrained = _labels(examples, by_split, dataset, snapshot.store)
    group_names, groups = _groups(examples)
    train, val = by_split["train"], by_split["val"]
    places, views = [train], [np.zeros(len(train), np.int16)]
    augmented: TableRows | None = None
    if snapshot.augmented is not None:
        augmented, row_places, row_views = _augmented(
            snapshot.augmented, examples.contents[train], len(train)
        )
        places.append(train[row_places])
        views.append(row_views)
    count = sum(map(len, places))
    rows = np.empty((len(examples), 1), np.int64)
    rows[train, 0] = np.arange(len(train))
    rows[val, 0] = count + np.arange(len(val))
    plain = TableRows(snapshot.results, examples.contents, 0, rows)
    order = np.concatenate([*places, val])
    vectors = LabelledVectors(
        VectorFile(
            snapshot.images,
            POOLS,
            (plain,) if augmented is None else (plain, augmented),
            len(order),
        ),
        labels[order],
        groups[order],
        np.concatenate([*views, np.zeros(len(val), np.int16)]),
        group_names,
        count,
    )
    schema = snapshot.results.schema
    summary = Summary(
        classes=classes,
        width=schemas.outputs(schema)[POOLS[0]],
        extractor=schemas.description(schema),
        images=len(train) + len(val),
        rows=vectors.rows,
        views=int(vectors.views.max()),
        untrained=untrained,
        left_out={
            "have files with contradictory labels": examples.conflicts,
            "have no vectors of this extractor": examples.without,
        },
    )
    return summary, vectors


def _labels(
    examples: Examples, by_split: Mapping[str, npt.NDArray[np.int64]], dataset: Dataset, where: str
) -> tuple[tuple[str, ...], npt.NDArray[np.int32], tuple[str, ...]]:
    """Return the classes, the class index of each example, and val classes without train rows."""
    names = np.array(examples.labels.dictionary.to_pylist(), object)
    codes = examples.labels.indices.to_numpy()
    found = {split: set(names[np.unique(codes[places])]) for split, places in by_split.items()}
    classes = find_classes(dataset, found["train"], found["val"], where)
    position = {name: index for index, name in enumerate(classes)}
    index = np.array([position.get(name, -1) for name in names], np.int32)
    return classes, index[codes], tuple(sorted(set(classes) - found["train"]))


def _groups(examples: Examples) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """Return the sorted group names, and the group index of each example.

    An image without a group is a group of its own.
    """
    encoded = examples.group_names.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    rank = np.empty(len(order), np.int32)
    rank[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
    return encoded.dictionary.take(order), rank[encoded.indices.to_numpy()]


def _augmented(
    table: TableVersion, contents: Contents, first_row: int
) -> tuple[TableRows, npt.NDArray[np.int64], npt.NDArray[np.int16]]:
    """Find the augmented views of contents, and give them rows from `first_row` on.

    Returns the rows, and for each row the position of its content and its view.
    """
    found = [np.zeros(0, np.int64)]
    for batch in table.scan(["content_id", "view"], f"status = '{schemas.OK}'", _SCAN_ROWS):
        ids = as_bytes(batch["content_id"])
        place = np.searchsorted(contents, ids)
        hit = place < len(contents)
        hit[hit] = contents[place[hit]] == ids[hit]
        view = batch["view"].to_numpy()[hit].astype(np.int64)
        found.append(view * len(contents) + place[hit])
    view, place = np.divmod(np.unique(np.concatenate(found)), len(contents))
    rows = np.full((len(contents), int(view.max(initial=1))), -1, np.int64)
    rows[place, view - 1] = first_row + np.arange(len(place))
    return TableRows(table, contents, 1, rows), place, view.astype(np.int16)


def _texts(column: pa.DictionaryArray) -> pa.Array:
    return column.dictionary_decode()
