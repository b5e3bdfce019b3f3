"""Extraction on a running Ray: every image once, the same numbers whatever the batches."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from visao_ray import tables
from visao_ray.backend import import_keras
from visao_ray.errors import InputError
from visao_ray.models.backbones import resolve
from visao_ray.features.pipeline import extract_features
from visao_ray.images.decode import decode
from visao_ray.runs import execute
from visao_ray.settings import ExtractSettings
from visao_ray.storage import locate


def rows_of(out) -> dict[tuple[str, int], dict]:
    rows = pads.dataset(f"{out}/features").to_table().to_pylist()
    found = {(row["key"], row["view"]): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def rows(extracted):
    return rows_of(extracted)


def test_every_image_once(extracted, rows, scans, tiny_backbone):
    result = json.loads((extracted / "result.json").read_text())
    keys = {path.relative_to(scans).as_posix() for path in scans.rglob("*.jpg")}
    assert len(keys) == 40
    assert set(rows) == {(key, 0) for key in keys}
    assert result["counts"]["images"] == result["counts"]["ok"] == result["counts"]["rows"] == 40
    assert result["counts"]["errors"] == 0
    manifest = pads.dataset(extracted / "listing" / "manifest").to_table().to_pylist()
    for row in manifest:
        made = rows[row["key"], 0]
        for name in ("label", "split", "group", "content_id"):
            assert made[name] == row[name]
    schema = tables.open_table(locate(f"{extracted}/features"), "features").schema
    backbone, _ = resolve(
        ExtractSettings(dataset="vazios", data="in", out="out", weights=tiny_backbone), 0
    )
    told = backbone.about() | {"resize": "stretch", "augment": "none", "views": 0}
    assert tables.about(schema) == told == result["details"]["about"]
    assert schema.field("avg").type.list_size == 8
    assert not (extracted / "work").exists()
    assert result["throughput"]["images_per_second"] > 0


def test_keys_are_names_and_never_places(extracted, tiny_backbone, tmp_path, ray_cluster):
    """Whatever stands in a manifest that somebody gives us, nothing is written beside `--out`."""
    listed = pads.dataset(extracted / "listing" / "manifest").to_table()
    keys = [f"../../../{number}/<b>.jpg" for number in range(listed.num_rows - 1)] + ["/etc/x.jpg"]
    strange = listed.set_column(listed.schema.get_field_index("key"), "key", pa.array(keys))
    (tmp_path / "manifest").mkdir()
    pq.write_table(strange.cast(listed.schema), tmp_path / "manifest" / "0.parquet")
    out = tmp_path / "deep" / "er" / "out"
    settings = ExtractSettings(
        manifest=str(tmp_path / "manifest"), weights=tiny_backbone, out=str(out)
    )
    execute(settings, extract_features)
    assert {key for key, _ in rows_of(out)} == set(keys)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    elsewhere = [path for path in written if out not in path.parents]
    assert elsewhere == [tmp_path / "manifest" / "0.parquet"]


def test_the_numbers_of_a_plain_loop(rows, scans, tiny_backbone):
    keys = sorted(key for key, _ in rows)
    images = np.stack([decode((scans / key).read_bytes(), 32, "stretch") for key in keys])
    model = import_keras().saving.load_model(tiny_backbone)
    maps = model.predict(images.astype(np.float32), verbose=0)
    for pool, expected in (("avg", maps.mean(axis=(1, 2))), ("max", maps.max(axis=(1, 2)))):
        made = np.array([rows[key, 0][pool] for key in keys])
        np.testing.assert_allclose(made, expected, atol=1e-5, rtol=1e-5)
        assert made.std(axis=0).max() > 1e-3


@pytest.fixture(scope="module")
def settings(extracted, tiny_backbone, tmp_path_factory):
    return ExtractSettings(
        manifest=str(extracted / "listing" / "manifest"),
        out=str(tmp_path_factory.mktemp("augmented") / "out"),
        weights=tiny_backbone,
        augment="G3",
        views=2,
        rows_per_block=64,
    )


def test_views_and_other_batches(settings, rows, ray_cluster):
    result = execute(settings, extract_features)
    made = rows_of(settings.out)
    train = {key for (key, _), row in rows.items() if row["split"] == "train"}
    assert 0 < len(train) < 40
    assert set(made) == set(rows) | {(key, view) for key in train for view in (1, 2)}
    assert result["counts"]["rows"] == 40 + 2 * len(train) == len(made)
    assert result["counts"]["ok"] == 40
    for (key, view), row in made.items():
        plain = rows[key, 0]
        assert row["label"] == plain["label"]
        difference = max(
            np.abs(np.subtract(row[pool], plain[pool])).max() for pool in ("avg", "max")
        )
        if view == 0:
            assert difference < 1e-5
        else:
            assert difference > 1e-4


def test_other_settings_are_refused(settings, extracted, tiny_backbone):
    execute(settings.model_copy(update={"batch_size": 3}), pytest.fail)  # finished: no work
    changed = {"augment": "G1", "views": 1, "resize": "letterbox", "preprocessing": "unit"}
    for name, value in changed.items():
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')} was .*--fresh"):
            execute(settings.model_copy(update={name: value}), pytest.fail)
