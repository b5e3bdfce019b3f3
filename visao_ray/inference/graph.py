"""The graph that sends images through an engine, used by every job that reads images.

    listing → load (read, hash, look up, decode, augment) → ModelActor(engine) → write → commit

Each stage has one task per block, and its rows depend on its input alone, so a task that Ray runs
again yields the same rows. Tasks write files that are not part of any version yet. The driver
commits them every few seconds, results before images. A kill loses only uncommitted work; the next
clean-up removes its files.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from visao_ray.core import profiling
from visao_ray.core.capacity import Nodes
from visao_ray.core.profiling import Stages
from visao_ray.core.resources import ActorPool, current_cluster
from visao_ray.core.run import Run
from visao_ray.core.waiting import Waiting
from visao_ray.inference.actor import ModelActor
from visao_ray.inference.committing import Committer, GraphResult
from visao_ray.inference.engines.base import EngineFactory
from visao_ray.inference.loading import Loading, Unit, load_unit
from visao_ray.inference.lookup import ContentLookup
from visao_ray.inference.writing import Target, WriteResult, write_rows
from visao_ray.store import schemas
from visao_ray.store.store import Writer
from visao_ray.store.table import Table, TableVersion

_CONTENTS_A_LOOKUP = 2_000_000
#: Rows that one task writes: about ten seconds of an engine's work.
_FRAGMENT_ROWS = {"CPU": 256, "GPU": 4096}


@dataclass(frozen=True)
class Work:
    """The files to process, and how to process them.

    Attributes:
        step: name of the step in logs and metrics.
        listing: a table of schema `listing.LISTING`.
        files: number of rows in the listing.
        loading: how images become pixels.
        engine: factory of the engine; None only checks that images can be decoded.
        results: table of the engine's results; None without an engine.
        unit_rows: number of files that one task loads.
        batch: batch name of new files in `images`.
    """

    step: str
    listing: TableVersion
    files: int
    loading: Loading
    engine: EngineFactory | None
    results: Table | None
    unit_rows: int
    batch: str


def run_graph(run: Run[Any], writer: Writer, work: Work, pool: ActorPool) -> GraphResult:
    """Send the files of a listing through the graph and commit the results.

    Args:
        run: the run.
        writer: writer of the store.
        work: files to process.
        pool: numbers and resources of actors and tasks.

    Returns:
        The counts of the committed work.

    Raises:
        LeaseLost: another process took over the store.
        RuntimeError: a file of the listing has no row in the results.
    """
    import ray

    if not work.files:
        return GraphResult()
    images = writer.store.images
    writer.ensure(images, schemas.IMAGES)
    at = schema = None
    if work.engine is not None and work.results is not None:
        made_by = dict(work.engine.metadata)
        schema = schemas.results(work.engine.outputs, made_by, _stores_pictures(writer, work))
        at = writer.ensure(work.results, schema)
    target = Target(
        images.uri,
        work.results.uri if work.results is not None else None,
        schema,
        run.work.join("updates"),
    )
    labels = run.labels(work.step, writer.store.description.dataset["name"])
    started = time.time()
    committer = Committer(run, writer, work.results, work.files)
    unit = Unit(
        listing=work.listing,
        rows=work.unit_rows,
        loading=work.loading,
        lookups=_lookups(at, work),
        batch=work.batch,
        now=int(started * 1e6),
    )
    rows = ray.data.from_blocks(
        [pa.table({"unit": [number]}) for number in range(-(-work.files // work.unit_rows))]
    )
    rows.set_name(run.name(work.step, labels["dataset"]))
    rows = rows.map_batches(
        load_unit, batch_size=None, batch_format="pyarrow", fn_kwargs={"unit": unit}, **pool.loader
    )
    if work.engine is not None:
        rows = rows.map_batches(
            ModelActor,
            fn_constructor_args=(work.engine, labels),
            # A whole block; with GPUs, Ray Data requires the size as a number.
            batch_size=work.unit_rows * len(work.loading.views) if pool.gpus else None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=pool.size),
            **pool.actor,
        )
    rows = rows.map_batches(
        write_rows,
        batch_size=_FRAGMENT_ROWS["GPU" if pool.gpus else "CPU"],
        batch_format="pyarrow",
        fn_kwargs={"target": target, "labels": labels},
        compute=ray.data.TaskPoolStrategy(size=pool.writers),
        **pool.writer,
    )
    with Waiting(run.say):
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for text in batch["written"].to_pylist():
                committer.add(WriteResult.from_json(text))
    done = committer.finish()
    if done.files != work.files:
        raise RuntimeError(
            f"the counts do not add up: {work.files} files listed, {done.files} processed"
        )
    _report_costs(run, work, done.costs, pool, started)
    return done


def _stores_pictures(writer: Writer, work: Work) -> bool:
    """Whether rows get the columns about the picture: tables of release 0.2 stay without them."""
    if work.results is None or not work.results.exists():
        return work.loading.pictures
    return bool(schemas.pictures(writer.version(work.results).schema))


def _report_costs(
    run: Run[Any], work: Work, costs: Stages, pool: ActorPool, started: float
) -> None:
    """Report the time of each stage on the terminal and in `details.stages` of result.json."""
    if not costs.images:
        return
    size = pool.size if work.engine is not None else 0
    free = current_cluster().total("CPU") - size * pool.actor["num_cpus"]
    loaders = max(1, math.floor(free / pool.loader["num_cpus"] + 1e-9))
    nodes = Nodes(1, loaders, size, pool.writers)
    run.details.setdefault("stages", {})[work.step] = profiling.to_json(costs, nodes, started)
    run.say(profiling.summary(costs, nodes))


def _lookups(at: TableVersion | None, work: Work) -> tuple[Any, ...]:
    """Start the actors that look up contents; none if nothing is computed."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if at is None:
        return ()
    options: dict[str, Any] = current_cluster().zero_cpu_options
    count = 1 + work.files // _CONTENTS_A_LOOKUP
    if count == 1:
        # On the driver's node, so that losing another node does not lose the actor's state. More
        # than one actor may need more memory than the head node has.
        node = ray.get_runtime_context().get_node_id()
        strategy = NodeAffinitySchedulingStrategy(node, soft=True)
        options = {"num_cpus": 0, "scheduling_strategy": strategy}
    kind = ray.remote(ContentLookup).options(**options, max_restarts=-1, max_task_retries=-1)
    return tuple(kind.remote(at, len(work.loading.views)) for _ in range(count))
