"""Chest X-rays of children (Kermany et al., 2018), with the file names of Kaggle's archive."""

from visao_ray.datasets.spec import Dataset

CHEST_XRAY = Dataset(
    name="chest_xray",
    classes=("NORMAL", "PNEUMONIA"),
    positive="PNEUMONIA",
    group_pattern=r"person\d+|(?:NORMAL2-)?IM-\d+",
)
