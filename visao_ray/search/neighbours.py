"""The nearest images of an index, with filters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visao_ray.core import tables
from visao_ray.core.errors import InputError
from visao_ray.core.storage import is_outage
from visao_ray.search.index import VECTOR, count_partitions
from visao_ray.store import schemas
from visao_ray.store.table import INDEX_CACHE, TableVersion, quoted, reason_of_lance

#: Parts of the index that a search reads: at least 20, and a twelfth of all of them.
_LEAST_PROBES = 20
_PROBED_SHARE = 12
#: The index compares compressed vectors; ten times as many as wanted are compared exactly.
_REFINE = 10
_COLUMNS = ["content_id", *(name for name, _ in schemas.INDEX_COLUMNS)]
DISTANCE = "distance"


class Neighbours:
    """Search in an index at one version; it may be used by many threads.

    Args:
        at: the index.
        cache: limit of the memory that the index takes, in bytes.
    """

    def __init__(self, at: TableVersion, cache: int = INDEX_CACHE) -> None:
        self.at = at
        self._dataset = at.open(cache)
        partitions = count_partitions(self._dataset)
        self._probes = min(partitions, max(_LEAST_PROBES, partitions // _PROBED_SHARE))
        self.width = schemas.outputs(self._dataset.schema)[VECTOR]

    def row(self, where: str) -> pa.Table:
        """Return the rows for which a condition holds, with their vectors."""
        return self._dataset.to_table(columns=[*_COLUMNS, VECTOR], filter=where)

    def nearest(
        self,
        vector: npt.NDArray[np.float32],
        k: int,
        where: str | None = None,
        content: bytes | None = None,
        group: str | None = None,
    ) -> pa.Table:
        """Return the nearest images, nearest first.

        Args:
            vector: float32[D].
            k: number of images.
            where: SQL condition on the columns of the index.
            content: a content to leave out, such as that of the query.
            group: a group to leave out, such as that of the query.

        Returns:
            At most k rows with `content_id`, the columns of `schemas.INDEX_COLUMNS`, and
            `distance`, the Euclidean distance.

        Raises:
            InputError: the condition is not SQL, or names an unknown column.
        """
        # What is left out is few, so it is removed here; as a condition it would be a list of
        # almost all rows.
        more = 0 if content is None else 1
        if group is not None:
            more += int(self._dataset.count_rows(f'"group" = {quoted(group)}'))
        nearest = {
            "column": VECTOR,
            "q": np.asarray(vector, np.float32),
            "k": k + more,
            "nprobes": self._probes,
            "refine_factor": _REFINE,
        }
        try:
            found = self._dataset.to_table(
                columns=[*_COLUMNS, "_distance"], nearest=nearest, filter=where, prefilter=True
            )
        except (ValueError, OSError) as error:
            if where is None or is_outage(error):
                raise
            raise InputError(f"--where {where}: {reason_of_lance(error)}") from error
        keep = np.ones(len(found), bool)
        if content is not None:
            keep &= np.array([one != content for one in found["content_id"].to_pylist()], bool)
        if group is not None:
            keep &= np.array([one != group for one in found["group"].to_pylist()], bool)
        found = found.filter(pa.array(keep)).slice(0, k)
        # Lance returns the square of the distance.
        distance = np.sqrt(np.maximum(found["_distance"].to_numpy(), 0))
        return found.drop_columns(["_distance"]).append_column(DISTANCE, pa.array(distance))

    def vector_of(self, row: pa.Table) -> npt.NDArray[np.float32]:
        """Return the vector of the first row, float32[D]."""
        found: npt.NDArray[np.float32] = tables.matrix(row[VECTOR])[0]
        return found
