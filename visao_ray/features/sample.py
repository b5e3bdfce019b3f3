"""Stratified sampling of whole groups."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def sample_groups(
    labels: npt.NDArray[np.int32],
    groups: npt.NDArray[np.int32],
    names: pa.Array,
    share: float,
    seed: int,
) -> npt.NDArray[np.bool_]:
    """Choose groups so that each class keeps about `share` of its images, and at least one.

    Groups are ordered by a hash of their name and the seed. So the choice depends neither on the
    order of the images nor on the machine, and is nearly the same after the store has grown. Groups
    are chosen class by class, the rarest class first; images of other classes in a chosen group
    count for those classes.

    Args:
        labels: int32[N] class indices.
        groups: int32[N] indices into `names`.
        names: string[G] names of groups.
        share: share of the images, in (0, 1).
        seed: seed of the hash.

    Returns:
        bool[G], whether a group is chosen; groups without images are not chosen.
    """
    classes = int(labels.max(initial=0)) + 1
    pairs, counts = np.unique(groups.astype(np.int64) * classes + labels, return_counts=True)
    pair_groups, pair_labels = np.divmod(pairs, classes)
    order = np.lexsort((pair_groups, _hash_names(names, seed)[pair_groups], pair_labels))
    pair_groups, pair_labels, counts = pair_groups[order], pair_labels[order], counts[order]
    starts = np.searchsorted(pair_labels, np.arange(classes + 1))
    sizes = np.bincount(labels, minlength=classes)
    chosen = np.zeros(len(names), bool)
    for label in np.argsort(sizes, kind="stable"):
        own = slice(starts[label], starts[label + 1])
        there = chosen[pair_groups[own]]
        missing = max(1, round(share * sizes[label])) - counts[own][there].sum()
        if missing <= 0 or not sizes[label]:
            continue
        fresh = pair_groups[own][~there]
        brought = np.concatenate([[0], np.cumsum(counts[own][~there])])
        nearest = int(np.abs(brought - missing).argmin())
        chosen[fresh[: max(nearest, int(not there.any()))]] = True
    return chosen


def _hash_names(names: pa.Array, seed: int) -> npt.NDArray[np.uint64]:
    """Return a hash of each name, uint64[G]."""
    key = str(seed).encode()
    digests = (
        hashlib.blake2b(name.encode(), digest_size=8, key=key).digest()
        for name in names.to_pylist()
    )
    return np.frombuffer(b"".join(digests), np.uint64)
