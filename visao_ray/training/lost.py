"""Workers that were lost: told to the job's result."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from visao_ray.runs import to_json
from visao_ray.storage import Location, reason


class LostWorkers(UserCallback):  # type: ignore[misc]
    """Writes a small file each time that Ray Train sees workers fail."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called where Ray Train's controller runs."""
        number = len(self._folder.children())
        told = {
            str(rank): f"{type(error).__name__}: {reason(error)}"
            for rank, error in worker_exceptions.items()
        }
        self._folder.join(f"{number:04d}.json").write_bytes(to_json(told))
