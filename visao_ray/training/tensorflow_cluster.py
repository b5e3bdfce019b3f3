"""Tell the workers of a training run each other's addresses, as TensorFlow's collectives need them.

Ray's `TensorflowTrainer` does the same. Its module imports TensorFlow, and so do the driver and the
controller of Ray Train, which compute nothing and must import the module too: one after the other,
each takes three to five seconds and 400 MB. `DataParallelTrainer` with this configuration does not.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig


class TensorflowCluster(BackendConfig):  # type: ignore[misc]
    """Configuration for `DataParallelTrainer`: sets `TF_CONFIG` in every worker."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that does it."""
        return _TensorflowAddresses


class _TensorflowAddresses(Backend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Collect an address of every worker and send all of them to each."""
        addresses = worker_group.execute(_free_address)
        ray.get(
            [
                worker_group.execute_single_async(rank, _set_addresses, addresses, rank)
                for rank in range(len(addresses))
            ]
        )


def _free_address() -> str:
    """Return an address of this node with a port that is free."""
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"


def _set_addresses(addresses: list[str], rank: int) -> None:
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
