"""A trained model on a whole dataset: rows → predictions, embeddings, errors, on Ray Data actors.

Images go the way of the extraction (read and decode in tasks, the network in actors) and an
interrupted run goes on where it was; features are so quick that an interrupted run begins anew.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from visao_ray import stages, tables
from visao_ray.checkpoint import checkpointed
from visao_ray.features.pipeline import Loading, load, tell_stages
from visao_ray.models import saved
from visao_ray.models.saved import ModelAbout
from visao_ray.resources import ActorPool
from visao_ray.runs import Run
from visao_ray.stages import SPENT
from visao_ray.storage import Location
from visao_ray.tables import TABLE, Vectors

logger = logging.getLogger(__name__)

_BLOCK = 64  # images read, shown and committed together, at least


@dataclass(frozen=True)
class Coverage:
    """How many images there were to show, how many were shown, and the others by reason."""

    images: int
    ok: int
    errors: Mapping[str, int]


def predict(
    run: Run[Any],
    source: Location,
    model: Location,
    about: ModelAbout,
    pool: ActorPool,
    *,
    total: int | None = None,
    batch_size: int = 32,
) -> Coverage:
    """Show a model the rows of a dataset and write what it says below `run.out`.

    `predictions` has the val and test images, where the model gives probabilities; `embeddings`
    those of all splits, where it embeds (train is read only then); `errors` the images that cannot
    be read, also those that the manifest knows of.

    Args:
        run: of any job; a step `predict` that an earlier run of it finished is not repeated.
        source: a features table (view 0 counts) or a manifest, as `about.takes` says.
        model: a file of `saved.pack`.
        about: what it is; `check_features` or `check_images` is the caller's.
        pool: actors that hold it.
        total: images to show, where known.
        batch_size: rows the network sees at once; the last batch is filled up.

    Raises:
        InputError: no such table or model.
        RuntimeError: not every image ended in exactly one place.
    """
    outputs = saved.read_about(saved.read(model), model.uri).outputs
    schemas = _schemas(about, outputs)
    shown = pc.scalar(True) if "embedding" in outputs else pads.field("split") != "train"
    if about.takes == "features":
        shown &= pads.field("view") == 0
    if total is None:
        name = "manifest" if about.takes == "images" else "features"
        total = tables.open_table(source, name).count_rows(filter=shown)
    if not total:
        return Coverage(0, 0, {})
    block = batch_size * math.ceil(_BLOCK / batch_size)
    run.say(f"{total:,} images through {about.name} on {pool}")
    labels = run.labels("predict", about.dataset.name)

    def rows(**options: Any) -> Any:
        import ray
        from ray.data.expressions import col, lit

        chosen = ray.data.read_parquet(source.path, filesystem=source.filesystem, **options)
        chosen.set_name(run.name("predict", about.dataset.name))
        if "embedding" not in outputs:
            chosen = chosen.filter(expr=col("split") != lit("train"))
        if about.takes == "features":
            chosen = chosen.filter(expr=col("view") == lit(0))
        return chosen

    def write(loaded: Any, **options: Any) -> None:
        import ray

        from visao_ray.sink import TablesSink

        started = time.time()
        sink = TablesSink(run.out, schemas, labels)
        loaded.map_batches(
            Predictor,
            fn_constructor_args=(model, batch_size, labels),
            batch_size=block if pool.gpus else None,  # with GPUs, Ray Data wants it as a number
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=pool.size),
            **{**pool.actor, **options},
        ).write_datasink(
            sink,
            ray_remote_args=pool.writer,
            concurrency=pool.writers,
        )
        tell_stages(run, "predict", sink.stages, pool, started)

    def predict_features() -> None:
        write(rows(), num_cpus=0)

    def predict_images() -> None:
        loading = Loading(about.image_size, about.resize, recipe="none", views=0, seed=0)
        committed = run.work.join("predicted")
        with checkpointed(committed, "key"), run.progress(committed, block, total):
            loaded = (
                rows(**pool.reader)
                .repartition(target_num_rows_per_block=block, strict=True)
                .map_batches(
                    load,
                    batch_size=None,
                    batch_format="pyarrow",
                    fn_kwargs={"loading": loading},
                    **pool.loader,
                )
            )
            write(loaded)

    if about.takes == "images":
        run.once("predict", predict_images)
    else:
        run.once("predict", predict_features, *(run.out.join(name) for name in schemas))
    return _coverage(run.out, schemas, total)


class Predictor:
    """Holds one model; called with a block of loaded images or of features, returns rows for the
    sink: of several tables, told apart by the column `table`.

    The last, short batch is filled up, so the network always sees one shape and what it says of an
    image does not depend on how many others came along.

    Args:
        labels: what the log's lines tell the run by, as of `Run.labels`.
    """

    def __init__(self, model: Location, batch_size: int, labels: Mapping[str, str]) -> None:
        self._model, self._about = saved.load(model)
        self._batch_size = batch_size
        self._labels = dict(labels)
        self._idle_since: float | None = None
        self._outputs = self._about.outputs
        self._schemas = _schemas(self._about, self._outputs)
        self._schema = _sink_schema(self._schemas)
        self._predict(None)  # once before threads share it: Keras builds its function at first call
        logging.basicConfig(level=logging.INFO, format="%(message)s")

    def __call__(self, block: pa.Table) -> pa.Table:
        start = time.perf_counter()
        wait = start - (self._idle_since or start)
        parts = []
        if self._about.takes == "features":
            block = block.append_column(stages.FIELD, stages.images(block.num_rows))
        else:
            readable = block["pixels"].is_valid()
            parts.append(("errors", block.filter(pc.invert(readable))))
            block = block.filter(readable)
        found = self._predict_all(block)
        seconds = time.perf_counter() - start
        told = {"predicted": block.num_rows, "seconds": round(seconds, 3)}
        logger.info(json.dumps({**told, "waited": round(wait, 3), **self._labels}))
        where = block.schema.get_field_index(SPENT)
        spent = stages.extracted(block[SPENT], wait, seconds)
        block = block.set_column(where, stages.FIELD, spent)
        names = pa.array([self._about.name] * block.num_rows, pa.string())
        block = block.append_column("model", names)
        if "embedding" in found:
            column = tables.vectors(found["embedding"])
            parts.append(("embeddings", block.append_column("embedding", column)))
            # An image with two rows costs once.
            block = block.set_column(where, stages.FIELD, stages.nothing(block.num_rows))
        if "probability" in found:
            classes = np.array(self._about.classes, object)
            predicted = pa.array(classes[found["probability"].argmax(axis=1)], pa.string())
            judged = block.append_column("predicted", predicted).append_column(
                "probability", tables.vectors(found["probability"])
            )
            parts.append(("predictions", judged.filter(pc.not_equal(judged["split"], "train"))))
        rows = pa.concat_tables(
            [self._schema.empty_table(), *(self._for_sink(*part) for part in parts)],
            promote_options="default",
        )
        self._idle_since = time.perf_counter()
        return rows

    def _for_sink(self, name: str, rows: pa.Table) -> pa.Table:
        schema = self._schemas[name].remove_metadata().append(stages.FIELD)
        rows = rows.select(schema.names).cast(schema)
        return rows.append_column(TABLE, pa.array([name] * rows.num_rows, pa.string()))

    def _predict_all(self, rows: pa.Table) -> dict[str, Vectors]:
        """What the model says of every row: float32[N, ·] by name."""
        found = {
            name: np.empty((rows.num_rows, width), np.float32)
            for name, width in self._outputs.items()
        }

        def fill(start: int) -> None:
            batch = rows.slice(start, self._batch_size)
            for name, values in self._predict(batch).items():
                found[name][start : start + batch.num_rows] = values[: batch.num_rows]

        # Two batches at a time: one computes where the other waits for its slowest thread.
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(fill, range(0, rows.num_rows, self._batch_size)))
        return found

    def _predict(self, rows: pa.Table | None) -> dict[str, Vectors]:
        """What the model says of at most a batch of rows, behind which padding may follow."""
        size, about = self._batch_size, self._about
        if about.takes == "images":
            shape = (about.image_size, about.image_size, 3)
            pixels = np.zeros((size, *shape), np.uint8)
            for position, image in enumerate(rows["pixels"] if rows is not None else ()):
                pixels[position] = np.frombuffer(image.as_buffer(), np.uint8).reshape(shape)
            return saved.outputs(self._model, pixels)
        pools = {pool: np.zeros((size, about.width), np.float32) for pool in ("avg", "max")}
        if rows is not None:
            for pool, vectors in pools.items():
                vectors[: rows.num_rows] = tables.matrix(rows[pool])
        return saved.outputs(self._model, pools)


def _schemas(about: ModelAbout, outputs: Mapping[str, int]) -> dict[str, pa.Schema]:
    """The tables that a model fills."""
    schemas = {}
    if "probability" in outputs:
        schemas["predictions"] = tables.predictions(about.classes)
    if "embedding" in outputs:
        schemas["embeddings"] = tables.embeddings(outputs["embedding"])
    if about.takes == "images":
        schemas["errors"] = tables.ERRORS
    return schemas


def _sink_schema(schemas: Mapping[str, pa.Schema]) -> pa.Schema:
    """The columns of all tables, and which of them is meant."""
    columns = {field.name: field for schema in schemas.values() for field in schema}
    return pa.schema([*columns.values(), stages.FIELD, pa.field(TABLE, pa.string())])


def _coverage(out: Location, schemas: Mapping[str, pa.Schema], total: int) -> Coverage:
    """Count what was written.

    Raises:
        RuntimeError: the counts do not add up.
    """
    written = {name: tables.rows(out.join(name)) for name in schemas}
    ok = written.get("embeddings", written.get("predictions", 0))
    reasons: Counter[str] = Counter()
    if written.get("errors"):
        for batch in tables.batches(out.join("errors"), "errors", ["error_type"]):
            reasons.update(batch["error_type"].to_pylist())
    if ok + reasons.total() != total:
        raise RuntimeError(
            f"the counts do not add up: {total} images, {ok} ok, {reasons.total()} errors"
        )
    return Coverage(total, ok, dict(reasons.most_common()))
