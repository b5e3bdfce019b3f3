"""One trial: a head trained epoch by epoch on features that all trials share.

Imported where Ray Tune runs; it imports Ray.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray import tune

from visao_ray.backend import import_keras
from visao_ray.features.vectors import Features, Summary
from visao_ray.models.head import (
    HeadSettings,
    build_head,
    class_factors,
    compile_head,
)
from visao_ray.models.saved import ModelAbout, pack
from visao_ray.storage import locate, reason
from visao_ray.tuning.objective import OBJECTIVES, Objective, better, score
from visao_ray.tuning.outcomes import Epoch, Outcome, Outcomes


@dataclass(frozen=True)
class Plan:
    """What all trials of a sweep have in common.

    Attributes:
        heads: the HeadSettings to try, as JSON, by trial number.
        outcomes: URI of the folder where finished trials are recorded.
        positive: index of the positive class where there are two classes.
    """

    base: str
    seed: int
    epochs: int
    patience: int
    objective: Objective
    positive: int
    summary: Summary
    heads: Sequence[dict[str, Any]]
    outcomes: str


class HeadTrainable(tune.Trainable):  # type: ignore[misc]
    """Trains head `config["number"]` of the plan; one step is one epoch.

    A trial stops when its objective has not improved for `patience` epochs: it depends on nothing
    but itself. (A scheduler such as ASHA compares trials as they happen to arrive, and the same
    seed would not give the same result.) At its end the weights of the best epoch are judged once
    more with every metric, and those weights are kept.

    A trial records its own outcome, at once and for good; one that finds it recorded is over. So no
    finished trial is repeated, however old the snapshot is from which Tune restores a killed sweep.
    An unfinished trial begins anew, and as its seed is its own it ends the same.

    A head that raises or diverges ends its trial with a reason, and the actor goes on with the next
    one; only a lost actor (memory, node) is a failure for Tune to retry.
    """

    _model: Any
    _settings: HeadSettings
    _error: str
    _trace: str
    _packed: bytes
    _seconds: float

    def setup(self, config: dict[str, Any], features: list[Any], plan: Plan) -> None:
        """Once an actor: map the shared features and make TensorFlow ready."""
        import_keras()  # before TensorFlow, to keep it quiet
        from visao_ray.tuning.loop import Loop

        self._features: Features = ray.get(features[0])
        self._loop = Loop(self._features)
        self._plan = plan
        self._outcomes = Outcomes(locate(plan.outcomes))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with another trial in the same process."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch; the last one of a trial records its outcome."""
        start = time.perf_counter()
        try:
            if self._model is None:
                recorded = self._outcomes.read(self._number)
                if recorded is not None:
                    return _told(recorded)
                self._build()
            done = self._run_epoch()
            if done and not self._error:
                self._judge()
        except Exception as error:
            self._error = f"{type(error).__name__}: {reason(error)}"
            self._trace = traceback.format_exc()
            done = True
        self._seconds += time.perf_counter() - start
        if not done:
            return {"number": self._number, "done": False}
        outcome = self._outcome()
        self._outcomes.write(outcome, self._packed)
        self._model = None
        return _told(outcome)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: Tune is not asked for checkpoints, outcomes take their place."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, as above."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._number = int(config["number"])
        self._model = None
        self._best_weights: list[Any] = []
        self._best, self._best_epoch = float("nan"), 0
        self._history: list[Epoch] = []
        self._metrics: dict[str, float] = {}
        self._error, self._trace = "", ""
        self._packed = b""
        self._seconds = 0.0

    def _build(self) -> None:
        plan, labels = self._plan, self._features.train.labels
        classes = plan.summary.classes
        self._settings = HeadSettings.model_validate(plan.heads[self._number])
        sequence = np.random.SeedSequence([plan.seed, self._number])
        self._shuffle = np.random.default_rng(sequence)
        import_keras().utils.set_random_seed(int(sequence.generate_state(1)[0]))
        model = build_head(self._settings, plan.summary.width, len(classes), self._features.moments)
        compile_head(model, self._settings)
        weights = class_factors(self._settings.class_weight, labels, classes)[labels]
        self._loop.begin(model, weights, self._settings.batch_size)
        self._model = model

    def _run_epoch(self) -> bool:
        """Train and look at val; True when the trial is over."""
        epoch = len(self._history) + 1
        loss = self._loop.run_epoch(self._shuffle.permutation(len(self._features.train.labels)))
        probability = self._loop.predict()
        value = self._score(self._plan.objective, probability)
        self._history.append(Epoch(epoch, loss, self._score("log_loss", probability), value))
        if not (np.isfinite(loss) and np.isfinite(probability).all()):
            self._error = f"diverged: loss or probabilities are not finite in epoch {epoch}"
            return True
        if better(self._plan.objective, value, self._best):
            self._best, self._best_epoch = value, epoch
            self._best_weights = self._model.get_weights()
        stale = epoch - self._best_epoch >= self._plan.patience
        return stale or epoch >= self._plan.epochs

    def _judge(self) -> None:
        if not self._best_weights:
            self._error = f"{self._plan.objective} is undefined on val (a single class in it?)"
            return
        self._model.set_weights(self._best_weights)
        probability = self._loop.predict()
        self._metrics = {name: self._score(name, probability) for name in OBJECTIVES}
        summary = self._plan.summary
        about = ModelAbout(
            base=self._plan.base,
            family="head",
            classes=summary.classes,
            takes="features",
            settings=self._settings.model_dump(mode="json"),
            width=summary.width,
            features=summary.about,
            trial=self._number,
            epoch=self._best_epoch,
        )
        self._packed = pack(self._model, about)

    def _score(self, name: Objective, probability: Any) -> float:
        return score(name, self._features.val.labels, probability, self._plan.positive)

    def _outcome(self) -> Outcome:
        return Outcome(
            number=self._number,
            trial_id=str(self.trial_id),
            status="error" if self._error else "ok",
            error=self._error,
            trace=self._trace,
            epoch=self._best_epoch,
            epochs=len(self._history),
            seconds=self._seconds,
            objective=self._best if not self._error else float("nan"),
            metrics=self._metrics,
            history=self._history,
        )


def _told(outcome: Outcome) -> dict[str, Any]:
    """What Tune hears of a finished trial."""
    names = ("number", "status", "error", "epoch", "epochs", "seconds", "objective")
    return {**{name: getattr(outcome, name) for name in names}, "done": True}
