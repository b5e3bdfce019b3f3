"""The manifest job: it counts new files and applies labels without reading an image."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pytest
from job_runs import run_job, write_files
from s3_proxy import proxy
from s3_server import free_ports
from stores import make_store

from visao_ray.core.errors import InputError
from visao_ray.core.lease import Lease, Owner
from visao_ray.core.object_store import list_files
from visao_ray.core.run import execute
from visao_ray.core.storage import locate
from visao_ray.datasets.registry import find_dataset
from visao_ray.features.manifest import make_manifest
from visao_ray.features.settings import ManifestSettings
from visao_ray.store import table
from visao_ray.store.store import Store

VAZIOS = find_dataset("vazios")
COLUMNS = ["key", "etag", "bytes", "label", "group", "wanted_split", "row"]
FILES = {
    f"{label}/{container}_{number}.jpg": f"{label} {container} {number}".encode()
    for label in ("vazio", "nvazio")
    for container in ("a", "b", "c")
    for number in range(3)
}


def manifest(data: Path, store: Path, out: Path, **more) -> tuple[dict, list[dict]]:
    settings = ManifestSettings(data=str(data), store=str(store), out=str(out), **more)
    result = execute(settings, make_manifest)
    return result, pads.dataset(out / "listing").to_table().to_pylist()


def known(data: str, place: str, extractors: dict[str, int]) -> Store:
    """Make a store of the files below a folder; each extractor has vectors of the first files."""
    root = locate(data)
    rows = [
        {
            "key": f"{root.uri}/{file.path}",
            "etag": file.etag,
            "bytes": file.bytes,
            "label": file.path.split("/")[0],
            "group": VAZIOS.group_of(file.path),
            "split": "train",
        }
        for file in sorted(list_files(root))
    ]
    store = make_store(place, VAZIOS, rows)
    for extractor, count in extractors.items():
        vectors = {"avg": np.ones((count, 4), np.float32)}
        make_store(f"{place}-{extractor}", VAZIOS, rows[:count], vectors, extractor)
        shutil.copytree(f"{place}-{extractor}/vectors", f"{place}/vectors", dirs_exist_ok=True)
    return store


@pytest.fixture
def data(tmp_path) -> Path:
    return write_files(tmp_path / "data", FILES)


def test_everything_is_new_without_a_store(data, ray_cluster, tmp_path):
    result, listed = manifest(data, tmp_path / "store", tmp_path / "out", dataset="vazios")
    assert not (tmp_path / "store").exists()
    assert [row["key"] for row in listed] == sorted(f"{data}/{name}" for name in FILES)
    assert list(listed[0]) == COLUMNS
    assert {row["row"] for row in listed} == {"append"}
    assert all(Path(row["key"]).stat().st_size == row["bytes"] for row in listed)
    assert all(row["label"] == Path(row["key"]).parent.name for row in listed)
    assert all(row["group"] == VAZIOS.group_of(row["key"]) for row in listed)
    counts = result["counts"]
    assert (counts["listed"], counts["new"], counts["known"]) == (18, 18, 0)
    assert counts["labels"] == {"nvazio": 9, "vazio": 9}
    assert counts["without_vectors"] == {}
    with pytest.raises(InputError, match="--dataset is needed"):
        manifest(data, tmp_path / "store", tmp_path / "other")


def test_differences_from_the_store(data, ray_cluster, tmp_path, capsys):
    store = known(str(data), f"{tmp_path}/store", {"one-1": 18, "two-2": 15})
    versions = {name: each.latest().version for name, each in store.tables().items()}
    write_files(data, {"vazio/z_0.jpg": b"new", "vazio/a_0.jpg": b"other bytes than before"})
    (data / "nvazio/c_2.jpg").unlink()
    result, listed = manifest(data, tmp_path / "store", tmp_path / "out")
    counts = result["counts"]
    assert (counts["listed"], counts["added"], counts["changed"]) == (18, 1, 1)
    assert counts["vanished"] == 1
    # Keys are sorted: the last three, vazio/c_0 to c_2, have no vectors of two-2.
    assert counts["without_vectors"] == {"one-1": 0, "two-2": 3}
    assert (counts["without"], counts["new"], counts["known"]) == (3, 5, 13)
    actions = {row["key"].removeprefix(f"{data}/"): row["row"] for row in listed}
    assert actions == {
        "vazio/a_0.jpg": "update",
        "vazio/c_0.jpg": "stay",
        "vazio/c_1.jpg": "stay",
        "vazio/c_2.jpg": "stay",
        "vazio/z_0.jpg": "append",
    }
    output = capsys.readouterr().out
    assert "18 listed = 5 new + 13 known" in output
    assert "3 of the unchanged files have no vectors of two-2" in output
    assert {name: each.latest().version for name, each in store.tables().items()} == versions
    again, listed = manifest(data, tmp_path / "store", tmp_path / "out")
    assert again["counts"] == counts
    assert len(listed) == 5


def test_labels_are_applied(data, ray_cluster, tmp_path, capsys):
    store = known(str(data), f"{tmp_path}/store", {"one-1": 18})
    labels = tmp_path / "labels.csv"
    labels.write_text("key,label,group\nvazio/a_0.jpg,nvazio,\nvazio/a_1.jpg,,other\nnone.jpg,,x\n")
    result, listed = manifest(data, tmp_path / "store", tmp_path / "out", labels=str(labels))
    assert listed == []
    assert result["counts"]["relabelled"] == 1
    rows = {
        row["key"]: row for row in store.images.latest().read(["key", "label", "group"]).to_pylist()
    }
    assert rows[f"{data}/vazio/a_0.jpg"]["label"] == "nvazio"
    assert rows[f"{data}/vazio/a_1.jpg"]["group"] == "other"
    assert "1 of its 3 rows name no image" in capsys.readouterr().err

    with Lease(store.location.join("lease"), Owner.here("extract", "feed0001")):
        manifest(data, tmp_path / "store", tmp_path / "free")
        with pytest.raises(InputError, match="feed0001"):
            manifest(data, tmp_path / "store", tmp_path / "held", labels=str(labels))
    labels.write_text("key,label\nvazio/a_0.jpg,lungs\n")
    with pytest.raises(InputError, match=r"labels\.csv: line 2: column 'label', value 'lungs'"):
        manifest(data, tmp_path / "store", tmp_path / "wrong", labels=str(labels))
    with pytest.raises(InputError, match=r"there is no store .*nowhere yet"):
        manifest(data, tmp_path / "nowhere", tmp_path / "x", labels=str(labels), dataset="vazios")


def test_vanished_images_are_marked(data, ray_cluster, tmp_path):
    store = known(str(data), f"{tmp_path}/store", {"one-1": 18})
    for name in ("nvazio/c_2.jpg", "vazio/b_1.jpg"):
        (data / name).unlink()
    result, _ = manifest(data, tmp_path / "store", tmp_path / "out", mark_missing=True)
    assert result["counts"]["vanished"] == 2
    missing = store.images.latest().read(["key"], "status = 'missing'")["key"].to_pylist()
    assert sorted(missing) == [f"{data}/nvazio/c_2.jpg", f"{data}/vazio/b_1.jpg"]
    result, _ = manifest(data, tmp_path / "store", tmp_path / "out")
    assert result["counts"]["vanished"] == 0


def test_no_image_is_fetched(s3, tmp_path):
    """A proxy counts the requests; no image is read, also when labels are set."""
    place = f"{s3.uri}/{tmp_path.name}"
    data = locate(f"{place}/data")
    for name, content in FILES.items():
        data.join(name).write_bytes(content)
    keys = {f"{data.uri}/{name}" for name in FILES}
    store = known(data.uri, f"{place}/store", {})
    data.join("vazio/new_1.jpg").write_bytes(b"new")
    labels = locate(f"{place}/labels.csv")
    labels.write_bytes(b"key,label\nvazio/b_0.jpg,nvazio\n")
    (port,) = free_ports(1)
    with proxy(port, s3.port, tmp_path) as faults:
        arguments = ["--data", data.uri, "--store", store.uri, "--labels", labels.uri]
        run = run_job(
            "manifest",
            *arguments,
            "--out",
            f"{place}/out",
            environment={"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"},
        )
        assert run.returncode == 0, run.stderr
        assert faults.requests("GET", locate(f"{place}/store").path) > 0
        assert faults.paths("GET", data.path + "/") == {}
        assert faults.paths("HEAD", data.path + "/vazio") == {}
    result = json.loads(locate(f"{place}/out/result.json").read_bytes())
    assert (result["counts"]["known"], result["counts"]["new"]) == (18, 1)
    assert result["counts"]["relabelled"] == 1
    images = store.images.latest()
    assert set(images.read(["key"])["key"].to_pylist()) == keys
    relabelled = images.read(["label"], f"key = {table.quoted(f'{data.uri}/vazio/b_0.jpg')}")
    assert relabelled["label"].to_pylist() == ["nvazio"]
