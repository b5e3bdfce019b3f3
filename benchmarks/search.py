"""Measure search beside FAISS: time to build and to query, recall, memory, growth.

    python benchmarks/search.py                                   1,000,000 vectors of 128 numbers
    python benchmarks/search.py --images 1500000 --width 1024
    python benchmarks/search.py --images 10000000

The store holds embeddings around 2,000 centres, but no image exists. `jobs/search.py build` makes
the index; a new process searches it, as a server would; then 10,000 images arrive and the index is
updated. The exact neighbours come from FAISS's flat index over the same vectors, and its IVF index
with as many partitions and probes is measured beside.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from job import run_job
from verdict import MACHINE, check_bars, show

from visao_ray.core.lease import Owner
from visao_ray.datasets.registry import find_dataset
from visao_ray.store import schemas
from visao_ray.store.store import Description, create_or_open
from visao_ray.store.table import write_fragments

MODEL = "projection-benchmark"
CENTRES = 2000
PART = 50_000  # images written at once
ARRIVALS = 10_000
QUERIES = 200
K = 10
LABELS = tuple("abcdefg")  # a filter on one of them leaves a seventh

Vectors = npt.NDArray[np.float32]

#: Bars by images and width: recall, median and 95th percentile of a query in ms, MB of the process
#: that serves, seconds to build.
BARS: dict[tuple[int, int], tuple[float, float, float | None, float | None, float | None]] = {
    (1_000_000, 128): (0.99, 4.0, 8.0, 500.0, 30.0),
    (10_000_000, 128): (0.98, 10.0, None, 2000.0, 300.0),
    (1_500_000, 1024): (0.98, 15.0, None, None, None),
}

#: Searches an index in a process of its own, as a server does: one query after the other.
_SERVE = """
import json, resource, sys, time
import numpy as np
from visao_ray.core.storage import locate
from visao_ray.search.neighbours import Neighbours
from visao_ray.store.store import Store
place, name, queries, k, where = sys.argv[1:6]
queries = np.load(queries)
begun = time.perf_counter()
neighbours = Neighbours(Store.open(place).index(name).latest(), 512 * 1024**2)
found, seconds = [], []
for query in queries:
    start = time.perf_counter()
    near = neighbours.nearest(query, int(k), where or None)
    seconds.append(time.perf_counter() - start)
    found.append([int(key) for key in near["key"].to_pylist()])
    if len(seconds) == 1:
        first = time.perf_counter() - begun
memory = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"first": first, "seconds": seconds, "found": found,
                  "mb": int(memory.split()[1]) / 1024}))
"""


class Points:
    """Vectors around centres; the same for the same numbers."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._centres = np.random.default_rng(0).normal(size=(CENTRES, width)).astype(np.float32)

    def draw(self, count: int, seed: int) -> Vectors:
        """Return new vectors, float32[count, width]."""
        rng = np.random.default_rng([1, seed])
        noise = rng.standard_normal((count, self._width), np.float32)
        found: Vectors = self._centres[rng.integers(0, CENTRES, count)] + 0.5 * noise
        return found


def add(place: Path, points: Points, first: int, count: int) -> None:
    """Write images and their embeddings into a store, and create it if it does not exist."""
    description = Description(find_dataset("vazios").to_json(), 0, 0.1, 0.1)
    with create_or_open(str(place), description, Owner.here("benchmark", "search")) as writer:
        results, images = writer.store.predictions(MODEL), writer.store.images
        width = points.draw(1, 0).shape[1]
        schema = schemas.results({"embedding": width}, {"model": "benchmark"})
        writer.ensure(results, schema)
        writer.ensure(images, schemas.IMAGES)
        for start in range(first, first + count, PART):
            rows = min(PART, first + count - start)
            digests = np.random.default_rng([2, start]).bytes(32 * rows)
            contents = pa.FixedSizeBinaryArray.from_buffers(
                schemas.CONTENT_ID, rows, [None, pa.py_buffer(digests)]
            )
            values = points.draw(rows, start)
            found = {
                "content_id": contents,
                "view": pa.array(np.zeros(rows, np.int16)),
                "status": pa.array([schemas.OK] * rows),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width),
            }
            listed = {
                "key": [str(start + row) for row in range(rows)],
                "content_id": contents,
                "label": [LABELS[(start + row) % len(LABELS)] for row in range(rows)],
                "group": [f"g{start + row}" for row in range(rows)],
                "split": ["train"] * rows,
                "batch": ["2026-01-01"] * rows,
                "status": [schemas.OK] * rows,
            }
            for table, of, data in ((results, schema, found), (images, schemas.IMAGES, listed)):
                full = pa.table(
                    {field.name: data.get(field.name, pa.nulls(rows, field.type)) for field in of}
                )
                writer.append(table, write_fragments(table.uri, of, full))


def serve(place: Path, queries: Path, where: str = "") -> dict[str, Any]:
    """Search in a new process; return its measurements."""
    done = subprocess.run(
        [sys.executable, "-c", _SERVE, str(place), MODEL, str(queries), str(K), where],
        check=True,
        capture_output=True,
        text=True,
    )
    measured: dict[str, Any] = json.loads(done.stdout)
    later = np.array(measured["seconds"][1:]) * 1e3
    measured["median"], measured["p95"] = (float(np.percentile(later, q)) for q in (50, 95))
    return measured


def recall(found: list[list[int]], exact: npt.NDArray[np.int64]) -> float:
    """Return the share of the exact neighbours that were found."""
    pairs = zip(found, exact, strict=True)
    return float(np.mean([len({*near} & {*right.tolist()}) / K for near, right in pairs]))


