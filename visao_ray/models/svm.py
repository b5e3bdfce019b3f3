"""A support vector machine (SVM) with an RBF kernel, the baseline in production before the study.

Only the results of that baseline are known (ledger, section 2f: its features, C and γ are not). So
there are two inputs: feature vectors, or pixels reduced to 32×32. scikit-learn fits the SVM. The
model file holds a Keras model of Dense layers that computes the same, with probabilities (Platt
1999). So there is no pickle file, and the SVM is served like every other model.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.models.family import BatchSource, GridFamily
from visao_ray.models.normalization import FeatureStats, Vectors
from visao_ray.models.pools import standardised, standardised_pools
from visao_ray.models.settings import EitherSettings, Pool

Labels = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

_BATCH = 256  # rows per prediction of the input model
_MAX_WORK = 1_000_000  # classes times rows
_SIDE = 32  # pixels of a reduced image
_FOLDS = 3
_NEVER = -30.0  # log-odds of a class without train rows: p ≈ 1e-13
_CACHE = 500  # MiB of kernel rows


class SvmSettings(EitherSettings):
    """Fit a support vector machine; select C and gamma from a grid on val."""

    example: ClassVar[str] = "--family svm --store s3://bucket/store --out out/svm"

    family: Literal["svm"] = "svm"
    svm_c: list[float] = Field([0.1, 1.0, 10.0, 100.0], description="values of C to try")
    svm_gamma: list[float] = Field(
        [0.1, 1.0, 10.0], description="values of gamma to try, times 1 / (features · variance)"
    )


class Svm(GridFamily[SvmSettings]):
    """The family `svm`."""

    title = "the baseline in production, an RBF SVM, from vectors or pixels"
    settings_type = SvmSettings
    image_size = 128

    def candidates(self) -> list[dict[str, float]]:
        """Return every pair of C and gamma."""
        classes, rows = len(self.shape.classes), self.shape.rows
        if classes * rows > _MAX_WORK:
            raise InputError(
                f"--family svm: {classes} one-vs-rest classifiers of {rows} train rows would take "
                "days; use --limit, or another family"
            )
        pairs = itertools.product(self.settings.svm_c, self.settings.svm_gamma)
        return [{"C": C, "gamma": gamma} for C, gamma in pairs]

    def read(
        self, train: BatchSource, val: BatchSource
    ) -> tuple[FeatureStats | None, dict[str, Any]]:
        """Return statistics of reduced images, and standardised vectors and labels by split."""
        stats = None
        if self.shape.image_size:
            stats = FeatureStats.of(_run(svm_inputs_images(self.shape.image_size), train))
        inputs = self._inputs(stats)
        return stats, {
            "x_train": _run(inputs, train),
            "y_train": train.labels,
            "x_val": _run(inputs, val),
            "y_val": val.labels,
        }

    def score(self, table: Any, candidate: Mapping[str, float]) -> dict[str, float]:
        """Fit on train and evaluate on val; see `score_svm`."""
        classes = len(self.shape.classes)
        return score_svm(**table, classes=classes, C=candidate["C"], gamma=candidate["gamma"])

    def fit(
        self, state: Any, table: Any, train: BatchSource, candidate: Mapping[str, float]
    ) -> tuple[Any, dict[str, Any]]:
        """Fit and calibrate the SVM, and convert it to a Keras model."""
        fitted = fit_calibrated(
            table["x_train"],
            table["y_train"],
            train.groups,
            len(self.shape.classes),
            candidate["C"],
            candidate["gamma"],
            self.settings.seed,
        )
        model = to_keras(self._inputs(state), fitted)
        return model, {"support_vectors": len(fitted.support)}

    def _inputs(self, stats: FeatureStats | None) -> Any:
        """Build the model that turns the inputs into standardised vectors."""
        if self.shape.image_size:
            return svm_inputs_images(self.shape.image_size, stats)
        return svm_inputs_features(self.shape.width, self.settings.pool, self.shape.stats)


@dataclass(frozen=True)
class FittedSvm:
    """A fitted SVM with probabilities, as plain arrays.

    It has M one-vs-rest classifiers: one per class, or only that of class 1 if there are two
    classes. The decision value of classifier m for x is
    f = Σ_s coefficients[s, m] · exp(−γ |x − support[s]|²) + intercept[m], and its probability is
    σ(slope[m] · f + offset[m]).

    Attributes:
        support: float32[S, D], support vectors of all classifiers.
        coefficients: float64[S, M], y·α of classifier m; 0 if s is not one of its support vectors.
        intercept: float64[M].
        slope: float64[M], slope of Platt's sigmoid.
        offset: float64[M], offset of Platt's sigmoid.
        gamma: Absolute γ.
        classes: C.
    """

    support: Vectors
    coefficients: Floats
    intercept: Floats
    slope: Floats
    offset: Floats
    gamma: float
    classes: int


def svm_inputs_features(width: int, pool: Pool, stats: Mapping[str, FeatureStats]) -> Any:
    """Build the input model of an SVM on vectors, with the inputs of a head.

    Args:
        width: D of the inputs `avg` and `max`, float32[N, D] each.
        pool: Pooled vectors to use; `both` are concatenated.
        stats: Statistics of the train rows for `avg` and `max`.

    Returns:
        keras.Model with output float32[N, D], or float32[N, 2·D] for `both`, standardised to mean 0
        and standard deviation 1 in train.
    """
    keras = import_keras()

    pools = ("avg", "max") if pool == "both" else (pool,)
    return keras.Model(*standardised_pools(pools, width, stats), name="svm_inputs")


def svm_inputs_images(image_size: int, stats: FeatureStats | None = None) -> Any:
    """Build the input model of an SVM on images, which computes the grey means of 32×32 tiles.

    To get `stats`, first run the model without them over the train images. Training and prediction
    then share the same reduction.

    Args:
        image_size: S of the input `pixels`, uint8[N, S, S, 3] in 0-255; a multiple of 32.
        stats: Statistics of the reduced train images; None leaves the values in 0..1.

    Returns:
        keras.Model with output float32[N, 1024].

    Raises:
        InputError: image_size is not a multiple of 32.
    """
    keras = import_keras()

    if image_size < _SIDE or image_size % _SIDE:
        raise InputError(
            f"image_size {image_size}: the SVM takes multiples of {_SIDE}, "
            f"e.g. {max(round(image_size / _SIDE), 1) * _SIDE}"
        )
    pixels = keras.Input((image_size, image_size, 3), dtype="uint8", name="pixels")
    x = keras.ops.mean(keras.ops.cast(pixels, "float32") / 255, axis=-1, keepdims=True)
    x = keras.layers.AveragePooling2D(image_size // _SIDE, dtype="float32", name="reduce")(x)
    x = keras.layers.Flatten(dtype="float32", name="flat")(x)
    if stats is not None:
        x = standardised(x, stats, "standardise")
    return keras.Model(pixels, x, name="svm_inputs")


def gamma_scale(x: Vectors) -> float:
    """Return 1 / (D · variance) of float32[N, D], the γ that scikit-learn calls "scale"."""
    variance = float(x.var(dtype=np.float64))
    return 1.0 / (int(x.shape[1]) * max(variance, 1e-12))


def score_svm(
    x_train: Vectors,
    y_train: Labels,
    x_val: Vectors,
    y_val: Labels,
    classes: int,
    C: float,
    gamma: float,
) -> dict[str, float]:
    """Fit an SVM on train and evaluate it on val.

    Args:
        x_train: float32[N, D], standardised.
        y_train: int32[N] class indices.
        x_val: float32[V, D], standardised.
        y_val: int32[V] class indices.
        classes: Number of classes, including classes without rows.
        C: Cost of an error, as in scikit-learn.
        gamma: γ relative to `gamma_scale(x_train)`.

    Returns:
        {"roc_auc"} for two classes (NaN if val has only one), else {"macro_f1"}.

    Raises:
        InputError: Train has fewer than two classes.
    """
    from sklearn.metrics import f1_score, roc_auc_score

    machines = fit_svm(x_train, y_train, classes, C, gamma * gamma_scale(x_train))
    decisions = _decisions(machines, x_val)
    if classes == 2:
        both = len(np.unique(y_val)) == 2
        return {"roc_auc": float(roc_auc_score(y_val, decisions[:, 0])) if both else float("nan")}
    predicted = decisions.argmax(axis=1)
    return {"macro_f1": float(f1_score(y_val, predicted, average="macro", zero_division=0))}


def fit_svm(x: Vectors, y: Labels, classes: int, C: float, gamma: float) -> list[Any]:
    """Fit the one-vs-rest classifiers.

    Args:
        x: float32[N, D], standardised.
        y: int32[N] class indices.
        classes: Number of classes, including classes without rows.
        C: Cost of an error, as in scikit-learn.
        gamma: Absolute γ.

    Returns:
        sklearn.svm.SVC for each class, or for class 1 only if there are two classes; None for a
        class without rows.

    Raises:
        InputError: `y` has fewer than two classes.
    """
    from sklearn.svm import SVC

    if len(np.unique(y)) < 2:
        raise InputError("train holds a single class; an SVM needs rows of two or more")
    return [
        SVC(C=C, gamma=gamma, cache_size=_CACHE).fit(x, y == index) if (y == index).any() else None
        for index in _machine_classes(classes)
    ]


def fit_calibrated(
    x: Vectors,
    y: Labels,
    groups: npt.NDArray[Any],
    classes: int,
    C: float,
    gamma: float,
    seed: int,
) -> FittedSvm:
    """Fit on all rows, and calibrate on out-of-fold decision values (3 grouped folds).

    The calibration is Platt's sigmoid with his smoothed targets, fitted by scikit-learn's
    LogisticRegression. Decision values of the training rows themselves would give probabilities
    that are too extreme. Val is not used.

    Args:
        x: float32[N, D], standardised.
        y: int32[N] class indices.
        groups: [N] groups; the rows of a group are in the same fold.
        classes: C; a class without rows gets probability ≈ 0.
        C: Cost of an error, as in scikit-learn.
        gamma: γ relative to `gamma_scale(x)`.
        seed: Seed of the folds.

    Returns:
        The fitted SVM.

    Raises:
        InputError: There are fewer than two classes, or too few groups or rows for the folds.
    """
    gamma *= gamma_scale(x)
    machines = fit_svm(x, y, classes, C, gamma)
    out_of_fold = _out_of_fold_decisions(x, y, groups, classes, C, gamma, seed)
    known = ~np.isnan(out_of_fold)
    hits = y[:, None] == np.array(_machine_classes(classes))
    if not (known & hits).any() or not (known & ~hits).any():
        raise InputError(
            "every class has train rows of a single group; the probabilities of an SVM need at "
            "least two groups of a class"
        )

    rows = np.unique(np.concatenate([m.support_ for m in machines if m is not None]))
    count = len(machines)
    coefficients = np.zeros((len(rows), count))
    intercept, slope, offset = np.zeros(count), np.zeros(count), np.full(count, _NEVER)
    for place, machine in enumerate(machines):
        if machine is None:
            continue
        coefficients[np.searchsorted(rows, machine.support_), place] = machine.dual_coef_[0]
        intercept[place] = machine.intercept_[0]
        # If all rows of a class are in one group, its classifier does not exist in the fold that
        # holds them out. The class then uses the sigmoid of all classifiers together.
        alone = not hits[known[:, place], place].any()
        of = known if alone else known & (np.arange(count) == place)
        slope[place], offset[place] = _sigmoid(out_of_fold[of], hits[of])
    return FittedSvm(x[rows], coefficients, intercept, slope, offset, gamma, classes)


def to_keras(inputs_model: Any, fitted: FittedSvm) -> Any:
    """Convert an SVM to a Keras model of standard layers, with the inputs of `inputs_model`.

    For two classes, the output is [1 − p, p]. For more classes, it is the one-vs-rest
    probabilities, divided by their sum.

    Args:
        inputs_model: Model of `svm_inputs_features` or `svm_inputs_images` that was used to fit.
        fitted: The fitted SVM.

    Returns:
        keras.Model with output float32[N, C].
    """
    keras = import_keras()
    ops, layers = keras.ops, keras.layers

    # −γ|x − s|² = 2γ x·s − γ|s|² − γ|x|²: Dense on [x, |x|²].
    support, gamma = fitted.support.astype(np.float64), fitted.gamma
    x = inputs_model.output
    norm = ops.sum(ops.square(x), axis=-1, keepdims=True)
    kernel = layers.Dense(len(support), "exponential", dtype="float32", name="kernel")
    values = kernel(layers.Concatenate(dtype="float32", name="with_norm")([x, norm]))
    kernel.set_weights(
        [
            np.concatenate([2 * gamma * support.T, np.full((1, len(support)), -gamma)]),
            -gamma * np.square(support).sum(axis=1),
        ]
    )
    odds = fitted.coefficients * fitted.slope
    bias = fitted.intercept * fitted.slope + fitted.offset
    if fitted.classes == 2:
        # Softmax of [0, z] is [1 − σ(z), σ(z)].
        odds, bias = np.pad(odds, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
    # Softmax of log σ(z) is σ(z) divided by its sum, also if all are tiny.
    activation = None if fitted.classes == 2 else "log_sigmoid"
    machines = layers.Dense(fitted.classes, activation, dtype="float32", name="machines")
    logits = machines(values)
    machines.set_weights([odds, bias])
    probability = layers.Softmax(dtype="float32", name="probability")(logits)
    return keras.Model(inputs_model.input, probability, name="svm")


def _run(model: Any, rows: BatchSource) -> Vectors:
    """Apply a model to all rows without augmentation, float32[N, D]; the last batch is padded."""
    count = len(rows.labels)
    steps = np.resize(np.arange(count), (-(-count // _BATCH), _BATCH))
    views = np.zeros(len(steps), np.int64)  # view 0 is not augmented
    parts = [np.asarray(model.predict_on_batch(inputs)) for inputs in rows.stream(steps, views)]
    return np.concatenate(parts)[:count]


def _machine_classes(classes: int) -> range:
    """Return the classes that have a one-vs-rest classifier."""
    return range(1, 2) if classes == 2 else range(classes)


def _decisions(machines: list[Any], x: Vectors) -> Floats:
    """Return decision values, float64[N, M]; −inf for a class without rows."""
    columns = [
        np.full(len(x), -np.inf) if machine is None else machine.decision_function(x)
        for machine in machines
    ]
    return np.stack(columns, axis=1)


def _sigmoid(decisions: Floats, positive: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Fit slope and offset of Platt's sigmoid to decision values [N] and labels [N]."""
    from sklearn.linear_model import LogisticRegression

    ones, zeros = np.count_nonzero(positive), np.count_nonzero(~positive)
    target = np.where(positive, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    # A target between 0 and 1 is one row of each class, weighted.
    fit = LogisticRegression(C=np.inf).fit(
        np.tile(decisions, 2)[:, None],
        np.repeat([1, 0], len(target)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])


def _out_of_fold_decisions(
    x: Vectors,
    y: Labels,
    groups: npt.NDArray[Any],
    classes: int,
    C: float,
    gamma: float,
    seed: int,
) -> Floats:
    """Return out-of-fold decision values, float64[N, M]; NaN where there is no classifier."""
    from sklearn.model_selection import StratifiedGroupKFold

    if len(np.unique(groups)) < _FOLDS:
        raise InputError(
            f"train holds {len(np.unique(groups))} groups; the probabilities of an SVM need "
            f"{_FOLDS} or more"
        )
    if np.bincount(y).max() < _FOLDS:
        raise InputError(f"no class has {_FOLDS} train rows, which an SVM needs")
    decisions = np.full((len(x), len(_machine_classes(classes))), np.nan)
    fold_of = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # with rows in fewer folds
        folds = list(fold_of.split(x, y, groups))
    for train, held_out in folds:
        if not len(held_out) or len(np.unique(y[train])) < 2:
            continue
        machines = fit_svm(x[train], y[train], classes, C, gamma)
        for place, machine in enumerate(machines):
            if machine is not None:
                decisions[held_out, place] = machine.decision_function(x[held_out])
    return decisions
