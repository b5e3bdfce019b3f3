"""The images to check first: order, CSV and counts, compared with plain Python."""

import csv
from datetime import UTC, datetime

import numpy as np
import pytest
from stores import content_id, make_store, results_table

from visao_ray.core.errors import InputError
from visao_ray.core.lease import Owner
from visao_ray.core.resources import remotely
from visao_ray.core.storage import locate
from visao_ray.datasets.ncm import NCM
from visao_ray.datasets.spec import Dataset
from visao_ray.evaluation.worklist import (
    FIRST,
    DecisionRule,
    Request,
    read_known_images,
    write_worklist,
)
from visao_ray.store import schemas
from visao_ray.store.table import write_fragments

HEADINGS = tuple(f"{heading:04}" for heading in range(868))
THREE = Dataset("parts", ("bolt", "gun", "nut"), positive="gun")


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def predicted_store(place, dataset, rows, probability):
    """Make a store with these predictions for the first rows."""
    store = make_store(place, dataset, rows, fragment_rows=64)
    schema = schemas.results({"probability": probability.shape[1]}, {"model": "m"})
    table = store.predictions("m")
    contents = [content_id(row.get("content", row["key"])) for row in rows]
    with store.writing(Owner.here(job="test", run="predict")) as writer:
        writer.ensure(table, schema)
        for start in range(0, len(probability), 50):
            places = range(start, min(start + 50, len(probability)))
            data = results_table(
                schema, [contents[one] for one in places], 0, {"probability": probability}, places
            )
            writer.append(table, write_fragments(table.uri, schema, data))
    return store, table


def work(store, table, decision, out, known=None, **choice):
    import ray

    choice = {"since": None, "batch": None, "vectors": False} | choice
    request = Request(store.images.latest(), table.latest(), decision, **choice)
    if known is None:
        known = ray.put(read_known_images(store.images.latest(), None))
    csv_file = out / "predictions.csv"
    worklist = remotely(write_worklist, request, known, locate(str(csv_file)))
    with open(csv_file, newline="") as file:
        return worklist, list(csv.DictReader(file))


def test_many_classes_by_how_uncertain_the_model_is(tmp_path, ray_cluster):
    rng = np.random.default_rng(2)
    probability = softmax(rng.normal(size=(150, 868)) * rng.uniform(1, 4, (150, 1)))
    rows = [{"key": f'/scans/{number:03}, "new".jpg'} for number in range(150)]
    store, table = predicted_store(tmp_path / "store", NCM, rows, probability)
    worklist, listed = work(store, table, DecisionRule(HEADINGS, None), tmp_path)
    assert [row["key"] for row in listed] == [row["key"] for row in rows]
    highest = probability.max(axis=1)
    order = sorted(range(150), key=lambda row: highest[row])
    ranks = {row["key"]: int(row["rank"]) for row in listed}
    assert [ranks[rows[row]["key"]] for row in order] == list(range(1, 151))
    for row, listed_row in zip(probability, listed, strict=True):
        top = np.argsort(-row, kind="stable")[:5]
        classes = [listed_row[f"class_{place}"] for place in range(1, 6)]
        assert classes == [HEADINGS[c] for c in top]
        values = [float(listed_row[f"probability_{place}"]) for place in range(1, 6)]
        np.testing.assert_allclose(values, row[top], rtol=1e-6)
        assert listed_row["predicted"] == HEADINGS[top[0]]
    assert not any(name.startswith("decision") for name in listed[0])
    assert [row["key"] for row in worklist.first] == [rows[row]["key"] for row in order[:FIRST]]
    assert worklist.states == {"other": 150, "positive": 0, "near": 0, "error": 0, "no_vectors": 0}
    assert sum(worklist.histogram["counts"]["different images"]) == 150
    assert sum(worklist.classes.values()) == 150


