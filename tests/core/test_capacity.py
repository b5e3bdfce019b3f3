"""Forecast of images per second: the slowest stage, and the speed-up from more of each slot."""

import math
from dataclasses import replace

import pytest

from visao_ray.core.capacity import Nodes, StageCosts, forecast, gains

COSTS = StageCosts(
    read=0.002,
    decode=0.008,
    extract=0.05,
    write=0.001,
    read_bytes=2e6,
    block_bytes=150_528,
    write_bytes=8_192,
)
NODE = Nodes(count=1, loaders=3, actors=1, writers=2, bandwidth=1e9, price=2.0)


def test_the_slowest_stage_decides():
    found = forecast(COSTS, [NODE], 72_000)
    assert found.bottleneck == "extract"
    assert found.images_per_second == pytest.approx(20)
    assert found.stages["load"] == pytest.approx(300)
    assert found.stages["write"] == pytest.approx(2000)
    assert found.seconds == pytest.approx(3600)
    assert found.cost == pytest.approx(2.0)


def test_more_nodes_cost_the_same_until_another_stage_is_slowest():
    ten = forecast(COSTS, [replace(NODE, count=10)], 72_000)
    assert ten.seconds == pytest.approx(360)
    assert ten.cost == pytest.approx(2.0)
    quick = replace(COSTS, extract=0.001)
    assert forecast(quick, [replace(NODE, count=10)], 1).bottleneck == "load"
    slow_network = replace(NODE, count=10, bandwidth=1e7)
    found = forecast(COSTS, [slow_network], 1)
    assert found.bottleneck == "network"
    # Each of ten nodes receives a tenth of the files and a tenth of the pixels.
    assert found.images_per_second == pytest.approx(10 * 1e7 / (2e6 + 150_528))


def test_a_single_node_sends_no_pixels_over_the_network():
    alone = forecast(COSTS, [replace(NODE, bandwidth=1e6)], 1)
    assert alone.stages["network"] == pytest.approx(1e6 / 2e6)


def test_nodes_of_two_kinds():
    cpus = Nodes(count=4, loaders=10, actors=0, writers=0, bandwidth=1e9, price=0.5)
    gpus = Nodes(count=2, loaders=0, actors=4, writers=64, bandwidth=1e8, price=3.0)
    costs = replace(COSTS, extract=0.0005)
    found = forecast(costs, [cpus, gpus], 3600)
    # GPU nodes receive all pixels; the other nodes receive the files.
    assert found.stages["network"] == pytest.approx(2 * 1e8 / 150_528)
    assert found.stages["load"] == pytest.approx(4000)
    assert found.bottleneck == "network"
    assert found.cost == pytest.approx((4 * 0.5 + 2 * 3.0) * found.seconds / 3600)


def test_a_stage_without_a_slot_never_ends():
    found = forecast(COSTS, [replace(NODE, actors=0)], 10)
    assert (found.images_per_second, found.seconds) == (0, math.inf)
    assert found.bottleneck == "extract"


def test_gains():
    assert gains(COSTS, [NODE]) == pytest.approx(
        {"loaders": 1.0, "actors": 2.0, "writers": 1.0, "bandwidth": 1.0}
    )
    faster = replace(COSTS, extract=0.005)  # 200 images per second; loaders reach 300
    assert gains(faster, [NODE])["actors"] == pytest.approx(1.5)
