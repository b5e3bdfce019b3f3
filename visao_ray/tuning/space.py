"""The search space: which heads a sweep may try, and how one is drawn from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from visao_ray.core.errors import InputError
from visao_ray.models.head import HeadSettings

_STREAM = 2_203  # keeps these draws apart from others under the same seed
_MOST = 200_000_000  # rows² times classes: scikit-learn's kinds take minutes at most


class Range(BaseModel):
    """Numbers from `low` to `high`; `log`: every decade is as likely as the next."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("a range needs low < high, and low > 0 where log is true")
        return self


#: What one setting may be: a range, or a list of values and ranges (repeat one to favour it).
Choices = Range | tuple[Any, ...]


class SearchSpace(BaseModel):
    """What each setting of `HeadSettings` may be.

    The defaults hold the study's heads (02c2, 02c3: 64 to 512 units, dropout, Adam's learning
    rate) and what it left out. Rates and penalties are log-uniform (Bergstra & Bengio, JMLR 13,
    2012). In TOML:

        [space]
        pool = ["avg"]
        units = [64, 128, 256]
        learning_rate = { low = 1e-4, high = 1e-2, log = true }
        l2 = [0.0, { low = 1e-6, high = 1e-2, log = true }]
        class_weight = ["none", { nvazio = 3, vazio = 1 }, { nvazio = { low = 1, high = 8 } }]

    `None` takes the dataset's default: `kind` has scikit-learn's where they finish in minutes,
    `class_weight` a factor for the positive class where there is one, `views` all, or none of
    those that there are.
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
        """With the defaults that depend on the dataset.

        Args:
            classes: of the dataset.
            positive: the one that must not be missed, if any.
            rows: of train.
            views: augmented ones that the features table has of an image.

        Raises:
            InputError: a class weight for a class that is not there.
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
        """A head; settings that do not matter to its kind keep their defaults."""
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
    """Something that decides."""

    def choice(self, name: str, options: tuple[Any, ...]) -> Any:
        """One of the options."""

    def number(self, name: str, within: Range) -> float:
        """A number of the range."""


class Random:
    """Draws of trial `number` under a seed: a pure function of the two."""

    def __init__(self, seed: int, number: int) -> None:
        self._rng = np.random.default_rng([seed, _STREAM, number])

    def choice(self, name: str, options: tuple[Any, ...]) -> Any:
        """Each is as likely."""
        return options[int(self._rng.integers(len(options)))]

    def number(self, name: str, within: Range) -> float:
        """Uniform, or log-uniform."""
        if within.log:
            return math.exp(self._rng.uniform(math.log(within.low), math.log(within.high)))
        return float(self._rng.uniform(within.low, within.high))


class Suggested:
    """Draws of an Optuna trial, whose sampler has learnt from trials before."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def choice(self, name: str, options: tuple[Any, ...]) -> Any:
        """Options are told apart by their text: Optuna keeps plain values only."""
        by_text = {str(option): option for option in options}
        return by_text[self._trial.suggest_categorical(name, list(by_text))]

    def number(self, name: str, within: Range) -> float:
        """By Optuna's own distributions."""
        return float(self._trial.suggest_float(name, within.low, within.high, log=within.log))


def svm_is_feasible(rows: int, classes: int) -> bool:
    """Whether an SVM, or anything that takes the square of the rows, is fitted in minutes."""
    return rows * rows * classes <= _MOST


def read_space(told: Mapping[str, Any]) -> SearchSpace:
    """The space that settings describe, every value checked.

    Raises:
        InputError: an unknown setting, or a value that a head cannot have; the message names it.
    """
    for name in told:
        if name not in SearchSpace.model_fields:
            known = ", ".join(SearchSpace.model_fields)
            raise InputError(f"--space: '{name}' is no setting of a head; there are {known}")
    try:
        values = {}
        for name, value in told.items():
            values[name] = _choices(value, name)
        space = SearchSpace.model_validate(values)
    except ValidationError as error:
        raise InputError(f"--space {name}: {error.errors()[0]['msg']}") from None
    for name in told:
        choices = getattr(space, name)
        for value in (choices,) if isinstance(choices, Range) else choices:
            ends = (value.low, value.high) if isinstance(value, Range) else (_example(value),)
            for end in ends:
                try:
                    HeadSettings.model_validate({name: end})
                except ValidationError as error:
                    told_of = error.errors()[0]["msg"]
                    raise InputError(f"--space {name}: {end}: {told_of.lower()}") from None
    return space


def fixed_heads() -> list[HeadSettings]:
    """What every sweep tries first: the default, and logistic regression."""
    return [HeadSettings(), HeadSettings(layers=0, dropout=0.0, l2=1e-4)]


def propose(space: SearchSpace, trials: int, seed: int) -> list[HeadSettings]:
    """Heads of a random search, in order: the default, logistic regression, then random ones.

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
    """A class weight with a range in it, with that range's start."""
    if isinstance(value, Mapping):
        return {
            name: _range(one).low if isinstance(one, Mapping) else one
            for name, one in value.items()
        }
    return value


def _rounded(value: float, name: str) -> Any:
    """Four digits: a setting that people can type again; whole numbers where it takes those."""
    if HeadSettings.model_fields[name].annotation is int or name == "views":
        return round(value)
    return float(f"{value:.4g}")