def test_a_positive_class_among_three(tmp_path, ray_cluster):
    """The order follows its probability, not the most probable class."""
    probability = np.array(
        [[0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0.7, 0.1, 0.2]], np.float32
    )
    rows = [{"key": f"/{number}.jpg"} for number in range(4)]
    store, table = predicted_store(tmp_path / "store", THREE, rows, probability)
    worklist, listed = work(store, table, DecisionRule(THREE.classes, "gun"), tmp_path)
    assert [row["rank"] for row in listed] == ["2", "1", "3", "4"]
    assert [row["predicted"] for row in listed] == ["bolt", "gun", "nut", "bolt"]
    assert [row["state"] for row in worklist.first] == ["positive", "near", "near", "other"]
    assert [row["probability"] for row in worklist.first] == pytest.approx([0.8, 0.4, 0.3, 0.1])
    assert "decision_at_0.5" not in listed[0]


def test_counts_and_choices(tmp_path, ray_cluster):
    """Files of the same content, broken and missing files, two days and two batches."""
    import ray

    days = [datetime(2026, 11, day, 12, tzinfo=UTC) for day in (1, 2)]
    rows = [
        {"key": f"/{number:02}.jpg", "first_seen": days[number % 2], "batch": "ab"[number // 20]}
        for number in range(40)
    ]
    rows[7]["content"] = rows[6]["key"]  # the same bytes under another name
    probability = softmax(np.random.default_rng(0).normal(size=(30, 3)))
    rows += [
        {"key": "/broken.jpg", "status": "error", "error": "truncated: no end", "batch": "b"},
        {"key": "/locked.jpg", "status": "unread", "error": "PermissionError: no", "batch": "b"},
        {"key": "/missing.jpg", "status": "missing"},
    ]
    unique = np.delete(np.arange(30), 7)
    store, table = predicted_store(
        tmp_path / "store", THREE, [rows[i] for i in unique] + rows[30:], probability[unique]
    )
    make_store(tmp_path / "store", THREE, [rows[7]])
    decision = DecisionRule(THREE.classes, "gun")
    images, results = store.images.latest(), table.latest()

    # All files are new; the ten without a row had no vectors.
    empty = ray.put(read_known_images(images.__class__(images.uri, 1), None))
    worklist, listed = work(store, table, decision, tmp_path, empty, vectors=True)
    assert worklist.counts == {
        "listed": 42,
        "known": 0,
        "new": 42,
        "predicted": 30,
        "errors": 2,
        "without_vectors": 10,
        "errors_by_reason": {"truncated": 1, "PermissionError": 1},
    }
    assert len(listed) == 42
    by_key = {row["key"]: row for row in listed}
    names = ("/06.jpg", "/07.jpg")
    first, second = ({**by_key[name], "key": "", "first_seen": ""} for name in names)
    assert first == second
    assert by_key["/broken.jpg"]["error"] == "truncated: no end"
    assert by_key["/35.jpg"]["error"].startswith("no_vectors")

    # Later, files with a row and broken files need no work.
    known = ray.put(read_known_images(images, results))
    worklist, listed = work(store, table, decision, tmp_path, known, vectors=True)
    assert (worklist.counts["known"], worklist.counts["new"]) == (32, 10)
    assert worklist.counts["without_vectors"] == 10
    assert {row["key"] for row in listed} == {f"/{number}.jpg" for number in range(30, 40)}
    # For a model of pixels, they could not be read.
    worklist, listed = work(store, table, decision, tmp_path, known)
    assert worklist.counts["errors_by_reason"] == {"not_read": 10}

    since = datetime(2026, 11, 2, tzinfo=UTC)
    worklist, listed = work(store, table, decision, tmp_path, known, since=since)
    assert {row["key"] for row in listed} == {f"/{number:02}.jpg" for number in range(1, 40, 2)}
    ranks = sorted(int(row["rank"]) for row in listed if row["rank"])
    assert ranks == list(range(1, 16))  # of the listed ones alone
    worklist, listed = work(store, table, decision, tmp_path, known, since=since, batch="b")
    assert {row["key"] for row in listed} == {f"/{number}.jpg" for number in range(21, 40, 2)}


def test_a_model_that_diverged(tmp_path, ray_cluster):
    probability = np.full((3, 3), np.nan, np.float32)
    rows = [{"key": f"/{number}.jpg"} for number in range(3)]
    store, table = predicted_store(tmp_path / "store", THREE, rows, probability)
    with pytest.raises(InputError, match="probabilities hold NaN or infinity; the model diverged"):
        work(store, table, DecisionRule(THREE.classes, "gun"), tmp_path)
