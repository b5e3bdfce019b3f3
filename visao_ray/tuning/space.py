"""The search space of a sweep, and how heads are drawn from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from visao_ray.core.errors import InputError
from visao_ray.models.head import HeadSettings

_STREAM = 2_203  # separates these draws from others with the same seed
_MOST = 200_000_000  # rows² times classes: up to here scikit-learn's kinds take minutes


class Range(BaseModel):
    """Numbers from `low` to `high`; `log`: the logarithm is uniform."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("a range needs low < high, and low > 0 where log is true")
        return self


#: Choices of one setting: a range, or a list of values and ranges (a repeated one is more likely).
Choices = Range | tuple[Any, ...]


class SearchSpace(BaseModel):
    """Choices of each setting of `HeadSettings`.

    The defaults contain the heads of the study (02c2, 02c3: 64 to 512 units, dropout, Adam's
    learning rate) and heads that it left out. Rates and penalties are log-uniform (Bergstra &
    Bengio, JMLR 13, 2012). In TOML:

        [space]
        pool = ["avg"]
        units = [64, 128, 256]
        learning_rate = { low = 1e-4, high = 1e-2, log = true }
        l2 = [0.0, { low = 1e-6, high = 1e-2, log = true }]
        class_weight = ["none", { nvazio = 3, vazio = 1 }, { nvazio = { low = 1, high = 8 } }]

    `None` takes a default that depends on the dataset: `kind` includes scikit-learn's kinds if they
    finish in minutes, `class_weight` a factor for the positive class if there is one, `views` all
    augmented views or none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Choices | None = None
    pool: Choices = ("avg", "max", "both")
    standardise: Choices = (True, True, False)
    layers: Choices = (0, 1, 1, 2)
    units: Choices = (64, 128, 256, 512, 1024)
    activation: Choices = ("relu", "gelu")
    dropout: Choices = Range(low=0.0, high=0.6)
    l1: Choices = (0.0, 0.0, Range(low=1e-7, high=1e-4, log=True))
    l2: Choices = (0.0, Range(low=1e-6, high=1e-2, log=True))
    optimizer: Choices = ("adam", "adamw", "rmsprop", "sgd")
    learning_rate: Choices = Range(low=1e-4, high=1e-2, log=True)
    schedule: Choices = ("constant", "cosine")
    batch_size: Choices = (32, 64, 128, 256)
    label_smoothing: Choices = (0.0, 0.0, 0.05, 0.1)
    views: Choices | None = None
    class_weight: Choices | None = None
    c: Choices = Range(low=1e-4, high=1e1, log=True)
    gamma: Choices = Range(low=0.1, high=10.0, log=True)

    def fitted(
        self, classes: Sequence[str], positive: str | None, rows: int, views: int
    ) -> SearchSpace:
        """Return the space with the defaults that depend on the dataset.

        Args:
            classes: of the dataset.
            positive: the class that must not be missed, if any.
            rows: number of train images.
            views: number of augmented views of an image.

        Returns:
            A copy without None.

        Raises:
            InputError: a class weight for a class that the dataset does not have.
        """
        kinds: tuple[Any, ...] = ("dense",)
        if svm_is_feasible(rows, len(classes)):
            kinds = ("dense",) * 10 + ("logistic", "svm")
        weights: tuple[Any, ...] = ("none", "balanced", "effective", "root")
        if positive is not None and len(classes) == 2:
            factor = {positive: {"low": 1.0, "high": 8.0, "log": True}}
            weights = ("none", "balanced", factor)
        for choice in self.class_weight if isinstance(self.class_weight, tuple) else ():
            for name in choice if isinstance(choice, Mapping) else ():
                if name not in classes:
                    raise InputError(
                        f"--space class_weight names '{name}', which is no class of this dataset "
                        f"({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"
                    )
        return self.model_copy(
            update={
                "kind": self.kind or kinds,
                "views": self.views or ((None, 0) if views else (None,)),
                "class_weight": self.class_weight or weights,
            }
        )

    def draw(self, chooser: Chooser) -> HeadSettings:
        """Draw a head; settings that its kind does not use keep their defaults."""
        kind = self._value(chooser, "kind")
        names = ["pool", "views"]
        if kind == "dense":
            names += ["standardise", "layers", "dropout", "l1", "l2", "optimizer"]
            names += ["learning_rate", "schedule", "batch_size", "label_smoothing"]
        else:
            names += ["c"]
        if kind == "svm":
            names += ["gamma"]
        else:
            names += ["class_weight"]
        values = {name: self._value(chooser, name) for name in names}
        if values.get("layers"):
            values |= {name: self._value(chooser, name) for name in ("units", "activation")}
        return HeadSettings.model_validate({"kind": kind, **values})

    def _value(self, chooser: Chooser, name: str) -> Any:
        choices = getattr(self, name)
        if isinstance(choices, Range):
            return _rounded(chooser.number(name, choices), name)
        chosen = chooser.choice(name, choices)
        if isinstance(chosen, Range):
            return _rounded(chooser.number(f"{name}.{chosen.low:g}", chosen), name)
        if name == "class_weight" and isinstance(chosen, Mapping):
            return {
                key: _rounded(chooser.number(f"{name}.{key}", _range(value)), name)
                if isinstance(value, Mapping)
                else float(value)
                for key, value in chosen.items()
            }
        return chosen


class Chooser(Protocol):
    """Makes the draws of one head."""

    def choice(self, name: str, options: tuple[Any, ...]) -> Any:
        """Choose one of the options."""

    def number(self, name: str, within: Range) -> float:
        """Choose a number of the range."""


class Random:
    """Random draws: a pure function of the seed and the number of the trial."""

    def __init__(self, seed: int, number: int) -> None:
        self._rng = np.random.default_rng([seed, _STREAM, number])

    def choice(self, name: str, options: tuple[Any, ...]) -> Any:
        """Choose one of the options; all are equally likely."""
        return options[int(self._rng.integers(len(options)))]

    def number(self, name: str, within: Range) -> float:
        """Choose a number, uniform or log-uniform."""
        if within.log:
            return math.exp(self._rng.uniform(math.log(within.low), math.log(within.high)))
        return float(self._rng.uniform(within.low, within.high))


class Suggested:
    """Draws of an Optuna trial, whose sampler has learnt from earlier trials."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def choice(self, name: str, options: tuple[Any, ...]) -> Any:
        """Choose an option by its text, because Optuna accepts plain values only."""
        by_text = {str(option): option for option in options}
        return by_text[self._trial.suggest_categorical(name, list(by_text))]

    def number(self, name: str, within: Range) -> float:
        """Choose a number by Optuna's own distributions."""
        return float(self._trial.suggest_float(name, within.low, within.high, log=within.log))


