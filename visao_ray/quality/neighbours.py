"""Nearest neighbours among many points, searched in blocks of similar points, never all pairs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]

_BLOCK_POINTS = 1000  # points per block, on average
_SEARCHED = 4  # blocks whose points are compared with a query
_TRAINED = 64  # points per block from which the blocks are found
_QUERIES = 4096  # compared at once
_SINGLE = 4000  # up to so many points are one block: every point is compared


class Blocks:
    """Points in blocks around centres, found by k-means on a sample.

    Args:
        points: float32[N, D].
        seed: seed of the sample and of k-means.
    """

    def __init__(self, points: Floats, seed: int) -> None:
        self._points = points
        self._centres = _find_centres(points, seed)
        nearest = self._nearest_centres(points, 1)[:, 0]
        order = np.argsort(nearest, kind="stable")
        edges = np.searchsorted(nearest[order], np.arange(len(self._centres) + 1))
        self._members = [order[edges[at] : edges[at + 1]] for at in range(len(self._centres))]

    def within(
        self, queries: Floats, own: Positions, distance: float, most: int
    ) -> tuple[Positions, Positions, Floats]:
        """Find the points within a distance of each query, at most some in each block.

        Args:
            queries: float32[Q, D].
            own: int64[Q], a point to leave out for each query.
            distance: largest Euclidean distance.
            most: number of points per query and block.

        Returns:
            Query, point and distance of each hit: int64[H], int64[H], float32[H].
        """
        rows, points, distances = [], [], []
        for chosen, members in self._searches(queries):
            squared = self._squared(queries[chosen], members)
            squared[own[chosen][:, None] == members] = np.inf
            near = np.flatnonzero(squared.min(axis=1, initial=np.inf) <= distance**2)
            for row in near.tolist():
                line = squared[row]
                hits = np.flatnonzero(line <= distance**2)
                hits = hits[np.argsort(line[hits], kind="stable")][:most]
                rows.append(np.full(len(hits), chosen[row]))
                points.append(members[hits])
                distances.append(np.sqrt(line[hits]))
        return (
            np.concatenate([*rows, np.zeros(0, np.int64)]),
            np.concatenate([*points, np.zeros(0, np.int64)]),
            np.concatenate([*distances, np.zeros(0, np.float32)]),
        )

    def mean_distance(self, count: int) -> Floats:
        """Return the mean distance of each point to its `count` nearest others, float32[N]."""
        total = len(self._points)
        best = np.full((total, count), np.inf, np.float32)
        for chosen, members in self._searches(self._points):
            squared = self._squared(self._points[chosen], members)
            squared[chosen[:, None] == members] = np.inf
            both = np.concatenate([best[chosen], squared], axis=1)
            best[chosen] = np.partition(both, count - 1, axis=1)[:, :count]
        distances = np.sqrt(best)
        known = np.isfinite(distances)
        sums = np.where(known, distances, 0).sum(axis=1)
        return np.asarray(sums / np.maximum(known.sum(axis=1), 1), np.float32)

    def _searches(self, queries: Floats) -> list[tuple[Positions, Positions]]:
        """Return the queries to compare with the points of each block, in parts."""
        places = self._nearest_centres(queries, min(_SEARCHED, len(self._centres)))
        flat = places.reshape(-1)
        order = np.argsort(flat, kind="stable")
        edges = np.searchsorted(flat[order], np.arange(len(self._centres) + 1))
        found = []
        for block, members in enumerate(self._members):
            chosen = order[edges[block] : edges[block + 1]] // places.shape[1]
            if len(members):
                found += [
                    (chosen[at : at + _QUERIES], members) for at in range(0, len(chosen), _QUERIES)
                ]
        return found

    def _squared(self, queries: Floats, members: Positions) -> Floats:
        """Return squared distances, float32[Q, M]."""
        points = self._points[members]
        squared = -2 * (queries @ points.T)
        squared += (queries**2).sum(axis=1)[:, None]
        squared += (points**2).sum(axis=1)
        np.maximum(squared, 0, out=squared)
        return np.asarray(squared, np.float32)

    def _nearest_centres(self, points: Floats, count: int) -> Positions:
        """Return the nearest centres of each point, int64[N, count]."""
        found = np.empty((len(points), count), np.int64)
        half = (self._centres**2).sum(axis=1) / 2
        for at in range(0, len(points), _QUERIES):
            further = half - points[at : at + _QUERIES] @ self._centres.T
            found[at : at + _QUERIES] = np.argpartition(further, count - 1, axis=1)[:, :count]
        return found


def _find_centres(points: Floats, seed: int) -> Floats:
    if len(points) <= _SINGLE:
        return np.zeros((1, points.shape[1]), np.float32)
    from sklearn.cluster import MiniBatchKMeans

    count = -(-len(points) // _BLOCK_POINTS)
    rng = np.random.default_rng(seed)
    sample = rng.choice(len(points), min(len(points), count * _TRAINED), replace=False)
    kmeans = MiniBatchKMeans(
        count, random_state=seed, batch_size=4096, n_init=1, max_iter=20, init="random"
    )
    centres = kmeans.fit(points[np.sort(sample)]).cluster_centers_
    return np.asarray(centres, np.float32)
