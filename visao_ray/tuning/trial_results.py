"""What became of each trial: recorded by the trial itself, once, and read back as tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from visao_ray.core.storage import Location
from visao_ray.core.tables import named_schema
from visao_ray.evaluation.metrics import METRICS
from visao_ray.models.head import HeadSettings


@dataclass(frozen=True)
class Epoch:
    """One epoch of a trial: mean train loss as optimised, val log loss, val objective."""

    epoch: int
    train_loss: float
    val_loss: float
    val_objective: float


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    Attributes:
        number: its place in the order of the search.
        trial_id: Tune's name for it.
        head: its settings, as JSON.
        status: ok or error.
        ended: what ended it: epochs, patience, halving, or fitted (kinds without epochs).
        error: why it failed, in one line; empty where it did not. `trace` has all of it.
        epoch: the best one, from 1; 0 if there was none.
        epochs: run in all.
        seconds: of work, waiting not counted.
        objective: of the best epoch, as it was measured during training; mean over folds.
        folds: objective of each fold at that epoch; empty without folds.
        metrics: every metric of the best epoch's weights.
        history: every epoch.
        curve: recall and precision of the positive class as the threshold moves, where asked for.
    """

    number: int
    trial_id: str
    head: dict[str, Any]
    status: str
    ended: str = ""
    error: str = ""
    trace: str = ""
    epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    objective: float = float("nan")
    folds: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)
    curve: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialResults:
    """A folder with `NUMBER.json` and, where the trial succeeded, `NUMBER.keras`."""

    folder: Location

    def write(self, outcome: TrialResult, head: bytes = b"") -> None:
        """Record a trial: the head first, so that a recorded trial has one."""
        if head:
            self.head(outcome.number).write_bytes(head)
        self._record(outcome.number).write_bytes(json.dumps(asdict(outcome)).encode())

    def read(self, number: int) -> TrialResult | None:
        """How a trial ended, if it has."""
        record = self._record(number)
        if not record.exists():
            return None
        told = json.loads(record.read_bytes())
        return TrialResult(**{**told, "history": [Epoch(**epoch) for epoch in told["history"]]})

    def read_all(self) -> dict[int, TrialResult]:
        """Every trial that has ended, by number."""
        names = (entry.name for entry in self.folder.children())
        numbers = sorted(int(name[:-5]) for name in names if re.fullmatch(r"\d+\.json", name))
        return {number: found for number in numbers if (found := self.read(number))}

    def head(self, number: int) -> Location:
        """Where a trial's head is."""
        return self.folder.join(f"{number:05d}.keras")

    def _record(self, number: int) -> Location:
        return self.folder.join(f"{number:05d}.json")


_TYPES = {str: pa.string(), bool: pa.bool_(), int: pa.int32(), float: pa.float64()}


def _setting_type(name: str, value: Any) -> pa.DataType:
    return pa.int32() if name == "views" else _TYPES.get(type(value), pa.string())


#: One row an epoch of a trial, for learning curves.
HISTORY = named_schema(
    "history",
    [
        ("number", pa.int32()),
        ("epoch", pa.int32()),
        ("train_loss", pa.float64()),
        ("val_loss", pa.float64()),
        ("val_objective", pa.float64()),
    ],
)

#: One row a threshold of a finalist trained with a class weight: both levers of recall.
LEVERS = named_schema(
    "levers",
    [
        ("number", pa.int32()),
        ("factor", pa.float64()),
        ("threshold", pa.float64()),
        ("recall", pa.float64()),
        ("precision", pa.float64()),
    ],
)


def trials_schema() -> pa.Schema:
    """One row a trial: its settings, and its metrics on val at its best epoch."""
    settings = [
        (f"setting.{name}", _setting_type(name, value))
        for name, value in HeadSettings().model_dump().items()
    ]
    return named_schema(
        "trials",
        [
            ("trial_id", pa.string()),
            ("number", pa.int32()),
            *settings,
            *((f"metric.{name}", pa.float64()) for name in METRICS),
            ("objective", pa.float64()),
            ("folds", pa.list_(pa.float64())),
            ("epoch", pa.int32()),
            ("epochs", pa.int32()),
            ("seconds", pa.float64()),
            ("ended", pa.string()),
            ("status", pa.string()),
            ("error", pa.string()),
        ],
    )


def refits_schema() -> pa.Schema:
    """One row a head that was fitted anew on all rows after a search on a sample: as a trial's.

    All its figures are of all rows; `refit_of` is the number of the trial of the search.
    """
    trial = trials_schema()
    fields = [("refit_of", pa.int32()), *zip(trial.names, trial.types, strict=True)]
    return named_schema("refits", fields)


def trials_table(outcomes: Sequence[TrialResult]) -> pa.Table:
    """The trials as a table; undefined metrics are null, class weights read `nvazio=3`."""
    return pa.Table.from_pylist([_row(outcome) for outcome in outcomes], schema=trials_schema())


def refits_table(refits: Mapping[int, TrialResult]) -> pa.Table:
    """The heads that were fitted anew, by number of the trial of the search."""
    rows = [{"refit_of": number, **_row(outcome)} for number, outcome in refits.items()]
    return pa.Table.from_pylist(rows, schema=refits_schema())


def _row(outcome: TrialResult) -> dict[str, Any]:
    return {
        "trial_id": outcome.trial_id,
        "number": outcome.number,
        **{f"setting.{name}": flat(value) for name, value in outcome.head.items()},
        **{f"metric.{name}": _number(value) for name, value in outcome.metrics.items()},
        "objective": _number(outcome.objective),
        "folds": outcome.folds or None,
        "epoch": outcome.epoch,
        "epochs": outcome.epochs,
        "seconds": outcome.seconds,
        "ended": outcome.ended or None,
        "status": outcome.status,
        "error": outcome.error or None,
    }


def history_table(outcomes: Sequence[TrialResult]) -> pa.Table:
    """Every epoch of every trial."""
    rows = [
        {"number": outcome.number, **{k: _number(v) for k, v in asdict(epoch).items()}}
        for outcome in outcomes
        for epoch in outcome.history
    ]
    return pa.Table.from_pylist(rows, schema=HISTORY)


def levers_table(curves: Sequence[tuple[int, float, TrialResult]]) -> pa.Table:
    """The curves of (finalist, factor, how it was trained with that factor)."""
    rows = [
        {"number": number, "factor": factor, "threshold": t, "recall": recall, "precision": p}
        for number, factor, outcome in curves
        for t, recall, p in zip(*outcome.curve.values(), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=LEVERS)


def flat(value: Any) -> Any:
    """A setting as a table cell."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={weight:g}" for name, weight in sorted(value.items()))
    return value


def _number(value: float) -> float | None:
    return None if value != value else value
