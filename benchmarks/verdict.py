"""How a benchmark ends: a table of what was measured, and whether its bars hold."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

CORES = len(os.sched_getaffinity(0))
MACHINE = f"{CORES} cores, Python {sys.version.split()[0]}"


def show(rows: Sequence[tuple[str, str]]) -> None:
    """Print what was measured and its value, a line each."""
    for what, value in rows:
        print(f"{what:<58} {value}")


def judge(bars: Sequence[tuple[str, bool]], quick: bool = False) -> int:
    """Print each bar and whether it holds; returns the exit status.

    Args:
        quick: too little was measured to judge, so nothing fails.
    """
    for told, holds in bars:
        mark = "" if quick else "holds" if holds else "FAILS"
        print(f"{mark:<6} {told}")
    if quick:
        print("quick: it works; too little was measured to judge")
        return 0
    held = all(holds for _, holds in bars)
    print("all bars hold" if held else "a bar does not hold")
    return 0 if held else 1
