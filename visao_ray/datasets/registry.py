"""Registered datasets, and datasets described in TOML files."""

from __future__ import annotations

import tomllib

from visao_ray.core.errors import InputError
from visao_ray.core.registry import Registry
from visao_ray.core.storage import locate, reason
from visao_ray.datasets.chest_xray import CHEST_XRAY
from visao_ray.datasets.ncm import NCM
from visao_ray.datasets.spec import Dataset
from visao_ray.datasets.vazios import VAZIOS

#: The built-in datasets are those of the 2019 study, with its folder names and class order.
DATASETS: Registry[Dataset] = Registry("dataset", (CHEST_XRAY, VAZIOS, NCM))

#: Adds a dataset; a plugin calls it when it is imported.
register = DATASETS.register

_ENDING = ".toml"


def find_dataset(name_or_uri: str) -> Dataset:
    """Find the dataset that `--dataset` names.

    Args:
        name_or_uri: a registered name, or the path or s3:// URI of a TOML file with the fields of
            `Dataset`. If the file has no `name`, its stem is used.

    Returns:
        The dataset.

    Raises:
        InputError: the name is unknown, or the file is missing or wrong; one line with the fix.
    """
    if name_or_uri.lower().endswith(_ENDING):
        return _read(name_or_uri)
    if name_or_uri in DATASETS:
        return DATASETS[name_or_uri]
    raise InputError(
        f"--dataset {name_or_uri}: unknown; known datasets are {', '.join(DATASETS)}; describe any "
        "other dataset in a TOML file and pass --dataset FILE.toml"
    )


def _read(uri: str) -> Dataset:
    location = locate(uri)
    try:
        values = tomllib.loads(location.read_bytes().decode())
        stem = location.path.rsplit("/", 1)[-1][: -len(_ENDING)]
        return Dataset.from_json({"name": stem, **values})
    except OSError as error:
        what = f"cannot be read: {reason(error)}"
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        what = f"not valid TOML: {reason(error)}"
    except InputError as error:
        what = str(error)
    raise InputError(f"--dataset {uri}: {what}")
