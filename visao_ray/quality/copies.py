"""Copies of images with other bytes: saved again, resized, cropped a little, brighter, mirrored.

A cascade finds them. Each image gets a descriptor of 16 × 16 grey levels, and the descriptors
that it would have if it were mirrored or cropped in some ways. A descriptor that is near that of
another image proposes a pair; blocks of similar descriptors keep this far from comparing all pairs.
Then the two pictures of 64 × 64 pixels are aligned, and their correlation decides.

Measured on 5,216 real chest films with 1,600 planted copies: the correlation of a copy was at least
0.9945 and that of other pairs at most 0.9888, but for two films of one patient (0.993). A copy in
which large parts became white by brightening is not found: container scans have a light background.
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
_CANDIDATES = 3  # pairs that one descriptor may propose
_DESCRIPTOR = 16  # side
_FLAT = 16.0  # length of a descriptor whose grey levels have a standard deviation of 1
_CHUNK = 4096  # images whose descriptors are made at once
_STEPS = 30  # of the alignment
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
    parts = range(0, len(pictures), _CHUNK)
    described = [descriptors(pictures[at : at + _CHUNK]) for at in parts]
    plain = np.concatenate([*described, np.zeros((0, _DESCRIPTOR**2), np.float32)])
    usable = np.flatnonzero(plain.any(axis=1))  # those of one grey level are all alike
    blocks = Blocks(plain[usable], seed)
    within = float(np.sqrt(2 - 2 * _PROPOSED))
    best: dict[int, tuple[float, int]] = {}
    for number, variant in enumerate(VARIANTS):
        for start in range(0, len(usable), _CHUNK):
            own = np.arange(start, min(start + _CHUNK, len(usable)))
            queries = descriptors(pictures[usable[own]], variant)
            rows, hits, distances = blocks.within(queries, own, within, _CANDIDATES)
            others, found = usable[own[rows]].tolist(), usable[hits].tolist()
            for other, copy, distance in zip(others, found, distances.tolist(), strict=True):
                pair = copy * len(pictures) + other
                if pair not in best or distance < best[pair][0]:
                    best[pair] = (distance, number)
    # Of the two directions of a pair, the nearer one is aligned.
    kept: dict[tuple[int, int], tuple[float, int, int, int]] = {}
    for pair, (distance, number) in sorted(best.items()):
        copy, other = divmod(pair, len(pictures))
        ends = (min(copy, other), max(copy, other))
        if ends not in kept or distance < kept[ends][0]:
            kept[ends] = (distance, copy, other, number)
    entries = [entry[1:] for entry in kept.values()]
    return np.array(entries, np.int64).reshape(-1, 3)


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
