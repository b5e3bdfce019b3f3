"""Fixtures: one cluster of three nodes for all these tests, and an object store behind a proxy."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cluster_runs import EXTRACT, features, source
from ray_nodes import RayNodes, ray_nodes
from s3_proxy import Faults, proxy
from s3_server import S3, free_ports

from visao_ray.core.storage import Location, locate

IMAGES = 1024


@dataclass(frozen=True)
class Site:
    """A cluster, its object store, and the faults of the proxy between them."""

    nodes: RayNodes
    store: S3
    faults: Faults

    def place(self, name: str) -> Location:
        """Return a location in the bucket."""
        return locate(f"{self.store.uri}/{name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder as `faults`: they need a cluster."""
    for item in items:
        if "tests/cluster/" in item.path.as_posix():
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="session")
def site(s3: S3) -> Iterator[Site]:
    """A head node without tasks and two nodes of one CPU, which use the store through the proxy."""
    (port,) = free_ports(1)
    with (
        tempfile.TemporaryDirectory(prefix="proxy-") as folder,
        proxy(port, s3.port, Path(folder)) as faults,
        ray_nodes(environment={"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}) as nodes,
    ):
        yield Site(nodes, s3, faults)


@pytest.fixture(scope="session")
def images(s3: S3) -> Location:
    """1,024 different small scans in the bucket: 64 renders, each darkened sixteen ways."""
    from visao_ray.synthetic.recipe import SyntheticRecipe, plan
    from visao_ray.synthetic.scan import encode, render

    place = locate(f"{s3.uri}/cluster/images")
    for planned in plan(SyntheticRecipe(dataset="vazios", images=64, seed=3)):
        scan = render("vazios", planned.true_label, planned.index, 3, planned.difficulty)
        for step in range(IMAGES // 64):
            darker = (scan[::2, ::2] * (1 - step / 40)).astype(np.uint8)
            name = f"{planned.index:04d}-{step:02d}.jpg"
            place.join(planned.label, name).write_bytes(encode(darker, 80))
    return place


@pytest.fixture(scope="session")
def calm(site: Site, images: Location) -> Location:
    """An extraction without faults; its store is in its folder."""
    out = site.place("cluster/calm")
    run = site.nodes.submit("extract", *source(images), f"--out={out.uri}", *EXTRACT)
    assert run.returncode == 0, run.stdout
    assert run.stdout.rstrip().endswith("SUCCEEDED")
    assert len(features(out)["key"]) == IMAGES
    return out


@pytest.fixture(autouse=True)
def whole(site: Site) -> None:
    """Before every test, start workers again and stop jobs that the test before has left."""
    for name in ("worker1", "worker2"):
        if name not in site.nodes.nodes:
            site.nodes.start(name, "--num-cpus=1")
    site.nodes.wait()
    site.nodes.stop_jobs()
