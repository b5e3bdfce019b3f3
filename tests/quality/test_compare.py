"""Models on the same images: figures by hand, paired tests, and the page."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import join_ray
from html_page import Page
from job_runs import run_job
from odd_files import encoded
from stores import content_id, make_store, results_table
from tiny_models import CLASSES, pixel_models, vector_model

from visao_ray.core.errors import InputError
from visao_ray.core.lease import Owner
from visao_ray.core.run import execute
from visao_ray.datasets.vazios import VAZIOS
from visao_ray.evaluation.inference import open_model, table_name
from visao_ray.evaluation.paired import mcnemar
from visao_ray.quality.compare import compare_models
from visao_ray.quality.settings import CompareSettings
from visao_ray.reports.compare import ComparePage, render_compare
from visao_ray.store import schemas
from visao_ray.store.table import write_fragments

COUNT = 90
OUTPUTS = ("probability", "both")  # two models with classes


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A store with predictions of two models: the store, URIs, and probabilities of nvazio."""
    root = tmp_path_factory.mktemp("compare")
    rng = np.random.default_rng(2)
    rows = []
    for number in range(COUNT):
        path = root / f"{number:02}.png"
        path.write_bytes(encoded(rng.integers(0, 256, (8, 8), np.uint8), "PNG"))
        label = CLASSES[number % 2]
        row = {"key": str(path), "label": label, "split": "train" if number < 10 else "val"}
        rows.append({**row, "group": f"C{number // 2}"})
    store = make_store(root / "store", VAZIOS, rows)
    made = pixel_models(root)
    scores = []
    with store.writing(Owner.here("test", "compare")) as writer:
        for kind, sure in zip(OUTPUTS, (3.0, 1.0), strict=True):
            model = open_model(made[kind], 1)
            table = store.predictions(table_name(model))
            schema = schemas.results(model.outputs, model.metadata)
            writer.ensure(table, schema)
            logit = sure * (1 - 2 * (np.arange(COUNT) % 2)) + rng.normal(0, 2, COUNT)
            share = (1 / (1 + np.exp(-logit))).astype(np.float32)
            scores.append(share)
            vectors = {"probability": np.stack([share, 1 - share], axis=1)}
            if kind == "both":
                vectors["embedding"] = np.zeros((COUNT, 6), np.float32)
            contents = [content_id(row["key"]) for row in rows]
            data = results_table(schema, contents, 0, vectors, range(COUNT))
            writer.append(table, write_fragments(table.uri, schema, data))
    return root, [made[kind] for kind in OUTPUTS], np.array(scores), rows


def settings(made, out, **more):
    root, uris, _, _ = made
    usual = {"models": uris, "replicates": 200}
    return CompareSettings(store=str(root / "store"), out=str(out), **usual | more)


@pytest.fixture(scope="module")
def found(models, tmp_path_factory, _ray_at_end):
    join_ray()
    out = tmp_path_factory.mktemp("run") / "out"
    return out, execute(settings(models, out, by="label"), compare_models)


def expected(models):
    """Return keys and labels of the val images, and the prediction of each model."""
    _, _, scores, rows = models
    val = [number for number, row in enumerate(rows) if row["split"] == "val"]
    labels = np.array([CLASSES.index(rows[number]["label"]) for number in val])
    return [rows[number]["key"] for number in val], labels, (scores[:, val] < 0.5).astype(int)


def test_figures_are_those_of_the_models(models, found):
    out, result = found
    keys, labels, guesses = expected(models)
    right = guesses == labels
    rows = {row["key"]: row for row in pq.read_table(out / "images").to_pylist()}
    assert sorted(rows) == keys
    for place, key in enumerate(keys):
        assert rows[key]["predicted"] == [CLASSES[guess] for guess in guesses[:, place]]
        assert rows[key]["wrong"] == 2 - right[:, place].sum()
        assert all(0.5 <= value <= 1 for value in rows[key]["probability"])
    counts = result["counts"]
    assert (counts["images"], counts["left_out"]) == (len(keys), 0)
    assert counts["all_wrong"] == (~right).all(axis=0).sum()
    assert list(counts["one_wrong"].values()) == [
        (~right[0] & right[1]).sum(),
        (~right[1] & right[0]).sum(),
    ]
    entries = result["details"]["models"]
    assert len(set(entries)) == 2  # two of a kind have a part of their digest in the name
    assert all(name.startswith("tiny-") for name in entries)
    for number, entry in enumerate(entries.values()):
        accuracy = entry["objective"]
        assert accuracy["value"] == pytest.approx(right[number].mean())
        assert accuracy == {**accuracy, "n": len(keys)}
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        assert entry["metrics"]["accuracy"]["value"] == accuracy["value"]
        assert entry["file_bytes"] > 1000
    (pair,) = result["details"]["pairs"]
    difference = pair["difference"]
    assert difference["value"] == pytest.approx(right[0].mean() - right[1].mean())
    assert difference["low"] <= difference["value"] <= difference["high"]
    test = mcnemar(right[0], right[1])
    assert pair["mcnemar"] == {
        "first_only": test.first_only,
        "second_only": test.second_only,
        "p": test.p,
    }
    assert pair["p_holm"] == test.p  # one pair
    assert pair["disagree"] == pytest.approx((guesses[0] != guesses[1]).mean())
    by = {line["value"]: line for line in result["details"]["by"]}
    assert by.keys() == set(CLASSES)
    for index, name in enumerate(CLASSES):
        rows_of = labels == index
        assert by[name]["n"] == rows_of.sum()
        values = [entry["value"] for entry in by[name]["metrics"].values()]
        assert values == pytest.approx(right[:, rows_of].mean(axis=1).tolist())


