"""Copies of images with other bytes."""

from __future__ import annotations

import numpy as np

from visao_ray.quality.check import MOST_PAIRS, Check, Found, Pair, percent, share
from visao_ray.quality.evidence import Evidence


def find_near_duplicates(evidence: Evidence) -> Found:
    """Flag files whose picture another file with other bytes shows too."""
    files, near = evidence.files, evidence.near
    assert near is not None
    similarity = np.zeros(len(files.contents), np.float32)
    np.maximum.at(similarity, near.first, near.similarity)
    np.maximum.at(similarity, near.second, near.similarity)
    of_files = evidence.of_files(np.arange(len(files.contents)), similarity, 0.0)
    flags = of_files > 0
    first = files.first
    pairs = tuple(
        Pair(
            int(first[one]),
            int(first[other]),
            "mirrored" if mirrored else "not mirrored",
            float(value),
        )
        for one, other, value, mirrored in zip(
            near.first[:MOST_PAIRS].tolist(),
            near.second[:MOST_PAIRS].tolist(),
            near.similarity[:MOST_PAIRS],
            near.mirrored[:MOST_PAIRS].tolist(),
            strict=True,
        )
    )
    count, usable = int(flags.sum()), int(files.usable.sum())
    return Found(
        scores=np.where(flags, 1 - of_files, 1).astype(np.float32),
        flags=flags,
        summary=f"{len(near):,} pairs of near copies, {count:,} files in all "
        f"({percent(count, usable)})",
        metrics={"all": {"near_duplicates": share(count, usable) | {"pairs": len(near)}}},
        pairs=pairs,
    )


NEAR_DUPLICATES = Check(
    "near_duplicates",
    "Near copies",
    "Pictures that are the same but for a little: saved again, resized, cropped by up to a tenth, "
    "brighter or darker, mirrored. Across splits they are leaks; with two labels, one is wrong.",
    "pictures",
    find_near_duplicates,
)
