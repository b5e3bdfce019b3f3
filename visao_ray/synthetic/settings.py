"""Settings of the job that renders scans."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from visao_ray.core.settings import JobSettings

#: Datasets whose scans can be rendered.
Synthetic = Literal["chest_xray", "vazios", "ncm"]


class RenderOptions(BaseSettings):
    """What a rendered dataset is like."""

    images: int = Field(1200, ge=4, description="images to render")
    classes: int = Field(868, ge=2, le=868, description="cargo headings (ncm only)")
    difficult: float = Field(0.1, ge=0, le=1, description="share of hard cases (blur, trucks, …)")
    wrong_labels: float = Field(0.0, ge=0, lt=0.5, description="share of planted wrong labels")
    duplicates: float = Field(0.0, ge=0, lt=0.5, description="share of planted duplicates")
    imbalance: Literal["even", "long_tail"] = Field(
        "even", description="how ncm images spread over the headings"
    )


class RenderSettings(RenderOptions, JobSettings):
    """Render synthetic scans: X-ray images that look real, with the truth written beside them."""

    job: ClassVar[str] = "render"
    example: ClassVar[str] = "--dataset ncm --images 5000 --classes 100 --out out/scans"
    writes: ClassVar[tuple[str, ...]] = ("images", "truth")

    dataset: Synthetic = Field(description="which dataset to render")
    unlabelled: bool = Field(
        False,
        description="in one folder, images/arrived/, as scans arrive before they are labelled",
    )
