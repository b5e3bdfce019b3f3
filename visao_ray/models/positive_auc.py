"""The area under the ROC curve as a Keras metric of one class's probability."""

from __future__ import annotations

from typing import Any

import keras

_THRESHOLDS = 1000


class PositiveAUC(keras.metrics.AUC):  # type: ignore[misc]
    """Approximate area under the ROC curve of one class's probability, to monitor training.

    Args:
        positive: Index of the class.
    """

    def __init__(self, positive: int) -> None:
        super().__init__(num_thresholds=_THRESHOLDS, name="auc")
        self._positive = positive

    def update_state(self, labels: Any, outputs: Any, sample_weight: Any = None) -> Any:
        """Add a batch of labels, int[B], and probabilities, float[B, C]."""
        return super().update_state(
            keras.ops.equal(labels, self._positive),
            outputs[:, self._positive],
            sample_weight=sample_weight,
        )
