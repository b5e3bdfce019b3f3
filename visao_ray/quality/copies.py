"""Copies of images with other bytes: saved again, resized, cropped a little, brighter, mirrored.

A cascade finds them. Each image gets a descriptor of 16 × 16 grey levels, and the descriptors
that it would have if it were mirrored or cropped in some ways. A descriptor that is near that of
another image proposes a pair; blocks of similar descriptors keep this far from comparing all pairs.
Then the two pictures of 64 × 64 pixels are aligned, and their correlation decides.

Measured on 5,216 real chest films with 1,600 planted copies: the correlation of a copy was at least
0.9945 and that of other pairs at most 0.9888, but for two films of one patient (0.993). A copy in
which large parts became white by brightening is often missed: scans have a light background.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.quality.neighbours import Blocks

Grey = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]

#: Correlation of two aligned pictures from which on one is a copy of the other.
COPY = 0.992
#: Correlation of descriptors from which on a pair is aligned.
_PROPOSED = 0.96
_CANDIDATES = 2  # pairs that one picture may propose
_DESCRIPTOR = 16  # side
_FLAT = 16.0  # length of a descriptor whose grey levels have a standard deviation of 1
_CHUNK = 2048  # pictures whose descriptors are made at once
_COMPARED = 65_536  # pictures that are compared with all blocks at once
_STEPS = 3  # of the alignment, which starts near its end; more can lead away
_SMOOTHING = 3  # side of its Gaussian filter, in pixels

#: Shares of the width and height that are cut: left, top, right, bottom.
_CUT = 0.05
_CROPS = (
    (0.0, 0.0, 0.0, 0.0),
    (_CUT, _CUT, _CUT, _CUT),
    (_CUT / 2, _CUT / 2, _CUT / 2, _CUT / 2),
    (_CUT, _CUT, 0.0, 0.0),
    (0.0, _CUT, _CUT, 0.0),
    (_CUT, 0.0, 0.0, _CUT),
    (0.0, 0.0, _CUT, _CUT),
)
#: Ways in which a copy may differ: mirrored or not, and a crop.
VARIANTS = tuple((mirrored, crop) for mirrored in (False, True) for crop in _CROPS)


@dataclass(frozen=True)
class Copies:
    """Pairs of contents that show the same picture.

    Attributes:
        first: int64[M], positions in the sorted contents.
        second: int64[M], positions of the other content, larger than `first`.
        similarity: float32[M], correlation of the aligned pictures.
        mirrored: bool[M], whether one is the mirror image of the other.
    """

    first: Positions
    second: Positions
    similarity: Floats
    mirrored: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first)

    def sets(self, contents: int) -> npt.NDArray[np.int32]:
        """Return the number of each content's set of copies, int32[contents]; -1: in none."""
        from scipy import sparse

        links = sparse.coo_array(
            (np.ones(len(self), bool), (self.first, self.second)), (contents, contents)
        )
        _, found = sparse.csgraph.connected_components(links, directed=False)
        alone = np.ones(contents, bool)
        alone[self.first] = alone[self.second] = False
        return np.where(alone, -1, found).astype(np.int32)


