"""Checks on the table of files: leaks, conflicts, duplicates, rare classes, sizes, errors."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from stores import make_store

from visao_ray.core.lease import Owner
from visao_ray.datasets.registry import find_dataset
from visao_ray.quality.check import percent
from visao_ray.quality.checks.conflict import find_conflicts
from visao_ray.quality.checks.duplicates import find_duplicates
from visao_ray.quality.checks.errors import find_errors
from visao_ray.quality.checks.exposure import find_exposure
from visao_ray.quality.checks.imbalance import find_imbalance
from visao_ray.quality.checks.leak import find_leaks
from visao_ray.quality.checks.near_duplicates import find_near_duplicates
from visao_ray.quality.checks.outliers import find_outliers
from visao_ray.quality.checks.sharpness import find_blurred
from visao_ray.quality.checks.shift import find_shifts
from visao_ray.quality.checks.size import find_odd_sizes
from visao_ray.quality.copies import Copies
from visao_ray.quality.evidence import Evidence, Pictures, Vectors
from visao_ray.quality.files import read_files
from visao_ray.store import schemas, table
from visao_ray.store.join import pin

VAZIOS = find_dataset("vazios")


def evidence_of(place, rows, verdicts=(), near=None) -> Evidence:
    """Return the evidence of a store with these rows of images."""
    store = make_store(place, VAZIOS, rows)
    if verdicts:
        with store.writing(Owner.here(job="test", run="verdicts")) as writer:
            writer.ensure(store.verdicts, schemas.VERDICTS)
            data = pa.Table.from_pylist(
                [{"when": datetime.now(UTC), **verdict} for verdict in verdicts],
                schema=schemas.VERDICTS,
            )
            writer.append(
                store.verdicts, table.write_fragments(store.verdicts.uri, schemas.VERDICTS, data)
            )
    files = read_files(pin(store, "audit", None))
    if near is not None:
        place_of = {files.key(int(row)): place for place, row in enumerate(files.first)}
        ends = np.sort([[place_of[one], place_of[other]] for one, other in near], axis=1)
        near = Copies(
            ends[:, 0], ends[:, 1], np.full(len(near), 0.999, np.float32), np.zeros(len(near), bool)
        )
    return Evidence(files, near=near)


def flagged(evidence, found) -> set[str]:
    return {evidence.files.key(int(row)) for row in np.flatnonzero(found.flags)}


def pairs(evidence, found) -> set[tuple[str, str]]:
    return {(evidence.files.key(one.first), evidence.files.key(one.second)) for one in found.pairs}


def test_an_identical_file_in_test_is_a_leak(tmp_path):
    rows = [
        {"key": "a", "split": "train", "content": "one"},
        {"key": "b", "split": "test", "content": "one"},
        {"key": "c", "split": "test"},
        {"key": "d", "split": "train"},
    ]
    evidence = evidence_of(tmp_path / "store", rows)
    found = find_leaks(evidence)
    assert flagged(evidence, found) == {"b"}
    assert pairs(evidence, found) == {("b", "a")}
    assert found.metrics == {"test": {"leak": {"value": 0.5, "n": 2}}}
    assert "1 of 2 test files (50 %)" in found.summary
    assert "1 identical files" in found.summary


def test_a_test_folder_that_is_a_slice_of_train_is_a_leak_of_all(tmp_path):
    """The study's own split: the store puts all copies into test, and still it is a leak."""
    rows = [
        {"key": f"/data/train/vazio/{number}.jpg", "content": f"film {number}",
         "split": "test" if number < 20 else "train"}
        for number in range(100)
    ] + [
        {"key": f"/data/test/vazio/{number}.jpg", "content": f"film {number}", "split": "test",
         "wanted_split": "test"}
        for number in range(20)
    ]  # fmt: skip
    evidence = evidence_of(tmp_path / "store", rows)
    found = find_leaks(evidence)
    assert found.metrics["test"]["leak"] == {"value": 1.0, "n": 20}
    assert "20 of 20 test files (100 %)" in found.summary


