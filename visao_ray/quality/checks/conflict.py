"""Copies of one image with different labels."""

from __future__ import annotations

import numpy as np

from visao_ray.quality.check import MOST_PAIRS, Check, Found, Pair, percent, share
from visao_ray.quality.evidence import GROUP, Evidence


def find_conflicts(evidence: Evidence) -> Found:
    """Flag files that are copies of each other and have different labels."""
    files = evidence.files
    labels = files.label.codes
    flags = np.zeros(len(files), bool)
    pairs: list[Pair] = []
    for relation in evidence.relations:
        if relation.name == GROUP:
            continue
        rows = np.flatnonzero((relation.sets >= 0) & (labels >= 0))
        rows = rows[np.argsort(relation.sets[rows], kind="stable")]
        sets = relation.sets[rows]
        first = np.flatnonzero(np.diff(sets, prepend=-1) != 0)
        if not len(first):
            continue
        most = np.maximum.reduceat(labels[rows], first)
        least = np.minimum.reduceat(labels[rows], first)
        for start, end, differ in zip(
            first, [*first[1:], len(rows)], (most != least).tolist(), strict=True
        ):
            if not differ:
                continue
            members = rows[start:end]
            fresh = not flags[members].all()
            flags[members] = True
            if fresh and len(pairs) < MOST_PAIRS:
                one = int(members[0])
                other = int(members[np.flatnonzero(labels[members] != labels[one])[0]])
                note = f"{relation.name}: {files.label.text(one)} and {files.label.text(other)}"
                pairs.append(Pair(one, other, note))
    count, labelled = int(flags.sum()), int((labels >= 0).sum())
    summary = "no two copies of an image have different labels"
    if count:
        summary = (
            f"{count:,} of {labelled:,} labelled files are copies of a file with another label "
            f"({percent(count, labelled)})"
        )
    return Found(
        scores=(~flags).astype(np.float32),
        flags=flags,
        summary=summary,
        metrics={"all": {"conflict": share(count, labelled)}},
        pairs=tuple(pairs),
    )


CONFLICT = Check(
    "conflict",
    "Copies with different labels",
    "One image, two labels: at least one is wrong. Training leaves identical files with different "
    "labels out; a verdict on one of them decides.",
    "nothing",
    find_conflicts,
)
