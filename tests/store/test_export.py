"""Exports: pyarrow and DuckDB read the rows of the store, in files of the chosen size."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from job_runs import OWN_RAY, ROOT, run_job
from s3_proxy import proxy
from s3_server import free_ports
from stores import content_id, make_store

from visao_ray.core.errors import InputError
from visao_ray.core.lease import Owner
from visao_ray.core.run import execute
from visao_ray.core.storage import locate
from visao_ray.datasets.registry import find_dataset
from visao_ray.store import schemas, table
from visao_ray.store.export import Selection, export_table, plan_parts, read_part, write_part
from visao_ray.store.settings import ExportSettings
from visao_ray.store.store import Store

ROWS = 900
WIDTH = 16
VAZIOS = find_dataset("vazios")


def images(count: int, first: int = 0) -> list[dict]:
    """Return rows of images; every tenth has the content of the previous one."""
    return [
        {
            "key": f"/scans/{number:05}.jpg",
            "label": ("vazio", "nvazio", None)[number % 3],
            "group": f"container {number // 4}",
            "split": ("train", "val", "test")[number // 4 % 3],
            "content": f"film {number - (number % 10 == 9)}",
        }
        for number in range(first, first + count)
    ]


def vectors(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.random((count, WIDTH), np.float32) for name in ("avg", "max")}


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Store:
    """Return a store with more than one fragment and one row with an error."""
    place = tmp_path_factory.mktemp("many") / "store"
    return make_store(place, VAZIOS, images(ROWS), vectors(ROWS), fragment_rows=200)


def add_error(store: Store, text: str) -> None:
    """Add a row with an error to the vectors."""
    results = store.vectors("tiny-00000000")
    schema = results.latest().schema
    row = dict.fromkeys(schema.names) | {
        "content_id": content_id(text),
        "view": 0,
        "status": "error",
        "error_type": "UnidentifiedImageError",
        "message": "cannot be decoded",
    }
    fragments = table.write_fragments(results.uri, schema, pa.Table.from_pylist([row], schema))
    table.append(results.latest(), fragments)


def export(store: Store | Path, out: Path, table: str = "vectors", **more) -> tuple[dict, pa.Table]:
    uri = store.uri if isinstance(store, Store) else str(store)
    result = execute(ExportSettings(store=uri, out=str(out), table=table, **more), export_table)
    return result, pads.dataset(out / table).to_table()


def rows_of(found: pa.Table, *key: str) -> dict:
    rows = {tuple(row[name] for name in key): row for row in found.to_pylist()}
    assert len(rows) == found.num_rows
    return rows


def test_every_row_with_its_image(store, ray_cluster, tmp_path):
    result, found = export(store, tmp_path / "out", join=True)
    there = Store.open(str(store))
    (extractor,) = there.extractors()
    files = there.images.latest().read(schemas.IMAGES.names).to_pylist()
    results = there.vectors(extractor).latest()
    by_content = {row["content_id"]: row for row in results.read(results.schema.names).to_pylist()}
    rows = rows_of(found, "key")
    assert len(rows) == 40
    for file in files:
        row = rows[(file["key"],)]
        data = Path(file["key"]).read_bytes()
        assert row["content_id"] == hashlib.sha256(data).hexdigest()
        assert (row["label"], row["group"], row["split"]) == (
            file["label"],
            file["group"],
            file["split"],
        )
        assert (row["image_status"], row["status"], row["view"]) == ("ok", "ok", 0)
        vector = by_content[file["content_id"]]
        assert (row["avg"], row["max"]) == (vector["avg"], vector["max"])
    assert found.schema.field("avg").type == pa.list_(pa.float32(), 8)
    assert result["counts"] == {
        "rows": len(by_content),
        "exported": 40,
        "files": 1,
        "bytes": (tmp_path / "out/vectors/part-00000.parquet").stat().st_size,
    }
    versions = {"images": there.images.latest().version}
    versions[f"vectors/{extractor}/none"] = results.version
    assert result["inputs"] == {"store": str(store), "versions": versions}


@pytest.mark.parametrize("name", ["images", "groups"])
def test_tables_of_their_own(name, store, ray_cluster, tmp_path):
    result, found = export(store, tmp_path / "out", name)
    there = Store.open(str(store)).tables()[name].latest()
    expected = there.read(there.schema.names)
    assert result["counts"]["exported"] == found.num_rows == expected.num_rows > 0
    for column in expected.schema.names:
        values = expected[column].to_pylist()
        values = [value.hex() if isinstance(value, bytes) else value for value in values]
        assert found[column].to_pylist() == values


def test_a_content_in_two_files_is_two_rows(many, ray_cluster, tmp_path):
    result, found = export(many, tmp_path / "out", join=True)
    contents = {row["content"] for row in images(ROWS)}
    assert result["counts"]["rows"] == len(contents) == ROWS * 9 // 10
    rows = rows_of(found, "key")
    assert len(rows) == ROWS
    for number in range(9, ROWS, 10):
        pair = [rows[(f"/scans/{one:05}.jpg",)] for one in (number - 1, number)]
        assert pair[0]["avg"] == pair[1]["avg"]
        assert pair[0]["label"] != pair[1]["label"]
    plain, alone = export(many, tmp_path / "alone")
    assert plain["counts"]["exported"] == alone.num_rows == len(contents)


def test_conditions_and_splits(many, ray_cluster, tmp_path):
    expected = {
        row["key"] for row in images(ROWS) if row["label"] == "vazio" and row["split"] != "train"
    }
    more = {"where": "label = 'vazio'", "split": ["val", "test"]}
    _, found = export(many, tmp_path / "joined", join=True, **more)
    assert set(found["key"].to_pylist()) == expected
    _, found = export(many, tmp_path / "images", "images", **more)
    assert set(found["key"].to_pylist()) == expected
    result, found = export(many, tmp_path / "numbers", where="avg[1] > 0.75")
    assert 0 < result["counts"]["rows"] < ROWS / 2
    assert all(vector[0] > 0.75 for vector in found["avg"].to_pylist())


def test_errors_are_rows_without_vectors(tmp_path, ray_cluster):
    store = make_store(tmp_path / "store", VAZIOS, images(20), vectors(20))
    add_error(store, "a broken film")
    result, found = export(store, tmp_path / "out")
    (row,) = found.filter(pa.compute.equal(found["status"], "error")).to_pylist()
    assert row["content_id"] == content_id("a broken film").hex()
    assert row["avg"] is None
    assert row["message"] == "cannot be decoded"
    assert result["counts"]["exported"] == 19


def test_verdicts_with_their_images(tmp_path, ray_cluster):
    store = make_store(tmp_path / "store", VAZIOS, images(20))
    rows = [
        {"key": "/scans/00003.jpg", "verdict": "relabel", "label": "nvazio", "source": "it's me"},
        {"key": "/scans/00007.jpg", "verdict": "drop", "source": "x"},
    ]
    with store.writing(Owner.here("test", "verdicts")) as writer:
        writer.ensure(store.verdicts, schemas.VERDICTS)
        data = pa.Table.from_pylist(rows, schema=schemas.VERDICTS)
        writer.append(
            store.verdicts, table.write_fragments(store.verdicts.uri, schemas.VERDICTS, data)
        )
    _, found = export(store, tmp_path / "out", "verdicts", join=True)
    first = rows_of(found, "key")[("/scans/00003.jpg",)]
    assert (first["image_label"], first["label"], first["verdict"]) == (
        "vazio",
        "nvazio",
        "relabel",
    )
    assert first["content_id"] == content_id("film 3").hex()
    assert found.num_rows == 2


def selections(store: Store) -> dict[str, Selection]:
    results, files = store.vectors("tiny-00000000").latest(), store.images.latest()
    return {
        "all": Selection(results),
        "some": Selection(results, "avg[1] > 0.5 AND max[2] < 0.9"),
        "joined": Selection(results, None, files, "split = 'train'"),
    }


@pytest.mark.parametrize("name", ["all", "some", "joined"])
def test_the_rows_are_divided_into_files(name, many, tmp_path):
    selection = selections(many)[name]
    (whole,) = plan_parts(selection)
    expected = pa.concat_tables([batch for _, batch in read_part(whole, selection)])
    size = 20_000
    parts = plan_parts(selection, size)
    assert parts == plan_parts(selection, size)
    places = [(tmp_path / part.name, part) for part in parts]
    for file, part in places:
        target, scratch = locate(str(file)), locate(str(tmp_path / "work" / part.name))
        rows, held = write_part(part, selection, target, scratch)
        assert held == file.stat().st_size
        assert rows == pq.read_metadata(file).num_rows
        assert size / 2 < held < size * 2
    assert len(parts) > 1
    assert pads.dataset(sorted(tmp_path.glob("*.parquet"))).to_table().equals(expected)
    counts = [sum(rows for _, _, rows in part.ranges) for part in parts]
    assert all(abs(one - other) <= 1 for one, other in pairwise(counts))


def test_an_export_can_be_repeated_at_the_versions_of_a_run(tmp_path, ray_cluster):
    store = make_store(tmp_path / "store", VAZIOS, images(50), vectors(50), fragment_rows=20)
    first, before = export(store, tmp_path / "first", join=True)
    make_store(tmp_path / "store", VAZIOS, images(10, 50), vectors(10, 1))
    _, now = export(store, tmp_path / "now", join=True)
    _, again = export(store, tmp_path / "again", join=True, as_of=first["run"])
    assert again.equals(before)
    assert now.num_rows == before.num_rows + 10
    with pytest.raises(InputError, match="--as-of 12345678: no run of that id"):
        export(store, tmp_path / "wrong", join=True, as_of="12345678")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"where": "labl = 'vazio'"}, "--where labl = 'vazio': .*labl.*content_id, view"),
        ({"where": "label = 'vazio'"}, "No field named label.*columns: content_id"),
        ({"where": "avg ="}, "--where avg =: .*Expected"),
        ({"join": True, "where": "label > 3"}, "one of the two tables"),
        ({"extractor": "resnet"}, "--extractor resnet: .*tiny-00000000"),
        ({"recipe": "G1@0"}, "has no vectors/tiny-00000000/G1@0"),
        ({"table": "verdicts"}, "has no verdicts"),
        ({"table": "predictions"}, "has no predictions yet"),
        ({"table": "predictions", "model": "m"}, "has no predictions/m"),
    ],
    ids=str,
)
def test_what_is_not_there(options, says, many, ray_cluster, tmp_path):
    with pytest.raises(InputError, match=says) as caught:
        export(many, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert "/rust/" not in str(caught.value)


def test_duckdb_reads_it(store, ray_cluster, tmp_path):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed: it is no dependency")
    export(store, tmp_path / "out", join=True)
    query = (
        f"SELECT label, count(*), avg(avg[1]) FROM '{tmp_path}/out/vectors/*.parquet' GROUP BY 1"
    )
    rows = duckdb.sql(query).fetchall()
    assert sum(count for _, count, _ in rows) == 40


@pytest.mark.faults
def test_a_killed_export_leaves_no_half_file(s3, tmp_path):
    """The export is killed while it writes a file; repeated, it reads the tagged versions."""
    place = f"{s3.uri}/{tmp_path.name}"
    make_store(f"{place}/store", VAZIOS, images(60), vectors(60), fragment_rows=25)
    arguments = ["--store", f"{place}/store", "--table", "vectors", "--out", f"{place}/out"]
    (port,) = free_ports(1)
    with proxy(port, s3.port, tmp_path) as faults, faults.paused("PUT", r"/part-00000\.parquet$"):
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        process = subprocess.Popen(
            [sys.executable, "jobs/export.py", *arguments],
            cwd=ROOT,
            env=os.environ | OWN_RAY | endpoint | {"PYTHONPATH": str(ROOT)},
        )
        (held,) = faults.wait_until_held(120)
        assert "/work/" in held
        process.kill()
        process.wait()
    out = locate(f"{place}/out")
    assert not list(out.join("vectors").files())
    assert not out.join("result.json").exists()
    make_store(f"{place}/store", VAZIOS, images(40, 60), vectors(40, 1))
    again = run_job("export", *arguments)
    assert again.returncode == 0, again.stderr
    assert [file.path.rsplit("/", 1)[1] for file in out.join("vectors").files()] == [
        "part-00000.parquet"
    ]
    result = json.loads(out.join("result.json").read_bytes())
    found = pads.dataset(out.join("vectors").path, filesystem=out.filesystem).to_table()
    assert result["counts"]["exported"] == found.num_rows == 54
    assert not list(out.join("work").files())