def test_images_of_one_group_in_two_splits_are_a_leak(tmp_path):
    rows = [
        {"key": "a", "split": "train", "group": "patient 1"},
        {"key": "b", "split": "val", "group": "patient 1"},
        {"key": "c", "split": "test", "group": "patient 1"},
        {"key": "d", "split": "val", "group": "patient 2"},
        {"key": "e", "split": "test", "group": "patient 2"},
        {"key": "f", "split": "test", "group": "patient 3"},
    ]
    evidence = evidence_of(tmp_path / "store", rows)
    found = find_leaks(evidence)
    assert flagged(evidence, found) == {"b", "c", "e"}
    assert found.metrics["val"]["leak"] == {"value": 0.5, "n": 2}


def test_a_near_copy_in_another_split_is_a_leak_and_with_another_label_a_conflict(tmp_path):
    rows = [
        {"key": "a", "split": "train", "label": "vazio"},
        {"key": "b", "split": "test", "label": "nvazio"},
        {"key": "c", "split": "test", "label": "vazio"},
    ]
    evidence = evidence_of(tmp_path / "store", rows, near=[("a", "b")])
    assert flagged(evidence, find_leaks(evidence)) == {"b"}
    assert flagged(evidence, find_conflicts(evidence)) == {"a", "b"}
    near = find_near_duplicates(evidence)
    assert flagged(evidence, near) == {"a", "b"}
    assert "1 pairs of near copies, 2 files in all (67 %)" in near.summary


def test_without_leaks_the_summary_says_what_was_not_looked_for(tmp_path):
    rows = [{"key": "a", "split": "train"}, {"key": "b", "split": "test"}]
    found = find_leaks(evidence_of(tmp_path / "store", rows))
    assert found.count == 0
    assert "near copies were not looked for" in found.summary


def test_copies_with_two_labels_conflict_until_a_verdict(tmp_path):
    rows = [
        {"key": "a", "label": "vazio", "content": "one"},
        {"key": "b", "label": "nvazio", "content": "one"},
        {"key": "c", "label": "vazio", "content": "two"},
        {"key": "d", "label": "vazio", "content": "two"},
        {"key": "e", "label": None, "content": "two"},
    ]
    evidence = evidence_of(tmp_path / "store", rows)
    found = find_conflicts(evidence)
    assert flagged(evidence, found) == {"a", "b"}
    assert pairs(evidence, found) == {("a", "b")}
    assert found.metrics["all"]["conflict"] == {"value": 0.5, "n": 4}
    verdict = {"key": "b", "verdict": "relabel", "label": "vazio"}
    decided = evidence_of(tmp_path / "decided", rows, [verdict])
    assert find_conflicts(decided).count == 0
    dropped = evidence_of(tmp_path / "dropped", rows, [{"key": "b", "verdict": "drop"}])
    assert len(dropped.files) == 4
    assert find_conflicts(dropped).count == 0


def test_sets_of_identical_files_are_counted(tmp_path):
    rows = [
        {"key": key, "content": content} for key, content in zip("abcdef", "xxxyyz", strict=True)
    ]
    evidence = evidence_of(tmp_path / "store", rows)
    found = find_duplicates(evidence)
    assert flagged(evidence, found) == set("abcde")
    assert found.metrics["all"]["duplicates"] == {"value": 5 / 6, "n": 6, "sets": 2}
    notes = {pair.note for pair in found.pairs}
    assert notes == {"3 identical files", "2 identical files"}


def test_files_that_cannot_be_used_have_their_reason(tmp_path):
    rows = [
        {"key": "a"},
        {"key": "b", "status": "error", "error": "truncated: the file is cut short"},
        {"key": "c", "status": "unread", "error": "OSError: permission denied"},
        {"key": "d", "status": "missing"},
    ]
    evidence = evidence_of(tmp_path / "store", rows)
    found = find_errors(evidence)
    assert flagged(evidence, found) == {"b", "c"}
    assert "2 of 3 files cannot be used (67 %): 1 truncated, 1 OSError" in found.summary


