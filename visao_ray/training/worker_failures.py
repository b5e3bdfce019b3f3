"""Workers that were lost: told to the job's result."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from visao_ray.core.run import to_json
from visao_ray.core.storage import Location, reason


class LostWorkers(UserCallback):  # type: ignore[misc]
    """Writes a small file each time that workers failed and training went on.

    Not before they report again: of a driver that is killed Ray Train sees the workers fail too.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._failed: list[dict[str, str]] = []

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called where Ray Train's controller runs."""
        self._failed.append(
            {
                str(rank): f"{type(error).__name__}: {reason(error)}"
                for rank, error in worker_exceptions.items()
            }
        )

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """As above, when every worker has reported an epoch."""
        number = len(self._folder.children())
        for place, told in enumerate(self._failed, number):
            self._folder.join(f"{place:04d}.json").write_bytes(to_json(told))
        self._failed.clear()
