"""Extraction into a store: each file once, known files are not read again, splits do not change."""

import hashlib
import io
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from job_runs import write_files
from PIL import Image

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.core.run import execute
from visao_ray.features.extract import extract_images
from visao_ray.features.settings import ExtractSettings
from visao_ray.images.decode import decode
from visao_ray.store import schemas
from visao_ray.store.store import Store


def picture(number: int, image_format: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (9, 12), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, image_format)
    return target.getvalue()


def rows_of(store: Path | str, data: Path | None = None) -> dict[str, dict]:
    """Read rows of `images` by key, or by path below `data`."""
    rows = Store.open(str(store)).images.latest().read(schemas.IMAGES.names).to_pylist()
    start = len(str(data)) + 1 if data is not None else 0
    found = {row["key"][start:]: row for row in rows}
    assert len(found) == len(rows)
    return found


def vectors_of(store: Path | str, recipe: str = "none") -> dict[tuple[bytes, int], dict]:
    """Read the rows of the only extractor's vectors by content and view."""
    found = Store.open(str(store))
    table = found.vectors(found.the_extractor(None), recipe).latest()
    columns = ["content_id", "view", "status", "error_type", "message", "avg", "max"]
    rows = table.read(columns).to_pylist()
    made = {(row["content_id"], row["view"]): row for row in rows}
    assert len(made) == len(rows)
    return made


def each_group_in_one_split(rows: dict[str, dict]) -> bool:
    found = defaultdict(set)
    for row in rows.values():
        if row["status"] == "ok":
            found[row["group"]].add(row["split"])
    return all(len(splits) == 1 for splits in found.values())


@pytest.fixture
def extract(tmp_path, ray_cluster):
    """Return a function that extracts a folder into the test's store and checks the counts."""

    def run(data: Path, dataset: str | None = "chest_xray", **options) -> dict:
        options.setdefault("store", str(tmp_path / "store"))
        settings = ExtractSettings(data=str(data), dataset=dataset, engine="cells", **options)
        result = execute(settings, extract_images)
        counts = result["counts"]
        assert counts["listed"] == counts["new"] + counts["known"]
        assert counts["new"] == counts["ok"] + counts["errors"] == counts["read"]
        return {**counts, "warnings": result["warnings"]}

    return run


def test_every_image_once(store, scans):
    rows = rows_of(store, scans)
    assert set(rows) == {path.relative_to(scans).as_posix() for path in scans.rglob("*.jpg")}
    assert len(rows) == 40
    for name, row in rows.items():
        data = (scans / name).read_bytes()
        assert row["status"] == "ok"
        assert row["content_id"] == hashlib.sha256(data).digest()
        assert row["bytes"] == len(data)
        assert row["label"] == name.split("/")[0]
        assert row["split"] in ("train", "val", "test")
        with Image.open(scans / name) as opened:
            assert opened.size == (row["width"], row["height"])
    assert set(vectors_of(store)) == {(row["content_id"], 0) for row in rows.values()}


def test_vectors_equal_those_of_a_plain_loop(store, scans, tiny_backbone):
    rows, vectors = rows_of(store), vectors_of(store)
    keys = sorted(rows)
    images = np.stack([decode(Path(key).read_bytes(), 32, "stretch") for key in keys])
    model = import_keras().saving.load_model(tiny_backbone)
    maps = model.predict(images.astype(np.float32), verbose=0)
    for pool, expected in (("avg", maps.mean(axis=(1, 2))), ("max", maps.max(axis=(1, 2)))):
        made = np.array([vectors[rows[key]["content_id"], 0][pool] for key in keys])
        np.testing.assert_allclose(made, expected, atol=1e-5, rtol=1e-5)
        assert made.std(axis=0).max() > 1e-3


def chest(root: Path, patients: int) -> Path:
    """Write two films per patient, named as in the real dataset; two patients share a film."""
    files = {}
    for patient in range(patients):
        for film in range(2):
            files[f"PNEUMONIA/person{patient}_virus_{film}.jpeg"] = picture(2 * patient + film)
            files[f"NORMAL/IM-{patient:04d}-{film:04d}.jpeg"] = picture(9000 + 2 * patient + film)
    files["PNEUMONIA/person0_virus_0.jpeg"] = files["PNEUMONIA/person7_virus_1.jpeg"]
    return write_files(root, files)


