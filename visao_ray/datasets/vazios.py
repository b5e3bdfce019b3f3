"""Scans of containers that are declared empty; the classes say whether they hold cargo."""

from visao_ray.datasets.spec import Dataset

VAZIOS = Dataset(name="vazios", classes=("nvazio", "vazio"), positive="nvazio")