def descriptors(pictures: Grey, variant: tuple[bool, Sequence[float]] = VARIANTS[0]) -> Floats:
    """Describe pictures as they would look mirrored and cropped.

    Args:
        pictures: uint8[N, S, S].
        variant: whether to mirror them, and the shares to cut.

    Returns:
        float32[N, 256] with mean 0 and length 1, so that a product is a correlation; 0 for a
        picture that is almost of one grey level.
    """
    mirrored, (left, top, right, bottom) = variant
    side = pictures.shape[1]
    columns = _averages(side, left, right)
    if mirrored:
        columns = columns[:, ::-1]
    rows = _averages(side, top, bottom)
    found = (rows @ pictures.astype(np.float32)) @ columns.T
    flat = found.reshape(len(pictures), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    scaled: Floats = np.divide(flat, length, out=np.zeros_like(flat), where=length > _FLAT)
    return scaled


@cache
def _averages(side: int, start: float, end: float) -> Floats:
    """Return weights float32[16, side] that average the part of a line between two cuts."""
    edges = np.linspace(side * start, side * (1 - end), _DESCRIPTOR + 1)
    pixels = np.arange(side)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(covered, 0, None)
    averages: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return averages


def propose(pictures: Grey, seed: int) -> Positions:
    """Propose pairs of pictures that may be copies of each other.

    Args:
        pictures: uint8[N, S, S]; may be mapped from a file.
        seed: seed of the blocks.

    Returns:
        int64[M, 3]: the picture that may be the copy, the other one, and a position in `VARIANTS`:
        how to change the other one to get the copy.
    """
    plain = _describe(pictures, np.arange(len(pictures)), VARIANTS[0])
    usable = np.flatnonzero(plain.any(axis=1))  # those of one grey level are all alike
    blocks = Blocks(plain if len(usable) == len(plain) else plain[usable], seed)
    del plain
    within = float(np.sqrt(2 - 2 * _PROPOSED))
    found = []
    for start in range(0, len(usable), _COMPARED):
        own = np.arange(start, min(start + _COMPARED, len(usable)))
        best = _Proposals.none()
        for number, variant in enumerate(VARIANTS):
            queries = _describe(pictures, usable[own], variant)
            rows, hits, distances = blocks.within(queries, own, within, _CANDIDATES)
            new = _Proposals(own[rows], hits, distances, np.full(len(rows), number))
            best = best.plus(new).nearest(_CANDIDATES)
        found.append(best)
    proposals = _Proposals.none()
    for each in found:
        proposals = proposals.plus(each)
    kept = proposals.one_a_pair()
    return np.stack([usable[kept.copy], usable[kept.other], kept.variant], axis=1)


@dataclass(frozen=True)
class _Proposals:
    """Pairs that may be copies: int64[M] `other` (changed by a variant), `copy` and `variant`."""

    other: Positions
    copy: Positions
    distance: Floats
    variant: Positions

    @classmethod
    def none(cls) -> _Proposals:
        empty = np.zeros(0, np.int64)
        return cls(empty, empty, np.zeros(0, np.float32), empty)

    def plus(self, more: _Proposals) -> _Proposals:
        return _Proposals(
            np.concatenate([self.other, more.other]),
            np.concatenate([self.copy, more.copy]),
            np.concatenate([self.distance, more.distance]),
            np.concatenate([self.variant, more.variant]),
        )

    def take(self, rows: Positions) -> _Proposals:
        return _Proposals(
            self.other[rows], self.copy[rows], self.distance[rows], self.variant[rows]
        )

    def nearest(self, most: int) -> _Proposals:
        """Keep the nearest variant of each pair, and the nearest copies of each picture."""
        order = np.lexsort((self.distance, self.copy, self.other))
        pairs = self.take(order)
        first = np.ones(len(order), bool)
        first[1:] = (np.diff(pairs.other) != 0) | (np.diff(pairs.copy) != 0)
        pairs = pairs.take(np.flatnonzero(first))
        pairs = pairs.take(np.lexsort((pairs.distance, pairs.other)))
        starts = np.flatnonzero(np.diff(pairs.other, prepend=-1) != 0)
        sizes = np.diff([*starts, len(pairs.other)])
        rank = np.arange(len(pairs.other)) - np.repeat(starts, sizes)
        return pairs.take(np.flatnonzero(rank < most))

    def one_a_pair(self) -> _Proposals:
        """Keep the nearer one of the two directions of a pair."""
        low, high = np.minimum(self.other, self.copy), np.maximum(self.other, self.copy)
        order = np.lexsort((self.distance, high, low))
        first = np.ones(len(order), bool)
        first[1:] = (np.diff(low[order]) != 0) | (np.diff(high[order]) != 0)
        return self.take(order[first])


def _describe(pictures: Grey, rows: Positions, variant: tuple[bool, Sequence[float]]) -> Floats:
    """Describe some pictures, a few at a time, because each takes 16 kB as float32."""
    found = np.empty((len(rows), _DESCRIPTOR**2), np.float32)
    for at in range(0, len(rows), _CHUNK):
        found[at : at + _CHUNK] = descriptors(pictures[rows[at : at + _CHUNK]], variant)
    return found


def align(pairs: Positions, pictures: Grey) -> Floats:
    """Align the pictures of each pair and return their correlations.

    Args:
        pairs: int64[M, 3] as `propose` returns them.
        pictures: uint8[N, S, S]; may be mapped from a file.

    Returns:
        float32[M]; -1 where no alignment was found.
    """
    import cv2

    cv2.setNumThreads(1)  # the tasks of a cluster share its cores
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _STEPS, 1e-5)
    found = np.full(len(pairs), -1.0, np.float32)
    everywhere = np.ones(pictures.shape[1:], np.uint8)
    for place, (copy, other, number) in enumerate(pairs.tolist()):
        mirrored, crop = VARIANTS[number]
        source = np.ascontiguousarray(pictures[other][:, ::-1] if mirrored else pictures[other])
        start = _crop_matrix(crop, source.shape[0])
        try:
            found[place], _ = cv2.findTransformECC(
                np.ascontiguousarray(pictures[copy]),
                source,
                start,
                cv2.MOTION_AFFINE,
                stop,
                everywhere,
                _SMOOTHING,
            )
        except cv2.error:  # it does not converge, so the pictures differ
            continue
    return found


def _crop_matrix(crop: Sequence[float], side: int) -> Floats:
    """Return the affine map float32[2, 3] from a cropped and enlarged picture to the original."""
    left, top, right, bottom = crop
    width, height = 1 - left - right, 1 - top - bottom
    # A pixel's position is that of its centre.
    return np.array(
        [
            [width, 0, side * left + width / 2 - 0.5],
            [0, height, side * top + height / 2 - 0.5],
        ],
        np.float32,
    )


def decide(pairs: Positions, similarity: Floats) -> Copies:
    """Keep the pairs whose pictures correlate after alignment.

    Args:
        pairs: int64[M, 3] as `propose` returns them.
        similarity: float32[M] as `align` returns it.

    Returns:
        The copies, the most similar ones first.
    """
    kept = np.flatnonzero(similarity >= COPY)
    kept = kept[np.argsort(-similarity[kept], kind="stable")]
    chosen = pairs[kept]
    mirrored = np.array([VARIANTS[number][0] for number in chosen[:, 2]], bool)
    ends = np.sort(chosen[:, :2], axis=1)
    return Copies(ends[:, 0], ends[:, 1], np.minimum(similarity[kept], 1), mirrored)


def shares(pairs: Positions, rows: int) -> Iterator[Any]:
    """Divide pairs into parts for tasks."""
    for start in range(0, len(pairs), rows):
        yield pairs[start : start + rows]
