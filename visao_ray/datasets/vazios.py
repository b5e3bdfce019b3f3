"""Scans of containers declared empty: is there cargo in them?"""

from visao_ray.datasets.spec import Dataset

VAZIOS = Dataset(name="vazios", classes=("nvazio", "vazio"), positive="nvazio")
