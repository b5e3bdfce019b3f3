"""The driver's part of a graph: it commits the files that tasks wrote, every few seconds."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow.dataset as pads

from visao_ray.core import profiling
from visao_ray.core.profiling import Stages
from visao_ray.core.run import Run, duration
from visao_ray.core.storage import locate
from visao_ray.inference.writing import UPDATES, WriteResult
from visao_ray.store.store import Writer
from visao_ray.store.table import Table

#: Seconds or fragments after which to commit; a kill loses the work since the last commit.
COMMIT_S = 10.0
COMMIT_FRAGMENTS = 64

_PROGRESS_S = 10.0
_MERGE_ROWS = 4096  # number of changed files after which their rows are merged before the end


@dataclass
class GraphResult:
    """Counts of the work that a graph committed.

    Attributes:
        files: files of the listing, readable or not.
        errors: number of unusable files by reason.
        computed: number of views that went through the engine.
        costs: time and bytes of all stages.
    """

    files: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    computed: int = 0
    costs: Stages = field(default_factory=Stages)


class Committer:
    """Collect the results of tasks and commit them every few seconds, results before images.

    Args:
        run: run that reports the progress.
        writer: writer of the store.
        results: table of results, or None.
        files: total number of files.
    """

    def __init__(self, run: Run[Any], writer: Writer, results: Table | None, files: int) -> None:
        self._run, self._writer, self._results, self._files = run, writer, results, files
        self._pending: list[WriteResult] = []
        self._late: list[str] = []
        self._updates: list[str] = []
        self._updated = 0
        self._done = GraphResult()
        self._costs: list[Stages] = []
        self._committed_at = self._reported_at = time.monotonic()
        self._first: tuple[float, int] | None = None  # time and files where the speed is measured

    def add(self, written: WriteResult) -> None:
        """Add the result of one task; commit if it is time."""
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

    def finish(self) -> GraphResult:
        """Commit the rest; last come files with the same content as another file of the run."""
        self._commit()
        self._writer.append(self._writer.store.images, self._late)
        self._merge()
        self._done.costs = profiling.sum_stages(self._costs)
        return self._done

    def _commit(self) -> None:
        results = [text for written in self._pending for text in written.results]
        images = [text for written in self._pending for text in written.images]
        if self._results is not None:
            self._writer.append(self._results, results)
        self._writer.append(self._writer.store.images, images)
        self._pending = []
        self._committed_at = time.monotonic()

    def _merge(self) -> None:
        """Update the rows of files that were in the store; their new contents are committed."""
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
        if now - self._reported_at < _PROGRESS_S or now == self._first[0]:
            return
        self._reported_at = now
        total, done = self._files, self._done.files
        speed = (done - self._first[1]) / (now - self._first[0])
        if done < total and speed > 0:
            left = duration((total - done) / speed)
            self._run.say(f"{done:,} of {total:,} images ({speed:,.1f}/s, {left} left)")
