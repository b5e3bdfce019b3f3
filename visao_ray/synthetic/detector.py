"""Convert line-integrated attenuation to a grey image: Beer-Lambert, detector, tone curve."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

OPEN_FIELD = 60_000
"""16-bit counts of an unattenuated ray."""

Attenuation = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scan:
    """One acquisition: the attenuation along every ray, and the properties of the detector."""

    attenuation: Attenuation
    """float32[H, W], dimensionless: the sum of mu (1/m) times thickness (m) along each ray."""
    tone: Literal["cargo", "film"] = "cargo"
    """`cargo` shows transmission (air is white); `film` shows attenuation (air is black)."""
    photons: float = 8_000.0
    """Quanta per pixel of the open field; fewer is noisier."""
    psf: float = 0.5
    """Standard deviation of the point spread function, in pixels."""
    stripes: float = 0.003
    """Standard deviation of the gain between detector columns."""
    exposure: float = 1.0
    """Gain of the whole scan; below 1 the picture is dark (`cargo`)."""
    gamma: float = 1.0
    """Exponent of the tone curve."""
    window: tuple[float, float] = (0.0, 4.0)
    """Attenuations shown as black and as white (`film` only)."""

    def counts(self, rng: np.random.Generator) -> npt.NDArray[np.uint16]:
        """Return detector counts, uint16[H, W]: exp(-A), blur, quantum noise and stripes."""
        signal: Attenuation = np.exp(-self.attenuation)
        if self.psf > 0:
            signal = _spread(signal, self.psf)
        noise = rng.standard_normal(signal.shape, dtype=np.float32)
        # A Gaussian of variance I/N approximates Poisson noise well at thousands of quanta.
        noise *= np.sqrt(signal * np.float32(1.0 / self.photons) + np.float32(1e-7))
        signal += noise
        gain = rng.standard_normal(signal.shape[1], dtype=np.float32) * np.float32(self.stripes)
        signal *= (gain + 1) * np.float32(self.exposure * OPEN_FIELD)
        np.clip(signal, 0, 65_535, out=signal)
        return signal.astype(np.uint16)

    def grey(self, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Return the 8-bit picture, uint8[H, W]."""
        levels = np.arange(65_536, dtype=np.float32) * np.float32(1.0 / OPEN_FIELD)
        if self.tone == "film":
            black, white = self.window
            levels = -np.log(np.maximum(levels, np.float32(1.0 / OPEN_FIELD)))
            levels = (levels - np.float32(black)) / np.float32(white - black)
        curve = np.clip(levels, 0, 1) ** np.float32(self.gamma)
        table: npt.NDArray[np.uint8] = (curve * 255 + 0.5).astype(np.uint8)
        image: npt.NDArray[np.uint8] = table[self.counts(rng)]
        return image


def _spread(image: Attenuation, sigma: float) -> Attenuation:
    """Blur with a Gaussian; a narrow one is a three-tap kernel per axis, which is much faster."""
    if sigma > 0.8:
        blurred: Attenuation = ndimage.gaussian_filter(image, sigma, truncate=2.5)
        return blurred
    side = np.float32(0.5 * sigma * sigma)  # the three-tap kernel of this variance
    centre = np.float32(1.0) - 2 * side
    rows = image * centre
    rows[1:] += side * image[:-1]
    rows[:-1] += side * image[1:]
    rows[0] += side * image[0]
    rows[-1] += side * image[-1]
    out = rows * centre
    out[:, 1:] += side * rows[:, :-1]
    out[:, :-1] += side * rows[:, 1:]
    out[:, 0] += side * rows[:, 0]
    out[:, -1] += side * rows[:, -1]
    return out
