"""The build action of the search job, and the update of indexes after new vectors."""

from __future__ import annotations

from typing import Any

from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.run import Run
from visao_ray.features.extract import maintain_store
from visao_ray.search.index import Updated, index_name, update_index
from visao_ray.search.settings import BuildSettings
from visao_ray.search.spaces import find_space
from visao_ray.store.store import Store


def build_index(settings: BuildSettings, run: Run[Any]) -> None:
    """Run the build action: create or update the index of one space.

    Args:
        settings: settings of the job.
        run: the run.

    Raises:
        InputError: no such store or vectors, or another job is writing to the store.
    """
    store = Store.open(settings.store_uri())
    space = find_space(store, settings.vectors, settings.extractor)
    if space.components:
        raise InputError(f"--vectors {space.name}: components cannot be indexed; name the vectors")
    start_ray()
    with store.writing(run.owner, run.say, run.predecessor) as writer:
        with run.timed("index"):
            updated = update_index(run, writer, space)
        maintain_store(run, writer)
    run.counts |= to_counts(updated)
    run.details |= {"index": index_name(space), "table": space.table}
    run.say(f"{index_name(space)}: {describe(updated)}")


def to_counts(updated: Updated) -> dict[str, int]:
    """Return the counts of an update for result.json."""
    return {
        "rows": updated.rows,
        "added": updated.added,
        "removed": updated.removed,
        "changed": updated.changed,
    }


def describe(updated: Updated) -> str:
    """Return an update as one line of text."""
    return (
        f"{updated.rows:,} images: {updated.added:,} added, {updated.removed:,} removed, "
        f"{updated.changed:,} changed"
    )
