"""Print a line while a job waits for nodes: what it requested, and why there is no node for it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from visao_ray.core.periodic import PeriodicThread
from visao_ray.core.resources import Cluster, read_cluster

_MAX_LISTED = 1000  # actors, groups and tasks of one query to the state API
_TIMEOUT_S = 10
_STOP_S = 2.0  # how long the end of the block waits for a query in progress
_GIB = 1024**3


@dataclass(frozen=True)
class Request:
    """Resources that an actor, a task or a placement group requests.

    Equal requests of the same kind and name are one `Request`.

    Attributes:
        kind: 'actor', 'task' or 'group' (workers that start together, or one trial).
        name: class or function; empty for groups.
        resources: pairs of Ray's resource name and amount; of one bundle for a group.
        labels: pairs of name and value that the node must have.
        bundles: number of bundles that must be placed at once; 1 except for groups.
    """

    kind: str
    name: str
    resources: tuple[tuple[str, float], ...]
    labels: tuple[tuple[str, str], ...] = ()
    bundles: int = 1

    def __str__(self) -> str:
        requested = [
            f"{amount / _GIB:.1f} GiB memory" if name == "memory" else f"{amount:g} {name}"
            for name, amount in sorted(self.resources, key=lambda pair: pair[0] != "GPU")
        ]
        requested += [f"label {name}={value}" for name, value in self.labels]
        node = f"room for {self.bundles} times" if self.bundles > 1 else "a node with"
        return f"{node} {', '.join(requested) or 'room for a process'}"


@dataclass(frozen=True)
class Demand:
    """The requests of one job.

    Attributes:
        waiting: requests that are not placed on a node, by id of the actor, task or group.
        placed: number of placed actors and groups of each request.
    """

    waiting: Mapping[str, Request]
    placed: Mapping[Request, int]


class Waiting:
    """Context that prints a line every `interval` seconds while requests of the job find no node.

    A request counts after `interval` seconds without a node. Trials and tasks that queue behind
    others of the same job cause no line, unless new nodes could run them.

    It queries the cluster's state API. Without a dashboard, as in a Ray that a job starts for
    itself, it prints nothing. It never raises.

    Args:
        say: function that is called with each line, in a thread.
        interval: seconds between lines.
        poll: seconds between queries; each takes about 20 ms of CPU time.
    """

    def __init__(
        self, say: Callable[[str], None], interval: float = 30.0, poll: float = 5.0
    ) -> None:
        self._say, self._interval = say, interval
        self._since: dict[str, float] = {}  # by id of a request, on the monotonic clock
        self._last_line = float("-inf")
        self._watcher = PeriodicThread(self._watch, poll, "waiting")

    def __enter__(self) -> Waiting:
        """Start to query the cluster."""
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop; a query that hangs does not delay the job."""
        self._watcher.stop(_STOP_S)

    def _watch(self) -> None:
        import ray

        # The cluster may be busy, or its head may be gone; the job itself reports that.
        with contextlib.suppress(Exception):
            if ray.is_initialized():
                line = self._check(time.monotonic())
                if line is not None and not self._watcher.stopped:
                    self._say(line)

    def _check(self, now: float) -> str | None:
        demand = demand_of_this_job()
        self._since = {one: self._since.get(one, now) for one in demand.waiting}
        if not self._since or now - self._last_line < self._interval:
            return None
        late = [one for one, since in self._since.items() if now - since >= self._interval]
        line = report(demand, late, read_cluster()) if late else None
        if line is not None:
            self._last_line = now
        return line


def demand_of_this_job() -> Demand:
    """Return what this driver requests from its cluster, from Ray's state API.

    Raises a `RayStateApiException` if there is no dashboard or it does not answer.
    """
    import ray
    from ray.util.state import list_actors, list_placement_groups, list_tasks

    job = ray.get_runtime_context().get_job_id()
    options: dict[str, Any] = {
        "detail": True,
        "limit": _MAX_LISTED,
        "timeout": _TIMEOUT_S,
        "raise_on_missing_output": False,
    }
    waiting: dict[str, Request] = {}
    placed: Counter[Request] = Counter()
    for actor in list_actors(filters=[("job_id", "=", job), ("state", "!=", "DEAD")], **options):
        request = _request("actor", actor.class_name, actor.required_resources, actor)
        if actor.pid:  # set even while the constructor runs
            placed[request] += 1
        elif actor.state in ("PENDING_CREATION", "RESTARTING"):
            waiting[actor.actor_id] = request
    of_job = [("creator_job_id", "=", job), ("state", "!=", "REMOVED")]
    for group in list_placement_groups(filters=of_job, **options):
        request = _group(group)
        if group.state == "CREATED":
            placed[request] += 1
        else:
            waiting[group.placement_group_id] = request
    unplaced = [("job_id", "=", job), ("state", "=", "PENDING_NODE_ASSIGNMENT")]
    for task in list_tasks(filters=unplaced, **options):
        if task.type == "NORMAL_TASK":
            waiting[task.task_id] = _request("task", task.name, task.required_resources, task)
    return Demand(waiting, placed)


def report(demand: Demand, late: list[str], cluster: Cluster) -> str | None:
    """Describe requests that wait too long in one line.

    Args:
        demand: requests of the job.
        late: ids of requests in `demand.waiting` that have waited too long.
        cluster: the current nodes and those that the autoscaler may start.

    Returns:
        The line; None if the requests only queue behind others of the same job.
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
        return f"{waiting} tasks {request.name} are not placed"
    return f"{placed} of {placed + waiting} groups of processes are placed"


def _reason(request: Request, placed: int, cluster: Cluster) -> str | None:
    """Return why the request is not placed; None if it waits for earlier requests of this job."""
    resources = dict(request.resources)
    now = Cluster(cluster.nodes).holds(resources)
    possible = cluster.holds(resources)
    if possible > now:
        return f"the autoscaler may start nodes for {possible - now} more"
    if now < request.bundles:
        return "no node is large enough, and no autoscaler is known to start one"
    if request.kind == "task" or (request.kind == "group" and placed):
        return None
    return "the nodes that are large enough are in use"


def _request(kind: str, name: str, resources: Mapping[str, float] | None, entry: Any) -> Request:
    return Request(kind, name, _pairs(resources), _labels(entry.label_selector))


def _group(group: Any) -> Request:
    """Return the request of a placement group: its most frequent bundle and the bundle's count."""
    bundles = Counter(
        (_pairs(bundle["unit_resources"]), _labels(bundle.get("label_selector")))
        for bundle in group.bundles
    )
    ((resources, labels), count) = bundles.most_common(1)[0]
    return Request("group", "", resources, labels, count)


def _pairs(resources: Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((resources or {}).items()))


def _labels(selector: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Return the label pairs without node ids, which mean nothing to users."""
    pairs = sorted((selector or {}).items())
    return tuple((name, value) for name, value in pairs if name != "ray.io/node-id")
