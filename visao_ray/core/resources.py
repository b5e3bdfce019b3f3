"""What the cluster can give: how many workers fit on its nodes, and what each of them takes.

Ray waits for ever where no node can hold a task or an actor. Here a request is held against the
nodes there are, and against those that an autoscaler may start, before anything is asked for.
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
_READS = 2  # files of rows read at once: hardly any work beside that of their images


@dataclass(frozen=True)
class Node:
    """A kind of node: what one offers, by Ray's names of resources, and how many there can be."""

    offers: Mapping[str, float]
    count: int = 1

    def holds(self, request: Mapping[str, float]) -> int:
        """How many requests fit on one such node."""
        fits = [self.offers.get(name, 0.0) / amount for name, amount in request.items() if amount]
        return math.floor(min(fits, default=float(_UNLIMITED)) + 1e-9)


@dataclass(frozen=True)
class Cluster:
    """The nodes there are, and those that the autoscaler may bring them to (none without one)."""

    nodes: tuple[Node, ...]
    limits: tuple[Node, ...] = ()
    idle: tuple[str, ...] = ()  # ids of nodes that take no work, as a head started with no CPUs
    gpu_ids: tuple[str, ...] = ()  # of the nodes with GPUs

    @property
    def zero_cpu_options(self) -> dict[str, Any]:
        """Of tasks that ask for no CPU: options that keep them off nodes which take no work."""
        if not self.idle:
            return {"num_cpus": 0}
        return {"num_cpus": 0, "label_selector": {"ray.io/node-id": f"!in({','.join(self.idle)})"}}

    @property
    def reader(self) -> dict[str, Any]:
        """Of a resumable read of rows: options of `ray.data.read_*`.

        No CPU: the filter of rows that are done holds a whole one from the start of a run that goes
        on, and where there is no other the two would wait for each other.
        """
        return {"concurrency": _READS, **self.zero_cpu_options}

    def holds(self, request: Mapping[str, float]) -> int:
        """How many requests fit on the cluster when nothing else runs, grown to its limits."""
        return max(
            sum(node.count * node.holds(request) for node in nodes)
            for nodes in (self.nodes, self.limits)
        )

    def total(self, name: str) -> float:
        """How much of a resource there is, or may be."""
        return max(
            sum(node.count * node.offers.get(name, 0.0) for node in nodes)
            for nodes in (self.nodes, self.limits)
        )

    def largest(self, name: str) -> float:
        """The most that one node offers."""
        kinds = (*self.nodes, *self.limits)
        return max((node.offers.get(name, 0.0) for node in kinds), default=0.0)

    @property
    def working(self) -> int:
        """Nodes that take work, those with a CPU: there are, or may be where a limit is set."""
        return max(
            sum(node.count for node in nodes if node.offers.get("CPU") and node.count < _UNLIMITED)
            for nodes in (self.nodes, self.limits)
        )

    @property
    def avoid_gpu_nodes(self) -> dict[str, Any]:
        """Of tasks that need no GPU: options that leave nodes with GPUs to those who do.

        Empty where there are no others.
        """
        working = sum(bool(node.offers.get("CPU")) for node in self.nodes)
        if not 0 < len(self.gpu_ids) < working:
            return {}
        others = {"ray.io/node-id": f"!in({','.join(self.gpu_ids)})"}
        # Rather on a GPU's node than not at all.
        return {"label_selector": others, "fallback_strategy": [{"label_selector": {}}]}

    def __str__(self) -> str:
        plural = "" if self.working == 1 else "s"
        return (
            f"{self.working} working node{plural}, {self.total('CPU'):g} CPUs, "
            f"{self.total('GPU'):g} GPUs, at most {self.largest('memory') / _GIB:.1f} GiB a node"
        )


@dataclass(frozen=True)
class Worker:
    """What each worker or actor takes, as its flags say.

    Attributes:
        gpus: None: 1 where there is one for everybody, else 0.
        memory: GiB; None: not asked for.
        resources: of the user's own names, as the cluster's nodes declare them.
    """

    gpus: float | None = None
    memory: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    def request(self) -> dict[str, float]:
        """By Ray's names; without CPUs, which a job asks for as the cluster has them."""
        asked = {"GPU": self.gpus or 0.0, "memory": (self.memory or 0.0) * _GIB, **self.resources}
        return {name: amount for name, amount in asked.items() if amount}

    def options(self, cpus: float) -> dict[str, Any]:
        """As Ray's tasks and actors take it."""
        found: dict[str, Any] = {"num_cpus": cpus, "num_gpus": self.gpus or 0.0}
        if self.memory:
            found["memory"] = int(self.memory * _GIB)
        if self.resources:
            found["resources"] = dict(self.resources)
        return found


