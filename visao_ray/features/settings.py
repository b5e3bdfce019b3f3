"""Settings of the manifest and extract jobs."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from visao_ray.core.settings import PluginOptions, StoreJobSettings
from visao_ray.datasets.settings import SourceOptions, require_data
from visao_ray.inference.settings import ExtractOptions


class ManifestSettings(SourceOptions, PluginOptions, StoreJobSettings):
    """List images in --data that are new, changed or gone; set --labels. Reads no pixels."""

    job: ClassVar[str] = "manifest"
    example: ClassVar[str] = "--data s3://bucket/vazios --store s3://bucket/store"

    @model_validator(mode="after")
    def _needs_data(self) -> ManifestSettings:
        require_data(self)
        for name in ("batch", "max_errors", "val_share", "test_share"):
            if getattr(self, name) != type(self).model_fields[name].default:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} belongs to jobs/extract.py: a manifest reads no image")
        return self


class ExtractSettings(ExtractOptions, SourceOptions, PluginOptions, StoreJobSettings):
    """Run new images in --data through a network once, and keep their vectors in the store."""

    job: ClassVar[str] = "extract"
    example: ClassVar[str] = "--dataset vazios --data s3://bucket/vazios --store s3://bucket/store"

    @model_validator(mode="after")
    def _needs_data(self) -> ExtractSettings:
        require_data(self)
        return self
