"""One trial: a head trained epoch by epoch on vectors that all trials of a node share.

Imported where Ray Tune runs; it imports Ray.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray import tune

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location, reason
from visao_ray.datasets.spec import Dataset
from visao_ray.evaluation.metrics import METRICS
from visao_ray.evaluation.metrics.log_loss import LOG_LOSS
from visao_ray.features.labelled import LabelledVectors, Summary
from visao_ray.models import svm
from visao_ray.models.artifact import ModelMetadata, pack
from visao_ray.models.head import (
    HeadSettings,
    build_head,
    class_factors,
    compile_head,
    predict_head,
)
from visao_ray.models.logistic import fit_logistic
from visao_ray.models.normalization import Vectors
from visao_ray.tuning.board import write_board
from visao_ray.tuning.folds import Fold, Folds
from visao_ray.tuning.objective import Criterion, scores
from visao_ray.tuning.space import svm_is_feasible
from visao_ray.tuning.trial_results import Epoch, TrialResult, TrialResults

_CURVE_POINTS = 60
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Plan:
    """What all trials of a sweep have in common.

    Attributes:
        criterion: the objective.
        positive: index of the class whose recall and precision are told as curves, or None.
        named: whether there is a class that metrics of one class are about.
        folds: 1 for train and val as they are, or the number of grouped folds of both.
        extractor: name of the vectors.
        outcomes: folder where finished trials are recorded.
        board: folder for TensorBoard.
    """

    dataset: Dataset
    seed: int
    epochs: int
    patience: int
    criterion: Criterion
    positive: int | None
    named: bool
    folds: int
    summary: Summary
    extractor: str
    outcomes: Location
    board: Location


@dataclass
class _Learner:
    """A head on one fold."""

    fold: Fold
    model: Any
    loop: Any
    shuffle: np.random.Generator
    best: list[Any]


class _Rows:
    """Rows in this process, and what all trials on them share."""

    def __init__(self, data: LabelledVectors, plan: Plan) -> None:
        from visao_ray.tuning.loop import Table

        self.folds = Folds(data, plan.folds, plan.seed)
        self.table = Table(self.folds.vectors, data.labels)


class HeadTrainable(tune.Trainable):  # type: ignore[misc]
    """Trains the head `config["head"]`; one step is one epoch, of every fold.

    `config["like"]` is another trial whose seed it takes, to differ in nothing but the head (or in
    the rows: `config["all_rows"]` asks for those that a search on a sample leaves out).

    A trial stops when its objective has not improved for `patience` epochs, or is below what
    `config["bars"]` asks of an epoch. Both are known when it starts: it depends on nothing that
    happens meanwhile, and the same seed gives the same result. At its end the weights of the best
    epoch are judged once more with every metric, and those weights are kept.

    A trial records its own outcome, at once and for good; one that finds it recorded is over. So no
    finished trial is repeated, and one that was not finished begins anew and ends the same, for its
    seed is its own.

    A head that raises, diverges or lacks memory ends its trial with a reason, and the actor goes on
    with the next one; only a lost actor (killed, node gone) is a failure for Tune.
    """

    _settings: HeadSettings
    _outcome: TrialResult
    _started: bool

    def setup(self, config: dict[str, Any], data: Sequence[Any], plan: Plan) -> None:
        """Once an actor.

        Args:
            config: of the first trial.
            data: references to the LabelledVectors of the search, and to all rows where those are
                a sample.
            plan: of all trials.
        """
        import_keras()  # before TensorFlow, to keep it quiet
        self._data = data
        self._rows_of: dict[int, _Rows] = {}
        self._plan = plan
        self._outcomes = TrialResults(plan.outcomes)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with another trial in the same process."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch; the last one of a trial records its outcome."""
        start = time.perf_counter()
        try:
            if not self._started:
                recorded = self._outcomes.read(self._outcome.number)
                if recorded is not None:
                    return _told(recorded, done=True)
                self._started = True
                self._build()
            if self._settings.kind == "dense":
                self._run_epoch()
            else:
                self._fit()
            if self._outcome.ended:
                self._judge()
        except Exception as error:
            self._fail(f"{type(error).__name__}: {reason(error)}", traceback.format_exc())
        seconds = self._outcome.seconds + time.perf_counter() - start
        self._outcome = replace(self._outcome, seconds=seconds)
        if self._outcome.status == "error" or self._outcome.ended:
            self._record()
            return _told(self._outcome, done=True)
        return _told(self._outcome, done=False)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: Tune is not asked for checkpoints, outcomes take their place."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, as above."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._config = config
        self._outcome = TrialResult(config["number"], str(self.trial_id), config["head"], "ok")
        self._started = False
        self._learners: list[_Learner] = []
        self._values: list[float] = []
        self._packed = b""

    @property
    def _rows(self) -> _Rows:
        """Those of this trial; they are opened once."""
        place = -1 if self._config.get("all_rows") else 0
        if place not in self._rows_of:
            self._rows_of[place] = _Rows(ray.get(self._data[place]), self._plan)
        return self._rows_of[place]

    @property
    def _folds(self) -> Folds:
        return self._rows.folds

    def _build(self) -> None:
        plan, labels = self._plan, self._folds.labels
        keras = import_keras()
        keras.backend.clear_session(free_memory=False)  # the graphs of the trial before
        self._settings = HeadSettings.model_validate(self._config["head"])
        parts = self._folds.parts(self._settings.views, self._config.get("holdout", False))
        classes = plan.summary.classes
        for number, fold in enumerate(parts):
            like = self._config.get("like", self._outcome.number)
            sequence = np.random.SeedSequence([plan.seed, like, number])
            keras.utils.set_random_seed(int(sequence.generate_state(1)[0]))
            stats = self._folds.stats(fold)
            model = build_head(self._built, plan.summary.width, len(classes), stats)
            loop = None
            if self._settings.kind == "dense":
                from visao_ray.tuning.loop import Loop

                compile_head(model, self._settings)
                factors = class_factors(self._settings.class_weight, labels[fold.train], classes)
                loop = Loop(
                    self._rows.table,
                    model,
                    self._settings.pools,
                    factors[labels],
                    self._settings.batch_size,
                )
            shuffle = np.random.default_rng(sequence)
            self._learners.append(_Learner(fold, model, loop, shuffle, []))

    @property
    def _built(self) -> HeadSettings:
        """The settings of the Keras model: kinds of scikit-learn fill in a head without layers."""
        if self._settings.kind == "dense":
            return self._settings
        return self._settings.model_copy(
            update={"standardise": True, "layers": 0, "dropout": 0.0, "l1": 0.0, "l2": 0.0}
        )

    def _run_epoch(self) -> None:
        """Train and look at val; tells `ended` where the trial is over."""
        plan, before = self._plan, self._outcome
        epoch = before.epochs + 1
        rate = self._settings.rate(before.epochs, plan.epochs)
        losses, val_losses, values = [], [], []
        for learner in self._learners:
            order = learner.shuffle.permutation(learner.fold.train)
            losses.append(learner.loop.run_epoch(order, rate))
            probability = learner.loop.predict(learner.fold.val)
            if not (np.isfinite(losses[-1]) and np.isfinite(probability).all()):
                self._fail(f"diverged: loss or probabilities are not finite in epoch {epoch}")
                return
            found = self._scores(learner.fold, probability, plan.criterion.name, LOG_LOSS.name)
            values.append(found[plan.criterion.name])
            val_losses.append(found[LOG_LOSS.name])
        value = float(np.mean(values))
        row = Epoch(epoch, float(np.mean(losses)), float(np.mean(val_losses)), value)
        after = replace(before, epochs=epoch, history=[*before.history, row])
        if plan.criterion.better(value, before.objective):
            after = replace(after, epoch=epoch, objective=value, folds=values)
            for learner in self._learners:
                learner.best = learner.model.get_weights()
        bars = {int(at): bar for at, bar in self._config["bars"].items()}
        ended = ""
        if epoch >= plan.epochs:
            ended = "epochs"
        elif epoch - after.epoch >= plan.patience:
            ended = "patience"
        elif epoch in bars and plan.criterion.better(bars[epoch], after.objective):
            ended = "halving"
        self._outcome = replace(after, ended=ended)

    def _fit(self) -> None:
        """Fit a kind without epochs on every fold."""
        plan, settings = self._plan, self._settings
        classes = plan.summary.classes
        values = []
        for learner in self._learners:
            rows = learner.fold.train
            labels = self._folds.labels[rows]
            if settings.kind == "logistic":
                weights = class_factors(settings.class_weight, labels, classes)[labels]
                learner.model.get_layer("probability").set_weights(
                    fit_logistic(
                        partial(self._blocks, learner.fold),
                        labels,
                        weights,
                        len(classes),
                        settings.c,
                    )
                )
            else:
                learner.model = self._fit_svm(learner.fold, labels)
            learner.best = learner.model.get_weights()
            found = self._scores(learner.fold, self._predict(learner), plan.criterion.name)
            values.append(found[plan.criterion.name])
        self._outcome = replace(
            self._outcome,
            epoch=1,
            epochs=1,
            objective=float(np.mean(values)),
            folds=values,
            ended="fitted",
        )

    def _fit_svm(self, fold: Fold, labels: npt.NDArray[np.int32]) -> Any:
        """The machine as a Keras model.

        Raises:
            InputError: as `fit_calibrated`; more rows than it could be fitted on in hours.
        """
        plan, settings = self._plan, self._settings
        classes = len(plan.summary.classes)
        if self._config.get("all_rows") and not svm_is_feasible(len(labels), classes):
            raise InputError(
                f"an SVM of {classes} classes cannot be fitted on {len(labels):,} rows"
            )
        machine = svm.fit_calibrated(
            np.concatenate(list(self._blocks(fold))),
            labels,
            self._folds.groups[fold.train],
            classes,
            settings.c,
            settings.gamma,
            plan.seed,
        )
        stats = self._folds.stats(fold)
        return svm.to_keras(
            svm.svm_inputs_features(plan.summary.width, settings.pool, stats), machine
        )

    def _blocks(self, fold: Fold) -> Iterator[Vectors]:
        """The train rows in order, standardised: float32[n, D], or 2·D of both pools."""
        stats, pools = self._folds.stats(fold), self._settings.pools
        for start in range(0, len(fold.train), _BLOCK_ROWS):
            rows = fold.train[start : start + _BLOCK_ROWS]
            parts = [
                (self._folds.vectors[pool][rows] - stats[pool].mean) / stats[pool].deviation
                for pool in pools
            ]
            yield np.concatenate(parts, axis=1)

    def _predict(self, learner: _Learner) -> Vectors:
        """Probabilities of the rows that judge, float32[N, C]."""
        if learner.loop is not None:
            found: Vectors = learner.loop.predict(learner.fold.val)
            return found
        return predict_head(learner.model, self._folds.vectors, learner.fold.val)

    def _judge(self) -> None:
        """Every metric with the best weights; the head itself where there is one."""
        if not all(learner.best for learner in self._learners):
            self._fail(f"{self._plan.criterion.name} is undefined on val (a single class in it?)")
            return
        found = []
        for learner in self._learners:
            learner.model.set_weights(learner.best)
            probability = self._predict(learner)
            found.append(self._scores(learner.fold, probability, *METRICS))
        metrics = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        if not self._plan.named:
            of_class = (name for name, metric in METRICS.items() if metric.of_class)
            metrics |= dict.fromkeys(of_class, float("nan"))
        several = len(self._learners) > 1
        self._outcome = replace(
            self._outcome, metrics=metrics, folds=self._outcome.folds if several else []
        )
        if several:
            return
        if self._config.get("curve"):
            positive = self._plan.positive or 0
            labels = self._folds.labels[self._learners[0].fold.val]
            curve = _curve(probability[:, positive], labels == positive)
            self._outcome = replace(self._outcome, curve=curve)
        summary = self._plan.summary
        metadata = ModelMetadata(
            dataset=self._plan.dataset,
            family="head",
            classes=summary.classes,
            takes="features",
            settings=self._settings.model_dump(mode="json"),
            width=summary.width,
            features=dict(summary.extractor),
            extractor=self._plan.extractor,
            trial=self._outcome.number,
            epoch=self._outcome.epoch,
        )
        self._packed = pack(self._learners[0].model, metadata)

    def _scores(self, fold: Fold, probability: Vectors, *names: str) -> dict[str, float]:
        """Metrics of the rows that judge, by name."""
        return scores(self._folds.labels[fold.val], probability, self._plan.criterion, names)

    def _fail(self, error: str, trace: str = "") -> None:
        self._outcome = replace(
            self._outcome, status="error", error=error, trace=trace, objective=float("nan")
        )

    def _record(self) -> None:
        write_board(self._plan.board.join(f"{self._outcome.number:05d}"), self._outcome)
        self._outcomes.write(self._outcome, self._packed)
        self._learners = []


def _curve(
    probability: npt.NDArray[np.float32], is_positive: npt.NDArray[np.bool_]
) -> dict[str, list[float | None]]:
    """Recall and precision at thresholds spread over the scores, and at 0.5."""
    spread = np.quantile(probability, np.linspace(0, 1, _CURVE_POINTS))
    thresholds = np.unique(np.append(spread[spread != 0.5], 0.5))
    found: dict[str, list[float | None]] = {"threshold": [], "recall": [], "precision": []}
    for threshold in thresholds:
        chosen = probability >= threshold
        hits = int((chosen & is_positive).sum())
        found["threshold"].append(float(threshold))
        found["recall"].append(hits / int(is_positive.sum()))
        found["precision"].append(hits / int(chosen.sum()) if chosen.any() else None)
    return found


def _told(outcome: TrialResult, done: bool) -> dict[str, Any]:
    """What Tune hears of a trial after an epoch, and at its end."""
    names = ("number", "status", "error", "ended", "epoch", "epochs", "seconds", "objective")
    told = {name: getattr(outcome, name) for name in names}
    if outcome.history:
        told |= {"train_loss": outcome.history[-1].train_loss}
        told |= {"val_loss": outcome.history[-1].val_loss}
    return {**told, "done": done}
