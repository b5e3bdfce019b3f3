"""Keras callbacks of training: dropout seeds, checkpoints, TensorBoard.

Early stopping and the reduction of the learning rate are callbacks of Keras. Checkpoints store
their counters, so that a resumed run makes the same decisions as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import ray.train

from visao_ray.core.errors import InputError
from visao_ray.core.run import to_json
from visao_ray.core.storage import Location
from visao_ray.models.artifact import ModelMetadata, pack
from visao_ray.models.family import Phase
from visao_ray.models.optimizers import cosine
from visao_ray.training.artifacts import Arrays, to_npz


@dataclass
class State:
    """Progress of training, stored as JSON in a checkpoint.

    Attributes:
        phase: Number of the current phase.
        epoch: Completed epochs of this phase.
        total: Completed epochs of all phases.
        finished: Whether this phase is complete.
        history: One row per epoch of all phases.
        starts: Value of `total` each time that training started or resumed.
        stopping: Counters of EarlyStopping.
        reducing: Counters of ReduceLROnPlateau.
    """

    phase: int = 0
    epoch: int = 0
    total: int = 0
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    stopping: dict[str, Any] = field(default_factory=dict)
    reducing: dict[str, Any] = field(default_factory=dict)


@dataclass
class Snapshot:
    """Everything that training needs to resume exactly."""

    state: State
    weights: Arrays
    optimizer: Arrays
    best: Arrays

    def write(self, folder: Path) -> None:
        """Write `state.json` and three `.npz` files."""
        (folder / "state.json").write_bytes(to_json(asdict(self.state)))
        for name in ("weights", "optimizer", "best"):
            (folder / f"{name}.npz").write_bytes(to_npz(getattr(self, name)))

    @classmethod
    def read(cls, folder: Path) -> Snapshot:
        """Read the files that `write` wrote."""
        state = State(**json.loads((folder / "state.json").read_bytes()))
        arrays = {}
        for name in ("weights", "optimizer", "best"):
            with np.load(folder / f"{name}.npz", allow_pickle=False) as stored:
                arrays[name] = [stored[key] for key in stored.files]
        return cls(state, **arrays)


class DropoutSeeds(keras.callbacks.Callback):  # type: ignore[misc]
    """Set new dropout seeds in every epoch, different on every worker.

    A resumed run then draws the same numbers without any stored state.
    """

    def __init__(self, seed: int, rank: int, before: int) -> None:
        super().__init__()
        self._seed, self._rank, self._before = seed, rank, before

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Set the seeds before the first step."""
        weights = {id(variable) for variable in self.model.model.weights}
        seeds = [seed for seed in self.model.model.variables if id(seed) not in weights]
        for number, variable in enumerate(seeds):
            entropy = [self._seed, self._rank, self._before + epoch, number]
            drawn = np.random.SeedSequence(entropy).generate_state(math.prod(variable.shape))
            variable.assign(drawn.reshape(variable.shape).astype(variable.dtype))


class Cosine(keras.callbacks.LearningRateScheduler):  # type: ignore[misc]
    """Set the learning rate of each epoch on a cosine schedule to nearly zero."""

    def __init__(self, phase: Phase) -> None:
        super().__init__(lambda epoch: cosine(phase.learning_rate, epoch, phase.epochs))


