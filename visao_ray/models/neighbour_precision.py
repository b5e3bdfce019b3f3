"""How many of the nearest rows of its batch have the class of a row, as a Keras metric."""

from __future__ import annotations

from typing import Any

import keras

_NEIGHBOURS = 10
_FAR = 1e9  # subtracted from similarities that do not count


class NeighbourPrecision(keras.metrics.Mean):  # type: ignore[misc]
    """Mean share of the 10 most similar rows of the batch that have the class of the row.

    It stands for the search in a gallery, which would need all train rows in every epoch.
    """

    def __init__(self) -> None:
        super().__init__(name="precision")

    def update_state(self, labels: Any, outputs: Any, sample_weight: Any = None) -> Any:
        """Add a batch of labels, int[B], and embeddings of unit length, float[B, E]."""
        ops = keras.ops
        labels = ops.reshape(labels, (-1,))
        rows = ops.shape(labels)[0]
        real = (
            ops.ones((rows,)) if sample_weight is None else ops.cast(sample_weight > 0, "float32")
        )
        similarity = ops.matmul(outputs, ops.transpose(outputs))
        similarity = similarity - _FAR * ops.eye(rows) - _FAR * (1 - real)[None, :]
        values, near = ops.top_k(similarity, _NEIGHBOURS)
        counted = ops.cast(values > -_FAR / 2, "float32")  # not itself, and not a row of padding
        same = ops.cast(ops.take(labels, near) == labels[:, None], "float32")
        share = ops.sum(same * counted, axis=1) / ops.maximum(ops.sum(counted, axis=1), 1)
        return super().update_state(share, sample_weight=real)
