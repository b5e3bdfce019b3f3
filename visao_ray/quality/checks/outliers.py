"""Images unlike all others: other subjects, other devices, damage."""

from __future__ import annotations

import numpy as np

from visao_ray.quality.check import Check, Found, percent, share
from visao_ray.quality.checks.sharpness import robust_distance
from visao_ray.quality.evidence import Evidence
from visao_ray.quality.neighbours import Blocks

#: Neighbours whose mean distance counts.
NEIGHBOURS = 10
#: Distance above the median of the logarithms, in robust standard deviations.
LIMIT = 5.0


def find_outliers(evidence: Evidence) -> Found:
    """Flag images whose nearest neighbours among the vectors are far away."""
    files, vectors = evidence.files, evidence.vectors
    assert vectors is not None
    total = len(vectors.contents)
    scores = np.ones(total, np.float32)
    flagged = np.zeros(total, bool)
    if total > NEIGHBOURS:
        distance = Blocks(vectors.values, evidence.seed).mean_distance(NEIGHBOURS)
        flagged = robust_distance(np.log(np.maximum(distance, 1e-6))) > LIMIT
        middle = float(np.median(distance))
        scores = np.minimum(1, middle / np.maximum(distance, 1e-6)).astype(np.float32)
    first = files.first[vectors.contents]
    order = np.argsort(scores, kind="stable")
    count = int(flagged.sum())
    return Found(
        evidence.of_files(vectors.contents, scores, 1.0),
        evidence.of_files(vectors.contents, flagged.astype(np.float32), 0.0) > 0,
        f"{count:,} of {total:,} images are unlike all others ({percent(count, total)})",
        {"all": {"outliers": share(count, total)}},
        rows=tuple(int(first[place]) for place in order[: max(count, 12)]),
        notes={
            int(first[place]): f"{1 / max(scores[place], 1e-6):.1f} times the median distance"
            + ("" if flagged[place] else ", not flagged")
            for place in order[: max(count, 12)]
        },
    )


OUTLIERS = Check(
    "outliers",
    "Images unlike all others",
    f"Images whose {NEIGHBOURS} nearest neighbours are far away: other subjects, other devices, "
    "rare findings. Some are the most valuable images of the base, so look before you drop one.",
    "vectors",
    find_outliers,
)
