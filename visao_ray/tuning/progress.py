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

from visao_ray.reports.sweep import in_words
from visao_ray.tuning.objective import Criterion
from visao_ray.tuning.trial_results import TrialResult, TrialResults

_SHOWN = 10


class Progress(tune.Callback):  # type: ignore[misc]
    """Tells how each trial ended and how far the sweep is.

    On a terminal, a table of the best trials and of those that run is kept up to date below the
    lines; where output goes to a file, lines are all there is.
    """

    def __init__(
        self,
        start: str,
        criterion: Criterion,
        trials: int,
        outcomes: TrialResults,
        ended: Mapping[int, TrialResult],
    ) -> None:
        """`start`: of every line; `ended`: trials that an earlier start of the run finished."""
        self._start, self._criterion, self._trials = start, criterion, trials
        self._outcomes = outcomes
        self._told: dict[int, dict[str, Any]] = {
            number: {**vars(outcome), "done": True} for number, outcome in ended.items()
        }
        self._live: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a copy in its snapshot: without the terminal."""
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
        """An epoch of a trial is over."""
        self._keep(trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, well or with a reason."""
        self._keep(trial, trial.last_result)
        self._say(trial, self._end(trial.last_result))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process was lost; the search has decided whether it begins anew."""
        number = trial.config["number"]
        ended = self._outcomes.read(number)
        if ended is None:
            self._told.pop(number, None)
            what = "begins anew"
        else:  # it was given up, or had recorded its end before
            self._told[number] = {**vars(ended), "done": True}
            what = self._end(vars(ended))
        self._say(trial, f"{what}; its process was lost: {_loss(trial)}")

    def _end(self, told: Mapping[str, Any]) -> str:
        """How a trial ended, in words."""
        if told["status"] == "ok":
            value = f"{told['objective']:.4f} at epoch {told['epoch']} of {told['epochs']}"
            what = f"{self._criterion.name} {value}"
            what += ", halved" if told["ended"] == "halving" else ""
        else:
            what = f"failed: {told['error']}"
        return f"{what} ({told['seconds']:.1f} s)"

    def _keep(self, trial: Any, result: dict[str, Any]) -> None:
        self._told[result["number"]] = {**result, "head": trial.config["head"]}
        if self._live is not None:
            self._live.update(self._table())

    def _say(self, trial: Any, what: str) -> None:
        number, searched = trial.config["number"], range(self._trials)
        if number in searched:
            ended = [told for one, told in self._told.items() if one in searched and told["done"]]
            best = math.nan
            for told in ended:
                if told["status"] == "ok" and self._criterion.better(told["objective"], best):
                    best = told["objective"]
            place = f"{len(ended)}/{self._trials} trial {number}"
            what += "" if math.isnan(best) else f"; best so far {best:.4f}"
        else:  # one that a finalist asks for
            place = f"trial {number}, a variant of {trial.config['like']}"
        line = f"{self._start}{place}: {what}"
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
            told = item[1]
            value = told.get("objective", math.nan)
            return bool(told["done"]), sign * value if value == value else math.inf

        for number, told in sorted(self._told.items(), key=place)[:_SHOWN]:
            if told["status"] != "ok":
                continue
            table.add_row(
                f"{number}" if told["done"] else f"[bold]{number} …[/bold]",
                f"{told['epochs']}",
                f"{told['objective']:.4f}",
                f"{told['train_loss']:.4f}" if "train_loss" in told else "",
                in_words(told["head"]),
            )
        return table


def _loss(trial: Any) -> str:
    """Why a trial's process ended, as Tune wrote it on this machine."""
    lines = []
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in Path(trial.error_file).read_text().splitlines()]
    return next((line[:300] for line in reversed(lines) if line), "nobody knows why")
