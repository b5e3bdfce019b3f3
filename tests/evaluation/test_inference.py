"""A model of images or vectors on a whole dataset: each image once, as in a plain loop."""

import json
import shutil

import numpy as np
import pyarrow.dataset as pads
import pytest
from conftest import SEED, join_ray
from tiny_models import CLASSES, SIDE, pixel_models, vector_model

from visao_ray.core.errors import InputError
from visao_ray.core.run import execute
from visao_ray.core.storage import locate
from visao_ray.datasets.chest_xray import CHEST_XRAY
from visao_ray.evaluation.evaluate import evaluate_model
from visao_ray.evaluation.inference import open_model, table_name
from visao_ray.evaluation.settings import EvaluateSettings
from visao_ray.images.decode import decode
from visao_ray.models import artifact
from visao_ray.store import schemas
from visao_ray.store.store import Store


@pytest.fixture(scope="module")
def dataset(scans, tmp_path_factory):
    """The scans, and one file that is not an image."""
    root = tmp_path_factory.mktemp("dataset") / "scans"
    shutil.copytree(scans, root)
    (root / "vazio" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 but no more")
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return pixel_models(tmp_path_factory.mktemp("models"))


def settings(out, model, **source):
    how = {"seed": SEED, "replicates": 100, "batch_size": 7}
    if "data" in source:
        how["dataset"] = "vazios"
    return EvaluateSettings(out=str(out), model=model, **(how | source))


def rows_of(out, table):
    found = pads.dataset(f"{out}/{table}").to_table().to_pylist()
    by_key = {row["key"]: row for row in found}
    assert len(by_key) == len(found)
    return by_key


def images_of(store):
    table = Store.open(str(store)).images.latest()
    return {row["key"]: row for row in table.read(schemas.IMAGES.names).to_pylist()}


def results_of(store, model):
    name = table_name(open_model(model, 1))
    columns = ["content_id", "view", "status", "error_type"]
    rows = Store.open(str(store)).predictions(name).latest().read(columns).to_pylist()
    assert len({row["content_id"] for row in rows}) == len(rows)
    assert all(row["view"] == 0 for row in rows)
    return {row["content_id"]: row for row in rows}


def found_in(result, split):
    return result["metrics"][split]["precision_at_20"]


def plain(model, keys):
    images = [decode(locate(key).read_bytes(), SIDE, "stretch") for key in keys]
    return artifact.load(locate(model))[0].predict(np.stack(images), verbose=0)


@pytest.fixture(scope="module")
def classified(dataset, models, tmp_path_factory, _ray_at_end):
    join_ray()
    out = tmp_path_factory.mktemp("classified") / "out"
    return out, execute(settings(out, models["both"], data=str(dataset)), evaluate_model)


def test_every_image_once_with_the_numbers_of_a_plain_loop(classified, dataset, models):
    out, result = classified
    counts = result["counts"]
    broken = str(dataset / "vazio" / "broken.jpg")
    read = counts["read"]
    assert (read["listed"], read["new"], read["ok"], read["errors"]) == (41, 41, 40, 1)
    assert (counts["images"], counts["ok"], counts["errors"]) == (40, 40, 0)
    images = images_of(out / "store")
    assert {key for key, row in images.items() if row["status"] == "error"} == {broken}
    reason = images[broken]["error"].split(":")[0]
    assert read["errors_by_reason"] == {reason: 1}
    embeddings, predictions = rows_of(out, "embeddings"), rows_of(out, "predictions")
    assert set(embeddings) == set(images) - {broken}
    evaluated = {key for key in embeddings if images[key]["split"] != "train"}
    assert set(predictions) == evaluated
    assert 0 < len(evaluated) < 40
    results = results_of(out / "store", models["both"])
    assert {row["status"] for row in results.values()} == {"ok", "error"}
    assert results[images[broken]["content_id"]]["error_type"] == reason

    keys = sorted(embeddings)
    expected = plain(models["both"], keys)
    made = np.array([embeddings[key]["embedding"] for key in keys])
    np.testing.assert_allclose(made, expected["embedding"], atol=1e-5, rtol=1e-5)
    for key, probability in zip(keys, expected["probability"], strict=True):
        for name in ("label", "split", "group"):
            assert embeddings[key][name] == images[key][name]
        assert embeddings[key]["content_id"] == images[key]["content_id"].hex()
        if key not in evaluated:
            continue
        row = predictions[key]
        np.testing.assert_allclose(row["probability"], probability, atol=1e-5)
        assert row["predicted"] == CLASSES[probability.argmax()]
        assert row["model"] == embeddings[key]["model"] == "tiny epoch 4"
        for name in ("label", "split", "group"):
            assert row[name] == images[key][name]

    for split in ("val", "test"):
        found = result["metrics"][split]
        rows = [row for row in predictions.values() if row["split"] == split]
        hits = [row["predicted"] == row["label"] for row in rows]
        assert found["accuracy"]["value"] == pytest.approx(np.mean(hits))
        assert found["precision_at_20"]["n"] == len(rows)
        assert 0 < found["precision_at_20"]["value"] < 1
        assert counts["by_split"][split]["images"] == len(rows)
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["retrieval"]["val"]["precision_at_20"] == found_in(result, "val")
    digest = open_model(models["both"], 1).digest
    assert evaluation["model"] == {"name": "tiny epoch 4", "digest": digest}
    inputs = result["inputs"]
    assert inputs["model_digest"] == digest
    read = set(inputs["versions"])
    assert read == {"images", inputs["predictions"]}
    wrong = [row for row in predictions.values() if row["split"] == "test"]
    wrong = {row["key"] for row in wrong if row["predicted"] != row["label"]}
    assert {row["key"] for row in evaluation["mistakes"]} == wrong
    confidence = [row["probability"] for row in evaluation["mistakes"]]
    assert confidence == sorted(confidence, reverse=True)
    assert not (out / "work").exists()


def test_train_is_not_read_without_need(classified, models, tmp_path, ray_cluster):
    """A classifier on the images of the store; the files of the train images are missing."""
    out, whole = classified
    before = rows_of(out, "predictions")
    images = images_of(out / "store")
    evaluated = {key for key, row in images.items() if row["split"] in ("val", "test")}
    train = [key for key, row in images.items() if row["split"] == "train"]
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for number, key in enumerate(train):
        shutil.move(key, hidden / str(number))
    try:
        chosen = settings(tmp_path / "out", models["probability"], store=str(out / "store"))
        result = execute(chosen, evaluate_model)
    finally:
        for number, key in enumerate(train):
            shutil.move(hidden / str(number), key)
    assert (result["counts"]["images"], result["counts"]["errors"]) == (len(evaluated), 0)
    predictions = rows_of(tmp_path / "out", "predictions")
    assert set(predictions) == set(before) == evaluated
    for key, row in predictions.items():
        np.testing.assert_allclose(row["probability"], before[key]["probability"], atol=1e-5)
    contents = {images[key]["content_id"] for key in evaluated}
    assert set(results_of(out / "store", models["probability"])) == contents
    assert not (tmp_path / "out" / "embeddings").exists()
    for split in ("val", "test"):
        assert result["metrics"][split]["accuracy"] == whole["metrics"][split]["accuracy"]
        assert "precision_at_20" not in result["metrics"][split]


def test_images_that_are_gone_are_counted(classified, models, tmp_path, ray_cluster):
    """A test image that cannot be read any more is an error with a reason, and is tried again."""
    out, _ = classified
    store = tmp_path / "store"
    shutil.copytree(out / "store", store)
    shutil.rmtree(store / "predictions")
    images = images_of(store)
    evaluated = sorted(key for key, row in images.items() if row["split"] in ("val", "test"))
    gone = next(key for key in evaluated if images[key]["split"] == "test")
    shutil.move(gone, tmp_path / "moved")
    chosen = settings(tmp_path / "out", models["probability"], store=str(store), max_errors=0)
    try:
        with pytest.raises(
            InputError, match=rf"1 of {len(evaluated)} images .*more than --max-err"
        ):
            execute(chosen, evaluate_model)
    finally:
        shutil.move(tmp_path / "moved", gone)
    assert set(rows_of(tmp_path / "out", "predictions")) == {*evaluated} - {gone}
    result = execute(chosen, evaluate_model)  # the same run resumes, and the file is back
    assert (result["counts"]["ok"], result["counts"]["errors"]) == (len(evaluated), 0)
    assert set(rows_of(tmp_path / "out", "predictions")) == {*evaluated}


def test_a_model_without_classes(classified, dataset, models, tmp_path, ray_cluster):
    out, whole = classified
    chosen = settings(tmp_path / "out", models["embedding"], data=str(dataset))
    strict = chosen.model_copy(update={"max_errors": 0.0})
    with pytest.raises(InputError, match=r"1 of 41 new images .* more than --max-errors 0"):
        execute(strict, evaluate_model)
    with pytest.raises(InputError, match=r"1 of 41 new images .* more than --max-errors 0"):
        execute(strict, evaluate_model)  # a resumed run still has the error
    images = images_of(tmp_path / "out" / "store")
    assert sum(row["status"] == "error" for row in images.values()) == 1
    result = execute(chosen, evaluate_model)  # the same run resumes
    assert result["counts"]["read"] == whole["counts"]["read"]
    assert set(rows_of(tmp_path / "out", "embeddings")) == set(rows_of(out, "embeddings"))
    assert not (tmp_path / "out" / "predictions").exists()
    for split in ("val", "test"):
        assert result["metrics"][split] == {"precision_at_20": found_in(whole, split)}
        assert result["counts"]["by_split"][split] == whole["counts"]["by_split"][split]


def test_a_model_of_vectors_that_embeds(store, tmp_path, ray_cluster):
    """The same job with vectors of the store, one row per batch."""
    uri, model = vector_model(store, ("embedding", "probability"), tmp_path)
    chosen = settings(tmp_path / "out", uri, store=str(store), batch_size=1)
    result = execute(chosen, evaluate_model)
    images = images_of(store)
    found = Store.open(str(store))
    (name,) = found.extractors()
    rows = found.vectors(name).latest().read(["content_id", "avg", "max"]).to_pylist()
    by_content = {row["content_id"]: row for row in rows}
    keys = sorted(images)
    of_keys = [by_content[images[key]["content_id"]] for key in keys]
    vectors = {
        pool: np.array([row[pool] for row in of_keys], np.float32) for pool in ("avg", "max")
    }
    expected = artifact.outputs(model, vectors)
    embeddings = rows_of(tmp_path / "out", "embeddings")
    made = np.array([embeddings[key]["embedding"] for key in keys])
    np.testing.assert_allclose(made, expected["embedding"], atol=1e-5, rtol=1e-5)
    predictions = rows_of(tmp_path / "out", "predictions")
    assert set(predictions) == {key for key in keys if images[key]["split"] != "train"}
    for key, probability in zip(keys, expected["probability"], strict=True):
        if key in predictions:
            np.testing.assert_allclose(predictions[key]["probability"], probability, atol=1e-5)
    counts = result["counts"]
    assert (counts["images"], counts["ok"], counts["errors"]) == (40, 40, 0)
    assert "read" not in counts

    # Another run uses the existing predictions, and gives the same metrics.
    again = execute(settings(tmp_path / "again", uri, store=str(store)), evaluate_model)
    assert "predict" not in again["timings"]
    assert again["metrics"] == result["metrics"]
    name = result["inputs"]["predictions"]
    assert again["inputs"]["versions"][name] == result["inputs"]["versions"][name]
    assert rows_of(tmp_path / "again", "predictions") == predictions
    # A run as of the first one also gives the same metrics.
    past = settings(tmp_path / "past", uri, store=str(store), as_of=result["run"])
    assert execute(past, evaluate_model)["metrics"] == result["metrics"]
    wrong = settings(tmp_path / "wrong", uri, store=str(store), as_of="12345678")
    with pytest.raises(InputError, match="--as-of 12345678: no run of that id"):
        execute(wrong, evaluate_model)


def test_sources_that_do_not_match_the_model(dataset, classified, store, models, tmp_path):
    vectors, _ = vector_model(store, ("probability",), tmp_path)
    chosen = settings(tmp_path / "a", vectors, data=str(dataset))
    with pytest.raises(InputError, match=r"takes vectors.* run jobs/extract\.py --data .*scans "):
        execute(chosen, evaluate_model)
    pixels = str(classified[0] / "store")
    with pytest.raises(InputError, match=r"has no vectors.*jobs/extract\.py --data … --store .*st"):
        execute(settings(tmp_path / "b", vectors, store=pixels), evaluate_model)
    made = schemas.description(
        Store.open(str(store)).vectors(*Store.open(str(store)).extractors()).latest().schema
    )
    (tmp_path / "others").mkdir()
    others, _ = vector_model(
        store, ("probability",), tmp_path / "others", features={**made, "weights_digest": "00"}
    )
    with pytest.raises(InputError, match="features were made with weights_digest"):
        execute(settings(tmp_path / "c", others, store=str(store)), evaluate_model)
    (tmp_path / "chest").mkdir()
    chest, _ = vector_model(store, ("probability",), tmp_path / "chest", dataset=CHEST_XRAY)
    with pytest.raises(InputError, match="for dataset chest_xray, not vazios"):
        execute(settings(tmp_path / "d", chest, store=str(store)), evaluate_model)
    chosen = settings(tmp_path / "e", models["both"], data=str(dataset), dataset="chest_xray")
    with pytest.raises(InputError, match="for dataset vazios, not chest_xray"):
        execute(chosen, evaluate_model)
    for source in ({}, {"store": str(store), "data": str(dataset)}):
        with pytest.raises(ValueError, match="give either --store or --data"):
            settings(tmp_path / "f", models["both"], **source)
    with pytest.raises(ValueError, match="--limit belongs to --data"):
        settings(tmp_path / "f", models["both"], store=str(store), limit=3)
