"""What the terminal shows of a sweep: a live table, or a line as each trial ends.

Imported where Ray Tune runs; it imports Ray.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from visao_ray.reports.sweep import describe_head
from visao_ray.tuning.objective import Criterion
from visao_ray.tuning.trial_results import TrialResult, TrialResults

_SHOWN = 10


class Progress(tune.Callback):  # type: ignore[misc]
    """Prints how each trial ended and how far the sweep is.

    On a terminal, a table of the best trials and of the running ones is updated below the lines.
    If output goes to a file, only the lines are printed.
    """

    def __init__(
        self,
        start: str,
        criterion: Criterion,
        trials: int,
        trial_results: TrialResults,
        ended: Mapping[int, TrialResult],
    ) -> None:
        """Begin with the trials that have ended already.

        Args:
            start: of every line.
            criterion: the objective.
            trials: number of trials of the search.
            trial_results: where results are recorded.
            ended: trials that an earlier start of the run finished, by number.
        """
        self._start, self._criterion, self._trials = start, criterion, trials
        self._trial_results = trial_results
        self._latest: dict[int, dict[str, Any]] = {
            number: {**vars(result), "done": True} for number, result in ended.items()
        }
        self._live: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the terminal: Tune keeps a copy of this object in its snapshot."""
        return {**self.__dict__, "_live": None}

    def __enter__(self) -> Progress:
        """Open the table, on a terminal."""
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(self._table(), refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the table as it is."""
        if self._live is not None:
            self._live.stop()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show an epoch of a trial."""
        self._keep(trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show a trial that ended by itself, with success or with a reason."""
        self._keep(trial, trial.last_result)
        self._say(trial, self._end(trial.last_result))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show a trial whose process was lost; the searcher has decided whether it begins again."""
        number = trial.config["number"]
        ended = self._trial_results.read(number)
        if ended is None:
            self._latest.pop(number, None)
            text = "begins anew"
        else:  # it was given up, or had recorded its result before
            self._latest[number] = {**vars(ended), "done": True}
            text = self._end(vars(ended))
        self._say(trial, f"{text}; its process was lost: {_reason_of_loss(trial)}")

    def _end(self, result: Mapping[str, Any]) -> str:
        """How a trial ended, in words."""
        if result["status"] == "ok":
            value = f"{result['objective']:.4f} at epoch {result['epoch']} of {result['epochs']}"
            text = f"{self._criterion.name} {value}"
            text += ", halved" if result["ended"] == "halving" else ""
        else:
            text = f"failed: {result['error']}"
        return f"{text} ({result['seconds']:.1f} s)"

    def _keep(self, trial: Any, result: dict[str, Any]) -> None:
        self._latest[result["number"]] = {**result, "head": trial.config["head"]}
        if self._live is not None:
            self._live.update(self._table())

    def _say(self, trial: Any, text: str) -> None:
        number, searched = trial.config["number"], range(self._trials)
        if number in searched:
            ended = [
                result for one, result in self._latest.items() if one in searched and result["done"]
            ]
            best = math.nan
            for result in ended:
                if result["status"] == "ok" and self._criterion.better(result["objective"], best):
                    best = result["objective"]
            place = f"{len(ended)}/{self._trials} trial {number}"
            text += "" if math.isnan(best) else f"; best so far {best:.4f}"
        else:  # a further trial of a finalist
            place = f"trial {number}, a variant of {trial.config['seed_of']}"
        line = f"{self._start}{place}: {text}"
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(title=f"{self._start.strip()} {self._criterion.name} on val")
        for name in ("trial", "epoch", self._criterion.name, "loss", "head"):
            table.add_column(name)
        sign = 1 if self._criterion.lower_is_better else -1

        def place(item: tuple[int, dict[str, Any]]) -> tuple[bool, float]:
            result = item[1]
            value = result.get("objective", math.nan)
            return bool(result["done"]), sign * value if value == value else math.inf

        for number, result in sorted(self._latest.items(), key=place)[:_SHOWN]:
            if result["status"] != "ok":
                continue
            table.add_row(
                f"{number}" if result["done"] else f"[bold]{number} …[/bold]",
                f"{result['epochs']}",
                f"{result['objective']:.4f}",
                f"{result['train_loss']:.4f}" if "train_loss" in result else "",
                describe_head(result["head"]),
            )
        return table


def _reason_of_loss(trial: Any) -> str:
    """Why a trial's process ended, as Tune wrote it on this machine."""
    lines = []
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in Path(trial.error_file).read_text().splitlines()]
    return next((line[:300] for line in reversed(lines) if line), "the reason is unknown")
