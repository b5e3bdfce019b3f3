"""Export of the final model as a SavedModel, and a check of both files against training."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.core.storage import Location
from visao_ray.models import artifact

#: Largest accepted difference of a probability or of an embedding value.
TOLERANCE = 1e-5


def export(trained: Location, model: Location, savedmodel: Location) -> dict[str, Any]:
    """Write the `.keras` file and the SavedModel, and compare them with the outputs of training.

    This runs in a Ray task, a process that did not train. The folder of the SavedModel has the
    layout of TensorFlow Serving, `savedmodel/1`. Its inputs are those of the `.keras` file: uint8
    pixels, or features.

    Args:
        trained: Folder with `model.keras`, `inputs.npz` and `outputs.npz` of the training process.
        model: Location of the `.keras` file to write.
        savedmodel: Folder of the SavedModel to write.

    Returns:
        `differences`, the largest by file; `rows_compared`; and `file_bytes`, the size of the
        `.keras` file.

    Raises:
        RuntimeError: A difference exceeds TOLERANCE.
    """
    data = trained.join("model.keras").read_bytes()
    loaded, metadata = artifact.load(trained.join("model.keras"))
    inputs = _read(trained.join("inputs.npz"))
    expected = _read(trained.join("outputs.npz"))
    batch = inputs["pixels"] if metadata.takes == "images" else inputs
    outputs = {"keras": artifact.outputs(loaded, batch)}
    with tempfile.TemporaryDirectory() as folder:
        loaded.export(folder, format="tf_saved_model", verbose=False)
        outputs["savedmodel"] = _serve(folder, inputs, metadata.takes == "images")
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                place = savedmodel.join("1", *file.relative_to(folder).parts)
                place.write_bytes(file.read_bytes())
    differences = {
        name: max(float(np.abs(values[key] - expected[key]).max()) for key in expected)
        for name, values in outputs.items()
    }
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"the outputs of the {name} file differ by {difference:.2g} from the trained model"
            )
    model.write_bytes(data)
    rows = len(next(iter(expected.values())))
    return {"differences": differences, "rows_compared": rows, "file_bytes": len(data)}


def _serve(
    folder: str, inputs: dict[str, npt.NDArray[Any]], pixels: bool
) -> dict[str, npt.NDArray[np.float32]]:
    """Compute the outputs with TensorFlow only, as a server does."""
    import tensorflow as tf

    served = tf.saved_model.load(folder)  # the reference keeps its variables alive
    batch = tf.nest.map_structure(tf.constant, inputs["pixels"] if pixels else inputs)
    outputs = served.serve(batch)
    outputs = outputs if isinstance(outputs, dict) else {"probability": outputs}
    return {name: values.numpy() for name, values in outputs.items()}


def _read(location: Location) -> dict[str, npt.NDArray[Any]]:
    with np.load(io.BytesIO(location.read_bytes()), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
