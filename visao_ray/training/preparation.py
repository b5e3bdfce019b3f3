"""Rows and plan of a training run, made in a Ray task: the driver imports no TensorFlow.

The model is built once here, so that settings which do not fit end the job before workers start.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from visao_ray.backend import import_keras
from visao_ray.datasets.spec import Dataset
from visao_ray.models.backbones import resolve
from visao_ray.features.vectors import Summary, load_features
from visao_ray.models import saved
from visao_ray.models.saved import ModelAbout
from visao_ray.models.simple_cnn import NATIVE_SIZE
from visao_ray.settings import TrainSettings
from visao_ray.storage import Location, locate
from visao_ray.training.plan import FINE_TUNE, Plan, Shape, phases
from visao_ray.training.rows import (
    FeatureRows,
    ImageRows,
    Rows,
    read_features,
    read_images,
)

#: Side of the images in pixels, unless --image-size says otherwise.
_SIZE = {"siamese": 224, "autoencoder": 128, "svm": 128}


def prepare_features(
    settings: TrainSettings, dataset: Dataset, out: Location
) -> tuple[tuple[Plan, Summary], tuple[FeatureRows, FeatureRows]]:
    """The plan, what the features are, and their train and val rows.

    Raises:
        InputError: features that do not fit the dataset, or settings that do not fit each other.
    """
    assert settings.features is not None
    summary, features = load_features(settings.features, dataset, settings.views)
    train, val = read_features(features)
    about = ModelAbout(
        dataset=dataset,
        family=settings.family,
        classes=_known(settings, summary.classes, train),
        takes="features",
        settings=_told(settings),
        width=summary.width,
        features=summary.about,
    )
    shape = _shape(dataset, summary.classes, width=summary.width, moments=features.moments)
    return (_plan(settings, out, about, shape, train), summary), (train, val)


def prepare_images(
    settings: TrainSettings, dataset: Dataset, manifest: Location, out: Location, loaders: int
) -> tuple[tuple[Plan, str | None], tuple[ImageRows, ImageRows]]:
    """The plan, a warning to show, if any, and the train and val rows.

    Raises:
        InputError: a manifest that lacks something, a backbone that cannot be had, or settings
            that do not fit each other.
    """
    warning = backbone = None
    if settings.family == "transfer":
        found, warning = resolve(settings, settings.seed)
        backbone = out.join("work", "backbone.npz")
        found.write(backbone)
        size = found.image_size
        if settings.head is not None:
            where = f"--head {settings.head}"
            made = {**found.about(), "resize": settings.resize}
            head = saved.read_about(saved.read(locate(settings.head)), where)
            head.check_features(dataset, found.width, made, where)
    else:
        native = NATIVE_SIZE[settings.architecture]
        size = settings.image_size or _SIZE.get(settings.family, native)
    classes, train, val = read_images(
        manifest,
        dataset,
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
    return (_plan(settings, out, about, shape, train, backbone), warning), (train, val)


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
