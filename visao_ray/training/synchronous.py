"""Synchronous data-parallel training of any Keras 3 model with TensorFlow's collectives.

`fit` of Keras 3 fails under `MultiWorkerMirroredStrategy`, and so does the example in Ray's
documentation. This works: each worker holds a plain Keras model, built outside the strategy's
scope; `fit` runs as on one machine; and one step does three things differently.

1. Gradients: packed into one vector, averaged over the workers (NCCL on GPUs, a ring on CPUs), then
   applied by every worker to its own copy. Equal weights stay equal, bit for bit.
2. Metrics: sums and counts are added over the workers before `fit` reads them, so that every
   callback on every worker sees the same values and makes the same decisions.
3. Padding: every worker makes the same number of steps with the same number of rows; otherwise the
   others would wait for it forever. An incomplete step is padded with rows of weight 0: they count
   in no loss, gradient or metric. Every row has the same weight, 1 / (`workers · batch`).

Batch normalisation must be built with `synchronized=True`: its moments are then those of the whole
step, and one worker or many give the same weights for the same rows.

Use it like this, on every worker, with `TF_CONFIG` set (`tensorflow_cluster.py` does):

    strategy = tf.distribute.MultiWorkerMirroredStrategy()   # before TensorFlow does anything else
    parallel = DataParallel(model, losses, [accuracy], strategy)
    parallel.compile(optimizer="adam")
    parallel.fit(batches, steps_per_epoch=steps, epochs=epochs)   # (inputs, labels, weights)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

#: (inputs, labels, outputs, weights) → the loss of every row, float32[B].
RowLosses = Callable[[Any, Any, Any, Any], Any]


class DataParallel(keras.Model):  # type: ignore[misc]
    """Train `model` synchronously with the other workers; see the module docstring.

    Attributes:
        model: The trained model; save this one.
        seconds: float64[2], seconds since `reset_seconds`: in all steps, and the part of them in
            averaging gradients (which includes waiting for slower workers); 0 if not timed.
    """

    model: Any
    seconds: Any

    def __init__(
        self,
        model: Any,
        losses: RowLosses,
        metrics: Sequence[Any],
        strategy: Any,
        xla: bool = False,
        timed: bool = True,
    ) -> None:
        """Wrap a built model and copy the weights of rank 0 to all workers.

        Args:
            model: Any Keras model.
            losses: Function that returns the loss of every row; the penalties of the model are
                added to it.
            metrics: Keras metrics, updated with (labels, outputs, sample_weight). Their state must
                be sums and counts, as in Mean, accuracy, AUC or Precision.
            strategy: A MultiWorkerMirroredStrategy, or the default strategy of TensorFlow.
            xla: Compile forward and backward pass.
            timed: Measure `seconds`; not possible with TensorFlow's op determinism.
        """
        super().__init__(name="data_parallel")
        self.model = model
        self._losses = losses
        self._strategy = strategy
        self._loss = keras.metrics.Mean(name="loss")
        self._row_metrics = list(metrics)
        self._timed = timed
        self._compute = tf.function(self._gradients, jit_compile=True) if xla else self._gradients
        self.seconds = tf.Variable([0.0, 0.0], dtype=tf.float64, trainable=False)
        self._take_first(model.weights)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the outputs of the model."""
        return self.model(inputs, training=training)

    @property
    def metrics(self) -> list[Any]:
        """The metrics that `fit` resets every epoch: the loss, and the given metrics."""
        return [self._loss, *self._row_metrics]

    def train_step(self, batch: Any) -> dict[str, Any]:
        """Make one step on (inputs, labels, weights) of this worker."""
        with tf.control_dependencies(tf.nest.flatten(batch)):
            begin = self._clock()
        variables = self.model.trainable_variables
        if (
            self._strategy.num_replicas_in_sync == 1
        ):  # then `fit` runs steps in the default strategy
            gradients, losses, outputs, waited = self._replica(batch)
        else:
            gradients, losses, outputs, waited = self._strategy.run(self._replica, args=(batch,))
        self.optimizer.apply(gradients, variables)
        with tf.control_dependencies([tf.identity(self.optimizer.iterations)]):
            self.seconds.assign_add([self._clock() - begin, waited])
        return self._update_metrics(batch, outputs, losses)

    def test_step(self, batch: Any) -> dict[str, Any]:
        """Evaluate one step."""
        inputs, labels, weights = batch
        outputs = self.model(inputs, training=False)
        losses = self._losses(inputs, labels, outputs, weights)
        return self._update_metrics(batch, outputs, losses)

    def get_metrics_result(self) -> dict[str, Any]:
        """Return all metrics: in a step, of this worker; at the end of an epoch, of all workers."""
        if tf.executing_eagerly():
            states = [variable for metric in self.metrics for variable in metric.variables]
            self._all_reduce_variables(states)
        return {metric.name: metric.result() for metric in self.metrics}

    def reset_seconds(self) -> None:
        """Reset the timer."""
        self.seconds.assign([0.0, 0.0])

    def _clock(self) -> Any:
        return tf.timestamp() if self._timed else tf.constant(0.0, tf.float64)

    def _replica(self, batch: Any) -> Any:
        """Return averaged gradients, losses [B], outputs and the seconds of averaging."""
        gradients, losses, outputs = self._compute(*batch)
        flat = tf.concat([tf.reshape(gradient, (-1,)) for gradient in gradients], 0)
        with tf.control_dependencies([flat]):
            begin = self._clock()
        replica = tf.distribute.get_replica_context()
        flat = replica.all_reduce(tf.distribute.ReduceOp.MEAN, flat)
        with tf.control_dependencies([flat]):
            waited = self._clock() - begin
        parts = tf.split(flat, [tf.size(gradient) for gradient in gradients])
        averaged = [
            tf.reshape(part, tf.shape(gradient))
            for part, gradient in zip(parts, gradients, strict=True)
        ]
        return averaged, losses, outputs, waited

    def _gradients(self, inputs: Any, labels: Any, weights: Any) -> Any:
        with tf.GradientTape() as tape:
            outputs = self.model(inputs, training=True)
            losses = self._losses(inputs, labels, outputs, weights)
            # The mean includes the padding, so that every row of every step has the same weight.
            loss = tf.reduce_mean(losses * weights) + sum(self.model.losses)
            loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(
            loss,
            self.model.trainable_variables,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return gradients, losses, outputs

    def _update_metrics(self, batch: Any, outputs: Any, losses: Any) -> dict[str, Any]:
        _, labels, weights = batch
        self._loss.update_state(losses, sample_weight=weights)
        for metric in self._row_metrics:
            metric.update_state(labels, outputs, sample_weight=weights)
        return self.get_metrics_result()

    def _take_first(self, variables: Sequence[Any]) -> None:
        """Copy the values of rank 0 to all workers."""
        resolver = self._strategy.cluster_resolver
        if resolver is not None and resolver.task_id:
            for variable in variables:
                variable.assign(tf.zeros_like(variable.value))
        self._all_reduce_variables(variables)

    def _all_reduce_variables(self, variables: Sequence[Any]) -> None:
        """Sum variables over all workers, as one float64 vector."""
        if self._strategy.num_replicas_in_sync == 1:
            return
        values = [np.asarray(variable.value) for variable in variables]
        flat = np.concatenate([value.astype(np.float64).reshape(-1) for value in values])
        parts = np.split(self._sum(flat).numpy(), np.cumsum([value.size for value in values])[:-1])
        for variable, value, part in zip(variables, values, parts, strict=True):
            variable.assign(part.reshape(value.shape).astype(value.dtype))

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def _sum(self, vector: Any) -> Any:
        def add(part: Any) -> Any:
            replica = tf.distribute.get_replica_context()
            # Collectives need a tensor with a device; only a tensor created here has one.
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(part))

        return self._strategy.run(add, args=(vector,))
