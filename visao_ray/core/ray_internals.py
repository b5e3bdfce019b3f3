"""All of Ray's internals that the library uses, each with the public ways that were tried.

`pyproject.toml` pins the release of Ray. `tests/core/test_ray_internals.py` fails if an item no
longer behaves as described here, or if a public way may have appeared.
"""

from __future__ import annotations

import os


def node_groups() -> list[tuple[dict[str, float], int]]:
    """Return the groups of nodes that the cluster's autoscaler may start.

    Public ways tried: `ray.nodes()`, `ray.cluster_resources()` and `ray.util.state.list_nodes()`
    list only the current nodes. `ray.autoscaler.sdk` starts, stops and requests nodes but has no
    call that reads limits. The dashboard's `/api/cluster_status` and `ray status` report demands
    and nodes, but no limits.

    Returns:
        For each group, the resources of one node by Ray's names (memory in bytes), and the maximum
        number of nodes; -1 is no limit. Empty if there is no autoscaler.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None:
        return []
    return [(dict(group.resources), group.max_count) for group in config.node_group_configs]


def keep_aws_keys_from_trials() -> None:
    """Make Tune start trials without the driver's AWS keys.

    Tune copies the keys from the driver's environment into the runtime environment of every trial,
    and Ray's agent writes runtime environments to its log. Trials find credentials like the workers
    of all other jobs: in the environment or the role of their node.

    Public ways tried: `tune.Tuner`, `TuneConfig`, `RunConfig` and `tune.with_resources` take
    neither a runtime environment nor a list of variables. Removing the keys from `os.environ` would
    remove them from the driver, which writes to S3 too.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")
    }


def own_ray_variables() -> dict[str, str]:
    """Return environment variables for a Ray that is started for one job on this machine.

    They are flags of Ray's C++ core (`ray_config_def.h`) that its documentation does not explain.
    Public ways tried: `ray.init` has no argument for any of them, and its `_system_config` is
    private too. Without them a job takes some seconds more; its results are the same.

    Returns:
        Values by name, to be set before `ray.init`.
    """
    # There are more readers, actors and writers than cores. Ray would end idle processes beyond one
    # per core and start them again later, which takes a second or two each time. It would also
    # warn if more than four processes per core start at once; Ray Train starts eight.
    processes = str(2 * (os.cpu_count() or 1) + 6)
    return {
        "RAY_num_workers_soft_limit": processes,
        "RAY_worker_maximum_startup_concurrency": processes,
        # Without these, every process would report to a missing dashboard every second.
        "RAY_task_events_report_interval_ms": "0",
        "RAY_enable_metrics_collection": "0",
    }