def faiss_search(
    points: Points, images: int, queries: Vectors, partitions: int, probes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], dict[str, float]]:
    """Search with FAISS: exactly, exactly among a seventh, and with an index in memory.

    Args:
        points: where the vectors come from.
        images: number of vectors.
        queries: float32[Q, D].
        partitions: number of partitions of the index.
        probes: number of partitions that a query searches.

    Returns:
        Both exact results, int64[Q, K], and the measurements of the index.
    """
    import faiss

    def blocks() -> Any:
        for start in range(0, images, PART):
            yield start, points.draw(min(PART, images - start), start)

    everything = _exact(faiss, blocks(), queries, 1)
    seventh = _exact(faiss, blocks(), queries, len(LABELS))
    width = queries.shape[1]
    begun = time.perf_counter()
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, partitions)
    step = max(1, images // (64 * partitions))
    index.train(np.concatenate([block[::step] for _, block in blocks()]))
    for _, block in blocks():
        index.add(block)
    build = time.perf_counter() - begun
    index.nprobe = probes
    seconds, found = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(index.search(query[None], K)[1][0].tolist())
        seconds.append(time.perf_counter() - start)
    measured = {
        "build": build,
        "median": 1e3 * float(np.median(seconds[1:])),
        "recall": recall(found, everything),
    }
    return everything, seventh, measured


def _exact(faiss: Any, blocks: Any, queries: Vectors, step: int) -> npt.NDArray[np.int64]:
    """Return the K nearest of every `step`-th image, int64[Q, K], block by block."""
    best_distance = np.full((len(queries), K), np.inf, np.float32)
    best = np.full((len(queries), K), -1, np.int64)
    for start, block in blocks:
        numbers = np.arange(start, start + len(block))
        chosen = numbers % step == 0
        distance, place = faiss.knn(queries, block[chosen], K)
        both = np.concatenate([best_distance, distance], axis=1)
        names = np.concatenate([best, numbers[chosen][place]], axis=1)
        order = np.argsort(both, axis=1, kind="stable")[:, :K]
        best_distance = np.take_along_axis(both, order, axis=1)
        best = np.take_along_axis(names, order, axis=1)
    return best


def main() -> int:
    """Measure, print the results, and check the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=128, help="numbers of a vector")
    parser.add_argument(
        "--quick", action="store_true", help="few images: whether it works, not how fast"
    )
    options = parser.parse_args()
    if options.quick:
        options.images, options.width = 30_000, 16
    images, points = options.images, Points(options.width)
    partitions = max(1, images // 4096)
    with tempfile.TemporaryDirectory(prefix="visao_ray_benchmark_") as folder:
        place = Path(folder, "store")
        print(f"writing a store of {images:,} images", file=sys.stderr, flush=True)
        add(place, points, 0, images)
        flags = ("build", f"--store={place}", f"--vectors={MODEL}")
        built = run_job("search", Path(folder, "built"), *flags)
        queries = Path(folder, "queries.npy")
        asked = points.draw(QUERIES, 10**9)
        np.save(queries, asked)
        all_of, filtered = serve(place, queries), serve(place, queries, "label = 'a'")
        probes = min(partitions, max(20, partitions // 12))
        exact, seventh, rival = faiss_search(points, images, asked, partitions, probes)
        add(place, points, images, ARRIVALS)
        grown = run_job("search", Path(folder, "grown"), *flags)
        after = serve(place, queries)
    found, among = recall(all_of["found"], exact), recall(filtered["found"], seventh)
    build, update = (job.result["timings"]["index"] for job in (built, grown))
    print(f"\n{MACHINE}")
    show(
        [
            ("images, numbers of a vector", f"{images:,}, {options.width}"),
            ("build, s: index and all (whole process)", f"{build:.1f} ({built.seconds:.0f})"),
            ("first query of a new process, ms", f"{1e3 * all_of['first']:.0f}"),
            ("median of a query, ms", f"{all_of['median']:.1f}"),
            ("95th percentile of a query, ms", f"{all_of['p95']:.1f}"),
            (f"recall of the {K} nearest", f"{found:.3f}"),
            ("among a seventh: median, ms, and recall", f"{filtered['median']:.1f}, {among:.3f}"),
            ("memory of the process that serves, MB", f"{all_of['mb']:.0f}"),
            (
                f"{ARRIVALS:,} more, s (whole process)",
                f"{update:.1f} ({grown.seconds:.0f})",
            ),
            ("median of a query after it, ms", f"{after['median']:.1f}"),
            ("FAISS IVF in memory: build, s", f"{rival['build']:.1f}"),
            ("FAISS IVF: median, ms, and recall", f"{rival['median']:.1f}, {rival['recall']:.3f}"),
        ]
    )
    bars = BARS.get((images, options.width))
    if bars is None:
        return check_bars([("no bar for this size", None)], options.quick)
    least, median, p95, memory, seconds = bars
    checked: list[tuple[str, bool | None]] = [
        (f"recall at least {least}", found >= least),
        (f"median at most {median:.0f} ms", all_of["median"] <= median),
        ("a seventh: recall at least 0.97", among >= 0.97),
        ("a seventh: at most twice the time", filtered["median"] <= 2 * all_of["median"]),
    ]
    if p95 is not None:
        checked.append((f"95th percentile at most {p95:.0f} ms", all_of["p95"] <= p95))
    if memory is not None:
        checked.append((f"serving in at most {memory:.0f} MB", all_of["mb"] <= memory))
    if seconds is not None:
        checked.append((f"build in at most {seconds:.0f} s", build <= seconds))
    if images == 1_000_000:
        checked.append((f"{ARRIVALS:,} more in at most 3 s", update <= 3))
    return check_bars(checked, options.quick)


if __name__ == "__main__":
    sys.exit(main())
