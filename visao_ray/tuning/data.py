"""The features of a sweep: train and val rows as arrays. Rows of test are never read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads

from visao_ray import tables
from visao_ray.bases.base import BASES, Base
from visao_ray.errors import InputError
from visao_ray.models.head import Moments, Vectors
from visao_ray.storage import locate

Strings = npt.NDArray[np.object_]

_POOLS = ("avg", "max")


@dataclass(frozen=True)
class Rows:
    """One split: `avg` and `max` float32[N, D], `labels` int32[N] class indices."""

    avg: Vectors
    max: Vectors
    labels: npt.NDArray[np.int32]

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
        untrained: classes that stand in val but not in train.
    """

    classes: tuple[str, ...]
    width: int
    about: dict[str, Any]
    images: int
    rows: dict[str, int]
    untrained: tuple[str, ...]


def load_features(uri: str, base_name: str) -> tuple[Summary, Features]:
    """Read train rows (all views) and val rows (view 0), in order of key and view.

    Memory: twice the rows asked for, for a moment. Runs in a Ray task, so that the driver stays
    small.

    Raises:
        InputError: no such table, no train or val rows, labels that are not of the base, a class
            without train rows (bases with fixed classes), vectors that are not finite, an image
            that stands there twice.
    """
    dataset = tables.open_table(locate(uri), "features")
    train, train_keys, train_names = _read(dataset, "train", None, uri)
    val, val_keys, val_names = _read(dataset, "val", 0, uri)
    classes = _classes(BASES[base_name], train_names, val_names, uri)
    summary = Summary(
        classes=classes,
        width=train["avg"].shape[1],
        about=tables.about(dataset.schema),
        images=len(np.union1d(train_keys, val_keys)),
        rows={"train": len(train_keys), "val": len(val_keys)},
        untrained=tuple(sorted(set(classes) - set(train_names))),
    )
    features = Features(
        train=Rows(**train, labels=_indices(train_names, classes)),
        val=Rows(**val, labels=_indices(val_names, classes)),
        moments={pool: Moments.of(vectors) for pool, vectors in train.items()},
    )
    return summary, features


def _read(
    dataset: pads.Dataset, split: str, view: int | None, uri: str
) -> tuple[dict[str, Vectors], Strings, Strings]:
    """Vectors by pool, keys and labels of one split in order of key and view."""
    rows = pads.field("split") == split
    if view is not None:
        rows &= pads.field("view") == view
    count = dataset.count_rows(filter=rows)
    if not count:
        raise InputError(f"{uri}: no {split} rows; a sweep needs the splits train and val")
    vectors = {
        pool: np.empty((count, dataset.schema.field(pool).type.list_size), np.float32)
        for pool in _POOLS
    }
    parts = []
    start = 0
    for batch in dataset.to_batches(columns=["key", "view", "label", *_POOLS], filter=rows):
        stop = start + batch.num_rows
        for pool in _POOLS:
            flat = batch[pool].flatten().to_numpy(zero_copy_only=False)
            vectors[pool][start:stop] = flat.reshape(batch.num_rows, vectors[pool].shape[1])
        parts.append(batch.select(["key", "view", "label"]))
        start = stop
    table = pa.Table.from_batches(parts)
    keys, views, labels = (table[name].to_numpy() for name in ("key", "view", "label"))
    order = np.lexsort((views, keys))
    keys, views, labels = keys[order], views[order], labels[order]
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
    return vectors, keys, labels


def _classes(base: Base, train: Strings, val: Strings, uri: str) -> tuple[str, ...]:
    found = sorted({*train, *val})
    strange = [
        name
        for name in found
        if name not in base.classes and not re.fullmatch(base.class_pattern or r"(?!)", name)
    ]
    if strange:
        raise InputError(f"{uri}: label '{strange[0]}' is no class of base {base.name}")
    missing = sorted(set(base.classes) - set(train))
    if missing:
        raise InputError(f"{uri}: no train rows of class {', '.join(missing)}")
    if len(found) < 2:
        raise InputError(f"{uri}: only class '{found[0]}' in train and val; two are needed")
    return base.classes or tuple(found)


def _indices(names: Strings, classes: tuple[str, ...]) -> npt.NDArray[np.int32]:
    position = {name: index for index, name in enumerate(classes)}
    return np.array([position[name] for name in names], np.int32)
