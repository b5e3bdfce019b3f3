"""The one graph of images through an engine, behind every job that reads images.

    listing → load (read, hash, ask, decode, augment) → ModelActor(engine) → write → commit

Each stage is one task a block and its rows follow from its input alone, so whatever Ray does again
yields the same rows. Tasks write files that no version names; the driver commits them every few
seconds, results before images. A kill loses what was not committed, and nothing else: the files
that were written for it are removed by the next clean-up.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from visao_ray import stages
from visao_ray.core.waiting import Waiting
from visao_ray.forecast import Nodes
from visao_ray.inference.actor import ModelActor
from visao_ray.inference.engines.base import EngineFactory
from visao_ray.inference.loading import Loading, Unit, load_unit
from visao_ray.inference.lookup import ContentLookup
from visao_ray.inference.writing import UPDATES, Target, Written, write_rows
from visao_ray.resources import ActorPool, look
from visao_ray.runs import Run, duration
from visao_ray.stages import Stages
from visao_ray.storage import locate
from visao_ray.store import schemas
from visao_ray.store.store import Writer
from visao_ray.store.table import Table, TableVersion

#: A kill loses what was done since the last commit: so many seconds, or so many fragments.
COMMIT_S = 10.0
COMMIT_FRAGMENTS = 64

_PROGRESS_S = 10.0
_MERGE_ROWS = 4096  # changed files after which their rows are merged, not only at the end
_CONTENTS_A_LOOKUP = 2_000_000


@dataclass(frozen=True)
class Work:
    """What is to be done with the files of a listing.

    Attributes:
        step: as logs and metrics call it.
        listing: a table of `loading.LISTING`.
        files: rows of it.
        loading: how images become pixels.
        engine: what computes; None: images are decoded, to know that they can be.
        results: table of what the engine computes; None without one.
        unit_rows: files that one task loads.
        fragment_rows: rows that one task writes, some ten seconds of the engine's work.
        batch: name under which new files enter.
    """

    step: str
    listing: TableVersion
    files: int
    loading: Loading
    engine: EngineFactory | None
    results: Table | None
    unit_rows: int
    fragment_rows: int
    batch: str


@dataclass
class Done:
    """What the graph did, as it was committed.

    Attributes:
        files: of the listing, read or found to be unreadable.
        errors: those of them that could not be used, by reason.
        computed: images that went through the engine, each view once.
        costs: of it all.
    """

    files: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    computed: int = 0
    costs: Stages = field(default_factory=Stages)


def run_graph(run: Run[Any], writer: Writer, work: Work, pool: ActorPool) -> Done:
    """Send the files of a listing through the graph and commit what comes out.

    Raises:
        LeaseLost: another process took the store over.
        RuntimeError: a file of the listing ended in no row.
    """
    import ray

    if not work.files:
        return Done()
    images = writer.store.images
    writer.ensure(images, schemas.IMAGES)
    at = schema = None
    if work.engine is not None and work.results is not None:
        made_by = dict(work.engine.metadata)
        schema = schemas.results(work.engine.outputs, made_by)
        at = writer.ensure(work.results, schema)
    target = Target(
        images.uri,
        work.results.uri if work.results is not None else None,
        schema,
        run.work.join("updates"),
    )
    labels = run.labels(work.step, writer.store.description.dataset["name"])
    started = time.time()
    committer = _Committer(run, writer, work, target)
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
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=pool.size),
            **pool.actor,
        )
    rows = rows.map_batches(
        write_rows,
        batch_size=work.fragment_rows,
        batch_format="pyarrow",
        fn_kwargs={"target": target, "labels": labels},
        compute=ray.data.TaskPoolStrategy(size=pool.writers),
        **pool.writer,
    )
    with Waiting(run.say):
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for text in batch["written"].to_pylist():
                committer.add(Written.from_json(text))
    done = committer.finish()
    if done.files != work.files:
        raise RuntimeError(
            f"the counts do not add up: {work.files} files listed, {done.files} ended in a row"
        )
    _say_costs(run, work, done.costs, pool, started)
    return done


class _Committer:
    """Collects what tasks wrote and commits it, results before images."""

    def __init__(self, run: Run[Any], writer: Writer, work: Work, target: Target) -> None:
        self._run, self._writer, self._work, self._target = run, writer, work, target
        self._pending: list[Written] = []
        self._late: list[str] = []
        self._updates: list[str] = []
        self._updated = 0
        self._done = Done()
        self._costs: list[Stages] = []
        self._committed_at = self._said_at = time.monotonic()
        self._first: tuple[float, int] | None = None  # since then speed is measured

    def add(self, written: Written) -> None:
        """Take what one task wrote; commits when it is time."""
        self._pending.append(written)
        self._late += written.late
        self._updates += written.updates
        self._updated += written.updated
        self._done.files += written.files
        self._done.errors.update(written.errors)
        self._done.computed += written.computed
        self._costs.append(Stages(**written.stages))
        waited = time.monotonic() - self._committed_at
        if waited >= COMMIT_S or len(self._pending) >= COMMIT_FRAGMENTS:
            self._commit()
            if self._updated >= _MERGE_ROWS:
                self._merge()
        self._progress()

    def finish(self) -> Done:
        """Commit the rest; files whose content is another file's last."""
        self._commit()
        self._writer.append(self._writer.store.images, self._late)
        self._merge()
        self._done.costs = stages.total(self._costs)
        return self._done

    def _commit(self) -> None:
        results = [text for written in self._pending for text in written.results]
        images = [text for written in self._pending for text in written.images]
        if self._work.results is not None:
            self._writer.append(self._work.results, results)
        self._writer.append(self._writer.store.images, images)
        self._pending = []
        self._committed_at = time.monotonic()

    def _merge(self) -> None:
        """Update the rows of files that were there already. Their new contents are committed."""
        if not self._updates:
            return
        files = [locate(uri) for uri in self._updates]
        rows = pads.dataset(
            [file.path for file in files], schema=UPDATES, filesystem=files[0].filesystem
        )
        changed = self._writer.merge(self._writer.store.images, rows.scanner().to_reader())
        if changed != self._updated:
            raise RuntimeError(f"{self._updated} files changed, but {changed} rows were updated")
        self._updates, self._updated = [], 0

    def _progress(self) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, self._done.files)  # start-up is not counted
        if now - self._said_at < _PROGRESS_S or now == self._first[0]:
            return
        self._said_at = now
        total, done = self._work.files, self._done.files
        speed = (done - self._first[1]) / (now - self._first[0])
        if done < total and speed > 0:
            left = duration((total - done) / speed)
            self._run.say(f"{done:,} of {total:,} images ({speed:,.1f}/s, {left} left)")


def _say_costs(run: Run[Any], work: Work, costs: Stages, pool: ActorPool, started: float) -> None:
    """Where the seconds went: on the terminal, and in `details.stages` of result.json."""
    if not costs.images:
        return
    size = pool.size if work.engine is not None else 0
    free = look().total("CPU") - size * pool.actor["num_cpus"]
    loaders = max(1, math.floor(free / pool.loader["num_cpus"] + 1e-9))
    nodes = Nodes(1, loaders, size, pool.writers)
    run.details.setdefault("stages", {})[work.step] = stages.about(costs, nodes, started)
    run.say(stages.summary(costs, nodes))


def _lookups(at: TableVersion | None, work: Work) -> tuple[Any, ...]:
    """The actors that know contents; none where nothing is computed."""
    import ray

    if at is None:
        return ()
    kind = ray.remote(ContentLookup).options(**look().light, max_restarts=-1, max_task_retries=-1)
    count = 1 + work.files // _CONTENTS_A_LOOKUP
    return tuple(kind.remote(at, len(work.loading.views)) for _ in range(count))
