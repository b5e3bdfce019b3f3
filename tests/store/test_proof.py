"""Missing and repeated rows are found, in any order of rows."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from stores import content_id, results_table

from visao_ray.core.storage import locate
from visao_ray.store import proof, schemas, table
from visao_ray.store.table import Table, TableVersion, write_fragments

VECTORS = schemas.results({"avg": 2}, {"backbone": "tiny"})


@pytest.fixture
def vectors(place) -> Table:
    found = Table(locate(f"{place}/vectors.lance"))
    found.create(VECTORS)
    return found


def add(at: TableVersion, names, view: int = 0, status: str = schemas.OK) -> TableVersion:
    """Append vectors of some contents; the first number counts the appends."""
    values = {"avg": np.full((len(names), 2), at.version, np.float32)}
    rows = results_table(
        VECTORS, [content_id(name) for name in names], view, values, range(len(names))
    )
    rows = rows.set_column(2, "status", pa.array([status] * len(names)))
    return table.append(at, write_fragments(at.uri, VECTORS, rows))


def images_of(place, names, status: str = schemas.OK) -> TableVersion:
    found = Table(locate(f"{place}/images.lance"))
    found.create(schemas.IMAGES)
    rows = [
        {"key": f"{status}/{number}", "content_id": content_id(name), "status": status}
        for number, name in enumerate(names)
    ]
    data = pa.Table.from_pylist(rows, schema=schemas.IMAGES)
    return table.append(found.latest(), write_fragments(found.uri, schemas.IMAGES, data))


def sorted_ids(names) -> list[bytes]:
    return sorted(content_id(name) for name in names)


def test_contents_without_results(place, vectors):
    images = images_of(place, ["a", "b", "c", "d", "a"])
    images = images_of(place, ["e"], schemas.MISSING)
    images = images_of(place, ["f"], schemas.ERROR)
    assert proof.contents_without(images, None, 1).tolist() == sorted_ids("abcd")
    at = add(vectors.latest(), ["a", "x"])
    at = add(at, ["b"], status=schemas.ERROR)
    assert proof.contents_without(images, at, 1).tolist() == sorted_ids("cd")
    assert proof.contents_without(images, at, 2).tolist() == sorted_ids("acd")
    at = add(at, ["a", "c"], view=1)
    assert proof.contents_without(images, at, 2).tolist() == sorted_ids("cd")
    at = add(at, ["c", "d"])
    assert proof.contents_without(images, at, 1).tolist() == []


def test_nothing_is_missing_in_an_empty_store(place, vectors):
    images = images_of(place, [])
    assert len(proof.contents_without(images, vectors.latest(), 1)) == 0
    assert proof.remove_repeated(vectors.latest()) == (vectors.latest(), 0)


def test_repeated_rows_are_removed_except_the_first(vectors):
    at = add(vectors.latest(), ["a", "b", "c"])  # 1
    first = at.version - 1
    at = add(at, ["a", "b"], view=1)
    at = add(at, ["c", "d"])
    at = add(at, ["a", "b", "c", "d"])  # all of them exist already
    after, removed = proof.remove_repeated(at)
    assert removed == 5
    rows = after.read(["content_id", "view", "avg"]).to_pylist()
    assert sorted((row["content_id"], row["view"]) for row in rows) == sorted(
        [(content_id(name), 0) for name in "abcd"] + [(content_id(name), 1) for name in "ab"]
    )
    made = {row["content_id"]: row["avg"][0] for row in rows if row["view"] == 0}
    assert made[content_id("a")] == made[content_id("c")] == first
    assert proof.remove_repeated(after) == (after, 0)
    assert after == vectors.latest()


def test_digests_with_zeros_at_the_end(place, vectors):
    """Numpy ignores zero bytes at the end of a bytes value; such digests must stay different."""
    ends = [bytes(31) + b"\1", b"\1" + bytes(31), bytes(32), b"\1" * 31 + b"\0", b"\1" * 32]
    column = pa.array(ends, schemas.CONTENT_ID)
    found = proof.as_bytes(column)
    assert [each.ljust(32, b"\0") for each in found.tolist()] == ends
    assert len(np.unique(found)) == len(ends)
    assert proof.as_bytes(column.slice(2, 2)).tolist() == found[2:4].tolist()
    assert proof.as_bytes(pa.chunked_array([column.slice(1), column])).tolist() == [
        *found[1:],
        *found,
    ]


def test_digests_sort_as_bytes_do():
    digests = [hashlib.sha256(bytes([number])).digest() for number in range(256)]
    found = np.sort(proof.as_bytes(pa.array(digests, schemas.CONTENT_ID)))
    assert [each.ljust(32, b"\0") for each in found.tolist()] == sorted(digests)
