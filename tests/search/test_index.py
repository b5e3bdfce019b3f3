"""A search index follows its store: what is new, dropped or relabelled is in the next query."""

import csv
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import join_ray
from html_page import Page
from job_runs import run_job
from stores import content_id, make_store

from visao_ray.core.errors import InputError
from visao_ray.core.lease import Owner
from visao_ray.core.run import execute
from visao_ray.core.settings import from_values
from visao_ray.datasets.vazios import VAZIOS
from visao_ray.features.settings import ExtractSettings
from visao_ray.jobs import indexed
from visao_ray.quality.settings import VerdictsSettings
from visao_ray.search.index import SIZES, Sizes, index_name, space_of, update_index
from visao_ray.search.job import search_store
from visao_ray.search.neighbours import Neighbours
from visao_ray.search.settings import SearchSettings
from visao_ray.search.spaces import find_space
from visao_ray.store.store import Store

LABELS = ("nvazio", "vazio")


def run(place, out, action, **given):
    values = {"action": action, "store": str(place), "out": str(out), "vectors": "avg", **given}
    return execute(from_values(SearchSettings, values), search_store)


def points(count, seed, width=8):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def rows_of(first, count, **given):
    return [
        {
            "key": f"{number:05d}.png",
            "label": LABELS[number % 2],
            "group": f"g{number // 2}",
            "split": "train",
            **given,
        }
        for number in range(first, first + count)
    ]


def add(place, first, vectors, **given):
    both = {"avg": vectors, "max": vectors[:, ::-1].copy()}
    return make_store(place, VAZIOS, rows_of(first, len(vectors), **given), both)


def update(place, space="avg", sizes=SIZES):
    """Update an index as the job does, without the job around it."""
    store = Store.open(str(place))
    found = find_space(store, space)
    with store.writing(Owner.here(job="test", run="index")) as writer:
        updated = update_index(SimpleNamespace(say=print), writer, found, sizes)
        return updated, writer.version(store.index(index_name(found)))


def numbers(found):
    return [int(key[:5]) for key in found["key"].to_pylist()]


def exact(vectors, query, k, keep=None):
    apart = np.linalg.norm(vectors.astype(np.float64) - query, axis=1)
    if keep is not None:
        apart = np.where(keep, apart, np.inf)
    return np.argsort(apart, kind="stable")[:k].tolist()


def test_a_small_index_is_exact_and_filtered(tmp_path, ray_cluster):
    vectors = points(60, 1)
    add(tmp_path, 0, vectors, batch="old")
    updated, at = update(tmp_path)
    assert (updated.rows, updated.added, updated.removed, updated.changed) == (60, 60, 0, 0)
    neighbours = Neighbours(at)
    query = vectors[7]
    found = neighbours.nearest(query, 10)
    assert numbers(found) == exact(vectors, query, 10)
    expected = np.linalg.norm(vectors[numbers(found)] - query, axis=1)
    np.testing.assert_allclose(found["distance"].to_numpy(), expected, atol=1e-5)
    own = content_id("00007.png")
    assert numbers(neighbours.nearest(query, 10, content=own)) == exact(vectors, query, 11)[1:]
    others = np.arange(60) // 2 != 3
    found = neighbours.nearest(query, 10, content=own, group="g3")
    assert numbers(found) == exact(vectors, query, 10, others)
    odd = np.arange(60) % 2 == 1
    found = neighbours.nearest(query, 10, "label = 'vazio' AND batch = 'old'")
    assert numbers(found) == exact(vectors, query, 10, odd)
    assert neighbours.nearest(query, 10, "batch = 'new'").num_rows == 0
    with pytest.raises(InputError, match="--where size > 3: "):
        neighbours.nearest(query, 10, "size > 3")
    assert space_of(at) == find_space(Store.open(str(tmp_path)), "avg")


def test_both_pools_are_one_vector(tmp_path, ray_cluster):
    vectors = points(30, 2)
    add(tmp_path, 0, vectors)
    _, at = update(tmp_path, "both")
    neighbours = Neighbours(at)
    assert neighbours.width == 16
    query = np.concatenate([vectors[3], vectors[3, ::-1]])
    assert numbers(neighbours.nearest(query, 5)) == exact(vectors, vectors[3], 5)


def test_an_update_writes_only_what_changed(tmp_path, ray_cluster):
    """New images, a new label, a dropped image; then nothing."""
    vectors = points(80, 3)
    add(tmp_path / "s", 0, vectors[:60])
    update(tmp_path / "s")
    add(tmp_path / "s", 60, vectors[60:], batch="new")
    file = tmp_path / "decisions.csv"
    file.write_text("key,verdict,label\n00004.png,drop,\n00005.png,relabel,nvazio\n")
    settings = VerdictsSettings(store=str(tmp_path / "s"), file=str(file), out=str(tmp_path / "v"))
    result = execute(settings, indexed.record_verdicts)
    (counts,) = result["counts"]["indexes"].values()
    assert counts == {"rows": 79, "added": 20, "removed": 1, "changed": 1}
    updated, at = update(tmp_path / "s")
    assert (updated.added, updated.removed, updated.changed) == (0, 0, 0)
    neighbours = Neighbours(at)
    keep = np.arange(80) != 4
    assert numbers(neighbours.nearest(vectors[4], 10)) == exact(vectors, vectors[4], 10, keep)
    labels = neighbours.nearest(vectors[5], 1)["label"].to_pylist()
    assert labels == ["nvazio"]
    file.write_text("key,verdict,label\n00004.png,keep,\n00005.png,keep,\n")
    execute(settings.model_copy(update={"out": str(tmp_path / "undone")}), indexed.record_verdicts)
    neighbours = Neighbours(Store.open(str(tmp_path / "s")).index(name_of(tmp_path / "s")).latest())
    assert numbers(neighbours.nearest(vectors[4], 10)) == exact(vectors, vectors[4], 10)
    assert neighbours.nearest(vectors[5], 1)["label"].to_pylist() == ["vazio"]


