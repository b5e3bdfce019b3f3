"""Nodes with and without GPUs share the work; small nodes are enough."""

from collections import Counter

from cluster_runs import (
    EXTRACT,
    NETWORK,
    committed,
    finish,
    result,
    same_features,
    source,
    stop,
    wait_for,
)
from ray_nodes import ray_nodes

from visao_ray.core.storage import locate

_MIB = 1024**2


def nodes_with(nodes, word):
    """Return the ids of the nodes that have a resource."""
    listed = nodes.get("/api/v0/nodes?limit=100&detail=1")["data"]["result"]["result"]
    return {row["node_id"] for row in listed if word in row["resources_total"]}


def tasks(nodes, word):
    """Return the number of tasks per node with a word in their name."""
    listed = nodes.get("/api/v0/tasks?limit=10000&detail=1")["data"]["result"]["result"]
    return Counter(row["node_id"] for row in listed if word in row["name"] and row["node_id"])


def actors(nodes, word):
    """Return the number of actors per node with a word in their class."""
    listed = nodes.get("/api/v0/actors?limit=1000&detail=1")["data"]["result"]["result"]
    return Counter(row["node_id"] for row in listed if word in row["class_name"])


def test_cpu_nodes_decode_and_gpu_nodes_extract(s3, images):
    """A node that declares a GPU (there is none: TensorFlow computes on its CPU)."""
    out = locate(f"{s3.uri}/nodes/gpu")
    with ray_nodes([("--num-cpus=4",), ("--num-cpus=4", "--num-gpus=1")]) as nodes:
        run = nodes.submit("extract", *source(images), f"--out={out.uri}", *NETWORK)
        assert run.returncode == 0, run.stdout
        assert "on 1 GPU actor" in run.stdout
        gpu = nodes_with(nodes, "GPU")
        assert len(gpu) == 1
        loads, extractors = tasks(nodes, "MapBatches(load_unit)"), actors(nodes, "ModelActor")
    assert set(extractors) == gpu
    on_gpu_nodes = sum(loads[node] for node in gpu)
    print(f"\n{on_gpu_nodes} of {loads.total()} blocks decoded on the GPU node")
    assert loads.total() >= 32  # of 64; Ray drops the records of some
    # Only tasks that do not fit on the CPU node: three of seven at once (the actor takes a CPU) if
    # loading is the bottleneck, hardly any if extraction is. An even distribution would give half.
    assert on_gpu_nodes <= 0.46 * loads.total()
    assert result(out)["counts"]["ok"] == 1024


def test_nothing_needs_the_disk(s3, images, calm):
    """Little object memory, and a disk that Ray considers full: blocks wait, none is spilled."""
    out = locate(f"{s3.uri}/nodes/full-disk")
    full = {"RAY_local_fs_capacity_threshold": "0.01"}
    small = f"--object-store-memory={80 * _MIB}"
    with ray_nodes([("--num-cpus=1", small)] * 2, environment=full) as nodes:
        command = [*source(images), f"--out={out.uri}", *EXTRACT]
        run = nodes.submit("extract", *command)
        assert run.returncode == 0, run.stdout
    same_features(out, calm)


def test_one_cpu_is_enough_to_go_on(s3, images):
    """No stage waits for a CPU that another stage holds."""
    out = locate(f"{s3.uri}/nodes/one-cpu")
    command = ("extract", *source(images), f"--out={out.uri}", "--limit=512", *EXTRACT)
    with ray_nodes([("--num-cpus=1",)]) as nodes:
        run = nodes.begin(*command)
        wait_for(lambda: committed(out) >= 256, run)
        stop(nodes, run)
        finish(nodes.begin(*command))
    counts = result(out)["counts"]
    assert counts["known"] >= 256
    assert counts["known"] + counts["ok"] == 512
