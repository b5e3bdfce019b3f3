"""The store job: status, verification, compaction, clean-up and forgetting runs."""

import json
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from job_runs import run_job
from stores import content_id, make_store, results_table

from visao_ray.core.console import run_command
from visao_ray.core.lease import Lease, Owner
from visao_ray.datasets.registry import find_dataset
from visao_ray.store import schemas, table
from visao_ray.store.join import pin, plain_vectors
from visao_ray.store.operate import operate_store
from visao_ray.store.settings import StoreToolSettings
from visao_ray.store.store import Store

EXTRACTOR = "tiny-00000000"
VECTORS = plain_vectors(EXTRACTOR)
COUNT = 60
MINUTE = timedelta(minutes=1)


@pytest.fixture
def small(tmp_path) -> Store:
    """Return a valid store: 60 images in more than one fragment, 30 groups, a third unlabelled."""
    rows = [
        {
            "key": f"/scans/{number:03}.jpg",
            "label": ("vazio", "nvazio", None)[number % 3],
            "group": f"container {number // 2}",
            "split": ("train", "val", "test")[number // 2 % 3],
        }
        for number in range(COUNT)
    ]
    draw = np.random.default_rng(0)
    vectors = {"avg": draw.random((COUNT, 4), np.float32)}
    return make_store(tmp_path / "store", find_dataset("vazios"), rows, vectors, fragment_rows=10)


@pytest.fixture
def tool(ray_cluster, capsys) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the job here; it returns status, stdout and stderr."""

    def run(action: str, store: Store | Path, *more: str) -> tuple[int, str, str]:
        capsys.readouterr()
        uri = store.uri if isinstance(store, Store) else str(store)
        status = run_command(StoreToolSettings, operate_store, [action, *more, "--store", uri])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def status_of(tool, store) -> dict:
    code, out, _ = tool("status", store, "--json")
    assert code == 0
    return json.loads(out)


def add_rows(to: table.Table, rows: pa.Table) -> None:
    """Append rows without the writer, to simulate a fault."""
    at = to.latest()
    table.append(at, table.write_fragments(to.uri, at.schema, rows))


def test_status_of_an_extraction(store, scans, tool):
    found = status_of(tool, store)
    there = Store.open(str(store))
    (extractor,) = there.extractors()
    assert found["store"] == str(store)
    assert found["description"]["dataset"]["name"] == "vazios"
    assert found["description"]["seed"] == 45
    assert found["writer"] is None
    assert found["images"]["status"] == {"ok": 40}
    labels = {name: len(list((scans / name).rglob("*.jpg"))) for name in ("vazio", "nvazio")}
    splits = found["images"]["splits"]
    assert set(splits) <= {"train", "val", "test"}
    for label, count in labels.items():
        assert sum(split.get(label, 0) for split in splits.values()) == count
    coverage = {"views": 1, "images": 40, "of": 40, "errors": 0}
    assert found["results"][plain_vectors(extractor)] == coverage
    facts = found["tables"]["images"]
    assert (facts["rows"], facts["fragments"]) == (40, 1)
    assert facts["bytes"] == sum(
        file.stat().st_size for file in (store / "images.lance").rglob("*") if file.is_file()
    )
    assert facts["indexes"] == {"key": {"not_indexed": 0}, "content_id": {"not_indexed": 0}}


def test_status_for_people(small, tool):
    pin(small, "abcd1234", VECTORS)
    make_store(small.uri, find_dataset("vazios"), [{"key": "/scans/new.jpg", "label": "vazio"}])
    code, out, _ = tool("status", small)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["writer", "none"] in lines
    assert ["vazio", "10", "10", "0", "1", "21"] in lines
    assert ["no", "label", "0", "10", "10", "0", "20"] in lines
    assert ["all", "20", "20", "20", "1", "61"] in lines
    assert [VECTORS, "1", "60", "61", "98.4%", "0"] in lines
    assert ["run", "abcd1234", "images,", VECTORS] in lines
    table_lines = [line for line in out.splitlines() if " MB " in line]
    assert len({line.index(" MB ") for line in table_lines}) == 1  # columns are aligned


def test_status_names_the_writer_and_needs_no_lease(small, tool, capsys):
    owner = Owner.here(job="extract", run="feed0001")
    with Lease(small.location.join("lease"), owner):
        found = status_of(tool, small)
        assert found["writer"]["owner"] == {
            "host": owner.host,
            "pid": owner.pid,
            "job": "extract",
            "run": "feed0001",
        }
        code, out, _ = tool("status", small)
        assert code == 0
        assert str(owner) in out
        assert tool("verify", small)[0] == 0
        for action, more in (("compact", []), ("clean", []), ("forget", ["x"])):
            code, _, err = tool(action, small, *more)
            assert code == 2
            assert err.count("\n") == 1
            assert str(owner) in err


def test_a_killed_writer_holds_nothing(small, tool):
    process = subprocess.Popen(["true"])
    process.wait()
    owner = Owner(Owner.here("x", "x").host, process.pid, "extract", "gone")
    record = {"owner": vars(owner), "token": "t", "ttl": 30.0, "acquired": "then", "beat": 1}
    small.location.join("lease").write_bytes(json.dumps(record).encode())
    assert status_of(tool, small)["writer"] is None


def test_compact_joins_fragments_and_keeps_rows(small, tool):
    before = small.tables()[VECTORS].latest()
    rows = before.read(["content_id", "avg"]).sort_by("content_id")
    assert len(before.open().get_fragments()) == COUNT / 10
    code, out, _ = tool("compact", small)
    assert code == 0
    assert f"{VECTORS}: 6 fragments before, 1 now" in out
    after = small.tables()[VECTORS].latest()
    assert len(after.open().get_fragments()) == 1
    assert after.read(["content_id", "avg"]).sort_by("content_id").equals(rows)
    assert status_of(tool, small)["tables"][VECTORS]["indexes"] == {
        "content_id": {"not_indexed": 0}
    }


def test_clean_keeps_the_versions_of_a_run_until_it_is_forgotten(small, tool):
    snapshot = pin(small, "abcd1234", VECTORS)
    tool("compact", small)
    code, out, _ = tool("clean", small, "--older-than", "0d")
    assert code == 0
    assert "old versions" in out
    assert snapshot.results is not None
    assert snapshot.results.count() == COUNT  # its six files are still there
    assert status_of(tool, small)["runs"] == {"abcd1234": ["images", VECTORS]}

    code, out, _ = tool("forget", small, "abcd1234")
    assert code == 0
    assert f"run abcd1234 is forgotten: images, {VECTORS}" in out
    assert status_of(tool, small)["runs"] == {}
    assert snapshot.results.count() == COUNT  # not older than 14 days
    code, out, _ = tool("clean", small, "--older-than", "0d")
    assert code == 0
    assert "and 6 data files" in out
    with pytest.raises((OSError, ValueError)):
        snapshot.results.count()
    assert small.images.latest().count() == COUNT
    code, _, err = tool("forget", small, "abcd1234")
    assert code == 2
    assert "forget abcd1234: no run of that id" in err


def test_a_valid_store(store, small, tool):
    for valid in (store, small):
        code, out, _ = tool("verify", valid)
        assert (code, out.count("\n")) == (0, 1), out
        assert "nothing is missing" in out


def lose_vectors(store: Store) -> None:
    at = store.vectors(EXTRACTOR).latest()
    wanted = ", ".join(f"X'{content_id(f'/scans/00{n}.jpg').hex()}'" for n in range(3))
    at.open().delete(f"content_id IN ({wanted})")


def double_vectors(store: Store) -> None:
    to = store.vectors(EXTRACTOR)
    contents = [content_id(f"/scans/00{number}.jpg") for number in range(2)]
    vectors = {"avg": np.zeros((2, 4), np.float32)}
    add_rows(to, results_table(to.latest().schema, contents, 0, vectors, [0, 1]))


def lose_numbers(store: Store) -> None:
    to = store.vectors(EXTRACTOR)
    row = {"content_id": content_id("another"), "view": 0, "status": "ok"}
    add_rows(to, pa.Table.from_pylist([row], schema=to.latest().schema))


def double_image(store: Store) -> None:
    images = store.images.latest()
    add_rows(store.images, images.read(images.schema.names, "key = '/scans/007.jpg'"))


def set_image(column: str, value: str | None) -> Callable[[Store], None]:
    def change(store: Store) -> None:
        kind = pa.schema([schemas.IMAGES.field("key"), schemas.IMAGES.field(column)])
        row = pa.Table.from_pylist([{"key": "/scans/007.jpg", column: value}], schema=kind)
        table.merge(store.images.latest(), row)

    return change


def lose_file(store: Store) -> None:
    next(Path(store.vectors(EXTRACTOR).uri, "data").iterdir()).unlink()


def cut_file(store: Store) -> None:
    file = next(Path(store.images.uri, "data").iterdir())
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lose_vectors, f"{VECTORS}: 3 of 60 readable images have no row"),
        (double_vectors, f"{VECTORS}: 2 rows are duplicates"),
        (lose_numbers, f"{VECTORS}: 1 rows are ok and have no numbers"),
        (double_image, "images: 1 values of key are repeated, such as '/scans/007.jpg'"),
        (set_image("split", "test"), "images: 1 values of group are in more than one split"),
        (set_image("split", None), "images: 1 rows are readable and have no split"),
        (set_image("content_id", None), "images: 1 rows are readable and have no content_id"),
        (set_image("status", "lost"), "images: 1 rows have no valid status"),
        (set_image("status", "error"), "images: 1 rows are errors without a reason"),
        (lose_file, f"{VECTORS}: version 8 cannot be read"),
        (cut_file, "images: version 8 cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_store(damage, says, small, tool):
    damage(small)
    code, out, _ = tool("verify", small)
    assert code == 1
    (line,) = out.splitlines()
    assert line.startswith(f"problem: {says}"), line
    assert "/rust" not in line


def test_from_the_command_line(store, tmp_path, same_ray):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    copied = Store.open(str(copy))
    (extractor,) = copied.extractors()
    run = run_job("store", "status", "--store", str(copy), "--json", environment=same_ray)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["tables"][plain_vectors(extractor)]["rows"] > 0
    copied.vectors(extractor).latest().open().delete("view = 0")
    run = run_job("store", "verify", "--store", str(copy), environment=same_ray)
    assert run.returncode == 1
    assert "40 of 40 readable images have no row" in run.stdout
    run = run_job("store", "status", "--store", str(tmp_path / "none"))
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: --store {tmp_path}/none: there is no store")
    assert run.stderr.count("\n") == 1


def test_in_a_bucket(s3, tool, tmp_path):
    """All actions on a store in S3, and a lease whose holder was killed."""
    rows = [{"key": f"/scans/{number:03}.jpg", "split": "train"} for number in range(COUNT)]
    vectors = {"avg": np.ones((COUNT, 4), np.float32)}
    uri = f"{s3.uri}/{tmp_path.name}"
    store = make_store(uri, find_dataset("vazios"), rows, vectors, fragment_rows=20)
    pin(store, "abcd1234", VECTORS)
    with Lease(store.location.join("lease"), Owner.here(job="extract", run="feed0001")):
        record = store.location.join("lease").read_bytes()
        writer = status_of(tool, store)["writer"]
        assert writer["owner"]["run"] == "feed0001"
        assert abs(datetime.now(UTC) - datetime.fromisoformat(writer["seen"][:19] + "Z")) < MINUTE
    assert status_of(tool, store)["writer"] is None
    code, out, _ = tool("compact", store)
    assert code == 0
    assert f"{VECTORS}: 3 fragments before, 1 now" in out
    assert tool("verify", store)[0] == 0
    assert tool("forget", store, "abcd1234")[0] == 0
    found = status_of(tool, store)
    assert found["runs"] == {}
    assert found["tables"][VECTORS]["bytes"] == sum(
        info.size
        for info in store.location.filesystem.get_file_info(
            pafs.FileSelector(store.vectors(EXTRACTOR).location.path, recursive=True)
        )
        if info.type == pafs.FileType.File
    )
    store.location.join("lease").write_bytes(record)  # the lease of a killed holder
    assert status_of(tool, store)["writer"]["owner"]["run"] == "feed0001"
