"""The classes of a dataset in index order, from the labels of its images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError
from visao_ray.datasets.spec import Dataset


def find_classes(
    dataset: Dataset, train: Iterable[str], val: Iterable[str], where: str
) -> tuple[str, ...]:
    """Find the classes in the labels of train and val.

    Args:
        dataset: dataset that the labels belong to.
        train: labels of train; may repeat.
        val: labels of val; may repeat.
        where: start of an error message.

    Returns:
        The classes in index order.

    Raises:
        InputError: a label is not a class, there is only one class, or a class of a dataset with
            fixed classes has no train rows.
    """
    in_train = set(train)
    found = sorted(in_train | set(val))
    strange = [name for name in found if not dataset.has_class(name)]
    if strange:
        raise InputError(f"{where}: label '{strange[0]}' is no class of dataset {dataset.name}")
    missing = sorted(set(dataset.classes) - in_train)
    if missing:
        raise InputError(f"{where}: no train rows of class {', '.join(missing)}")
    if len(found) < 2:
        raise InputError(f"{where}: only class '{found[0]}' in train and val; two are needed")
    return dataset.classes or tuple(found)


def class_numbers(names: Iterable[str], classes: tuple[str, ...]) -> npt.NDArray[np.int32]:
    """Return the class index of each label, int32[N]."""
    position = {name: index for index, name in enumerate(classes)}
    return np.array([position[name] for name in names], np.int32)
