"""Wrong labels are found, by models that never saw them, and decisions are obeyed."""

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from html_page import Page
from odd_files import encoded
from stores import make_store

from visao_ray.core.errors import InputError
from visao_ray.core.run import execute
from visao_ray.datasets.registry import find_dataset
from visao_ray.quality import suspicion
from visao_ray.quality.clean import find_label_issues, unsure_share
from visao_ray.quality.out_of_fold import fold_probabilities, read_rows
from visao_ray.quality.settings import CleanSettings, VerdictsSettings
from visao_ray.quality.verdicts import record_verdicts
from visao_ray.store.join import pin, plain_vectors, read_examples
from visao_ray.store.store import Store

VAZIOS = find_dataset("vazios")
CLASSES = ("nvazio", "vazio")
COUNT, WIDTH = 300, 12
WRONG = range(5, 180, 13)  # 14 of the 180 train rows, of both classes


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A store of Gaussian vectors with 14 wrong train labels; test vectors are not finite."""
    folder = tmp_path_factory.mktemp("clean")
    rng = np.random.default_rng(3)
    centres = rng.normal(0, 1.6, (2, WIDTH))
    rows, vectors = [], []
    for number in range(COUNT):
        true = number % 2
        split = "train" if number < 180 else "val" if number < 240 else "test"
        label = CLASSES[1 - true if number in WRONG else true]
        path = folder / f"{number:03}.png"
        path.write_bytes(encoded(rng.integers(0, 256, (8, 8), np.uint8), "PNG"))
        row = {"key": str(path), "label": label, "split": split, "group": f"C{number // 4}"}
        rows.append(row)
        vectors.append(np.nan if split == "test" else centres[true] + rng.normal(size=WIDTH))
        if number == 5:  # a copy of a file with a wrong label
            rows.append({**row, "key": f"{path}.copy.png", "content": str(path)})
            vectors.append(vectors[-1])
    values = np.stack([np.broadcast_to(one, WIDTH) for one in vectors]).astype(np.float32)
    make_store(folder / "store", VAZIOS, rows, {"avg": values, "max": values + 1})
    return folder


def clean(base, out, **more):
    settings = CleanSettings(store=str(base / "store"), out=str(out), replicates=100, **more)
    return execute(settings, find_label_issues)


@pytest.fixture(scope="module")
def found(base, tmp_path_factory, _ray_at_end):
    from conftest import join_ray

    join_ray()
    out = tmp_path_factory.mktemp("run") / "out"
    return out, clean(base, out, minutes=2)


def issues(out):
    return pq.read_table(out / "issues").to_pylist()


def number_of(row):
    return int(row["key"].rsplit("/")[-1][:3])


def rows_of(base, splits=("train", "val")):
    snapshot = pin(Store.open(str(base / "store")), "rows", plain_vectors("tiny-00000000"))
    return read_rows(snapshot, VAZIOS, splits, ("train",), 5, 2, 0)


def test_wrong_labels_come_first(found):
    out, result = found
    rows = issues(out)
    assert len(rows) == 181  # a row per file of train: one content has two
    assert {row["split"] for row in rows} == {"train"}
    ranks = [row["rank"] for row in rows]
    assert ranks == sorted(ranks)
    first = {number_of(row) for row in rows if row["rank"] <= len(WRONG)}
    assert first == set(WRONG)
    for row in rows:
        assert row["suggestion"] == CLASSES[1 - CLASSES.index(row["label"])]
        total = row["probability"] + row["suggestion_probability"]
        assert total == pytest.approx(1, abs=1e-5)
        assert row["model_probability"] == pytest.approx(row["probability"], abs=0.05)
        assert row["is_issue"] == row["is_confident"]
    twice = [row for row in rows if number_of(row) == 5]
    assert len(twice) == 2
    assert len({row["key"] for row in twice}) == 2
    assert {**twice[0], "key": ""} == {**twice[1], "key": ""}

    counts = result["counts"]
    assert (counts["images"], counts["judged"], counts["not_judged"]) == (180, 180, 0)
    assert counts["undecided"] == counts["flagged"]["confident"] >= 8
    assert set(counts["verdicts"].values()) == {0}
    agreement = result["details"]["group_agreement"]
    assert agreement["weight"] == pytest.approx(0, abs=0.2)  # half of a group is of each class


def test_filtering_helps_on_rows_that_were_not_judged(found):
    _, result = found
    views = result["details"]["views"]
    assert list(views) == ["as they are", "without flagged", "relabelled"]
    for name, view in views.items():
        value = view["objective"]
        assert value == result["metrics"]["val"][f"accuracy ({name})"]
        assert value["n"] == 60
        assert 0.7 < value["low"] <= value["value"] <= value["high"]
    assert views["without flagged"]["over_all"]["value"] >= 0


def test_the_page_shows_as_many_as_a_person_has_time_for(found):
    out, result = found
    assert result["details"]["shown"] == 20  # two minutes, six seconds each
    page = Page((out / "clean.html").read_text())
    data = page.text[page.text.index('{"classes"') :]
    shown = json.JSONDecoder().raw_decode(data)[0]["images"]
    order = {row["rank"]: row["key"] for row in issues(out)}
    assert all(order[place] in one["keys"] for place, one in enumerate(shown, start=1))
    assert all(one["picture"].startswith("data:image/jpeg;base64,") for one in shown)
    (copied,) = (one for one in shown if len(one["keys"]) > 1)
    assert copied["keys"][0][-7:] == "005.png"


def test_a_model_never_sees_the_labels_that_it_judges(base, ray_cluster):
    rows = rows_of(base)
    for repeat in range(2):
        seen = []
        for fold in range(5):
            train, held = rows.of_fold(repeat, fold)
            assert not set(rows.groups[train]) & set(rows.groups[held])
            assert (set(rows.splits[train]), set(rows.splits[held])) == (
                {"train", "val"},
                {"train"},
            )
            before = fold_probabilities(rows, repeat, fold, 1.0)
            labels = rows.labels.copy()
            rows.labels[held] = 1 - rows.labels[held]
            np.testing.assert_array_equal(fold_probabilities(rows, repeat, fold, 1.0), before)
            rows.labels[:] = labels
            seen += held.tolist()
        assert sorted(seen) == np.flatnonzero(rows.judged).tolist()


def test_the_same_command_gives_the_same_table(base, found, tmp_path):
    out, _ = found
    clean(base, tmp_path / "again", minutes=2)
    assert issues(tmp_path / "again") == issues(out)


def test_decisions_are_obeyed_and_counted(base, found, tmp_path, ray_cluster):
    """Filtered by the CSV of the job, then decided by a person; nobody is asked twice."""
    out, result = found
    copy = tmp_path / "base"
    shutil.copytree(base / "store", copy / "store")
    with open(out / "filter.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["verdict"] for line in lines} == {"drop"}
    flagged = [row for row in issues(out) if row["is_issue"]]
    assert [line["key"] for line in lines] == [row["key"] for row in flagged]

    def record(file, source):
        settings = VerdictsSettings(store=str(copy / "store"), file=str(file), source=source)
        return execute(settings, record_verdicts)

    def read(run):
        return read_examples(pin(Store.open(str(copy / "store")), run, None), ("train",))

    assert record(out / "filter.csv", "filter")["counts"]["new"] == len(lines)
    assert len(read("filtered")) == 180 - result["counts"]["undecided"]

    wrong = [row for row in flagged if number_of(row) in WRONG]
    decisions = tmp_path / "decisions.csv"
    text = "key,verdict,label,note\n" + "".join(
        f"{row['key']},relabel,{row['suggestion']},\n" for row in wrong
    )
    others = [row for row in flagged if row not in wrong]
    text += "".join(f"{row['key']},keep,,\n" for row in others)
    unsure = [row for row in issues(out) if row["rank"] > 170][:2]
    text += "".join(f"{row['key']},unsure,,\n" for row in unsure)
    decisions.write_text(text)
    record(decisions, "a person")
    assert len(read("decided")) == 180
    again = clean(copy, tmp_path / "again")
    kinds = again["counts"]["verdicts"]
    assert kinds["relabel"] == len({number_of(row) for row in wrong})
    assert (kinds["keep"], kinds["unsure"], kinds["drop"]) == (len(others), 2, 0)
    share = again["details"]["unsure"]
    assert share["n"] == sum(kinds.values())
    assert share["low"] < share["value"] == 2 / share["n"] < share["high"]
    rows = {row["key"]: row for row in issues(tmp_path / "again")}
    for row in wrong:
        now = rows[row["key"]]
        assert (now["label"], now["verdict"], now["rank"]) == (row["suggestion"], "relabel", None)
        assert now["probability"] > 0.3 > row["probability"] or not now["is_issue"]
    left = json.dumps([row["key"] for row in rows.values() if row["rank"] and row["is_issue"]])
    assert not [row for row in flagged if row["key"] in left]


def test_what_cannot_be_judged(tmp_path, ray_cluster):
    """The only group of a class is judged by nobody, and counted; too few groups are refused."""
    rng = np.random.default_rng(1)
    labels = ["2201"] * 20 + ["2202"] * 20 + ["2203"] * 2
    rows = [
        {
            "key": f"{number}.jpg",
            "label": label,
            "split": "val" if number % 10 == 9 else "train",
            "group": "rare" if label == "2203" else f"{number}",
        }
        for number, label in enumerate(labels)
    ]
    values = np.array([[int(label) - 2200.0, 0, 1] for label in labels]) * 3
    values = (values + rng.normal(size=values.shape)).astype(np.float32)
    make_store(tmp_path / "store", find_dataset("ncm"), rows, {"avg": values, "max": values})
    result = clean(tmp_path, tmp_path / "out", c=1.0, repeats=1)
    counts = result["counts"]
    assert (counts["images"], counts["judged"], counts["not_judged"]) == (38, 36, 2)
    rare = [row for row in issues(tmp_path / "out") if row["label"] == "2203"]
    assert len(rare) == 2
    assert {(row["probability"], row["rank"], row["is_issue"]) for row in rare} == {(None,) * 3}
    with pytest.raises(InputError, match=r"--folds 100: the labels to judge are of 37 groups"):
        clean(tmp_path, tmp_path / "other", folds=100)


def test_groups_speak_only_if_they_agree():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 3000).astype(np.int32)
    groups = (np.arange(3000) // 3).astype(np.int32)
    random = suspicion.agreement(labels, groups, 3)
    assert random.observed == pytest.approx(random.chance, abs=0.03)
    assert random.weight == pytest.approx(0, abs=0.15)
    alike = np.repeat(rng.integers(0, 3, 1000), 3).astype(np.int32)
    flipped = alike.copy()
    flipped[::30] = (flipped[::30] + 1) % 3
    agrees = suspicion.agreement(flipped, groups, 3)
    assert 0.9 < agrees.observed < 1
    assert agrees.weight > 2
    even = np.full((3000, 3), 1 / 3)
    found = suspicion.combine(even, flipped, groups, agrees.weight)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (found.argmax(axis=1)[::30] == alike[::30]).all()
    alone = suspicion.agreement(labels, np.arange(3000, dtype=np.int32), 3)
    assert (alone.images, alone.weight) == (0, 0.0)


def test_the_own_label_is_no_evidence():
    """Whatever an image's label is, its own probabilities stay the same."""
    labels = np.array([0, 0, 1, 1, 0], np.int32)
    groups = np.array([0, 0, 0, 1, 1], np.int32)
    shares = np.full((5, 2), 0.5)
    before = suspicion.combine(shares, labels, groups, 1.5)
    for row in range(5):
        other = labels.copy()
        other[row] = 1 - other[row]
        after = suspicion.combine(shares, other, groups, 1.5)
        np.testing.assert_allclose(after[row], before[row], atol=1e-6)


