"""The synthetic datasets: X-ray scans rendered from a recipe, with their true labels known.

Attenuation is summed along the rays, Beer-Lambert and a 16-bit detector make it counts, a tone
curve makes those 8-bit grey. Every picture is a function of (seed, class, index).
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
