"""The predict job: new images are predicted once, the CSV lists all, and the counts add up."""

import csv
import json
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from conftest import join_ray
from html_page import Page
from job_runs import run_job
from tiny_models import CLASSES, SIDE, pixel_models, vector_model

from visao_ray.core.errors import InputError
from visao_ray.core.run import execute
from visao_ray.core.storage import locate
from visao_ray.evaluation.evaluate import evaluate_model
from visao_ray.evaluation.inference import open_model, table_name
from visao_ray.evaluation.settings import EvaluateSettings, PredictSettings
from visao_ray.features.extract import extract_images
from visao_ray.features.settings import ExtractSettings
from visao_ray.images.decode import decode
from visao_ray.jobs.predict import predict_images
from visao_ray.models import artifact
from visao_ray.store import schemas
from visao_ray.store.store import Store
from visao_ray.synthetic.recipe import SyntheticRecipe, plan
from visao_ray.synthetic.scan import encode, render


def arrivals(root, count, seed):
    """Write unlabelled scans to a folder that is not a class."""
    root.mkdir(parents=True)
    for image in plan(SyntheticRecipe("vazios", count, seed=seed)):
        grey = render("vazios", image.true_label, image.index, seed, image.difficulty)
        (root / f"{seed}-{image.index:03}.jpg").write_bytes(encode(grey, image.quality))
    return root


def predict(out, model, **more):
    settings = PredictSettings(out=str(out), model=model, **{"batch_size": 7, **more})
    return execute(settings, predict_images)


