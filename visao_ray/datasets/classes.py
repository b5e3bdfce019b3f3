"""The classes of a dataset in index order, from the labels that are there."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError
from visao_ray.datasets.spec import Dataset


def find_classes(
    dataset: Dataset, train: Iterable[str], val: Iterable[str], where: str
) -> tuple[str, ...]:
    """The classes in index order, of the labels found in train and val.

    Args:
        dataset: whose labels they are.
        train: labels of train, each once or more.
        val: labels of val.
        where: begins the message of an error.

    Raises:
        InputError: labels that are no classes, one class alone, or a class without train rows
            (datasets with fixed classes).
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
    """Class index of each label, int32[N]."""
    position = {name: index for index, name in enumerate(classes)}
    return np.array([position[name] for name in names], np.int32)
