"""The actor that runs an engine on blocks of pixels."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visao_ray.core import profiling
from visao_ray.core.profiling import SPENT
from visao_ray.inference.engines.base import EngineFactory
from visao_ray.inference.loading import LOADED

logger = logging.getLogger(__name__)


def computed_schema(outputs: Mapping[str, int]) -> pa.Schema:
    """Return the schema of the engine's rows: `LOADED` with the outputs in place of the pixels."""
    plain = [field for field in LOADED if field.name not in ("pixels", SPENT)]
    vectors = [pa.field(name, pa.list_(pa.float32(), width)) for name, width in outputs.items()]
    return pa.schema([*plain, *vectors, profiling.FIELD])


class ModelActor:
    """Run one engine on blocks of rows, as a callable class for `Dataset.map_batches`.

    Args:
        factory: builds the engine.
        labels: labels of the run in the lines of the log.
    """

    def __init__(self, factory: EngineFactory, labels: Mapping[str, str]) -> None:
        self._engine = factory.build()
        self._size = factory.image_size
        self._schema = computed_schema(factory.outputs)
        self._labels = dict(labels)
        self._idle_since: float | None = None
        logging.basicConfig(level=logging.INFO, format="%(message)s")

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the rows of `computed_schema` for a block of rows of `LOADED`."""
        start = time.perf_counter()
        wait = start - (self._idle_since or start)
        readable = np.asarray(block["pixels"].is_valid())
        pixels = self._pixels(block["pixels"].filter(pa.array(readable)))
        found = self._engine(pixels) if len(pixels) else {}
        seconds = time.perf_counter() - start
        # One line per block in the actor's log, always with the same keys.
        counted = {"images": int(readable.sum()), "seconds": round(seconds, 3)}
        logger.info(json.dumps({**counted, "waited": round(wait, 3), **self._labels}))
        columns = {name: block[name] for name in block.column_names if name != "pixels"}
        for name in self._engine.outputs:
            kind = self._schema.field(name).type
            columns[name] = _scatter(found.get(name), readable, kind.list_size)
        columns[SPENT] = profiling.add_actor_costs(block[SPENT], wait, seconds)
        rows = pa.table(columns).select(self._schema.names).cast(self._schema)
        self._idle_since = time.perf_counter()
        return rows

    def _pixels(self, images: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
        """Return images as uint8[N, S, S, 3]; grey images are repeated in the three channels."""
        side = self._size
        batch = np.empty((len(images), side, side, 3), np.uint8)
        for position, image in enumerate(images):
            batch[position] = np.frombuffer(image.as_buffer(), np.uint8).reshape(side, side, -1)
        return batch


def _scatter(
    values: npt.NDArray[np.float32] | None, where: npt.NDArray[np.bool_], width: int
) -> pa.Array:
    """Put vectors float32[n, width] in the n rows where `where` is true; other rows are null."""
    full = np.zeros((len(where), width), np.float32)
    if values is not None:
        full[where] = values
    flat = pa.array(full.reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(~where))
