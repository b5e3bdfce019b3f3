"""Scans of cargo, labelled by 4-digit Harmonized System heading; 2 digits are a chapter."""

from visao_ray.datasets.spec import Dataset

NCM = Dataset(name="ncm", class_pattern=r"\d{4}", chapter_digits=2)