def test_rare_classes_are_flagged(tmp_path):
    rows = [{"key": f"{number}", "label": "nvazio"} for number in range(60)]
    evidence = evidence_of(tmp_path / "store", [*rows, {"key": "x", "label": "vazio"}])
    found = find_imbalance(evidence)
    assert flagged(evidence, found) == {"x"}
    assert "the smallest, vazio, has 1 files" in found.summary
    assert found.table[1][0][0] == "vazio"


def test_unusual_sizes_are_flagged(tmp_path):
    rows = [{"key": f"{number}", "width": 1000 + number, "height": 800} for number in range(30)]
    rows += [
        {"key": "wide", "width": 4000, "height": 800},
        {"key": "tiny", "width": 100, "height": 80},
        {"key": "larger", "width": 1500, "height": 1200},
    ]
    evidence = evidence_of(tmp_path / "store", rows)
    found = find_odd_sizes(evidence)
    assert flagged(evidence, found) == {"wide", "tiny"}
    assert "2 of 33 images" in found.summary


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Evidence:
    """400 files in 200 groups, half of them in test."""
    rows = [
        {"key": f"{number:03}", "group": f"g{number // 2}", "batch": "2026-01-01",
         "split": "train" if number < 200 else "test"}
        for number in range(400)
    ]  # fmt: skip
    return evidence_of(tmp_path_factory.mktemp("many") / "store", rows)


def of_keys(evidence, values) -> np.ndarray:
    """Arrange values by key in the order of contents."""
    return values[[int(evidence.files.key(int(row))) for row in evidence.files.first]]


def with_vectors(evidence, values) -> Evidence:
    vectors = Vectors(np.arange(400), of_keys(evidence, values).astype(np.float32))
    return Evidence(evidence.files, vectors=vectors)


def test_an_image_unlike_all_others_is_an_outlier(many):
    values = np.random.default_rng(0).normal(size=(400, 8))
    values[17] += 30
    evidence = with_vectors(many, values)
    found = find_outliers(evidence)
    assert flagged(evidence, found) == {"017"}
    assert evidence.files.key(found.worst(1)[0]) == "017"


def test_splits_from_different_devices_differ_and_others_do_not(many):
    values = np.random.default_rng(0).normal(size=(400, 8))
    same = find_shifts(with_vectors(many, values))
    assert same.count == 0
    assert "alike" in same.summary
    auc = same.metrics["test"]["test_against_train"]
    assert auc["low"] < 0.5 < auc["high"]
    values[200:300, 0] += 3  # half of test is from another device
    evidence = with_vectors(many, values)
    found = find_shifts(evidence)
    assert found.metrics["test"]["test_against_train"]["low"] > 0.6
    shown = [int(evidence.files.key(row)) for row in found.worst(10)]
    assert all(200 <= key < 300 for key in shown)
    assert set(map(int, flagged(evidence, found))) <= set(range(200, 400))


def test_dark_blank_and_blurred_images_are_found(many):
    low, high, sharp = np.full(400, 30.0), np.full(400, 220.0), np.full(400, 6.0)
    sharp += np.random.default_rng(0).normal(0, 0.5, 400)
    high[3], low[3] = 20, 2  # dark
    low[5] = 253  # bright ...
    high[5] = 255  # ... and blank
    sharp[7] = 0.5
    pictures = Pictures(
        np.arange(400), *(of_keys(many, one).astype(np.float32) for one in (low, high, sharp))
    )
    evidence = Evidence(many.files, pictures=pictures)
    exposure = find_exposure(evidence)
    assert flagged(evidence, exposure) == {"003", "005"}
    assert "1 dark" in exposure.summary
    assert "1 blank" in exposure.summary
    blurred = find_blurred(evidence)
    assert flagged(evidence, blurred) == {"007"}


def test_percent_does_not_round_to_all_or_none():
    assert [percent(count, 1000) for count in (0, 1, 25, 250, 995, 1000)] == [
        "0 %", "0.1 %", "2.5 %", "25 %", "99.5 %", "100 %"
    ]  # fmt: skip
    assert percent(99_999, 100_000) == "99.9 %"
    assert percent(0, 0) == "0 %"
