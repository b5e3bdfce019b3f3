"""Rows and files of small Lance tables in tests."""

from collections.abc import Sequence

import pyarrow as pa

from visao_ray.core.storage import locate
from visao_ray.store import schemas, table
from visao_ray.store.table import TableVersion, write_fragments


def group_rows(names: Sequence[str], split: str | None = "train") -> pa.Table:
    """Build rows of `groups`."""
    count = len(names)
    columns = [pa.array(names, pa.string()), pa.array([split] * count, pa.string())]
    return pa.table([*columns, pa.nulls(count, schemas.TIME)], schema=schemas.GROUPS)


def append_groups(at: TableVersion, names: Sequence[str], split: str = "train") -> TableVersion:
    """Append groups as one fragment."""
    return table.append(at, write_fragments(at.uri, schemas.GROUPS, group_rows(names, split)))


def files_of(uri: str) -> dict[str, int]:
    """Return the size of every file of a table, by path relative to the table."""
    place = locate(uri)
    found = {}
    for file in place.files():
        info = file.filesystem.get_file_info(file.path)
        found[file.path[len(place.path) + 1 :]] = info.size
    return found