class Diverged(InputError):
    """A loss or metric is NaN or infinite; all workers raise this in the same epoch."""


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """After every epoch, add a row of history, write a checkpoint, and synchronise the workers.

    It must come after EarlyStopping and ReduceLROnPlateau, whose counters it stores.

    Args:
        state: Progress of training, which it updates.
        phase: Name and number of epochs of the phase, for the history.
        stopping: The EarlyStopping callback.
        reducing: The ReduceLROnPlateau callback.
        checkpoint_model: Function that returns the model to store.
        metadata: Metadata of the model.
        epochs: Folder with one file per epoch, which the driver reads.
        rank: Rank of this worker.
        rows: Number of train rows.

    Raises:
        Diverged: A metric is not finite.
    """

    def __init__(
        self,
        state: State,
        phase: dict[str, Any],
        stopping: Any,
        reducing: Any,
        checkpoint_model: Callable[[], Any],
        metadata: ModelMetadata,
        epochs: Location,
        rank: int,
        rows: int,
    ) -> None:
        super().__init__()
        self._state, self._phase = state, phase
        self._stopping, self._reducing = stopping, reducing
        self._checkpoint_model, self._metadata = checkpoint_model, metadata
        self._epochs, self._rank, self._rows = epochs, rank, rows

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the timer."""
        self._begun, self._trained = time.perf_counter(), 0.0
        self.model.reset_seconds()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Record the time; after the last step, validation begins."""
        self._trained = time.perf_counter() - self._begun

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the history, the checkpoint, and the file for the driver."""
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        busy, waited = (float(value) for value in self.model.seconds.numpy())
        state = self._state
        state.epoch, state.total = epoch + 1, state.total + 1
        row = {
            **self._phase,
            "epoch": state.total,
            "phase_epoch": state.epoch,
            **metrics,
            "best": self._stopping.best_epoch == epoch and self._stopping.wait == 0,
            "seconds": time.perf_counter() - self._begun,
            "train_seconds": self._trained,
            "images_per_second": self._rows / self._trained,
            # Deterministic steps on a GPU are not timed; these values are then not known.
            "share_waiting_for_data": max(0.0, 1 - busy / self._trained) if busy else None,
            "share_all_reduce": waited / self._trained if busy else None,
        }
        not_finite = [name for name, value in metrics.items() if not math.isfinite(value)]
        if not_finite:
            name = not_finite[0]
            raise Diverged(
                f"training diverged: {name} is {metrics[name]} in epoch {state.total}; "
                "lower --learning-rate"
            )
        state.history.append(row)
        state.finished = self.model.stop_training or state.epoch == self._phase["epochs"]
        state.stopping = _counters(self._stopping, "wait", "best", "best_epoch", "stopped_epoch")
        state.reducing = _counters(self._reducing, "wait", "best", "cooldown_counter")
        name = f"{state.total:04d}"
        reported = {key: value for key, value in row.items() if isinstance(value, float | int)}
        if self._rank:
            ray.train.report(reported, checkpoint_dir_name=name)
            return
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "model.keras").write_bytes(self._packed())
            self._snapshot().write(Path(folder))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(reported, checkpoint=checkpoint, checkpoint_dir_name=name)
        self._epochs.join(f"{name}.json").write_bytes(to_json(row))

    def _packed(self) -> bytes:
        model = self._checkpoint_model()
        embeds_only = isinstance(model.output, dict) and "probability" not in model.output
        metadata = replace(self._metadata, epoch=self._state.total)
        return pack(model, replace(metadata, classes=()) if embeds_only else metadata)

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            self._state,
            self.model.get_weights(),
            [np.asarray(variable) for variable in self.model.optimizer.variables],
            self._stopping.best_weights,
        )


class RestoreCallbackState(keras.callbacks.Callback):  # type: ignore[misc]
    """Restore the counters of the two callbacks; it must come after them."""

    def __init__(self, state: State, best: Arrays, stopping: Any, reducing: Any) -> None:
        super().__init__()
        self._state, self._best = state, best
        self._stopping, self._reducing = stopping, reducing

    def on_train_begin(self, logs: Any = None) -> None:
        """Set the counters, which the callbacks reset when training begins."""
        for callback, counters in (
            (self._stopping, self._state.stopping),
            (self._reducing, self._state.reducing),
        ):
            for name, value in counters.items():
                setattr(callback, name, value)
        if self._best:
            self._stopping.best_weights = self._best


class RemoteTensorBoard(keras.callbacks.TensorBoard):  # type: ignore[misc]
    """Write TensorBoard files locally and copy them to storage after every epoch.

    S3 objects cannot be appended to, so event files cannot be written there directly.
    """

    def __init__(self, folder: str, target: Location, before: int) -> None:
        super().__init__(folder, write_graph=False)
        self._folder, self._target, self._before = Path(folder), target, before

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the metrics of the epoch and copy the files."""
        super().on_epoch_end(self._before + epoch, logs)
        for file in self._folder.rglob("events.*"):
            place = self._target.join(*file.relative_to(self._folder).parts)
            place.write_bytes(file.read_bytes())


def _counters(callback: Any, *names: str) -> dict[str, Any]:
    values = {name: getattr(callback, name) for name in names}
    return {
        name: float(value) if isinstance(value, float) or hasattr(value, "dtype") else value
        for name, value in values.items()
    }
