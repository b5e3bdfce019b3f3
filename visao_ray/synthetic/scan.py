"""Render one picture of a dataset from its label, index, seed and difficulty, and encode it."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from visao_ray.core.errors import InputError
from visao_ray.synthetic.chest import chest_scan
from visao_ray.synthetic.container import container_scan
from visao_ray.synthetic.detector import Scan
from visao_ray.synthetic.recipe import DatasetName


def scan(
    dataset: DatasetName, true_label: str, index: int, seed: int, difficulty: str = ""
) -> Scan:
    """Return the acquisition of a picture: its attenuation map and the detector's properties.

    Args:
        dataset: `chest_xray`, `vazios` or `ncm`.
        true_label: the class that the picture shows.
        index: number of the picture in its dataset.
        seed: seed of the dataset.
        difficulty: name of a hard case, or empty.

    Returns:
        The acquisition.

    Raises:
        InputError: the dataset has no such class.
    """
    if dataset == "chest_xray" and true_label in ("NORMAL", "PNEUMONIA"):
        return chest_scan(true_label, index, seed, difficulty)
    if dataset == "vazios" and true_label in ("nvazio", "vazio"):
        return container_scan(true_label, index, seed, difficulty)
    if dataset == "ncm" and len(true_label) == 4 and true_label.isdigit():
        return container_scan(true_label, index, seed, difficulty)
    raise InputError(f"dataset {dataset!r} has no class {true_label!r}")


def render(
    dataset: DatasetName, true_label: str, index: int, seed: int, difficulty: str = ""
) -> npt.NDArray[np.uint8]:
    """Render one picture; the same arguments give the same pixels.

    Args:
        dataset: `chest_xray`, `vazios` or `ncm`.
        true_label: the class that the picture shows.
        index: number of the picture in its dataset.
        seed: seed of the dataset.
        difficulty: name of a hard case, or empty.

    Returns:
        Grey levels, uint8[H, W]; sizes vary as in the real datasets.

    Raises:
        InputError: the dataset has no such class.
    """
    picture = scan(dataset, true_label, index, seed, difficulty)
    return picture.grey(np.random.default_rng([seed, 41, index]))


def encode(image: npt.NDArray[np.uint8], quality: int) -> bytes:
    """Encode a grey picture, uint8[H, W], as JPEG with the given quality (1 to 95)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
