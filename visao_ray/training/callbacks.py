"""What happens between epochs: dropout seeds, checkpoints that a run can go on from, TensorBoard.

Early stopping and the reduced learning rate are Keras's own callbacks; their counters are kept in
the checkpoint, so that a resumed run decides as the undisturbed one would.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
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
    """Where training stands; small enough for JSON.

    Attributes:
        phase: number of the phase that `epoch` is of.
        epoch: epochs done in this phase.
        total: epochs done in all phases.
        finished: this phase is over.
        history: one row an epoch, of all phases.
        starts: `total` each time training was begun or taken up again.
        stopping, reducing: counters of the two callbacks.
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
    """All that training needs to go on as if nothing had happened."""

    state: State
    weights: Arrays
    optimizer: Arrays
    best: Arrays

    def write(self, folder: Path) -> None:
        """Into `state.json` and three `.npz` files."""
        (folder / "state.json").write_bytes(to_json(asdict(self.state)))
        for name in ("weights", "optimizer", "best"):
            (folder / f"{name}.npz").write_bytes(to_npz(getattr(self, name)))

    @classmethod
    def read(cls, folder: Path) -> Snapshot:
        """What `write` left."""
        state = State(**json.loads((folder / "state.json").read_bytes()))
        arrays = {}
        for name in ("weights", "optimizer", "best"):
            with np.load(folder / f"{name}.npz", allow_pickle=False) as kept:
                arrays[name] = [kept[key] for key in kept.files]
        return cls(state, **arrays)


class DropoutSeeds(keras.callbacks.Callback):  # type: ignore[misc]
    """Seeds dropout anew every epoch, differently on every worker.

    A resumed run then draws what it would have drawn, and nothing of it need be kept.
    """

    def __init__(self, seed: int, rank: int, before: int) -> None:
        super().__init__()
        self._seed, self._rank, self._before = seed, rank, before

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before any step of it."""
        known = {id(variable) for variable in self.model.model.weights}
        seeds = [one for one in self.model.model.variables if id(one) not in known]
        for number, variable in enumerate(seeds):
            entropy = [self._seed, self._rank, self._before + epoch, number]
            drawn = np.random.SeedSequence(entropy).generate_state(math.prod(variable.shape))
            variable.assign(drawn.reshape(variable.shape).astype(variable.dtype))


class Cosine(keras.callbacks.LearningRateScheduler):  # type: ignore[misc]
    """Lowers the learning rate along a half cosine, epoch by epoch, to nearly zero at the end."""

    def __init__(self, phase: Phase) -> None:
        super().__init__(lambda epoch: cosine(phase.learning_rate, epoch, phase.epochs))


class Diverged(InputError):
    """A loss or score is NaN or infinite; all workers see it in the same epoch."""


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """After every epoch: a row of history, a checkpoint, and a barrier that all workers pass.

    Must come after EarlyStopping and ReduceLROnPlateau, whose counters it keeps.

    Raises:
        Diverged: a figure is not finite.
    """

    def __init__(
        self,
        state: State,
        phase: dict[str, Any],
        stopping: Any,
        reducing: Any,
        kept: Any,
        metadata: ModelMetadata,
        epochs: Location,
        rank: int,
        rows: int,
    ) -> None:
        super().__init__()
        self._state, self._phase = state, phase
        self._stopping, self._reducing = stopping, reducing
        self._kept, self._metadata = kept, metadata
        self._epochs, self._rank, self._rows = epochs, rank, rows

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        self._begun, self._trained = time.perf_counter(), 0.0
        self.model.reset_seconds()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """The last of these ends training; validation begins."""
        self._trained = time.perf_counter() - self._begun

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keep where training stands."""
        figures = {name: float(value) for name, value in (logs or {}).items()}
        busy, waited = (float(value) for value in self.model.seconds.numpy())
        state = self._state
        state.epoch, state.total = epoch + 1, state.total + 1
        row = {
            **self._phase,
            "epoch": state.total,
            "phase_epoch": state.epoch,
            **figures,
            "best": self._stopping.best_epoch == epoch and self._stopping.wait == 0,
            "seconds": time.perf_counter() - self._begun,
            "train_seconds": self._trained,
            "images_per_second": self._rows / self._trained,
            # No clock runs in deterministic steps on a GPU: then nothing is known.
            "share_waiting_for_data": max(0.0, 1 - busy / self._trained) if busy else None,
            "share_all_reduce": waited / self._trained if busy else None,
        }
        strange = [name for name, value in figures.items() if not math.isfinite(value)]
        if strange:
            raise Diverged(
                f"training diverged: {strange[0]} is {figures[strange[0]]} in epoch {state.total}; "
                "lower --learning-rate"
            )
        state.history.append(row)
        state.finished = self.model.stop_training or state.epoch == self._phase["epochs"]
        state.stopping = _counters(self._stopping, "wait", "best", "best_epoch", "stopped_epoch")
        state.reducing = _counters(self._reducing, "wait", "best", "cooldown_counter")
        name = f"{state.total:04d}"
        told = {key: value for key, value in row.items() if isinstance(value, float | int)}
        if self._rank:
            ray.train.report(told, checkpoint_dir_name=name)
            return
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "model.keras").write_bytes(self._packed())
            self._snapshot().write(Path(folder))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(told, checkpoint=checkpoint, checkpoint_dir_name=name)
        self._epochs.join(f"{name}.json").write_bytes(to_json(row))

    def _packed(self) -> bytes:
        model = self._kept()
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
    """Gives the two callbacks the counters they had; must come after them."""

    def __init__(self, state: State, best: Arrays, stopping: Any, reducing: Any) -> None:
        super().__init__()
        self._state, self._best = state, best
        self._stopping, self._reducing = stopping, reducing

    def on_train_begin(self, logs: Any = None) -> None:
        """They forget everything when training begins."""
        for callback, kept in (
            (self._stopping, self._state.stopping),
            (self._reducing, self._state.reducing),
        ):
            for name, value in kept.items():
                setattr(callback, name, value)
        if self._best:
            self._stopping.best_weights = self._best


class RemoteTensorBoard(keras.callbacks.TensorBoard):  # type: ignore[misc]
    """TensorBoard's files, copied to storage after every epoch: event files cannot grow on S3."""

    def __init__(self, folder: str, target: Location, before: int) -> None:
        super().__init__(folder, write_graph=False)
        self._folder, self._target, self._before = Path(folder), target, before

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the epoch's figures."""
        super().on_epoch_end(self._before + epoch, logs)
        for file in self._folder.rglob("events.*"):
            place = self._target.join(*file.relative_to(self._folder).parts)
            place.write_bytes(file.read_bytes())


def _counters(callback: Any, *names: str) -> dict[str, Any]:
    found = {name: getattr(callback, name) for name in names}
    return {
        name: float(value) if isinstance(value, float) or hasattr(value, "dtype") else value
        for name, value in found.items()
    }
