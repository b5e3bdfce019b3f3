"""What a check is: it looks for one kind of problem and gives a score and a flag per file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.quality.evidence import Evidence

Flags = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float32]

#: Pairs that a check lists at most; counts and flags are of all.
MOST_PAIRS = 100_000


@dataclass(frozen=True)
class Pair:
    """Two files to look at side by side.

    Attributes:
        first: row of a file.
        second: row of the other file.
        note: what connects or divides them, for a person.
        similarity: similarity of the pictures after alignment, 0 to 1; None if not compared.
    """

    first: int
    second: int
    note: str
    similarity: float | None = None


@dataclass(frozen=True)
class Found:
    """What a check found.

    Attributes:
        scores: float32[N], 0 to 1 for each file; the lower, the worse.
        flags: bool[N], whether each file has the problem.
        summary: one sentence with the counts.
        metrics: figures of the dataset by split (`all` for the whole) and name, each with `value`
            and `n`, and `low` and `high` where it is an estimate.
        pairs: pairs to look at, the clearest first.
        rows: files to look at, the worst first; None: the flagged ones with the lowest scores.
        notes: what to say of a file of `rows`, by row.
        table: header and lines of a small table, if one helps.
    """

    scores: Scores
    flags: Flags
    summary: str
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    rows: tuple[int, ...] | None = None
    notes: dict[int, str] = field(default_factory=dict)
    table: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] | None = None

    @property
    def count(self) -> int:
        """Number of flagged files."""
        return int(self.flags.sum())

    def worst(self, most: int) -> list[int]:
        """Return the rows of files to look at, at most `most`."""
        if self.rows is not None:
            return list(self.rows[:most])
        flagged = np.flatnonzero(self.flags)
        order = np.argsort(self.scores[flagged], kind="stable")
        return [int(row) for row in flagged[order[:most]]]


@dataclass(frozen=True)
class Check:
    """A kind of problem that an audit looks for.

    Attributes:
        name: name in tables, `--fail-on` and `result.json`.
        title: title in the report.
        explanation: what the check looks for and what to do about it, one or two sentences.
        needs: what it needs besides the table of files: `nothing`, `pictures` or `vectors`.
        run: the check.
    """

    name: str
    title: str
    explanation: str
    needs: str
    run: Callable[[Evidence], Found]


def share(count: int, of: int) -> dict[str, Any]:
    """Return a counted share as a figure of result.json: all files were counted, no interval."""
    return {"value": count / of if of else 0.0, "n": of}


def percent(count: int, of: int) -> str:
    """Return a share as text, such as `1.2 %`."""
    value = 100 * count / of if of else 0.0
    if value in (0, 100) or 10 <= value < 99:
        return f"{value:.0f} %"
    return f"{min(value, 99.9):.1f} %" if value >= 99 else f"{value:.2g} %"
