"""A line on the terminal as each trial ends. Imported where Ray Tune runs; it imports Ray."""

from __future__ import annotations

import math
from typing import Any

from ray import tune

from visao_ray.tuning.objective import Objective, better


class Progress(tune.Callback):  # type: ignore[misc]
    """Tells how each trial ended and how far the sweep is."""

    def __init__(self, job: str, objective: Objective, trials: int) -> None:
        self._job, self._objective, self._trials = job, objective, trials

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, well or with a reason."""
        told = trial.last_result
        if told["status"] == "ok":
            value = f"{told['objective']:.4f} at epoch {told['epoch']} of {told['epochs']}"
            what = f"{self._objective} {value}"
        else:
            what = f"failed: {told['error']}"
        self._say(trials, f"trial {told['number']}: {what} ({told['seconds']:.1f} s)")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process was lost too often."""
        self._say(trials, f"trial {trial.config['number']}: failed: its process was lost")

    def _say(self, trials: list[Any], what: str) -> None:
        # The trial that just ended is not yet marked as finished, but its result is there.
        ended = [trial for trial in trials if (trial.last_result or {}).get("done")]
        best = math.nan
        for told in (trial.last_result for trial in ended):
            if told.get("status") == "ok" and better(self._objective, told["objective"], best):
                best = told["objective"]
        line = f"{len(ended)}/{self._trials} {what}; best so far {best:.4f}"
        print(f"[{self._job}] {line}", flush=True)
