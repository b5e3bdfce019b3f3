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


def judge(bars: Sequence[tuple[str, bool | None]], quick: bool = False) -> int:
    """Print each bar and whether it holds; returns the exit status.

    Args:
        bars: what each says, and whether it holds; None: it is for another size than was measured.
        quick: too little was measured to judge, so nothing fails.
    """
    for told, holds in bars:
        mark = "" if quick or holds is None else "holds" if holds else "FAILS"
        print(f"{mark:<6} {told}")
    if quick:
        print("quick: it works; too little was measured to judge")
        return 0
    judged = [holds for _, holds in bars if holds is not None]
    few = "" if len(judged) == len(bars) else " of those for this size"
    held = all(judged)
    print(f"all bars{few} hold" if held else f"a bar{few} does not hold")
    return 0 if held else 1
