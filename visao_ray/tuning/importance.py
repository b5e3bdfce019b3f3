"""Importance of each setting of a head in a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visao_ray.models.head import HeadSettings
from visao_ray.tuning.objective import Criterion
from visao_ray.tuning.trial_results import TrialResult

_FEWEST = 8  # trials that an importance needs


def importance(results: Sequence[TrialResult], criterion: Criterion) -> dict[str, float]:
    """Share of the objective's variance that each setting explains; the shares add up to 1.

    Optuna's functional analysis of variance (Hutter et al., ICML 2014) over the dense heads; empty
    if there are too few.
    """
    import optuna

    dense = [one for one in results if one.status == "ok" and one.head["kind"] == "dense"]
    varied: dict[str, list[Any]] = {}
    for name in HeadSettings.model_fields:
        values = _plain([one.head[name] for one in dense])
        if len(set(values)) > 1:
            varied[name] = values
    if len(dense) < _FEWEST or not varied:
        return {}
    distributions = {name: _distribution(values) for name, values in varied.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if criterion.lower_is_better else "maximize")
    for place, one in enumerate(dense):
        params = {name: values[place] for name, values in varied.items()}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=distributions, value=one.objective
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _plain(values: Sequence[Any]) -> list[Any]:
    """Values of a setting as Optuna needs them: all numbers, or all text."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values]
    return [str(value) for value in values]


def _distribution(values: Sequence[Any]) -> Any:
    import optuna

    if all(isinstance(value, float) for value in values):
        low, high = min(values), max(values)
        return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 20)
    return optuna.distributions.CategoricalDistribution(sorted({str(value) for value in values}))
