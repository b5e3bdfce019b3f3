"""Files that training writes for the driver: the model, its outputs for some rows, its history."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.core.run import to_json
from visao_ray.models import artifact
from visao_ray.models.artifact import ModelMetadata
from visao_ray.models.family import BatchSource
from visao_ray.training.spec import TrainSpec

_COMPARED_ROWS = 100  # val rows whose outputs are stored, to compare the exported model with

Arrays = list[npt.NDArray[Any]]


def write_artifacts(
    spec: TrainSpec, model: Any, metadata: ModelMetadata, val: BatchSource, summary: dict[str, Any]
) -> None:
    """Write the folder `trained` in the work folder of the run, `summary.json` last."""
    inputs = val.take(np.arange(min(_COMPARED_ROWS, len(val.labels))))
    outputs = artifact.outputs(model, inputs)
    trained = spec.work.join("trained")
    trained.join("model.keras").write_bytes(artifact.pack(model, metadata))
    arrays = inputs if isinstance(inputs, dict) else {"pixels": inputs}
    for name, values in (("inputs", arrays), ("outputs", outputs)):
        trained.join(f"{name}.npz").write_bytes(to_npz(values))
    summary = {"parameters": model.count_params(), "epoch": metadata.epoch, **summary}
    trained.join("summary.json").write_bytes(to_json(summary))


def to_npz(arrays: Arrays | Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return the content of a `.npz` file with arrays in order, or by name."""
    sink = io.BytesIO()
    named: dict[str, Any] = {}
    if isinstance(arrays, Mapping):
        named |= arrays
    else:
        named |= {f"array{number:05d}": array for number, array in enumerate(arrays)}
    np.savez(sink, **named)
    return sink.getvalue()
