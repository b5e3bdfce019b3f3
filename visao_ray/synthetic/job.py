"""The render job: synthetic scans with known true labels."""

from __future__ import annotations

from typing import Any

from visao_ray.core.ray_session import start_ray
from visao_ray.core.run import Run
from visao_ray.synthetic.dataset import render_dataset
from visao_ray.synthetic.recipe import SyntheticRecipe
from visao_ray.synthetic.settings import RenderSettings


def render_scans(settings: RenderSettings, run: Run[Any]) -> None:
    """Write `images/LABEL/NAME` and the table `truth` (true labels, hard cases, duplicates)."""
    recipe = SyntheticRecipe(
        dataset=settings.dataset,
        images=settings.images,
        classes=settings.classes,
        seed=settings.seed,
        difficult=settings.difficult,
        wrong_labels=settings.wrong_labels,
        duplicates=settings.duplicates,
        imbalance=settings.imbalance,
        unlabelled=settings.unlabelled,
    )
    start_ray()
    run.say(f"rendering {settings.images:,} {settings.dataset} scans")
    with run.timed("render"):
        counts = render_dataset(recipe, run.out)
    run.counts |= {**counts, "ok": counts["images"], "errors": 0}
    run.throughput["images_per_second"] = counts["rendered"] / run.timings["render"]
    planted = ", ".join(
        f"{counts[name]:,} {name.replace('_', ' ')}"
        for name in ("difficult", "wrong_labels", "duplicates")
    )
    run.say(f"{counts['images']:,} scans in {run.out.join('images').uri} ({planted})")
