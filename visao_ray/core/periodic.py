"""A thread that calls a function at regular intervals."""

from __future__ import annotations

import threading
from collections.abc import Callable


class PeriodicThread:
    """A daemon thread that calls a function at regular intervals until it is stopped.

    Args:
        call: the function; it must not raise.
        interval: seconds before the first call and between calls.
        name: name of the thread.
        call_at_end: call the function once more after `stop`.
    """

    def __init__(
        self, call: Callable[[], None], interval: float, name: str, call_at_end: bool = False
    ) -> None:
        self._call, self._interval, self._call_at_end = call, interval, call_at_end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread; wait at most `timeout` seconds for a call in progress."""
        self._stop.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._call()
        if self._call_at_end:
            self._call()
