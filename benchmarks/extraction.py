"""Measure extraction against the network alone and a plain loop, and the driver's memory.

    python benchmarks/extraction.py

Everything is measured in one run, in turns:

1. DenseNet121 (random weights, batches of 32): the engine alone on decoded pixels, before and after
   the pipeline, against the pipeline from files to a store. The pipeline reads rendered scans in
   steady state: the difference of two runs of different size.
2. Chest films of original size with a network that costs nothing, so that decoding dominates:
   images per second and core, against a plain Pillow loop (`open, convert RGB, resize Lanczos`) on
   one core.
3. The driver's peak memory at 2,000 and at 20,000 images, and the bytes that Ray spilled to disk.

Films come from ../shared/data/chest_xray_full if it exists; otherwise rendered ones are enlarged.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from job import REPOSITORY, run_job
from PIL import Image
from verdict import CORES, MACHINE, check_bars, show

from visao_ray.synthetic.recipe import SyntheticRecipe, plan
from visao_ray.synthetic.scan import encode, render

FILMS = REPOSITORY.parent / "shared" / "data" / "chest_xray_full"

# Runs the job and writes what Ray reports about spilling to a file, before Ray shuts down.
_WATCHED = """
import os, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    if end.code:
        raise
import ray
from ray._private.internal_api import memory_summary
summary = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
spilled = [line for line in summary.splitlines() if "pill" in line]
open(os.environ["SPILLED"], "w").write("; ".join(spilled))
"""

# The engine as in an actor, on as many images as a block has.
_ENGINE_ALONE = """
import sys, time
from dataclasses import replace
import numpy as np
from visao_ray.inference.engines.keras import KerasBackbone
from visao_ray.models.backbones import resolve
from visao_ray.inference.settings import ExtractOptions
from visao_ray.core.storage import locate
options, file = ExtractOptions(weights="random"), locate(sys.argv[2])
backbone, _ = resolve(options, 0)
backbone.write(file)
engine = KerasBackbone(file, backbone, options.resize, options.batch_size).build()
pixels = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), dtype=np.uint8)
for _ in range(2):
    engine(pixels)
start = time.perf_counter()
for _ in range(int(sys.argv[1])):
    engine(pixels)
