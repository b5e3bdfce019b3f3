"""Classes with few images, overall and in each split."""

from __future__ import annotations

import numpy as np

from visao_ray.datasets.spec import SPLITS
from visao_ray.quality.check import Check, Found, share
from visao_ray.quality.evidence import Evidence

#: A class is rare below this share of what it would have if all classes were equally frequent.
RARE = 0.1
_LISTED = 20


def find_imbalance(evidence: Evidence) -> Found:
    """Flag the files of rare classes."""
    files = evidence.files
    counted = files.usable & (files.label.codes >= 0)
    codes = files.label.codes[counted]
    names = files.label.names
    counts = np.bincount(codes, minlength=len(names))
    total = int(counts.sum())
    shares = counts / max(total, 1)
    rare = (counts > 0) & (shares < RARE / max(len(names), 1))
    flags = np.zeros(len(files), bool)
    flags[counted] = rare[codes]
    scores = np.ones(len(files), np.float32)
    if total:
        scores[counted] = (shares / shares.max())[codes]
    side = files.split.among(SPLITS)[counted]
    by_split = {
        split: np.bincount(codes[side == place], minlength=len(names))
        for place, split in enumerate(SPLITS)
    }
    order = np.argsort(counts, kind="stable")
    lines = tuple(
        (names[one], *(f"{by_split[split][one]:,}" for split in SPLITS), f"{counts[one]:,}",
         f"{100 * shares[one]:.3g} %")
        for one in order[:_LISTED]
    )  # fmt: skip
    least, most = (counts[order[0]], counts[order[-1]]) if total else (0, 0)
    text = "no labelled files"
    if total:
        text = (
            f"{int(rare.sum()):,} of {len(names):,} classes are rare; the smallest, "
            f"{names[order[0]]}, has {least:,} files, the largest, {names[order[-1]]}, {most:,}"
        )
    return Found(
        scores=scores,
        flags=flags,
        summary=text,
        metrics={"all": {"imbalance": share(int(flags.sum()), total)}},
        rows=(),
        table=(("class", *SPLITS, "all", "share"), lines),
    )


IMBALANCE = Check(
    "imbalance",
    "Rare classes",
    f"Classes with less than {RARE:.0%} of the files that they would have if all were equally "
    "frequent. A model that ignores them can still have a high accuracy.",
    "nothing",
    find_imbalance,
)
