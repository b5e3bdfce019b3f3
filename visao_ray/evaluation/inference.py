"""Apply a trained model to the images of a store that it has not predicted yet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visao_ray.core.errors import InputError
from visao_ray.core.resources import ActorPool, remotely
from visao_ray.core.run import Run
from visao_ray.core.storage import locate
from visao_ray.datasets import listing
from visao_ray.datasets.spec import Dataset
from visao_ray.features.extract import Source, new_listing, open_source
from visao_ray.inference.committing import GraphResult
from visao_ray.inference.engines.keras import KerasModel
from visao_ray.inference.graph import Work, run_graph
from visao_ray.inference.loading import Loading
from visao_ray.inference.vectors import VectorWork, list_rows, run_vectors
from visao_ray.models import artifact
from visao_ray.models.artifact import ModelMetadata
from visao_ray.store import proof, schemas
from visao_ray.store.proof import Contents
from visao_ray.store.store import Store, Writer
from visao_ray.store.table import Table, TableVersion

#: Images that one task loads.
UNIT_IMAGES = 64


def open_model(uri: str, batch_size: int) -> KerasModel:
    """Open a trained model.

    Args:
        uri: URI of the file.
        batch_size: images per batch.

    Returns:
        The model, with the digest of its file.

    Raises:
        InputError: missing, unreadable, or not a model that visao_ray trained.
    """
    location = locate(uri)
    data = artifact.read(location)
    metadata = artifact.read_metadata(data, f"--model {uri}")
    return KerasModel(location, metadata, hashlib.sha256(data).hexdigest(), batch_size)


def table_name(model: KerasModel) -> str:
    """Return the name of a model's predictions in a store: `head-trial-3-1a2b3c4d`."""
    return f"{model.name.replace(' ', '-')}-{model.digest[:8]}"


def check_model(model: KerasModel, store: Store, where: str) -> None:
    """Check that a model can be used on a store, before Ray starts.

    Args:
        model: the model.
        store: store with the images to predict.
        where: start of an error message.

    Raises:
        InputError: the model is for another dataset, or the store has no vectors that it takes.
    """
    if model.model_metadata.takes == "images":
        model.model_metadata.check_images(_dataset(store), where)
    else:
        find_vectors(model, store, where)


def find_vectors(model: KerasModel, store: Store, where: str) -> Table:
    """Find the table of vectors by the extractor that a model was trained with.

    Args:
        model: a model that takes vectors.
        store: the store.
        where: start of an error message.

    Returns:
        The table.

    Raises:
        InputError: the model is for another dataset, or the store has no such vectors; the message
            names the command that computes them.
    """
    metadata, dataset = model.model_metadata, _dataset(store)
    # With its own width and features, this checks only the dataset.
    metadata.check_features(dataset, metadata.width, metadata.features, where)
    wrong = []
    for name in store.extractors():
        table = store.vectors(name)
        if not table.exists():
            continue
        schema = table.latest().schema
        width = schemas.outputs(schema)["avg"]
        try:
            metadata.check_features(dataset, width, schemas.description(schema), where)
        except InputError as error:
            wrong.append(str(error))
        else:
            return table
    reason = wrong[0] if len(wrong) == 1 else f"{where}: store {store.uri} has no vectors for it"
    raise InputError(f"{reason}; {extract_command(metadata, store.uri)} computes them")


def find_source(settings: Any, model: KerasModel) -> Source | None:
    """Open the source of --data and check the model against it or the store, before Ray starts.

    Args:
        settings: settings of a job with a model, and images in a store or below --data.
        model: the model.

    Returns:
        The images to read before the model is used; None without --data.

    Raises:
        InputError: no such images or store, or the model does not match them.
    """
    where = f"--model {settings.model}"
    if settings.data is None:
        check_model(model, Store.open(settings.store_uri()), where)
        return None
    if model.model_metadata.takes != "images":
        store = settings.store or "STORE"
        raise InputError(
            f"{where}: the model ({model.name}) takes vectors, and images below --data have none; "
            f"run {extract_command(model.model_metadata, store, settings.data)} first, then this "
            f"with --store {store} and without --data"
        )
    source = open_source(settings)
    model.model_metadata.check_images(source.dataset, where)
    return source


def extract_command(metadata: ModelMetadata, store: str, data: str = "…") -> str:
    """Return the command that computes the vectors that a model takes."""
    names = ("engine", "backbone", "weights", "preprocessing", "image_size", "resize")
    made = metadata.features
    flags = [f"--{name.replace('_', '-')} {made[name]}" for name in names if made.get(name)]
    return " ".join(["jobs/extract.py", "--data", data, "--store", store, *flags])


