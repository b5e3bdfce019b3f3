"""A trial: a head trained epoch by epoch on vectors that all trials of a node share.

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
from visao_ray.tuning.folds import Fold, Folds
from visao_ray.tuning.objective import Criterion, val_metrics
from visao_ray.tuning.space import svm_is_feasible
from visao_ray.tuning.tensorboard_events import write_events
from visao_ray.tuning.trial_results import Epoch, TrialResult, TrialResults

_CURVE_POINTS = 60
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class SweepSpec:
    """Specification of a sweep: what all its trials have in common.

    Attributes:
        dataset: of the vectors.
        seed: of the sweep.
        epochs: most epochs of a trial.
        patience: epochs without a better objective after which a trial stops.
        criterion: the objective.
        positive: index of the class of the recall and precision curves, or None.
        has_class: whether metrics of one class have a class.
        folds: 1 for train and val as they are, or the number of grouped folds of both.
        summary: of the vectors.
        extractor: name of the vectors.
        trial_results: folder where finished trials are recorded.
        tensorboard: folder for TensorBoard.
    """

    dataset: Dataset
    seed: int
    epochs: int
    patience: int
    criterion: Criterion
    positive: int | None
    has_class: bool
    folds: int
    summary: Summary
    extractor: str
    trial_results: Location
    tensorboard: Location


@dataclass
class _Learner:
    """A head on one fold."""

    fold: Fold
    model: Any
    loop: Any
    shuffle: np.random.Generator
    best: list[Any]


class _FoldData:
    """Rows in this process with their folds, shared by all trials on them."""

    def __init__(self, data: LabelledVectors, spec: SweepSpec) -> None:
        from visao_ray.tuning.loop import Table

        self.folds = Folds(data, spec.folds, spec.seed)
        self.table = Table(self.folds.vectors, data.labels)


class HeadTrainable(tune.Trainable):  # type: ignore[misc]
    """Trains the head `config["head"]`; one step is one epoch of every fold.

    `config["seed_of"]` is the number of another trial whose seed this trial uses, so that only the
    head differs, or only the rows (`config["all_rows"]` trains on all rows after a search on a
    sample).

    A trial stops when its objective has not improved for `patience` epochs, or is worse than the
    threshold of an epoch in `config["rung_thresholds"]`. Both are known when it starts. It depends
    on nothing that happens meanwhile, so the same seed gives the same result. At its end the
    weights of the best epoch are evaluated with every metric and saved.

    A trial records its own result once. A trial that finds its result recorded ends at once, so no
    finished trial is repeated. An unfinished trial starts again and ends with the same result,
    because its seed depends only on its number.

    If a head raises an error, diverges or lacks memory, its trial ends with a reason, and the actor
    goes on with the next trial. Only a lost actor (killed, node gone) is a failure for Tune.
    """

    _settings: HeadSettings
    _result: TrialResult
    _started: bool

    def setup(self, config: dict[str, Any], data: Sequence[Any], spec: SweepSpec) -> None:
        """Set up the actor and its first trial.

        Args:
            config: of the first trial.
            data: references to the LabelledVectors of the search, and to all rows if those are a
                sample.
            spec: of the sweep.
        """
        import_keras()  # before TensorFlow, to keep it quiet
        self._data = data
        self._data_of: dict[int, _FoldData] = {}
        self._spec = spec
        self._trial_results = TrialResults(spec.trial_results)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in the same process."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Run one epoch; the last epoch of a trial records its result."""
        start = time.perf_counter()
        try:
            if not self._started:
                recorded = self._trial_results.read(self._result.number)
                if recorded is not None:
                    return _report(recorded, done=True)
                self._started = True
                self._build()
            if self._settings.kind == "dense":
                self._run_epoch()
            else:
                self._fit()
            if self._result.ended:
                self._evaluate()
        except Exception as error:
            self._fail(f"{type(error).__name__}: {reason(error)}", traceback.format_exc())
        seconds = self._result.seconds + time.perf_counter() - start
        self._result = replace(self._result, seconds=seconds)
        if self._result.status == "error" or self._result.ended:
            self._record()
            return _report(self._result, done=True)
        return _report(self._result, done=False)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: recorded results replace Tune's checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing, as `save_checkpoint`."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._config = config
        self._result = TrialResult(config["number"], str(self.trial_id), config["head"], "ok")
        self._started = False
        self._learners: list[_Learner] = []
        self._values: list[float] = []
        self._packed = b""

    @property
    def _fold_data(self) -> _FoldData:
        """Rows of this trial; the process opens them once."""
        place = -1 if self._config.get("all_rows") else 0
        if place not in self._data_of:
            self._data_of[place] = _FoldData(ray.get(self._data[place]), self._spec)
        return self._data_of[place]

    @property
    def _folds(self) -> Folds:
        return self._fold_data.folds

    def _build(self) -> None:
        spec, labels = self._spec, self._folds.labels
        keras = import_keras()
        keras.backend.clear_session(free_memory=False)  # the graphs of the trial before
        self._settings = HeadSettings.model_validate(self._config["head"])
        parts = self._folds.parts(self._settings.views, self._config.get("holdout", False))
        classes = spec.summary.classes
        for number, fold in enumerate(parts):
            seed_of = self._config.get("seed_of", self._result.number)
            sequence = np.random.SeedSequence([spec.seed, seed_of, number])
            keras.utils.set_random_seed(int(sequence.generate_state(1)[0]))
            stats = self._folds.stats(fold)
            model = build_head(self._built, spec.summary.width, len(classes), stats)
            loop = None
            if self._settings.kind == "dense":
                from visao_ray.tuning.loop import Loop

                compile_head(model, self._settings)
                factors = class_factors(self._settings.class_weight, labels[fold.train], classes)
                loop = Loop(
                    self._fold_data.table,
                    model,
                    self._settings.pools,
                    factors[labels],
                    self._settings.batch_size,
                )
            shuffle = np.random.default_rng(sequence)
            self._learners.append(_Learner(fold, model, loop, shuffle, []))

    @property
    def _built(self) -> HeadSettings:
        """Settings of the Keras model; for scikit-learn's kinds those of a head without layers."""
        if self._settings.kind == "dense":
            return self._settings
        return self._settings.model_copy(
            update={"standardise": True, "layers": 0, "dropout": 0.0, "l1": 0.0, "l2": 0.0}
        )

    def _run_epoch(self) -> None:
        """Train and evaluate one epoch; set `ended` if the trial is over."""
        spec, before = self._spec, self._result
        epoch = before.epochs + 1
        rate = self._settings.rate(before.epochs, spec.epochs)
        losses, val_losses, values = [], [], []
        for learner in self._learners:
            order = learner.shuffle.permutation(learner.fold.train)
            losses.append(learner.loop.run_epoch(order, rate))
            probability = learner.loop.predict(learner.fold.val)
            if not (np.isfinite(losses[-1]) and np.isfinite(probability).all()):
                self._fail(f"diverged: loss or probabilities are not finite in epoch {epoch}")
                return
            found = self._metrics(learner.fold, probability, spec.criterion.name, LOG_LOSS.name)
            values.append(found[spec.criterion.name])
            val_losses.append(found[LOG_LOSS.name])
        value = float(np.mean(values))
        row = Epoch(epoch, float(np.mean(losses)), float(np.mean(val_losses)), value)
        after = replace(before, epochs=epoch, history=[*before.history, row])
        if spec.criterion.better(value, before.objective):
            after = replace(after, epoch=epoch, objective=value, folds=values)
            for learner in self._learners:
                learner.best = learner.model.get_weights()
        thresholds = {int(at): value for at, value in self._config["rung_thresholds"].items()}
        ended = ""
        if epoch >= spec.epochs:
            ended = "epochs"
        elif epoch - after.epoch >= spec.patience:
            ended = "patience"
        elif epoch in thresholds and spec.criterion.better(thresholds[epoch], after.objective):
            ended = "halving"
        self._result = replace(after, ended=ended)

    def _fit(self) -> None:
        """Fit a kind without epochs on every fold."""
        spec, settings = self._spec, self._settings
        classes = spec.summary.classes
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
            found = self._metrics(learner.fold, self._predict(learner), spec.criterion.name)
            values.append(found[spec.criterion.name])
        self._result = replace(
            self._result,
            epoch=1,
            epochs=1,
            objective=float(np.mean(values)),
            folds=values,
            ended="fitted",
        )

    def _fit_svm(self, fold: Fold, labels: npt.NDArray[np.int32]) -> Any:
        """Fit an SVM and return it as a Keras model.

        Raises:
            InputError: as `fit_calibrated`; more rows than an SVM can be fitted on in hours.
        """
        spec, settings = self._spec, self._settings
        classes = len(spec.summary.classes)
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
            spec.seed,
        )
        stats = self._folds.stats(fold)
        return svm.to_keras(
            svm.svm_inputs_features(spec.summary.width, settings.pool, stats), machine
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
        """Probabilities of the fold's val rows, float32[N, C]."""
        if learner.loop is not None:
            found: Vectors = learner.loop.predict(learner.fold.val)
            return found
        return predict_head(learner.model, self._folds.vectors, learner.fold.val)

    def _evaluate(self) -> None:
        """Compute every metric with the best weights; save the head if there is only one fold."""
        if not all(learner.best for learner in self._learners):
            self._fail(f"{self._spec.criterion.name} is undefined on val (a single class in it?)")
            return
        found = []
        for learner in self._learners:
            learner.model.set_weights(learner.best)
            probability = self._predict(learner)
            found.append(self._metrics(learner.fold, probability, *METRICS))
        metrics = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        if not self._spec.has_class:
            of_class = (name for name, metric in METRICS.items() if metric.of_class)
            metrics |= dict.fromkeys(of_class, float("nan"))
        has_folds = len(self._learners) > 1
        self._result = replace(
            self._result, metrics=metrics, folds=self._result.folds if has_folds else []
        )
        if has_folds:
            return
        if self._config.get("curve"):
            positive = self._spec.positive or 0
            labels = self._folds.labels[self._learners[0].fold.val]
            curve = _curve(probability[:, positive], labels == positive)
            self._result = replace(self._result, curve=curve)
        summary = self._spec.summary
        metadata = ModelMetadata(
            dataset=self._spec.dataset,
            family="head",
            classes=summary.classes,
            takes="features",
            settings=self._settings.model_dump(mode="json"),
            width=summary.width,
            features=dict(summary.extractor),
            extractor=self._spec.extractor,
            trial=self._result.number,
            epoch=self._result.epoch,
        )
        self._packed = pack(self._learners[0].model, metadata)

    def _metrics(self, fold: Fold, probability: Vectors, *names: str) -> dict[str, float]:
        """Metrics of the fold's val rows, by name."""
        return val_metrics(self._folds.labels[fold.val], probability, self._spec.criterion, names)

    def _fail(self, error: str, trace: str = "") -> None:
        self._result = replace(
            self._result, status="error", error=error, trace=trace, objective=float("nan")
        )

    def _record(self) -> None:
        write_events(self._spec.tensorboard.join(f"{self._result.number:05d}"), self._result)
        self._trial_results.write(self._result, self._packed)
        self._learners = []


def _curve(
    probability: npt.NDArray[np.float32], is_positive: npt.NDArray[np.bool_]
) -> dict[str, list[float | None]]:
    """Recall and precision at quantiles of the probabilities, and at threshold 0.5."""
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


def _report(result: TrialResult, done: bool) -> dict[str, Any]:
    """Values that are reported to Tune after each epoch and at the end."""
    names = ("number", "status", "error", "ended", "epoch", "epochs", "seconds", "objective")
    values = {name: getattr(result, name) for name in names}
    if result.history:
        values |= {"train_loss": result.history[-1].train_loss}
        values |= {"val_loss": result.history[-1].val_loss}
    return {**values, "done": done}
