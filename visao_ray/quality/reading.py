"""Read small copies and vectors of a store for the checks of an audit."""

from __future__ import annotations

import tempfile

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visao_ray.quality import copies
from visao_ray.quality.evidence import Pictures, Vectors
from visao_ray.store import schemas
from visao_ray.store.join import scan_vectors
from visao_ray.store.proof import Contents, as_bytes
from visao_ray.store.rows import places_of, read_rows
from visao_ray.store.table import TableVersion

_SCAN_ROWS = 4096
_SAMPLE = 20_000  # vectors from which the principal components are found
#: Principal components that are kept: distances are almost those of all numbers.
COMPONENTS = 64

Positions = npt.NDArray[np.int64]


def read_pictures(
    results: TableVersion, contents: Contents, seed: int
) -> tuple[Pictures, Positions, Positions]:
    """Read all small copies once: their figures, and the pairs that may be copies of each other.

    For a task. The small copies are kept in a temporary file; a million of them take 4 GB of disk
    and 2 GB of memory.

    Args:
        results: table of vectors with the columns `thumbnail` and `sharpness`.
        contents: S32[C], sorted.
        seed: seed of the search.

    Returns:
        The figures; proposed pairs, int64[M, 3], of positions in `contents` (see `copies.propose`);
        and the row of each content in the table, int64[C], -1 without one.
    """
    rows = np.full(len(contents), -1, np.int64)
    side = schemas.THUMBNAIL_SIDE
    figures: list[tuple[npt.NDArray[np.float32], ...]] = []
    found: list[Positions] = []
    with tempfile.TemporaryFile() as file:
        start = 0
        columns = ["content_id", "status", "thumbnail", "sharpness"]
        for batch in results.scan(columns, batch_rows=_SCAN_ROWS):
            places = places_of(as_bytes(batch["content_id"]), contents)
            usable = (places >= 0) & batch["thumbnail"].is_valid().to_numpy(zero_copy_only=False)
            usable[usable] = rows[places[usable]] < 0  # the first row of a content counts
            grey = _greys(batch["thumbnail"])[usable]
            rows[places[usable]] = start + np.flatnonzero(usable)
            found.append(places[usable])
            sharpness = batch["sharpness"].to_numpy(zero_copy_only=False)[usable]
            figures.append((*_levels(grey), sharpness.astype(np.float32)))
            file.write(grey.tobytes())
            start += len(batch)
        file.flush()
        order = np.concatenate([*found, np.zeros(0, np.int64)])
        mapped = (
            np.memmap(file, np.uint8, "r", shape=(len(order), side, side))
            if len(order)
            else np.zeros((0, side, side), np.uint8)
        )
        pairs = copies.propose(mapped, seed)
        pairs[:, :2] = order[pairs[:, :2]]
    by_content = np.argsort(order)
    low, high, sharp = (
        np.concatenate([part[place] for part in figures] or [np.zeros(0, np.float32)])[by_content]
        for place in range(3)
    )
    return Pictures(order[by_content], low, high, sharp), pairs, rows


def align_pairs(
    results: TableVersion, pairs: Positions, rows: Positions
) -> npt.NDArray[np.float32]:
    """Align the pictures of some pairs. For a task, which reads only these pictures.

    Args:
        results: table of vectors with the column `thumbnail`.
        pairs: int64[M, 3]: rows of the table in place of contents.
        rows: int64[R], ascending: the rows in the pairs.

    Returns:
        Similarities float32[M]; see `copies.align`.
    """
    parts = [_greys(batch["thumbnail"]) for batch in read_rows(results, rows, ["thumbnail"])]
    local = pairs.copy()
    local[:, :2] = np.searchsorted(rows, pairs[:, :2])
    return copies.align(local, np.concatenate(parts))


def read_vectors(results: TableVersion, contents: Contents, seed: int) -> Vectors:
    """Read the vectors `avg` of some contents and keep their first principal components.

    For a task: 300 bytes per image, and 100 MB for the sample.

    Args:
        results: table of vectors.
        contents: S32[C], sorted.
        seed: seed of the sample from which the components are found.

    Returns:
        The vectors.
    """
    from sklearn.decomposition import PCA

    width = schemas.outputs(results.schema)["avg"]
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.choice(len(contents), min(len(contents), _SAMPLE), replace=False))
    sample = np.concatenate(
        [
            values["avg"].astype(np.float32)
            for _, values, _ in scan_vectors(results, contents[sampled], ["avg"])
        ]
        or [np.zeros((0, width), np.float32)]
    )
    if len(sample) < 2:
        return Vectors(np.zeros(0, np.int64), np.zeros((0, 1), np.float32))
    kept = min(COMPONENTS, width, len(sample))
    pca = PCA(kept, random_state=seed, svd_solver="randomized").fit(sample)
    values = np.zeros((len(contents), kept), np.float32)
    seen = np.zeros(len(contents), bool)
    for places, batch, _ in scan_vectors(results, contents, ["avg"]):
        values[places] = pca.transform(batch["avg"])
        seen[places] = True
    return Vectors(np.flatnonzero(seen).astype(np.int64), values[seen])


def _greys(column: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint8]:
    """Return a column of small copies as uint8[N, S, S]; 0 for null."""
    side = schemas.THUMBNAIL_SIDE
    raw = np.frombuffer(column.buffers()[1], np.uint8)
    start = column.offset * side**2
    return raw[start : start + len(column) * side**2].reshape(-1, side, side)


def _levels(grey: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
    """Return the 5th and 95th percentile of each picture, float32[N] each."""
    flat = np.sort(grey.reshape(len(grey), -1), axis=1)
    last = flat.shape[1] - 1
    low, high = flat[:, round(0.05 * last)], flat[:, round(0.95 * last)]
    return low.astype(np.float32), high.astype(np.float32)
