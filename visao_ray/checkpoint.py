"""Ray Data's row checkpoints, switched on for one write and made strict."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from visao_ray.storage import Location


@contextlib.contextmanager
def checkpointed(place: Location, id_column: str) -> Iterator[None]:
    """Make the dataset write inside the `with` block resumable, exactly once a row.

    Rows whose `id_column` stands in a committed checkpoint below `place` are filtered right after
    the read. Each write is two-phase: a pending checkpoint, the data, then a rename.

    Raises:
        RuntimeWarning: Ray cannot checkpoint the plan; by itself it would only warn and run
            without, and an interrupted run would then repeat rows.
    """
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    context = DataContext.get_current()
    before = context.checkpoint_config
    context.checkpoint_config = CheckpointConfig(
        id_column=id_column,
        checkpoint_path=place.path if place.is_local else place.uri,
        override_filesystem=place.filesystem,
        # Kept until the job is finished: a kill between the write and result.json must find it.
        delete_checkpoint_on_success=False,
    )
    # Its default of 1 GiB for the filter's actor would not be met on small machines.
    context.checkpoint_config.checkpoint_actor_memory_bytes = 64 * 1024**2
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="You've enabled checkpointing, but")
            yield
    finally:
        context.checkpoint_config = before
