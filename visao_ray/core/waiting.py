"""A line on the terminal while a job waits for nodes, and for what."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from visao_ray.core.resources import Cluster, present

_LISTED = 1000  # of each kind, at most
_TIMEOUT_S = 10
_GIB = 1024**3


@dataclass(frozen=True)
class Request:
    """What an actor, a task or a placement group asks for, where several ask for the same.

    Attributes:
        kind: 'actor', 'task' or 'group' (of workers that start together, or one trial).
        name: class or function; empty for groups.
        resources: pairs of Ray's names of resources and amounts, of one bundle in groups.
        labels: pairs of names and values, which the node must have.
        bundles: how many of `resources` must be placed at once: 1 except in groups.
    """

    kind: str
    name: str
    resources: tuple[tuple[str, float], ...]
    labels: tuple[tuple[str, str], ...] = ()
    bundles: int = 1

    def __str__(self) -> str:
        asked = [
            f"{amount / _GIB:.1f} GiB memory" if name == "memory" else f"{amount:g} {name}"
            for name, amount in sorted(self.resources, key=lambda pair: pair[0] != "GPU")
        ]
        asked += [f"label {name}={value}" for name, value in self.labels]
        node = f"room for {self.bundles} times" if self.bundles > 1 else "a node with"
        return f"{node} {', '.join(asked) or 'room for a process'}"


@dataclass(frozen=True)
class Demand:
    """The requests of one job.

    Attributes:
        waiting: requests without a place by id (of the actor, task or group).
        placed: how many of each request have one.
    """

    waiting: Mapping[str, Request]
    placed: Mapping[Request, int]


class Waiting:
    """While the block runs, a line every `interval` seconds if requests of the job find no node.

    A request counts when it has had no place for `interval` seconds. Trials and tasks that queue
    behind others of the same job are no reason for a line, unless new nodes could take them.

    It asks the cluster's state API, so it is silent where there is no dashboard, as in a Ray that
    a job starts for itself. It never raises.

    Args:
        say: called with each line, in a thread.
        interval: seconds between lines.
        poll: seconds between looks at the cluster (about 20 ms of CPU time each).
    """

    def __init__(
        self, say: Callable[[str], None], interval: float = 30.0, poll: float = 5.0
    ) -> None:
        self._say, self._interval, self._poll = say, interval, poll
        self._since: dict[str, float] = {}  # by id of a request, on the monotonic clock
        self._said = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="waiting")

    def __enter__(self) -> Waiting:
        """Start to look at the cluster."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop; a look that hangs is left behind."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _watch(self) -> None:
        import ray

        while not self._stop.wait(self._poll):
            # The cluster may be busy, or its head gone: that is for the job itself to find out.
            with contextlib.suppress(Exception):
                if ray.is_initialized():
                    line = self._look(time.monotonic())
                    if line is not None and not self._stop.is_set():
                        self._say(line)

    def _look(self, now: float) -> str | None:
        demand = demand_of_this_job()
        self._since = {one: self._since.get(one, now) for one in demand.waiting}
        if not self._since or now - self._said < self._interval:
            return None
        late = [one for one, since in self._since.items() if now - since >= self._interval]
        line = report(demand, late, present()) if late else None
        if line is not None:
            self._said = now
        return line


def demand_of_this_job() -> Demand:
    """What this driver asks of its cluster, by Ray's state API.

    Raises:
        RayStateApiException: there is no dashboard, or it does not answer.
    """
    import ray
    from ray.util.state import list_actors, list_placement_groups, list_tasks

    job = ray.get_runtime_context().get_job_id()
    how: dict[str, Any] = {
        "detail": True,
        "limit": _LISTED,
        "timeout": _TIMEOUT_S,
        "raise_on_missing_output": False,
    }
    waiting: dict[str, Request] = {}
    placed: Counter[Request] = Counter()
    for actor in list_actors(filters=[("job_id", "=", job), ("state", "!=", "DEAD")], **how):
        request = _request("actor", actor.class_name, actor.required_resources, actor)
        if actor.pid:  # also one whose constructor still runs
            placed[request] += 1
        elif actor.state in ("PENDING_CREATION", "RESTARTING"):
            waiting[actor.actor_id] = request
    of_job = [("creator_job_id", "=", job), ("state", "!=", "REMOVED")]
    for group in list_placement_groups(filters=of_job, **how):
        request = _group(group)
        if group.state == "CREATED":
            placed[request] += 1
        else:
            waiting[group.placement_group_id] = request
    unplaced = [("job_id", "=", job), ("state", "=", "PENDING_NODE_ASSIGNMENT")]
    for task in list_tasks(filters=unplaced, **how):
        if task.type == "NORMAL_TASK":
            waiting[task.task_id] = _request("task", task.name, task.required_resources, task)
    return Demand(waiting, placed)


def report(demand: Demand, late: list[str], cluster: Cluster) -> str | None:
    """The line for requests that wait too long, or None where they only queue.

    Args:
        demand: of the job.
        late: ids of requests in `demand.waiting` that have waited for a while.
        cluster: the nodes there are and those that may come.
    """
    waits: dict[Request, int] = defaultdict(int)
    for one in late:
        waits[demand.waiting[one]] += 1
    lines = [
        f"waiting for {request}: {_progress(request, count, placed)}; {reason}"
        for request, count in waits.items()
        for placed in [demand.placed.get(request, 0)]
        for reason in [_reason(request, placed, cluster)]
        if reason is not None
    ]
    if not lines:
        return None
    further = f"; {len(lines) - 1} other kinds of requests wait" if len(lines) > 1 else ""
    return f"{lines[0]}; nodes now: {Cluster(cluster.nodes)}{further}"


def _progress(request: Request, waiting: int, placed: int) -> str:
    if request.kind == "actor":
        return f"{placed} of {placed + waiting} actors {request.name} are running"
    if request.kind == "task":
        return f"{waiting} tasks {request.name} have no place"
    return f"groups of processes without a place: {waiting}, with one: {placed}"


def _reason(request: Request, placed: int, cluster: Cluster) -> str | None:
    """Why there is no place; None where earlier requests of this job are the reason."""
    resources = dict(request.resources)
    there = Cluster(cluster.nodes).holds(resources)
    possible = cluster.holds(resources)
    if possible > there:
        return f"the autoscaler may start nodes for {possible - there} more"
    if there < request.bundles:
        return "no node there is can hold it, and none is known to come"
    if request.kind == "task" or (request.kind == "group" and placed):
        return None
    return "nodes that could hold it are in use"


def _request(kind: str, name: str, resources: Mapping[str, float] | None, entry: Any) -> Request:
    return Request(kind, name, _pairs(resources), _labels(entry.label_selector))


def _group(group: Any) -> Request:
    """Of a placement group: its most frequent bundle, with how often it has it."""
    bundles = Counter(
        (_pairs(bundle["unit_resources"]), _labels(bundle.get("label_selector")))
        for bundle in group.bundles
    )
    ((resources, labels), count) = bundles.most_common(1)[0]
    return Request("group", "", resources, labels, count)


def _pairs(resources: Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((resources or {}).items()))


def _labels(selector: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Without those that name nodes by their ids, which mean nothing to people."""
    pairs = sorted((selector or {}).items())
    return tuple((name, value) for name, value in pairs if name != "ray.io/node-id")
