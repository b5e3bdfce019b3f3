"""Blurred images."""

from __future__ import annotations

import numpy as np

from visao_ray.quality.check import Check, Found, percent, share
from visao_ray.quality.evidence import Evidence

#: Distance below the median of the logarithms, in robust standard deviations.
LIMIT = 5.0


def find_blurred(evidence: Evidence) -> Found:
    """Flag images whose sharpness is far below that of the others."""
    files, pictures = evidence.files, evidence.pictures
    assert pictures is not None
    level = np.log(np.maximum(pictures.sharpness, 1e-3))
    flagged = np.zeros(len(level), bool)
    scores = np.ones(len(level), np.float32)
    if len(level):
        low = robust_distance(-level)
        flagged = low > LIMIT
        scores = (1 / (1 + np.clip(low, 0, None) / LIMIT)).astype(np.float32)
    first = files.first[pictures.contents]
    order = np.argsort(scores, kind="stable")
    count, total = int(flagged.sum()), len(flagged)
    return Found(
        evidence.of_files(pictures.contents, scores, 1.0),
        evidence.of_files(pictures.contents, flagged.astype(np.float32), 0.0) > 0,
        f"{count:,} of {total:,} images are blurred ({percent(count, total)})",
        {"all": {"sharpness": share(count, total)}},
        rows=tuple(int(first[place]) for place in order[:count]),
        notes={
            int(first[place]): f"sharpness {pictures.sharpness[place]:.2g}, median "
            f"{np.median(pictures.sharpness):.2g}"
            for place in order[:count]
        },
    )


def robust_distance(values: np.ndarray) -> np.ndarray:
    """Return the distance of each value from the median, float[N], in robust standard deviations.

    The robust standard deviation is 1.4826 times the median absolute deviation, the standard
    deviation of normal values; at least 0.05, so that values that hardly differ are not far apart.
    """
    centre = np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(values - centre))), 0.05)
    return np.asarray((values - centre) / spread)


SHARPNESS = Check(
    "sharpness",
    "Blurred images",
    "Images with far less detail than the others: moved, out of focus, or enlarged from a small "
    "copy.",
    "pictures",
    find_blurred,
)
