"""The Ray of this process: a cluster's, or one that is started for one job on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator

from visao_ray.core import plugins
from visao_ray.core.driver_log import quiet_terminal
from visao_ray.core.ray_internals import own_ray_variables
from visao_ray.core.storage import OUTAGES


def start_ray() -> None:
    """Connect to the cluster this job was submitted to, or start Ray on this machine."""
    import ray

    # An error that the driver catches is told once, not again for a second result of the same task.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if not ray.is_initialized():
        # Ray Data hands actors their arguments by reference; Ray's C++ core calls each an error.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        if os.environ.get("RAY_ADDRESS", "local") == "local":
            _tune_own_ray()
        with muted_stderr():  # where it would tell that it read this variable
            # A worker's own lines stay in Ray's log folder; exceptions still reach the driver. The
            # dashboard, whose address nobody is told, takes 5 % of the speed of two cores.
            ray.init(
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False,
                runtime_env=plugins.runtime_env() or None,
            )
        with contextlib.suppress(ValueError):  # not in the main thread
            # Set anew: Ray's C++ core has put itself in front of it, with a dump of its stack.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    import ray.data

    context = ray.data.DataContext.get_current()
    # Ray Data prints every plan and ten lines of progress an operator; jobs print one line.
    context.enable_progress_bars = False
    # The second reader starts 32 actors to read the footers of one small file, and lists files in a
    # task that waits for ever where the resume filter has taken the last CPU (two cores).
    context.use_datasource_v2 = False
    # Object storage hiccups; a file that fails for good is caught and becomes an error row.
    context.retried_map_errors = [*OUTAGES]
    context.max_map_retries = 3
    quiet_terminal()


def _tune_own_ray() -> None:
    """Settings of a Ray that is started for one job, on this machine; a cluster has its own."""
    for name, value in own_ray_variables().items():
        os.environ.setdefault(name, value)
    # A task that asks for no GPU must not find one, beside an actor that has it all to itself. Ray
    # itself names this variable in a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")


@contextlib.contextmanager
def muted_stderr() -> Iterator[None]:
    """Swallow what libraries in C++ print while the block runs."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
