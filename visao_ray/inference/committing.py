"""The driver's side of a graph: it commits what tasks wrote, every few seconds."""

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

#: A kill loses what was done since the last commit: so many seconds, or so many fragments.
COMMIT_S = 10.0
COMMIT_FRAGMENTS = 64

_PROGRESS_S = 10.0
_MERGE_ROWS = 4096  # changed files after which their rows are merged, not only at the end


@dataclass
class GraphResult:
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


class Committer:
    """Collects what tasks wrote and commits it every few seconds, results before images.

    Args:
        run: says how far it is.
        writer: of the store.
        results: table of results; None where there are none.
        files: images there are to do.
    """

    def __init__(self, run: Run[Any], writer: Writer, results: Table | None, files: int) -> None:
        self._run, self._writer, self._results, self._files = run, writer, results, files
        self._pending: list[WriteResult] = []
        self._late: list[str] = []
        self._updates: list[str] = []
        self._updated = 0
        self._done = GraphResult()
        self._costs: list[Stages] = []
        self._committed_at = self._said_at = time.monotonic()
        self._first: tuple[float, int] | None = None  # since then speed is measured

    def add(self, written: WriteResult) -> None:
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

    def finish(self) -> GraphResult:
        """Commit the rest; files whose content is another file's last."""
        self._commit()
        self._writer.append(self._writer.store.images, self._late)
        self._merge()
        self._done.costs = profiling.total(self._costs)
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
        total, done = self._files, self._done.files
        speed = (done - self._first[1]) / (now - self._first[0])
        if done < total and speed > 0:
            left = duration((total - done) / speed)
            self._run.say(f"{done:,} of {total:,} images ({speed:,.1f}/s, {left} left)")
