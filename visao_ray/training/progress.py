"""Progress lines of epochs on the driver, read from the files that rank 0 writes."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

from visao_ray.core.run import Run, duration
from visao_ray.core.storage import Location

_POLL_S = 2.0


@contextlib.contextmanager
def report_epochs(run: Run[Any], epochs: Location) -> Iterator[None]:
    """Report each new epoch once, as soon as its file appears in `epochs`."""
    stop = threading.Event()
    reported = set(_epoch_files(epochs))

    def report_new() -> None:
        for name in _epoch_files(epochs):
            if name not in reported:
                run.say(_line(json.loads(epochs.join(name).read_bytes())))
                reported.add(name)

    def poll() -> None:
        while not stop.wait(_POLL_S):
            with contextlib.suppress(OSError, ValueError):
                report_new()  # after an error of the storage, the next poll tries again

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    report_new()


def _epoch_files(epochs: Location) -> list[str]:
    """Return the names of complete files in order; an incomplete file has another suffix."""
    return sorted(entry.name for entry in epochs.children() if entry.name.endswith(".json"))


def _line(row: dict[str, Any]) -> str:
    names = [name for name in ("loss", "accuracy", "auc") if name in row]
    metrics = [f"{name} {row[name]:.4f} (val {row[f'val_{name}']:.4f})" for name in names]
    return (
        f"{row['phase']} epoch {row['phase_epoch']}/{row['epochs']}: {', '.join(metrics)}; "
        f"rate {row['learning_rate']:.2g}, {row['images_per_second']:,.0f} images/s, "
        f"{duration(row['seconds'])}{' (best)' if row['best'] else ''}"
    )
