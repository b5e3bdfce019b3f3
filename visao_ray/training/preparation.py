"""Rows and plan of a training run, made in a Ray task: the driver imports no TensorFlow.

The model is built once here, so that settings which do not fit end the job before workers start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from visao_ray.backend import import_keras
from visao_ray.datasets.spec import Dataset
from visao_ray.features.labelled import load_vectors
from visao_ray.inference.engines.keras import KerasBackbone
from visao_ray.models import saved
from visao_ray.models.backbones import resolve
from visao_ray.models.normalization import FeatureStats
from visao_ray.models.saved import ModelAbout
from visao_ray.models.simple_cnn import NATIVE_SIZE
from visao_ray.settings import TrainSettings
from visao_ray.storage import Location, locate
from visao_ray.store import schemas
from visao_ray.store.join import Snapshot, read_examples
from visao_ray.store.table import TableVersion
from visao_ray.training.plan import FINE_TUNE, Plan, Shape, phases
from visao_ray.training.rows import ImageRows, Rows, VectorRows, image_rows, vector_rows

#: Side of the images in pixels, unless --image-size says otherwise.
_SIZE = {"siamese": 224, "autoencoder": 128, "svm": 128}
_SCAN_ROWS = 65_536


@dataclass(frozen=True)
class Prepared:
    """What the driver needs to know of the rows.

    Attributes:
        plan: of the training.
        rows: of train and val.
        warnings: to show.
    """

    plan: Plan
    rows: dict[str, int]
    warnings: list[str]


def count_files(images: TableVersion) -> dict[str, Any]:
    """How many files a store has, and what became of them: `images` = `ok` + `errors`."""
    files, reasons = 0, Counter[str]()
    for batch in images.scan(["status", "error"], None, _SCAN_ROWS):
        files += batch.num_rows
        failed = batch.filter(pc.not_equal(batch["status"], schemas.OK))
        named = pc.coalesce(failed["error"], failed["status"]).to_pylist()
        reasons.update(name.split(":", 1)[0] for name in named)
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
    """What the driver needs, and the train and val rows.

    Args:
        settings: of the job.
        dataset: of the store.
        extractor: name of the vectors.
        snapshot: what to read.
        out: of the run.

    Raises:
        InputError: vectors that do not fit the dataset, or settings that do not fit each other.
    """
    summary, vectors = load_vectors(snapshot, dataset)
    train, val = vector_rows(vectors, settings.views)
    about = ModelAbout(
        dataset=dataset,
        family=settings.family,
        classes=_known(settings, summary.classes, train),
        takes="features",
        settings=_told(settings),
        width=summary.width,
        features=dict(summary.extractor),
        extractor=extractor,
    )
    mapped = vectors.open().vectors
    stats = {pool: FeatureStats.of(values, train.rows) for pool, values in mapped.items()}
    shape = _shape(dataset, summary.classes, width=summary.width, stats=stats)
    plan = _plan(settings, out, about, shape, train)
    return Prepared(plan, _rows(train, val), _left_out(summary.left_out)), (train, val)


def prepare_images(
    settings: TrainSettings, dataset: Dataset, loaders: int, snapshot: Snapshot, out: Location
) -> tuple[Prepared, tuple[ImageRows, ImageRows]]:
    """What the driver needs, and the train and val rows.

    Args:
        settings: of the job.
        dataset: of the store.
        loaders: see ImageRows.
        snapshot: what to read.
        out: of the run.

    Raises:
        InputError: no train or val images, a backbone that cannot be had, or settings that do not
            fit each other.
    """
    warning = backbone = None
    if settings.family == "transfer":
        found, warning = resolve(settings, settings.seed)
        backbone = out.join("work", "backbone.npz")
        found.write(backbone)
        size = found.image_size
        if settings.head is not None:
            where = f"--head {settings.head}"
            made = KerasBackbone(backbone, found, settings.resize, settings.batch_size).metadata
            head = saved.read_about(saved.read(locate(settings.head)), where)
            head.check_features(dataset, found.width, made, where)
    else:
        native = NATIVE_SIZE[settings.architecture]
        size = settings.image_size or _SIZE.get(settings.family, native)
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
    about = ModelAbout(
        dataset=dataset,
        family=settings.family,
        classes=_known(settings, classes, train),
        takes="images",
        settings=_told(settings),
        image_size=size,
        resize=settings.resize,
    )
    shape = _shape(dataset, classes, image_size=size)
    plan = _plan(settings, out, about, shape, train, backbone)
    warnings = [warning] if warning else []
    warnings += _left_out({"have files with contradictory labels": examples.conflicts})
    return Prepared(plan, _rows(train, val), warnings), (train, val)


def _rows(train: Rows, val: Rows) -> dict[str, int]:
    return {"train": len(train.labels), "val": len(val.labels)}


def _left_out(reasons: Mapping[str, int]) -> list[str]:
    """Warnings of images that are there, and not trained on."""
    return [f"{count:,} images {why}: they are left out" for why, count in reasons.items() if count]


def _known(settings: TrainSettings, classes: tuple[str, ...], train: Rows) -> tuple[str, ...]:
    """The classes that the finished model tells apart."""
    if settings.family == "autoencoder":
        return ()
    if settings.family == "siamese":  # by anchors, which are train images
        return tuple(classes[number] for number in np.unique(train.labels))
    return classes


def _shape(dataset: Dataset, classes: tuple[str, ...], **shape: Any) -> Shape:
    positive = dataset.positive_among(classes)
    return Shape(classes, classes.index(positive) if positive else 0, **shape)


def _plan(
    settings: TrainSettings,
    out: Location,
    about: ModelAbout,
    shape: Shape,
    train: Rows,
    backbone: Location | None = None,
) -> Plan:
    import_keras()
    from visao_ray.training.families import make_family

    plan = Plan(
        settings=settings,
        shape=shape,
        rows=len(train.labels),
        phases=phases(settings),
        about=about,
        backbone=backbone,
        head=locate(settings.head) if settings.head is not None else None,
        work=out.join("work"),
        board=out.join("tensorboard"),
    )
    if settings.family != "svm":
        family = make_family(plan)
        model = family.build()
        if any(phase.name == FINE_TUNE for phase in plan.phases):
            family.enter(model, plan.phases[-1])
    return plan


def _told(settings: TrainSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"out", "fresh"})
