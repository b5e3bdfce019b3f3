"""How fast a cluster works through images: what one image costs, times the slots there are.

Stages that work side by side are together as fast as the slowest of them, and the network between
them is one more stage. Left out are the start of a run and its last blocks, Ray's own work, and
cores that stages share: a forecast is what a run comes near to, not what it must reach.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

#: What there can be more of, by the names of `Nodes`.
SLOTS = ("loaders", "actors", "writers", "bandwidth")


@dataclass(frozen=True)
class StageCosts:
    """What one image costs, with its augmented views.

    Attributes:
        read, decode: seconds of one loader.
        extract: seconds of one actor.
        write: seconds of one writer.
        read_bytes: from storage to the loader.
        block_bytes: from the loader to the actor, as pixels.
        write_bytes: from the actor to storage.
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
    """Nodes of one kind; all but `count` is of one node.

    Attributes:
        loaders, actors, writers: how many work at once.
        bandwidth: bytes a second that come in, and as many that go out at the same time.
        price: of an hour, in any currency.
    """

    count: int
    loaders: float
    actors: float
    writers: float
    bandwidth: float = math.inf
    price: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """What is to be expected.

    Attributes:
        bottleneck: the stage that the others wait for: load, extract, write or network.
        stages: images a second of each stage by itself.
    """

    images_per_second: float
    seconds: float
    cost: float
    bottleneck: str
    stages: Mapping[str, float] = field(default_factory=dict)


def forecast(costs: StageCosts, nodes: Sequence[Nodes], images: int) -> Forecast:
    """How long `images` take on nodes of one or several kinds, and what limits it.

    A stage without a slot never ends: `seconds` is infinite then.
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
    """How many times as fast it would be with twice the loaders, actors, writers or bandwidth."""
    now = forecast(costs, nodes, 1).images_per_second
    found = {}
    for name in SLOTS:
        more = [replace(kind, **{name: 2 * getattr(kind, name)}) for kind in nodes]
        then = forecast(costs, more, 1).images_per_second
        found[name] = then / now if 0 < now < math.inf else 1.0
    return found


def _network(costs: StageCosts, nodes: Sequence[Nodes]) -> float:
    """Images a second that the busiest kind of node can take in and send out.

    Loaders get image files and send pixels, actors get pixels and send rows. With several nodes all
    pixels count as sent, though some actor finds them on its own node.
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
