"""Search by likeness: how many of an image's nearest neighbours are of its own class.

The study counted the query as its own first neighbour (and so never found less than 1 / k); here it
is left out.
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
    """Mean over queries of the share of the k nearest of a gallery that have the query's label.

    Nearest by Euclidean distance, found exactly; of equally near ones the earlier in the gallery.
    Where the gallery has fewer than k others, the share is of those.

    Args:
        queries: float32[Q, E].
        query_labels: [Q].
        gallery: float32[G, E].
        gallery_labels: [G], of the same kind.
        own: int[Q], where each query itself stands in the gallery, which is left out; -1 if it is
            not there.
        groups: [Q], patients or containers, drawn as wholes for the interval.
        k: neighbours.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        {"value", "low", "high", "n"}, 95 % interval; None and n 0 without queries or gallery.

    Raises:
        InputError: vectors that are not finite.
    """
    for vectors in (queries, gallery):
        strange = int((~np.isfinite(vectors).all(axis=1)).sum())
        if strange:
            raise InputError(
                f"{strange} of {len(vectors)} embeddings hold NaN or infinity; the model diverged"
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
    """Precision at k of an embeddings table: {"val": {"precision_at_20": …}, "test": …}.

    Queries are the images of the split; the gallery, those and the ones of train.

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
    """Positions of the k nearest in the gallery, nearest first, query by query.

    A float32 product finds all that may be among them, with room for its rounding; their exact
    distances decide.
    """
    centre = gallery.mean(axis=0, dtype=np.float64).astype(np.float32)  # small numbers round less
    asked, offered = queries - centre, gallery - centre
    # Half the squared distance, without the query's own norm, which does not change the order.
    norms = np.square(offered, dtype=np.float64).sum(axis=1)
    largest = norms.max() + np.square(asked, dtype=np.float64).sum(axis=1).max()
    # A dot product of n terms is off by at most n · eps / 2 · |a| · |b| (Higham, Accuracy and
    # Stability of Numerical Algorithms, 2002, section 3.1); centring and sums add a few more.
    room = np.float32((queries.shape[1] + 16) * np.finfo(np.float32).eps * largest)
    half_norms = (norms / 2).astype(np.float32)
    last = min(k, len(gallery)) - 1
    step = max(1, _CELLS // len(gallery))
    for start in range(0, len(queries), step):
        apart = half_norms - asked[start : start + step] @ offered.T
        places = own[start : start + step]
        inside = np.flatnonzero(places >= 0)
        apart[inside, places[inside]] = np.inf
        reach = np.partition(apart, last, axis=1)[:, last] + room
        for row, query in enumerate(queries[start : start + step]):
            near = np.flatnonzero((apart[row] <= reach[row]) & (apart[row] < np.inf))
            exact = np.square(np.subtract(gallery[near], query, dtype=np.float64)).sum(axis=1)
            yield near[np.argsort(exact, kind="stable")[:k]]
