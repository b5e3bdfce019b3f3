"""Samplers give the heads of a sweep: drawn beforehand, or proposed by Optuna as it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from visao_ray.models.head import HeadSettings
from visao_ray.tuning.objective import Criterion
from visao_ray.tuning.space import SearchSpace, Suggested, fixed_heads
from visao_ray.tuning.trial_results import TrialResult

#: Returns the head of a trial, given its number and the results that it may learn from.
Sampler = Callable[[int, Sequence[TrialResult]], HeadSettings]


class Fixed:
    """Heads that are known from the start."""

    def __init__(self, heads: Sequence[HeadSettings]) -> None:
        self._heads = heads

    def __call__(self, number: int, known: Sequence[TrialResult]) -> HeadSettings:
        """The head of this number."""
        return self._heads[number]


class Tpe:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011; Watanabe, 2023).

    Called again in the same order with the same results, it proposes the same heads. A resumed
    sweep therefore needs no saved state of it.
    """

    def __init__(self, space: SearchSpace, seed: int, criterion: Criterion) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._fixed = space, fixed_heads()
        self._study = optuna.create_study(
            direction="minimize" if criterion.lower_is_better else "maximize",
            sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True),
        )
        self._asked: dict[int, Any] = {}
        self._reported: set[int] = set()

    def __call__(self, number: int, known: Sequence[TrialResult]) -> HeadSettings:
        """Report the known results to Optuna, and return the head of this number."""
        import optuna

        if number < len(self._fixed):
            return self._fixed[number]
        for result in known:
            if result.number in self._asked and result.number not in self._reported:
                self._reported.add(result.number)
                trial = self._asked[result.number]
                if result.status == "ok":
                    self._study.tell(trial, result.objective)
                else:
                    self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        trial = self._asked[number] = self._study.ask()
        return self._space.draw(Suggested(trial))
