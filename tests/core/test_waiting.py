"""Lines of a job that waits for nodes: on a cluster that gets a node later, and computed."""

import subprocess
import sys
import time

import pytest
from job_runs import ROOT
from ray_nodes import ray_nodes

from visao_ray.core.resources import Cluster, Node
from visao_ray.core.waiting import Demand, Request, Waiting, report

GIB = 1024**3
HEAD = Node({"memory": 4 * GIB})
CPU = Node({"CPU": 8.0, "memory": 32 * GIB})
GPU = Node({"CPU": 8.0, "GPU": 2.0, "memory": 60 * GIB})
ACTOR = Request("actor", "Extractor", (("CPU", 0.9), ("GPU", 1.0)))
WORKERS = Request("group", "", (("CPU", 1.0), ("GPU", 1.0)), bundles=4)
TRIAL = Request("group", "", (("CPU", 1.0),))
LOADER = Request("task", "load", (("CPU", 1.0),))

DRIVER = """
import logging, sys, time
import ray
from visao_ray.core.waiting import Waiting

ray.init(log_to_driver=False, logging_level=logging.ERROR)

@ray.remote(num_cpus=1)
class Extractor:
    def ping(self):
        return 1

def say(line):
    print(line, flush=True)

with Waiting(say, interval=2.0, poll=0.4):
    time.sleep(3)
    say("requested")
    actors = [Extractor.remote() for _ in range(3)]
    ray.get([actor.ping.remote() for actor in actors])
    say("placed")
    time.sleep(4)
say("end")
"""


@pytest.mark.faults
def test_a_line_until_a_node_comes():
    with ray_nodes(workers=[["--num-cpus=1"]]) as nodes:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            cwd=ROOT,
            env=nodes.environment | {"RAY_ADDRESS": f"127.0.0.1:{nodes.port}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            before = [driver.stdout.readline().strip() for _ in range(3)]
            nodes.start("late", "--num-cpus=2")
            after = driver.communicate(timeout=90)[0].splitlines()
        finally:
            driver.kill()
    assert before[0] == "requested"
    for line in before[1:]:
        assert line.startswith(
            "waiting for a node with 1 CPU: 1 of 3 actors Extractor are running; the nodes that "
            "are large enough are in use; nodes now: 1 working node, 1 CPUs, 0 GPUs"
        )
    assert after[-2:] == ["placed", "end"]
    assert all("of 3 actors Extractor" in line for line in after[:-2])


def line(waiting: dict[Request, int], placed: dict[Request, int], *cluster) -> str | None:
    requests = [request for request, count in waiting.items() for _ in range(count)]
    demand = Demand({str(number): one for number, one in enumerate(requests)}, placed)
    return report(demand, list(demand.waiting), Cluster(*cluster))


def test_actors_wait_for_an_autoscaler():
    found = line({ACTOR: 2}, {ACTOR: 2}, (HEAD, GPU), (HEAD, Node(GPU.offers, 3)))
    assert found == (
        "waiting for a node with 1 GPU, 0.9 CPU: 2 of 4 actors Extractor are running; the "
        "autoscaler may start nodes for 4 more; nodes now: 1 working node, 8 CPUs, 2 GPUs, at most "
        "60.0 GiB a node"
    )


def test_workers_that_start_together_need_room_for_all():
    found = line({WORKERS: 1}, {}, (HEAD, GPU))
    assert found.startswith(
        "waiting for room for 4 times 1 GPU, 1 CPU: 0 of 1 groups of processes are placed; no node "
        "is large enough, and no autoscaler is known to start one"
    )


def test_no_line_for_requests_that_queue_behind_the_jobs_own_work():
    assert line({TRIAL: 16, LOADER: 3}, {TRIAL: 8}, (HEAD, CPU)) is None
    assert "are in use" in line({TRIAL: 16}, {}, (HEAD, CPU))
    assert "start nodes for 8 more" in line({TRIAL: 16}, {TRIAL: 8}, (CPU,), (Node(CPU.offers, 2),))


def test_memory_labels_and_more_than_one_kind():
    request = Request("task", "read", (("memory", 40.0 * GIB),), (("accelerator-type", "L4"),))
    found = line({request: 2, ACTOR: 1}, {}, (HEAD, CPU))
    assert found.startswith(
        "waiting for a node with 40.0 GiB memory, label accelerator-type=L4: 2 tasks read are not "
        "placed; no node is large enough"
    )
    assert found.endswith("; 1 other kinds of requests wait")


def test_nothing_without_a_dashboard(ray_cluster):
    import ray

    group = ray.util.placement_group([{"never": 1}])
    lines: list[str] = []
    with Waiting(lines.append, interval=0.1, poll=0.05):
        time.sleep(1)
    ray.util.remove_placement_group(group)
    assert lines == []
