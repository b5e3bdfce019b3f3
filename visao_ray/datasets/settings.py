"""Settings that name images and their labels."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from visao_ray.core.settings import OPERATIONAL, StoreOptions

_DATASET = "chest_xray, vazios, ncm, or FILE.toml that describes another dataset"


class SourceOptions(StoreOptions):
    """Where the images are, and their labels and splits."""

    dataset: str | None = Field(
        None,
        description=f"{_DATASET}; an existing store knows its dataset",
        json_schema_extra=OPERATIONAL,
    )
    data: str | None = Field(
        None,
        description="folder or s3://bucket/prefix of images. A folder named after a class gives "
        "the label; a train, val or test folder above it gives the split; other images have no "
        "label",
    )
    labels: str | None = Field(
        None,
        description="CSV or Parquet file with the columns key (required), label, group and split; "
        "sets them for new images and for images in the store",
    )
    batch: str | None = Field(
        None,
        description="batch name of new images (default: today's date)",
        json_schema_extra=OPERATIONAL,
    )
    mark_missing: bool = Field(
        False,
        description="mark images of the store that are no longer below --data as missing",
        json_schema_extra=OPERATIONAL,
    )
    val_share: float = Field(0.1, gt=0, lt=1, description="share drawn for val if no val/ folder")
    test_share: float = Field(
        0.1, gt=0, lt=1, description="share drawn for test if no test/ folder"
    )
    ignore: list[str] = Field(
        [], description="folder name to skip; repeatable (hidden folders are always skipped)"
    )
    limit: int | None = Field(
        None, ge=1, description="at most N images, taken evenly from the class folders"
    )
    max_errors: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of unusable new images above which the job fails (after writing them)",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _leave_train(self) -> SourceOptions:
        if self.val_share + self.test_share >= 1:
            raise ValueError("--val-share and --test-share leave nothing to train on")
        return self


def require_data(settings: SourceOptions) -> None:
    """Raise a ValueError if --data is missing."""
    if settings.data is None:
        raise ValueError("--data is missing: folder or s3://bucket/prefix of images")


def refuse_source(settings: SourceOptions, but: str = "") -> None:
    """Raise a ValueError for a flag that has no effect without --data, except the flag `but`."""
    for name in ("labels", "batch", "mark_missing", "val_share", "test_share", "ignore", "limit"):
        if name != but and getattr(settings, name) != type(settings).model_fields[name].default:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} belongs to --data; it has no effect on the images of a store")


def require_one_source(settings: Any) -> None:
    """Raise a ValueError unless exactly one of --data and --store is given."""
    if (settings.data is None) == (settings.store is None):
        raise ValueError("give either --store or --data (images outside a store)")
    if settings.data is None:
        refuse_source(settings)