def test_thresholds_are_those_of_the_study():
    score = np.array([0.05, 0.3, 0.31, 0.89, 0.9, 0.99])
    probabilities = np.stack([1 - score, score], axis=1).astype(np.float32)
    labels = np.zeros(6, np.int32)
    flags = suspicion.threshold_flags(probabilities, labels, 1, 0.9, 0.3)
    assert flags.tolist() == [False, False, False, False, True, True]
    flags = suspicion.threshold_flags(probabilities, labels + 1, 1, 0.9, 0.3)
    assert flags.tolist() == [True, True, False, False, False, False]
    three = np.array([[0.05, 0.92, 0.03], [0.2, 0.5, 0.3]], np.float32)
    assert suspicion.threshold_flags(three, np.zeros(2, np.int32), None, 0.9, 0.3).tolist() == [
        True,
        False,
    ]
    assert suspicion.suggestions(three, np.zeros(2, np.int32)).tolist() == [1, 1]


def test_the_share_that_nobody_can_tell():
    assert unsure_share({}) == {"value": None, "low": None, "high": None, "n": 0}
    found = unsure_share({"unsure": 2, "keep": 98})
    assert found["value"] == 0.02
    assert (found["low"], found["high"]) == (
        pytest.approx(0.0055, abs=1e-3),
        pytest.approx(0.07, abs=1e-2),
    )
