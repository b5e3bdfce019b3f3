"""The actor that holds the network and turns blocks of pixels into feature vectors."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visao_ray import stages, tables
from visao_ray.features.backbones import Backbone, build
from visao_ray.stages import SPENT
from visao_ray.storage import Location
from visao_ray.tables import TABLE

logger = logging.getLogger(__name__)

#: Rows between loading and extraction: one a view, or one an image that could not be read.
LOADED = pa.schema(
    [field for field in tables.features(1, {}) if field.name not in ("avg", "max")]
    + [field for field in tables.ERRORS if field.name != "key"]
    + [pa.field("pixels", pa.binary()), stages.FIELD]
)


def extracted_schema(width: int) -> pa.Schema:
    """Rows as they reach the sink: the columns of both tables, and which of the two is meant."""
    vectors = [field for field in tables.features(width, {}) if field.name in ("avg", "max")]
    plain = [field for field in LOADED if field.name != "pixels"]
    return pa.schema([*plain, *vectors, pa.field(TABLE, pa.string())])


class Extractor:
    """Holds one network; called with a block of loaded rows, returns rows for the sink.

    Every image of the block goes through: the last, short batch is padded, not dropped (ledger
    C16), so the network always sees one shape and an image's numbers do not depend on how many
    others came along.

    Args:
        labels: what the log's lines tell the run by, as of `Run.labels`.
    """

    def __init__(self, backbone_at: Location, batch_size: int, labels: Mapping[str, str]) -> None:
        # From storage, not from Ray's object store: an actor restarted after its node was lost must
        # find its weights again.
        backbone = Backbone.read(backbone_at)
        self._model = build(backbone)
        self._backbone = backbone
        self._batch_size = batch_size
        self._labels = dict(labels)
        self._idle_since: float | None = None
        self._schema = extracted_schema(backbone.width)
        # Once before threads share it: Keras builds its predict function at the first call.
        self._predict(pa.chunked_array([], pa.binary()))
        logging.basicConfig(level=logging.INFO, format="%(message)s")

    def __call__(self, block: pa.Table) -> pa.Table:
        start = time.perf_counter()
        wait = start - (self._idle_since or start)
        readable = np.asarray(block["pixels"].is_valid())
        vectors = self._extract(block["pixels"].filter(pa.array(readable)))
        columns = {name: block[name] for name in block.column_names if name != "pixels"}
        for name, values in zip(("avg", "max"), vectors, strict=True):
            columns[name] = _spread(values, readable, self._schema.field(name).type)
        columns[TABLE] = pa.array(np.where(readable, "features", "errors"), pa.string())
        seconds = time.perf_counter() - start
        # For whoever reads the actor's log: one line a block, the same words every time.
        told = {"extracted": int(readable.sum()), "seconds": round(seconds, 3)}
        logger.info(json.dumps({**told, "waited": round(wait, 3), **self._labels}))
        columns[SPENT] = stages.extracted(block[SPENT], wait, seconds)
        rows = pa.table(columns).select(self._schema.names).cast(self._schema)
        self._idle_since = time.perf_counter()
        return rows

    def _extract(self, pixels: pa.ChunkedArray) -> tuple[npt.NDArray[np.float32], ...]:
        """uint8 images as bytes → (avg, max), float32 [N,D] each."""
        width = self._backbone.width
        results = (
            np.empty((len(pixels), width), np.float32),
            np.empty((len(pixels), width), np.float32),
        )

        def extract(start: int) -> None:
            images = pixels[start : start + self._batch_size]
            for result, values in zip(results, self._predict(images), strict=True):
                result[start : start + len(images)] = values[: len(images)]

        # Two batches at a time: one computes where the other waits for its slowest thread.
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(extract, range(0, len(pixels), self._batch_size)))
        return results

    def _predict(self, images: pa.ChunkedArray) -> Any:
        """(avg, max) of at most a batch of images, behind which padding may follow."""
        side = self._backbone.image_size
        batch = np.zeros((self._batch_size, side, side, 3), np.uint8)
        for position, image in enumerate(images):
            batch[position] = np.frombuffer(image.as_buffer(), np.uint8).reshape(side, side, 3)
        return self._model.predict_on_batch(batch)


def _spread(values: npt.NDArray[np.float32], where: npt.NDArray[np.bool_], kind: Any) -> pa.Array:
    """Vectors at the rows where `where` is true, null elsewhere."""
    full = np.zeros((len(where), kind.list_size), np.float32)
    full[where] = values
    flat = pa.array(full.reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size, mask=pa.array(~where))
