"""Precision at k: equal to that of a plain loop without the query itself."""

import numpy as np
import pyarrow as pa
import pytest

from visao_ray.core import tables
from visao_ray.core.errors import InputError
from visao_ray.core.storage import locate
from visao_ray.evaluation import retrieval
from visao_ray.evaluation.retrieval import precision_at_k, retrieval_metrics

K = 20


def plain(queries, query_labels, gallery, gallery_labels, own, k):
    """The share of every query, by its definition."""
    shares = []
    for query, label, place in zip(queries, query_labels, own, strict=True):
        distances = [
            (float(np.square(np.subtract(query, other, dtype=np.float64)).sum()), position)
            for position, other in enumerate(gallery)
            if position != place
        ]
        nearest = [position for _, position in sorted(distances)[:k]]
        shares.append(np.mean([gallery_labels[position] == label for position in nearest]))
    return np.array(shares)


@pytest.fixture(scope="module")
def points():
    """Clusters far from the origin, where float32 errors are large, with many equal points."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, 300)
    vectors = rng.normal(0, 1, (5, 16))[labels] + rng.normal(0, 1.2, (300, 16)) + 50
    vectors[100:160] = vectors[40]
    return vectors.astype(np.float32), labels.astype(str)


@pytest.mark.parametrize("cells", [retrieval._CELLS, 1000])
@pytest.mark.parametrize("k", [1, K, 299, 1000])
def test_the_numbers_of_a_plain_loop(points, k, cells, monkeypatch):
    monkeypatch.setattr(retrieval, "_CELLS", cells)
    vectors, labels = points
    own = np.where(np.arange(120) % 3 == 0, -1, np.arange(30, 150))
    queries = vectors[30:150] + np.where(own < 0, 0.3, 0)[:, None].astype(np.float32)
    groups = np.arange(120) // 4
    asked = (queries, labels[30:150], vectors, labels, own)
    expected = plain(*asked, k)
    asked += (np.arange(300),)  # every image of the gallery is a group of its own
    found = precision_at_k(*asked, groups, k, replicates=200, seed=3)
    assert found["value"] == pytest.approx(expected.mean(), abs=1e-12)
    assert found["n"] == 120
    assert found["low"] < found["value"] < found["high"]
    assert precision_at_k(*asked, groups, k, replicates=200, seed=3) == found


def test_the_query_is_left_out():
    """Every image has a label of its own: as its own neighbour it would give 1 / k, or 1."""
    vectors = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
    labels, places = np.arange(30), np.arange(30)
    asked = (vectors, labels, vectors, labels)
    few = {"k": 1, "replicates": 100}
    assert precision_at_k(*asked, places, places, places, **few)["value"] == 0
    assert precision_at_k(*asked, places - 100, places, places, **few)["value"] == 1


def test_the_interval_counts_groups():
    """Hard images of the same containers widen the interval; a single group has none."""
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 200)
    vectors = (labels[:, None] + rng.normal(0, 0.8, (200, 3))).astype(np.float32)
    asked = (vectors, labels, vectors, labels, np.arange(200), np.arange(200))

    def width(groups):
        found = precision_at_k(*asked, groups, K)
        return found["high"] - found["low"]

    by_difficulty = np.argsort(np.argsort(plain(*asked[:5], K), kind="stable")) // 20
    assert width(by_difficulty) > 2 * width(np.arange(200))
    assert precision_at_k(*asked, np.zeros(200), K)["low"] is None


def test_a_table(tmp_path):
    rng = np.random.default_rng(5)
    splits = np.array(["train", "val", "test"])[rng.integers(0, 3, 90)]
    labels = np.array(["nvazio", "vazio"])[rng.integers(0, 2, 90)]
    vectors = ((labels == "vazio")[:, None] + rng.normal(0, 0.7, (90, 4))).astype(np.float32)
    keys = [f"{number:03d}" for number in rng.permutation(90)]
    columns = {"key": keys, "label": labels, "split": splits, "group": [*keys[:45], *[None] * 45]}
    columns |= {"content_id": keys, "embedding": tables.vectors(vectors), "model": ["m"] * 90}
    place = locate(str(tmp_path / "embeddings"))
    tables.write(place, pa.table(columns), tables.embeddings(4))
    found = retrieval_metrics(place, K, replicates=200)
    for split in ("val", "test"):
        gallery = np.flatnonzero((splits == "train") | (splits == split))
        own = np.flatnonzero(splits[gallery] == split)
        inside = gallery[own]
        asked = (vectors[inside], labels[inside], vectors[gallery], labels[gallery], own)
        assert found[split]["precision_at_20"]["value"] == pytest.approx(plain(*asked, K).mean())
        assert found[split]["precision_at_20"]["n"] == len(own)
    with pytest.raises(InputError, match="no embeddings table"):
        retrieval_metrics(locate(str(tmp_path / "none")))


def test_nothing_to_search():
    none = np.zeros((0, 3), np.float32)
    one = np.zeros((1, 3), np.float32)
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    empty, first = np.zeros(0, int), np.zeros(1, int)
    assert precision_at_k(none, empty, one, first, empty, first, empty) == nothing
    assert precision_at_k(one, first, one, first, first, first, first) == nothing
    broken, pair = np.array([[1, 2], [np.nan, 1]], np.float32), np.arange(2)
    with pytest.raises(InputError, match="1 of 2 embeddings hold NaN"):
        precision_at_k(broken, pair, broken, pair, pair, pair, pair)
