"""Identical files under several names."""

from __future__ import annotations

import numpy as np

from visao_ray.quality.check import MOST_PAIRS, Check, Found, Pair, percent, share
from visao_ray.quality.evidence import Evidence


def find_duplicates(evidence: Evidence) -> Found:
    """Flag all files whose bytes another file has too."""
    files = evidence.files
    sizes = np.bincount(files.content[files.usable], minlength=len(files.contents))
    flags = np.zeros(len(files), bool)
    flags[files.usable] = sizes[files.content[files.usable]] > 1
    sets = np.flatnonzero(sizes > 1)
    first = files.first[sets]
    pairs = tuple(
        Pair(int(row), int(row) + 1, f"{sizes[content]} identical files")
        for content, row in zip(sets[:MOST_PAIRS], first[:MOST_PAIRS], strict=True)
    )
    count = int(flags.sum())
    return Found(
        scores=(~flags).astype(np.float32),
        flags=flags,
        summary=f"{len(sets):,} sets of identical files, {count:,} files in all "
        f"({percent(count, len(files))})",
        metrics={"all": {"duplicates": share(count, len(files)) | {"sets": len(sets)}}},
        pairs=pairs,
    )


DUPLICATES = Check(
    "duplicates",
    "Identical files",
    "Files with the same bytes. The store counts each content once, so they do not bias a model; "
    "they show where a base was put together from copies.",
    "nothing",
    find_duplicates,
)
