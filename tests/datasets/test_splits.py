"""Groups of images, and splits that do not change when images are added."""

import pytest

from visao_ray.datasets.registry import DATASETS
from visao_ray.datasets.splits import assign_split


@pytest.mark.parametrize(
    ("dataset", "key", "group"),
    [
        ("chest_xray", "train/PNEUMONIA/person123_bacteria_45.jpeg", "person123"),
        ("chest_xray", "train/PNEUMONIA/person123_virus_2.jpeg", "person123"),
        ("chest_xray", "train/PNEUMONIA/person12_virus_2.jpeg", "person12"),
        ("chest_xray", "train/NORMAL/IM-0115-0001.jpeg", "IM-0115"),
        ("chest_xray", "train/NORMAL/IM-0640-0001-0001.jpeg", "IM-0640"),
        ("chest_xray", "train/NORMAL/IM-0640-0001-0002.jpeg", "IM-0640"),
        ("chest_xray", "test/NORMAL/NORMAL2-IM-0095-0001.jpeg", "NORMAL2-IM-0095"),
        ("chest_xray", "NORMAL/film 7.v2.png", "film 7.v2"),
        ("vazios", "vazio/000012.jpg", "000012"),
        ("vazios", "vazio/2019/05/MSCU1234567.jpg", "MSCU1234567"),
        ("ncm", "8703/no-extension", "no-extension"),
    ],
)
def test_the_group_of_a_file_name(dataset, key, group):
    assert DATASETS[dataset].group_of(key) == group


def splits(names, **options):
    arguments = {"seed": 0, "val_share": 0.1, "test_share": 0.1} | options
    return {name: assign_split(name, **arguments) for name in names}


GROUPS = [f"person{number}" for number in range(20_000)]


def test_shares_are_met():
    found = list(splits(GROUPS, val_share=0.15, test_share=0.05).values())
    # Four standard deviations of 20,000 draws.
    assert abs(found.count("val") / 20_000 - 0.15) < 4 * (0.15 * 0.85 / 20_000) ** 0.5
    assert abs(found.count("test") / 20_000 - 0.05) < 4 * (0.05 * 0.95 / 20_000) ** 0.5
    assert set(splits(GROUPS, val_share=0.0).values()) == {"train", "test"}
    assert set(splits(GROUPS, test_share=0.0).values()) == {"train", "val"}


def test_a_split_depends_on_the_name_and_the_seed_alone():
    first = splits(GROUPS)
    some = GROUPS[::-7]
    assert splits(some) == {name: first[name] for name in some}
    assert first == splits(GROUPS)
    other = splits(GROUPS, seed=1)
    same = sum(first[name] == other[name] for name in GROUPS) / len(GROUPS)
    assert abs(same - (0.8**2 + 2 * 0.1**2)) < 0.02  # as independent draws agree


def test_a_larger_share_takes_from_train_alone():
    small, large = splits(GROUPS), splits(GROUPS, val_share=0.3)
    for name in GROUPS:
        assert large[name] == small[name] or (small[name], large[name]) == ("train", "val")
