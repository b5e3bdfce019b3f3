"""Base class of families whose network gives a probability for each class."""

from __future__ import annotations

from typing import Any, TypeVar

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.datasets.spec import Dataset
from visao_ray.models.family import GradientFamily, StoredVectors
from visao_ray.models.settings import ClassifierSettings

P = TypeVar("P", bound=ClassifierSettings)


class Classifier(GradientFamily[P]):
    """A family whose model gives probability float32[B, C]; subclasses only need `build`."""

    @classmethod
    def check(cls, settings: P, dataset: Dataset, vectors: StoredVectors | None) -> None:
        """Check that the AUC is monitored only for datasets of two classes."""
        if settings.monitor == "auc" and len(dataset.classes) != 2:
            raise InputError(
                f"--monitor auc needs a dataset of two classes, and {dataset.name} is not one; "
                "use loss or accuracy"
            )

    def losses(self, inputs: Any, labels: Any, outputs: Any, weights: Any) -> Any:
        """Cross-entropy of each row, float32[B]."""
        keras = import_keras()

        hot = keras.ops.one_hot(labels, len(self.shape.classes))
        return keras.losses.categorical_crossentropy(
            hot, outputs, label_smoothing=self.settings.label_smoothing
        )

    def metrics(self) -> list[Any]:
        """Accuracy, and the AUC if there are two classes."""
        keras = import_keras()
        from visao_ray.models.positive_auc import PositiveAUC

        metrics: list[Any] = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
        if len(self.shape.classes) == 2:
            metrics.append(PositiveAUC(self.shape.positive))
        return metrics
