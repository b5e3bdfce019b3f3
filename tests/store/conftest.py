"""Locations of small tables and stores: a local folder and the S3 server."""

import itertools
from collections.abc import Callable

import pytest

from visao_ray.core.lease import Owner
from visao_ray.core.storage import locate
from visao_ray.datasets.registry import find_dataset
from visao_ray.store import schemas, table
from visao_ray.store.store import Description

_numbers = itertools.count()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest) -> str:
    """Return the URI of an empty folder."""
    if request.param == "local":
        return str(request.getfixturevalue("tmp_path") / "place")
    return f"{request.getfixturevalue('s3').uri}/store-tests/{next(_numbers)}"


@pytest.fixture
def groups(place: str) -> table.Table:
    """Return an empty table of groups with a declared key."""
    found = table.Table(locate(f"{place}/groups.lance"))
    found.create(schemas.GROUPS)
    return found


@pytest.fixture(scope="session")
def description() -> Description:
    """Return the description of a store for the dataset vazios."""
    return Description(find_dataset("vazios").to_json(), seed=0, val_share=0.1, test_share=0.1)


@pytest.fixture(scope="session")
def owner() -> Callable[[str], Owner]:
    """Return a function that creates the owner of a lease from the id of its run."""
    return lambda run: Owner.here(job="test", run=run)
