"""Images that are almost black, almost white, or of one grey level."""

from __future__ import annotations

import numpy as np

from visao_ray.quality.check import Check, Found, percent, share
from visao_ray.quality.evidence import Evidence

#: An image is dark if 95 % of it are below this grey level ...
DARK = 40.0
#: ... bright if 95 % of it are above this one ...
BRIGHT = 250.0
#: ... and blank if 90 % of it are within so many grey levels.
BLANK = 8.0


def find_exposure(evidence: Evidence) -> Found:
    """Flag dark, bright and blank images by the grey levels of their small copies."""
    files, pictures = evidence.files, evidence.pictures
    assert pictures is not None
    dark, bright = pictures.high < DARK, pictures.low > BRIGHT
    blank = pictures.high - pictures.low < BLANK
    flagged = dark | bright | blank
    spread = np.clip((pictures.high - pictures.low) / 255, 0, 1)
    scores = evidence.of_files(pictures.contents, spread.astype(np.float32), 1.0)
    flags = evidence.of_files(pictures.contents, flagged.astype(np.float32), 0.0) > 0
    kinds = np.select([blank, dark, bright], ["blank", "dark", "bright"], "")
    first = files.first[pictures.contents]
    notes = {int(first[place]): str(kinds[place]) for place in np.flatnonzero(flagged)}
    listed = ", ".join(
        f"{int((kinds == kind).sum()):,} {kind}"
        for kind in ("dark", "bright", "blank")
        if (kinds == kind).any()
    )
    count, total = int(flagged.sum()), len(flagged)
    return Found(
        scores,
        flags,
        f"{count:,} of {total:,} images are dark, bright or blank ({percent(count, total)})"
        + (f": {listed}" if listed else ""),
        {"all": {"exposure": share(count, total)}},
        rows=tuple(notes),
        notes=notes,
    )


EXPOSURE = Check(
    "exposure",
    "Dark, bright and blank images",
    "Images without a picture: the exposure failed, the beam was off, or the film is blank.",
    "pictures",
    find_exposure,
)
