"""Tiny models, packed as visao_ray saves them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from visao_ray.core.backend import import_keras
from visao_ray.core.storage import locate
from visao_ray.datasets.vazios import VAZIOS
from visao_ray.models import artifact
from visao_ray.models.artifact import ModelMetadata
from visao_ray.store import schemas
from visao_ray.store.store import Store

SIDE = 32
CLASSES = ("nvazio", "vazio")


def pixel_models(folder: Path) -> dict[str, str]:
    """Save models of 32×32 pixels with outputs `probability`, `embedding` and `both`.

    Returns their URIs by output.
    """
    keras = import_keras()

    def seeded(seed: int) -> Any:
        return keras.initializers.GlorotUniform(seed=seed)

    pixels = keras.Input((SIDE, SIDE, 3), dtype="uint8", name="pixels")
    x = keras.layers.Rescaling(1 / 255)(pixels)
    x = keras.layers.Conv2D(8, 4, strides=4, activation="relu", kernel_initializer=seeded(1))(x)
    embedding = keras.layers.Dense(6, kernel_initializer=seeded(2))(keras.layers.Flatten()(x))
    dense = keras.layers.Dense(2, "softmax", kernel_initializer=seeded(3), name="probability")
    probability = dense(embedding)
    kinds = {
        "probability": probability,
        "embedding": {"embedding": embedding},
        "both": {"probability": probability, "embedding": embedding},
    }
    uris = {}
    for name, output in kinds.items():
        classes = () if name == "embedding" else CLASSES
        metadata = ModelMetadata(
            VAZIOS, "tiny", classes, "images", {"seed": 7}, image_size=SIDE, epoch=4
        )
        uris[name] = str(folder / f"{name}.keras")
        locate(uris[name]).write_bytes(artifact.pack(keras.Model(pixels, output), metadata))
    return uris


def vector_model(
    store: Path, outputs: tuple[str, ...], folder: Path, **changes: Any
) -> tuple[str, Any]:
    """Save a model that takes the vectors of a store, float32[N, 8] per pooling.

    Args:
        store: store with the vectors of one extractor.
        outputs: outputs of the model, of `probability` and `embedding`.
        folder: where to save it.
        **changes: changes of its metadata.

    Returns:
        The URI and the keras.Model.
    """
    keras = import_keras()
    found = Store.open(str(store))
    (name,) = found.extractors()
    made = schemas.description(found.vectors(name).latest().schema)
    inputs = {pool: keras.Input((8,), name=pool) for pool in ("avg", "max")}
    start = keras.initializers.GlorotUniform(seed=5)
    joined = keras.layers.Concatenate()([inputs["avg"], inputs["max"]])
    embedding = keras.layers.Dense(3, kernel_initializer=start)(joined)
    probability = keras.layers.Dense(2, "softmax", kernel_initializer=start)(embedding)
    there = {"embedding": embedding, "probability": probability}
    model = keras.Model(inputs, {kind: there[kind] for kind in outputs})
    metadata = ModelMetadata(VAZIOS, "siamese", CLASSES, "features", {}, width=8, features=made)
    uri = str(folder / "model.keras")
    locate(uri).write_bytes(artifact.pack(model, replace(metadata, **changes)))
    return uri, model
