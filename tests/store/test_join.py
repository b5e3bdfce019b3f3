"""What a run reads: pinned versions, one row per content, vectors at the right positions."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from stores import content_id, make_store

from visao_ray.core.errors import InputError
from visao_ray.datasets.registry import find_dataset
from visao_ray.store import join, schemas
from visao_ray.store.proof import ids
from visao_ray.store.store import Store
from visao_ray.store.table import write_fragments

VAZIOS = find_dataset("vazios")
TINY = "vectors/tiny-00000000/none"


def image(key: str, label: str | None = "vazio", split: str | None = "train", **columns):
    return {"key": key, "label": label, "split": split, **columns}


def store_of(place, rows, **options) -> Store:
    vectors = {"avg": np.arange(3 * len(rows), dtype=np.float32).reshape(-1, 3)}
    return make_store(place, VAZIOS, rows, vectors, **options)


def examples_of(store: Store, splits=None, labelled=True, results: str | None = TINY):
    return join.read_examples(join.pin(store, "run", results), splits, labelled)


def by_key(examples) -> dict[str, tuple]:
    columns = (examples.labels, examples.groups, examples.splits)
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return dict(zip(examples.keys.to_pylist(), rows, strict=True))


def test_a_resumed_run_reads_the_same_versions(place):
    store = store_of(place, [image("a"), image("b")])
    first = join.pin(store, "one", TINY)
    store_of(place, [image("c")])
    assert join.pin(store, "one", TINY) == first
    second = join.pin(store, "two", TINY)
    assert second.images.version > first.images.version
    assert (first.images.count(), second.images.count()) == (2, 3)
    assert join.pin(store, "three", TINY, as_of="one") == first
    assert store.images.tags()["run-three"] == first.images.version
    versions = first.to_json()["versions"]
    assert versions == {"images": first.images.version, TINY: first.results.version}
    with pytest.raises(InputError, match="--as-of nine: no run of that id has read images"):
        join.pin(store, "four", TINY, as_of="nine")


def test_missing_tables(tmp_path):
    store = store_of(tmp_path, [image("a")])
    with pytest.raises(InputError, match="has no vectors/other/none; it has vectors/tiny"):
        join.pin(store, "run", "vectors/other/none")
    with pytest.raises(InputError, match="has no vectors/tiny-00000000/G1@0"):
        join.pin(store, "run", TINY, "G1@0")


def test_one_row_per_content_in_the_order_of_contents(place):
    rows = [image(f"k{number}", group=f"g{number % 3}") for number in range(20)]
    rows += [image("a copy", content="k7", group="g1"), image("z copy", content="k3", group="g0")]
    examples = examples_of(store_of(place, rows, fragment_rows=6))
    assert len(examples) == 20
    assert examples.contents.tolist() == sorted(examples.contents.tolist())
    found = dict(zip(examples.keys.to_pylist(), examples.contents.tolist(), strict=True))
    assert found["a copy"] == content_id("k7")
    assert found["k3"] == content_id("k3")  # before "z copy"
    assert by_key(examples)["k5"] == ("vazio", "g2", "train")
    assert (examples.conflicts, examples.mixed, examples.without) == (0, 0, 0)


def test_contradictory_labels_are_left_out(tmp_path):
    rows = [
        image("a"),
        image("b", "nvazio", content="a"),
        image("c"),
        image("d", None, content="c"),
        image("e"),
    ]
    store = store_of(tmp_path, rows)
    examples = examples_of(store)
    assert set(by_key(examples)) == {"c", "e"}
    assert examples.conflicts == 1
    everything = examples_of(store, labelled=False)  # a missing label contradicts no other label
    assert set(by_key(everything)) == {"c", "e"}
    assert everything.conflicts == 1


def test_a_content_in_more_than_one_split_belongs_to_test_before_val_before_train(tmp_path):
    rows = [
        image("a", split="train"),
        image("b", split="test", content="a"),
        image("c", split="train"),
        image("d", split="val", content="c"),
        image("e", split="train"),
        image("f", split=None),
    ]
    store = store_of(tmp_path, rows)
    examples = examples_of(store)
    assert {key: row[2] for key, row in by_key(examples).items()} == {
        "a": "test",
        "c": "val",
        "e": "train",
        "f": None,
    }
    assert examples.mixed == 2
    assert set(by_key(examples_of(store, ["train"]))) == {"e"}
    assert set(by_key(examples_of(store, ["train", "test"]))) == {"a", "e"}


def test_unusable_images_are_left_out(tmp_path):
    rows = [
        image("ok"),
        image("unlabelled", None),
        image("broken", status=schemas.ERROR),
        image("gone", status=schemas.MISSING),
        image("unread", status=schemas.UNREAD),
    ]
    store = store_of(tmp_path, rows)
    assert set(by_key(examples_of(store))) == {"ok"}
    assert set(by_key(examples_of(store, labelled=False))) == {"ok", "unlabelled"}


def test_images_without_results_are_counted(tmp_path):
    store = store_of(tmp_path, [image("a"), image("b")])
    make_store(tmp_path, VAZIOS, [image("c")])  # without results
    examples = examples_of(store)
    assert (set(by_key(examples)), examples.without) == ({"a", "b"}, 1)
    pixels = examples_of(store, results=None)
    assert (len(pixels), pixels.without) == (3, 0)


def test_verdicts_are_applied(place, owner):
    store = store_of(place, [image(key) for key in "abcd"])
    times = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4, 5)]
    decisions = [
        ("a", "relabel", "nvazio", times[1]),
        ("b", "drop", None, times[2]),
        ("c", "drop", None, times[0]),
        ("c", "keep", None, times[4]),  # the latest counts
        ("x", "drop", None, times[3]),
    ]
    columns = list(zip(*decisions, strict=True))
    nothing = pa.nulls(len(decisions), pa.string())
    table = pa.table(
        [*columns[:3], nothing, columns[3], nothing],
        names=["key", "verdict", "label", "source", "when", "note"],
    ).select(schemas.VERDICTS.names)
    with store.writing(owner("people")) as writer:
        writer.ensure(store.verdicts, schemas.VERDICTS)
        rows = table.cast(schemas.VERDICTS)
        writer.append(store.verdicts, write_fragments(store.verdicts.uri, schemas.VERDICTS, rows))
    examples = examples_of(store)
    assert {key: row[0] for key, row in by_key(examples).items()} == {
        "a": "nvazio",
        "c": "vazio",
        "d": "vazio",
    }


def test_vectors_come_with_their_positions(place):
    rows = [image(f"k{number}") for number in range(30)]
    augmented = {"G1@0": [{"avg": np.full((30, 3), view, np.float32)} for view in (1, 2)]}
    store = store_of(place, rows, fragment_rows=7, augmented=augmented)
    examples = examples_of(store)
    chosen = examples.take(np.arange(0, 30, 3))
    assert chosen.keys.to_pylist() == examples.keys.to_pylist()[::3]
    snapshot = join.pin(store, "run", TINY, "G1@0")
    found = np.zeros((10, 3), np.float32)
    count = 0
    for places, vectors, views in join.scan_vectors(snapshot.results, chosen.contents, ["avg"]):
        found[places] = vectors["avg"]
        count += len(places)
        assert set(views.to_pylist()) == {0}
    assert count == 10
    numbers = [int(key[1:]) for key in chosen.keys.to_pylist()]
    assert (found == [[3 * number, 3 * number + 1, 3 * number + 2] for number in numbers]).all()

    seen = []
    for places, vectors, views in join.scan_vectors(snapshot.augmented, chosen.contents, ["avg"]):
        assert (vectors["avg"][:, 0] == views.to_numpy()).all()
        seen += zip(places.tolist(), views.to_pylist(), strict=True)
    assert sorted(seen) == [(place, view) for place in range(10) for view in (1, 2)]


def test_an_empty_store(tmp_path):
    store = store_of(tmp_path, [image("a", None)])
    examples = examples_of(store)
    assert (len(examples), examples.conflicts, examples.mixed) == (0, 0, 0)
    snapshot = join.pin(store, "run", TINY)
    assert list(join.scan_vectors(snapshot.results, examples.contents, ["avg"])) == []
    assert len(ids(snapshot.results)) == 1
