"""Requests are compared with a cluster's nodes before Ray would wait forever."""

import pytest

from visao_ray.core.errors import InputError
from visao_ray.core.resources import Cluster, Node, Worker, fit_actors, fit_workers

GIB = 1024**3
HEAD = Node({"memory": 4 * GIB})
CPU = Node({"CPU": 16.0, "memory": 32 * GIB})
GPU = Node({"CPU": 8.0, "GPU": 2.0, "memory": 60 * GIB, "l4": 2.0})


def test_one_machine_without_gpus():
    pool = fit_actors(None, Worker(), Cluster((Node({"CPU": 2.0, "memory": 8 * GIB}),)))
    assert (pool.size, pool.gpus) == (1, 0.0)
    assert pool.actor == {"num_cpus": 0.0, "num_gpus": 0.0} | {"num_cpus": 0}
    assert pool.loader == {"num_cpus": 0.7}
    assert str(pool) == "1 CPU actor"


def test_one_actor_per_node_without_gpus():
    assert fit_actors(None, Worker(), Cluster((HEAD, CPU, CPU, CPU))).size == 3


def test_actors_on_gpus_and_loaders_beside_them():
    pool = fit_actors(None, Worker(), Cluster((HEAD, CPU, GPU, GPU), gpu_ids=("a", "b")))
    assert (pool.size, pool.gpus) == (4, 1.0)
    assert pool.actor["num_gpus"] == 1.0
    assert pool.loader["label_selector"] == {"ray.io/node-id": "!in(a,b)"}
    only_gpus = fit_actors(None, Worker(), Cluster((HEAD, GPU, GPU), gpu_ids=("a", "b")))
    assert "label_selector" not in only_gpus.loader
    assert fit_actors(None, Worker(gpus=0.5), Cluster((HEAD, CPU, GPU))).size == 4
    assert fit_actors(None, Worker(gpus=0), Cluster((HEAD, CPU, GPU))).size == 2


def test_memory_and_own_resources_choose_the_nodes():
    cluster = Cluster((HEAD, CPU, GPU))
    assert fit_actors(None, Worker(gpus=1, memory=40.0), cluster).size == 1
    pool = fit_actors(None, Worker(resources={"l4": 1.0}), cluster)
    assert pool.size == 2
    assert pool.actor["resources"] == {"l4": 1.0}


def test_nodes_that_an_autoscaler_may_start_count():
    cluster = Cluster((HEAD,), limits=(HEAD, Node(CPU.offers, 8), Node(GPU.offers, 4)))
    assert fit_actors(None, Worker(), cluster).size == 8
    assert fit_actors(None, Worker(gpus=0), cluster).size == 12
    assert fit_workers(8, Worker(gpus=1), cluster).gpus == 1
    with pytest.raises(InputError, match="room for 8"):
        fit_workers(9, Worker(gpus=1), cluster)


@pytest.mark.parametrize(
    ("worker", "says"),
    [
        (Worker(gpus=1), "--gpus-per-worker 1: no node has so many GPUs .1 working node, 16 CPUs"),
        (Worker(memory=900.0), "--memory-per-worker 900: no node has so many GiB .*32.0 GiB"),
        (Worker(resources={"l4": 1.0}), "--worker-resources l4=1: no node offers it"),
    ],
)
def test_what_no_node_has(worker, says):
    cluster = Cluster((HEAD, CPU))
    for fit in (fit_actors, fit_workers):
        with pytest.raises(InputError, match=says):
            fit(1, worker, cluster)


def test_no_node_has_all_of_it_at_once():
    with pytest.raises(InputError, match="at once"):
        fit_workers(1, Worker(gpus=2, resources={"big": 1.0}), Cluster((GPU, Node({"big": 1.0}))))


def test_more_workers_than_there_is_room_for():
    with pytest.raises(
        InputError, match=r"--workers 3 with --gpus-per-worker 1 each: .* room for 2"
    ):
        fit_workers(3, Worker(gpus=1), Cluster((GPU,)))


def test_gpus_are_used_if_there_is_one_for_each_worker():
    assert fit_workers(2, Worker(), Cluster((GPU,))).gpus == 1
    assert fit_workers(3, Worker(), Cluster((GPU,))).gpus == 0


def test_tasks_without_cpu_avoid_nodes_that_take_no_work():
    assert Cluster((CPU,)).zero_cpu_options == {"num_cpus": 0}
    options = Cluster((HEAD, CPU), idle=("abc",)).zero_cpu_options
    assert options == {"num_cpus": 0, "label_selector": {"ray.io/node-id": "!in(abc)"}}
