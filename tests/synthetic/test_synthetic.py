"""Rendered datasets: they match their plan, and their pixels show the classes."""

import io
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from visao_ray.core.errors import InputError
from visao_ray.core.storage import locate
from visao_ray.synthetic.dataset import TRUTH, render_dataset
from visao_ray.synthetic.detector import Scan
from visao_ray.synthetic.headings import ncm_headings
from visao_ray.synthetic.recipe import SyntheticRecipe, plan
from visao_ray.synthetic.scan import encode, render

EVERY_CLASS = [
    ("chest_xray", "NORMAL"),
    ("chest_xray", "PNEUMONIA"),
    ("vazios", "nvazio"),
    ("vazios", "vazio"),
    ("ncm", "8703"),
]


def test_headings():
    headings = ncm_headings()
    assert len(set(headings)) == 868
    assert list(headings) == sorted(headings)
    assert all(len(h) == 4 and 1 <= int(h[:2]) <= 97 and h[:2] != "77" for h in headings)
    assert len({h[:2] for h in headings}) == 96
    few = ncm_headings(30)
    assert len(set(few)) == 30
    assert set(few) <= set(headings)
    assert len({h[:2] for h in few}) > 20
    with pytest.raises(InputError):
        ncm_headings(869)


def test_import_loads_no_heavy_packages():
    code = "import sys, visao_ray.synthetic.scan; print({'ray', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("dataset", "label"), EVERY_CLASS)
def test_render_is_a_function_of_its_arguments(dataset, label):
    image = render(dataset, label, 7, 5)
    assert image.dtype == np.uint8
    assert image.ndim == 2
    assert 120 < image.shape[0] < 440
    assert 230 < image.shape[1] < 600
    assert image.min() < 60
    assert image.max() > 190
    assert np.array_equal(image, render(dataset, label, 7, 5))
    for other in (render(dataset, label, 8, 5), render(dataset, label, 7, 6)):
        assert not np.array_equal(image, other)
    again = np.asarray(Image.open(io.BytesIO(encode(image, 90))))
    assert again.shape == image.shape
    assert np.abs(again.astype(int) - image).mean() < 8


def test_every_difficulty_renders_and_shows():
    for dataset, images in (("vazios", 150), ("chest_xray", 150), ("ncm", 60)):
        seen = set()
        for image in plan(SyntheticRecipe(dataset, images, classes=4, difficult=1.0)):
            case = (image.true_label, image.difficulty)
            if case in seen:
                continue
            seen.add(case)
            hard = render(dataset, image.true_label, image.index, 0, image.difficulty)
            plain = render(dataset, image.true_label, image.index, 0)
            assert image.difficulty
            assert not np.array_equal(hard, plain), case
        assert len({difficulty for _, difficulty in seen}) >= 4


def test_attenuation_follows_beer_lambert():
    """Without noise, counts fall as exp(-A): a double wall squares the transmission."""
    wall = np.full((64, 64), 0.7, np.float32)
    counts = [
        Scan(wall * k, photons=1e6, psf=0.0, stripes=0.0).counts(np.random.default_rng(0)).mean()
        for k in (0, 1, 2)
    ]
    assert counts[0] == pytest.approx(60_000, rel=1e-3)
    assert counts[1] / counts[0] == pytest.approx(np.exp(-0.7), rel=1e-3)
    assert counts[2] / counts[0] == pytest.approx(np.exp(-1.4), rel=1e-3)


@pytest.mark.parametrize("dataset", ["chest_xray", "vazios", "ncm"])
def test_plan_adds_up(dataset):
    recipe = SyntheticRecipe(
        dataset, 2000, classes=50, seed=4, difficult=0.2, wrong_labels=0.025, duplicates=0.03
    )
    images = list(plan(recipe))
    by_key = {image.key: image for image in images}
    assert len(by_key) == 2000
    assert {image.label for image in images} == set(recipe.class_names)
    assert all(image.key.split("/")[0] == image.label for image in images)
    copies = [image for image in images if image.duplicate_of]
    assert len(copies) == 60
    for copy in copies:
        source = by_key[copy.duplicate_of]
        assert not source.duplicate_of
        assert (copy.true_label, copy.index, copy.difficulty, copy.quality) == (
            source.true_label,
            source.index,
            source.difficulty,
            source.quality,
        )
    own = [image for image in images if not image.duplicate_of]
    assert sum(image.label != image.true_label for image in own) == 50
    assert len({image.index for image in own}) == len(own)
    assert sum(image.difficulty != "" for image in images) == pytest.approx(400, abs=30)
    labels_of_group: dict[str, set[str]] = {}
    for image in images:
        labels_of_group.setdefault(image.group, set()).add(image.label)
    assert all(len(labels) == 1 for labels in labels_of_group.values())
    assert images == list(plan(recipe))


