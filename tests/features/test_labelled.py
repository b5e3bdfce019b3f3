"""Labelled vectors: train and val rows ordered by content, one per content and view."""

import pickle

import numpy as np
import pytest
from stores import content_id, make_store

from visao_ray.datasets.vazios import VAZIOS
from visao_ray.features.labelled import load_vectors
from visao_ray.store.join import pin, plain_vectors

COUNT, WIDTH = 400, 3
EXTRACTOR, RECIPE = "tiny-00000000", "G1@0"


def images():
    splits = ("train", "train", "train", "val", "test")
    return [
        {
            "key": f"{number}.jpg",
            "label": ("nvazio", "vazio")[number % 3 == 0],
            "split": splits[number // 4 % 5],
            "group": f"c{number // 4}",
        }
        for number in range(COUNT)
    ]


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    return {pool: rng.normal(size=(COUNT, WIDTH)).astype(np.float32) for pool in ("avg", "max")}


def load(store, recipe=RECIPE):
    return load_vectors(pin(store, "a", plain_vectors(EXTRACTOR), recipe), VAZIOS)


@pytest.fixture(scope="module")
def store(vectors, tmp_path_factory):
    views = [{pool: values + view for pool, values in vectors.items()} for view in (10, 20)]
    place = tmp_path_factory.mktemp("stores") / "store"
    return make_store(
        place, VAZIOS, images(), vectors, EXTRACTOR, augmented={RECIPE: views}, fragment_rows=90
    )


def numbers(split):
    chosen = [number for number, row in enumerate(images()) if row["split"] == split]
    return sorted(chosen, key=lambda number: content_id(f"{number}.jpg"))


def test_rows_are_train_with_its_views_then_val(store, vectors):
    summary, data = load(store)
    train, val = numbers("train"), numbers("val")
    assert summary.rows == data.rows == {"train": 3 * len(train), "val": len(val)}
    assert (summary.images, summary.views) == (len(train) + len(val), 2)
    data = pickle.loads(pickle.dumps(data))
    mapped = data.open()
    for pool, values in vectors.items():
        expected = [values[train], values[train] + 10, values[train] + 20, values[val]]
        np.testing.assert_array_equal(mapped.vectors[pool], np.concatenate(expected))
    assert data.views.tolist() == [0] * len(train) + [1] * len(train) + [2] * len(train) + [
        0
    ] * len(val)
    rows = images()
    for row, number in enumerate([*train, *train, *train, *val]):
        assert summary.classes[data.labels[row]] == rows[number]["label"]
        assert data.group_names[int(data.groups[row])].as_py() == rows[number]["group"]
    np.testing.assert_array_equal(data.train_rows(1), np.arange(2 * len(train)))
    np.testing.assert_array_equal(data.val_rows(), np.arange(3 * len(train), len(data.labels)))


def test_without_a_recipe_there_are_only_unaugmented_images(store):
    summary, data = load(store, None)
    assert summary.views == 0
    assert not data.views.any()
    assert data.rows["train"] == len(numbers("train"))


def test_views_that_are_missing_have_no_row(tmp_path, vectors):
    """Training uses only view 0 of an image that was added after the last augmentation."""
    views = [{pool: values + 10 for pool, values in vectors.items()}]
    place = tmp_path / "store"
    first, later = images()[:200], images()[200:]
    make_store(place, VAZIOS, first, vectors, EXTRACTOR, augmented={RECIPE: views})
    rest = {pool: values[200:] for pool, values in vectors.items()}
    _, data = load(make_store(place, VAZIOS, later, rest, EXTRACTOR))
    train = numbers("train")
    early = [number for number in train if number < 200]
    assert data.rows["train"] == len(train) + len(early)
    expected = np.concatenate([vectors["avg"][train], vectors["avg"][early] + 10])
    np.testing.assert_array_equal(data.open().vectors["avg"][: data.train], expected)


def test_a_content_counts_once_and_what_is_left_out_is_counted(tmp_path, vectors):
    rows = images()
    rows[1]["content"] = rows[0]["content"] = "twice"
    rows[1]["label"] = rows[0]["label"]
    rows[5]["content"] = rows[4]["content"] = "contradictory"
    rows[4]["label"], rows[5]["label"] = "vazio", "nvazio"
    rows[8]["group"] = None
    summary, data = load(make_store(tmp_path / "s", VAZIOS, rows, vectors, EXTRACTOR), None)
    assert data.rows["train"] == len(numbers("train")) - 3
    assert summary.left_out["have files with contradictory labels"] == 1
    assert "8.jpg" in data.group_names.to_pylist()


def test_a_sample_has_whole_groups_with_their_views(store):
    _, data = load(store)
    part = data.sample(80, seed=0)
    chosen = set(part.groups.tolist())
    whole = np.flatnonzero(np.isin(data.groups, list(chosen)))
    np.testing.assert_array_equal(part.labels, data.labels[whole])
    mapped, all_rows = part.open(), data.open()
    for pool in ("avg", "max"):
        np.testing.assert_array_equal(mapped.vectors[pool], all_rows.vectors[pool][whole])
    plain = np.count_nonzero(part.views == 0)
    assert abs(plain - 80) <= 8
    assert part.rows == {"train": 3 * (plain - part.rows["val"]), "val": part.rows["val"]}
    assert data.sample(10_000, seed=0) is data