def svm_is_feasible(rows: int, classes: int) -> bool:
    """Whether an SVM, or any method quadratic in the rows, is fitted in minutes."""
    return rows * rows * classes <= _MOST


def read_space(given: Mapping[str, Any]) -> SearchSpace:
    """Read and check the search space of the job's settings.

    Args:
        given: choices by name of a setting of a head.

    Returns:
        The space, with defaults for the settings that are not given.

    Raises:
        InputError: an unknown setting, or a value that a head cannot have; the message names it.
    """
    for name in given:
        if name not in SearchSpace.model_fields:
            known = ", ".join(SearchSpace.model_fields)
            raise InputError(f"--space: '{name}' is no setting of a head; there are {known}")
    try:
        values = {}
        for name, value in given.items():
            values[name] = _choices(value, name)
        space = SearchSpace.model_validate(values)
    except ValidationError as error:
        raise InputError(f"--space {name}: {error.errors()[0]['msg']}") from None
    for name in given:
        choices = getattr(space, name)
        for value in (choices,) if isinstance(choices, Range) else choices:
            ends = (value.low, value.high) if isinstance(value, Range) else (_example(value),)
            for end in ends:
                try:
                    HeadSettings.model_validate({name: end})
                except ValidationError as error:
                    message = error.errors()[0]["msg"]
                    raise InputError(f"--space {name}: {end}: {message.lower()}") from None
    return space


def fixed_heads() -> list[HeadSettings]:
    """Return the heads that every sweep tries first: the default, and logistic regression."""
    return [HeadSettings(), HeadSettings(layers=0, dropout=0.0, l2=1e-4)]


def propose(space: SearchSpace, trials: int, seed: int) -> list[HeadSettings]:
    """Return the heads of a random search: the default, logistic regression, then random ones.

    The first n are the same for any number of trials, so a longer sweep contains a shorter one.
    """
    fixed = fixed_heads()
    drawn = (space.draw(Random(seed, number)) for number in range(len(fixed), trials))
    return [*fixed, *drawn][:trials]


def _choices(value: Any, name: str) -> Any:
    """A setting of the space from TOML or JSON."""
    if isinstance(value, Mapping) and name != "class_weight":
        return _range(value)
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"--space {name}: give a list of values, or low and high")
    return tuple(
        _range(one) if isinstance(one, Mapping) and name != "class_weight" else one for one in value
    )


def _range(value: Mapping[str, Any]) -> Range:
    return Range.model_validate(value)


def _example(value: Any) -> Any:
    """A class weight whose ranges are replaced by their lowest value."""
    if isinstance(value, Mapping):
        return {
            name: _range(one).low if isinstance(one, Mapping) else one
            for name, one in value.items()
        }
    return value


def _rounded(value: float, name: str) -> Any:
    """Round to four digits, which people can type again, or to a whole number where needed."""
    if HeadSettings.model_fields[name].annotation is int or name == "views":
        return round(value)
    return float(f"{value:.4g}")
