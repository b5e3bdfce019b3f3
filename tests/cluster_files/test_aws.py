"""cluster/aws.yaml: valid for Ray, and safe in cost and access."""

import copy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

_FILE = Path(__file__).parents[2] / "cluster" / "aws.yaml"

Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    found: Config = yaml.safe_load(_FILE.read_text())
    return found


@pytest.fixture
def head(config: Config) -> Config:
    found: Config = config["available_node_types"][config["head_node_type"]]
    return found


@pytest.fixture
def workers(config: Config) -> dict[str, Config]:
    kinds: dict[str, Config] = config["available_node_types"]
    return {name: kind for name, kind in kinds.items() if name != config["head_node_type"]}


def _prepared(config: Config) -> Config:
    """Return the configuration with the defaults of `ray up`, checked by Ray's schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: Config = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_takes_it(config: Config) -> None:
    prepared = _prepared(config)
    # Ray's defaults for missing keys would install a nightly Ray on every node.
    assert not any("pip install" in command for command in prepared["setup_commands"])
    assert not any("pip install" in command for command in prepared["head_setup_commands"])


def test_ray_refuses_an_unknown_field(config: Config) -> None:
    import jsonschema

    with pytest.raises(jsonschema.ValidationError, match="idle_minutes"):
        _prepared({**config, "idle_minutes": 5})


def test_the_head_takes_no_work_and_stays(config: Config, head: Config) -> None:
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    start = " ".join(config["head_start_ray_commands"])
    assert "--num-cpus=0" in start
    assert "--num-gpus=0" in start
    assert "InstanceMarketOptions" not in head["node_config"]


def test_workers_are_spot_and_go_when_idle(config: Config, workers: dict[str, Config]) -> None:
    assert set(workers) == {"cpu", "gpu"}
    for worker in workers.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["min_workers"] == 0
        assert 0 < worker["max_workers"] <= config["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 15
    assert config["provider"]["cache_stopped_nodes"] is False


def test_only_ssh_and_only_from_ones_own_address(config: Config) -> None:
    # Without a group here, Ray creates one that opens port 22 to the internet.
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"]
    assert "security_group" not in config["provider"]
    assert "0.0.0.0" not in _FILE.read_text()
    starts = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    flags = [word for command in starts for word in shlex.split(command)]
    assert "--dashboard-host=127.0.0.1" in flags
    assert not any(word.startswith("--ray-client-server-port") for word in flags)


def test_roles_instead_of_keys(config: Config) -> None:
    for kind in config["available_node_types"].values():
        node = kind["node_config"]
        assert node["IamInstanceProfile"]["Name"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
    assert "aws_credentials" not in config["provider"]


def test_tokens_are_on_and_travel_as_a_file(config: Config) -> None:
    options = config["docker"]["run_options"]
    assert "--env=RAY_AUTH_MODE=token" in options
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    # The only place where Ray finds it, except for two variables that are not set here.
    assert not any("RAY_AUTH_TOKEN" in option for option in options)