def name_of(place):
    return index_name(find_space(Store.open(str(place)), "avg"))


def test_recall_stays_after_twenty_updates(tmp_path, ray_cluster):
    """With the index of a large store, whose parts are merged in between."""
    sizes = Sizes(indexed_from=2000, partition_rows=100, most_parts=5)
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(40, 16))
    vectors = (centres[rng.integers(0, 40, 4000)] + 0.3 * rng.normal(size=(4000, 16))).astype(
        np.float32
    )
    add(tmp_path, 0, vectors[:2000])

    def recall(at):
        neighbours = Neighbours(at)
        hits = 0
        for query in vectors[rng.integers(0, at.count(), 40)]:
            right = set(exact(vectors[: at.count()], query, 10))
            hits += len(right.intersection(numbers(neighbours.nearest(query, 10))))
        return hits / 400

    first = recall(update(tmp_path, sizes=sizes)[1])
    assert first > 0.97
    for start in range(2000, 4000, 100):
        add(tmp_path, start, vectors[start : start + 100])
        _, at = update(tmp_path, sizes=sizes)
    assert at.count() == 4000
    dataset = at.open()
    parts = [len(one.segments) for one in dataset.describe_indices() if one.name == "vector_idx"]
    assert parts[0] <= 5
    assert dataset.stats.index_stats("vector_idx")["num_unindexed_rows"] == 0
    assert recall(at) >= first - 0.02


def rows_in(out):
    return list(csv.DictReader((out / "neighbours.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def searched(store, scans, tiny_backbone, tmp_path_factory, _ray_at_end):
    """A store of scans with an index; then six unlabelled scans arrive."""
    join_ray()
    root = tmp_path_factory.mktemp("searched")
    place = root / "store"
    shutil.copytree(store, place)
    first = run(place, root / "built", "build")
    data = root / "data"
    (data / "arrived").mkdir(parents=True)
    for number, file in enumerate(sorted((scans / "vazio").iterdir())[:6]):
        (data / "arrived" / f"{number}.jpg").write_bytes(file.read_bytes() + b"\0")
    extract = ExtractSettings(
        data=str(data), store=str(place), out=str(root / "extract"), weights=tiny_backbone,
        batch="night",
    )  # fmt: skip
    grown = execute(extract, indexed.extract_images)
    return root, place, first, grown


def test_extract_updates_the_index(searched):
    _, _, first, grown = searched
    assert first["counts"]["added"] == 40
    (counts,) = grown["counts"]["indexes"].values()
    assert counts == {"rows": 46, "added": 6, "removed": 0, "changed": 0}


def test_a_key_and_its_file_have_the_same_neighbours(searched, scans, tiny_backbone):
    root, place, _, _ = searched
    file = sorted((scans / "nvazio").iterdir())[3]
    given = {"weights": tiny_backbone, "k": 7}
    by_key = run(place, root / "by_key", "query", key=[str(file)], **given)
    run(place, root / "by_file", "query", file=[str(file)], **given)
    tables = [rows_in(root / name) for name in ("by_key", "by_file")]
    assert by_key["counts"] == {"queries": 1, "rows": 46, "neighbours": 7}
    assert [row["key"] for row in tables[0]] == [row["key"] for row in tables[1]]
    assert str(file) not in {row["key"] for row in tables[0]}
    np.testing.assert_allclose(*[[float(row["distance"]) for row in one] for one in tables], 1e-4)
    assert [row["rank"] for row in tables[0]] == [str(rank) for rank in range(1, 8)]
    page = Page((root / "by_key" / "neighbours.html").read_text())
    assert "Of 46 images, those that are most similar to" in page.text


def test_a_copy_that_arrived_is_the_nearest(searched, scans):
    root, place, _, _ = searched
    file = sorted((scans / "vazio").iterdir())[2]
    run(place, root / "night", "query", key=[str(file)], where="batch = 'night'", k=3)
    rows = rows_in(root / "night")
    assert len(rows) == 3
    assert rows[0]["key"].endswith("arrived/2.jpg")
    assert float(rows[0]["distance"]) == pytest.approx(0, abs=1e-4)
    assert {row["batch"] for row in rows} == {"night"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"key": ["none.png"]}, "--key none.png: the store has no such image"),
        ({"file": ["none.png"]}, "--file none.png: cannot be read: "),
        ({"file": [__file__]}, f"--file {__file__}: "),
        ({"file": [__file__], "weights": ["random"]}, "--file: the vectors were made by tiny"),
        ({"key": ["a"], "vectors": "max"}, "--vectors max: has no index yet; jobs/search.py build"),
    ],
)
def test_queries_that_cannot_be_answered(searched, tiny_backbone, given, says, tmp_path):
    with pytest.raises(InputError, match=re.escape(says)):
        run(searched[1], tmp_path / "out", "query", **{"weights": [tiny_backbone], **given})


def test_a_query_needs_an_image(tmp_path):
    done = run_job("search", "query", "--store", str(tmp_path), "--vectors", "avg")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --key is missing: ")
