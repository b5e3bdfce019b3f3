"""Records of worker failures for the result of the job."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from visao_ray.core.run import to_json
from visao_ray.core.storage import Location, reason


class WorkerFailures(UserCallback):  # type: ignore[misc]
    """Write a small file each time that workers failed and training resumed.

    The file is written when the workers report again, not earlier, because Ray Train also sees
    worker failures when the driver is killed.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._failed: list[dict[str, str]] = []

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Record the errors; Ray Train calls this in its controller."""
        self._failed.append(
            {
                str(rank): f"{type(error).__name__}: {reason(error)}"
                for rank, error in worker_exceptions.items()
            }
        )

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Write the recorded errors, after all workers have reported an epoch."""
        number = len(self._folder.children())
        for place, errors in enumerate(self._failed, number):
            self._folder.join(f"{place:04d}.json").write_bytes(to_json(errors))
        self._failed.clear()
