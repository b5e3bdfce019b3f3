"""The audit job: from the store of an extraction to a page, tables and a gate."""

import json
import shutil

import numpy as np
import pyarrow.dataset as pads
import pytest
from job_runs import run_job
from numpy_engine import CELLS
from PIL import Image
from stores import make_store

from visao_ray.core.errors import InputError
from visao_ray.core.run import execute
from visao_ray.datasets.registry import find_dataset
from visao_ray.quality.audit import audit_store
from visao_ray.quality.settings import AuditSettings
from visao_ray.store import schemas
from visao_ray.store.store import Store


@pytest.fixture(scope="module")
def audited(scans, tmp_path_factory):
    """A store of 40 scans with train and test, and its audit with a gate, twice.

    Test has an identical copy and a cropped one of two scans of train; a third one is mirrored in
    train under the other class.
    """
    from conftest import join_ray

    join_ray()
    import ray

    folder = tmp_path_factory.mktemp("audited")
    data = folder / "data"
    files = sorted(scans.rglob("*.jpg"))
    for place, file in enumerate(files):
        split = "test" if place % 4 == 0 else "train"
        target = data / split / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    train = sorted((data / "train").rglob("*.jpg"))
    shutil.copy(train[0], data / "test" / train[0].parent.name / "identical.jpg")
    image = Image.open(train[1])
    width, height = image.size
    image.crop((width // 40, height // 40, width, height)).save(
        data / "test" / train[1].parent.name / "cropped.png"
    )
    other = {"vazio": "nvazio", "nvazio": "vazio"}[train[2].parent.name]
    Image.open(train[2]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        data / "train" / other / "mirrored.png"
    )
    (data / "train" / other / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    environment = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    store = folder / "store"
    run = run_job(
        "extract", f"--data={data}", f"--store={store}", "--dataset=vazios", "--max-errors=0.1",
        "--image-size=224", *CELLS, environment=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    command = ("audit", f"--store={store}", "--fail-on", "leak,conflict", f"--out={folder / 'out'}")
    first = run_job(*command, environment=environment)
    return folder, first, run_job(*command, environment=environment)


def read(folder, name):
    return pads.dataset(folder / "out" / name, format="parquet").to_table().to_pylist()


def name(key: str) -> str:
    return key.rpartition("/")[2]


def test_the_gate_ends_with_status_1_and_one_line_also_when_it_is_finished(audited):
    folder, first, again = audited
    for run in (first, again):
        assert run.returncode == 1
        (line,) = [text for text in run.stderr.splitlines() if text.startswith("error:")]
        assert "leak: 2 of 12 test files (17 %)" in line
        assert "conflict: 2 of 44 labelled files" in line
        assert "audit.html" in line
    assert "already finished" in again.stdout
    result = json.loads((folder / "out/result.json").read_text())
    assert result["status"] == "failed"
    assert result["failure"] in first.stderr
    assert result["metrics"]["test"]["leak"] == {"value": 2 / 12, "n": 12}
    assert result["counts"]["flagged"]["errors"] == 1


def test_every_file_has_a_score_and_a_flag_of_each_check(audited):
    folder, *_ = audited
    rows = {name(row["key"]): row for row in read(folder, "findings")}
    assert len(rows) == 44
    assert [key for key, row in rows.items() if row["is_errors"]] == ["broken.jpg"]
    assert {key for key, row in rows.items() if row["is_leak"]} == {"identical.jpg", "cropped.png"}
    assert "mirrored.png" in {key for key, row in rows.items() if row["is_conflict"]}
    for row in rows.values():
        for column, value in row.items():
            if column.endswith("_score"):
                assert 0 <= value <= 1
                assert f"is_{column.removesuffix('_score')}" in row


def test_pairs_name_both_files_and_their_similarity(audited):
    folder, *_ = audited
    near = [row for row in read(folder, "pairs") if row["check"] == "near_duplicates"]
    assert {"cropped.png", "mirrored.png"} <= {
        name(row[side]) for row in near for side in ("first", "second")
    }
    assert all(0.99 < row["similarity"] <= 1 for row in near)
    assert {row["note"] for row in near if "mirrored.png" in row["first"] + row["second"]} == {
        "mirrored"
    }


def test_the_page_shows_pairs_and_needs_no_network(audited):
    folder, *_ = audited
    page = (folder / "out/audit.html").read_text()
    assert "<h1>Leaks between splits: 2 of 12 test files (17 %)" in page
    assert "identical files: test and train" in page
    assert page.count("data:image/jpeg;base64,") >= 6
    assert "The gate failed" in page
    assert "http" not in page.replace("http-equiv", "")


def test_quick_reads_only_the_table_of_files(audited, tmp_path, ray_cluster):
    folder, *_ = audited
    settings = AuditSettings(store=str(folder / "store"), out=str(tmp_path / "out"), quick=True)
    result = execute(settings, audit_store)
    assert result["status"] == "finished"
    assert set(result["details"]["skipped"]) == {
        "near_duplicates", "exposure", "sharpness", "outliers", "shift"
    }  # fmt: skip
    assert result["counts"]["flagged"]["leak"] == 1
    assert any("leak: 1 of 12 test files" in line for line in result["warnings"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fail_on": ["leek"]}, "--fail-on leek: unknown check; there are leak, conflict"),
        ({"fail_on": "shift", "quick": True}, "--fail-on shift: cannot be checked: left out by"),
        ({"extractor": "other"}, "--extractor other: "),
        ({"store": "/nowhere"}, "--store /nowhere: there is no store"),
    ],
)
def test_wrong_settings_are_one_line(audited, tmp_path, ray_cluster, options, message):
    folder, *_ = audited
    given = {"store": str(folder / "store"), "out": str(tmp_path / "out"), **options}
    with pytest.raises(InputError, match=message):
        execute(AuditSettings(**given), audit_store)


def test_vectors_of_an_earlier_release_have_no_small_copies(audited, tmp_path, ray_cluster):
    """The store stays readable; the checks of pictures say why they are left out."""
    rows = [{"key": f"{number}", "split": "train", "label": "vazio"} for number in range(30)]
    vectors = {"avg": np.random.default_rng(0).random((30, 4), np.float32)}
    place = tmp_path / "old"
    make_store(place, find_dataset("vazios"), rows, vectors)
    result = execute(AuditSettings(store=str(place), out=str(tmp_path / "out")), audit_store)
    assert "earlier release" in result["details"]["skipped"]["near_duplicates"]
    assert "outliers" in result["details"]["summaries"]
    store = Store.open(str(audited[0] / "store"))
    table = store.vectors(store.the_extractor(None)).latest()
    assert schemas.pictures(table.schema) == ["thumbnail", "sharpness"]
