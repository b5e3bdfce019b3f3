"""Keeping a table small: compaction, scalar indexes, removal of old versions and orphan files.

For whoever holds the store's lease, after its fence, in a task: see `Writer.maintain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from lance.optimize import Compaction, CompactionOptions

from visao_ray.core.lease import LeaseLost
from visao_ray.store.table import TableVersion, refusals

KEEP = timedelta(days=14)

#: Fragments below so many rows are joined once there are so many of them. Two sizes: with the
#: large one alone, every sixteen small fragments would rewrite up to 65,535 rows of 8 kB.
TIERS = ((8192, 16), (65_536, 16))
_BATCH_ROWS = 1024
_THREADS = 2


@dataclass(frozen=True)
class Cleaned:
    """What clean-up removed: bytes, and the number of versions and of data files."""

    bytes: int
    versions: int
    files: int


def compact(at: TableVersion, at_least: int | None = None) -> TableVersion:
    """Join small fragments; rows, their order by content and their values stay.

    Args:
        at: the newest version.
        at_least: small fragments from which on they are joined; None: as `TIERS` has it.

    Raises:
        LeaseLost: somebody else changed the table since `at`.
    """
    for rows, enough in TIERS:
        dataset = at.open()
        small = sum(each.count_rows() < rows for each in dataset.get_fragments())
        if small < (enough if at_least is None else at_least):
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
        with refusals(at.uri):
            Compaction.commit(dataset, [task.execute(dataset) for task in plan.tasks])
        at = TableVersion(at.uri, int(dataset.version))
    return at


def index(at: TableVersion, columns: Sequence[str]) -> TableVersion:
    """Create or bring up to date a BTREE index on each of the columns.

    Only columns that updates leave alone: an update of part of a column's rows makes Lance scan all
    of them until the index is built again.
    """
    dataset = at.open()
    if not dataset.count_rows():
        return at
    there = {found["name"]: found for found in dataset.list_indices()}
    missing = [column for column in columns if f"{column}_idx" not in there]
    for column in missing:
        dataset.create_scalar_index(column, "BTREE")
    if len(missing) < len(columns) and _unindexed(dataset, columns):
        dataset.optimize.optimize_indices()
    return TableVersion(at.uri, int(dataset.version))


def clean(at: TableVersion, keep: timedelta = KEEP) -> Cleaned:
    """Remove versions older than `keep` that no run has tagged, and files that no version names.

    Files that a killed job wrote and never committed are removed at once, which is safe behind a
    fence alone: a stale writer that committed them later would name files that are gone.

    Args:
        at: the newest version.
        keep: age of a version from which on it goes.

    Raises:
        LeaseLost: somebody else changed the table since `at`, and may be about to commit files.
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
        set(found["fragment_ids"])
        for found in dataset.list_indices()  # type: ignore[attr-defined]
        if next(iter(found["fields"])) in columns
    ]
    return any(fragments - each for each in covered)
