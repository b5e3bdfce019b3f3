"""The finished model as a SavedModel, and the proof that both files say what training said."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.core.storage import Location
from visao_ray.models import artifact

#: Largest difference of a probability or of a number of an embedding that counts as none.
TOLERANCE = 1e-5


def export(trained: Location, model: Location, savedmodel: Location) -> dict[str, Any]:
    """Write the model's two files and check them against what the training process computed.

    Runs in a Ray task: a process that did not train. The SavedModel's folder is TensorFlow
    Serving's: `savedmodel/1`; it takes uint8 pixels, or features, as the `.keras` file does.

    Args:
        trained: folder with `model.keras`, `inputs.npz` and `outputs.npz` of the training process.
        model: where the `.keras` file goes.
        savedmodel: folder for the SavedModel.

    Returns:
        The largest differences, the number of rows they were taken from, and the file's size.

    Raises:
        RuntimeError: a difference beyond TOLERANCE.
    """
    data = trained.join("model.keras").read_bytes()
    loaded, metadata = artifact.load(trained.join("model.keras"))
    inputs = _read(trained.join("inputs.npz"))
    expected = _read(trained.join("outputs.npz"))
    given = inputs["pixels"] if metadata.takes == "images" else inputs
    found = {"keras": artifact.outputs(loaded, given)}
    with tempfile.TemporaryDirectory() as folder:
        loaded.export(folder, format="tf_saved_model", verbose=False)
        found["savedmodel"] = _serve(folder, inputs, metadata.takes == "images")
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                place = savedmodel.join("1", *file.relative_to(folder).parts)
                place.write_bytes(file.read_bytes())
    differences = {
        name: max(float(np.abs(values[key] - expected[key]).max()) for key in expected)
        for name, values in found.items()
    }
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"the {name} file differs by {difference:.2g} from the model that was trained"
            )
    model.write_bytes(data)
    rows = len(next(iter(expected.values())))
    return {"differences": differences, "rows_compared": rows, "file_bytes": len(data)}


def _serve(
    folder: str, inputs: dict[str, npt.NDArray[Any]], pixels: bool
) -> dict[str, npt.NDArray[np.float32]]:
    """What TensorFlow alone makes of the inputs, as a server would."""
    import tensorflow as tf

    served = tf.saved_model.load(folder)  # kept by name: its variables live as long as it does
    given = tf.nest.map_structure(tf.constant, inputs["pixels"] if pixels else inputs)
    told = served.serve(given)
    told = told if isinstance(told, dict) else {"probability": told}
    return {name: values.numpy() for name, values in told.items()}


def _read(location: Location) -> dict[str, npt.NDArray[Any]]:
    with np.load(io.BytesIO(location.read_bytes()), allow_pickle=False) as kept:
        return {name: kept[name] for name in kept.files}
