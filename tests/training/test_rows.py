"""The rows of train and val, from vectors and from pixels of a store."""

import pickle
import shutil

import numpy as np
import pyarrow as pa
import pytest
from job_runs import write_files
from stores import make_store

from visao_ray.core.errors import InputError
from visao_ray.datasets.registry import find_dataset
from visao_ray.features.labelled import load_vectors
from visao_ray.store.join import pin, plain_vectors, read_examples
from visao_ray.training.rows import ImageRows, image_rows, vector_rows

VAZIOS = find_dataset("vazios")
EXTRACTOR = "tiny-00000000"
LOADING = {"image_size": 32, "resize": "stretch", "seed": 7, "loaders": 1}
SPLITS = ("train", "train", "train", "val", "test")


def images_of(count):
    """Rows of a store with alternating classes and splits, and two images per group."""
    return [
        {
            "key": f"s3://scans/{number:03}.jpg",
            "label": ("nvazio", "vazio")[number % 2],
            "group": f"g{number // 2:03}",
            "split": SPLITS[number // 2 % len(SPLITS)],
        }
        for number in range(count)
    ]


def parts_of(store, run="one"):
    examples = read_examples(pin(store, run, None), ("train", "val"))
    return examples, *image_rows(examples, VAZIOS, store.uri, "G1", **LOADING)


def test_image_rows_do_not_depend_on_the_order_of_arrival(tmp_path):
    rows = images_of(40)
    shuffled = [rows[place] for place in np.random.default_rng(1).permutation(40)]
    one = make_store(tmp_path / "one", VAZIOS, rows)
    make_store(tmp_path / "two", VAZIOS, shuffled[:25])
    two = make_store(tmp_path / "two", VAZIOS, shuffled[25:])

    (_, classes, train, val), (_, others, train_2, val_2) = parts_of(one), parts_of(two)
    assert classes == others == ("nvazio", "vazio")
    expected = {row["key"]: row for row in rows}
    for split, part, other in (("train", train, train_2), ("val", val, val_2)):
        keys = part.keys.to_pylist()
        assert sorted(keys) == [row["key"] for row in rows if row["split"] == split]
        assert keys == other.keys.to_pylist()
        assert part.labels.dtype == np.int32
        np.testing.assert_array_equal(part.labels, other.labels)
        np.testing.assert_array_equal(part.groups, other.groups)
        assert [classes[label] for label in part.labels] == [expected[k]["label"] for k in keys]
        names = {
            number: expected[key]["group"] for number, key in zip(part.groups, keys, strict=True)
        }
        assert [names[number] for number in part.groups] == [expected[k]["group"] for k in keys]
        assert len(set(names.values())) == len(names)
        assert part.recipe == {"train": "G1", "val": "none"}[split]


def test_one_row_per_content_and_none_with_contradictory_labels(tmp_path):
    rows = images_of(40)
    copy = {**rows[0], "key": "s3://scans/copy.jpg", "content": rows[0]["key"]}
    contradicting = {**rows[1], "key": "s3://scans/other.jpg", "content": rows[1]["key"]}
    contradicting["label"] = rows[0]["label"]
    unlabelled = {**rows[2], "key": "s3://scans/new.jpg", "label": None}
    broken = {**rows[2], "key": "s3://scans/broken.jpg", "status": "error", "error": "truncated: …"}
    store = make_store(tmp_path / "store", VAZIOS, [*rows, copy, contradicting, unlabelled, broken])
    examples, _, train, val = parts_of(store)
    assert examples.conflicts == 1
    keys = {*train.keys.to_pylist(), *val.keys.to_pylist()}
    usable = {row["key"] for row in rows if row["split"] != "test"} - {rows[1]["key"]}
    assert keys == usable
    assert len(train.labels) + len(val.labels) == len(usable)


@pytest.mark.parametrize(
    ("split", "message"), [("train", "no train images"), ("val", "no val images")]
)
def test_a_missing_split(split, message, tmp_path):
    rows = [row for row in images_of(40) if row["split"] != split]
    store = make_store(tmp_path / "store", VAZIOS, rows)
    with pytest.raises(InputError, match=message):
        parts_of(store)


def test_vector_rows_are_those_of_their_images(tmp_path):
    rows = images_of(40)
    rng = np.random.default_rng(3)
    plain, first, second = (
        {name: rng.normal(size=(40, 5)).astype(np.float32) for name in ("avg", "max")}
        for _ in range(3)
    )
    store = make_store(tmp_path / "store", VAZIOS, rows, plain, augmented={"G1@0": [first, second]})
    snapshot = pin(store, "one", plain_vectors(EXTRACTOR), "G1@0")
    summary, vectors = load_vectors(snapshot, VAZIOS)
    for views, tables in ((None, (plain, first, second)), (1, (plain, first)), (0, (plain,))):
        train, val = pickle.loads(pickle.dumps(vector_rows(vectors, views)))
        for split, part, expected in (("train", train, tables), ("val", val, (plain,))):
            places = [place for place, row in enumerate(rows) if row["split"] == split]
            assert len(part.labels) == len(places) * len(expected)
            found = part.take(np.arange(len(part.labels)))
            assert found.keys() == {"avg", "max"}
            wanted = {
                table["avg"][place].tobytes(): (table["max"][place], rows[place]["label"])
                for table in expected
                for place in places
            }
            assert len(wanted) == len(part.labels)
            for average, maximum, label in zip(*found.values(), part.labels, strict=True):
                its_max, its_label = wanted.pop(average.tobytes())
                np.testing.assert_array_equal(maximum, its_max)
                assert summary.classes[label] == its_label
            steps = np.array([[3, 1], [0, 2]])
            streamed = list(part.stream(steps, np.zeros(2, np.int64)))
            for step, given in zip(steps, streamed, strict=True):
                np.testing.assert_array_equal(given["avg"], found["avg"][step])


def test_an_augmented_view_depends_on_seed_content_and_number(scans, tmp_path):
    files = sorted(scans.rglob("*.jpg"))[:2]
    copy = tmp_path / "elsewhere" / "renamed.jpg"
    copy.parent.mkdir()
    shutil.copy(files[0], copy)

    def rows(paths, **changes):
        digests = {files[0]: b"\1" * 31 + b"\0", copy: b"\1" * 31 + b"\0", files[1]: b"\2" * 32}
        return ImageRows(
            keys=pa.array([str(path) for path in paths]),
            contents=np.array([digests[path] for path in paths], "S32"),
            labels=np.zeros(len(paths), np.int32),
            groups=np.zeros(len(paths), np.int32),
            **{**LOADING, "recipe": "G1", **changes},
        )

    def load(found, view):
        return found._load(np.arange(len(found.labels)), np.full(len(found.labels), view))

    here, there = rows(files), rows([copy, files[1]])
    for view in (0, 1, 2):
        np.testing.assert_array_equal(load(here, view), load(there, view))
    assert load(here, 0).shape == (2, 32, 32, 3)
    assert load(here, 0).dtype == np.uint8
    np.testing.assert_array_equal(here.take(np.array([1, 0])), load(here, 0)[::-1])
    for one, other in ((load(here, 0), load(here, 1)), (load(here, 1), load(here, 2))):
        assert (one != other).any(axis=(1, 2, 3)).all()
    other_seed = load(rows(files, seed=8), 1)
    assert (load(here, 1) != other_seed).any(axis=(1, 2, 3)).all()


def test_a_deleted_image(tmp_path):
    root = write_files(tmp_path, {"a.jpg": b"no image"})
    rows = ImageRows(
        keys=pa.array([f"{root}/a.jpg", f"{root}/gone.jpg"]),
        contents=np.array([b"\1" * 32, b"\2" * 32], "S32"),
        labels=np.zeros(2, np.int32),
        groups=np.zeros(2, np.int32),
        **{**LOADING, "recipe": "none"},
    )
    for number, name in ((0, "a.jpg"), (1, "gone.jpg")):
        with pytest.raises(InputError, match=rf"{name}: could be read before, but not now"):
            rows.take(np.array([number]))
