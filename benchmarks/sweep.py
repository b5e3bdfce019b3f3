"""Compare the speed of a sweep with KerasTuner and with Ray Tune used as in its guides.

    python benchmarks/sweep.py

All contenders train the same 16 heads, drawn once from the space that the study searched with
KerasTuner on chest films (02d: one hidden layer, its units, dropout, Adam's learning rate), on the
same rows in the same batches of 32 for the same 10 epochs, without early stopping. Each runs in a
fresh process:

1. KerasTuner's RandomSearch, with TensorFlow's default use of all cores.
2. Ray Tune with a function trainable, one CPU per trial, and Tune's other defaults.
3. The search of jobs/sweep.py with exactly these heads; before and after the rivals.

The rivals get arrays that are standardised already, with no table to read, and evaluate val with
one plain call per epoch (Keras's own AUC would be computed in every step). Trials per minute are
given for the search, from its call to its return (ours with the start of its processes), which the
bar applies to; and for the whole process with imports, the start of Ray and our report. The AUC of
a head is the exact AUC of its best epoch, for all contenders.

The vectors are those of the real chest films in ../shared, extracted first (not timed) with the
EfficientNet-Lite0 in that folder. If they are missing, Gaussian clusters of the same shape are
used. `--store` names an existing store.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from verdict import MACHINE, check_bars

from visao_ray.core.lease import Owner
from visao_ray.core.storage import locate
from visao_ray.datasets.registry import find_dataset
from visao_ray.features.labelled import load_vectors
from visao_ray.models.normalization import FeatureStats
from visao_ray.store import schemas
from visao_ray.store.join import pin, plain_vectors
from visao_ray.store.store import Description, Store, create_or_open
from visao_ray.store.table import write_fragments

REPOSITORY = Path(__file__).parents[1]
FILMS = REPOSITORY.parent / "shared" / "data" / "chest_xray_224"
LITE0 = REPOSITORY.parent / "shared" / "weights" / "efficientnet_lite0_imagenet.keras"
DATASET, CLASSES = "chest_xray", ("NORMAL", "PNEUMONIA")
BATCH = 32

# The study's space on chest films (02d).
UNITS = (128, 192, 256, 320, 384)
DROPOUT = (0.2, 0.35, 0.5)
LEARNING_RATE = (4e-4, 2e-4, 1e-4)


@dataclass(frozen=True)
class Head:
    """Dense(units), ReLU, dropout, softmax, cross-entropy; Adam.

    Attributes:
        units: of the hidden layer.
        dropout: rate.
        learning_rate: of Adam.
    """

    units: int
    dropout: float
    learning_rate: float

    def parameters(self, width: int) -> int:
        """Number of trainable parameters with vectors of `width` numbers."""
        return (width + 1) * self.units + (self.units + 1) * len(CLASSES)


@dataclass(frozen=True)
class Load:
    """The work of each contender.

    Attributes:
        heads: to train.
        epochs: of each head.
        store: URI, for ours.
        arrays: .npz with x, val_x float32[N, D] standardised and y, val_y int32[N], for the rivals.
    """

    heads: list[Head]
    epochs: int
    store: str
    arrays: str

    def write(self, file: Path) -> None:
        """Write the work for the process of a contender."""
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Load:
        """Read the work that `write` wrote."""
        values = json.loads(file.read_text())
        return cls(**{**values, "heads": [Head(**head) for head in values["heads"]]})


@dataclass(frozen=True)
class Sweep:
    """Measurements of one sweep.

    Attributes:
        process: seconds of the whole process.
        search: seconds of the search.
        auc: of each head on val.
    """

    process: float
    search: float
    auc: list[float]

    @property
    def best(self) -> float:
        """AUC of the winner."""
        return max(self.auc)


def draw(count: int) -> list[Head]:
    """Draw different heads of the study's space, always the same ones."""
    space = [Head(*values) for values in itertools.product(UNITS, DROPOUT, LEARNING_RATE)]
    return [space[index] for index in np.random.default_rng(0).permutation(len(space))[:count]]


def rival_head(head: Head, width: int) -> Any:
    """Build and compile a head as in Keras's guides."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((width,)),
            keras.layers.Dense(head.units, "relu"),
            keras.layers.Dropout(head.dropout),
            keras.layers.Dense(len(CLASSES), "softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(head.learning_rate), "sparse_categorical_crossentropy")
    return model


def area(model: Any, x: npt.NDArray[np.float32], y: npt.NDArray[np.int32]) -> float:
    """Exact ROC AUC, in one call of the model (`predict` would compile first)."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, model(x, training=False).numpy()[:, 1]))


