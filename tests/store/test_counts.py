"""Counts of images: by status, by reason, and by split and label."""

import pytest
from stores import make_store

from visao_ray.datasets.registry import find_dataset
from visao_ray.store import schemas
from visao_ray.store.counts import count_images


@pytest.mark.parametrize("fragment_rows", [2, 100])
def test_images_by_status_reason_split_and_label(tmp_path, fragment_rows):
    rows = [
        {"key": "a", "label": "vazio", "split": "val"},
        {"key": "b", "label": "nvazio", "split": "val"},
        {"key": "c", "label": "vazio", "split": "val"},
        {"key": "d", "split": "train"},
        {"key": "e", "label": "vazio"},
        {"key": "f", "status": schemas.ERROR, "error": "truncated: 3 bytes"},
        {"key": "g", "status": schemas.ERROR, "error": "truncated: 9 bytes"},
        {"key": "h", "status": schemas.MISSING, "split": "train"},
    ]
    store = make_store(tmp_path, find_dataset("vazios"), rows, fragment_rows=fragment_rows)
    counts = count_images(store.images.latest())
    assert counts.status == {"ok": 5, "error": 2, "missing": 1}
    assert counts.to_json() == {
        "images": 8,
        "ok": 5,
        "errors": 3,
        "errors_by_reason": {"truncated": 2, "missing": 1},
        "by_split": {
            "train": {"": 1},
            "val": {"nvazio": 1, "vazio": 2},
            "test": {},
            "": {"vazio": 1},
        },
    }
    assert list(counts.to_json()["by_split"])[:3] == ["train", "val", "test"]


def test_an_empty_store(tmp_path):
    store = make_store(tmp_path, find_dataset("vazios"), [])
    assert count_images(store.images.latest()).to_json() == {
        "images": 0,
        "ok": 0,
        "errors": 0,
        "errors_by_reason": {},
        "by_split": {"train": {}, "val": {}, "test": {}},
    }
