"""Scans of cargo by its 4-digit heading of the Harmonized System; two digits are a chapter."""

from visao_ray.datasets.spec import Dataset

NCM = Dataset(name="ncm", class_pattern=r"\d{4}", chapter_digits=2)
