"""Nearest neighbours among many points, searched in blocks of similar points, never all pairs."""

from __future__ import annotations

from collections.abc import Iterator

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
        self._centres = _find_centres(points, seed)
        nearest = self._nearest_centres(points, 1)[:, 0]
        self._order = np.argsort(nearest, kind="stable")
        self._edges = np.searchsorted(nearest[self._order], np.arange(len(self._centres) + 1))
        self._points = points[self._order]  # the points of a block are one slice
        self._lengths = (self._points**2).sum(axis=1)

    @property
    def sizes(self) -> Positions:
        """Number of points of each block, int64[B]."""
        return np.diff(self._edges)

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
        for chosen, block in self._searches(queries):
            squared = self._squared(queries[chosen], block)
            members = self._order[block]
            squared[own[chosen][:, None] == members] = np.inf
            near = np.flatnonzero(squared.min(axis=1) <= distance**2)
            if not len(near):
                continue
            lines = squared[near]
            count = min(most, lines.shape[1])
            best = np.argpartition(lines, count - 1, axis=1)[:, :count]
            values = np.take_along_axis(lines, best, axis=1)
            hit = values <= distance**2
            rows.append(np.broadcast_to(chosen[near][:, None], hit.shape)[hit])
            points.append(members[best][hit])
            distances.append(np.sqrt(values[hit]))
        return (
            np.concatenate([*rows, np.zeros(0, np.int64)]),
            np.concatenate([*points, np.zeros(0, np.int64)]),
            np.concatenate([*distances, np.zeros(0, np.float32)]),
        )

    def mean_distance(self, count: int) -> Floats:
        """Return the mean distance of each point to its `count` nearest others, float32[N]."""
        best = np.full((len(self._points), count), np.inf, np.float32)
        for chosen, block in self._searches(self._points):
            squared = self._squared(self._points[chosen], block)
            squared[chosen[:, None] == np.arange(block.start, block.stop)] = np.inf
            both = np.concatenate([best[chosen], squared], axis=1)
            best[chosen] = np.partition(both, count - 1, axis=1)[:, :count]
        distances = np.sqrt(best)
        known = np.isfinite(distances)
        sums = np.where(known, distances, 0).sum(axis=1)
        found = np.empty(len(best), np.float32)
        found[self._order] = sums / np.maximum(known.sum(axis=1), 1)
        return found

    def _searches(self, queries: Floats) -> Iterator[tuple[Positions, slice]]:
        """Yield the queries to compare with each of the nearest blocks, in parts."""
        places = self._nearest_centres(queries, min(_SEARCHED, len(self._centres)))
        flat = places.reshape(-1)
        order = np.argsort(flat, kind="stable")
        edges = np.searchsorted(flat[order], np.arange(len(self._centres) + 1))
        for block in range(len(self._centres)):
            members = slice(int(self._edges[block]), int(self._edges[block + 1]))
            chosen = order[edges[block] : edges[block + 1]] // places.shape[1]
            if members.stop > members.start:
                for at in range(0, len(chosen), _QUERIES):
                    yield chosen[at : at + _QUERIES], members

    def _squared(self, queries: Floats, block: slice) -> Floats:
        """Return squared distances to the points of a block, float32[Q, M]."""
        squared = queries @ self._points[block].T
        squared *= -2
        squared += (queries**2).sum(axis=1)[:, None]
        squared += self._lengths[block]
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
