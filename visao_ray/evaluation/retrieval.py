"""Retrieval metrics: how many of an image's nearest neighbours have its class.

The study counted the query as its own first neighbour, so its values are at least 1 / k. Here the
query is left out, and so are all images of its group: two films of one patient look alike for
reasons that no later patient shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    Estimate,
    Floats,
    Integers,
    estimates,
    group_multiplicities,
    weighted_sums,
)
from visao_ray.evaluation.labelled_scores import Values, sorted_codes

Positions = npt.NDArray[np.intp]
Distances = npt.NDArray[np.float64]

SPLITS = ("val", "test")
#: Number of neighbours from which all measures are computed.
NEIGHBOURS = 20
_CELLS = 16_000_000  # distances held at once


@dataclass(frozen=True)
class Hits:
    """Which neighbours of each query have its class.

    Attributes:
        hit: bool[Q, K], nearest first; False where there is no neighbour.
        found: int[Q], number of neighbours, at most K.
        relevant: int[Q], number of gallery images with the class of the query.
        offered: int[Q], number of gallery images; those of the query's group do not count.
    """

    hit: npt.NDArray[np.bool_]
    found: Integers
    relevant: Integers
    offered: Integers

    @classmethod
    def of(
        cls,
        neighbours: Sequence[Positions],
        query_labels: Integers,
        query_groups: Integers,
        gallery_labels: Integers,
        gallery_groups: Integers,
        k: int = NEIGHBOURS,
    ) -> Hits:
        """Compare the labels of neighbours with those of their queries.

        Args:
            neighbours: positions in the gallery, nearest first, for each query.
            query_labels: int[Q], class codes.
            query_groups: int[Q], group codes.
            gallery_labels: int[G].
            gallery_groups: int[G].
            k: K.

        Returns:
            The hits.
        """
        found = np.array([len(near) for near in neighbours], np.int64)
        hit = np.zeros((len(found), k), bool)
        for row, near in enumerate(neighbours):
            hit[row, : len(near)] = gallery_labels[near] == query_labels[row]
        # The images of a group and class are counted by a code for the pair.
        classes = int(max(query_labels.max(initial=0), gallery_labels.max(initial=0))) + 1
        of_class = np.bincount(gallery_labels, minlength=classes)[query_labels]
        own_of_class = _counts(
            gallery_groups.astype(np.int64) * classes + gallery_labels,
            query_groups.astype(np.int64) * classes + query_labels,
        )
        own = _counts(gallery_groups, query_groups)
        return cls(hit, found, of_class - own_of_class, len(gallery_labels) - own)

    def measures(self) -> dict[str, Floats]:
        """Return the measures of each query, float64[Q] by name.

        - `accuracy_at_1`: the nearest neighbour has the class of the query.
        - `map_at_5`: average precision of the first 5: the mean of the precision at each rank with
          a neighbour of the class; 0 if there is none. As in torchmetrics' RetrievalMAP.
        - `precision_at_10`, `precision_at_20`: share of the first 10 or 20 with the class. If the
          gallery has fewer, the share is that of all of them.
        - `recall_at_10`: at least one of the first 10 has the class.
        - `chance`: share of the gallery with the class, the precision of a random order.
        """
        first = self.hit[:, :5]
        precision = first.cumsum(axis=1) / np.arange(1, first.shape[1] + 1)
        return {
            "accuracy_at_1": self.hit[:, 0].astype(float),
            "map_at_5": (precision * first).sum(axis=1) / np.maximum(first.sum(axis=1), 1),
            "precision_at_10": self.precision(10),
            "precision_at_20": self.precision(20),
            "recall_at_10": self.hit[:, :10].any(axis=1).astype(float),
            "chance": self.relevant / np.maximum(self.offered, 1),
        }

    def precision(self, k: int) -> Floats:
        """Return the share of the first k neighbours with the class of each query, float64[Q]."""
        shares = self.hit[:, :k].sum(axis=1) / np.maximum(np.minimum(self.found, k), 1)
        return np.asarray(shares, np.float64)


def mean_estimates(
    measures: Mapping[str, Floats],
    groups: Values,
    strata: Integers | None = None,
    replicates: int = 1000,
    seed: int = 0,
    share: bool = True,
) -> list[dict[str, Estimate]]:
    """Estimate the mean of measures over all queries, or over those of each stratum.

    Args:
        measures: float64[Q] by name.
        groups: [Q], the unit that the bootstrap draws.
        strata: int[Q], codes from 0, such as classes; None: all queries are one stratum.
        replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.
        share: whether the measures are shares in 0..1; otherwise they are in -1..1.

    Returns:
        For each stratum, an estimate of each measure.
    """
    from scipy import sparse

    if not len(groups):
        return [dict.fromkeys(measures, UNDEFINED)]
    stratum = np.zeros(len(groups), np.int64) if strata is None else strata
    group, group_count = sorted_codes(groups)
    shape = (int(stratum.max()) + 1, group_count)

    def sums(values: Floats) -> Any:
        return sparse.csr_array((values, (stratum, group)), shape=shape)

    members = sums(np.ones(len(group)))
    parts = {name: sums(values) for name, values in measures.items()}
    chunks: dict[str, list[Floats]] = {name: [] for name in measures}
    for weight in group_multiplicities(group_count, replicates, seed):
        total = weighted_sums(members, weight)
        for name, part in parts.items():
            with np.errstate(invalid="ignore"):  # a stratum that was not drawn
                chunks[name].append(weighted_sums(part, weight) / total)
    n = np.bincount(stratum, minlength=shape[0])
    members.sum_duplicates()
    contributing = np.diff(members.indptr)
    bounded = (0.0, 1.0) if share else (-1.0, 1.0)
    of_measure = {
        name: estimates(np.concatenate(values, axis=1), n, contributing, bounded, share)
        for name, values in chunks.items()
    }
    return [{name: of_measure[name][row] for name in measures} for row in range(shape[0])]


def precision_at_k(
    queries: Vectors,
    query_labels: npt.NDArray[Any],
    gallery: Vectors,
    gallery_labels: npt.NDArray[Any],
    query_groups: Integers,
    gallery_groups: Integers,
    groups: Values,
    k: int = NEIGHBOURS,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute precision at k: the share of the k nearest neighbours that have the query's label.

    The value is the mean over queries. Neighbours are those of `nearest`. If the gallery has fewer
    than k others, the share is that of all of them.

    Args:
        queries: float32[Q, E].
        query_labels: [Q].
        gallery: float32[G, E].
        gallery_labels: [G], of the same dtype.
        query_groups: int[Q], group codes; -1: the query has none in the gallery.
        gallery_groups: int[G]; images of the query's group are left out.
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
    require_finite(queries)
    require_finite(gallery)
    if len(queries) == 0 or len(gallery) == 0:
        return UNDEFINED.to_json()
    _, codes = np.unique(np.concatenate([query_labels, gallery_labels]), return_inverse=True)
    near = [found for found, _ in nearest(queries, query_groups, gallery, gallery_groups, k)]
    labels = codes[: len(queries)], codes[len(queries) :]
    hits = Hits.of(near, labels[0], query_groups, labels[1], gallery_groups, k)
    if not hits.found.any():
        return UNDEFINED.to_json()
    measures = {"precision": hits.precision(k)}
    (found,) = mean_estimates(measures, groups, replicates=replicates, seed=seed)
    return found["precision"].to_json()


def require_finite(vectors: Vectors) -> None:
    """Raise InputError if a row of vectors float32[N, E] holds NaN or infinity."""
    not_finite = int((~np.isfinite(vectors).all(axis=1)).sum())
    if not_finite:
        raise InputError(
            f"{not_finite} of {len(vectors)} embeddings hold NaN or infinity; the model diverged"
        )


def retrieval_metrics(
    embeddings: Location, k: int = NEIGHBOURS, replicates: int = 1000, seed: int = 0
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
    asked = (vectors[own], labels[own], vectors, labels, groups[own], groups, groups[own])
    return precision_at_k(*asked, k, replicates, seed)


def nearest(
    queries: Vectors,
    query_groups: Integers,
    gallery: Vectors,
    gallery_groups: Integers,
    k: int,
) -> Iterator[tuple[Positions, Distances]]:
    """Find the k nearest of the gallery by Euclidean distance, exactly, without an index.

    A float32 product selects all candidates, with a margin for its rounding error. Their float64
    distances give the order; of equally near ones, the earlier in the gallery comes first.

    Args:
        queries: float32[Q, E], finite.
        query_groups: int[Q], group codes; images of the query's group are left out.
        gallery: float32[G, E], finite, with G > 0.
        gallery_groups: int[G].
        k: number of neighbours.

    Yields:
        For each query positions in the gallery, nearest first, and their distances; at most k.
    """
    centre = gallery.mean(axis=0, dtype=np.float64).astype(
        np.float32
    )  # smaller numbers, smaller rounding errors
    asked, offered = queries - centre, gallery - centre
    # Half the squared distance, without the norm of the query, which does not change the order.
    norms = np.square(offered, dtype=np.float64).sum(axis=1)
    largest = norms.max() + np.square(asked, dtype=np.float64).sum(axis=1).max(initial=0)
    # A dot product of n terms is off by at most n · eps / 2 · |a| · |b| (Higham, Accuracy and
    # Stability of Numerical Algorithms, 2002, section 3.1); centring and sums add a few more.
    margin = np.float32((queries.shape[1] + 16) * np.finfo(np.float32).eps * largest)
    half_norms = (norms / 2).astype(np.float32)
    by_group = np.argsort(gallery_groups, kind="stable")
    first, after = (
        np.searchsorted(gallery_groups[by_group], query_groups, side) for side in ("left", "right")
    )
    last = min(k, len(gallery)) - 1
    step = max(1, _CELLS // len(gallery))
    for start in range(0, len(queries), step):
        apart = half_norms - asked[start : start + step] @ offered.T
        for row in range(len(apart)):
            own = slice(first[start + row], after[start + row])
            apart[row, by_group[own]] = np.inf
        reach = np.partition(apart, last, axis=1)[:, last] + margin
        for row, query in enumerate(queries[start : start + step]):
            near = np.flatnonzero((apart[row] <= reach[row]) & (apart[row] < np.inf))
            exact = np.square(np.subtract(gallery[near], query, dtype=np.float64)).sum(axis=1)
            order = np.argsort(exact, kind="stable")[:k]
            yield near[order], np.sqrt(exact[order])


def _counts(values: Integers, wanted: Integers) -> Integers:
    """Return how often each wanted value occurs among values."""
    ordered = np.sort(values)
    return np.searchsorted(ordered, wanted, "right") - np.searchsorted(ordered, wanted, "left")
