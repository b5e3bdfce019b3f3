"""The training loop of a worker. Only workers start TensorFlow."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import ray
import ray.train
import tensorflow as tf

from visao_ray.core.ray_session import start_ray
from visao_ray.core.run import to_json
from visao_ray.models.family import BatchSource, GradientFamily, Phase
from visao_ray.models.head import class_factors
from visao_ray.models.optimizers import make_optimizer
from visao_ray.models.settings import GradientSettings
from visao_ray.training.artifacts import write_artifacts
from visao_ray.training.batches import Batches
from visao_ray.training.callbacks import (
    CheckpointCallback,
    Cosine,
    Diverged,
    DropoutSeeds,
    RemoteTensorBoard,
    RestoreCallbackState,
    Snapshot,
    State,
)
from visao_ray.training.schedule import Schedule
from visao_ray.training.spec import TrainSpec
from visao_ray.training.synchronous import DataParallel


def train_worker(config: dict[str, Any]) -> None:
    """Train on this worker's rows of every step; rank 0 writes the results to `spec.work`.

    Args:
        config: `spec`, a TrainSpec of a `GradientFamily`, and `rows`, a list with the object
            reference of the train and val rows.
    """
    spec: TrainSpec = config["spec"]
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    family = spec.family()
    _set_up(family.settings, context.get_local_world_size())
    # The strategy sets up collectives, so it must be created before other TensorFlow operations.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    start_ray()
    train, val = ray.get(config["rows"][0])
    keras.utils.set_random_seed(spec.settings.seed)
    model = family.build()
    trainer = _Trainer(spec, family, model, strategy, rank, workers, train, val)
    try:
        trainer.run()
    except Diverged as error:  # all workers raise it in the same epoch; a retry would diverge too
        if rank == 0:
            spec.work.join("diverged.txt").write_bytes(str(error).encode())
        return
    usage = {"peak_memory_bytes": _peak_memory()}
    spec.work.join("workers", f"{rank}.json").write_bytes(to_json(usage))
    if rank == 0:
        state = trainer.state
        best = [row["epoch"] for row in state.history if row["best"]]
        metadata = replace(spec.metadata, epoch=best[-1] if best else 0)
        summary = {"history": state.history, "starts": state.starts}
        write_artifacts(spec, family.final_model(model, train), metadata, val, summary)


class _Trainer:
    """Run the phases of training on one worker."""

    def __init__(
        self,
        spec: TrainSpec,
        family: GradientFamily[Any],
        model: Any,
        strategy: Any,
        rank: int,
        workers: int,
        train: BatchSource,
        val: BatchSource,
    ) -> None:
        settings = family.settings
        self._spec, self._family, self._model = spec, family, model
        self._phases = family.phases()
        self._strategy, self._rank, self._workers = strategy, rank, workers
        classes = spec.shape.classes
        factors = class_factors(settings.class_weight, train.labels, classes)
        schedule = Schedule(train.labels, settings.batch_size, settings.seed, pairs=family.pairs)
        self._train = Batches(train, schedule, rank, workers, factors)
        # Pairs of val are the same in every epoch, so that its metrics can be compared.
        fixed = replace(schedule, labels=val.labels, shuffled=False)
        self._val = Batches(val, fixed, rank, workers, np.ones(len(classes), np.float32))
        self.state = State()

    def run(self) -> None:
        """Run all incomplete phases, from the last checkpoint on."""
        snapshot = None
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                snapshot = Snapshot.read(Path(folder))
            self.state = snapshot.state
            self._model.set_weights(snapshot.weights)
        self.state.starts.append(self.state.total)
        for number, phase in enumerate(self._phases):
            if number < self.state.phase:
                continue
            if snapshot is not None and self.state.finished:
                self._model.set_weights(snapshot.best)
            else:
                self._run_phase(phase, snapshot)
            snapshot = None
            if number + 1 < len(self._phases):
                self.state = State(
                    phase=number + 1,
                    total=self.state.total,
                    history=self.state.history,
                    starts=self.state.starts,
                )

    def _run_phase(self, phase: Phase, snapshot: Snapshot | None) -> None:
        settings, state = self._family.settings, self.state
        self._family.set_trainable(self._model, phase)
        parallel = DataParallel(
            self._model,
            self._family.losses,
            self._family.metrics(),
            self._strategy,
            xla=settings.xla,
            timed=not tf.config.list_physical_devices("GPU"),
        )
        parallel.compile(optimizer=_optimizer(settings, phase), jit_compile=False)
        parallel.optimizer.build(self._model.trainable_variables)
        before = state.total - state.epoch
        monitor = f"val_{settings.monitor}"
        mode = "min" if settings.monitor == "loss" else "max"
        val = self._val.dataset(0, 1, cache=True)  # `fit` reads it after every epoch
        best: list[Any] = []
        if snapshot is not None:
            for variable, value in zip(
                parallel.optimizer.variables, snapshot.optimizer, strict=True
            ):
                variable.assign(value)
            best = snapshot.best
        elif phase.trained:
            best = parallel.get_weights()
            first = parallel.evaluate(val, steps=self._val.steps, verbose=0, return_dict=True)
            state.stopping = {"best": float(first[settings.monitor]), "best_epoch": -1}
            state.reducing = {"best": float(first[settings.monitor])}
        stopping = keras.callbacks.EarlyStopping(
            monitor, mode=mode, patience=settings.patience, restore_best_weights=True
        )
        reducing = keras.callbacks.ReduceLROnPlateau(
            monitor,
            mode=mode,
            patience=settings.reduce_patience if settings.schedule == "plateau" else sys.maxsize,
            factor=settings.reduce_factor,
        )
        with tempfile.TemporaryDirectory() as folder:
            callbacks: list[Any] = [
                DropoutSeeds(settings.seed, self._rank, before),
                *([Cosine(phase)] if settings.schedule == "cosine" else []),
                stopping,
                reducing,
                RestoreCallbackState(state, best, stopping, reducing),
            ]
            if self._rank == 0:
                callbacks.append(RemoteTensorBoard(folder, self._spec.tensorboard, before))
            callbacks.append(
                CheckpointCallback(
                    state,
                    {"phase": phase.name, "epochs": phase.epochs},
                    stopping,
                    reducing,
                    lambda: self._family.checkpoint_model(self._model),
                    self._spec.metadata,
                    self._spec.work.join("epochs"),
                    self._rank,
                    len(self._train.rows.labels),
                )
            )
            parallel.fit(
                self._train.dataset(before + state.epoch, before + phase.epochs),
                steps_per_epoch=self._train.steps,
                validation_data=val,
                validation_steps=self._val.steps,
                initial_epoch=state.epoch,
                epochs=phase.epochs,
                callbacks=callbacks,
                shuffle=False,
                verbose=0,
            )


def _set_up(settings: GradientSettings, workers_here: int) -> None:
    """Set threads, GPU memory, determinism and dtype of TensorFlow in this process."""
    gpus = tf.config.list_physical_devices("GPU")
    # In a process that has run TensorFlow before, the threads cannot be changed.
    with contextlib.suppress(RuntimeError):
        if not gpus:
            # Divide the cores among the workers of this node, to avoid oversubscription.
            threads = max(1, (os.cpu_count() or 1) // workers_here)
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:  # on CPUs the kernels used here are deterministic anyway
        tf.config.experimental.enable_op_determinism()
    if settings.dtype != "float32":
        keras.config.set_dtype_policy(f"mixed_{settings.dtype}")


def _optimizer(settings: GradientSettings, phase: Phase) -> Any:
    optimizer = make_optimizer(settings.optimizer, phase.learning_rate)
    if settings.dtype == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _peak_memory() -> int:
    """Return the peak memory in bytes: of the GPU if there is one, else of the process."""
    if tf.config.list_logical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used) * (1 if sys.platform == "darwin" else 1024)