def missing_contents(
    images: TableVersion, results: TableVersion | None, wanted: Contents | None = None
) -> Contents:
    """Find contents of readable images that have no row by a model. Runs in a task.

    Args:
        images: table of files.
        results: predictions of the model; None if there are none yet.
        wanted: `S32`, sorted, the contents to consider; None for all.

    Returns:
        `S32`, sorted.
    """
    found = proof.contents_without(images, results, views=1)
    return found if wanted is None else np.intersect1d(found, wanted, assume_unique=True)


def predict_contents(
    run: Run[Any], writer: Writer, model: KerasModel, contents: Any, pool: ActorPool
) -> GraphResult:
    """Predict contents of a store that have no predictions by this model yet.

    Args:
        run: the run of any job.
        writer: writer of the store.
        model: a model that passed `check_model`.
        contents: reference to the result of `missing_contents` from a task.
        pool: actors that hold the model.

    Returns:
        What was done. Contents that could not be read get no row. If the model takes vectors,
        contents without vectors get no row either, and a warning gives their number.
    """
    results = writer.store.predictions(table_name(model))
    writer.ensure(results, schemas.results(model.outputs, model.metadata))
    predict = _predict_images if model.model_metadata.takes == "images" else _predict_vectors
    with run.timed("predict"):
        done = predict(run, writer, model, contents, pool, new_listing(run))
        at, removed = remotely(proof.remove_repeated, writer.version(results))
        writer.moved(results, at)
    if removed:
        run.warn(f"{removed:,} duplicate rows of {results.uri} were removed")
    return done


def check_errors(
    errors: Mapping[str, int],
    total: int,
    max_errors: float,
    images: str = "images",
    advice: str = "",
) -> None:
    """Fail if too many images could not be predicted; the output is already written by then.

    Args:
        errors: number of images that could not be predicted, by reason.
        total: number of images, with these.
        max_errors: the largest allowed share of errors, 0 to 1.
        images: what to call the images in the message.
        advice: end of the message.

    Raises:
        InputError: the share of errors is larger.
    """
    count = sum(errors.values())
    if count and count > max_errors * total:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in errors.items())
        raise InputError(
            f"{count:,} of {total:,} {images} could not be predicted ({reasons}), more than "
            f"--max-errors {max_errors:g} allows{advice}"
        )


def _predict_images(
    run: Run[Any], writer: Writer, model: KerasModel, contents: Any, pool: ActorPool, place: str
) -> GraphResult:
    images = writer.version(writer.store.images)
    listed, files = remotely(_list_images, images, contents, place)
    if files:
        run.say(f"{files:,} images through {model.name} on {pool}")
    work = Work(
        step="predict",
        listing=listed,
        files=files,
        loading=Loading(model.image_size, model.model_metadata.resize),
        engine=model,
        results=writer.store.predictions(table_name(model)),
        unit_rows=UNIT_IMAGES,
        batch="",
    )
    return run_graph(run, writer, work, pool)


def _list_images(
    images: TableVersion, contents: Sequence[Any], place: str
) -> tuple[TableVersion, int]:
    import ray

    return listing.list_contents(images, ray.get(contents[0]), place)


def _predict_vectors(
    run: Run[Any], writer: Writer, model: KerasModel, contents: Any, pool: ActorPool, place: str
) -> GraphResult:
    store = writer.store
    vectors = find_vectors(model, store, f"--model {model.at.uri}")
    at = writer.version(vectors)
    listed, rows, without = remotely(_list_vectors, at, contents, place)
    if without:
        run.warn(
            f"{without:,} images have no vectors yet, so they are not predicted; "
            f"{extract_command(model.model_metadata, store.uri)} computes them"
        )
    if rows:
        run.say(f"{rows:,} images through {model.name} on {pool}, from their vectors")
    results = store.predictions(table_name(model))
    return run_vectors(run, writer, VectorWork("predict", at, listed, rows, model, results), pool)


def _list_vectors(
    vectors: TableVersion, contents: Sequence[Any], place: str
) -> tuple[TableVersion, int, int]:
    import ray

    wanted = ray.get(contents[0])
    listed, rows = list_rows(vectors, wanted, place)
    return listed, rows, len(wanted) - rows


def _dataset(store: Store) -> Dataset:
    return Dataset.from_json(store.description.dataset)
