"""Images of unusual width, height or shape."""

from __future__ import annotations

import numpy as np

from visao_ray.quality.check import Check, Found, percent, share
from visao_ray.quality.evidence import Evidence

#: An image is unusual if its side (the root of its area) differs from the median by this factor ...
SIDE_FACTOR = 4.0
#: ... or its width divided by its height by this one.
SHAPE_FACTOR = 3.0


def find_odd_sizes(evidence: Evidence) -> Found:
    """Flag images whose size or shape differs from that of the others by a factor."""
    files = evidence.files
    known = files.usable & (files.size > 0).all(axis=1)
    width, height = files.size[known].astype(float).T
    scores = np.ones(len(files), np.float32)
    flags = np.zeros(len(files), bool)
    notes: dict[int, str] = {}
    text = "no image has a known size"
    if known.any():
        side, shape = np.log(np.sqrt(width * height)), np.log(width / height)
        by_side = np.abs(side - np.median(side)) / np.log(SIDE_FACTOR)
        by_shape = np.abs(shape - np.median(shape)) / np.log(SHAPE_FACTOR)
        worst = np.maximum(by_side, by_shape)
        scores[known] = 1 / (1 + worst)
        flags[known] = worst > 1
        notes = {
            int(row): f"{files.size[row, 0]} × {files.size[row, 1]}"
            for row in np.flatnonzero(flags)
        }
        count = len(notes)
        text = (
            f"{count:,} of {int(known.sum()):,} images have an unusual size "
            f"({percent(count, int(known.sum()))}); the median is {np.median(width):.0f} × "
            f"{np.median(height):.0f} pixels"
        )
    return Found(
        scores,
        flags,
        text,
        {"all": {"size": share(int(flags.sum()), int(known.sum()))}},
        notes=notes,
    )


SIZE = Check(
    "size",
    "Unusual sizes",
    f"Images more than {SIDE_FACTOR:g} times larger or smaller than the median, or more than "
    f"{SHAPE_FACTOR:g} times wider or higher: thumbnails, screenshots, other devices.",
    "nothing",
    find_odd_sizes,
)
