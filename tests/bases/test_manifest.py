"""The manifest of real folders: every file once, nobody in two splits, and errors that help."""

import io
import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pytest
from job_runs import write_files
from PIL import Image

from visao_ray import tables
from visao_ray.bases.manifest import make_manifest
from visao_ray.errors import InputError
from visao_ray.runs import execute
from visao_ray.settings import ManifestSettings
from visao_ray.storage import locate


def picture(number: int, image_format: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (9, 12), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, image_format)
    return target.getvalue()


def listed(data: Path, out: Path, dataset: str = "chest_xray", **options):
    """(result, manifest rows by key, errors rows by key) of a manifest job, checked as a whole."""
    settings = ManifestSettings(data=str(data), out=str(out), dataset=dataset, **options)
    result = execute(settings, make_manifest)
    schema = pads.dataset(out / "manifest").schema
    assert schema.names == tables.MANIFEST.names
    assert tables.open_table(locate(f"{out}/manifest"), "manifest").schema.names == schema.names
    rows = pads.dataset(out / "manifest").to_table().to_pylist()
    errors = []
    if (out / "errors").exists() and any((out / "errors").iterdir()):
        errors = pads.dataset(out / "errors").to_table().to_pylist()
    manifest = {row["key"]: row for row in rows}
    broken = {row["key"]: row for row in errors}
    counts = result["counts"]
    assert len(manifest) == len(rows) == counts["images"] == counts["ok"] + counts["errors"]
    assert len(broken) == len(errors) == counts["errors"]
    assert set(broken) == {key for key, row in manifest.items() if row["status"] == "error"}
    splits = Counter((row["split"], row["label"]) for row in rows if row["status"] == "ok")
    by_split = counts["by_split"].items()
    told = {(split, label): n for split, labels in by_split for label, n in labels.items()}
    assert told == dict(splits)
    return result, manifest, broken


def splits_by_group(manifest) -> dict[str, set[str]]:
    found = defaultdict(set)
    for row in manifest.values():
        if row["status"] == "ok":
            found[row["group"]].add(row["split"])
    return found


def chest_base(root: Path, patients: int = 60) -> dict[str, bytes]:
    """Two films a patient, as the real dataset names them, and one film in two patients' names."""
    files = {}
    for patient in range(patients):
        for film in range(2):
            files[f"PNEUMONIA/person{patient}_virus_{film}.jpeg"] = picture(2 * patient + film)
            files[f"NORMAL/IM-{patient:04d}-{film:04d}.jpeg"] = picture(9000 + 2 * patient + film)
    files["PNEUMONIA/person0_virus_0.jpeg"] = files["PNEUMONIA/person7_virus_1.jpeg"]
    files["NORMAL/IM-0003-0000.jpeg"] = files["PNEUMONIA/person7_virus_1.jpeg"]
    write_files(root, files)
    return files


