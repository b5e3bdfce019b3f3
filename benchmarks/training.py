"""Training throughput of one worker relative to plain `keras.fit`, and of two workers.

    python benchmarks/training.py

The study's CNN-A2 is trained from random weights on rendered vazios scans of its input size, on
CPUs, with as many rows per step on each worker as in plain `fit`. One run measures all of these:

1. Plain `fit` of the same model, optimizer, loss and metrics, with all threads, in its own process.
   It runs with tf.data that decodes the same JPEG files in every epoch, alternating with
   jobs/train.py (the bar applies to this comparison, because the work is the same), and with
   pixels that are in memory already (the maximum for this model on this machine).
2. jobs/train.py with one worker, then with two: Ray Train, and Ray Data from the files of --data,
   which each run reads once into its own store before it trains.

Images per second are those of the median epoch after the first: of its training steps only, and of
the whole epoch, with validation and, in jobs/train.py, checkpoint and TensorBoard.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from verdict import MACHINE, check_bars, show

from visao_ray.synthetic.recipe import SyntheticRecipe, plan
from visao_ray.synthetic.scan import encode, render

REPOSITORY = Path(__file__).parents[1]
CLASSES = ("nvazio", "vazio")
RATE = 1e-3


@dataclass(frozen=True)
class Load:
    """The work that is measured.

    Attributes:
        data: Folder with train|val|test/CLASS/*.jpg.
        images: Number of train images.
        side: Side of the images and of the model's input, in pixels.
        batch: Rows per step on each worker.
        epochs: Number of epochs; the first is not measured.
    """

    data: Path
    images: int
    side: int
    batch: int
    epochs: int


@dataclass(frozen=True)
class Speed:
    """Throughput of one training run.

    Attributes:
        steps: Images per second in training steps.
        epoch: Images per second over whole epochs.
        parameters: Number of parameters of the model.
        waiting: Share of the training time spent waiting for data, if known.
        all_reduce: Share of the training time spent in all-reduce, if known.
    """

    steps: float
    epoch: float
    parameters: int
    waiting: float = 0.0
    all_reduce: float = 0.0


def scans(load: Load) -> None:
    """Write rendered vazios scans of reduced size: train, and a few for val and test."""
    counts = {"train": load.images, "val": 2 * load.batch, "test": 2 * load.batch}
    for seed, (split, images) in enumerate(counts.items()):
        for planned in plan(SyntheticRecipe(dataset="vazios", images=images, seed=seed)):
            grey = render("vazios", planned.true_label, planned.index, seed, planned.difficulty)
            small = Image.fromarray(grey).resize((load.side, load.side), Image.Resampling.LANCZOS)
            scan = Path(planned.key)  # the name is the container; add the split to make it unique
            target = load.data / split / scan.parent / f"{split}-{scan.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encode(np.asarray(small), planned.quality))


def plain_fit(load: Load, in_memory: bool) -> Speed:
    """Train with plain `fit`, as in the guides of Keras. This runs in its own process."""
    from visao_ray.core.backend import import_keras

    keras = import_keras()
    import tensorflow as tf

    from visao_ray.models.positive_auc import PositiveAUC
    from visao_ray.models.simple_cnn import build_simple_cnn

    def read(path: Any, label: Any) -> Any:
        pixels = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.ensure_shape(pixels, (load.side, load.side, 3)), label

    def dataset(split: str) -> Any:
        files = sorted((load.data / split).rglob("*.jpg"))
        labels = np.array([CLASSES.index(file.parent.name) for file in files], np.int32)
        if in_memory:
            pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
            rows = tf.data.Dataset.from_tensor_slices((pixels, labels)).shuffle(len(files))
        else:
            paths = [str(file) for file in files]
            rows = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(files))
            rows = rows.map(read, num_parallel_calls=tf.data.AUTOTUNE)
        return rows.batch(load.batch).prefetch(tf.data.AUTOTUNE)

    class Clock(keras.callbacks.Callback):
        """Measure seconds as jobs/train.py does: training ends before validation."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: list[float] = []
            self.ends: list[float] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._begun = time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self._trained = time.perf_counter() - self._begun

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.steps.append(self._trained)
            self.ends.append(time.perf_counter())

    keras.utils.set_random_seed(0)
    model = build_simple_cnn("cnn_a2", load.side, len(CLASSES))
    model.compile(
        keras.optimizers.Adam(RATE),
        keras.losses.SparseCategoricalCrossentropy(),
        metrics=[keras.metrics.SparseCategoricalAccuracy(), PositiveAUC(0)],
    )
    clock = Clock()
    model.fit(
        dataset("train"),
        validation_data=dataset("val"),
        epochs=load.epochs,
        callbacks=[clock],
        shuffle=False,  # the dataset is shuffled
        verbose=0,
    )
    return Speed(
        load.images / median(clock.steps[1:]),
        load.images / median(np.diff(clock.ends)),
        model.count_params(),
    )


def plain(load: Load, in_memory: bool) -> Speed:
    """Run `plain_fit` in a new process."""
    source = "pixels in memory" if in_memory else "decoding the files"
    print(f"plain fit, {source}", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(plain_fit, load, in_memory).result()


def train(**options: object) -> None:
    """Run jobs/train.py in its own process with its own Ray; its output goes to stderr."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    subprocess.run(
        [sys.executable, "jobs/train.py", "--dataset=vazios", *flags],
        cwd=REPOSITORY,
        env={**os.environ, "RAY_ADDRESS": "local"},
        stdout=sys.stderr,
        check=True,
    )


def train_job(load: Load, out: Path, workers: int) -> Speed:
    """Measure jobs/train.py with as many rows per step on each worker as plain fit."""
    train(
        family="simple_cnn",
        architecture="cnn_a2",
        data=load.data,
        image_size=load.side,
        epochs=load.epochs,
        patience=load.epochs,
        batch_size=load.batch * workers,
        optimizer="adam",
        learning_rate=RATE,
        workers=workers,
        replicates=100,
        out=out,
    )
    details = json.loads((out / "result.json").read_text())["details"]
    history = details["history"][1:]
    if len(history) + 1 != load.epochs or details["restarts"]["lost_workers"]:
        raise RuntimeError(f"{out}: not {load.epochs} epochs without a restart")

    def median_of(name: str) -> float:
        return median(row[name] for row in history)

    return Speed(
        median_of("images_per_second"),
        load.images / median(np.diff(epoch_ends(out / "tensorboard" / "train"))),
        details["parameters"],
        median_of("share_waiting_for_data"),
        median_of("share_all_reduce"),
    )


def epoch_ends(folder: Path) -> list[float]:
    """Return the time at which each epoch was written to TensorBoard, in seconds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.wall_time for event in events.Tensors("epoch_loss")]


def main() -> int:
    """Measure, print the table, and check the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512, help="train scans")
    parser.add_argument("--side", type=int, default=150, help="side of the scans, in pixels")
    parser.add_argument("--batch", type=int, default=32, help="rows per step on each worker")
    parser.add_argument(
        "--epochs", type=int, default=5, help="number of epochs; the first is not measured"
    )
    parser.add_argument(
        "--turns", type=int, default=3, help="runs with one worker between plain fits"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a minimal run that only shows that it works"
    )
    options = parser.parse_args()
    if options.quick:
        options.images, options.side, options.batch, options.epochs = 64, 96, 16, 3
        options.turns = 1
    if options.images % (2 * options.batch):
        parser.error("--images must be a multiple of twice --batch, so that all steps are full")
    if options.epochs < 3:
        parser.error("--epochs must be 3 or more, because the first is not measured")

    # For all processes started below.
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    with tempfile.TemporaryDirectory(prefix="visao_ray_benchmark_") as name:
        place = Path(name)
        load = Load(place / "scans", options.images, options.side, options.batch, options.epochs)
        scans(load)
        # Alternate, and compare each run of jobs/train.py with the plain fits before and after it,
        # so that changes of the machine's speed (about a tenth) do not favour either.
        memory, files, ones = plain(load, True), [plain(load, False)], []
        for turn in range(options.turns):
            ones.append(train_job(load, place / f"one{turn}", 1))
            files.append(plain(load, False))
        two = train_job(load, place / "two", 2)

    if len({speed.parameters for speed in (*files, *ones, memory, two)}) != 1:
        raise RuntimeError("the models are not the same")
    ratios = [
        2 * one.steps / (before.steps + after.steps)
        for one, before, after in zip(ones, files, files[1:], strict=False)
    ]
    one = sorted(ones, key=lambda speed: speed.steps)[len(ones) // 2]

    def turns(speeds: list[Speed]) -> str:
        values = ", ".join(f"{speed.steps:.1f}" for speed in speeds)
        return f"{values} (whole {median(speed.epoch for speed in speeds):.1f})"

    def worker_rows(name: str, speed: Speed, workers: int) -> list[tuple[str, str]]:
        each = f"per worker {speed.steps / workers:.1f}; " if workers > 1 else ""
        shares = f"{speed.waiting:.1%} and {speed.all_reduce:.1%}"
        return [
            (f"{name}, images/s", f"{speed.steps:.1f} ({each}whole {speed.epoch:.1f})"),
            (f"{name}, waiting for data and in all-reduce", shares),
        ]

    rows = [
        ("plain fit decoding the same files, images/s of each", turns(files)),
        ("one worker in between, images/s of each", turns(ones)),
        ("one worker / plain fit around it", ", ".join(f"{ratio:.2f}" for ratio in ratios)),
        ("plain fit with pixels in memory, images/s", turns([memory])),
        *worker_rows("one worker", one, 1),
        *worker_rows("two workers", two, 2),
    ]
    ratio = median(ratios)

    print(
        f"\n{MACHINE}; CNN-A2, {one.parameters:,} parameters, "
        f"{load.images:,} scans of {load.side}², {load.batch} rows per step and worker\n"
        f"images/s of training steps in the median of {load.epochs - 1} epochs "
        "(whole: validation and checkpoint too)"
    )
    show(rows)
    claim = f"one worker / plain fit on the same files {ratio:.2f} (bar: at least 0.95)"
    return check_bars([(claim, ratio >= 0.95)], options.quick)


if __name__ == "__main__":
    sys.exit(main())
