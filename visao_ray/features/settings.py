"""Settings of the jobs that list and extract images."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from visao_ray.core.settings import PluginOptions, StoreJobSettings
from visao_ray.datasets.settings import SourceOptions, require_data
from visao_ray.inference.settings import ExtractOptions


class ManifestSettings(SourceOptions, PluginOptions, StoreJobSettings):
    """List --data against a store: what is new, changed or gone. Reads no pixel; sets --labels."""

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
    """Run what is new below --data once through a network and keep its vectors in the store."""

    job: ClassVar[str] = "extract"
    example: ClassVar[str] = "--dataset vazios --data s3://bucket/vazios --store s3://bucket/store"

    @model_validator(mode="after")
    def _needs_data(self) -> ExtractSettings:
        require_data(self)
        return self
