"""Rows that are found by content and read by position, compared with a simple look-up."""

import numpy as np
import pytest
from stores import content_id, make_store

from visao_ray.datasets.vazios import VAZIOS
from visao_ray.store import schemas
from visao_ray.store.rows import find_rows, places_of, read_rows

ROWS = 700


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(4)
    rows = [{"key": f"/{number:04}.jpg"} for number in range(ROWS)]
    vectors = {"avg": rng.normal(size=(ROWS, 3)).astype(np.float32)}
    store = make_store(
        tmp_path_factory.mktemp("rows") / "store", VAZIOS, rows, vectors, fragment_rows=150
    )
    (name,) = store.extractors()
    there = store.vectors(name)
    # Some rows are deleted, so positions differ from those in the files.
    dataset = there.latest().open()
    gone = [content_id(f"/{number:04}.jpg").hex() for number in range(0, ROWS, 9)]
    dataset.delete(f"content_id IN ({','.join(f'''X'{one}' ''' for one in gone)})")
    return there.latest()


def sample(count, seed):
    numbers = np.random.default_rng(seed).choice(ROWS, count, replace=False)
    return np.sort(np.array([content_id(f"/{number:04}.jpg") for number in numbers], "S32"))


@pytest.mark.parametrize("count", [0, 1, 5, 80, 699])
@pytest.mark.parametrize("batch_rows", [7, 2048])
def test_the_rows_of_some_contents(table, count, batch_rows):
    contents = sample(count, count)
    everything = table.read(["content_id", "avg"]).to_pylist()
    wanted = set(contents.tolist())
    expected = [row for row in everything if row["content_id"].rstrip(b"\0") in wanted]
    rows = find_rows(table, contents, schemas.OK)
    assert len(rows) == len(expected) <= count
    assert (np.diff(rows) > 0).all()
    found = [
        row
        for batch in read_rows(table, rows, ["content_id", "avg"], batch_rows)
        for row in batch.to_pylist()
    ]
    assert found == expected
    assert all(
        len(batch) <= batch_rows for batch in read_rows(table, rows, ["content_id"], batch_rows)
    )
    assert not len(find_rows(table, contents, schemas.ERROR))


def test_sparse_and_dense_rows_are_read_alike(table):
    """Rows at both ends of the table and adjacent rows are read in different ways."""
    count = table.count()
    for rows in ([0, count - 1], [3, 4, 5, 6], [0, *range(100, 400)], list(range(count))):
        chosen = np.array(rows)
        read = [row for batch in read_rows(table, chosen, ["avg"], 32) for row in batch.to_pylist()]
        everything = table.read(["avg"]).to_pylist()
        assert read == [everything[row] for row in rows]


def test_places():
    contents = np.sort(np.array([b"b", b"d", b"f"], "S32"))
    ids = np.array([b"a", b"b", b"c", b"f", b"z", b"d"], "S32")
    assert places_of(ids, contents).tolist() == [-1, 0, -1, 2, -1, 1]
    assert places_of(ids, contents[:0]).tolist() == [-1] * 6