@pytest.mark.slow
def test_a_store_grows(extract, tmp_path):
    """Add, copy, replace, relabel and delete files between extractions."""
    data = chest(tmp_path / "data", 30)
    first = extract(data)
    assert (first["new"], first["known"], first["ok"]) == (120, 0, 120)
    assert first["computed"] == 119  # one film has two names
    before = rows_of(tmp_path / "store", data)
    assert each_group_in_one_split(before)
    shared = [before[f"PNEUMONIA/{name}.jpeg"] for name in ("person0_virus_0", "person7_virus_1")]
    assert len({row["split"] for row in shared}) == 1

    again = extract(data, dataset=None)
    assert (again["new"], again["known"], again["computed"]) == (0, 120, 0)

    fresh = {f"NORMAL/IM-{n:04d}-0001.jpeg": picture(n) for n in range(500, 506)}
    doubled = {"NORMAL/IM-0900-0001.jpeg": (data / "NORMAL/IM-0001-0000.jpeg").read_bytes()}
    write_files(data, fresh | doubled | {"NORMAL/IM-0002-0000.jpeg": picture(700)})
    os.utime(data / "NORMAL/IM-0003-0000.jpeg", (1, 1))  # touched, not changed
    os.remove(data / "NORMAL/IM-0004-0000.jpeg")
    labels = tmp_path / "labels.csv"
    labels.write_text("key,label\nNORMAL/IM-0005-0000.jpeg,PNEUMONIA\n")
    grown = extract(data, labels=str(labels))
    assert (grown["added"], grown["changed"], grown["vanished"]) == (7, 2, 1)
    assert (grown["read"], grown["computed"]) == (9, 7)  # the doubled and the touched are known
    assert grown["relabelled"] == 1
    after = rows_of(tmp_path / "store", data)
    for name, row in before.items():
        assert after[name]["split"] == row["split"], name
        changed = name in ("NORMAL/IM-0002-0000.jpeg", "NORMAL/IM-0003-0000.jpeg")
        assert (after[name]["etag"] != row["etag"]) == changed
    replaced = after["NORMAL/IM-0002-0000.jpeg"]
    assert replaced["content_id"] == hashlib.sha256(picture(700)).digest()
    assert after["NORMAL/IM-0005-0000.jpeg"]["label"] == "PNEUMONIA"
    assert after["NORMAL/IM-0004-0000.jpeg"]["status"] == "ok"  # it keeps its row
    late, old = after["NORMAL/IM-0900-0001.jpeg"], before["NORMAL/IM-0001-0000.jpeg"]
    assert (late["content_id"], late["split"]) == (old["content_id"], old["split"])
    assert each_group_in_one_split(after)
    contents = {row["content_id"] for row in after.values()}
    assert contents | {before["NORMAL/IM-0002-0000.jpeg"]["content_id"]} == {
        content for content, _ in vectors_of(tmp_path / "store")
    }

    gone = extract(data, mark_missing=True)
    assert (gone["new"], gone["vanished"]) == (0, 1)
    assert rows_of(tmp_path / "store", data)["NORMAL/IM-0004-0000.jpeg"]["status"] == "missing"
    write_files(data, {"NORMAL/IM-0004-0000.jpeg": picture(9008)})
    back = extract(data)
    assert (back["changed"], back["read"], back["computed"]) == (1, 1, 0)


ODD = {
    "PNEUMONIA/com espaço é ção.jpeg": picture(70_001),
    "PNEUMONIA/100%25.jpeg": picture(70_002),
    "PNEUMONIA/a#b?c=d&e+f.png": picture(70_003, "PNG"),
    "PNEUMONIA/deep/er/person1_virus_9.jpeg": picture(70_004),
    "NORMAL/quoted'\"name.jpeg": picture(70_005),
    "stray.jpeg": picture(70_007),
    "arrived/IM-0700-0001.jpeg": picture(70_008),
}
BAD = {
    "PNEUMONIA/.DS_Store": b"\x00\x00\x00\x01Bud1",
    "NORMAL/empty.jpeg": b"",
    "NORMAL/page.png": b"<html>not found</html>",
    "NORMAL/cut.jpeg": picture(70_006)[:40],
    "README.txt": b"stray",
}
IGNORED = {
    "__MACOSX/PNEUMONIA/person1.jpeg": picture(1),
    ".cache/x.jpeg": picture(1),
    "NORMAL/.thumbnails/x.jpeg": picture(1),
}


