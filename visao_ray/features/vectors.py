"""Cached features as arrays for training: train and val rows. Rows of test are never read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from visao_ray import tables
from visao_ray.datasets.classes import class_numbers, find_classes
from visao_ray.datasets.spec import Dataset
from visao_ray.errors import InputError
from visao_ray.models.normalization import FeatureStats as Moments
from visao_ray.models.normalization import Vectors
from visao_ray.storage import locate

_POOLS = ("avg", "max")
_TOLD = ["key", "view", "label", "group"]


@dataclass(frozen=True)
class Rows:
    """One split: `avg` and `max` float32[N, D], `labels` int32[N] class indices, `groups` string[N]
    (the key of an image without one), `views` int16[N] (0: the image as it is)."""

    avg: Vectors
    max: Vectors
    labels: npt.NDArray[np.int32]
    groups: pa.Array
    views: npt.NDArray[np.int16]

    @property
    def vectors(self) -> dict[str, Vectors]:
        """What a head takes."""
        return {"avg": self.avg, "max": self.max}


@dataclass(frozen=True)
class Features:
    """What trials share: both splits and, from train, the moments of either pool."""

    train: Rows
    val: Rows
    moments: dict[str, Moments]


@dataclass(frozen=True)
class Summary:
    """What the driver needs to know of the features.

    Attributes:
        classes: in index order.
        width: D.
        about: how the features were made.
        images: distinct images in train and val.
        rows: rows in train (all views) and val (view 0).
        views: augmented views that train images have, beside themselves.
        untrained: classes that stand in val but not in train.
    """

    classes: tuple[str, ...]
    width: int
    about: dict[str, Any]
    images: int
    rows: dict[str, int]
    views: int
    untrained: tuple[str, ...]


def load_features(uri: str, dataset: Dataset, views: int | None = None) -> tuple[Summary, Features]:
    """Read train rows (all views, or those up to `views`) and val rows (view 0), in order of key
    and view.

    Memory: twice the rows asked for, for a moment. Runs in a Ray task, so that the driver stays
    small.

    Raises:
        InputError: no such table, no train or val rows, labels that are not of the dataset, a class
            without train rows (datasets with fixed classes), vectors that are not finite, an image
            that stands there twice.
    """
    table = tables.open_table(locate(uri), "features")
    train, train_table = _read(table, "train", views, uri)
    val, val_table = _read(table, "val", 0, uri)
    train_names, val_names = (table["label"].to_numpy() for table in (train_table, val_table))
    classes = find_classes(dataset, train_names, val_names, uri)
    summary = Summary(
        classes=classes,
        width=train["avg"].shape[1],
        about=tables.about(table.schema),
        images=len(np.union1d(train_table["key"].to_numpy(), val_table["key"].to_numpy())),
        rows={"train": train_table.num_rows, "val": val_table.num_rows},
        views=int(pc.max(train_table["view"]).as_py()),
        untrained=tuple(sorted(set(classes) - set(train_names))),
    )
    features = Features(
        train=_rows(train, train_table, classes),
        val=_rows(val, val_table, classes),
        moments={pool: Moments.of(vectors) for pool, vectors in train.items()},
    )
    return summary, features


def _read(
    features: tables.Table, split: str, last_view: int | None, uri: str
) -> tuple[dict[str, Vectors], pa.Table]:
    """Vectors by pool, and key, label and group, of one split in order of key and view."""
    rows = pads.field("split") == split
    if last_view is not None:
        rows &= pads.field("view") <= last_view
    count = features.count_rows(filter=rows)
    if not count:
        raise InputError(f"{uri}: no {split} rows; training needs the splits train and val")
    vectors = {
        pool: np.empty((count, features.schema.field(pool).type.list_size), np.float32)
        for pool in _POOLS
    }
    parts = []
    start = 0
    for batch in features.to_batches(columns=[*_TOLD, *_POOLS], filter=rows):
        stop = start + batch.num_rows
        for pool in _POOLS:
            flat = batch[pool].flatten().to_numpy(zero_copy_only=False)
            vectors[pool][start:stop] = flat.reshape(batch.num_rows, vectors[pool].shape[1])
        parts.append(batch.select(_TOLD))
        start = stop
    table = pa.Table.from_batches(parts)
    order = np.lexsort((table["view"].to_numpy(), table["key"].to_numpy()))
    table = table.take(pa.array(order))
    keys, views = (table[name].to_numpy() for name in ("key", "view"))
    twice = np.flatnonzero((keys[1:] == keys[:-1]) & (views[1:] == views[:-1]))
    if len(twice):
        raise InputError(f"{uri}: '{keys[twice[0]]}' (view {views[twice[0]]}) stands there twice")
    for pool in _POOLS:
        vectors[pool] = vectors[pool][order]
        strange = np.flatnonzero(~np.isfinite(vectors[pool]).all(axis=1))
        if len(strange):
            raise InputError(
                f"{uri}: the {pool} vector of '{keys[strange[0]]}' holds NaN or infinity"
            )
    return vectors, table


def _rows(vectors: dict[str, Vectors], table: pa.Table, classes: tuple[str, ...]) -> Rows:
    return Rows(
        avg=vectors["avg"],
        max=vectors["max"],
        labels=class_numbers(table["label"].to_numpy(), classes),
        groups=pc.coalesce(table["group"], table["key"]).combine_chunks(),
        views=table["view"].to_numpy().astype(np.int16),
    )
