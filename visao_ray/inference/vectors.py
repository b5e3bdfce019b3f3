"""The graph that sends stored vectors through a model; it reads no image.

    listing of rows → VectorActor: read, predict, write → commit

Each task processes one unit of the listing, and its rows depend on the unit alone. The driver
commits the files of the tasks every few seconds, as in the graph of images.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from visao_ray.core import counters, tables
from visao_ray.core.profiling import Stages
from visao_ray.core.resources import ActorPool
from visao_ray.core.run import Run
from visao_ray.core.storage import locate
from visao_ray.core.waiting import Waiting
from visao_ray.inference.committing import Committer, GraphResult
from visao_ray.inference.engines.keras import KerasModel
from visao_ray.inference.writing import WriteResult
from visao_ray.models import artifact
from visao_ray.models.normalization import Vectors
from visao_ray.store import schemas
from visao_ray.store.proof import Contents
from visao_ray.store.rows import find_rows, read_rows
from visao_ray.store.store import Writer
from visao_ray.store.table import Table, TableVersion, append, write_fragments

logger = logging.getLogger(__name__)

#: Rows that one task reads and writes: 57 MB of probabilities of 868 classes.
UNIT_ROWS = 16_384
#: Vectors are small compared with images, so a batch has this many times more rows.
_VECTORS_PER_IMAGE = 32
_LISTING = pa.schema([("row", pa.int64())])
_INPUTS = ("avg", "max")


@dataclass(frozen=True)
class VectorWork:
    """The rows of vectors to process, and how to process them.

    Attributes:
        step: name of the step in logs and metrics.
        vectors: the table of vectors.
        listing: a table with the int64 positions of the rows, from `list_rows`.
        rows: number of rows in the listing.
        model: a model that takes vectors.
        results: table of the model's results.
    """

    step: str
    vectors: TableVersion
    listing: TableVersion
    rows: int
    model: KerasModel
    results: Table


def list_rows(vectors: TableVersion, contents: Contents, place: str) -> tuple[TableVersion, int]:
    """Write a table with the positions of the vectors of some contents. Call it in a task.

    Args:
        vectors: table of vectors of unchanged images.
        contents: `S32`[N], sorted.
        place: URI of the new table.

    Returns:
        The table and its number of rows.
    """
    rows = find_rows(vectors, contents, schemas.OK)
    table = Table(locate(place))
    table.create(_LISTING)
    fragments = write_fragments(table.uri, _LISTING, pa.table([rows], schema=_LISTING))
    return append(table.latest(), fragments), len(rows)


def run_vectors(run: Run[Any], writer: Writer, work: VectorWork, pool: ActorPool) -> GraphResult:
    """Send rows of vectors through a model and commit the results.

    Args:
        run: the run.
        writer: writer of the store.
        work: rows to process.
        pool: numbers and resources of actors.

    Returns:
        The counts of the committed work.

    Raises:
        LeaseLost: another process took over the store.
        RuntimeError: a row of the listing has no row in the results.
    """
    import ray

    schema = schemas.results(work.model.outputs, work.model.metadata)
    writer.ensure(work.results, schema)
    if not work.rows:
        return GraphResult()
    labels = run.labels(work.step, writer.store.description.dataset["name"])
    units = range(-(-work.rows // UNIT_ROWS))
    rows = ray.data.from_blocks([pa.table({"unit": [number]}) for number in units])
    rows.set_name(run.name(work.step, labels["dataset"]))
    rows = rows.map_batches(
        VectorActor,
        fn_constructor_args=(work, labels),
        batch_size=1,  # a whole block; with GPUs, Ray Data requires the size as a number
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(pool.size, len(units))),
        **pool.actor,
    )
    committer = Committer(run, writer, work.results, work.rows)
    with Waiting(run.say):
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for text in batch["written"].to_pylist():
                committer.add(WriteResult.from_json(text))
    done = committer.finish()
    if done.files != work.rows:
        raise RuntimeError(
            f"the counts do not add up: {work.rows} vectors listed, {done.files} processed"
        )
    return done


class VectorActor:
    """Run a model on stored vectors, as a callable class for `Dataset.map_batches`.

    All batches have the same number of rows, and the last one is padded, so the results of an image
    do not depend on the number of other images.

    Args:
        work: rows to process.
        labels: labels of the run in the lines of the log.
    """

    def __init__(self, work: VectorWork, labels: Mapping[str, str]) -> None:
        self._work = work
        self._labels = dict(labels)
        self._listing, self._vectors = work.listing.open(), work.vectors
        self._model, metadata = artifact.load(work.model.at)
        self._schema = schemas.results(work.model.outputs, work.model.metadata)
        self._shape = (_VECTORS_PER_IMAGE * work.model.batch_size, metadata.width)
        self._idle_since: float | None = None
        # Call it once before threads share it: Keras builds its function at the first call.
        self._step({name: np.zeros((0, metadata.width), np.float32) for name in _INPUTS})
        logging.basicConfig(level=logging.INFO, format="%(message)s")

    def __call__(self, block: pa.Table) -> pa.Table:
        """Process the unit whose number is in the column `unit`; return one row, `WriteResult`."""
        start = time.perf_counter()
        wait = start - (self._idle_since or start)
        (number,) = block["unit"].to_pylist()
        listed = self._listing.to_table(offset=number * UNIT_ROWS, limit=UNIT_ROWS)
        rows = listed["row"].to_numpy()
        found = pa.concat_tables(
            pa.table(self._results(batch), schema=self._schema)
            for batch in read_rows(self._vectors, rows, ["content_id", *_INPUTS])
        )
        computed = time.perf_counter()
        written = write_fragments(self._work.results.uri, self._schema, found)
        end = time.perf_counter()
        # One line per unit in the actor's log, always with the same keys.
        counted = {"images": len(rows), "seconds": round(computed - start, 3)}
        logger.info(json.dumps({**counted, "waited": round(wait, 3), **self._labels}))
        costs = Stages(
            ok=len(rows),
            blocks=1,
            write_bytes=found.nbytes,
            wait=wait,
            extract=computed - start,
            write=end - computed,
            first=time.time(),
            last=time.time(),
        )
        counters.count(costs, self._labels)
        self._idle_since = time.perf_counter()
        return WriteResult(
            results=written,
            images=[],
            late=[],
            updates=[],
            updated=0,
            files=len(rows),
            errors={},
            computed=len(rows),
            stages=asdict(costs),
        ).to_row()

    def _results(self, batch: pa.RecordBatch) -> dict[str, Any]:
        """Compute the columns of the results for a batch of vectors."""
        vectors = {name: tables.matrix(pa.chunked_array([batch[name]])) for name in _INPUTS}
        starts = range(0, len(batch), self._shape[0])

        def step(start: int) -> dict[str, Vectors]:
            chosen = slice(start, start + self._shape[0])
            return self._step({name: values[chosen] for name, values in vectors.items()})

        # Two batches at a time: one computes while the other waits for its slowest thread.
        with ThreadPoolExecutor(2) as pool:
            parts = list(pool.map(step, starts))
        found = {
            name: tables.vectors(np.concatenate([part[name] for part in parts]))
            for name in self._work.model.outputs
        }
        count = len(batch)
        return {
            "content_id": batch["content_id"].cast(schemas.CONTENT_ID),
            "view": pa.array(np.zeros(count, np.int16)),
            "status": pa.array([schemas.OK] * count),
            "error_type": pa.nulls(count, pa.string()),
            "message": pa.nulls(count, pa.string()),
            **found,
        }

    def _step(self, vectors: Mapping[str, Vectors]) -> dict[str, Vectors]:
        """Compute the model's outputs, float32[n, width], for at most one batch of rows."""
        count = 0
        filled = {}
        for name, values in vectors.items():
            filled[name] = np.zeros(self._shape, np.float32)
            filled[name][: len(values)] = values
            count = len(values)
        return {name: part[:count] for name, part in artifact.outputs(self._model, filled).items()}
