"""Bad and odd files among good ones: each has one row, with the right pixels or a reason."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from odd_files import OddFile, encoded, film, write_odd_files

from visao_ray.core.errors import InputError
from visao_ray.core.run import execute
from visao_ray.core.storage import locate
from visao_ray.datasets.listing import APPEND, LISTING
from visao_ray.features.extract import extract_images
from visao_ray.features.settings import ExtractSettings
from visao_ray.inference.loading import Loading, Unit, load_unit
from visao_ray.store import schemas
from visao_ray.store.store import Store
from visao_ray.store.table import Table, append, write_fragments

GOOD = 60
SIZE = 224


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[OddFile], int]:
    """Write images, all odd files in one class, and a stray file; return the number of files."""
    folder = tmp_path_factory.mktemp("dataset")
    good = [encoded(film(150 + n, 260), "JPEG", quality=95) for n in range(4)]
    for label in ("nvazio", "vazio"):
        (folder / label).mkdir()
        for n in range(GOOD // 2):
            image = np.roll(film(150, 260 + n), n, axis=1)
            (folder / label / f"good {n}.jpg").write_bytes(encoded(image, "JPEG", quality=95))
    odd = write_odd_files(folder / "vazio", good)
    (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    return folder, odd, GOOD + len(odd) + 1


def extract(folder: Path, out: Path, **options: float) -> dict:
    how = {"dataset": "vazios", "engine": "cells", "image_size": SIZE, **options}
    settings = ExtractSettings(data=str(folder), out=str(out), **how)
    return execute(settings, extract_images)


def cell_means(pixels: np.ndarray) -> np.ndarray:
    """Return the expected `avg` in 0..255: the mean of each colour in each cell."""
    side = SIZE // 4
    cells = pixels.astype(np.float64).reshape(4, side, 4, side, 3)
    return cells.mean(axis=(1, 3)).reshape(-1)


def test_every_file_has_one_row(
    dataset: tuple[Path, list[OddFile], int], tmp_path: Path, ray_cluster: None
) -> None:
    """Too many errors end the job, but only after their rows are written."""
    folder, odd, files = dataset
    bad = sum(not file.readable for file in odd) + 1
    message = rf"{bad} of {files} new images .*--max-errors 0\.05"
    with pytest.raises(InputError, match=message):
        extract(folder, tmp_path / "strict", store=str(tmp_path / "store"))
    assert Store.open(str(tmp_path / "store")).images.latest().count("status != 'ok'") == bad
    assert not (tmp_path / "strict" / "result.json").exists()

    result = extract(folder, tmp_path / "out", max_errors=0.5)
    store = Store.open(str(tmp_path / "out" / "store"))
    images = {
        row["key"][len(str(folder)) + 1 :]: row
        for row in store.images.latest().read(schemas.IMAGES.names).to_pylist()
    }
    table = store.vectors(store.the_extractor(None)).latest()
    columns = ["content_id", "status", "error_type", "message", "avg"]
    vectors = {row["content_id"]: row for row in table.read(columns).to_pylist()}
    counts = result["counts"]
    assert counts["listed"] == counts["ok"] + counts["errors"] == files == len(images)
    usable = {name for name, row in images.items() if row["status"] == "ok"}
    assert len(usable) == counts["ok"]

    kinds = 0
    for file in odd:
        key = f"vazio/{file.name}"
        image = images[key]
        if not file.readable:
            assert image["error"], key
            if file.bytes_exist:
                row = vectors[image["content_id"]]
                assert (row["status"], row["error_type"]) == ("error", file.reason), key
                assert image["status"] == "error"
            else:
                assert image["status"] == "unread", key
            kinds += 1
            continue
        assert image["status"] == "ok", key
        row = vectors[image["content_id"]]
        assert file.pixels is not None
        difference = np.abs(np.array(row["avg"]) * 255 - cell_means(file.pixels)).max()
        assert difference <= max(2.0, file.tolerance[0] * 2), key
        kinds += 1
    assert kinds >= 20
    assert images[".DS_Store"]["error"].startswith("not_an_image: ")
    assert all(f"nvazio/good {n}.jpg" in usable for n in range(GOOD // 2))


def test_vanished_and_forbidden_files(tmp_path: Path) -> None:
    """Listed files that are gone or not readable when they are loaded."""
    present, forbidden = tmp_path / "present.jpg", tmp_path / "forbidden.jpg"
    for path in (present, forbidden):
        path.write_bytes(encoded(film(60, 80), "JPEG"))
    forbidden.chmod(0)
    names = ["present.jpg", "gone.jpg", "forbidden.jpg"]
    rows = [{"key": str(tmp_path / name), "row": APPEND} for name in names]
    place = Table(locate(str(tmp_path / "listing.lance")))
    place.create(LISTING)
    listed = pa.Table.from_pylist(rows, schema=LISTING)
    at = append(place.latest(), write_fragments(place.uri, LISTING, listed))
    unit = Unit(at, 8, Loading(32, "stretch"), (), "", 0)
    for path in tmp_path.rglob("*"):
        if path.parts[-1] != "forbidden.jpg":
            path.chmod(0o755)
    tmp_path.chmod(0o755)
    parents = [parent for parent in tmp_path.parents if parent.owner() == tmp_path.owner()]
    privileged = os.geteuid() == 0
    modes = {parent: parent.stat().st_mode for parent in parents}
    try:
        if privileged:  # root may read everything, so switch to another user
            for parent in parents:
                parent.chmod(modes[parent] | 0o055)
            os.seteuid(65534)
        loaded = load_unit(pa.table({"unit": [0]}), unit).to_pylist()
    finally:
        if privileged:
            os.seteuid(0)
            for parent in parents:
                parent.chmod(modes[parent])
    found = {Path(row["image_key"]).name: row for row in loaded}
    assert found["present.jpg"]["image_status"] == "ok"
    for name, kind in (("gone.jpg", "FileNotFoundError"), ("forbidden.jpg", "PermissionError")):
        assert found[name]["image_status"] == "unread"
        assert found[name]["image_error"].startswith(f"{kind}: ")
