"""The searcher that decides, in the order of trial numbers, which trial comes next.

Trials run at the same time and end in any order. If decisions followed that order, the same seed
would give another sweep every time. Therefore trial n learns only from the trials up to
n - `max_concurrent_trials`, and starts when all of those have ended: they are the same on every
machine. This holds for the sampler (Optuna's TPE) and for successive halving.

Imported where Ray Tune runs; it imports Ray.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from visao_ray.tuning.objective import Criterion
from visao_ray.tuning.samplers import Sampler
from visao_ray.tuning.trial_results import TrialResult, TrialResults

MOST_LOSSES = 3  # of its process, after which a trial fails


class OrderedSearcher(Searcher):  # type: ignore[misc]
    """Gives Tune the trials of a sweep, then the further trials of its finalists.

    Trials that have a result already, from a run that was killed, are not started again. A trial
    whose process is lost (killed, node gone) is started again under its number, until its process
    is lost for the `MOST_LOSSES`th time. Tune's own retries are not used: if a process is lost
    between two trials that it serves, Tune is notified twice and gives up the second trial at once.

    Attributes:
        ended: results by trial number.
    """

    ended: dict[int, TrialResult]

    def __init__(
        self,
        trials: int,
        max_concurrent_trials: int,
        reduction_factor: int,
        epochs: int,
        criterion: Criterion,
        sampler: Sampler,
        further: Callable[[Sequence[TrialResult]], Sequence[dict[str, Any]]],
        trial_results: TrialResults,
    ) -> None:
        """Read the results that exist already.

        Args:
            trials: number of trials of the search.
            max_concurrent_trials: how far behind its own number a trial may learn from others.
            reduction_factor: of successive halving; 1 turns it off.
            epochs: most epochs of a trial.
            criterion: the objective.
            sampler: gives the head of a trial.
            further: returns the configurations of further trials, given all results of the search.
            trial_results: where results are recorded.
        """
        super().__init__(metric=None, mode=None)
        self._trials, self._max_concurrent_trials = trials, max_concurrent_trials
        self._reduction_factor, self._epochs = reduction_factor, epochs
        self._criterion, self._sampler = criterion, sampler
        self._further, self._trial_results = further, trial_results
        self.ended = trial_results.read_all()
        self._running: dict[str, dict[str, Any]] = {}
        self._lost: list[dict[str, Any]] = []
        self._losses: Counter[int] = Counter()
        self._next = 0
        self._further_configs: list[dict[str, Any]] | None = None

    def finished(self) -> bool:
        """Whether every trial has a result already, so that Tune has nothing to do."""
        found = [self.ended[number] for number in range(self._trials) if number in self.ended]
        if len(found) < self._trials:
            return False
        last = self._trials + len(self._further(found))
        return all(number in self.ended for number in range(self._trials, last))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next configuration; None while it must wait for other trials."""
        if self._lost:
            self._running[trial_id] = self._lost.pop(0)
            return self._running[trial_id]
        while True:
            config = self._config(self._next)
            if not isinstance(config, dict):
                return config
            self._next += 1
            if config["number"] not in self.ended:
                self._running[trial_id] = config
                return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take note that a trial has ended by itself, or that its process was lost."""
        config = self._running.pop(trial_id)
        number = config["number"]
        found = self._trial_results.read(number)
        if found is None:
            self._losses[number] += 1
            if self._losses[number] < MOST_LOSSES:
                self._lost.append(config)
                return
            message = f"its process was lost {MOST_LOSSES} times"
            found = TrialResult(number, trial_id, config["head"], "error", error=message)
            self._trial_results.write(found)
        self.ended[number] = found

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the recorded results hold the whole state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as `save`."""

    def _config(self, number: int) -> dict[str, Any] | str | None:
        if number < self._trials:
            known = range(max(0, number - self._max_concurrent_trials + 1))
            if any(before not in self.ended for before in known):
                return None
            results = [self.ended[before] for before in known]
            head = self._sampler(number, results)
            return {
                "number": number,
                "head": head.model_dump(mode="json"),
                "rung_thresholds": rung_thresholds(
                    results, self._reduction_factor, self._epochs, self._criterion
                ),
            }
        if self._further_configs is None:
            if any(before not in self.ended for before in range(self._trials)):
                return None
            found = [self.ended[before] for before in range(self._trials)]
            self._further_configs = list(self._further(found))
        place = number - self._trials
        if place < len(self._further_configs):
            return {"number": number, "rung_thresholds": {}, **self._further_configs[place]}
        # The process of a running trial may still be lost.
        return None if self._running else str(Searcher.FINISHED)


def rung_thresholds(
    known: Sequence[TrialResult], reduction_factor: int, epochs: int, criterion: Criterion
) -> dict[int, float]:
    """The objective that a trial must have reached by an epoch to go on: {epoch: objective}.

    Successive halving (Li et al., ASHA, MLSys 2020): after `reduction_factor` epochs, its square,
    and so on, only one trial in `reduction_factor` goes on. A trial that ended by itself at a rung
    or before it counts with its best objective.
    """
    found: dict[int, float] = {}
    epoch = reduction_factor
    while 1 < epoch < epochs:
        reached = []
        for result in known:
            cut = result.ended == "halving" and result.epochs < epoch
            if result.status != "ok" or cut or not result.history:
                continue
            best = math.nan
            for row in result.history[:epoch]:
                if criterion.better(row.val_objective, best):
                    best = row.val_objective
            if not math.isnan(best):
                reached.append(best)
        if len(reached) >= reduction_factor:
            ranked = sorted(reached, reverse=not criterion.lower_is_better)
            found[epoch] = ranked[math.ceil(len(ranked) / reduction_factor) - 1]
        epoch *= reduction_factor
    return found