def listed(out):
    with open(out / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def images_of(store):
    table = Store.open(str(store)).images.latest()
    return {row["key"]: row for row in table.read(schemas.IMAGES.names).to_pylist()}


def results_of(store, model):
    name = table_name(open_model(model, 1))
    columns = ["content_id", "status", "probability"]
    rows = Store.open(str(store)).predictions(name).latest().read(columns).to_pylist()
    assert len({row["content_id"] for row in rows}) == len(rows)
    return {row["content_id"]: row for row in rows}


def add_up(counts):
    assert counts["listed"] == counts["new"] + counts["known"]
    errors = counts["errors"] + counts["without_vectors"]
    assert counts["new"] == counts["predicted"] + errors
    assert sum(counts["errors_by_reason"].values()) == counts["errors"]
    return tuple(counts[name] for name in ("listed", "new", "known", "predicted", "errors"))


def in_order(rows):
    """Return the rows of the CSV in the order of the page."""
    return sorted((row for row in rows if row["rank"]), key=lambda row: int(row["rank"]))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return pixel_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def grown(store, scans, tiny_backbone, tmp_path_factory):
    """A store with vectors and predictions of the scans.

    Then ten unlabelled scans and a broken one arrive, and are extracted and predicted.
    """
    join_ray()
    root = tmp_path_factory.mktemp("grown")
    place, data = root / "store", root / "data"
    shutil.copytree(store, place)
    model, plain = vector_model(place, ("probability",), root)
    first = predict(root / "first", model, store=str(place))
    again = predict(root / "again", model, store=str(place))
    arrivals(data / "arrived", 10, seed=8)
    (data / "arrived" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 but no more")
    extract = ExtractSettings(
        data=str(data),
        store=str(place),
        out=str(root / "extract"),
        weights=tiny_backbone,
        max_errors=1,
        batch="night",
    )
    execute(extract, extract_images)
    grown = predict(root / "grown", model, store=str(place))
    return root, model, plain, {"first": first, "again": again, "grown": grown}


def test_only_what_is_new_to_the_model(grown):
    root, model, plain, results = grown
    images = images_of(root / "store")
    assert add_up(results["first"]["counts"]) == (40, 40, 0, 40, 0)
    assert add_up(results["again"]["counts"]) == (40, 0, 40, 0, 0)
    # The broken one is known: extraction has recorded it.
    assert add_up(results["grown"]["counts"]) == (51, 10, 41, 10, 0)
    rows = {name: listed(root / name) for name in results}
    new = {key for key, row in images.items() if row["batch"] == "night" and row["status"] == "ok"}
    assert {row["key"] for row in rows["first"]} == images.keys() - new - {
        key for key in images if key.endswith("broken.jpg")
    }
    assert rows["again"] == []
    assert {row["key"] for row in rows["grown"]} == new
    assert len(new) == 10

    predictions = results_of(root / "store", model)
    assert predictions.keys() == {row["content_id"] for row in images.values() if row["width"]}
    store = Store.open(str(root / "store"))
    (name,) = store.extractors()
    vectors = store.vectors(name).latest().read(["content_id", "status", "avg", "max"])
    vectors = {row["content_id"]: row for row in vectors.to_pylist() if row["status"] == "ok"}
    contents = sorted(vectors)
    expected = artifact.outputs(
        plain,
        {pool: np.array([vectors[one][pool] for one in contents]) for pool in ("avg", "max")},
    )["probability"]
    for content, probability in zip(contents, expected, strict=True):
        np.testing.assert_allclose(predictions[content]["probability"], probability, atol=1e-5)

    for row in [*rows["first"], *rows["grown"]]:
        image = images[row["key"]]
        probability = predictions[image["content_id"]]["probability"]
        listed_values = [float(row[f"probability_{name}"]) for name in CLASSES]
        np.testing.assert_allclose(listed_values, probability, atol=1e-6)
        assert row["predicted"] == CLASSES[int(np.argmax(probability))]
        assert row["decision_at_0.5"] == ("nvazio" if probability[0] >= 0.5 else "vazio")
        assert row["label"] == (image["label"] or "")
        assert row["batch"] == image["batch"]
        assert row["first_seen"] == image["first_seen"].strftime("%Y-%m-%dT%H:%M:%SZ")
        assert row["error"] == ""
    ordered = in_order(rows["grown"])
    assert [int(row["rank"]) for row in ordered] == list(range(1, 11))
    scores = [float(row["probability_nvazio"]) for row in ordered]
    assert scores == sorted(scores, reverse=True)
    inputs = results["grown"]["inputs"]
    assert inputs["predictions"] == f"predictions/{table_name(open_model(model, 1))}"
    assert inputs["versions"][inputs["predictions"]] > 0


def test_the_page_has_the_order_of_the_ranks(grown):
    root, _, _, _ = grown
    page = Page((root / "grown" / "day.html").read_text())
    pictures = [a["alt"] for tag, a in page.attributes if tag == "img" and "jpeg" in a["src"]]
    ordered = in_order(listed(root / "grown"))
    assert [alt.split(": ", 1)[1] for alt in pictures] == [row["key"] for row in ordered]
    assert "script" not in page.tags
    for text in (
        "The threshold is the default, 0.5, because no evaluation of the model was given",
        "51 images in the store = 10 new to the model + 41 known",
        "siamese",
    ):
        assert text in page.text, text
    positive = sum(row["decision_at_0.5"] == "nvazio" for row in ordered)
    assert f"{positive} of 10 images that were new to the model have a probability" in page.text
    empty = Page((root / "again" / "day.html").read_text())
    assert "No images that were new to the model." in empty.text


def test_a_day_or_a_batch_is_listed_whatever_was_predicted_when(grown, tmp_path):
    root, model, _, _ = grown
    store = str(root / "store")
    night = predict(tmp_path / "night", model, store=store, batch="night")
    assert add_up(night["counts"]) == (51, 0, 51, 0, 0)
    rows = listed(tmp_path / "night")
    assert len(rows) == 11
    (broken,) = (row for row in rows if row["key"].endswith("broken.jpg"))
    assert broken["error"].split(":")[0] in ("truncated", "corrupt", "not_an_image")
    assert broken["rank"] == broken["predicted"] == broken["probability_vazio"] == ""
    page = Page((tmp_path / "night" / "day.html").read_text())
    assert "images of batch night" in page.text
    assert "could not be predicted" in page.text
    assert night["counts"]["errors"] == 0  # it was not new

    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    predict(tmp_path / "later", model, store=store, since=tomorrow)
    assert listed(tmp_path / "later") == []
    today = predict(tmp_path / "today", model, store=store, since="today")
    if datetime.fromisoformat(today["started"]).date() == _first_day(store):
        assert len(listed(tmp_path / "today")) == 51
    predict(tmp_path / "both", model, store=store, since="2020-01-01", batch="night")
    assert listed(tmp_path / "both") == rows
    for wrong in ("yesterday", "2026-13-01"):
        with pytest.raises(ValueError, match=f"--since {wrong}: must be today, or a day such as"):
            PredictSettings(model=model, store=store, since=wrong)
    with pytest.raises(ValueError, match="--labels belongs to --data"):
        PredictSettings(model=model, store=store, labels="labels.csv")


def _first_day(store):
    return min(row["first_seen"] for row in images_of(store).values()).date()


def test_the_threshold_of_an_evaluation(grown, models, tmp_path):
    root, model, _, _ = grown
    store = str(root / "store")
    evaluate = EvaluateSettings(
        model=model, store=store, out=str(tmp_path / "evaluate"), replicates=100
    )
    result = execute(evaluate, evaluate_model)
    assert "predict" not in result["timings"]  # all predictions exist
    threshold = result["details"]["threshold"]["threshold"]
    evaluation = str(tmp_path / "evaluate" / "evaluation.json")
    assert threshold != 0.5
    out = tmp_path / "out"
    predict(out, model, store=store, evaluation=evaluation, since="2020-01-01")
    rows = [row for row in listed(out) if row["rank"]]
    column = f"decision_at_{threshold:.4g}"
    decisions = Counter(row[column] for row in rows)
    images = images_of(store)
    predictions = results_of(store, model)
    over = sum(
        predictions[images[row["key"]]["content_id"]]["probability"][0] >= threshold for row in rows
    )
    assert decisions == {"nvazio": over, "vazio": 50 - over}
    val = [row for row in rows if images[row["key"]]["split"] == "val" and row["label"] == "nvazio"]
    assert all(row[column] == "nvazio" for row in val)  # 95 % of so few are all
    page = Page((out / "day.html").read_text())
    assert (
        f"{threshold:.3g} was chosen on val, where it finds at least 95 % of nvazio." in page.text
    )
    recall = result["metrics"]["test_at_threshold"]["per_class"]["nvazio"]["recall"]
    assert f"{100 * recall['value']:.1f}" in page.text
    assert f"n = {recall['n']}" in page.text

    with pytest.raises(
        InputError, match=r"belongs to another model \(siamese, .* evaluate this model"
    ):
        predict(tmp_path / "no", models["probability"], store=store, evaluation=evaluation)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"metrics": {}}))
    for wrong in (other, tmp_path / "nothing.json"):
        with pytest.raises(InputError, match=r"not an evaluation\.json of jobs/evaluate\.py"):
            predict(tmp_path / "no", model, store=store, evaluation=str(wrong))


