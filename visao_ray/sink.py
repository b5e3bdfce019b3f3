"""One exactly-once write for several tables.

Ray Data writes to one sink, but an image ends in one of two tables: features or errors. Writing
both from the same task, under the same file name, keeps Ray Data's two-phase checkpoint true for
both: an interrupted write is found by that name and removed before the run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.data._internal.datasource.parquet_datasink import ParquetDatasink

from visao_ray import meters, stages
from visao_ray.stages import Stages
from visao_ray.storage import Location
from visao_ray.tables import TABLE


class TablesSink(ParquetDatasink):  # type: ignore[misc]
    """Writes each row of a block to the table that its column `table` names.

    After the write, `stages` has what all rows cost, by their column `spent`. Ray has no public way
    to split a write, hence the private base class; `pyproject.toml` pins the Ray release it was
    checked with.

    Args:
        labels: what metrics tell this write by, as of `Run.labels`; without, rows need not tell
            their costs and nothing is counted.
    """

    def __init__(
        self,
        out: Location,
        schemas: Mapping[str, pa.Schema],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(out.path, filesystem=out.filesystem)
        self._schemas = dict(schemas)
        self._labels = labels
        self.stages = Stages()

    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        super().on_write_start(schema)
        for name in self._schemas:
            self.filesystem.create_dir(f"{self.path}/{name}", recursive=True)

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> Stages | None:
        """Runs in a task; the driver gets what the attempt returns that succeeds."""
        start = time.perf_counter()
        parts = [part for part in blocks if part.num_rows]
        super().write(parts, ctx)
        if not parts or self._labels is None:
            return None
        rows = pa.concat_tables(parts)
        found = stages.written(rows, time.perf_counter() - start, time.time())
        meters.count(found, self._labels)
        return found

    def on_write_complete(self, write_result: Any) -> None:
        super().on_write_complete(write_result)
        self.stages = stages.total(part for part in write_result.write_returns if part is not None)

    def _write_parquet_files(
        self, tables: list[pa.Table], filename: str, *_args: Any, **_kwargs: Any
    ) -> None:
        rows = pa.concat_tables(tables)
        for name, schema in self._schemas.items():
            part = rows.filter(pc.equal(rows[TABLE], name))
            if part.num_rows:
                target = f"{self.path}/{name}/{filename}"
                part = part.select(schema.names).cast(schema)
                pq.write_table(part, target, filesystem=self.filesystem)