ODD = {
    "PNEUMONIA/com espaço é ção.jpeg": picture(70_001),
    "PNEUMONIA/100%25.jpeg": picture(70_002),
    "PNEUMONIA/a#b?c=d&e+f.png": picture(70_003, "PNG"),
    "PNEUMONIA/deep/er/person1_virus_9.jpeg": picture(70_004),
    "NORMAL/quoted'\"name.jpeg": picture(70_005),
}
BAD = {
    "PNEUMONIA/.DS_Store": b"\x00\x00\x00\x01Bud1",
    "NORMAL/empty.jpeg": b"",
    "NORMAL/page.png": b"<html>not found</html>",
    "NORMAL/cut.jpeg": picture(70_006)[:40],
    "README.txt": b"stray",
    ".DS_Store": b"stray",
}
PASSED_OVER = {
    "__MACOSX/PNEUMONIA/person1.jpeg": picture(1),
    ".cache/x.jpeg": picture(1),
    "NORMAL/.thumbnails/x.jpeg": picture(1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("chest")
    files = chest_base(root)
    write_files(root, ODD | BAD | PASSED_OVER)
    os.symlink(root / "nowhere.jpeg", root / "NORMAL" / "dangling.jpeg")
    os.symlink("loop.jpeg", root / "NORMAL" / "loop.jpeg")
    os.symlink(root, root / "PNEUMONIA" / "around")
    return root, files | ODD


def test_every_file_of_a_bare_folder(folder, tmp_path, ray_cluster):
    root, good = folder
    result, manifest, errors = listed(root, tmp_path / "out", max_errors=1.0)
    links = {"NORMAL/dangling.jpeg", "NORMAL/loop.jpeg"}
    # The link to the folder itself makes names of the same files; it must end, and count them once.
    own = {key: row for key, row in manifest.items() if not key.startswith("PNEUMONIA/around/")}
    assert set(own) == set(good) | set(BAD) | links
    assert set(errors) & set(own) == set(BAD) | links
    for key, row in errors.items():
        assert row["message"], key
        assert row["stage"] in ("list", "download", "decode"), key
    assert errors["README.txt"]["error_type"] == "no_class"
    assert errors["NORMAL/empty.jpeg"]["stage"] == "decode"
    assert errors["NORMAL/dangling.jpeg"]["stage"] == "download"
    for key in good:
        row = manifest[key]
        assert row["status"] == "ok"
        assert row["dataset"] == "chest_xray"
        assert row["label"] == key.split("/")[0]
        assert row["bytes"] == len(good[key])
        assert (row["width"], row["height"], row["mode"]) == (12, 9, "L")
        assert locate(row["uri"]).read_bytes() == good[key]
    assert all(len(found) == 1 for found in splits_by_group(manifest).values())
    assert result["inputs"]["classes"] == ["NORMAL", "PNEUMONIA"]
    # Identical films tie their patients: the group is the first name, the split one for all.
    tied = ("person0_virus_1", "person7_virus_0")
    tied_rows = [manifest[f"PNEUMONIA/{name}.jpeg"] for name in tied]
    tied_rows.append(manifest["NORMAL/IM-0003-0001.jpeg"])
    assert {row["group"] for row in tied_rows} == {"IM-0003"}
    assert len({row["split"] for row in tied_rows}) == 1
    assert {row["split"] for row in own.values()} == {"train", "val", "test"}


def test_newcomers_move_nobody(tmp_path, ray_cluster):
    root = tmp_path / "data"
    chest_base(root, patients=40)
    _, before, _ = listed(root, tmp_path / "before")
    write_files(root, {f"NORMAL/IM-{n:04d}-0001.jpeg": picture(n) for n in range(500, 540)})
    _, after, _ = listed(root, tmp_path / "after")
    assert {key: after[key]["split"] for key in before} == {
        key: row["split"] for key, row in before.items()
    }
    assert len(after) == len(before) + 40


def test_folders_of_splits_are_honoured_and_leaks_told(tmp_path, ray_cluster):
    files = {}
    for patient in range(40):
        files[f"train/PNEUMONIA/person{patient}_bacteria_1.jpeg"] = picture(patient)
        files[f"train/NORMAL/IM-{patient:04d}-0001.jpeg"] = picture(1000 + patient)
    for patient in range(100, 104):
        files[f"test/PNEUMONIA/person{patient}_virus_1.jpeg"] = picture(patient)
        files[f"test/NORMAL/NORMAL2-IM-{patient:04d}-0001.jpeg"] = picture(1000 + patient)
    files["test/PNEUMONIA/person105_virus_1.jpeg"] = picture(3)  # the very film of person3
    data = write_files(tmp_path / "data", files)
    result, manifest, _ = listed(data, tmp_path / "out", val_share=0.3)
    assert {key: row["split"] for key, row in manifest.items() if key.startswith("test/")} == {
        key: "test" for key in files if key.startswith("test/")
    }
    carved = Counter(row["split"] for key, row in manifest.items() if key.startswith("train/"))
    assert set(carved) == {"train", "val"}
    assert result["counts"]["groups_in_several_splits"] == 1
    assert any("1 groups" in warning for warning in result["warnings"])


def test_groups_of_a_file_and_a_train_folder_alone(tmp_path, ray_cluster):
    files = {
        f"train/{label}/{n}.jpg": picture(n + 100 * position)
        for position, label in enumerate(("nvazio", "vazio"))
        for n in range(60)
    }
    data = write_files(tmp_path / "data", files)
    groups = tmp_path / "grupos é.csv"
    told = {key: f"{n // 2:03d}" for n, key in enumerate(files)}
    told["train/nvazio/1.jpg"] = "0"  # which is not "000"
    left_out = told.popitem()[0]
    groups.write_text("\n".join(["key,group", *(f'"{key}",{told[key]}' for key in told)]))
    result, manifest, _ = listed(data, tmp_path / "out", dataset="vazios", groups=str(groups))
    for key, group in told.items():
        assert manifest[key]["group"] == group
    assert manifest[left_out]["group"] == "59"  # by its name
    assert any("leaves out 1 of 120" in warning for warning in result["warnings"])
    assert all(len(found) == 1 for found in splits_by_group(manifest).values())
    assert {row["split"] for row in manifest.values()} == {"train", "val", "test"}


def test_a_limit_is_taken_evenly_and_ignored_folders_are_passed_over(tmp_path, ray_cluster):
    names = {"8703": 10, "0102": 30, "2204": 30, "antigos": 30}
    files = {
        f"{label}/{n:03d}.jpg": picture(n) for label, many in names.items() for n in range(many)
    }
    data = write_files(tmp_path / "data", files)
    options = {"dataset": "ncm", "limit": 12, "ignore": ["antigos"]}
    result, manifest, _ = listed(data, tmp_path / "out", **options)
    assert Counter(row["label"] for row in manifest.values()) == {"8703": 4, "0102": 4, "2204": 4}
    assert result["inputs"]["classes"] == ["0102", "2204", "8703"]


def test_too_many_errors_fail_after_they_are_written(tmp_path, ray_cluster):
    good = {f"nvazio/{n}.jpg": picture(n) for n in range(4)}
    bad = {f"vazio/{n}.jpg": b"no picture" for n in range(4)}
    data = write_files(tmp_path / "data", good | bad)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"4 of 8 images \(50\.0%\).*--max-errors 0\.05"):
        listed(data, out, dataset="vazios")
    assert tables.rows(locate(f"{out}/errors")) == 4
    assert not (out / "result.json").exists()
    result, *_ = listed(data, out, dataset="vazios", max_errors=0.5)  # goes on from there
    assert result["counts"]["errors"] == 4


X = picture(1)


@pytest.mark.parametrize(
    ("dataset", "files", "options", "says"),
    [
        ("vazios", ["vazio/1.jpg", "nvazio/1.jpg", "cheio/1.jpg"], {}, ("cheio", "--ignore")),
        ("vazios", ["vazio/1.jpg"], {}, ("missing nvazio",)),
        ("chest_xray", ["normal/1.jpg", "pneumonia/1.jpg"], {}, ("missing NORMAL", "normal")),
        ("chest_xray", ["val/NORMAL/1.jpg", "val/PNEUMONIA/1.jpg"], {}, ("no train folder",)),
        ("chest_xray", ["train/NORMAL/1.jpg", "extra/1.jpg"], {}, ("'extra'", "train")),
        ("ncm", ["8703/1.jpg", "870/1.jpg"], {}, ("'870'", r"\d{4}")),
        ("ncm", ["8703/1.jpg"], {}, ("at least two",)),
        ("vazios", ["1.jpg", "2.jpg"], {}, ("no class folders", "nvazio, vazio")),
        ("vazios", ["vazio/1.jpg", "nvazio/1.jpg"], {"groups": "none.csv"}, ("--groups none.csv",)),
    ],
)
def test_folders_that_do_not_fit(tmp_path, dataset, files, options, says):
    data = write_files(tmp_path / "data", dict.fromkeys(files, X))
    settings = ManifestSettings(data=str(data), out=f"{tmp_path}/out", dataset=dataset, **options)
    with pytest.raises(InputError) as caught:
        execute(settings, make_manifest)
    assert all(words in str(caught.value) for words in says), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("chave,grupo\na,b\n", "columns key,group"),
        ("", "groups.csv"),
        ("key,group\na,b,c\n", "groups.csv"),
        ("key,group\na,\n", "empty group"),
        ("key,group\na,b\na,c\n", "twice"),
        ("key,group\nvazio/9.jpg,b\n", "none of"),
    ],
)
def test_wrong_files_of_groups(tmp_path, content, says, ray_cluster):
    data = write_files(tmp_path / "data", {"vazio/1.jpg": X, "nvazio/1.jpg": X})
    (tmp_path / "groups.csv").write_text(content)
    settings = ManifestSettings(
        data=str(data), out=f"{tmp_path}/out", dataset="vazios", groups=f"{tmp_path}/groups.csv"
    )
    with pytest.raises(InputError) as caught:
        execute(settings, make_manifest)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
