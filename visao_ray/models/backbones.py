"""Backbones: the networks that turn an image into a feature map, and their weights."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location, locate, reason
from visao_ray.models.settings import BackboneOptions

_METADATA_FIELDS = ("name", "weights", "digest", "image_size", "width", "preprocessing")
DEFAULT = "densenet121"
_DEFAULT_SIZE = 224
_DOWNLOAD_TIMEOUT_S = 60


@dataclass(frozen=True)
class Backbone:
    """A network without its top, in a form that can be sent to other processes.

    Attributes:
        name: Name of a keras.applications model in lower case, or the stem of a `.keras` file.
        weights: The weights as the user named them: imagenet, random, or a URI.
        digest: SHA-256 over all weight arrays; equal digests mean equal weights.
        image_size: Side of the square input in pixels.
        width: Channels of the feature map, which is the length D of a feature vector.
        preprocessing: `imagenet` or `unit`, see `build`.
        arrays: Weights of a keras.applications model, else empty.
        file: Content of a `.keras` file, else empty.
    """

    name: str
    weights: str
    digest: str
    image_size: int
    width: int
    preprocessing: str
    arrays: tuple[npt.NDArray[Any], ...] = ()
    file: bytes = b""

    def write(self, location: Location) -> None:
        """Write the network to one file, which other processes `read`."""
        metadata = {name: getattr(self, name) for name in _METADATA_FIELDS}
        arrays: dict[str, Any] = {f"array{n:05d}": array for n, array in enumerate(self.arrays)}
        sink = io.BytesIO()
        np.savez(
            sink,
            metadata=np.frombuffer(json.dumps(metadata).encode(), np.uint8),
            content=np.frombuffer(self.file, np.uint8),
            **arrays,
        )
        location.write_bytes(sink.getvalue())

    @classmethod
    def read(cls, location: Location) -> Backbone:
        """Read a network that `write` wrote."""
        with np.load(io.BytesIO(location.read_bytes()), allow_pickle=False) as stored:
            names = sorted(name for name in stored.files if name.startswith("array"))
            return cls(
                **json.loads(stored["metadata"].tobytes()),
                arrays=tuple(stored[name] for name in names),
                file=stored["content"].tobytes(),
            )

    def metadata(self, resize: str) -> dict[str, Any]:
        """Describe the network for a table of vectors: everything that determines the values.

        Args:
            resize: How an image is made square, stretch or letterbox.

        Returns:
            The description, whose digest is part of the extractor's name.
        """
        return {
            "backbone": self.name,
            "weights": self.weights,
            "weights_digest": self.digest,
            "image_size": self.image_size,
            "preprocessing": self.preprocessing,
            "resize": resize,
            "dtype": "float32",
        }


def resolve(options: BackboneOptions, seed: int) -> tuple[Backbone, str | None]:
    """Find a backbone and load its weights.

    This imports Keras, so it runs in a Ray task, not in the driver.

    Args:
        options: The backbone, its weights and its input size.
        seed: Seed of random weights.

    Returns:
        The backbone, and a warning to show, or None.

    Raises:
        InputError: The name is unknown, or the weights cannot be loaded or do not fit.
    """
    keras = import_keras()
    if options.weights.endswith(".keras"):
        return _from_file(keras, options), None
    name, builder = _application(keras, options.backbone or DEFAULT)
    size = options.image_size or _DEFAULT_SIZE
    keras.utils.set_random_seed(seed)
    weights, warning = options.weights, None
    if weights == "imagenet":
        try:
            model = _imagenet(builder, name, size)
        except InputError as error:
            if options.weights_fallback != "random":
                raise
            weights = "random"
            warning = (
                f"no ImageNet weights ({error}). Continuing with RANDOM weights from seed {seed}, "
                "because of --weights-fallback random: the metrics below only show that the job "
                "runs"
            )
            keras.utils.set_random_seed(seed)
    if weights != "imagenet":
        model = _build(builder, name, size, None)
    if weights not in ("imagenet", "random"):
        _load_weights(model, weights, name)
    arrays = tuple(model.get_weights())
    backbone = Backbone(
        name=name,
        weights=weights,
        digest=_digest(arrays),
        image_size=size,
        width=_feature_width(model, name),
        preprocessing=options.preprocessing,
        arrays=arrays,
    )
    return backbone, warning


def build(backbone: Backbone, wrap: Callable[[Any], Any] | None = None) -> Any:
    """Build the Keras model: RGB uint8 [B, S, S, 3] in 0-255 → (avg, max), float32[B, D] each.

    `wrap`, if given, puts a layer around the network itself, which fine-tuning needs.

    Both pools come from one forward pass. (The study wanted to compare them, but used the maximum
    twice: ledger A2.) The model normalises its input. `imagenet` is the preprocessing that the
    weights were trained with; a `.keras` file includes its own. `unit` divides by 255, as the study
    did.
    """
    keras = import_keras()
    shape = (backbone.image_size, backbone.image_size, 3)
    pixels = keras.Input(shape, dtype="uint8", name="pixels")
    values = keras.ops.cast(pixels, "float32")
    if backbone.preprocessing == "unit":
        values = values / 255.0
    if backbone.file:
        trunk = _load_model(keras, backbone.file, backbone.name)
    else:
        _, builder = _application(keras, backbone.name)
        trunk = _build(builder, backbone.name, backbone.image_size, None)
        trunk.set_weights(list(backbone.arrays))
        if backbone.preprocessing == "imagenet":
            values = sys.modules[builder.__module__].preprocess_input(values)
    trunk.trainable = False
    feature_map = wrap(trunk)(values) if wrap else trunk(values, training=False)
    average = keras.layers.GlobalAveragePooling2D(name="avg")(feature_map)
    maximum = keras.layers.GlobalMaxPooling2D(name="max")(feature_map)
    model = keras.Model(pixels, (average, maximum), name=backbone.name)
    # XLA compiles for half a minute on a CPU and gains nothing there.
    model.compile(jit_compile=False)
    return model


def _application(keras: Any, name: str) -> tuple[str, Any]:
    known = {
        key.lower(): builder
        for key, builder in vars(keras.applications).items()
        if inspect.isfunction(builder) and key[0].isupper()
    }
    if name.lower() not in known:
        raise InputError(
            f"--backbone {name}: not a keras.applications model; known are "
            f"{', '.join(sorted(known))}"
        )
    return name.lower(), known[name.lower()]


def _build(builder: Any, name: str, size: int, weights: str | None) -> Any:
    try:
        return builder(include_top=False, weights=weights, input_shape=(size, size, 3))
    except ValueError as error:
        raise InputError(f"--backbone {name} at {size} pixels: {reason(error)}") from error


def _imagenet(builder: Any, name: str, size: int) -> Any:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)  # else lost packets block forever
    try:
        return builder(include_top=False, weights="imagenet", input_shape=(size, size, 3))
    except Exception as error:  # Keras raises bare Exception when a download fails
        if "URL" not in str(error) and not isinstance(error, OSError):
            raise
        cause = reason(error).removeprefix("URL fetch failure on ")
        raise InputError(
            f"the imagenet weights of {name} could not be downloaded: {cause}. Download that file "
            "on another machine, and pass it with --weights FILE"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _read_weights(uri: str) -> bytes:
    try:
        return locate(uri).read_bytes()
    except OSError as error:
        raise InputError(f"--weights {uri}: cannot be read: {reason(error)}") from error


def _load_weights(model: Any, uri: str, name: str) -> None:
    if not uri.endswith(".h5"):
        raise InputError(
            f"--weights {uri}: use imagenet, random, a .weights.h5 or .h5 file, or a .keras model"
        )
    suffix = ".weights.h5" if uri.endswith(".weights.h5") else ".h5"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"backbone{suffix}"
        path.write_bytes(_read_weights(uri))
        try:
            model.load_weights(str(path))
        except Exception as error:
            raise InputError(
                f"--weights {uri} do not fit --backbone {name} without its top: {reason(error)}"
            ) from error


def _from_file(keras: Any, options: BackboneOptions) -> Backbone:
    uri = options.weights
    content = _read_weights(uri)
    name = uri.rsplit("/", 1)[-1].removesuffix(".keras")
    model = _load_model(keras, content, uri)
    if options.backbone and options.backbone.lower() not in (name.lower(), model.name.lower()):
        raise InputError(
            f"--weights {uri} is a whole model ({model.name}), not weights for --backbone "
            f"{options.backbone}; remove --backbone to use it"
        )
    shape = model.input_shape if isinstance(model.input_shape, tuple) else ()
    if len(shape) != 4 or shape[3] != 3:
        raise InputError(f"--weights {uri}: takes {model.input_shape}, not images [B,S,S,3]")
    side = shape[1] or options.image_size or _DEFAULT_SIZE
    if options.image_size not in (None, side):
        raise InputError(f"--image-size {options.image_size}: --weights {uri} takes {side}")
    return Backbone(
        name=name,
        weights=uri.rsplit("/", 1)[-1],
        digest=_digest(model.get_weights()),
        image_size=side,
        width=_feature_width(model, uri),
        preprocessing=options.preprocessing,
        file=content,
    )


def _load_model(keras: Any, content: bytes, name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        path.write_bytes(content)
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            raise InputError(
                f"--weights {name}: not a usable .keras model: {reason(error)}"
            ) from error


def _feature_width(model: Any, name: str) -> int:
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] is None:
        raise InputError(
            f"--weights/--backbone {name}: the output shape is {shape}; a feature map [B,H,W,D] is "
            "needed to compute the average and the maximum"
        )
    return int(shape[3])


def _digest(arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
