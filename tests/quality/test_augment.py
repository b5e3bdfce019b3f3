"""Augmented copies: of train alone, the same every time, and kept in step with the store."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from job_runs import IMPORTS, OWN_RAY, ROOT, run_job
from odd_files import encoded
from PIL import Image
from stores import make_store

from visao_ray.core.errors import InputError
from visao_ray.core.run import execute
from visao_ray.core.settings import from_values
from visao_ray.datasets.registry import find_dataset
from visao_ray.images.augment import augment_view
from visao_ray.images.decode import decode
from visao_ray.images.recipes import RECIPES
from visao_ray.quality.augment import augment_images
from visao_ray.quality.augment_plan import Amount
from visao_ray.quality.settings import AugmentSettings, VerdictsSettings
from visao_ray.quality.verdicts import record_verdicts
from visao_ray.store.store import Store

VAZIOS = find_dataset("vazios")
CLASSES = ("nvazio", "vazio")
SIZE = 32


def rows_below(folder: Path, numbers: range) -> list[dict]:
    """Write an image for each number: nine of ten are train, less than a third vazio."""
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = folder / f"{number:03}.png"
        shape = (40, 56, 3) if number == 1 else (40, 56)
        pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        data = encoded(pixels, "PNG")
        path.write_bytes(data)
        split = ("val", "test")[number // 10 % 2] if number % 10 == 9 else "train"
        label = CLASSES[number % 3 == 0 and number != 3]
        row = {"key": str(path), "label": label, "split": split, "group": f"C{number // 2}"}
        rows.append({**row, "content": data})
    return rows


def make(folder: Path, numbers: range) -> Path:
    """Make a store whose contents are those of the files."""
    make_store(folder / "store", VAZIOS, rows_below(folder / "images", numbers))
    return folder / "store"


def augment(store: Path, **more) -> dict:
    values = {"image_size": SIZE, "copies": 3, "rows_per_block": 4, **more}
    return execute(from_values(AugmentSettings, {"store": str(store), **values}), augment_images)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def copies_of(store: Path, name: str = "G1@0") -> list[dict]:
    at = Store.open(str(store)).copies(name).latest()
    return at.read(at.schema.names).sort_by("key").to_pylist()


@pytest.fixture(scope="module")
def made(tmp_path_factory, _ray_at_end):
    from conftest import join_ray

    join_ray()
    folder = tmp_path_factory.mktemp("augment")
    store = make(folder, range(40))
    return store, augment(store, out=str(folder / "out"))


def test_each_copy_is_that_view_of_a_train_image(made):
    store, result = made
    rows = copies_of(store)
    images = Store.open(str(store)).images.latest().read(["key", "label", "split", "content_id"])
    train = {row["content_id"]: row for row in images.to_pylist() if row["split"] == "train"}
    assert len(rows) == 3 * len(train) == 108
    assert {(row["content_id"], row["view"]) for row in rows} == {
        (content, view) for content in train for view in (1, 2, 3)
    }
    for row in rows:
        source = train[row["content_id"]]
        assert (row["source"], row["label"]) == (source["key"], source["label"])
        assert (row["recipe"], row["seed"]) == ("G1", 0)
        data = Path(row["key"]).read_bytes()
        assert len(data) == row["bytes"]
        assert Path(row["key"]).parent.name == row["label"]
        picture = Image.open(io.BytesIO(data))
        digest = row["content_id"].hex()
        words = f"source sha256:{digest} recipe G1 seed 0 view {row['view']}"
        assert picture.info["comment"] == words.encode()
        assert picture.mode == ("RGB" if source["key"].endswith("/001.png") else "L")
        pixels = decode(Path(source["key"]).read_bytes(), SIZE, "stretch")
        drawn = augment_view(pixels, RECIPES["G1"], 0, digest, row["view"])
        shown = np.asarray(picture.convert("RGB"))
        assert np.abs(shown.astype(int) - drawn).mean() < 12  # noise, as JPEG
    counts = result["counts"]
    assert (counts["images"], counts["copies"]) == (36, 108)
    assert (counts["known"], counts["new"], counts["ok"], counts["errors"]) == (0, 108, 108, 0)
    assert sum(one["copies"] for one in counts["by_label"].values()) == 108
    sheet = (Path(result["settings"]["out"]) / "copies.jpg").read_bytes()
    assert Image.open(io.BytesIO(sheet)).width == 4 * 160


def test_groups_of_copies_are_those_of_their_images(made):
    store, result = made
    with open(Path(result["settings"]["out"]) / "labels.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = copies_of(store)
    assert [line["key"] for line in lines] == [row["key"] for row in rows]
    groups = dict(
        zip(
            *Store.open(str(store)).images.latest().read(["key", "group"]).to_pydict().values(),
            strict=True,
        )
    )
    for line, row in zip(lines, rows, strict=True):
        assert line == {
            "key": row["key"],
            "label": row["label"],
            "group": groups[row["source"]],
            "split": "train",
        }


def test_the_second_time_nothing_is_made(made, tmp_path, ray_cluster):
    store, _ = made
    before = {path: path.stat().st_mtime_ns for path in store.glob("copies/G1@0/*/*.jpg")}
    counts = augment(store, out=str(tmp_path / "again"))["counts"]
    assert (counts["known"], counts["new"], counts["removed"]) == (108, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_grown_decided_and_undone_is_as_made_at_once(made, tmp_path, ray_cluster):
    """New images, a relabelled and a dropped one, a lost and a damaged file; then all undone."""
    old, _ = made
    store = make(tmp_path / "grown", range(30))
    assert augment(store)["counts"]["new"] == 81
    make_store(store, VAZIOS, rows_below(tmp_path / "grown/images", range(30, 40)))
    counts = augment(store)["counts"]
    assert (counts["known"], counts["new"], counts["removed"]) == (81, 27, 0)
    assert files_of(old / "copies/G1@0") != {}
    assert sorted(map(os.path.basename, files_of(store / "copies/G1@0"))) == sorted(
        map(os.path.basename, files_of(old / "copies/G1@0"))
    )
    for name, data in files_of(store / "copies/G1@0").items():
        assert (old / "copies/G1@0" / name).read_bytes() == data

    def decide(text: str) -> None:
        file = tmp_path / f"{time.time_ns()}.csv"
        file.write_text("key,verdict,label\n" + text)
        execute(VerdictsSettings(store=str(store), file=str(file)), record_verdicts)

    images = tmp_path / "grown/images"
    decide(f"{images}/000.png,relabel,nvazio\n{images}/001.png,drop,\n")
    first, second = sorted((store / "copies/G1@0/nvazio").glob("*.jpg"))[8:10]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])
    note = store / "copies/G1@0/nvazio/note.txt"
    note.write_text("a person's")
    counts = augment(store)["counts"]
    assert (counts["copies"], counts["images"]) == (105, 35)
    assert counts["removed"] in (6, 7, 8)  # six, unless a broken one is of the dropped image
    rows = copies_of(store)
    assert all((Path(row["key"]).stat().st_size) == row["bytes"] for row in rows)
    assert {row["label"] for row in rows if row["source"].endswith("/000.png")} == {"nvazio"}
    assert not [row for row in rows if row["source"].endswith("/001.png")]
    assert note.exists()
    note.unlink()
    decide(f"{images}/000.png,keep,\n{images}/001.png,keep,\n")
    augment(store)
    assert files_of(store / "copies/G1@0") == files_of(old / "copies/G1@0")


def test_a_balanced_set_has_as_many_of_each_class(made, tmp_path, ray_cluster):
    store, _ = made
    out = tmp_path / "out"
    result = augment(
        store, out=str(out), balance=True, originals=True, name="even", copies=2,
        folder=str(tmp_path / "even"),
    )  # fmt: skip
    by_label = result["counts"]["by_label"]
    sizes = {label: one["images"] for label, one in by_label.items()}
    assert sizes["nvazio"] > sizes["vazio"]
    rows = copies_of(store, "even")
    augmented = [row["label"] for row in rows if row["view"]]
    assert augmented.count("vazio") == augmented.count("nvazio") == 2 * sizes["nvazio"]
    assert sum(row["view"] == 0 for row in rows) == 36
    per_image = [
        sum(row["view"] > 0 for row in rows if row["content_id"] == content)
        for content in {row["content_id"] for row in rows if row["label"] == "vazio"}
    ]
    assert max(per_image) - min(per_image) == 1


def test_amounts():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    draws = np.array([5, 4, 3, 2, 1, 9, 8, 7], np.uint64)
    assert Amount(2, False, 20, False).of_images(labels, draws).tolist() == [2] * 8
    even = Amount(1, True, 20, False).of_images(labels, draws)
    assert even.tolist() == [1, 1, 1, 1, 1, 2, 3, 5]
    assert Amount(1, True, 4, False).of_images(labels, draws).tolist()[-1] == 4
    nothing = np.zeros(0, np.int64)
    assert len(Amount(1, True, 4, False).of_images(nothing, draws[:0])) == 0


def test_an_image_that_changed_is_an_error_until_it_is_extracted_again(tmp_path, ray_cluster):
    store = make(tmp_path, range(6))
    image = tmp_path / "images/002.png"
    data = image.read_bytes()
    image.write_bytes(data + b"more")
    result = augment(store)
    counts = result["counts"]
    assert (counts["new"], counts["ok"], counts["errors"]) == (18, 15, 3)
    assert counts["errors_by_reason"] == {"changed": 3}
    assert "002.png: changed: has other bytes" in result["warnings"][0]
    image.write_bytes(data)
    counts = augment(store)["counts"]
    assert (counts["known"], counts["new"], counts["ok"]) == (15, 3, 3)


def test_wrong_input(made, tmp_path, ray_cluster):
    store, _ = made
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"mine: is not empty \(it has a.jpg\); choose a new"):
        augment(store, name="other", folder=str(tmp_path / "mine"))
    with pytest.raises(InputError, match="'G1@0' of the store were made with image_size 32; "):
        augment(store, image_size=48)
    with pytest.raises(InputError, match="--recipe none changes no pixel"):
        augment(store, recipe="none")
    with pytest.raises(InputError, match="--copies 0 makes nothing"):
        augment(store, copies=0)
    with pytest.raises(InputError, match="--recipe G9: unknown augmentation recipe"):
        augment(store, recipe="G9")
    rows = rows_below(tmp_path / "images", range(9, 10))
    make_store(tmp_path / "empty", VAZIOS, rows)
    with pytest.raises(InputError, match="has no labelled train images"):
        augment(tmp_path / "empty")
    assert files_of(tmp_path / "mine") == {"a.jpg": b""}


@pytest.mark.faults
def test_killed_it_goes_on(made, tmp_path):
    """Killed after some files are written; again, it ends like one that was not disturbed."""
    old, _ = made
    store = make(tmp_path, range(40))
    command = [
        sys.executable, str(ROOT / "jobs/augment.py"), "--store", str(store), "--copies", "3",
        "--image-size", str(SIZE), "--rows-per-block", "1", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        env=os.environ | OWN_RAY | IMPORTS,
        start_new_session=True,
    )
    deadline = time.monotonic() + 180
    while not len(list(store.glob("copies/G1@0/*/*.jpg"))) > 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run_job("augment", *command[2:])
    result = json.loads((tmp_path / "out/result.json").read_bytes())
    assert result["counts"]["ok"] + result["counts"]["known"] == 108
    assert files_of(store / "copies/G1@0") == files_of(old / "copies/G1@0")
    rows = copies_of(store)
    assert len({row["key"] for row in rows}) == len(rows) == 108
