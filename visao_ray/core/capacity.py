"""Forecast how fast a cluster processes images, from the costs of one image and the slots.

Stages run in parallel, so the slowest one sets the speed. The network between them counts as one
more stage. The forecast leaves out the start of a run, its last blocks, Ray's own work, and cores
that stages share. It is therefore an estimate that a run approaches from below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

#: Resources that can be increased, as attributes of `Nodes`.
SLOTS = ("loaders", "actors", "writers", "bandwidth")


@dataclass(frozen=True)
class StageCosts:
    """Costs of one image, including its augmented views.

    Attributes:
        read: seconds of one loader to read the file.
        decode: seconds of one loader to decode and augment it.
        extract: seconds of one actor.
        write: seconds of one writer.
        read_bytes: bytes from storage to the loader.
        block_bytes: bytes of pixels from the loader to the actor.
        write_bytes: bytes from the actor to storage.
    """

    read: float
    decode: float
    extract: float
    write: float
    read_bytes: float = 0.0
    block_bytes: float = 0.0
    write_bytes: float = 0.0


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind; all attributes except `count` are per node.

    Attributes:
        count: number of nodes.
        loaders: loaders that run at once.
        actors: actors that run at once.
        writers: writers that run at once.
        bandwidth: bytes per second in each direction; both directions work at the same time.
        price: price per hour, in any currency.
    """

    count: int
    loaders: float
    actors: float
    writers: float
    bandwidth: float = math.inf
    price: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """Expected speed, duration and cost of a run.

    Attributes:
        images_per_second: speed of the slowest stage.
        seconds: duration of the run.
        cost: price of the nodes for this time, in the currency of `Nodes.price`.
        bottleneck: the slowest stage: load, extract, write or network.
        stages: images per second of each stage by itself.
    """

    images_per_second: float
    seconds: float
    cost: float
    bottleneck: str
    stages: Mapping[str, float] = field(default_factory=dict)


def forecast(costs: StageCosts, nodes: Sequence[Nodes], images: int) -> Forecast:
    """Forecast how long `images` take on nodes of one or more kinds, and what limits the speed.

    `seconds` is infinite if a stage has no slot.
    """

    def total(name: str) -> float:
        return sum(kind.count * float(getattr(kind, name)) for kind in nodes)

    stages = {
        "load": _rate(total("loaders"), costs.read + costs.decode),
        "extract": _rate(total("actors"), costs.extract),
        "write": _rate(total("writers"), costs.write),
        "network": _network(costs, nodes),
    }
    bottleneck = min(stages, key=lambda name: stages[name])
    speed = stages[bottleneck]
    seconds = images / speed if speed else math.inf
    cost = total("price") * seconds / 3600 if total("price") else 0.0
    return Forecast(speed, seconds, cost, bottleneck, stages)


def gains(costs: StageCosts, nodes: Sequence[Nodes]) -> dict[str, float]:
    """Return the speed-up from twice the loaders, actors, writers or bandwidth."""
    now = forecast(costs, nodes, 1).images_per_second
    speedups = {}
    for name in SLOTS:
        doubled = [replace(kind, **{name: 2 * getattr(kind, name)}) for kind in nodes]
        then = forecast(costs, doubled, 1).images_per_second
        speedups[name] = then / now if 0 < now < math.inf else 1.0
    return speedups


def _network(costs: StageCosts, nodes: Sequence[Nodes]) -> float:
    """Return the images per second that the busiest kind of node can receive and send.

    Loaders receive image files and send pixels; actors receive pixels and send rows. With more than
    one node, all pixels count as sent, although some reach an actor on the same node.
    """
    alone = sum(kind.count for kind in nodes) == 1
    hop = 0.0 if alone else costs.block_bytes
    loaders = sum(kind.count * kind.loaders for kind in nodes)
    actors = sum(kind.count * kind.actors for kind in nodes)
    rates = [math.inf]
    for kind in nodes:
        loading = kind.count * kind.loaders / loaders if loaders else 0.0
        acting = kind.count * kind.actors / actors if actors else 0.0
        into = loading * costs.read_bytes + acting * hop
        out = loading * hop + acting * costs.write_bytes
        rates.append(_rate(kind.count * kind.bandwidth, max(into, out)))
    return min(rates)


def _rate(slots: float, cost: float) -> float:
    return slots / cost if cost else math.inf