def keras_tuner(load: Load, place: Path) -> tuple[float, list[float]]:
    """Run KerasTuner's own loop over the numbers of the heads."""
    import keras
    import keras_tuner as kt

    with np.load(load.arrays) as arrays:
        x, y, val_x, val_y = (arrays[name] for name in ("x", "y", "val_x", "val_y"))

    class Evaluate(keras.callbacks.Callback):
        """Runs before the tuner's own callbacks, which read the value in the logs."""

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["val_auc"] = area(self.model, val_x, val_y)

    def build(hp: Any) -> Any:
        return rival_head(load.heads[hp.Choice("head", list(range(len(load.heads))))], x.shape[1])

    tuner = kt.RandomSearch(
        build,
        kt.Objective("val_auc", "max"),
        max_trials=len(load.heads),
        seed=1,
        directory=str(place),
    )
    begun = time.perf_counter()
    # A random search ends when it draws nothing new for a while: repeat it until it has all heads.
    while len(tuner.oracle.trials) < len(load.heads):
        tuner.search(
            x,
            y,
            validation_data=(val_x, val_y),
            epochs=load.epochs,
            batch_size=BATCH,
            callbacks=[Evaluate()],
            verbose=0,
        )
    seconds = time.perf_counter() - begun
    trials = tuner.oracle.trials.values()
    by_head = {trial.hyperparameters["head"]: trial.score for trial in trials}
    return seconds, [by_head[number] for number in range(len(load.heads))]


def naive_tune(load: Load, place: Path) -> tuple[float, list[float]]:
    """Run Ray Tune with a function trainable and its defaults."""
    import ray
    from ray import tune

    def train(config: dict[str, Any], x: Any, y: Any, val_x: Any, val_y: Any) -> None:
        import keras

        class Report(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                tune.report({**logs, "val_auc": area(self.model, val_x, val_y)})

        rival_head(load.heads[config["head"]], x.shape[1]).fit(
            x,
            y,
            validation_data=(val_x, val_y),
            epochs=load.epochs,
            batch_size=BATCH,
            callbacks=[Report()],
            verbose=0,
        )

    ray.init()
    with np.load(load.arrays) as arrays:
        trainable = tune.with_parameters(train, **arrays)
    tuner = tune.Tuner(
        trainable,
        param_space={"head": tune.grid_search(list(range(len(load.heads))))},
        tune_config=tune.TuneConfig(metric="val_auc", mode="max"),
        run_config=tune.RunConfig(storage_path=str(place)),
    )
    begun = time.perf_counter()
    results = tuner.fit()
    seconds = time.perf_counter() - begun
    if results.num_errors:
        raise RuntimeError(f"naive Tune: {results.errors[0]}")
    curves = {result.config["head"]: result.metrics_dataframe["val_auc"] for result in results}
    if any(len(curve) != load.epochs for curve in curves.values()):
        raise RuntimeError("a trial of naive Tune did not go through all epochs")
    return seconds, [float(curves[number].max()) for number in range(len(load.heads))]


def ours(load: Load, place: Path) -> tuple[float, list[float]]:
    """Run the search of jobs/sweep.py with the given heads."""
    from visao_ray.core.run import execute
    from visao_ray.models.head import HeadSettings
    from visao_ray.tuning.settings import SweepSettings
    from visao_ray.tuning.sweep import search

    heads = [
        HeadSettings(
            kind="dense",
            pool="avg",
            standardise=True,
            layers=1,
            units=head.units,
            dropout=head.dropout,
            optimizer="adam",
            learning_rate=head.learning_rate,
            batch_size=BATCH,
        )
        for head in load.heads
    ]
    settings = SweepSettings(
        store=[load.store],
        trials=len(heads),
        epochs=load.epochs,
        patience=load.epochs,
        reduction_factor=1,
        finalists=0,
        objective="roc_auc",
        out=str(place),
    )
    result = execute(settings, lambda settings, run: search(settings, run, heads))
    trials = pq.read_table(place / "trials").sort_by("number").to_pylist()
    if any(trial["epochs"] != load.epochs for trial in trials):
        raise RuntimeError("a trial of ours did not go through all epochs")
    return result["timings"]["search"], [trial["metric.roc_auc"] for trial in trials]


CONTENDERS: dict[str, Callable[[Load, Path], tuple[float, list[float]]]] = {
    "KerasTuner RandomSearch": keras_tuner,
    "naive Ray Tune": naive_tune,
    "jobs/sweep.py": ours,
}


def contend(name: str, load: Load, place: Path) -> Sweep:
    """Run one sweep in its own process with its own Ray; its output goes to stderr."""
    print(f"{name}: {len(load.heads)} heads", file=sys.stderr, flush=True)
    place.mkdir()
    load.write(place / "load.json")
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, __file__, "--contender", name, "--place", str(place)],
        env={**os.environ, "RAY_ADDRESS": "local"},
        stdout=sys.stderr,
        check=True,
    )
    seconds = time.perf_counter() - begun
    search, auc = json.loads((place / "found.json").read_text())
    if len(auc) != len(load.heads) or None in auc:
        raise RuntimeError(f"{name}: not every head was trained")
    return Sweep(seconds, search, auc)


