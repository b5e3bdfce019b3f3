"""The engine of `numpy_engine` for graphs in tests; it can wait, fail or kill its process."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy_engine import Cells

SIZE = 32
CELLS = Cells("means", SIZE, "stretch", pace=0.0)


class MeanEngine:
    """Computes the outputs of `CELLS`, and acts."""

    outputs: Mapping[str, int] = CELLS.outputs
    metadata: Mapping[str, Any] = CELLS.metadata

    def __init__(self, act: "Means") -> None:
        self._act = act

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        found = CELLS(pixels)
        self._act.on(255 * found["avg"])
        return found


@dataclass(frozen=True)
class Means:
    """Factory of the engine.

    Attributes:
        slow: seconds that each call takes.
        above: average grey level of an image above which the engine acts.
        action: what it does then: wait (2 s), fail, or die (once). With `outage`, the first build
            fails as a read from an object store that does not answer.
        mark: file that marks that it has died, or that a build has failed.
    """

    slow: float = 0.0
    above: float = 256.0
    action: str = ""
    mark: str = ""

    name = "means"
    image_size = SIZE
    resize = "stretch"
    outputs = MeanEngine.outputs
    metadata = MeanEngine.metadata

    def build(self) -> MeanEngine:
        if self.action == "outage" and not Path(self.mark).exists():
            Path(self.mark).write_bytes(b"")
            raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 52")
        return MeanEngine(self)

    def on(self, averages: npt.NDArray[np.float32]) -> None:
        """Act if the call had an image with an average above the limit."""
        time.sleep(self.slow)
        if not (averages.mean(axis=1) > self.above).any():
            return
        if self.action == "wait":
            time.sleep(2)
        elif self.action == "fail":
            raise RuntimeError("the engine fails on purpose")
        elif self.action == "die" and not Path(self.mark).exists():
            Path(self.mark).write_bytes(b"")
            os.kill(os.getpid(), signal.SIGKILL)
