"""A trained model on the images of a store: those that it has not predicted yet, and no others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
    """A trained model, with the digest of its file.

    Args:
        uri: of the file.
        batch_size: images the network sees at once.

    Raises:
        InputError: missing, unreadable, or not a file that visao_ray trained.
    """
    location = locate(uri)
    data = artifact.read(location)
    metadata = artifact.read_metadata(data, f"--model {uri}")
    return KerasModel(location, metadata, hashlib.sha256(data).hexdigest(), batch_size)


def table_name(model: KerasModel) -> str:
    """The name of a model's predictions in a store: `head-trial-3-1a2b3c4d`."""
    return f"{model.name.replace(' ', '-')}-{model.digest[:8]}"


def check_model(model: KerasModel, store: Store, where: str) -> None:
    """Check that a model can be used on a store, before Ray starts.

    Args:
        model: to be used.
        store: whose images it is to predict.
        where: begins the message of an error.

    Raises:
        InputError: it is for another dataset, or the store has no vectors of the kind it takes.
    """
    if model.model_metadata.takes == "images":
        model.model_metadata.check_images(_dataset(store), where)
    else:
        find_vectors(model, store, where)


def find_vectors(model: KerasModel, store: Store, where: str) -> Table:
    """The table of vectors of the kind that a model was trained on.

    Raises:
        InputError: it is for another dataset, or the store has no such vectors; the message says
            which command makes them.
    """
    metadata, dataset = model.model_metadata, _dataset(store)
    metadata.check_features(
        dataset, metadata.width, metadata.features, where
    )  # of the dataset alone
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
    raise InputError(f"{reason}; {extract_command(metadata, store.uri)} makes them")


def find_source(settings: Any, model: KerasModel) -> Source | None:
    """What --data has to read before a model is used, if it is given; before Ray starts.

    Args:
        settings: of a job with a model, and images in a store or below --data.
        model: to be used; it is checked against them.

    Raises:
        InputError: no such images or store, or the model does not fit them.
    """
    where = f"--model {settings.model}"
    if settings.data is None:
        check_model(model, Store.open(settings.store_uri()), where)
        return None
    if model.model_metadata.takes != "images":
        store = settings.store or "STORE"
        raise InputError(
            f"{where}: the model ({model.name}) takes vectors, which images below --data have not; "
            f"run {extract_command(model.model_metadata, store, settings.data)} first, then this "
            f"with --store {store} and without --data"
        )
    source = open_source(settings)
    model.model_metadata.check_images(source.dataset, where)
    return source


def extract_command(metadata: ModelMetadata, store: str, data: str = "…") -> str:
    """The command that makes the vectors which a model takes."""
    names = ("engine", "backbone", "weights", "preprocessing", "image_size", "resize")
    made = metadata.features
    flags = [f"--{name.replace('_', '-')} {made[name]}" for name in names if made.get(name)]
    return " ".join(["jobs/extract.py", "--data", data, "--store", store, *flags])


def missing_contents(
    images: TableVersion, results: TableVersion | None, wanted: Contents | None = None
) -> Contents:
    """Contents of readable images for which a model has no row, sorted, as `S32`. For a task.

    Args:
        images: table of files.
        results: predictions of the model; None where there are none yet.
        wanted: the contents that count, sorted; None: all.
    """
    found = proof.contents_without(images, results, views=1)
    return found if wanted is None else np.intersect1d(found, wanted, assume_unique=True)


def predict_contents(
    run: Run[Any], writer: Writer, model: KerasModel, contents: Any, pool: ActorPool
) -> GraphResult:
    """Predict contents of a store that have no predictions by this model yet.

    Args:
        run: of any job.
        writer: of the store.
        model: that `check_model` found to fit the store.
        contents: reference to what `missing_contents` returned in a task.
        pool: actors that hold the model.

    Returns:
        What was done. Contents that could not be read have no row afterwards, and neither have
        those without vectors where the model takes vectors; a warning says how many those are.
    """
    results = writer.store.predictions(table_name(model))
    writer.ensure(results, schemas.results(model.outputs, model.metadata))
    by = _predict_images if model.model_metadata.takes == "images" else _predict_vectors
    with run.timed("predict"):
        done = by(run, writer, model, contents, pool, new_listing(run))
        at, removed = remotely(proof.remove_repeated, writer.version(results))
        writer.moved(results, at)
    if removed:
        run.warn(f"{removed:,} rows of {results.uri} were there twice and are removed")
    return done


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
            f"{extract_command(model.model_metadata, store.uri)} makes them"
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
