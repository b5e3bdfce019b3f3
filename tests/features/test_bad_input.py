"""Bad and odd files among good ones: each ends in one place, with the right pixels or a reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from odd_files import OddFile, encoded, film, write_odd_files

from visao_ray.features.pipeline import Loading, load

REPOSITORY = Path(__file__).parents[2]
GOOD = 60


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[OddFile], int]:
    """Images with every odd kind in one class, strays outside; and how many files there are."""
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


@pytest.fixture(scope="module")
def averager(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An "extractor" whose features are grey levels: patch means, their average and maximum."""
    path = tmp_path_factory.mktemp("weights") / "averager.keras"
    code = (
        "import sys, keras; i = keras.Input((224, 224, 3)); "
        "keras.Model(i, keras.layers.AveragePooling2D(32)(i)).save(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120)
    return path


def extract(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "jobs/extract.py", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=180,
    )


def patch_means(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    patches = pixels.astype(np.float64).reshape(7, 32, 7, 32, 3).mean(axis=(1, 3)).reshape(49, 3)
    return patches.mean(axis=0), patches.max(axis=0)


def test_every_file_ends_in_one_place(
    dataset: tuple[Path, list[OddFile], int], averager: Path, tmp_path: Path
) -> None:
    folder, odd, files = dataset
    arguments = ["--dataset", "vazios", "--data", str(folder), "--weights", str(averager)]
    run = extract([*arguments, "--out", str(tmp_path), "--max-errors", "0.5"])
    assert run.returncode == 0, run.stderr

    features = {
        row["key"]: row for row in pads.dataset(tmp_path / "features").to_table().to_pylist()
    }
    errors = {row["key"]: row for row in pads.dataset(tmp_path / "errors").to_table().to_pylist()}
    counts = json.loads((tmp_path / "result.json").read_text())["counts"]
    assert counts["images"] == counts["ok"] + counts["errors"] == files
    assert len(features) == counts["ok"]
    assert len(errors) == counts["errors"]
    assert not features.keys() & errors.keys()

    kinds = 0
    for file in odd:
        key = f"vazio/{file.name}"
        if not file.readable:
            row = errors[key]
            assert row["message"], key
            if file.bytes_exist:
                assert (row["stage"], row["error_type"]) == ("decode", file.reason), key
            else:
                assert row["stage"] in ("list", "download"), key
            kinds += 1
            continue
        row = features[key]
        assert file.pixels is not None
        for pool, expected in zip(("avg", "max"), patch_means(file.pixels), strict=True):
            assert np.abs(np.array(row[pool]) - expected).max() <= max(
                2.0, file.tolerance[0] * 2
            ), key
        kinds += 1
    assert kinds >= 20
    assert errors[".DS_Store"]["stage"] == "list"
    assert all(f"nvazio/good {n}.jpg" in features for n in range(GOOD // 2))


def test_too_many_errors_fail_after_writing_them(
    dataset: tuple[Path, list[OddFile], int], averager: Path, tmp_path: Path
) -> None:
    folder, odd, files = dataset
    bad = sum(not file.readable for file in odd) + 1
    arguments = ["--dataset", "vazios", "--data", str(folder), "--weights", str(averager)]
    run = extract([*arguments, "--out", str(tmp_path)])
    assert run.returncode == 2
    assert f"{bad} of {files} images" in run.stderr
    assert "--max-errors 0.05" in run.stderr
    assert "Traceback" not in run.stderr
    assert pads.dataset(tmp_path / "errors").count_rows() == bad
    assert not (tmp_path / "result.json").exists()

    lenient = extract([*arguments, "--out", str(tmp_path), "--max-errors", "1"])
    assert lenient.returncode == 0, lenient.stderr


def test_vanished_and_forbidden_files(averager: Path, tmp_path: Path) -> None:
    """Files that are listed but gone, or not allowed, when their pixels are read."""
    loading = Loading(image_size=32, resize="stretch", recipe="none", views=0, seed=0)
    present, forbidden = tmp_path / "present.jpg", tmp_path / "forbidden.jpg"
    for path in (present, forbidden):
        path.write_bytes(encoded(film(60, 80), "JPEG"))
    forbidden.chmod(0)
    names = ["present.jpg", "gone.jpg", "forbidden.jpg"]
    rows = [
        {"key": name, "uri": str(tmp_path / name), "label": "vazio", "split": "val", "group": name}
        | {"content_id": name, "status": "ok", "error": None}
        for name in names
    ]
    tmp_path.chmod(0o755)
    parents = [parent for parent in tmp_path.parents if parent.owner() == tmp_path.owner()]
    privileged = os.geteuid() == 0
    modes = {parent: parent.stat().st_mode for parent in parents}
    try:
        if privileged:  # root may read everything: do it as somebody else
            for parent in parents:
                parent.chmod(modes[parent] | 0o055)
            os.seteuid(65534)
        loaded = load(pa.Table.from_pylist(rows), loading).to_pylist()
    finally:
        if privileged:
            os.seteuid(0)
            for parent in parents:
                parent.chmod(modes[parent])
    found = {row["key"]: row for row in loaded}
    assert found["present.jpg"]["pixels"] is not None
    for name, kind in (("gone.jpg", "FileNotFoundError"), ("forbidden.jpg", "PermissionError")):
        assert found[name]["pixels"] is None
        assert (found[name]["stage"], found[name]["error_type"]) == ("download", kind)
        assert found[name]["message"]
