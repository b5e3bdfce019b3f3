"""Files that cannot be used."""

from __future__ import annotations

from collections import Counter

import numpy as np

from visao_ray.quality.check import Check, Found, percent, share
from visao_ray.quality.evidence import Evidence


def find_errors(evidence: Evidence) -> Found:
    """Flag files that could not be fetched or decoded."""
    files = evidence.files
    flags = ~files.usable
    rows = np.flatnonzero(flags).tolist()
    notes = {row: str(files.errors[row].as_py() or files.status.text(row)) for row in rows}
    reasons = Counter(note.split(":", 1)[0] for note in notes.values())
    listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    count = len(rows)
    return Found(
        scores=(~flags).astype(np.float32),
        flags=flags,
        summary=f"{count:,} of {len(files):,} files cannot be used ({percent(count, len(files))})"
        + (f": {listed}" if listed else ""),
        metrics={"all": {"errors": share(count, len(files))}},
        notes=notes,
    )


ERRORS = Check(
    "errors",
    "Files that cannot be used",
    "Damaged files, other formats, and files that could not be fetched. No model sees them.",
    "nothing",
    find_errors,
)
