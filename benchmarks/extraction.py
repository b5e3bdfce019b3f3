"""How close extraction comes to the network alone, and what it costs the driver.

    python benchmarks/extraction.py

Everything is measured in one run, rivals in turn:

1. DenseNet121 (random weights, batches of 32): the model alone on ready pixels, before and after
   the pipeline, against the pipeline on rendered scans in steady state (two sizes, difference).
2. Original-size chest films with a network that costs nothing, so that decoding dominates: images
   a second and core against a plain Pillow loop (`open, convert RGB, resize Lanczos`) on one core.
3. The driver's peak memory at 2,000 and at 20,000 images, and what Ray spilled to disk.

Films come from ../shared/data/chest_xray_full where it is there, else rendered ones are enlarged.
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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from verdict import CORES, MACHINE, judge, show

from visao_ray.bases.scanner import BaseRecipe, encode, plan, render

REPOSITORY = Path(__file__).parents[1]
FILMS = REPOSITORY.parent / "shared" / "data" / "chest_xray_full"

# The job in its own process; afterwards that process tells its peak memory and Ray's spilling.
_JOB = """
import json, resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
from ray._private.internal_api import memory_summary
import ray
spilled = [line for line in memory_summary(stats_only=True).splitlines() if "pill" in line]
print("MEASURED", json.dumps({
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "spilled": spilled}))
"""

_MODEL_ALONE = """
import sys, time
import numpy as np
from visao_ray.models.backbones import build, resolve
from visao_ray.settings import ExtractOptions
backbone, _ = resolve(ExtractOptions(weights="random"), 0)
model = build(backbone)
batch = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3), dtype=np.uint8)
for _ in range(3):
    model.predict_on_batch(batch)
start = time.perf_counter()
for _ in range(int(sys.argv[1])):
    model.predict_on_batch(batch)
