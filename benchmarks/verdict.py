"""The end of a benchmark: print the measurements, and check its bars (acceptance thresholds)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

CORES = len(os.sched_getaffinity(0))
MACHINE = f"{CORES} cores, Python {sys.version.split()[0]}"


def show(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values of measurements, one per line."""
    for what, value in rows:
        print(f"{what:<58} {value}")


def check_bars(bars: Sequence[tuple[str, bool | None]], quick: bool = False) -> int:
    """Print each bar and whether it holds, and return the exit status.

    Args:
        bars: text of each bar, and whether it holds; None if it is for another size than measured.
        quick: too little was measured to decide, so nothing fails.

    Returns:
        1 if a bar does not hold, else 0.
    """
    for text, holds in bars:
        mark = "" if quick or holds is None else "holds" if holds else "FAILS"
        print(f"{mark:<6} {text}")
    if quick:
        print("quick: it works; too little was measured to decide")
        return 0
    checked = [holds for _, holds in bars if holds is not None]
    few = "" if len(checked) == len(bars) else " of those for this size"
    held = all(checked)
    print(f"all bars{few} hold" if held else f"a bar{few} does not hold")
    return 0 if held else 1
