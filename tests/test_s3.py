"""An extraction on a real S3 server: the same store as on a disk."""

import json

import numpy as np
import pytest
from conftest import SEED
from s3_server import S3

from visao_ray.core.run import execute
from visao_ray.core.storage import Location, locate
from visao_ray.features.extract import extract_images
from visao_ray.features.settings import ExtractSettings
from visao_ray.store.store import Store


def images(store: Store) -> dict[str, dict]:
    """Read the rows of `images` by the name of the file."""
    columns = ["key", "content_id", "bytes", "width", "label", "group", "split", "status"]
    rows = store.images.latest().read(columns).to_pylist()
    found = {"/".join(row["key"].split("/")[-2:]): row for row in rows}
    assert len(found) == len(rows) > 0
    return found


def same_vectors(one: Store, other: Store) -> None:
    """Check that two stores have the same contents with the same vectors."""
    (first, second) = (
        {
            row["content_id"]: row
            for row in store.vectors(store.the_extractor(None))
            .latest()
            .read(["content_id", "avg", "max"])
            .to_pylist()
        }
        for store in (one, other)
    )
    assert first.keys() == second.keys()
    for content, row in first.items():
        for pool in ("avg", "max"):
            assert np.abs(np.subtract(row[pool], second[content][pool])).max() <= 1e-5


@pytest.fixture(scope="module")
def bucket(s3: S3, scans, tiny_backbone) -> Location:
    """The 40 scans, and the network as a file, on the server."""
    place = locate(f"{s3.uri}/extraction")
    for file in scans.rglob("*.jpg"):
        place.join("scans", file.relative_to(scans).as_posix()).write_bytes(file.read_bytes())
    with open(tiny_backbone, "rb") as network:
        place.join("tiny.keras").write_bytes(network.read())
    return place


def extract(bucket: Location, store: str, out: str, **more: int) -> dict:
    """Extract the scans as the fixture `store` of a disk does."""
    settings = ExtractSettings(
        dataset="vazios",
        data=bucket.join("scans").uri,
        store=store,
        out=out,
        seed=SEED,
        weights=bucket.join("tiny.keras").uri,
        **{"batch_size": 7, "rows_per_block": 9, **more},
    )
    return execute(settings, extract_images)


def test_the_same_store_as_on_a_disk(bucket, store, ray_cluster):
    place = bucket.join("store")
    result = extract(bucket, place.uri, bucket.join("out").uri)
    here, there = Store.open(str(store)), Store.open(place.uri)
    local, remote = images(here), images(there)
    assert local.keys() == remote.keys()
    for name, row in local.items():
        assert remote[name]["key"].startswith("s3://")
        assert {**row, "key": ""} == {**remote[name], "key": ""}
    same_vectors(here, there)
    before = json.loads((store.parent / "extract" / "result.json").read_text())
    assert result["counts"] == before["counts"]


def test_from_s3_to_a_store_on_a_disk(bucket, store, tmp_path, ray_cluster):
    result = extract(bucket, str(tmp_path / "store"), str(tmp_path / "out"), batch_size=5)
    assert result["counts"]["ok"] == 40
    same_vectors(Store.open(str(store)), Store.open(str(tmp_path / "store")))
