"""Compute how many workers fit on the nodes of a cluster, and the resources of each worker.

Ray waits forever if no node can hold a task or an actor. This module therefore compares a request
with the current nodes, and with those that an autoscaler may start, before the request is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from visao_ray.core.errors import InputError
from visao_ray.core.ray_internals import node_groups

_GIB = 1024**3
_UNLIMITED = 10_000  # nodes of a group without a limit
_RETRIES = 3
_READS = 2  # files of rows read at once; little work compared to that of their images


@dataclass(frozen=True)
class Node:
    """A kind of node.

    Attributes:
        offers: resources of one node, by Ray's names.
        count: number of such nodes.
    """

    offers: Mapping[str, float]
    count: int = 1

    def holds(self, request: Mapping[str, float]) -> int:
        """Return how many such requests fit on one node of this kind."""
        fits = [self.offers.get(name, 0.0) / amount for name, amount in request.items() if amount]
        return math.floor(min(fits, default=float(_UNLIMITED)) + 1e-9)


@dataclass(frozen=True)
class Cluster:
    """The nodes of a cluster and the limits of its autoscaler.

    Attributes:
        nodes: the current nodes.
        limits: all nodes after the autoscaler has grown the cluster to its limits; empty without
            an autoscaler.
        idle: ids of nodes that take no work, such as a head started with no CPUs.
        gpu_ids: ids of nodes with GPUs.
    """

    nodes: tuple[Node, ...]
    limits: tuple[Node, ...] = ()
    idle: tuple[str, ...] = ()
    gpu_ids: tuple[str, ...] = ()

    @property
    def zero_cpu_options(self) -> dict[str, Any]:
        """Options of tasks that request no CPU; they exclude nodes that take no work."""
        if not self.idle:
            return {"num_cpus": 0}
        return {"num_cpus": 0, "label_selector": {"ray.io/node-id": f"!in({','.join(self.idle)})"}}

    @property
    def reader(self) -> dict[str, Any]:
        """Options of `ray.data.read_*` for a resumable read of rows.

        They request no CPU: in a resumed run, the filter of finished rows holds a whole CPU from
        the start. If there is no other CPU, the two would wait for each other.
        """
        return {"concurrency": _READS, **self.zero_cpu_options}

    def holds(self, request: Mapping[str, float]) -> int:
        """Return how many such requests fit on the otherwise empty cluster, grown to its limits."""
        return max(
            sum(node.count * node.holds(request) for node in nodes)
            for nodes in (self.nodes, self.limits)
        )

    def total(self, name: str) -> float:
        """Return the amount of a resource in the whole cluster, grown to its limits."""
        return max(
            sum(node.count * node.offers.get(name, 0.0) for node in nodes)
            for nodes in (self.nodes, self.limits)
        )

    def largest(self, name: str) -> float:
        """Return the largest amount of a resource that one node offers."""
        kinds = (*self.nodes, *self.limits)
        return max((node.offers.get(name, 0.0) for node in kinds), default=0.0)

    @property
    def working(self) -> int:
        """Number of nodes with CPUs, which take work, in the cluster grown to its limits."""
        return max(
            sum(node.count for node in nodes if node.offers.get("CPU") and node.count < _UNLIMITED)
            for nodes in (self.nodes, self.limits)
        )

    @property
    def avoid_gpu_nodes(self) -> dict[str, Any]:
        """Options of tasks that need no GPU; they prefer nodes without GPUs.

        Empty if all nodes have GPUs, or none.
        """
        working = sum(bool(node.offers.get("CPU")) for node in self.nodes)
        if not 0 < len(self.gpu_ids) < working:
            return {}
        others = {"ray.io/node-id": f"!in({','.join(self.gpu_ids)})"}
        # If no other node has room, a node with GPUs takes the task.
        return {"label_selector": others, "fallback_strategy": [{"label_selector": {}}]}

    def __str__(self) -> str:
        plural = "" if self.working == 1 else "s"
        return (
            f"{self.working} working node{plural}, {self.total('CPU'):g} CPUs, "
            f"{self.total('GPU'):g} GPUs, at most {self.largest('memory') / _GIB:.1f} GiB a node"
        )


@dataclass(frozen=True)
class Worker:
    """Resources of each worker or actor, as the flags set them.

    Attributes:
        gpus: GPUs, fractions allowed; None: 1 if the cluster has one for each worker, else 0.
        memory: GiB; None: no request.
        resources: amounts of custom resources, by the names that nodes declare.
    """

    gpus: float | None = None
    memory: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    def request(self) -> dict[str, float]:
        """Return the resources by Ray's names, without CPUs: a job adapts these to the cluster."""
        amounts = {"GPU": self.gpus or 0.0, "memory": (self.memory or 0.0) * _GIB, **self.resources}
        return {name: amount for name, amount in amounts.items() if amount}

    def options(self, cpus: float) -> dict[str, Any]:
        """Return the resources as options of Ray's tasks and actors."""
        found: dict[str, Any] = {"num_cpus": cpus, "num_gpus": self.gpus or 0.0}
        if self.memory:
            found["memory"] = int(self.memory * _GIB)
        if self.resources:
            found["resources"] = dict(self.resources)
        return found