def test_chest_names_and_patients():
    images = list(plan(SyntheticRecipe("chest_xray", 1000)))
    counts = Counter(image.label for image in images)
    assert counts == {"NORMAL": 250, "PNEUMONIA": 750}
    sizes = Counter(image.group for image in images)
    assert set(sizes.values()) == {1, 2, 3}
    for image in images:
        name = image.key.split("/")[1]
        assert name.endswith(".jpeg")
        assert name.startswith(f"{image.group}-" if image.label == "NORMAL" else f"{image.group}_")


def test_long_tail():
    recipe = SyntheticRecipe("ncm", 41_809)
    counts = Counter(image.label for image in plan(recipe))
    assert sum(counts.values()) == 41_809
    assert set(counts) == set(ncm_headings())
    ordered = sorted(counts.values(), reverse=True)
    assert ordered[-1] >= 1
    assert ordered[0] > 20 * np.median(ordered)
    even = Counter(
        i.label for i in plan(SyntheticRecipe("ncm", 1000, classes=30, imbalance="even"))
    )
    assert set(even.values()) == {33, 34}


@pytest.mark.parametrize(
    "wrong",
    [
        {"dataset": "mamografia"},
        {"images": 0},
        {"seed": -1},
        {"difficult": 1.5},
        {"dataset": "ncm", "classes": 900},
        {"wrong_labels": 0.6, "duplicates": 0.5},
    ],
)
def test_recipe_rejects(wrong):
    with pytest.raises(InputError):
        SyntheticRecipe(**wrong)


def _thumbnails(recipe):
    """Return thumbnails, float32[N, 32*32], and true labels of the images of a recipe."""
    pixels, labels = [], []
    for image in plan(recipe):
        grey = render(recipe.dataset, image.true_label, image.index, recipe.seed, image.difficulty)
        small = Image.fromarray(grey).resize((32, 32), Image.Resampling.BOX)
        pixels.append(np.asarray(small, np.float32).ravel() / 255)
        labels.append(recipe.class_names.index(image.true_label))
    return np.array(pixels), np.array(labels)


@pytest.mark.parametrize(
    ("recipe", "low", "high"),
    [
        (SyntheticRecipe("vazios", 500), 0.8, 0.995),
        (SyntheticRecipe("ncm", 400, classes=10, imbalance="even"), 0.5, 0.995),
        (SyntheticRecipe("chest_xray", 500), 0.6, 0.99),
    ],
    ids=lambda value: getattr(value, "dataset", ""),
)
def test_classes_are_separable_but_not_trivially(recipe, low, high):
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.metrics import balanced_accuracy_score

    pixels, labels = _thumbnails(recipe)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    model = ExtraTreesClassifier(150, class_weight="balanced", min_samples_leaf=2, random_state=0)
    model.fit(pixels[train], labels[train])
    score = balanced_accuracy_score(labels[test], model.predict(pixels[test]))
    assert low < score < high


def test_render_dataset_follows_the_plan_and_resumes(tmp_path, ray_cluster):
    recipe = SyntheticRecipe("vazios", 150, seed=2, wrong_labels=0.04, duplicates=0.04)
    out = locate(str(tmp_path / "dataset"))
    counts = render_dataset(recipe, out)
    images = list(plan(recipe))
    assert counts["images"] == counts["rendered"] == 150
    assert counts["duplicates"] == 6
    assert counts["wrong_labels"] == sum(i.label != i.true_label for i in images)
    assert counts["difficult"] == sum(i.difficulty != "" for i in images)

    folder = tmp_path / "dataset" / "images"
    written = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.jp*g")}
    assert set(written) == {image.key for image in images}
    for image in images[::10] + [i for i in images if i.duplicate_of]:
        grey = render("vazios", image.true_label, image.index, 2, image.difficulty)
        assert written[image.key] == encode(grey, image.quality)
        if image.duplicate_of:
            assert written[image.key] == written[image.duplicate_of]
    truth = pq.read_table(tmp_path / "dataset" / "truth")
    assert truth.schema.equals(TRUTH)
    assert truth.num_rows == 150
    assert counts["bytes"] == sum(map(len, written.values()))

    # After a kill, a part of the truth may be missing, or an image incomplete.
    (tmp_path / "dataset" / "truth" / "part-000001.parquet").unlink()
    incomplete = folder / images[3].key
    incomplete.write_bytes(incomplete.read_bytes()[:100])
    again = render_dataset(recipe, out)
    assert again == counts | {"rendered": 128}
    assert written == {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.jp*g")
    }
    assert render_dataset(recipe, out) == counts | {"rendered": 0}

    with pytest.raises(InputError, match="another recipe"):
        render_dataset(SyntheticRecipe("vazios", 150, seed=3), out)