def extract(store: Path) -> str:
    """Extract the real chest films into a store; return its URI."""
    print("extracting the vectors of the chest films", file=sys.stderr, flush=True)
    flags = [f"--dataset={DATASET}", f"--data={FILMS}", f"--weights={LITE0}", f"--store={store}"]
    subprocess.run(
        [sys.executable, "jobs/extract.py", *flags],
        cwd=REPOSITORY,
        env={**os.environ, "RAY_ADDRESS": "local"},
        stdout=sys.stderr,
        check=True,
    )
    return str(store)


def gauss(store: Path, train: int, val: int, width: int = 1280) -> str:
    """Make a store of two overlapping clusters, a quarter of the rows NORMAL; return its URI."""
    rng = np.random.default_rng(0)
    rows = train + val
    labels = (rng.random(rows) < 0.75).astype(np.int32)
    direction = rng.normal(size=width)
    direction *= 3.5 / np.linalg.norm(direction)  # between the centres, in standard deviations
    avg = (rng.normal(size=(rows, width)) + labels[:, None] * direction).astype(np.float32)
    keys = [f"{number:032d}" for number in range(rows)]
    ids = pa.array([key.encode() for key in keys], schemas.CONTENT_ID)
    ok = pa.array([schemas.OK] * rows)
    pools = {"avg": avg, "max": avg + 1}
    given: dict[str, Any] = {
        "key": keys,
        "content_id": ids,
        "label": [CLASSES[label] for label in labels],
        "group": keys,
        "split": ["train"] * train + ["val"] * val,
        "status": ok,
    }
    images = pa.table(
        {field.name: given.get(field.name, pa.nulls(rows, field.type)) for field in schemas.IMAGES}
    )
    empty = pa.nulls(rows, pa.string())
    vectors = pa.table(
        {
            "content_id": ids,
            "view": pa.array(np.zeros(rows, np.int16)),
            "status": ok,
            "error_type": empty,
            "message": empty,
            **{
                name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
                for name, values in pools.items()
            },
        }
    )
    description = Description(find_dataset(DATASET).to_json(), 0, 0.1, 0.1)
    owner = Owner.here(job="benchmark", run="gauss")
    with create_or_open(str(store), description, owner) as writer:
        results = schemas.results(dict.fromkeys(pools, width), {"backbone": "gauss"})
        for table, schema, data in (
            (writer.store.vectors("gauss"), results, vectors),
            (writer.store.images, schemas.IMAGES, images),
        ):
            writer.ensure(table, schema)
            writer.append(table, write_fragments(table.uri, schema, data))
    return str(store)


def spread(uri: str, file: Path) -> tuple[int, int, int]:
    """Write the rows of a store for the rivals; return the numbers of train and val rows, and D."""
    store = Store.open(uri)
    snapshot = pin(store, "benchmark", plain_vectors(store.the_extractor(None)))
    summary, data = load_vectors(snapshot, find_dataset(DATASET))
    mapped, train, val = data.open(), data.train_rows(), data.val_rows()
    vectors = mapped.vectors["avg"]
    stats = FeatureStats.of(vectors, train)
    x, val_x = ((vectors[rows] - stats.mean) / stats.deviation for rows in (train, val))
    np.savez(file, x=x, y=data.labels[train], val_x=val_x, val_y=data.labels[val])
    return len(x), len(val_x), summary.width