@dataclass(frozen=True)
class ActorPool:
    """Number and options of the actors that run the network, and of the tasks around them.

    Attributes:
        size: number of actors.
        gpus: GPUs of each actor.
        actor: options of each actor.
        reader: options of the read of rows.
        loader: options of each task that loads images.
        writer: options of each task that writes results.
        writers: number of writing tasks that run at once.
    """

    size: int
    gpus: float
    actor: Mapping[str, Any]
    reader: Mapping[str, Any]
    loader: Mapping[str, Any]
    writer: Mapping[str, Any]
    writers: int

    def __str__(self) -> str:
        return f"{self.size} {'GPU' if self.gpus else 'CPU'} actor{'s' if self.size > 1 else ''}"


def current_cluster() -> Cluster:
    """Return the cluster that this process is connected to.

    Returns:
        The cluster, with at least one node that takes work.

    Raises:
        InputError: none of its nodes takes work.
    """
    found = read_cluster()
    if not found.total("CPU"):
        raise InputError(
            "the cluster has no node with CPUs for work, only its head; add one "
            "(ray start --address=HEAD:PORT)"
        )
    return found


def remotely(function: Callable[..., Any], *arguments: Any, keep: bool = False) -> Any:
    """Call a function once in a task, so that the driver's memory stays small.

    Args:
        function: function to call.
        *arguments: its arguments. A reference is not resolved: the function gets it in a list of
            one.
        keep: return a reference instead of the value. The function must only read, because Ray
            calls it again if the node with its result is lost.

    Returns:
        The value that the function returns, or a reference to it.
    """
    import ray

    wrapped = [[one] if isinstance(one, ray.ObjectRef) else one for one in arguments]
    options = {"max_retries": _RETRIES if keep else 0, **current_cluster().zero_cpu_options}
    reference = ray.remote(function).options(**options).remote(*wrapped)
    return reference if keep else ray.get(reference)