print("MEASURED", 64 * int(sys.argv[1]) / (time.perf_counter() - start))
"""

_AVERAGER = """
import sys, keras
pixels = keras.Input((int(sys.argv[2]), int(sys.argv[2]), 3))
keras.Model(pixels, keras.layers.AveragePooling2D(32)(pixels)).save(sys.argv[1])
"""


@dataclass(frozen=True)
class Extraction:
    """Measurements of an extraction.

    Attributes:
        images: number of images.
        seconds: of the extraction graph.
        peak_mb: peak memory of the driver, in MB.
        spilled: what Ray reports about spilling; empty if nothing was spilled.
    """

    images: int
    seconds: float
    peak_mb: float
    spilled: str


def python(code: str, *arguments: str) -> str:
    """Run Python code in a process, and return the text that it prints after MEASURED."""
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return run.stdout.rpartition("MEASURED")[2].strip()


def extract(data: Path, out: Path, images: int, *options: str) -> Extraction:
    """Extract `images` images of a dataset into a new store."""
    spilled = data.parent / f"{out.name}.spilled"
    job = run_job(
        "extract",
        out,
        "--dataset=vazios",
        f"--data={data}",
        f"--limit={images}",
        *options,
        environment={"SPILLED": str(spilled)},
        wrapper=_WATCHED,
    )
    counts, seconds = job.result["counts"], job.result["timings"]["extract"]
    if counts["errors"]:
        raise RuntimeError(f"{counts['errors']} images cannot be used")
    return Extraction(counts["ok"], seconds, job.driver_mb, spilled.read_text())


def steady(few: Extraction, many: Extraction) -> float:
    """Return the images per second in steady state: the start of the two runs cancels out.

    `few` must be large enough to keep the loaders busy while the actor starts; otherwise their head
    start would count as speed.
    """
    return (many.images - few.images) / (many.seconds - few.seconds)


def scans(folder: Path, images: int) -> None:
    """Render vazios scans into a folder."""
    for planned in plan(SyntheticRecipe(dataset="vazios", images=images, seed=1)):
        pixels = render("vazios", planned.true_label, planned.index, 1, planned.difficulty)
        target = folder / planned.key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode(pixels, 85))


def films() -> tuple[list[bytes], str]:
    """Return chest films of original size as file contents, and what they are."""
    if FILMS.exists():
        return [path.read_bytes() for path in sorted(FILMS.rglob("*.jpeg"))], "real films"
    found = []
    for planned in plan(SyntheticRecipe(dataset="chest_xray", images=60, seed=1)):
        pixels = render("chest_xray", planned.true_label, planned.index, 1, planned.difficulty)
        stream = io.BytesIO()
        large = Image.fromarray(pixels).resize((1416, 1051), Image.Resampling.BICUBIC)
        large.save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found, "rendered films, enlarged"


def copies(folder: Path, contents: Iterable[bytes], images: int) -> None:
    """Write the same images under many names; a few bytes at the end make every file different."""
    pictures = list(contents)
    for number in range(images):
        label = ("nvazio", "vazio")[number % 2]
        target = folder / label / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(pictures[number % len(pictures)] + number.to_bytes(4, "big"))


def plain_loop(contents: list[bytes]) -> float:
    """Return the images per second of a plain loop in one thread."""
    start = time.perf_counter()
    for content in contents:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        np.asarray(image.resize((224, 224), Image.Resampling.LANCZOS))
    return len(contents) / (time.perf_counter() - start)


def main() -> int:
    """Measure, print the results, and check the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2048, help="scans in part 1")
    parser.add_argument("--films", type=int, default=2832, help="films in part 2")
    parser.add_argument("--many", type=int, default=20_000, help="images in part 3")
    parser.add_argument(
        "--quick", action="store_true", help="few images: whether it works, not how fast"
    )
    options = parser.parse_args()
    if options.quick:
        options.images, options.films, options.many = 340, 340, 2000
    bars: list[tuple[str, bool | None]] = []
    rows: list[tuple[str, str]] = []
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}

    with tempfile.TemporaryDirectory(prefix="visao_ray_benchmark_") as name:
        place = Path(name)
        averager, small = place / "averager.keras", place / "small.keras"
        python(_AVERAGER, str(averager), "224")
        python(_AVERAGER, str(small), "32")

        scans(place / "scans", options.images)
        steps = max(options.images // 340, 1)
        before = float(python(_ENGINE_ALONE, str(steps), str(place / "backbone.npz")))
        dense = [
            extract(place / "scans", place / f"dense{images}", images, "--weights", "random")
            for images in (options.images // 5, options.images)
        ]
        after = float(python(_ENGINE_ALONE, str(steps), str(place / "backbone.npz")))
        alone, speed = (before + after) / 2, steady(*dense)
        rows += [
            (
                "DenseNet121's engine alone, images/s",
                f"{alone:.1f} (before {before:.1f}, after {after:.1f})",
            ),
            (f"pipeline on {options.images:,} scans, images/s", f"{speed:.1f}"),
        ]
        ratio = speed / alone
        bars.append((f"pipeline / engine alone {ratio:.2f} (bar: at least 0.90)", ratio >= 0.9))

        contents, kind = films()
        copies(place / "films", contents, options.films)
        first = plain_loop(contents)
        decoded = [
            extract(place / "films", place / f"films{images}", images, "--weights", str(averager))
            for images in (options.films // 3, options.films)
        ]
        plain = (first + plain_loop(contents)) / 2
        speed = steady(*decoded) / CORES
        rows += [
            (f"plain Pillow loop on {kind}, images/s a core", f"{plain:.1f}"),
            (f"pipeline on {options.films:,} {kind}, images/s a core", f"{speed:.1f}"),
        ]
        ratio = speed / plain
        bars.append((f"films a core / Pillow loop {ratio:.2f} (bar: at least 2)", ratio >= 2))

        tiny = [encode(np.full((48, 64), 10 * n, np.uint8), 85) for n in range(20)]
        copies(place / "tiny", tiny, options.many)
        few, many = options.many // 10, options.many
        peaks = {}
        for images in (few, many):
            peaks[images] = extract(
                place / "tiny", place / f"tiny{images}", images, "--weights", str(small)
            )
            rows.append((f"driver peak at {images:,} images, MB", f"{peaks[images].peak_mb:.0f}"))
        growth = peaks[many].peak_mb - peaks[few].peak_mb
        bars.append((f"driver grows by {growth:.0f} MB (bar: below 100)", growth < 100))
        runs = (*dense, *decoded, *peaks.values())
        spilled = [run.spilled for run in runs if run.spilled]
        rows.append(("spilled to disk", "; ".join(spilled) or "0 bytes"))
        bars.append(("nothing spilled", not spilled))

    print(f"\n{MACHINE}")
    show(rows)
    return check_bars(bars, options.quick)


if __name__ == "__main__":
    sys.exit(main())
