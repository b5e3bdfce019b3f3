"""Which trial comes next, and what it must reach: decided in the order of trial numbers.

Trials run at once and end as they happen to. Were they decided about in that order, the same seed
would give another sweep every time. So trial n learns from the trials up to n - `at_once` alone,
and starts when all of those have ended: they are the same whatever the machine. Both the sampler
(Optuna's TPE) and successive halving learn that way.

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

LOSSES = 3  # of its process, after which a trial is given up


class OrderedSearcher(Searcher):  # type: ignore[misc]
    """Hands Tune the trials of a sweep, then those that its finalists ask for.

    Trials that have an outcome already, from a run that was killed, are not handed out again. One
    whose process is lost (killed, node gone) is, under its number, until that happens the
    `LOSSES`th time. Tune's own retries are of no use there: where a process is lost between two
    trials that it serves, Tune hears of it twice and gives the second one up at once.

    Attributes:
        ended: outcomes by trial number.
    """

    def __init__(
        self,
        trials: int,
        at_once: int,
        halving: int,
        epochs: int,
        criterion: Criterion,
        sampler: Sampler,
        more: Callable[[Sequence[TrialResult]], Sequence[dict[str, Any]]],
        outcomes: TrialResults,
    ) -> None:
        """`more`: configurations of further trials, given all outcomes of the search."""
        super().__init__(metric=None, mode=None)
        self._trials, self._at_once = trials, at_once
        self._halving, self._epochs, self._criterion = halving, epochs, criterion
        self._sampler, self._more, self._outcomes = sampler, more, outcomes
        self.ended: dict[int, TrialResult] = outcomes.read_all()
        self._running: dict[str, dict[str, Any]] = {}
        self._lost: list[dict[str, Any]] = []
        self._losses: Counter[int] = Counter()
        self._next = 0
        self._further: list[dict[str, Any]] | None = None

    def finished(self) -> bool:
        """Whether every trial has an outcome already, so that Tune has nothing to do."""
        found = [self.ended[number] for number in range(self._trials) if number in self.ended]
        if len(found) < self._trials:
            return False
        last = self._trials + len(self._more(found))
        return all(number in self.ended for number in range(self._trials, last))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next configuration; None while it must wait for others."""
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
        """A trial has ended, by itself or because its process was lost."""
        config = self._running.pop(trial_id)
        number = config["number"]
        found = self._outcomes.read(number)
        if found is None:
            self._losses[number] += 1
            if self._losses[number] < LOSSES:
                self._lost.append(config)
                return
            told = f"its process was lost {LOSSES} times"
            found = TrialResult(number, trial_id, config["head"], "error", error=told)
            self._outcomes.write(found)
        self.ended[number] = found

    def save(self, checkpoint_path: str) -> None:
        """Nothing: outcomes tell all there is to know."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as above."""

    def _config(self, number: int) -> dict[str, Any] | str | None:
        if number < self._trials:
            if any(before not in self.ended for before in range(number - self._at_once + 1)):
                return None
            known = [self.ended[before] for before in range(max(0, number - self._at_once + 1))]
            head = self._sampler(number, known)
            bars = rungs(known, self._halving, self._epochs, self._criterion)
            return {"number": number, "head": head.model_dump(mode="json"), "bars": bars}
        if self._further is None:
            if any(before not in self.ended for before in range(self._trials)):
                return None
            found = [self.ended[before] for before in range(self._trials)]
            self._further = list(self._more(found))
        if number - self._trials < len(self._further):
            return {"number": number, "bars": {}, **self._further[number - self._trials]}
        # One that runs may be lost yet.
        return None if self._running else str(Searcher.FINISHED)


def rungs(
    known: Sequence[TrialResult], halving: int, epochs: int, criterion: Criterion
) -> dict[int, float]:
    """What a trial must have reached by an epoch to go on: {epoch: objective}.

    Successive halving (Li et al., ASHA, MLSys 2020): after `halving` epochs, its square, and so on,
    only one trial in `halving` goes on. A trial that ended there or before by itself counts with
    the best it had.
    """
    found: dict[int, float] = {}
    epoch = halving
    while 1 < epoch < epochs:
        reached = []
        for outcome in known:
            cut = outcome.ended == "halving" and outcome.epochs < epoch
            if outcome.status != "ok" or cut or not outcome.history:
                continue
            best = math.nan
            for row in outcome.history[:epoch]:
                if criterion.better(row.val_objective, best):
                    best = row.val_objective
            if not math.isnan(best):
                reached.append(best)
        if len(reached) >= halving:
            ranked = sorted(reached, reverse=not criterion.lower_is_better)
            found[epoch] = ranked[math.ceil(len(ranked) / halving) - 1]
        epoch *= halving
    return found
