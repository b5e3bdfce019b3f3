"""The model file: plain Keras loads it, and it holds its metadata."""

import json
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest

from visao_ray.core.backend import import_keras
from visao_ray.core.errors import InputError
from visao_ray.core.storage import locate
from visao_ray.datasets.chest_xray import CHEST_XRAY
from visao_ray.datasets.ncm import NCM
from visao_ray.datasets.vazios import VAZIOS
from visao_ray.models import artifact
from visao_ray.models.artifact import ModelMetadata
from visao_ray.models.head import HeadSettings, build_head, compile_head
from visao_ray.models.normalization import FeatureStats

WIDTH = 6
FEATURES = {"backbone": "gauss", "weights": "a", "weights_digest": "12", "image_size": 224}
HEAD = ModelMetadata(
    dataset=VAZIOS,
    family="head",
    classes=("nvazio", "vazio"),
    takes="features",
    settings={"units": 8, "class_weight": {"nvazio": 3.0}},
    width=WIDTH,
    features=FEATURES,
    trial=3,
    epoch=2,
)
IMAGES = ModelMetadata(VAZIOS, "siamese", (), "images", {}, image_size=8, epoch=4)


@pytest.fixture(scope="module")
def vectors():
    avg = np.random.default_rng(0).normal(5, 2, size=(200, WIDTH)).astype(np.float32)
    return {"avg": avg, "max": avg + 1}


@pytest.mark.parametrize("pool", ["avg", "max", "both"])
@pytest.mark.parametrize("layers", [0, 2])
def test_file_stores_a_head(tmp_path, vectors, pool, layers):
    keras = import_keras()
    settings = HeadSettings(pool=pool, layers=layers, units=8, l2=1e-3, learning_rate=0.05)
    keras.utils.set_random_seed(0)
    stats = {name: FeatureStats.of(part) for name, part in vectors.items()}
    model = build_head(settings, WIDTH, 2, stats)
    compile_head(model, settings)
    model.fit(vectors, np.zeros(200, np.int32), batch_size=100, epochs=5, verbose=0)
    expected = model.predict(vectors, verbose=0)
    place = locate(str(tmp_path / "head.keras"))
    place.write_bytes(artifact.pack(model, HEAD))

    loaded, metadata = artifact.load(place)
    assert metadata == HEAD
    # Plain Keras, in safe mode, reads the same file.
    plain = keras.saving.load_model(place.path, safe_mode=True)
    assert not plain.compiled  # no optimizer in it
    for head in (loaded, plain):
        found = artifact.outputs(head, vectors)
        assert found.keys() == {"probability"}
        assert found["probability"].dtype == np.float32
        assert found["probability"].shape == (200, 2)
        np.testing.assert_allclose(found["probability"], expected, atol=1e-7)
    np.testing.assert_allclose(expected.sum(axis=1), 1, atol=1e-6)
    assert expected[:, 0].mean() > 0.5  # it learned the only class it saw


def test_file_stores_named_outputs(tmp_path):
    keras = import_keras()
    keras.utils.set_random_seed(1)
    pixels = keras.Input((8, 8, 3), dtype="uint8", name="pixels")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels))
    embedding = keras.layers.Dense(5, name="embedding")(x)
    probability = keras.layers.Dense(3, "softmax", name="probability")(embedding)
    images = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), np.uint8)
    place = locate(str(tmp_path / "model.keras"))
    for names in (("embedding",), ("probability", "embedding")):
        made = {"embedding": embedding, "probability": probability}
        model = keras.Model(pixels, {name: made[name] for name in names})
        expected = model.predict(images, verbose=0)
        metadata = replace(IMAGES, classes=("a", "b", "c") if "probability" in names else ())
        place.write_bytes(artifact.pack(model, metadata))
        loaded, read = artifact.load(place)
        assert read == metadata
        assert read.outputs == {name: {"embedding": 5, "probability": 3}[name] for name in names}
        found = artifact.outputs(loaded, images)
        assert found.keys() == set(names)
        for name in names:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    with pytest.raises(ValueError, match=r"2 classes has outputs .*'probability': 3"):
        artifact.pack(model, replace(IMAGES, classes=("a", "b")))


def test_check_names_the_difference():
    elsewhere = FEATURES | {"weights": "elsewhere", "augment": "G1"}
    HEAD.check_features(VAZIOS, WIDTH, elsewhere, "--model m")
    with pytest.raises(InputError, match="dataset vazios, not ncm"):
        HEAD.check_features(NCM, WIDTH, FEATURES, "--model m")
    HEAD.check_features(None, WIDTH, FEATURES, "--model m")  # its own
    other = replace(VAZIOS, positive="vazio")
    with pytest.raises(
        InputError, match=r"positive of dataset vazios was nvazio .* but now it is vazio"
    ):
        HEAD.check_features(other, WIDTH, FEATURES, "--model m")
    with pytest.raises(InputError, match="7 values per pool, the model takes 6"):
        HEAD.check_features(VAZIOS, 7, FEATURES, "--model m")
    with pytest.raises(InputError, match="weights_digest 13"):
        HEAD.check_features(VAZIOS, WIDTH, FEATURES | {"weights_digest": "13"}, "--model m")
    with pytest.raises(InputError, match=r"--model m: .*takes images, not vectors"):
        IMAGES.check_features(VAZIOS, WIDTH, FEATURES, "--model m")

    IMAGES.check_images(VAZIOS, "--model m")
    with pytest.raises(InputError, match="dataset vazios, not chest_xray"):
        IMAGES.check_images(CHEST_XRAY, "--model m")
    with pytest.raises(InputError, match=r"--model m: .*takes vectors .*give --store"):
        HEAD.check_images(VAZIOS, "--model m")


def test_name():
    assert HEAD.name == "head trial 3"
    assert IMAGES.name == "siamese epoch 4"
    assert replace(HEAD, family="svm", trial=-1, epoch=0).name == "svm"


def test_other_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with zipfile.ZipFile(tmp_path / "broken.keras", "w") as archive:
        archive.writestr("visao_ray.json", json.dumps(asdict(HEAD)))
    (tmp_path / "text.keras").write_text("no archive")
    for name in ("other.keras", "broken.keras", "text.keras", "missing.keras"):
        with pytest.raises(InputError, match=name):
            artifact.load(locate(str(tmp_path / name)))
