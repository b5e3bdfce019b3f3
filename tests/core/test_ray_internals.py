"""The used internals of Ray behave as described, and no public way has appeared."""

import re
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest
import ray
import ray.autoscaler.sdk
import ray.util.state
from ray import tune

from visao_ray.core import ray_internals

ROOT = Path(__file__).parents[2]


def test_no_other_module_uses_internals():
    ours = re.compile(r"from visao_ray\.core\.ray_internals import \w+")
    used = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / "visao_ray").rglob("*.py")
        if path.name != "ray_internals.py"
        for line in path.read_text().splitlines()
        if re.search(r"_internal|_private|class_cache", line) and not ours.search(line)
    ]
    assert not used


def test_node_groups_are_those_of_the_autoscaler(ray_cluster):
    assert ray_internals.node_groups() == []
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

    config = ClusterConfig()
    for resources, count in (({"CPU": 8.0, "GPU": 2.0}, 4), ({"CPU": 16.0}, -1)):
        group = config.node_group_configs.add(max_count=count)
        group.resources.update({name: int(value) for name, value in resources.items()})
    client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    key, space = (
        getattr(ray._raylet, f"GCS_AUTOSCALER_{name}").encode()
        for name in ("CLUSTER_CONFIG_KEY", "STATE_NAMESPACE")
    )
    client.internal_kv_put(key, config.SerializeToString(), True, namespace=space)
    try:
        found = ray_internals.node_groups()
    finally:
        client.internal_kv_del(key, False, namespace=space)
    assert found == [({"CPU": 8.0, "GPU": 2.0}, 4), ({"CPU": 16.0}, -1)]
    assert ray_internals.node_groups() == []


def test_no_public_way_to_the_limits_of_an_autoscaler():
    """A new name may be such a way: read what it does, then use it or add it to the set."""
    assert set(ray.autoscaler.sdk.__all__) == {
        *("create_or_update_cluster", "teardown_cluster", "run_on_cluster", "rsync"),
        *("get_head_node_ip", "get_worker_node_ips", "request_resources", "configure_logging"),
        *("bootstrap_config", "fillout_defaults", "register_callback_handler"),
        "get_docker_host_mount_location",
    }
    listed = {name for name in ray.util.state.__all__ if name.startswith("list_")}
    kinds = ("actors", "jobs", "nodes", "placement_groups", "tasks", "workers", "objects")
    assert listed == {f"list_{kind}" for kind in (*kinds, "runtime_envs", "logs", "cluster_events")}


def test_trials_get_no_aws_keys(monkeypatch):
    from ray.tune.execution import class_cache

    class Trial:
        pass

    def variables() -> dict[str, str]:
        made = class_cache._ActorClassCache().get(Trial)
        return made._default_options["runtime_env"]["env_vars"]

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    monkeypatch.setattr(
        class_cache,
        "ENV_VARS_TO_PROPAGATE",
        {*class_cache.ENV_VARS_TO_PROPAGATE, "AWS_SECRET_ACCESS_KEY"},
    )
    assert variables()["AWS_SECRET_ACCESS_KEY"] == "canary"
    ray_internals.keep_aws_keys_from_trials()
    remaining = variables()
    assert not [name for name in remaining if name.startswith("AWS_")]
    assert remaining["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.5"


def test_tune_itself_still_passes_aws_keys_on():
    """If it no longer does, remove `keep_aws_keys_from_trials`."""
    source = (Path(tune.__file__).parent / "execution" / "class_cache.py").read_text()
    assert '"AWS_SECRET_ACCESS_KEY"' in source


def test_no_public_way_to_the_environment_of_trials():
    taken = [field.name for kind in (tune.TuneConfig, tune.RunConfig) for field in fields(kind)]
    taken += [*signature(tune.Tuner).parameters, *signature(tune.with_resources).parameters]
    assert len(taken) > 20
    assert not [name for name in taken if "env" in name]


@pytest.mark.parametrize("name", ray_internals.own_ray_variables())
def test_rays_core_reads_the_variable(name):
    raylet = Path(ray.__file__).parent / "core/src/ray/raylet/raylet"
    assert f"{name}\0".encode() in raylet.read_bytes()


def test_no_argument_of_ray_init_replaces_a_variable():
    taken = signature(ray.init).parameters
    flags = [name.removeprefix("RAY_") for name in ray_internals.own_ray_variables()]
    assert not [name for name in taken if name in flags or "limit" in name or "metric" in name]
