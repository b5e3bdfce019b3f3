"""Preparation of training from a store, before workers start."""

import numpy as np
import pytest
from stores import make_store

from visao_ray.core.storage import locate
from visao_ray.datasets.registry import find_dataset
from visao_ray.models.settings import TrainSettings
from visao_ray.store.join import pin, plain_vectors
from visao_ray.training.preparation import count_files, prepare_images, prepare_vectors

VAZIOS = find_dataset("vazios")
EXTRACTOR = "tiny-00000000"
SPLITS = ("train", "train", "train", "val", "test")


def images_of(first, count):
    return [
        {
            "key": f"s3://scans/{number:03}.jpg",
            "label": ("nvazio", "vazio")[number % 2],
            "split": SPLITS[number // 2 % len(SPLITS)],
        }
        for number in range(first, first + count)
    ]


def vectors_of(count, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(3, 2, (count, 5)).astype(np.float32) for name in ("avg", "max")}


def prepare(store, run, out, recipe=None, as_of=None, **how):
    kind = TrainSettings.of_family("head")
    settings = kind(store=store.uri, out=str(out), recipe=recipe, **how)
    snapshot = pin(store, run, plain_vectors(EXTRACTOR), recipe, as_of)
    return prepare_vectors(settings, VAZIOS, EXTRACTOR, snapshot, locate(str(out)))


@pytest.mark.parametrize(("how", "tables"), [({}, 3), ({"views": 1}, 2)], ids=str)
def test_statistics_are_of_the_train_rows_that_are_used(how, tables, tmp_path):
    rows = images_of(0, 40)
    made = [vectors_of(40, seed) for seed in range(3)]
    store = make_store(tmp_path / "s", VAZIOS, rows, made[0], augmented={"G1@0": made[1:]})
    prepared, (train, val) = prepare(store, "one", tmp_path / "out", "G1@0", **how)
    chosen = [place for place, row in enumerate(rows) if row["split"] == "train"]
    assert prepared.rows == {"train": tables * len(chosen), "val": 8}
    assert (len(train.labels), len(val.labels)) == (tables * len(chosen), 8)
    assert prepared.spec.shape.rows == len(train.labels)
    for pool, stats in prepared.spec.shape.stats.items():
        values = np.concatenate([one[pool][chosen] for one in made[:tables]]).astype(np.float64)
        np.testing.assert_allclose(stats.mean, values.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(stats.deviation, values.std(axis=0), rtol=1e-5)
    metadata = prepared.spec.metadata
    assert (metadata.extractor, metadata.width) == (EXTRACTOR, 5)
    assert metadata.features == {"backbone": "tiny"}
    assert prepared.warnings == []


def test_an_earlier_run_is_repeated_although_the_store_has_grown(tmp_path):
    rows, more = images_of(0, 40), images_of(40, 20)
    store = make_store(tmp_path / "s", VAZIOS, rows, vectors_of(40, 0))
    _, (train, val) = prepare(store, "one", tmp_path / "1")
    make_store(tmp_path / "s", VAZIOS, more, vectors_of(20, 1))
    for name, how, changed in (
        ("one", {}, False),  # resumes
        ("two", {"as_of": "one"}, False),
        ("three", {"as_of": "two"}, False),
        ("four", {}, True),
    ):
        prepared, (now, val_now) = prepare(store, name, tmp_path / name, **how)
        assert prepared.rows == {"train": 36 if changed else 24, "val": 12 if changed else 8}
        if not changed:
            np.testing.assert_array_equal(now.labels, train.labels)
            numbers = np.arange(24)
            for pool, values in now.take(numbers).items():
                np.testing.assert_array_equal(values, train.take(numbers)[pool])
            np.testing.assert_array_equal(val_now.labels, val.labels)


def test_warnings_about_images_that_are_not_used(tmp_path):
    rows = images_of(0, 40)
    contradicting = {**rows[0], "key": "s3://scans/z.jpg", "content": rows[0]["key"]}
    contradicting["label"] = rows[1]["label"]
    unread = {**rows[2], "key": "s3://scans/u.jpg", "status": "unread", "error": "OSError: gone"}
    broken = [
        {**rows[2], "key": f"s3://scans/b{n}.jpg", "status": "error", "error": "truncated: at 12"}
        for n in range(2)
    ]
    store = make_store(tmp_path / "s", VAZIOS, [*rows, contradicting], vectors_of(41, 0))
    make_store(tmp_path / "s", VAZIOS, [*images_of(40, 3), unread, *broken])  # no vectors
    warning = "1 images have files with contradictory labels: they are left out"
    prepared, _ = prepare(store, "one", tmp_path / "out")
    assert prepared.rows == {"train": 23, "val": 8}
    assert prepared.warnings == [
        warning,
        "3 images have no vectors of this extractor: they are left out",
    ]
    kind = TrainSettings.of_family("simple_cnn")
    settings = kind(store=store.uri, out=str(tmp_path / "cnn"))
    snapshot = pin(store, "two", None)
    prepared, (train, _) = prepare_images(
        settings, VAZIOS, 1, snapshot, locate(str(tmp_path / "cnn"))
    )
    assert prepared.rows == {"train": 26, "val": 8}
    assert prepared.warnings == [warning]
    assert rows[0]["key"] not in train.keys.to_pylist()
    counts = count_files(snapshot.images)
    assert counts == {
        "images": 47,
        "ok": 44,
        "errors": 3,
        "errors_by_reason": {"truncated": 2, "OSError": 1},
    }
