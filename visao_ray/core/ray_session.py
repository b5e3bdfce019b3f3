"""Connect this process to Ray: to a cluster, or to a Ray started for one job on this machine."""

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

    # Report an error that the driver catches once, not again for a second result of the same task.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if not ray.is_initialized():
        # Ray Data passes arguments to actors by reference; Ray's C++ core logs each as an error.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        if os.environ.get("RAY_ADDRESS", "local") == "local":
            _configure_own_ray()
        with muted_stderr():  # Ray would print that it read this variable
            # Log lines of workers stay in Ray's log folder; exceptions still reach the driver. The
            # dashboard would take 5 % of the speed of two cores, and nobody knows its address.
            ray.init(
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False,
                runtime_env=plugins.runtime_env() or None,
            )
        with contextlib.suppress(ValueError):  # not in the main thread
            # Restore Python's handler: Ray's C++ core has replaced it by one that dumps its stack.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    import ray.data

    context = ray.data.DataContext.get_current()
    # Ray Data prints every plan and ten lines of progress per operator; jobs print one line.
    context.enable_progress_bars = False
    # The second version of the reader starts 32 actors to read the footers of one small file. It
    # lists files in a task that waits forever if the resume filter holds the last CPU (two cores).
    context.use_datasource_v2 = False
    # Retry transient failures of object storage; a file that always fails becomes an error row.
    context.retried_map_errors = [*OUTAGES]
    context.max_map_retries = 3
    # The same for actors, which read their network in the constructor.
    context.actor_init_retry_on_errors = True
    context.actor_init_max_retries = 3
    quiet_terminal()


def _configure_own_ray() -> None:
    """Set variables for a Ray that is started for one job; a cluster has its own settings."""
    for name, value in own_ray_variables().items():
        os.environ.setdefault(name, value)
    # A task that requests no GPU must not see one: an actor may use the whole GPU. Ray itself names
    # this variable in a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")


@contextlib.contextmanager
def muted_stderr() -> Iterator[None]:
    """Discard what C++ libraries print to standard error while the block runs."""
    sys.stderr.flush()
    saved, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)
