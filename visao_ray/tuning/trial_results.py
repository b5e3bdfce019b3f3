"""Results of trials: each trial records its own result once; the driver turns them into tables."""

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
    """One epoch of a trial: mean optimised train loss, val log loss, val objective."""

    epoch: int
    train_loss: float
    val_loss: float
    val_objective: float


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial.

    Attributes:
        number: of the trial, in the order of the search.
        trial_id: of Tune.
        head: settings of the head, as JSON.
        status: ok or error.
        ended: why it ended: epochs, patience, halving, or fitted (kinds without epochs).
        error: why it failed, in one line; empty if it succeeded.
        trace: the traceback of the error.
        epoch: the best epoch, from 1; 0 if there was none.
        epochs: number of epochs that were run.
        seconds: of work, without waiting.
        objective: of the best epoch, as measured during training; mean over folds.
        folds: objective of each fold at that epoch; empty without folds.
        metrics: every metric with the weights of the best epoch.
        history: every epoch.
        curve: threshold, recall and precision of the positive class, if requested.
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
    """A folder with `NUMBER.json` of each trial, and `NUMBER.keras` of each that succeeded.

    Attributes:
        folder: where the files are.
    """

    folder: Location

    def write(self, result: TrialResult, head: bytes = b"") -> None:
        """Record a trial. The head is written first, so that a recorded trial has its head."""
        if head:
            self.head(result.number).write_bytes(head)
        self._record(result.number).write_bytes(json.dumps(asdict(result)).encode())

    def read(self, number: int) -> TrialResult | None:
        """Return the result of a trial, or None if it has not ended."""
        record = self._record(number)
        if not record.exists():
            return None
        values = json.loads(record.read_bytes())
        return TrialResult(**{**values, "history": [Epoch(**epoch) for epoch in values["history"]]})

    def read_all(self) -> dict[int, TrialResult]:
        """Return the results of all trials that have ended, by number."""
        names = (entry.name for entry in self.folder.children())
        numbers = sorted(int(name[:-5]) for name in names if re.fullmatch(r"\d+\.json", name))
        return {number: found for number in numbers if (found := self.read(number))}

    def head(self, number: int) -> Location:
        """Location of the head of a trial."""
        return self.folder.join(f"{number:05d}.keras")

    def _record(self, number: int) -> Location:
        return self.folder.join(f"{number:05d}.json")


_TYPES = {str: pa.string(), bool: pa.bool_(), int: pa.int32(), float: pa.float64()}


def _setting_type(name: str, value: Any) -> pa.DataType:
    return pa.int32() if name == "views" else _TYPES.get(type(value), pa.string())


#: One row per epoch of a trial, for learning curves.
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

#: One row per threshold of a finalist that was trained with a class weight.
CLASS_WEIGHT_CURVES = named_schema(
    "class_weight_curves",
    [
        ("number", pa.int32()),
        ("factor", pa.float64()),
        ("threshold", pa.float64()),
        ("recall", pa.float64()),
        ("precision", pa.float64()),
    ],
)


def trials_schema() -> pa.Schema:
    """Schema of `trials`: one row per trial, its settings and its val metrics at its best epoch."""
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
    """Schema of `refits`: one row per head that was fitted on all rows after a search on a sample.

    The columns are those of `trials`, with figures of all rows; `refit_of` is the number of the
    trial of the search.
    """
    trial = trials_schema()
    fields = [("refit_of", pa.int32()), *zip(trial.names, trial.types, strict=True)]
    return named_schema("refits", fields)


def trials_table(results: Sequence[TrialResult]) -> pa.Table:
    """Return the trials as a table; undefined metrics are null, class weights read `nvazio=3`."""
    return pa.Table.from_pylist([_row(result) for result in results], schema=trials_schema())


def refits_table(refits: Mapping[int, TrialResult]) -> pa.Table:
    """Return the refitted heads as a table, given by number of the trial of the search."""
    rows = [{"refit_of": number, **_row(result)} for number, result in refits.items()]
    return pa.Table.from_pylist(rows, schema=refits_schema())


def _row(result: TrialResult) -> dict[str, Any]:
    return {
        "trial_id": result.trial_id,
        "number": result.number,
        **{f"setting.{name}": flat(value) for name, value in result.head.items()},
        **{f"metric.{name}": _number(value) for name, value in result.metrics.items()},
        "objective": _number(result.objective),
        "folds": result.folds or None,
        "epoch": result.epoch,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "ended": result.ended or None,
        "status": result.status,
        "error": result.error or None,
    }


def history_table(results: Sequence[TrialResult]) -> pa.Table:
    """Return every epoch of every trial as a table."""
    rows = [
        {"number": result.number, **{k: _number(v) for k, v in asdict(epoch).items()}}
        for result in results
        for epoch in result.history
    ]
    return pa.Table.from_pylist(rows, schema=HISTORY)


def class_weight_curves_table(curves: Sequence[tuple[int, float, TrialResult]]) -> pa.Table:
    """Return curves as a table, given as (number of the finalist, class weight, result)."""
    rows = [
        {"number": number, "factor": factor, "threshold": t, "recall": recall, "precision": p}
        for number, factor, result in curves
        for t, recall, p in zip(*result.curve.values(), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=CLASS_WEIGHT_CURVES)


def flat(value: Any) -> Any:
    """Convert a setting to a table cell."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={weight:g}" for name, weight in sorted(value.items()))
    return value


def _number(value: float) -> float | None:
    return None if value != value else value
