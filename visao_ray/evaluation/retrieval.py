"""Retrieval metrics: the share of an image's nearest neighbours that have its class.

The study counted the query as its own first neighbour, so its values are at least 1 / k. Here the
query is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visao_ray.core import tables
from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location
from visao_ray.core.tables import Vectors
from visao_ray.evaluation.bootstrap import (
    UNDEFINED,
    estimates,
    group_multiplicities,
    weighted_sums,
)
from visao_ray.evaluation.labelled_scores import Values, sorted_codes

Positions = npt.NDArray[np.intp]

SPLITS = ("val", "test")
_CELLS = 16_000_000  # distances held at once


def precision_at_k(
    queries: Vectors,
    query_labels: npt.NDArray[Any],
    gallery: Vectors,
    gallery_labels: npt.NDArray[Any],
    own: npt.NDArray[np.integer],
    groups: Values,
    k: int = 20,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute precision at k: the share of the k nearest neighbours that have the query's label.

    The value is the mean over queries. Neighbours are exact by Euclidean distance; of equally near
    ones, the earlier in the gallery comes first. If the gallery has fewer than k others, the share
    is that of all of them.

    Args:
        queries: float32[Q, E].
        query_labels: [Q].
        gallery: float32[G, E].
        gallery_labels: [G], of the same dtype.
        own: int [Q], the position of each query in the gallery, which is left out; -1 if it is not
            in the gallery.
        groups: [Q], patients or containers, the unit that the bootstrap draws.
        k: number of neighbours.
        replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        `{"value", "low", "high", "n"}` with a 95 % interval; None and n 0 without queries or
        gallery.

    Raises:
        InputError: vectors that are not finite.
    """
    for vectors in (queries, gallery):
        not_finite = int((~np.isfinite(vectors).all(axis=1)).sum())
        if not_finite:
            raise InputError(
                f"{not_finite} of {len(vectors)} embeddings hold NaN or infinity;"
                " the model diverged"
            )
    if len(queries) == 0 or len(gallery) - int((own >= 0).any()) < 1:
        return UNDEFINED.to_json()
    share = np.empty(len(queries))
    for position, nearest in enumerate(_neighbours(queries, gallery, own, k)):
        share[position] = (gallery_labels[nearest] == query_labels[position]).mean()
    group, group_count = sorted_codes(groups)
    sums = np.stack([np.bincount(group, share, group_count), np.bincount(group)])
    chunks = []
    for weight in group_multiplicities(group_count, replicates, seed):
        found, asked = weighted_sums(sums, weight)
        chunks.append(found / asked)
    values = np.concatenate(chunks)[None]
    return estimates(values, len(queries), group_count, share=True)[0].to_json()


def retrieval_metrics(
    embeddings: Location, k: int = 20, replicates: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Compute precision at k of an embeddings table.

    Queries are the images of the split; the gallery is these images and those of train.

    Args:
        embeddings: location of the table.
        k: number of neighbours.
        replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        `{"val": {"precision_at_20": …}, "test": …}`.

    Raises:
        InputError: no such table, or vectors that are not finite.
    """
    table = tables.open_table(embeddings, "embeddings").to_table().sort_by("key")
    name = f"precision_at_{k}"
    return {split: {name: _of_split(table, split, k, replicates, seed)} for split in SPLITS}


def _of_split(table: pa.Table, split: str, k: int, replicates: int, seed: int) -> dict[str, Any]:
    gallery = table.filter(pc.is_in(table["split"], pa.array(["train", split])))
    own = np.flatnonzero(pc.equal(gallery["split"], split).to_numpy())
    vectors, (labels, _) = tables.matrix(gallery["embedding"]), sorted_codes(gallery["label"])
    groups, _ = sorted_codes(pc.coalesce(gallery["group"], gallery["key"]))
    return precision_at_k(
        vectors[own], labels[own], vectors, labels, own, groups[own], k, replicates, seed
    )


def _neighbours(
    queries: Vectors, gallery: Vectors, own: npt.NDArray[np.integer], k: int
) -> Iterator[Positions]:
    """Yield the positions of the k nearest in the gallery, nearest first, query by query.

    A float32 product selects all candidates, with a margin for its rounding error. Their float64
    distances give the order.
    """
    centre = gallery.mean(axis=0, dtype=np.float64).astype(
        np.float32
    )  # smaller numbers, smaller rounding errors
    asked, offered = queries - centre, gallery - centre
    # Half the squared distance, without the norm of the query, which does not change the order.
    norms = np.square(offered, dtype=np.float64).sum(axis=1)
    largest = norms.max() + np.square(asked, dtype=np.float64).sum(axis=1).max()
    # A dot product of n terms is off by at most n · eps / 2 · |a| · |b| (Higham, Accuracy and
    # Stability of Numerical Algorithms, 2002, section 3.1); centring and sums add a few more.
    margin = np.float32((queries.shape[1] + 16) * np.finfo(np.float32).eps * largest)
    half_norms = (norms / 2).astype(np.float32)
    last = min(k, len(gallery)) - 1
    step = max(1, _CELLS // len(gallery))
    for start in range(0, len(queries), step):
        apart = half_norms - asked[start : start + step] @ offered.T
        places = own[start : start + step]
        inside = np.flatnonzero(places >= 0)
        apart[inside, places[inside]] = np.inf
        reach = np.partition(apart, last, axis=1)[:, last] + margin
        for row, query in enumerate(queries[start : start + step]):
            near = np.flatnonzero((apart[row] <= reach[row]) & (apart[row] < np.inf))
            exact = np.square(np.subtract(gallery[near], query, dtype=np.float64)).sum(axis=1)
            yield near[np.argsort(exact, kind="stable")[:k]]