print("MEASURED", 32 * int(sys.argv[1]) / (time.perf_counter() - start))
"""

_AVERAGER = """
import sys, keras
pixels = keras.Input((int(sys.argv[2]), int(sys.argv[2]), 3))
keras.Model(pixels, keras.layers.AveragePooling2D(32)(pixels)).save(sys.argv[1])
"""


@dataclass(frozen=True)
class Extraction:
    """What one extraction showed: its images, wall seconds, driver's peak, Ray's spilling."""

    images: int
    seconds: float
    peak_mb: float
    spilled: list[str]


def python(code: str, *arguments: str) -> str:
    """The text after MEASURED that a piece of code prints; its own lines go to stderr."""
    environment = {**os.environ, "RAY_ADDRESS": "local", "TF_CPP_MIN_LOG_LEVEL": "2"}
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return run.stdout.rpartition("MEASURED")[2].strip()


def extract(data: Path, out: Path, images: int, *options: str) -> Extraction:
    """List (not measured) and extract `images` of a dataset."""
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    listed = out / "listed"
    subprocess.run(
        [
            *(sys.executable, "jobs/manifest.py", "--dataset", "vazios", "--data", str(data)),
            *("--limit", str(images), "--out", str(listed)),
        ],
        cwd=REPOSITORY,
        env=environment,
        stdout=sys.stderr,
        check=True,
    )
    arguments = ["--manifest", str(listed / "manifest"), "--out", str(out / "extracted"), *options]
    told = json.loads(python(_JOB, "jobs/extract.py", *arguments))
    result = json.loads((out / "extracted" / "result.json").read_text())
    seconds = result["timings"]["extract"]
    return Extraction(result["counts"]["ok"], seconds, told["peak_mb"], told["spilled"])


def steady(few: Extraction, many: Extraction) -> float:
    """Images a second between two runs of different size: what both spend on starting cancels.

    `few` must be enough to keep the loaders busy while the actor starts, or their head start would
    count as speed.
    """
    return (many.images - few.images) / (many.seconds - few.seconds)


def scans(folder: Path, images: int) -> None:
    """Rendered vazios scans."""
    for planned in plan(BaseRecipe(base="vazios", images=images, seed=1)):
        pixels = render("vazios", planned.true_label, planned.index, 1, planned.difficulty)
        target = folder / planned.key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode(pixels, 85))


def films() -> tuple[list[bytes], str]:
    """Original-size chest films as files."""
    if FILMS.exists():
        return [path.read_bytes() for path in sorted(FILMS.rglob("*.jpeg"))], "real films"
    found = []
    for planned in plan(BaseRecipe(base="chest_xray", images=60, seed=1)):
        pixels = render("chest_xray", planned.true_label, planned.index, 1, planned.difficulty)
        stream = io.BytesIO()
        large = Image.fromarray(pixels).resize((1416, 1051), Image.Resampling.BICUBIC)
        large.save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found, "rendered films, enlarged"


def copies(folder: Path, contents: Iterable[bytes], images: int) -> None:
    """The same pictures under many names; a few bytes after the end make every file its own."""
    pictures = list(contents)
    for number in range(images):
        label = ("nvazio", "vazio")[number % 2]
        target = folder / label / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(pictures[number % len(pictures)] + number.to_bytes(4, "big"))


def plain_loop(contents: list[bytes]) -> float:
    """Images a second of the loop that everyone writes first, in one thread."""
    start = time.perf_counter()
    for content in contents:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        np.asarray(image.resize((224, 224), Image.Resampling.LANCZOS))
    return len(contents) / (time.perf_counter() - start)


def main() -> int:
    """Measure, print the table, and say whether the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2048, help="scans for the DenseNet part")
    parser.add_argument("--films", type=int, default=2832, help="films for the decoding part")
    parser.add_argument("--many", type=int, default=20_000, help="images for the memory part")
    options = parser.parse_args()
    bars: list[tuple[str, bool]] = []
    rows: list[tuple[str, str]] = []

    with tempfile.TemporaryDirectory(prefix="visao_ray_benchmark_") as name:
        place = Path(name)
        averager, small = place / "averager.keras", place / "small.keras"
        python(_AVERAGER, str(averager), "224")
        python(_AVERAGER, str(small), "32")

        scans(place / "scans", options.images)
        before = float(python(_MODEL_ALONE, "12"))
        dense = [
            extract(place / "scans", place / f"dense{images}", images, "--weights", "random")
            for images in (options.images // 5, options.images)
        ]
        after = float(python(_MODEL_ALONE, "12"))
        alone, speed = (before + after) / 2, steady(*dense)
        rows += [
            (
                "DenseNet121 alone, images/s",
                f"{alone:.1f} (before {before:.1f}, after {after:.1f})",
            ),
            (f"pipeline on {options.images:,} scans, images/s", f"{speed:.1f}"),
        ]
        ratio = speed / alone
        bars.append((f"pipeline / model alone {ratio:.2f} (bar: at least 0.85)", ratio >= 0.85))

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
        bars.append((f"decoding / plain loop {ratio:.2f} (bar: at least 1.5)", ratio >= 1.5))

        tiny = [encode(np.full((48, 64), 10 * n, np.uint8), 85) for n in range(20)]
        copies(place / "tiny", tiny, options.many)
        few, many = 2_000, options.many
        peaks = {}
        for images in (few, many):
            peaks[images] = extract(
                place / "tiny", place / f"tiny{images}", images, "--weights", str(small)
            )
            rows.append((f"driver peak at {images:,} images, MB", f"{peaks[images].peak_mb:.0f}"))
        growth = peaks[many].peak_mb - peaks[few].peak_mb
        bars.append((f"driver grows by {growth:.0f} MB (bar: below 100)", growth < 100))
        spilled = [line for run in (*dense, *decoded, *peaks.values()) for line in run.spilled]
        rows.append(("spilled to disk", "; ".join(spilled) or "0 bytes"))
        bars.append(("nothing spilled", not spilled))

    print(f"\n{MACHINE}")
    show(rows)
    return judge(bars)


if __name__ == "__main__":
    sys.exit(main())