def read_cluster() -> Cluster:
    """Return the cluster that this process is connected to, even if no node takes work."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return Cluster(
        tuple(Node(node["Resources"]) for node in nodes),
        tuple(Node(offers, count if count >= 0 else _UNLIMITED) for offers, count in node_groups()),
        tuple(node["NodeID"] for node in nodes if not node["Resources"].get("CPU")),
        tuple(node["NodeID"] for node in nodes if node["Resources"].get("GPU")),
    )


def fit_workers(workers: int, worker: Worker, cluster: Cluster) -> Worker:
    """Check that all workers fit on the cluster, and decide on their GPUs.

    Args:
        workers: number of workers.
        worker: requested resources of each worker.
        cluster: the cluster.

    Returns:
        `worker`, with a number for `gpus`.

    Raises:
        InputError: the cluster can never hold them; the message names flag, value and the cluster.
    """
    if worker.gpus is None:
        worker = Worker(float(cluster.total("GPU") >= workers), worker.memory, worker.resources)
    _check_one(worker, cluster)
    room = cluster.holds(worker.request())
    if room < workers:
        requested = " and ".join(f"{value} each" for value in _flags(worker))
        raise InputError(
            f"--workers {workers} with {requested}: the cluster has room for {room} ({cluster})"
        )
    return worker


def fit_actors(workers: int | None, worker: Worker, cluster: Cluster) -> ActorPool:
    """Fit the actors that run a network, and the tasks that load images for them, to the cluster.

    With GPUs there are as many actors as GPU shares. Without GPUs there is one actor per node,
    because TensorFlow's own threads use all its cores. Actors and loaders request less than one CPU
    each on small clusters, so that the resume filter, which requests a whole CPU, also fits, even
    on two cores.

    Args:
        workers: number of actors; None: as many as fit.
        worker: requested resources of each actor.
        cluster: the cluster.

    Returns:
        Number and options of the actors and tasks.

    Raises:
        InputError: the cluster can never hold them.
    """
    if worker.gpus is None:
        worker = Worker(float(cluster.total("GPU") >= 1), worker.memory, worker.resources)
    if workers is None:
        room = cluster.holds(worker.request())
        workers = room if worker.gpus else max(1, min(cluster.working, room))
    worker = fit_workers(workers, worker, cluster)
    # Loaders must not request the same CPUs as actors: Ray Data would fuse the two operators, and
    # images would no longer be loaded while the network runs.
    roomy = cluster.total("CPU") >= 2 * workers + 2
    loader = {"num_cpus": 1.0 if roomy else 0.7, **(cluster.avoid_gpu_nodes if worker.gpus else {})}
    return ActorPool(
        size=workers,
        gpus=worker.gpus or 0.0,
        actor=worker.options(0.9) if roomy else {**worker.options(0.0), **cluster.zero_cpu_options},
        reader=cluster.reader,
        loader=loader,
        # Writers must start at once: a kill loses rows that are extracted but not committed.
        writer=cluster.zero_cpu_options,
        # They request no CPU, so without a limit Ray would start a process for each waiting block.
        writers=(8 if worker.gpus else 2) * workers,
    )


def _check_one(worker: Worker, cluster: Cluster) -> None:
    """Check each part of the request by itself, so that the message can name the flag."""
    if worker.gpus and cluster.largest("GPU") < worker.gpus:
        raise InputError(
            f"--gpus-per-worker {worker.gpus:g}: no node has so many GPUs ({cluster}); leave it "
            "out to run on CPUs"
        )
    if worker.memory and cluster.largest("memory") < worker.memory * _GIB:
        raise InputError(
            f"--memory-per-worker {worker.memory:g}: no node has so many GiB ({cluster})"
        )
    for name, amount in worker.resources.items():
        if cluster.largest(name) < amount:
            raise InputError(
                f"--worker-resources {name}={amount:g}: no node offers it; nodes declare such a "
                f"resource by ray start --resources='{{\"{name}\": {amount:g}}}'"
            )
    if not cluster.holds(worker.request()):
        requested = ", ".join(_flags(worker))
        raise InputError(f"{requested}: no node has all of it at once ({cluster})")


def _flags(worker: Worker) -> list[str]:
    found = []
    if worker.gpus:
        found.append(f"--gpus-per-worker {worker.gpus:g}")
    if worker.memory:
        found.append(f"--memory-per-worker {worker.memory:g}")
    found += [f"--worker-resources {name}={amount:g}" for name, amount in worker.resources.items()]
    return found
