"""Epochs told on the driver as they end, from the files that rank 0 leaves."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

from visao_ray.core.run import Run, duration
from visao_ray.core.storage import Location

_LOOK_S = 2.0


@contextlib.contextmanager
def telling(run: Run[Any], epochs: Location) -> Iterator[None]:
    """Say every new epoch whose file appears in `epochs`, once."""
    stop = threading.Event()
    told = set(_written(epochs))

    def look() -> None:
        for name in _written(epochs):
            if name not in told:
                run.say(_line(json.loads(epochs.join(name).read_bytes())))
                told.add(name)

    def watch() -> None:
        while not stop.wait(_LOOK_S):
            with contextlib.suppress(OSError, ValueError):
                look()  # the storage may be busy: next time

    teller = threading.Thread(target=watch, daemon=True)
    teller.start()
    try:
        yield
    finally:
        stop.set()
        teller.join()
    look()


def _written(epochs: Location) -> list[str]:
    """Whole files, in order: one that is being written has another ending."""
    return sorted(entry.name for entry in epochs.children() if entry.name.endswith(".json"))


def _line(row: dict[str, Any]) -> str:
    names = [name for name in ("loss", "accuracy", "auc") if name in row]
    figures = [f"{name} {row[name]:.4f} (val {row[f'val_{name}']:.4f})" for name in names]
    return (
        f"{row['phase']} epoch {row['phase_epoch']}/{row['epochs']}: {', '.join(figures)}; "
        f"rate {row['learning_rate']:.2g}, {row['images_per_second']:,.0f} images/s, "
        f"{duration(row['seconds'])}{' (best)' if row['best'] else ''}"
    )