def test_odd_names_bad_files_and_links(extract, tmp_path):
    data = chest(tmp_path / "data", 10)
    good = {path.relative_to(data).as_posix() for path in data.rglob("*.jpeg")} | set(ODD)
    write_files(data, ODD | BAD | IGNORED)
    os.symlink(data / "nowhere.jpeg", data / "NORMAL" / "dangling.jpeg")
    os.symlink("loop.jpeg", data / "NORMAL" / "loop.jpeg")
    links = {"NORMAL/dangling.jpeg", "NORMAL/loop.jpeg"}
    counts = extract(data, max_errors=1.0)
    rows = rows_of(tmp_path / "store", data)
    assert set(rows) == good | set(BAD) | links
    assert counts["errors"] == len(BAD) + len(links)
    for name, row in rows.items():
        expected = "ok" if name in good else "unread" if name in links else "error"
        assert row["status"] == expected, name
        assert bool(row["error"]) == (expected != "ok")
    for name in ("stray.jpeg", "arrived/IM-0700-0001.jpeg"):
        assert rows[name]["label"] is None
        assert rows[name]["split"] in ("train", "val", "test")
    assert rows["NORMAL/empty.jpeg"]["error"].startswith("empty: ")
    vectors = vectors_of(tmp_path / "store")
    for name in BAD:
        made = vectors[rows[name]["content_id"], 0]
        assert (made["status"], made["avg"]) == ("error", None)
        assert made["message"]
    assert rows["NORMAL/dangling.jpeg"]["content_id"] is None

    # Broken images are not read again; files that could not be read are.
    again = extract(data, max_errors=1.0)
    assert (again["new"], again["errors"]) == (2, 2)
    (data / "NORMAL" / "dangling.jpeg").unlink()
    write_files(data, {"NORMAL/dangling.jpeg": picture(71_000)})
    mended = extract(data, max_errors=1.0)
    assert (mended["changed"], mended["computed"], mended["errors"]) == (2, 1, 1)


def test_split_folders_set_the_split_and_leaks_are_reported(extract, tmp_path):
    files = {}
    for patient in range(40):
        files[f"train/PNEUMONIA/person{patient}_bacteria_1.jpeg"] = picture(patient)
        files[f"train/NORMAL/IM-{patient:04d}-0001.jpeg"] = picture(1000 + patient)
    for patient in range(100, 104):
        files[f"test/PNEUMONIA/person{patient}_virus_1.jpeg"] = picture(patient)
        files[f"test/NORMAL/NORMAL2-IM-{patient:04d}-0001.jpeg"] = picture(1000 + patient)
    files["test/PNEUMONIA/person5_virus_1.jpeg"] = picture(105)  # person5 is in train too
    data = write_files(tmp_path / "data", files)
    counts = extract(data, val_share=0.3)
    rows = rows_of(tmp_path / "store", data)
    assert all(row["split"] == "test" for name, row in rows.items() if name.startswith("test/"))
    # Val is drawn from train. A patient with a film in test is not in train.
    both = [row for name, row in rows.items() if "person5_" in name]
    assert [row["split"] for row in both] == ["test", "test"]
    drawn = {
        row["split"]
        for name, row in rows.items()
        if name.startswith("train/") and "person5_" not in name
    }
    assert drawn == {"train", "val"}
    assert counts["contradictions"] == 0
    assert each_group_in_one_split(rows)

    trained = min(
        row["group"] for name, row in rows.items() if "person" in name and row["split"] == "train"
    )
    write_files(data, {f"val/PNEUMONIA/{trained}_virus_1.jpeg": picture(106)})
    leak = extract(data, val_share=0.3)
    assert leak["contradictions"] == 1
    assert any("more than one split" in warning for warning in leak["warnings"])
    grown = rows_of(tmp_path / "store", data)
    assert {name: grown[name]["split"] for name in rows} == {
        name: row["split"] for name, row in rows.items()
    }


def test_labels_groups_and_splits_from_a_file(extract, tmp_path):
    names = [f"{n:03d}.jpg" for n in range(60)]
    data = write_files(tmp_path / "data", {name: picture(n) for n, name in enumerate(names)})
    file = tmp_path / "rótulos.csv"
    lines = ["key,label,group,split"]
    for n, name in enumerate(names[:50]):
        split = "test" if n < 4 else ""
        lines.append(f"{name},{('vazio', 'nvazio')[n % 2]},{n // 2:03d},{split}")
    file.write_text("\n".join([*lines, "nowhere.jpg,vazio,,"]))
    counts = extract(data, dataset="vazios", labels=str(file))
    rows = rows_of(tmp_path / "store", data)
    for n, name in enumerate(names[:50]):
        assert rows[name]["label"] == ("vazio", "nvazio")[n % 2]
        assert rows[name]["group"] == f"{n // 2:03d}"
    assert all(rows[name]["label"] is None for name in names[50:])
    assert all(rows[name]["split"] == "test" for name in names[:4])
    assert each_group_in_one_split(rows)
    assert any("1 of its 51 rows name no image" in warning for warning in counts["warnings"])


