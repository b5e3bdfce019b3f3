"""Measure an audit of many images: its time, its memory, and the planted copies that it finds.

    python benchmarks/audit.py                        41,809 images, the size of `ncm`
    python benchmarks/audit.py --images 1000000

The store holds vectors and small copies, but no image exists. Pictures are drawn from the principal
components of rendered chest films, so that many look alike. One in two hundred is a copy of another
picture: cropped, brighter, or mirrored.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
from job import run_job
from PIL import Image
from verdict import MACHINE, check_bars, show

from visao_ray.core.lease import Owner
from visao_ray.datasets.registry import find_dataset
from visao_ray.images.summary import summarize
from visao_ray.store import schemas
from visao_ray.store.store import Description, create_or_open
from visao_ray.store.table import write_fragments
from visao_ray.synthetic.recipe import SyntheticRecipe, plan
from visao_ray.synthetic.scan import render

SIDE = schemas.THUMBNAIL_SIDE
FILMS = 400
COMPONENTS = 40
COPIES = 200  # one picture in so many is a copy
PART = 20_000  # images written at once
CLUSTERS = 50

#: Images, and the most seconds and GB of memory of their audit.
LIMITS = {41_809: (180.0, 6.0), 1_000_000: (1800.0, 6.0)}

Pictures = npt.NDArray[np.uint8]


class Films:
    """Small pictures that look like rendered chest films."""

    def __init__(self) -> None:
        planned = plan(SyntheticRecipe("chest_xray", FILMS, seed=1))
        films = [
            render("chest_xray", one.true_label, one.index, 1, one.difficulty) for one in planned
        ]
        flat = np.stack([summarize(film[:, :, None], SIDE)[0].reshape(-1) for film in films])
        self._mean = flat.mean(axis=0)
        _, scale, self._components = np.linalg.svd(flat - self._mean, full_matrices=False)
        self._scale = scale[:COMPONENTS] / np.sqrt(FILMS)
        self._components = self._components[:COMPONENTS]

    def draw(self, count: int, rng: np.random.Generator) -> Pictures:
        """Return new pictures, uint8[count, 64, 64]."""
        weights = rng.normal(size=(count, COMPONENTS)).astype(np.float32) * self._scale
        noise = rng.normal(0, 2, (count, SIDE * SIDE)).astype(np.float32)
        grey = np.clip(self._mean + weights @ self._components + noise, 0, 255)
        return grey.astype(np.uint8).reshape(-1, SIDE, SIDE)


def changed(picture: Pictures, number: int) -> Pictures:
    """Return a copy that is cropped, brighter or mirrored."""
    if number % 3 == 0:
        cut = Image.fromarray(picture).crop((2, 2, SIDE - 1, SIDE - 1))
        return np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    if number % 3 == 1:
        return np.clip(picture * 1.1, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(picture[:, ::-1])


def make_store(place: Path, images: int, width: int) -> dict[str, str]:
    """Write a store, and return the planted copies: key of the copy, key of its picture."""
    films, rng = Films(), np.random.default_rng(0)
    centres = rng.normal(0, 1, (CLUSTERS, width)).astype(np.float32)
    description = Description(find_dataset("chest_xray").to_json(), 0, 0.1, 0.1)
    planted = {}
    schema = schemas.results({"avg": width}, {"backbone": "drawn"}, pictures=True)
    with create_or_open(str(place), description, Owner.here("benchmark", "audit")) as writer:
        vectors, table = writer.store.vectors("drawn"), writer.store.images
        writer.ensure(vectors, schema)
        writer.ensure(table, schemas.IMAGES)
        for start in range(0, images, PART):
            rows = min(PART, images - start)
            keys = [f"/drawn/{start + row:09d}.png" for row in range(rows)]
            pictures = films.draw(rows, rng)
            for row in range(COPIES, rows, COPIES):
                source = row - int(rng.integers(1, COPIES))
                pictures[row] = changed(pictures[source], row // COPIES)
                planted[keys[row]] = keys[source]
            values = centres[rng.integers(0, CLUSTERS, rows)] + rng.normal(
                0, 1, (rows, width)
            ).astype(np.float32)
            digests = pa.py_buffer(rng.bytes(32 * rows))
            contents = pa.FixedSizeBinaryArray.from_buffers(
                schemas.CONTENT_ID, rows, [None, digests]
            )
            writer.append(
                vectors,
                write_fragments(vectors.uri, schema, _vectors(schema, contents, values, pictures)),
            )
            writer.append(
                table,
                write_fragments(table.uri, schemas.IMAGES, _images(keys, contents, start)),
            )
    return planted


def _vectors(schema: pa.Schema, contents: pa.Array, values: Any, pictures: Pictures) -> pa.Table:
    rows = len(contents)
    given = {
        "content_id": contents,
        "view": pa.array(np.zeros(rows, np.int16)),
        "status": pa.array([schemas.OK] * rows),
        "avg": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1]),
        "thumbnail": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(SIDE * SIDE), rows, [None, pa.py_buffer(pictures.tobytes())]
        ),
        "sharpness": pa.array(np.full(rows, 5, np.float32)),
    }
    return pa.table(
        {field.name: given.get(field.name, pa.nulls(rows, field.type)) for field in schema}
    )


def _images(keys: list[str], contents: pa.Array, start: int) -> pa.Table:
    rows = len(keys)
    given = {
        "key": keys,
        "content_id": contents,
        "width": pa.array(np.full(rows, 1000, np.int32)),
        "height": pa.array(np.full(rows, 800, np.int32)),
        "label": [("NORMAL", "PNEUMONIA")[row % 2] for row in range(rows)],
        "group": [f"patient {(start + row) // 3}" for row in range(rows)],
        "split": [("train", "train", "val", "test")[(start + row) // 3 % 4] for row in range(rows)],
        "batch": ["2026-01-01"] * rows,
        "status": [schemas.OK] * rows,
    }
    return pa.table(
        {field.name: given.get(field.name, pa.nulls(rows, field.type)) for field in schemas.IMAGES}
    )


def main() -> int:
    """Measure, print the results, and check the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=41_809)
    parser.add_argument("--width", type=int, default=1024, help="numbers of a vector")
    parser.add_argument(
        "--quick", action="store_true", help="few images: whether it works, not how fast"
    )
    options = parser.parse_args()
    if options.quick:
        options.images, options.width = 3000, 32
    with tempfile.TemporaryDirectory(prefix="visao_ray_benchmark_") as folder:
        place = Path(folder)
        print(f"writing a store of {options.images:,} images", file=sys.stderr, flush=True)
        planted = make_store(place / "store", options.images, options.width)
        job = run_job("audit", place / "out", f"--store={place / 'store'}")
        pairs = pads.dataset(place / "out/pairs", format="parquet").to_table().to_pylist()
    near = {
        frozenset((pair["first"], pair["second"]))
        for pair in pairs
        if pair["check"] == "near_duplicates"
    }
    found = sum(frozenset(pair) in near for pair in planted.items())
    timings = job.result["timings"]
    gigabytes = job.total_mb / 1024
    print(f"\n{MACHINE}")
    show(
        [
            ("images", f"{options.images:,}"),
            ("whole process", f"{job.seconds:.0f} s"),
            *((name, f"{seconds:.1f} s") for name, seconds in timings.items()),
            ("peak memory of all processes", f"{gigabytes:.1f} GB"),
            ("planted copies found", f"{found:,} of {len(planted):,}"),
            ("pairs of near copies", f"{len(near):,}"),
        ]
    )
    seconds, memory = LIMITS.get(options.images, (0.0, 0.0))
    known = options.images in LIMITS
    return check_bars(
        [
            (f"at most {seconds:.0f} s", job.seconds <= seconds if known else None),
            (f"at most {memory:.0f} GB", gigabytes <= memory if known else None),
        ],
        options.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
