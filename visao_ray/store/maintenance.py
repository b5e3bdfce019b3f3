"""Maintenance of a table: compaction, scalar indexes, removal of old versions and orphan files.

Only the holder of the store's lease may do it, after the fence and in a task: see
`Writer.maintain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from lance.optimize import Compaction, CompactionOptions

from visao_ray.core.lease import LeaseLost, read_holder
from visao_ray.core.storage import Location
from visao_ray.store.table import TableVersion, conflict_as_lease_lost

KEEP = timedelta(days=14)
ABANDONED = timedelta(days=1)

#: Pairs (rows, number): fragments with fewer rows are merged as soon as there are that many of
#: them. With the large size alone, every sixteen small fragments would cause a rewrite of up to
#: 65,535 rows of 8 kB.
TIERS = ((8192, 16), (65_536, 16))
_BATCH_ROWS = 1024
_THREADS = 2


@dataclass(frozen=True)
class Cleaned:
    """What clean-up removed.

    Attributes:
        bytes: size of all removed files.
        versions: number of removed versions.
        files: number of removed data files.
    """

    bytes: int
    versions: int
    files: int


def remove_abandoned(runs: Location, age: timedelta = ABANDONED) -> int:
    """Remove the work folders of runs below a store that were killed and never repeated.

    A run without `--out` gets a new folder, so nobody would remove the work of a killed one. Its
    result, log and other files stay.

    Args:
        runs: folder of the runs.
        age: time without a heartbeat after which a run counts as dead; in S3. On a local disk its
            process must have ended.

    Returns:
        The number of removed folders.
    """
    removed = 0
    for entry in runs.children():
        work = runs.join(entry.name, "work")
        if not entry.is_folder or not work.exists():
            continue
        holder = read_holder(runs.join(entry.name, "lease"))
        if holder is not None and (runs.is_local or holder.silence < age):
            continue
        work.delete()
        removed += 1
    return removed


def compact(at: TableVersion, at_least: int | None = None) -> TableVersion:
    """Merge small fragments; rows and their values do not change.

    Args:
        at: the newest version.
        at_least: number of small fragments from which on they are merged; None: as in `TIERS`.

    Returns:
        The new version, or `at` if nothing was merged.

    Raises:
        LeaseLost: another process changed the table since `at`.
    """
    for rows, minimum in TIERS:
        dataset = at.open()
        small = sum(each.count_rows() < rows for each in dataset.get_fragments())
        if small < (minimum if at_least is None else at_least):
            continue
        options: CompactionOptions = {
            "target_rows_per_fragment": rows,
            "max_rows_per_group": _BATCH_ROWS,
            "batch_size": _BATCH_ROWS,
            "num_threads": _THREADS,
        }
        plan = Compaction.plan(dataset, options)
        if not plan.num_tasks():
            continue
        with conflict_as_lease_lost(at.uri):
            Compaction.commit(dataset, [task.execute(dataset) for task in plan.tasks])
        at = TableVersion(at.uri, int(dataset.version))
    return at


def index(at: TableVersion, columns: Sequence[str]) -> TableVersion:
    """Create or update a BTREE index on each of the columns.

    Use it only for columns that no update changes: after an update of some rows of an indexed
    column, Lance scans all rows until the index is built again.
    """
    dataset = at.open()
    if not dataset.count_rows():
        return at
    existing = {found.name for found in dataset.describe_indices()}
    missing = [column for column in columns if f"{column}_idx" not in existing]
    for column in missing:
        dataset.create_scalar_index(column, "BTREE")
    if len(missing) < len(columns) and _unindexed(dataset, columns):
        dataset.optimize.optimize_indices()
    return TableVersion(at.uri, int(dataset.version))


def clean(at: TableVersion, keep: timedelta = KEEP) -> Cleaned:
    """Remove versions older than `keep` that no run has tagged, and files that no version uses.

    Files that a killed job wrote and never committed are removed at once. This is safe only after a
    fence: without it, a stale writer could later commit files that no longer exist.

    Args:
        at: the newest version.
        keep: age of a version from which on it is removed.

    Returns:
        What was removed.

    Raises:
        LeaseLost: another process changed the table since `at`, and may commit more files.
    """
    dataset = at.open()
    if dataset.latest_version != at.version:
        raise LeaseLost(f"{at.uri}: another writer changed the table")
    found = dataset.cleanup_old_versions(
        older_than=keep, delete_unverified=True, error_if_tagged_old_versions=False
    )
    return Cleaned(found.bytes_removed, found.old_versions, found.data_files_removed)


def _unindexed(dataset: object, columns: Sequence[str]) -> bool:
    fragments = {each.fragment_id for each in dataset.get_fragments()}  # type: ignore[attr-defined]
    covered = [
        {number for segment in found.segments for number in segment.fragment_ids}
        for found in dataset.describe_indices()  # type: ignore[attr-defined]
        if found.field_names[0] in columns
    ]
    return any(fragments - each for each in covered)