@dataclass(frozen=True)
class ActorPool:
    """How many actors hold the network, and what they and the tasks beside them take."""

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
    """The cluster that this process is connected to.

    Raises:
        InputError: none of its nodes takes work.
    """
    found = present()
    if not found.total("CPU"):
        raise InputError(
            "the cluster has no node with CPUs for work, only its head; add one "
            "(ray start --address=HEAD:PORT)"
        )
    return found


def remotely(function: Callable[..., Any], *arguments: Any, keep: bool = False) -> Any:
    """What a function returns, called once in a task: the driver stays small.

    Args:
        function: to call.
        arguments: of it. References stay references; the function gets each in a list of one.
        keep: return a reference instead. The function must only read: it is called again where its
            result was on a node that is gone.
    """
    import ray

    wrapped = [[one] if isinstance(one, ray.ObjectRef) else one for one in arguments]
    options = {"max_retries": _RETRIES if keep else 0, **current_cluster().zero_cpu_options}
    reference = ray.remote(function).options(**options).remote(*wrapped)
    return reference if keep else ray.get(reference)


def present() -> Cluster:
    """The cluster that this process is connected to, whether it can take work or not."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return Cluster(
        tuple(Node(node["Resources"]) for node in nodes),
        tuple(Node(offers, count if count >= 0 else _UNLIMITED) for offers, count in node_groups()),
        tuple(node["NodeID"] for node in nodes if not node["Resources"].get("CPU")),
        tuple(node["NodeID"] for node in nodes if node["Resources"].get("GPU")),
    )


def fit_workers(workers: int, worker: Worker, cluster: Cluster) -> Worker:
    """`worker` with its GPU share settled, once it is known that all of them fit.

    Raises:
        InputError: the cluster can never hold them; the message names flag, value and what there
            is.
    """
    if worker.gpus is None:
        worker = Worker(float(cluster.total("GPU") >= workers), worker.memory, worker.resources)
    _check_one(worker, cluster)
    room = cluster.holds(worker.request())
    if room < workers:
        told = " and ".join(f"{value} each" for value in _flags(worker))
        raise InputError(
            f"--workers {workers} with {told}: the cluster has room for {room} ({cluster})"
        )
    return worker


def fit_actors(workers: int | None, worker: Worker, cluster: Cluster) -> ActorPool:
    """Fit the actors that hold a network to the cluster, and the tasks that load images for them.

    With GPUs: as many actors as GPU shares. Without: one a node, for TensorFlow's own threads use
    all its cores. Actors and loaders ask for little of the CPU count so that the resume filter,
    which asks for a whole one, always finds its place beside them, also on two cores.

    Raises:
        InputError: the cluster can never hold them.
    """
    if worker.gpus is None:
        worker = Worker(float(cluster.total("GPU") >= 1), worker.memory, worker.resources)
    if workers is None:
        room = cluster.holds(worker.request())
        workers = room if worker.gpus else max(1, min(cluster.working, room))
    worker = fit_workers(workers, worker, cluster)
    # Loaders never ask for as much as actors, or Ray Data fuses the two and the network waits for
    # every image.
    roomy = cluster.total("CPU") >= 2 * workers + 2
    loader = {"num_cpus": 1.0 if roomy else 0.7, **(cluster.avoid_gpu_nodes if worker.gpus else {})}
    return ActorPool(
        size=workers,
        gpus=worker.gpus or 0.0,
        actor=worker.options(0.9) if roomy else {**worker.options(0.0), **cluster.zero_cpu_options},
        reader=cluster.reader,
        loader=loader,
        # Nothing to wait for: what is extracted but not committed is lost in a kill.
        writer=cluster.zero_cpu_options,
        # Writers ask for no CPU; without a limit Ray would start a process for each waiting block.
        writers=(8 if worker.gpus else 2) * workers,
    )


def _check_one(worker: Worker, cluster: Cluster) -> None:
    """Each part of the request by itself, so that the message can name the flag."""
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
        told = ", ".join(_flags(worker))
        raise InputError(f"{told}: no node has all of it at once ({cluster})")


def _flags(worker: Worker) -> list[str]:
    found = []
    if worker.gpus:
        found.append(f"--gpus-per-worker {worker.gpus:g}")
    if worker.memory:
        found.append(f"--memory-per-worker {worker.memory:g}")
    found += [f"--worker-resources {name}={amount:g}" for name, amount in worker.resources.items()]
    return found
