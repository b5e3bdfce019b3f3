"""The query action of the search job: the images that are most similar to some."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv

from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import remotely
from visao_ray.core.run import Run
from visao_ray.core.storage import Location, locate, reason
from visao_ray.evaluation.inference import open_model
from visao_ray.images.decode import DecodeError, decode
from visao_ray.inference.engines.keras import KerasModel
from visao_ray.inference.network import find_network
from visao_ray.models import artifact
from visao_ray.reports.search import Example, Neighbour, QueryPage, write_query
from visao_ray.search.index import index_name
from visao_ray.search.neighbours import DISTANCE, Neighbours
from visao_ray.search.settings import QuerySettings
from visao_ray.search.spaces import find_space
from visao_ray.store import schemas
from visao_ray.store.store import Store
from visao_ray.store.table import TableVersion, quoted

CSV, PAGE = "neighbours.csv", "neighbours.html"
_SHOWN = 20
_THREADS = 4
_BATCH = 32


@dataclass(frozen=True)
class Query:
    """A query.

    Attributes:
        name: its key, or its file.
        vector: float32[D].
        content: its content, if it is in the store.
        label: its label, if it is known.
        group: its group, if it is known.
    """

    name: str
    vector: npt.NDArray[np.float32]
    content: bytes | None = None
    label: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class _Place:
    """Where to search: the index, the files of the store, and the vectors of the index."""

    index: TableVersion
    images: TableVersion
    vectors: TableVersion
    columns: tuple[str, ...]


def query_index(settings: QuerySettings, run: Run[Any]) -> None:
    """Run the query action: write the neighbours of each query, and a page that shows them.

    Args:
        settings: settings of the job.
        run: the run.

    Raises:
        InputError: no such store, index, key or file; the network of the vectors is not available.
    """
    store = Store.open(settings.store_uri())
    space = find_space(store, settings.vectors, settings.extractor)
    index = store.index(index_name(space))
    if not index.exists():
        raise InputError(
            f"--vectors {settings.vectors}: has no index yet; jobs/search.py build --store "
            f"{store.uri} --vectors {settings.vectors} creates it"
        )
    vectors = store.tables()[space.table].latest()
    model = _model_of(settings, vectors)
    start_ray()
    at = index.latest()
    images = at.count()
    place = _Place(at, store.images.latest(), vectors, space.columns)
    with run.timed("vectors"):
        queries = remotely(_by_key, place, settings.key)
        if settings.file:
            queries += remotely(_by_file, place, model, settings, run.work)
    with run.timed("search"):
        found = remotely(_search, place, queries, settings)
    run.counts |= {
        "queries": len(queries),
        "rows": images,
        "neighbours": sum(len(near) for near in found),
    }
    run.inputs |= {
        "store": store.uri,
        "versions": {f"indexes/{index_name(space)}": at.version},
        "vectors": space.table,
    }
    rows = _rows(queries, found)
    with io.BytesIO() as buffer:
        pacsv.write_csv(rows, buffer)
        run.out.join(CSV).write_bytes(buffer.getvalue())
    page = QueryPage(
        dataset=str(store.description.dataset["name"]),
        store=store.uri,
        vectors=space.name,
        where=settings.where,
        images=images,
        examples=tuple(map(_example, queries, found)),
        command=run.command,
    )
    with run.timed("page"):
        remotely(write_query, page, run.out.join(PAGE))
    for query, near in zip(queries, found, strict=True):
        run.say(f"{query.name}: {len(near)} neighbours")
        for rank, row in enumerate(near.slice(0, 5).to_pylist(), start=1):
            run.say(f"  {rank}  {row[DISTANCE]:8.4g}  {row['label'] or '–':<12} {row['key']}")
    run.say(f"all of them: {run.out.join(CSV).uri}, as pictures: {run.out.join(PAGE).uri}")


def _model_of(settings: QuerySettings, vectors: TableVersion) -> KerasModel | None:
    """Return the model that makes the vectors of files, if --file needs one."""
    made = schemas.description(vectors.schema)
    if not settings.file or "digest" not in made:
        return None
    if settings.model is None:
        raise InputError(
            f"--model is missing: --file needs the .keras file of {made['model']}, which made "
            f"the vectors {settings.vectors}"
        )
    model = open_model(settings.model, _BATCH)
    if model.digest != made["digest"]:
        raise InputError(
            f"--model {settings.model}: is not the model of --vectors {settings.vectors}"
        )
    return model


def _by_key(place: _Place, keys: Sequence[str]) -> list[Query]:
    """Find the vectors of images of the store. For a task.

    Raises:
        InputError: the store has no such image, or the index has no vector of it.
    """
    found = []
    neighbours = Neighbours(place.index)
    for key in keys:
        image = place.images.read(["content_id"], f"key = {quoted(key)}")
        if not len(image):
            raise InputError(f"--key {key}: the store has no such image")
        content = image["content_id"][0].as_py()
        row = neighbours.row(f"content_id = X'{content.hex()}'") if content else None
        if row is None or not len(row):
            raise InputError(
                f"--key {key}: the index has no vector of it; it could not be read, was dropped, "
                "or came after the last build"
            )
        values = row.select(["label", "group"]).to_pylist()[0]
        found.append(Query(key, neighbours.vector_of(row), content, **values))
    return found


def _by_file(
    place: _Place, model: KerasModel | None, settings: QuerySettings, work: Location
) -> list[Query]:
    """Compute the vectors of files, by the network of the vectors of the index. For a task.

    Raises:
        InputError: a file cannot be read, or the network is not available.
    """
    import hashlib

    data = [_read(file) for file in settings.file]
    if model is not None and model.model_metadata.takes == "images":
        engine: Any = model
    else:
        made = schemas.description(place.vectors.schema)
        if model is not None:
            made = dict(model.model_metadata.features)
        try:
            engine = find_network(made, settings.weights, _BATCH, settings.seed, work)
        except InputError as error:
            raise InputError(
                f"--file: the vectors were made by {made.get('backbone')} with the weights "
                f"{made.get('weights')}, which are needed: {error}"
            ) from error
    pixels = []
    for file, content in zip(settings.file, data, strict=True):
        try:
            pixels.append(decode(content, engine.image_size, engine.resize))
        except DecodeError as error:
            raise InputError(f"--file {file}: {error}") from error
    outputs = engine.build()(np.stack(pixels))
    if model is not None and model.model_metadata.takes == "features":
        network, _ = artifact.load(model.at)
        outputs = artifact.outputs(network, {name: outputs[name] for name in ("avg", "max")})
    vectors = np.concatenate([outputs[column] for column in place.columns], axis=1)
    return [
        Query(file, vector, hashlib.sha256(content).digest())
        for file, vector, content in zip(settings.file, vectors, data, strict=True)
    ]


def _read(file: str) -> bytes:
    try:
        return locate(file).read_bytes()
    except OSError as error:
        raise InputError(f"--file {file}: cannot be read: {reason(error)}") from error


def _search(place: _Place, queries: Sequence[Query], settings: QuerySettings) -> list[pa.Table]:
    neighbours = Neighbours(place.index)

    def search(query: Query) -> pa.Table:
        group = query.group if settings.other_groups else None
        return neighbours.nearest(query.vector, settings.k, settings.where, query.content, group)

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(search, queries))


def _rows(queries: Sequence[Query], found: Sequence[pa.Table]) -> pa.Table:
    """Return one row per query and neighbour."""
    columns = [name for name, _ in schemas.INDEX_COLUMNS]
    parts = [
        near.select([DISTANCE, *columns])
        .add_column(0, "rank", pa.array(np.arange(1, len(near) + 1)))
        .add_column(0, "query", pa.array([query.name] * len(near), pa.string()))
        for query, near in zip(queries, found, strict=True)
    ]
    return pa.concat_tables(parts)


def _example(query: Query, near: pa.Table) -> Example:
    rows = near.slice(0, _SHOWN).to_pylist()
    return Example(
        query.name,
        query.label,
        None,
        tuple(Neighbour(row["key"], row["label"], row[DISTANCE]) for row in rows),
    )
