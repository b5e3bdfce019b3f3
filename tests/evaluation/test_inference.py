"""A model of images, or of features, over a whole dataset: every image once, with a plain loop's
numbers."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from conftest import SEED, join_ray

from visao_ray import tables
from visao_ray.backend import import_keras
from visao_ray.datasets.vazios import VAZIOS
from visao_ray.errors import InputError
from visao_ray.evaluation.judge import evaluate_model
from visao_ray.images.decode import decode
from visao_ray.models import saved
from visao_ray.models.saved import ModelAbout
from visao_ray.runs import execute
from visao_ray.settings import EvaluateSettings
from visao_ray.storage import locate

SIDE = 32
CLASSES = ("nvazio", "vazio")


@pytest.fixture(scope="module")
def dataset(scans, tmp_path_factory):
    """The scans, and one more file that is no image."""
    root = tmp_path_factory.mktemp("dataset") / "scans"
    shutil.copytree(scans, root)
    (root / "vazio" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 but no more")
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """URIs of models with the outputs `probability`, `embedding` and `both`."""
    keras = import_keras()
    folder = tmp_path_factory.mktemp("models")

    def seeded(seed):
        return keras.initializers.GlorotUniform(seed=seed)

    pixels = keras.Input((SIDE, SIDE, 3), dtype="uint8", name="pixels")
    x = keras.layers.Rescaling(1 / 255)(pixels)
    x = keras.layers.Conv2D(8, 4, strides=4, activation="relu", kernel_initializer=seeded(1))(x)
    embedding = keras.layers.Dense(6, kernel_initializer=seeded(2))(keras.layers.Flatten()(x))
    dense = keras.layers.Dense(2, "softmax", kernel_initializer=seeded(3), name="probability")
    probability = dense(embedding)
    kinds = {
        "probability": probability,
        "embedding": {"embedding": embedding},
        "both": {"probability": probability, "embedding": embedding},
    }
    uris = {}
    for name, output in kinds.items():
        classes = () if name == "embedding" else CLASSES
        about = ModelAbout(VAZIOS, "tiny", classes, "images", {"seed": 7}, image_size=SIDE, epoch=4)
        uris[name] = str(folder / f"{name}.keras")
        locate(uris[name]).write_bytes(saved.pack(keras.Model(pixels, output), about))
    return uris


def settings(out, model, **source):
    how = {"dataset": "vazios", "seed": SEED, "replicates": 100, "batch_size": 7}
    return EvaluateSettings(out=str(out), model=model, **how, **source)


def rows_of(out, table):
    found = pads.dataset(f"{out}/{table}").to_table().to_pylist()
    by_key = {row["key"]: row for row in found}
    assert len(by_key) == len(found)
    return by_key


def found_in(result, split):
    return result["metrics"][split]["precision_at_20"]


def plain(model, root, keys):
    images = [decode((root / key).read_bytes(), SIDE, "stretch") for key in keys]
    return saved.load(locate(model))[0].predict(np.stack(images), verbose=0)


@pytest.fixture(scope="module")
def classified(dataset, models, tmp_path_factory, _ray_at_end):
    join_ray()
    out = tmp_path_factory.mktemp("classified") / "out"
    return out, execute(settings(out, models["both"], data=str(dataset)), evaluate_model)


def test_every_image_once_with_the_numbers_of_a_plain_loop(classified, dataset, models):
    out, result = classified
    counts = result["counts"]
    assert (counts["images"], counts["ok"], counts["errors"]) == (41, 40, 1)
    errors = rows_of(out, "errors")
    assert set(errors) == {"vazio/broken.jpg"}
    assert counts["errors_by_reason"] == {errors["vazio/broken.jpg"]["error_type"]: 1}
    manifest = rows_of(out, "listing/manifest")
    embeddings, predictions = rows_of(out, "embeddings"), rows_of(out, "predictions")
    assert set(embeddings) == set(manifest) - set(errors)
    judged = {key for key in embeddings if manifest[key]["split"] != "train"}
    assert set(predictions) == judged
    assert 0 < len(judged) < 40

    keys = sorted(embeddings)
    expected = plain(models["both"], dataset, keys)
    made = np.array([embeddings[key]["embedding"] for key in keys])
    np.testing.assert_allclose(made, expected["embedding"], atol=1e-5, rtol=1e-5)
    for key, probability in zip(keys, expected["probability"], strict=True):
        for name in ("label", "split", "group", "content_id"):
            assert embeddings[key][name] == manifest[key][name]
        if key not in judged:
            continue
        row = predictions[key]
        np.testing.assert_allclose(row["probability"], probability, atol=1e-5)
        assert row["predicted"] == CLASSES[probability.argmax()]
        assert row["model"] == embeddings[key]["model"] == "tiny epoch 4"
        for name in ("label", "split", "group"):
            assert row[name] == manifest[key][name]

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
    assert any(
        "the model was trained with 7" in told for told in result["warnings"]
    )  # other splits
    assert not (out / "work").exists()


def test_train_is_not_read_without_need(classified, models, tmp_path, ray_cluster):
    """A classifier over the manifest; its images of train are gone."""
    out, whole = classified
    before = rows_of(out, "predictions")
    listing = pads.dataset(out / "listing" / "manifest").to_table()
    manifest = rows_of(out, "listing/manifest")
    judged = {key for key, row in manifest.items() if row["split"] != "train"}
    uris = [row["uri"] if row["split"] != "train" else "/gone" for row in listing.to_pylist()]
    position = listing.schema.get_field_index("uri")
    listing = listing.set_column(position, "uri", pa.array(uris))
    tables.write(locate(str(tmp_path / "manifest")), listing, tables.MANIFEST)
    chosen = settings(tmp_path / "out", models["probability"], manifest=str(tmp_path / "manifest"))
    result = execute(chosen, evaluate_model)
    assert result["counts"]["images"] == len(judged)
    predictions = rows_of(tmp_path / "out", "predictions")
    assert set(predictions) == set(before)
    for key, row in predictions.items():
        np.testing.assert_allclose(row["probability"], before[key]["probability"], atol=1e-5)
    assert not any("trained with" in told for told in result["warnings"])  # these were given
    assert not (tmp_path / "out" / "embeddings").exists()
    for split in ("val", "test"):
        assert result["metrics"][split]["accuracy"] == whole["metrics"][split]["accuracy"]
        assert "precision_at_20" not in result["metrics"][split]


def test_a_model_without_classes(classified, models, tmp_path, ray_cluster):
    out, whole = classified
    manifest = str(out / "listing" / "manifest")
    chosen = settings(tmp_path / "out", models["embedding"], manifest=manifest)
    strict = chosen.model_copy(update={"max_errors": 0.0})
    with pytest.raises(InputError, match=r"1 of 41 images .* more than --max-errors 0 allows"):
        execute(strict, evaluate_model)
    assert set(rows_of(tmp_path / "out", "errors")) == {"vazio/broken.jpg"}
    result = execute(chosen, evaluate_model)  # the same run goes on
    assert set(rows_of(tmp_path / "out", "embeddings")) == set(rows_of(out, "embeddings"))
    assert not (tmp_path / "out" / "predictions").exists()
    for split in ("val", "test"):
        assert result["metrics"][split] == {"precision_at_20": found_in(whole, split)}
        assert result["counts"]["by_split"][split] == whole["counts"]["by_split"][split]


def test_a_model_of_features_that_embeds(extracted, tmp_path, ray_cluster):
    """Views and batches that do not divide; the same job, from the features table."""
    keras = import_keras()
    schema = tables.open_table(locate(f"{extracted}/features"), "features").schema
    inputs = {pool: keras.Input((8,), name=pool) for pool in ("avg", "max")}
    start = keras.initializers.GlorotUniform(seed=5)
    joined = keras.layers.Concatenate()([inputs["avg"], inputs["max"]])
    embedding = keras.layers.Dense(3, kernel_initializer=start)(joined)
    probability = keras.layers.Dense(2, "softmax", kernel_initializer=start)(embedding)
    model = keras.Model(inputs, {"embedding": embedding, "probability": probability})
    made = tables.about(schema)
    about = ModelAbout(VAZIOS, "siamese", CLASSES, "features", {}, width=8, features=made)
    uri = str(tmp_path / "model.keras")
    locate(uri).write_bytes(saved.pack(model, about))
    features = str(extracted / "features")
    result = execute(settings(tmp_path / "out", uri, features=features), evaluate_model)
    rows = rows_of(extracted, "features")
    keys = sorted(rows)
    vectors = {
        pool: np.array([rows[key][pool] for key in keys], np.float32) for pool in ("avg", "max")
    }
    expected = saved.outputs(model, vectors)
    embeddings = rows_of(tmp_path / "out", "embeddings")
    found = np.array([embeddings[key]["embedding"] for key in keys])
    np.testing.assert_allclose(found, expected["embedding"], atol=1e-5, rtol=1e-5)
    predictions = rows_of(tmp_path / "out", "predictions")
    assert set(predictions) == {key for key in keys if rows[key]["split"] != "train"}
    for key, probability in zip(keys, expected["probability"], strict=True):
        if key in predictions:
            np.testing.assert_allclose(predictions[key]["probability"], probability, atol=1e-5)
    counts = result["counts"]
    assert (counts["images"], counts["ok"], counts["errors"]) == (40, 40, 0)

    manifest = str(extracted / "listing" / "manifest")
    wrong = settings(tmp_path / "wrong", uri, manifest=manifest)
    with pytest.raises(InputError, match=r"siamese\) takes features; give --features"):
        execute(wrong, evaluate_model)


def test_sources_that_do_not_fit(dataset, classified, extracted, models, tmp_path):
    features = str(extracted / "features")
    chosen = settings(tmp_path / "a", models["both"], features=features)
    with pytest.raises(InputError, match="takes images; give --data or --manifest"):
        execute(chosen, evaluate_model)
    manifest = str(classified[0] / "listing" / "manifest")
    chosen = settings(tmp_path / "b", models["both"], manifest=manifest)
    with pytest.raises(InputError, match="for dataset vazios, not chest_xray"):
        execute(chosen.model_copy(update={"dataset": "chest_xray"}), evaluate_model)
    for source in ({}, {"features": features, "data": str(dataset)}):
        with pytest.raises(ValueError, match="give one of --features, --data and --manifest"):
            settings(tmp_path / "c", models["both"], **source)
    with pytest.raises(ValueError, match="--limit belongs to the listing of --data"):
        settings(tmp_path / "c", models["both"], manifest=manifest, limit=3)