def test_a_limit_is_taken_evenly_and_ignored_folders_are_left_out(extract, tmp_path):
    names = {"8703": 10, "0102": 30, "2204": 30, "antigos": 30}
    data = write_files(
        tmp_path / "data",
        {
            f"{label}/{n:03d}.jpg": picture(n + len(label) + int(label, 36) % 997)
            for label, many in names.items()
            for n in range(many)
        },
    )
    counts = extract(data, dataset="ncm", limit=12, ignore=["antigos"])
    assert counts["labels"] == {"8703": 4, "0102": 4, "2204": 4}


def test_only_train_images_are_augmented(extract, tmp_path):
    data = chest(tmp_path / "data", 20)
    extract(data, augment="G3", views=2)
    rows = rows_of(tmp_path / "store", data).values()
    train = {row["content_id"] for row in rows if row["split"] == "train"}
    plain, views = vectors_of(tmp_path / "store"), vectors_of(tmp_path / "store", "G3@0")
    assert 0 < len(train) < len({row["content_id"] for row in rows})
    assert set(views) == {(content, view) for content in train for view in (1, 2)}
    for (content, _), row in views.items():
        assert np.abs(np.subtract(row["avg"], plain[content, 0]["avg"])).max() > 1e-4
    write_files(data, {f"NORMAL/IM-{n:04d}-0001.jpeg": picture(n) for n in range(500, 510)})
    extract(data, augment="G3", views=2)
    grown = vectors_of(tmp_path / "store", "G3@0")
    assert set(views) < set(grown)
    assert all(grown[name]["avg"] == row["avg"] for name, row in views.items())


def test_a_second_extractor_has_its_own_table(extract, tmp_path):
    data = chest(tmp_path / "data", 8)
    extract(data)
    other = extract(data, resize="letterbox")
    assert (other["without"], other["computed"]) == (32, 31)
    assert len(Store.open(str(tmp_path / "store")).extractors()) == 2
    rows = rows_of(tmp_path / "store", data)
    assert len(rows) == 32


def test_too_many_errors_fail_after_they_are_written(extract, tmp_path):
    good = {f"nvazio/{n}.jpg": picture(n) for n in range(4)}
    bad = {f"vazio/{n}.jpg": f"no picture {n}".encode() for n in range(4)}
    data = write_files(tmp_path / "data", good | bad)
    with pytest.raises(InputError, match=r"4 of 8 new images .*--max-errors 0\.05"):
        extract(data, dataset="vazios")
    assert len(rows_of(tmp_path / "store")) == 8
    assert extract(data, dataset="vazios")["known"] == 8


@pytest.mark.parametrize(
    ("dataset", "files", "options", "expected"),
    [
        ("chest_xray", ["normal/1.jpg", "pneumonia/1.jpg"], {}, ("'normal'", "'NORMAL'")),
        ("chest_xray", ["val/NORMAL/1.jpg", "val/PNEUMONIA/1.jpg"], {}, ("no train folder",)),
        ("chest_xray", ["train/NORMAL/1.jpg", "extra/1.jpg"], {}, ("'extra'", "train")),
        ("vazios", ["vazios/1.jpg"], {}, ("'vazios'", "'vazio'", "--ignore")),
        (None, ["vazio/1.jpg"], {}, ("--dataset is needed",)),
        ("cloths", ["vazio/1.jpg"], {}, ("cloths", "chest_xray, vazios, ncm")),
        ("vazios", ["vazio/1.jpg"], {"labels": "none.csv"}, ("--labels none.csv",)),
    ],
)
def test_wrong_input_is_a_one_line_error(tmp_path, dataset, files, options, expected):
    data = write_files(tmp_path / "data", dict.fromkeys(files, picture(1)))
    settings = ExtractSettings(
        data=str(data), store=f"{tmp_path}/store", dataset=dataset, **options
    )
    with pytest.raises(InputError) as caught:
        execute(settings, extract_images)
    assert all(words in str(caught.value) for words in expected), str(caught.value)
    assert "\n" not in str(caught.value)
    assert Store.find(f"{tmp_path}/store") is None