@pytest.fixture(scope="module")
def outside(scans, models, tmp_path_factory, _ray_at_end):
    """Predict files outside a store by a model of pixels: labelled, unlabelled, copied, broken."""
    join_ray()
    root = tmp_path_factory.mktemp("outside")
    data = root / "data"
    shutil.copytree(scans, data)
    arrivals(data / "arrived", 6, seed=5)
    (data / "arrived" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 but no more")
    shutil.copy(data / "arrived" / "5-000.jpg", data / "arrived" / "copy.jpg")
    result = predict(
        root / "out", models["probability"], dataset="vazios", data=str(data), batch="day 1"
    )
    return root, result


def test_files_outside_a_store_in_one_pass(outside, models, tmp_path):
    root, result = outside
    store = root / "out" / "store"
    assert add_up(result["counts"]) == (48, 48, 0, 47, 1)
    read = result["counts"]["read"]
    assert (read["listed"], read["new"], read["ok"], read["errors"]) == (48, 48, 47, 1)
    assert result["counts"]["errors_by_reason"] == read["errors_by_reason"]
    rows = {row["key"]: row for row in listed(root / "out")}
    images = images_of(store)
    assert rows.keys() == images.keys()
    (broken,) = (key for key in rows if key.endswith("broken.jpg"))
    good = sorted(rows.keys() - {broken})
    assert rows[broken]["error"] == images[broken]["error"]
    pixels = np.stack([decode(locate(key).read_bytes(), SIDE, "stretch") for key in good])
    expected = artifact.load(locate(models["probability"]))[0].predict(pixels, verbose=0)
    for key, probability in zip(good, expected, strict=True):
        listed_values = [float(rows[key][f"probability_{name}"]) for name in CLASSES]
        np.testing.assert_allclose(listed_values, probability, atol=1e-5)
    copies = [key for key in good if key.endswith(("5-000.jpg", "copy.jpg"))]
    first, second = ({**rows[key], "key": ""} for key in copies)
    assert first == second
    assert (
        len(results_of(store, models["probability"])) == 47
    )  # a row per content, also the broken one

    # Again: nothing is new. Then ten more arrive; the others are known.
    store = shutil.copytree(store, tmp_path / "store")
    again = predict(tmp_path / "again", models["probability"], store=str(store))
    assert add_up(again["counts"]) == (48, 0, 48, 0, 0)
    arrivals(tmp_path / "more" / "arrived", 10, seed=9)
    more = predict(
        tmp_path / "grown", models["probability"], store=str(store), data=str(tmp_path / "more")
    )
    assert add_up(more["counts"]) == (58, 10, 48, 10, 0)
    assert more["counts"]["read"]["new"] == 10
    assert len(listed(tmp_path / "grown")) == 10


def test_images_without_vectors_are_counted_and_the_command_is_named(
    store, models, tmp_path, ray_cluster
):
    """Five scans were added by a model of pixels; a model of vectors cannot predict them."""
    place = tmp_path / "store"
    shutil.copytree(store, place)
    shutil.rmtree(place / "predictions", ignore_errors=True)
    arrivals(tmp_path / "new" / "arrived", 5, seed=6)
    new = str(tmp_path / "new")
    first = predict(tmp_path / "pixels", models["both"], store=str(place), data=new)
    assert add_up(first["counts"]) == (45, 45, 0, 45, 0)  # also the others in the store
    model, _ = vector_model(place, ("probability",), tmp_path)
    with pytest.raises(InputError, match=rf"takes vectors.* jobs/extract\.py --data {new} --store"):
        predict(tmp_path / "vectors", model, store=str(place), data=new)
    result = predict(tmp_path / "vectors", model, store=str(place))
    assert add_up(result["counts"]) == (45, 45, 0, 40, 0)
    assert result["counts"]["without_vectors"] == 5
    (warning,) = result["warnings"]
    assert "5 images have no vectors yet" in warning
    assert "jobs/extract.py --data … --store" in warning
    rows = listed(tmp_path / "vectors")
    assert Counter(row["error"].split(":")[0] for row in rows) == {"": 40, "no_vectors": 5}
    assert "have no vectors yet" in Page((tmp_path / "vectors" / "day.html").read_text()).text


def test_missing_files_are_errors_and_tried_again(outside, models, tmp_path):
    root, _ = outside
    store = tmp_path / "store"
    shutil.copytree(root / "out" / "store", store)
    gone = next(key for key in images_of(store) if key.endswith("5-003.jpg"))
    shutil.move(gone, tmp_path / "moved")
    try:
        with pytest.raises(InputError, match=r"1 of 47 new images .* more than --max-errors 0 "):
            predict(tmp_path / "out", models["embedding"], store=str(store), max_errors=0)
    finally:
        shutil.move(tmp_path / "moved", gone)
    rows = listed(tmp_path / "out")
    assert rows[0].keys() == {"key", "first_seen", "batch", "label", "error"}  # it has no classes
    assert {row["key"]: row["error"].split(":")[0] for row in rows if row["error"]} == {
        gone: "not_read"
    }
    result = predict(tmp_path / "out", models["embedding"], store=str(store), max_errors=0)
    assert add_up(result["counts"]) == (48, 1, 47, 1, 0)


@pytest.mark.slow
def test_from_the_command_line_without_a_secret(grown, tmp_path, monkeypatch, same_ray):
    root, model, _, _ = grown
    secret = "canary-8f3a61d2c07b"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    out = tmp_path / "out"
    arguments = ["--model", model, "--store", str(root / "store"), "--since", "2020-01-01"]
    done = run_job("predict", *arguments, "--out", str(out), environment=same_ray)
    assert done.returncode == 0, done.stderr
    assert "51 listed = 0 new + 51 known; 0 new = 0 predicted + 0 errors" in done.stdout
    assert len(listed(out)) == 51
    texts = [done.stdout, done.stderr]
    texts += [file.read_text(errors="replace") for file in out.rglob("*") if file.is_file()]
    predictions = root / "store" / "predictions"
    texts += [f.read_text(errors="replace") for f in predictions.rglob("*") if f.is_file()]
    assert not any(secret in text for text in texts)
