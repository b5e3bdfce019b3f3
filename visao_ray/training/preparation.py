"""Preparation of a training run in a Ray task, because the driver must not import TensorFlow.

The model is built once here, so that settings that do not fit end the job before workers start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from visao_ray.core.storage import Location
from visao_ray.datasets.spec import Dataset
from visao_ray.features.labelled import load_vectors
from visao_ray.models.artifact import ModelMetadata
from visao_ray.models.family import BatchSource, Shape
from visao_ray.models.normalization import FeatureStats
from visao_ray.models.registry import FAMILIES
from visao_ray.models.settings import PixelSettings, TrainSettings, VectorSettings
from visao_ray.store import schemas
from visao_ray.store.join import Snapshot, read_examples
from visao_ray.store.table import TableVersion
from visao_ray.training.rows import ImageRows, VectorRows, image_rows, vector_rows
from visao_ray.training.spec import TrainSpec

_SCAN_ROWS = 65_536


@dataclass(frozen=True)
class Prepared:
    """Result of the preparation for the driver.

    Attributes:
        spec: What to train.
        rows: Number of rows of train and val.
        warnings: Warnings to show.
    """

    spec: TrainSpec
    rows: dict[str, int]
    warnings: list[str]


def count_files(images: TableVersion) -> dict[str, Any]:
    """Count the files of a store by status and by error: `images` = `ok` + `errors`."""
    files, reasons = 0, Counter[str]()
    for batch in images.scan(["status", "error"], None, _SCAN_ROWS):
        files += batch.num_rows
        failed = batch.filter(pc.not_equal(batch["status"], schemas.OK))
        messages = pc.coalesce(failed["error"], failed["status"]).to_pylist()
        reasons.update(message.split(":", 1)[0] for message in messages)
    errors = reasons.total()
    return {
        "images": files,
        "ok": files - errors,
        "errors": errors,
        "errors_by_reason": dict(reasons.most_common()),
    }


def prepare_vectors(
    settings: TrainSettings,
    dataset: Dataset,
    extractor: str,
    snapshot: Snapshot,
    out: Location,
) -> tuple[Prepared, tuple[VectorRows, VectorRows]]:
    """Prepare training on vectors.

    Args:
        settings: Settings of the job.
        dataset: Dataset of the store.
        extractor: Name of the extractor.
        snapshot: Versions of the store to read.
        out: Output folder of the run.

    Returns:
        The result for the driver, and the train and val rows.

    Raises:
        InputError: The vectors do not fit the dataset, or settings do not fit each other.
    """
    assert isinstance(settings, VectorSettings)
    family = FAMILIES[settings.family]
    summary, vectors = load_vectors(snapshot, dataset)
    train, val = vector_rows(vectors, settings.views)
    metadata = ModelMetadata(
        dataset=dataset,
        family=settings.family,
        classes=family.known_classes(summary.classes, train.labels),
        takes="features",
        settings=_identity(settings),
        width=summary.width,
        features=dict(summary.extractor),
        extractor=extractor,
    )
    mapped = vectors.open().vectors
    stats = {pool: FeatureStats.of(values, train.rows) for pool, values in mapped.items()}
    shape = _shape(dataset, summary.classes, train, width=summary.width, stats=stats)
    spec = _spec(settings, out, metadata, shape)
    return Prepared(spec, _rows(train, val), _left_out(summary.left_out)), (train, val)


def prepare_images(
    settings: TrainSettings, dataset: Dataset, loaders: int, snapshot: Snapshot, out: Location
) -> tuple[Prepared, tuple[ImageRows, ImageRows]]:
    """Prepare training on images.

    Args:
        settings: Settings of the job.
        dataset: Dataset of the store.
        loaders: See `ImageRows`.
        snapshot: Versions of the store to read.
        out: Output folder of the run.

    Returns:
        The result for the driver, and the train and val rows.

    Raises:
        InputError: There are no train or val images, the backbone cannot be loaded, or settings do
            not fit each other.
    """
    assert isinstance(settings, PixelSettings)
    family = FAMILIES[settings.family]
    size, warning = family.fetch(settings, dataset, out.join("work"))
    examples = read_examples(snapshot, ("train", "val"))
    classes, train, val = image_rows(
        examples,
        dataset,
        snapshot.store,
        settings.augment,
        image_size=size,
        resize=settings.resize,
        seed=settings.seed,
        loaders=loaders,
    )
    metadata = ModelMetadata(
        dataset=dataset,
        family=settings.family,
        classes=family.known_classes(classes, train.labels),
        takes="images",
        settings=_identity(settings),
        image_size=size,
        resize=settings.resize,
    )
    spec = _spec(settings, out, metadata, _shape(dataset, classes, train, image_size=size))
    warnings = [warning] if warning else []
    warnings += _left_out({"have files with contradictory labels": examples.conflicts})
    return Prepared(spec, _rows(train, val), warnings), (train, val)


def _rows(train: BatchSource, val: BatchSource) -> dict[str, int]:
    return {"train": len(train.labels), "val": len(val.labels)}


def _left_out(reasons: Mapping[str, int]) -> list[str]:
    """Return warnings about images that are not used."""
    return [f"{count:,} images {why}: they are left out" for why, count in reasons.items() if count]


def _shape(dataset: Dataset, classes: tuple[str, ...], train: BatchSource, **inputs: Any) -> Shape:
    positive = dataset.positive_among(classes)
    index = classes.index(positive) if positive else 0
    return Shape(classes, index, rows=len(train.labels), **inputs)


def _spec(
    settings: TrainSettings, out: Location, metadata: ModelMetadata, shape: Shape
) -> TrainSpec:
    spec = TrainSpec(settings, shape, metadata, out.join("work"), out.join("tensorboard"))
    spec.family().try_build()
    return spec


def _identity(settings: TrainSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"out", "fresh"})