def test_the_page(found):
    out, result = found
    page = Page((out / "compare.html").read_text())
    assert "script" not in page.tags
    names = list(result["details"]["models"])
    for text in (*names, "By label", "Images with different predictions", "McNemar p"):
        assert text in page.text, text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": ["probability", "probability"]}, "the same model is given twice"),
        ({"models": ["probability", "embedding"]}, "predicts no classes"),
        ({"by": "hospital"}, "--by hospital: the table images has no such column"),
        ({"metric": "speed"}, "--metric speed"),
    ],
    ids=str,
)
def test_what_cannot_be_compared(models, change, says, tmp_path):
    root = models[0]
    if "models" in change:
        change = {"models": [str(root / f"{name}.keras") for name in change["models"]]}
    with pytest.raises(InputError, match=says):
        execute(settings(models, tmp_path / "out", **change), compare_models)


def test_time_and_memory(store, tiny_backbone, tmp_path, ray_cluster):
    """From files and from vectors, each in a process of its own; other weights are refused."""
    vectors, _ = vector_model(store, ("probability",), tmp_path)
    given = {
        "store": str(store),
        "models": [vectors, pixel_models(tmp_path)["probability"]],
        "replicates": 100,
        "timings": 4,
    }
    result = execute(
        CompareSettings(out=str(tmp_path / "out"), weights=["random", tiny_backbone], **given),
        compare_models,
    )
    entries = result["details"]["models"].values()
    assert [[one["source"] for one in entry["timings"]] for entry in entries] == [
        ["files", "vectors"],
        ["files"],
    ]
    for entry in entries:
        for one in entry["timings"]:
            assert (one["images"], one["device"]) == (4, "CPU")
            assert 0 < one["seconds"] < 60
            assert 10**8 < one["peak_bytes"] < 10**10
    assert "Time and memory" in Page((tmp_path / "out/compare.html").read_text()).text
    with pytest.raises(InputError, match=r"with the weights tiny\.keras, which are needed to"):
        execute(
            CompareSettings(out=str(tmp_path / "other"), weights=["random"], **given),
            compare_models,
        )


def test_one_model_is_too_few(models, tmp_path):
    run = run_job("compare", "--models", "a", "--store", "s", "--out", str(tmp_path / "out"))
    assert run.returncode == 2
    assert run.stderr.startswith("error: --models")
    assert run.stderr.count("\n") == 1


def test_the_headline_names_what_is_more_than_chance():
    def pair(low, high):
        return {
            "first": "a",
            "second": "b",
            "difference": {"value": (low + high) / 2, "low": low, "high": high, "n": 100},
            "mcnemar": {"first_only": 9, "second_only": 1, "p": 0.0215},
            "p_holm": 0.0215,
            "disagree": 0.1,
        }

    def shown(*pairs):
        page = ComparePage(
            dataset="vazios",
            store="/s",
            split="val",
            metric="accuracy",
            names=("a", "b"),
            sizes=(1_500_000, 20),
            compared={"metric": "accuracy", "pairs": pairs, "by": [], "models": {"a": {}, "b": {}}},
            metrics=[{"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95, "n": 100}}] * 2,
            images=100,
            left_out=3,
            column=None,
            missed=(),
            command="python jobs/compare.py",
        )
        return Page(render_compare(page, {})).text

    text = shown(pair(0.01, 0.15))
    assert "the two models differ in accuracy by more than chance" in text
    assert "+8.0 (+1.0 to +15.0)" in text
    assert "3 more are left out" in text
    assert "no difference in accuracy is larger than chance" in shown(pair(-0.01, 0.15))
    three = shown(pair(0.01, 0.15), {**pair(0.01, 0.15), "p_holm": 0.06}, pair(-0.01, 0.15))
    assert "2 of 3 pairs of models differ in accuracy" in three
    assert "chance (1 after correction for 3 pairs)" in three
