"""Settings that name images, and what is known of them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from visao_ray.core.settings import OPERATIONAL, StoreOptions

_DATASET = "chest_xray, vazios, ncm, or FILE.toml that describes another dataset"


class SourceOptions(StoreOptions):
    """Which images, and what is known of them."""

    dataset: str | None = Field(
        None,
        description=f"{_DATASET}; a store that exists knows its own",
        json_schema_extra=OPERATIONAL,
    )
    data: str | None = Field(
        None,
        description="folder or s3://bucket/prefix of images. A folder named like a class gives its "
        "label, a train, val or test folder above it the split; other images have no label",
    )
    labels: str | None = Field(
        None,
        description="CSV or Parquet with the columns key, label, group, split (key needed): sets "
        "them for images that are in the store or enter now",
    )
    batch: str | None = Field(
        None,
        description="name under which new images enter (today's date)",
        json_schema_extra=OPERATIONAL,
    )
    mark_missing: bool = Field(
        False,
        description="write down which images of the store are not below --data any more",
        json_schema_extra=OPERATIONAL,
    )
    val_share: float = Field(0.1, gt=0, lt=1, description="share drawn for val if no val/ folder")
    test_share: float = Field(
        0.1, gt=0, lt=1, description="share drawn for test if no test/ folder"
    )
    ignore: list[str] = Field(
        [], description="name of a folder to leave out; may be given again (hidden ones always are)"
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
    if settings.data is None:
        raise ValueError("--data is missing: folder or s3://bucket/prefix of images")


def refuse_source(settings: SourceOptions, but: str = "") -> None:
    """A flag that belongs to --data would do nothing without it."""
    for name in ("labels", "batch", "mark_missing", "val_share", "test_share", "ignore", "limit"):
        if name != but and getattr(settings, name) != type(settings).model_fields[name].default:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} belongs to --data; a store is read as it is")


def require_one_source(settings: Any) -> None:
    """Either images to read first, or a store that has them."""
    if (settings.data is None) == (settings.store is None):
        raise ValueError("give either --store or --data (images outside a store)")
    if settings.data is None:
        refuse_source(settings)