def check_sameness(load: Load, place: Path, auc: list[float], width: int) -> None:
    """Fail if our exported head does not have the architecture that the rivals trained."""
    from visao_ray.models import artifact

    model, _ = artifact.load(locate(str(place / "head.keras")))
    learned = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    head = load.heads[int(np.argmax(auc))]
    if learned != head.parameters(width) or learned != rival_head(head, width).count_params():
        raise RuntimeError("the heads are not the same")


def main() -> int:
    """Measure, print the table, and check the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", help="store of a two-class dataset (the chest films)")
    parser.add_argument("--heads", type=int, default=16, help="to train")
    parser.add_argument("--epochs", type=int, default=10, help="of each head")
    parser.add_argument(
        "--repeat", action="store_true", help="run the rivals twice as well, in mirrored order"
    )
    parser.add_argument(
        "--quick", action="store_true", help="the least work: checks that it runs, not how fast"
    )
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        found = CONTENDERS[options.contender](
            Load.read(options.place / "load.json"), options.place / "out"
        )
        (options.place / "found.json").write_text(json.dumps(found))
        return 0
    if options.quick:
        options.heads, options.epochs = 3, 2

    # For all processes started from here.
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    with tempfile.TemporaryDirectory(prefix="visao_ray_benchmark_") as name:
        place = Path(name)
        if options.store:
            store, kind = options.store, options.store
        elif FILMS.is_dir() and LITE0.is_file() and not options.quick:
            store, kind = extract(place / "chest"), "real chest films"
        else:
            train, val = (640, 160) if options.quick else (4172, 500)
            store, kind = gauss(place / "gauss", train, val), "Gaussian clusters (no real films)"
        train, val, width = spread(store, place / "arrays.npz")
        load = Load(draw(options.heads), options.epochs, store, str(place / "arrays.npz"))
        # Ours runs before and after the rivals, so that changes of the machine's speed cancel out.
        tuner, naive, job = CONTENDERS
        order = [job, tuner, naive, job]
        if options.repeat:
            order = [job, tuner, naive, naive, tuner, job]
        sweeps: dict[str, list[Sweep]] = {tuner: [], naive: [], job: []}
        for number, contender in enumerate(order):
            sweeps[contender].append(contend(contender, load, place / f"{number}"))
        check_sameness(load, place / "0" / "out", sweeps[job][0].auc, width)

    print(
        f"\n{MACHINE}; {kind}: {train:,} × {width:,} train, "
        f"{val:,} val; {len(load.heads)} heads, {load.epochs} epochs, batches of {BATCH}\n"
        f"{'':<26}{'trials/minute':>14} {'search alone':>14} {'best val AUC':>14}   "
        "seconds of each process"
    )
    for contender, runs in sweeps.items():
        seconds = ", ".join(f"{run.process:.1f} (search {run.search:.1f})" for run in runs)
        print(
            f"{contender:<26}{speed(runs, 'process'):>14.1f} {speed(runs, 'search'):>14.1f} "
            f"{runs[0].best:>14.4f}   {seconds}"
        )
    ratio = speed(sweeps[job], "process") / speed(sweeps[tuner], "process")
    alone = speed(sweeps[job], "search") / speed(sweeps[tuner], "search")
    over_naive = speed(sweeps[job], "process") / speed(sweeps[naive], "process")
    print(f"jobs/sweep.py / naive Ray Tune, trials/minute {over_naive:.1f}")
    # The best AUC is that of each contender's first run, not of a luckier second one.
    apart = abs(sweeps[job][0].best - sweeps[tuner][0].best)
    bars = [
        (
            f"jobs/sweep.py / KerasTuner, trials/minute of the search {alone:.1f} "
            f"(bar: at least 5); of the whole process {ratio:.1f}",
            alone >= 5,
        ),
        (f"best val AUCs {apart:.4f} apart (bar: at most 0.003)", apart <= 0.003),
    ]
    return check_bars(bars, options.quick)


def speed(runs: list[Sweep], of: str) -> float:
    """Trials per minute over all runs of a contender, by the time of its `process` or `search`."""
    seconds = sum(float(asdict(run)[of]) for run in runs)
    return 60 * sum(len(run.auc) for run in runs) / seconds


if __name__ == "__main__":
    sys.exit(main())
