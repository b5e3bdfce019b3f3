"""Synthetic datasets: X-ray scans that are rendered from a recipe, with known true labels.

The attenuation is summed along the rays. The Beer-Lambert law and a 16-bit detector turn it into
counts, and a tone curve turns these into 8-bit grey levels. Every picture is a function of (seed,
class, index).
"""

from visao_ray.synthetic.dataset import TRUTH, render_dataset
from visao_ray.synthetic.detector import Scan
from visao_ray.synthetic.headings import ncm_headings
from visao_ray.synthetic.recipe import PlannedImage, SyntheticRecipe, plan
from visao_ray.synthetic.scan import encode, render

__all__ = [
    "TRUTH",
    "PlannedImage",
    "Scan",
    "SyntheticRecipe",
    "encode",
    "ncm_headings",
    "plan",
    "render",
    "render_dataset",
]
