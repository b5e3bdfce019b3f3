"""Images of val or test that are also, or almost, in train."""

from __future__ import annotations

import numpy as np

from visao_ray.datasets.spec import SPLITS
from visao_ray.quality.check import MOST_PAIRS, Check, Flags, Found, Pair, percent, share
from visao_ray.quality.evidence import Evidence, Relation
from visao_ray.quality.files import Codes, Column


def find_leaks(evidence: Evidence) -> Found:
    """Flag val and test files that are related to a file of a split before theirs.

    Splits are those that folders and labels name, and those that the store decided: it puts all
    files of a content into one split, but whoever copied train into test should know.
    """
    files = evidence.files
    columns = (files.named, files.split)
    named, decided = files.named.among(SPLITS), files.split.among(SPLITS)
    judged = np.where(named >= 0, named, decided)
    flags = np.zeros(len(files), bool)
    pairs: list[Pair] = []
    by_reason = {}
    for relation in evidence.relations:
        found = np.zeros(len(files), bool)
        for column in columns:
            leaking, partner = _across(relation, column)
            new = leaking & ~found
            found |= leaking
            pairs += _pairs(new & ~flags, partner, relation, column, MOST_PAIRS - len(pairs))
        by_reason[relation.name] = int(found.sum())
        flags |= found
    metrics, parts = {}, []
    for place, split in enumerate(SPLITS[1:], start=1):
        of = judged == place
        count, total = int((flags & of).sum()), int(of.sum())
        if total:
            metrics[split] = {"leak": share(count, total)}
            if count:
                parts.append(f"{count:,} of {total:,} {split} files ({percent(count, total)})")
    reasons = ", ".join(f"{count:,} {name}" for name, count in by_reason.items() if count)
    summary = (
        f"{' and '.join(parts)} are also in an earlier split: {reasons}"
        if parts
        else (
            "no val or test file is also in train"
            if evidence.near is not None
            else "no val or test file is also in train (near copies were not looked for)"
        )
    )
    return Found((~flags).astype(np.float32), flags, summary, metrics, tuple(pairs))


def _across(relation: Relation, column: Column) -> tuple[Flags, Codes]:
    """Compare the splits of related files.

    Returns:
        Whether each file is in val or test and related to a file of an earlier split, bool[N]; and
        the row of such a file, int32[N].
    """
    side = column.among(SPLITS)
    count = len(side)
    earliest = np.full(int(relation.sets.max(initial=-1)) + 1, len(SPLITS), np.int32)
    example = np.zeros(len(earliest), np.int32)
    related = (relation.sets >= 0) & (side >= 0)
    rows = np.flatnonzero(related)
    rows = rows[np.argsort(-side[rows], kind="stable")]  # so that the earliest split is last
    earliest[relation.sets[rows]] = side[rows]
    example[relation.sets[rows]] = rows
    leaking = np.zeros(count, bool)
    leaking[related] = earliest[relation.sets[related]] < side[related]
    partner = np.zeros(count, np.int32)
    partner[related] = example[relation.sets[related]]
    return leaking, partner


def _pairs(
    chosen: Flags, partner: Codes, relation: Relation, column: Column, most: int
) -> list[Pair]:
    rows = np.flatnonzero(chosen)[: max(most, 0)]
    return [
        Pair(
            int(row),
            int(partner[row]),
            f"{relation.name}: {column.text(row)} and {column.text(partner[row])}",
        )
        for row in rows
    ]


LEAK = Check(
    "leak",
    "Leaks between splits",
    "Images of val or test that are also in train: as the same file, as a copy that was changed a "
    "little, or as another image of the same patient or container. Metrics on them are too good.",
    "nothing",
    find_leaks,
)
