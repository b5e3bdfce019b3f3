"""One picture of a base: rendered from (base, label, index, seed, difficulty), encoded as JPEG."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from visao_ray.core.errors import InputError
from visao_ray.synthetic.chest import chest_scan
from visao_ray.synthetic.container import container_scan
from visao_ray.synthetic.detector import Scan
from visao_ray.synthetic.recipe import DatasetName


def scan(base: DatasetName, true_label: str, index: int, seed: int, difficulty: str = "") -> Scan:
    """The acquisition behind a picture: its attenuation map and the detector's settings.

    Raises:
        InputError: the base has no such class.
    """
    if base == "chest_xray" and true_label in ("NORMAL", "PNEUMONIA"):
        return chest_scan(true_label, index, seed, difficulty)
    if base == "vazios" and true_label in ("nvazio", "vazio"):
        return container_scan(true_label, index, seed, difficulty)
    if base == "ncm" and len(true_label) == 4 and true_label.isdigit():
        return container_scan(true_label, index, seed, difficulty)
    raise InputError(f"base {base!r} has no class {true_label!r}")


def render(
    base: DatasetName, true_label: str, index: int, seed: int, difficulty: str = ""
) -> npt.NDArray[np.uint8]:
    """Render one picture; the same arguments give the same pixels.

    Args:
        base: `chest_xray`, `vazios` or `ncm`.
        true_label: the class that the picture shows.
        index: number of the picture in its base.
        seed: seed of the base.
        difficulty: name of a hard case, or empty.

    Returns:
        Grey levels, uint8 [H, W]; sizes vary as in the real bases.

    Raises:
        InputError: the base has no such class.
    """
    picture = scan(base, true_label, index, seed, difficulty)
    return picture.grey(np.random.default_rng([seed, 41, index]))


def encode(image: npt.NDArray[np.uint8], quality: int) -> bytes:
    """A grey picture, uint8 [H, W], as JPEG of the given quality (1 to 95)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
