"""Settings of the render job."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from visao_ray.core.settings import JobSettings

#: Datasets whose scans can be rendered.
Synthetic = Literal["chest_xray", "vazios", "ncm"]


class RenderOptions(BaseSettings):
    """Contents of a rendered dataset."""

    images: int = Field(1200, ge=4, description="images to render")
    classes: int = Field(868, ge=2, le=868, description="cargo headings (ncm only)")
    difficult: float = Field(0.1, ge=0, le=1, description="share of hard cases (blur, trucks, …)")
    wrong_labels: float = Field(0.0, ge=0, lt=0.5, description="share of planted wrong labels")
    duplicates: float = Field(0.0, ge=0, lt=0.5, description="share of planted duplicates")
    imbalance: Literal["even", "long_tail"] = Field(
        "even", description="distribution of ncm images over the headings"
    )


class RenderSettings(RenderOptions, JobSettings):
    """Render synthetic scans: realistic X-ray images with known true labels."""

    job: ClassVar[str] = "render"
    example: ClassVar[str] = "--dataset ncm --images 5000 --classes 100 --out out/scans"
    writes: ClassVar[tuple[str, ...]] = ("images", "truth")

    dataset: Synthetic = Field(description="which dataset to render")
    unlabelled: bool = Field(
        False,
        description="put all images in images/arrived/, as scans that are not labelled yet",
    )
