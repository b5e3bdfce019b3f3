"""All of Ray's internals that we rest on, each with the public way that was tried.

`pyproject.toml` pins the release of Ray. `tests/core/test_ray_internals.py` fails when an item no
longer behaves as described here, and when a public way may have appeared.
"""

from __future__ import annotations

import os


def node_groups() -> list[tuple[dict[str, float], int]]:
    """The groups of nodes that the cluster's autoscaler may start.

    Public ways tried: `ray.nodes()`, `ray.cluster_resources()` and `ray.util.state.list_nodes()`
    list the nodes there are, none that may come. `ray.autoscaler.sdk` starts, stops and requests
    nodes but has no call that reads limits. The dashboard's `/api/cluster_status` and `ray status`
    report demands and nodes, no limits.

    Returns:
        For each group, what one node offers by Ray's names of resources (memory in bytes), and how
        many nodes there may be; -1 is no limit. Empty where there is no autoscaler.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None:
        return []
    return [(dict(group.resources), group.max_count) for group in config.node_group_configs]


def keep_aws_keys_from_trials() -> None:
    """Have Tune start trials without the driver's AWS keys.

    Tune copies them from the driver's environment into the runtime environment of every trial, and
    Ray's agent writes runtime environments to its log. Trials find credentials as the workers of
    all other jobs do: in their node's own environment or role.

    Public ways tried: neither `tune.Tuner`, `TuneConfig` and `RunConfig` nor `tune.with_resources`
    take a runtime environment or a list of variables. To remove the keys from `os.environ` would
    take them from the driver, which writes to S3 too.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")
    }


def own_ray_variables() -> dict[str, str]:
    """Environment variables for a Ray that is started for one job on this machine.

    They are flags of Ray's C++ core (`ray_config_def.h`) that no page of its documentation
    explains. Public ways tried: `ray.init` has no argument for any of them; its `_system_config`
    is private as well. What they avoid costs seconds, not results.

    Returns:
        Values by name, to be set before `ray.init`.
    """
    # Ray would end idle processes beyond one a core and start them again later, a second or two of
    # work each time: readers, actors and writers are more than cores. And it would warn of more
    # than four starting at once a core: Ray Train starts eight.
    processes = str(2 * (os.cpu_count() or 1) + 6)
    return {
        "RAY_num_workers_soft_limit": processes,
        "RAY_worker_maximum_startup_concurrency": processes,
        # What every process would report to a dashboard that is not there, every second.
        "RAY_task_events_report_interval_ms": "0",
        "RAY_enable_metrics_collection": "0",
    }
