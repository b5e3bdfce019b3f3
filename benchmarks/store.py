"""Measure a store of a million images, from the first extraction to a thousand new images.

    python benchmarks/store.py [--rows 1000000] [--folder DIR]

The jobs run at their default settings on cheap images: different bitmaps of 4x4 pixels, through a
network of a few multiplications whose vectors have 2 x 1,024 numbers. Steps:

    images             write the files
    extract            jobs/extract.py fills the store
    read               read labels and both vectors in one process
    again              jobs/extract.py once more: nothing is new
    sweep              jobs/sweep.py: 16 heads on a fifth of the images, the best fitted on all
    evaluate           jobs/evaluate.py with the best head: 2 classes
    headings           a second store with the same vectors and 868 labels, and a head for it
    evaluate_headings  jobs/evaluate.py with that head: 868 classes
    new                jobs/extract.py with 1,000 new images
    rival              the plain way: one Parquet folder of the same rows, rewritten for 1,000 more

Measurements are saved in DIR/measured.json: the same command continues with the missing steps, so
a run of an hour or two may be interrupted. Without --folder everything is removed at the end. The
bars are for 1,000,000 rows; with fewer rows they are shown but not checked.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
from job import REPOSITORY, Job, run_job
from verdict import MACHINE, check_bars, show

from visao_ray.core.lease import Owner
from visao_ray.datasets.registry import find_dataset
from visao_ray.store import schemas
from visao_ray.store.store import Description, Store, create_or_open
from visao_ray.store.table import TableVersion, write_fragments

ROWS = 1_000_000  # size for which the bars are
NEW = 1000
LABELS = ("nvazio", "vazio")
HEADINGS = 868
WIDTH = 1024
HEADS = 16
EPOCHS = 3
GB = 1e9

_A_FOLDER = 10_000
_SCAN_ROWS = 65_536
_SEED = 0

Measured = dict[str, Any]

_NETWORK = """
import sys, keras
pixels = keras.Input((32, 32, 3))
small = keras.layers.AveragePooling2D(8)(keras.layers.Rescaling(1 / 127.5, -1)(pixels))
first = keras.initializers.GlorotUniform(seed=0)
vectors = keras.layers.Conv2D(int(sys.argv[2]), 4, kernel_initializer=first)(small)
keras.Model(pixels, vectors, name="trivial").save(sys.argv[1])
"""

_READ = """
import json, sys, time
import numpy as np
from visao_ray.store.store import Store
from visao_ray.store.join import Snapshot, read_examples, scan_vectors
store = Store.open(sys.argv[1])
begun = time.perf_counter()
vectors = store.vectors(store.the_extractor(None)).latest()
examples = read_examples(Snapshot(store.uri, store.images.latest(), None, vectors))
joined = time.perf_counter() - begun
seen, sums = np.zeros(len(examples), bool), np.zeros(2)
for places, found, views in scan_vectors(vectors, examples.contents, ("avg", "max")):
    seen[places] = True
    sums += [values.sum(dtype=np.float64) for values in found.values()]
seconds = time.perf_counter() - begun
assert seen.all() and np.isfinite(sums).all()
labels = examples.labels.dictionary_decode().value_counts().to_pylist()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"rows": len(examples), "labels": {one["values"]: one["counts"] for one in labels},
                  "joined": joined, "seconds": seconds, "peak_mb": int(peak.split()[1]) / 1024}))
"""


@dataclass(frozen=True)
class Places:
    """Folders of the benchmark.

    Attributes:
        folder: contains all others.
        rows: number of images before the new ones.
    """

    folder: Path
    rows: int

    @property
    def data(self) -> Path:
        """The image files."""
        return self.folder / "data"

    @property
    def store(self) -> Path:
        """The store that extraction fills."""
        return self.folder / "store"

    @property
    def headings(self) -> Path:
        """The store with 868 labels."""
        return self.folder / "headings"

    @property
    def sample(self) -> int:
        """Number of images that a sweep searches on."""
        return max(self.rows // 5, 2)

    def out(self, step: str) -> Path:
        """Return an empty folder for a job's result."""
        out = self.folder / "out" / step
        shutil.rmtree(out, ignore_errors=True)
        return out


def bitmaps(first: int, count: int) -> npt.NDArray[np.uint8]:
    """Return bitmaps of 4x4 pixels, uint8[count, 102].

    The first 8 of the 48 bytes of pixels are the image's number. The second half of the pixels is a
    little brighter if the label is `vazio`, so that there is something to learn.
    """
    numbers = np.arange(first, first + count, dtype="<u8")
    rng = np.random.default_rng([_SEED, first])
    pixels = rng.integers(0, 256, (count, 48), np.uint8)
    bright = rng.normal(112 + 16 * (numbers % 2)[:, None], 48, (count, 24))
    pixels[:, 24:] = bright.clip(0, 255)
    pixels[:, :8] = numbers[:, None].view(np.uint8)
    header = b"BM" + np.array([102, 0, 54, 40, 4, 4], "<u4").tobytes()
    header += np.array([1, 24], "<u2").tobytes() + np.array([0, 48, 0, 0, 0, 0], "<u4").tobytes()
    return np.concatenate([np.tile(np.frombuffer(header, np.uint8), (count, 1)), pixels], axis=1)


def write_images(data: Path, first: int, count: int) -> None:
    """Write images with numbers from `first` on below nvazio/ and vazio/, 10,000 per folder."""
    for start in range(first, first + count, _A_FOLDER):
        size = min(_A_FOLDER, first + count - start)
        folders = [data / label / f"{start // (2 * _A_FOLDER):04d}" for label in LABELS]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(bitmaps(start, size), start):
            name = f"{folders[number % 2]}/{number:07d}.bmp"
            with open(name, "wb", buffering=0) as file:
                file.write(content)


def data_files(table: TableVersion) -> int:
    """Return the number of data files in a version of a table."""
    return sum(len(fragment.data_files()) for fragment in table.open().get_fragments())


def bytes_below(folder: Path) -> int:
    """Return the size of all files below a folder, each inode once."""
    found = {}
    for file in folder.rglob("*"):
        metadata = file.lstat()
        found[metadata.st_ino] = metadata.st_size if file.is_file() else 0
    return sum(found.values())


def measurements_of(job: Job) -> Measured:
    """Return what is saved of every job."""
    return {
        "seconds": job.seconds,
        "driver_mb": job.driver_mb,
        "total_mb": job.total_mb,
        "counts": job.result["counts"],
        "timings": job.result["timings"],
    }


def images(places: Places) -> Measured:
    """Write the files."""
    begun = time.perf_counter()
    write_images(places.data, 0, places.rows)
    return {"seconds": time.perf_counter() - begun}


def extract(places: Places) -> Measured:
    """Fill the store, at default settings."""
    network = places.folder / "trivial.keras"
    subprocess.run(
        [sys.executable, "-c", _NETWORK, str(network), str(WIDTH)], check=True, stdout=sys.stderr
    )
    found = extract_once(places, "extract")
    store = Store.open(str(places.store))
    versions = {name: table.latest() for name, table in store.tables().items()}
    return found | {
        "files": {name: data_files(at) for name, at in versions.items()},
        "rows": {name: at.count() for name, at in versions.items()},
        "bytes": bytes_below(places.store),
    }


def extract_once(places: Places, step: str) -> Measured:
    """Run jobs/extract.py on all files."""
    job = run_job(
        "extract",
        places.out(step),
        "--dataset=vazios",
        f"--data={places.data}",
        f"--store={places.store}",
        f"--weights={places.folder / 'trivial.keras'}",
    )
    return measurements_of(job) | {"stages": job.result["details"].get("stages", {}).get("extract")}


def read(places: Places) -> Measured:
    """Read labels and both vectors in one process."""
    run = subprocess.run(
        [sys.executable, "-c", _READ, str(places.store)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        check=True,
    )
    found: Measured = json.loads(run.stdout)
    return found


def again(places: Places) -> Measured:
    """Extract again: nothing is new."""
    found = extract_once(places, "again")
    if found["counts"]["new"]:
        raise RuntimeError(f"nothing is new, but {found['counts']}")
    return found


def sweep(places: Places) -> Measured:
    """Search 16 heads on a sample, and fit the best on all images."""
    return sweep_once(places, "sweep", places.store, f"--trials={HEADS}")


def sweep_once(places: Places, step: str, store: Path, *flags: str) -> Measured:
    """Run jobs/sweep.py with few epochs: the bar is on memory."""
    few = [f"--store={store}", f"--rows={places.sample}", f"--epochs={EPOCHS}"]
    return measurements_of(run_job("sweep", places.out(step), *few, *flags))


def evaluate(places: Places) -> Measured:
    """Evaluate the head of 2 classes."""
    return evaluate_once(places, "evaluate", places.store, "sweep")


def evaluate_once(places: Places, step: str, store: Path, sweep: str) -> Measured:
    """Run jobs/evaluate.py at default settings."""
    head = places.folder / "out" / sweep / "head.keras"
    job = run_job("evaluate", places.out(step), f"--store={store}", f"--model={head}")
    return measurements_of(job)


def headings(places: Places) -> Measured:
    """Make a second store with the same vectors and 868 labels, and a head for it."""
    write_headings(places)
    return sweep_once(places, "headings", places.headings, "--trials=1", "--finalists=0")


def write_headings(places: Places) -> None:
    """Fill the second store with links to the vectors: Lance never changes a data file."""
    first = Store.open(str(places.store))
    shutil.rmtree(places.headings, ignore_errors=True)
    vectors = Path("vectors", first.the_extractor(None))
    shutil.copytree(places.store / vectors, places.headings / vectors, copy_function=_link_or_copy)
    metadata = first.description
    description = Description(
        find_dataset("ncm").to_json(), metadata.seed, metadata.val_share, metadata.test_share
    )
    owner = Owner.here(job="benchmark", run="headings")
    rng = np.random.default_rng(_SEED)
    names = pa.array([f"{number:04d}" for number in range(101, 101 + HEADINGS)])
    place = schemas.IMAGES.get_field_index("label")
    with create_or_open(str(places.headings), description, owner) as writer:
        table = writer.store.images
        writer.ensure(table, schemas.IMAGES)
        fragments: list[str] = []
        for batch in first.images.latest().scan(schemas.IMAGES.names, None, _SCAN_ROWS):
            rows = pa.table(batch)
            labels = names.take(pa.array(rng.integers(0, HEADINGS, rows.num_rows)))
            rows = rows.set_column(place, "label", labels)
            fragments += write_fragments(table.uri, schemas.IMAGES, rows)
        writer.append(table, fragments)


def _link_or_copy(source: str, target: str) -> None:
    if Path(source).parent.name == "data":
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def evaluate_headings(places: Places) -> Measured:
    """Evaluate the head of 868 classes."""
    return evaluate_once(places, "evaluate_headings", places.headings, "headings")


def new(places: Places) -> Measured:
    """Extract 1,000 new images."""
    store = Store.open(str(places.store))
    write_images(places.data, max(places.rows, store.images.latest().count()), NEW)
    before = bytes_below(places.store)
    found = extract_once(places, "new")
    if found["counts"]["new"] != NEW:
        raise RuntimeError(f"{NEW} images are new, but {found['counts']}")
    return found | {"bytes": bytes_below(places.store) - before}


def rival(places: Places) -> Measured:
    """Write a Parquet folder, read it, and rewrite it with 1,000 more rows."""
    store = Store.open(str(places.store))
    at = store.vectors(store.the_extractor(None)).latest()
    columns = ["content_id", "avg", "max"]
    schema = pa.schema([at.schema.field(name).remove_metadata() for name in columns])
    old, rewritten = places.out("parquet"), places.out("rewritten")

    def write(batches: Iterator[pa.RecordBatch], folder: Path) -> None:
        options = pads.ParquetFileFormat().make_write_options(compression="none")
        pads.write_dataset(
            pads.Scanner.from_batches(batches, schema=schema),
            folder,
            format="parquet",
            file_options=options,
            max_rows_per_file=_SCAN_ROWS,
            max_rows_per_group=_SCAN_ROWS // 4,
        )

    write((pa.record_batch(batch.columns, schema=schema) for batch in at.scan(columns)), old)
    begun = time.perf_counter()
    rows = 0
    for batch in pads.dataset(old).scanner(batch_readahead=4, fragment_readahead=2).to_batches():
        np.asarray(batch["avg"].flatten()).sum(), np.asarray(batch["max"].flatten()).sum()
        rows += len(batch)
    scanned = time.perf_counter() - begun
    added = pads.dataset(old).head(NEW).to_batches()

    def together() -> Iterator[pa.RecordBatch]:
        yield from pads.dataset(old).scanner(batch_readahead=4, fragment_readahead=2).to_batches()
        yield from added

    begun = time.perf_counter()
    write(together(), rewritten)
    seconds = time.perf_counter() - begun
    found = {
        "rows": rows,
        "scanned": scanned,
        "seconds": seconds,
        "bytes": bytes_below(rewritten),
    }
    shutil.rmtree(old)
    shutil.rmtree(rewritten)
    return found


STEPS: dict[str, Callable[[Places], Measured]] = {
    "images": images,
    "extract": extract,
    "read": read,
    "again": again,
    "sweep": sweep,
    "evaluate": evaluate,
    "headings": headings,
    "evaluate_headings": evaluate_headings,
    "new": new,
    "rival": rival,
}
#: Steps that run a job.
JOBS = ("extract", "again", "sweep", "evaluate", "headings", "evaluate_headings", "new")


def measure(places: Places, skip: list[str]) -> dict[str, Measured]:
    """Run the missing steps, and return the measurements of all by step."""
    file = places.folder / "measured.json"
    measured: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if measured.setdefault("rows", places.rows) != places.rows:
        raise SystemExit(f"{file} is for {measured['rows']:,} rows: give another --folder")
    for name, step in STEPS.items():
        if name in skip or name in measured:
            continue
        measured[name] = step(places)
        file.write_text(json.dumps(measured, indent=2))
    del measured["rows"]
    return measured


def table(measured: dict[str, Measured]) -> list[tuple[str, str]]:
    """Return names and values of the measurements."""
    rows: list[tuple[str, str]] = []

    def add(step: str, what: str, value: Callable[[Measured], str]) -> None:
        if step in measured:
            rows.append((what, value(measured[step])))

    add("images", "files written, s", lambda it: f"{it['seconds']:.0f}")
    add("extract", "extract: images/s of the graph", _speed)
    add("extract", "extract: data files", lambda it: _counts(it["files"]))
    add("extract", "extract: store on disk, GB", _size)
    add("read", "read: labels joined, s", lambda it: f"{it['joined']:.1f}")
    add("read", "read: peak of the process, MB", lambda it: f"{it['peak_mb']:,.0f}")
    add("rival", "rival: vectors in Parquet read through, s", lambda it: f"{it['scanned']:.1f}")
    add("new", "new: 1,000 images, whole process, s", lambda it: f"{it['seconds']:.1f}")
    add("new", "new: the store grows by, MB", lambda it: f"{it['bytes'] / 1e6:,.1f}")
    add("rival", "rival: Parquet rewritten for 1,000 rows, s", lambda it: f"{it['seconds']:.1f}")
    add("rival", "rival: written for it, MB", lambda it: f"{it['bytes'] / 1e6:,.1f}")
    for name in JOBS:
        add(name, f"{name}: whole process, s", lambda it: f"{it['seconds']:.1f}")
        add(name, f"{name}: seconds by part", lambda it: _counts(it["timings"]))
        add(name, f"{name}: peak of the driver, MB", lambda it: f"{it['driver_mb']:,.0f}")
        add(name, f"{name}: peak of all processes, MB", lambda it: f"{it['total_mb']:,.0f}")
    return rows


def _speed(extracted: Measured) -> str:
    stages = extracted["stages"]
    parts = {name: 1000 * stages[name] / stages["ok"] for name in ("read", "decode", "extract")}
    costs = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    rate = extracted["counts"]["new"] / extracted["timings"]["extract"]
    return f"{rate:,.0f} (ms an image: {costs}, write {1000 * stages['write'] / stages['ok']:.2f})"


def _size(extracted: Measured) -> str:
    """Return the size of the store; files from before compaction stay until clean-up."""
    numbers = 8 * WIDTH * max(extracted["rows"].values())
    return f"{extracted['bytes'] / GB:.2f} (the numbers alone: {numbers / GB:.2f})"


def _counts(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.0f}" for name, value in values.items())


def bars(measured: dict[str, Measured], rows: int) -> list[tuple[str, bool | None]]:
    """Return the bars for 1,000,000 rows."""
    found: list[tuple[str, bool | None]] = []

    def at_most(name: str, value: float, most: float, unit: str) -> None:
        bar = f"{name}: {value:,.1f} {unit} (bar at {ROWS:,}: {most:g})"
        found.append((bar, value <= most if rows >= ROWS else None))

    if "extract" in measured:
        files = measured["extract"]["files"]
        vectors = max(count for name, count in files.items() if name.startswith("vectors/"))
        at_most("data files of the vectors", vectors, 64, "files")
    if "read" in measured:
        at_most("labels and vectors read through", measured["read"]["seconds"], 90, "s")
    for name, most in (("sweep", 8), ("evaluate", 4), ("evaluate_headings", 4)):
        if name in measured:
            at_most(f"{name}, all processes", measured[name]["total_mb"] / 1024, most, "GiB")
    for name in ("evaluate", "evaluate_headings"):
        if name in measured:
            at_most(f"{name}, whole process", measured[name]["seconds"] / 60, 10, "min")
    peaks = [measured[name]["driver_mb"] for name in JOBS if name in measured]
    if peaks:
        at_most("driver of any job", max(peaks), 600, "MB")
    if "new" in measured:
        beyond = measured["new"]["seconds"] - measured["new"]["timings"]["extract"]
        at_most(f"{NEW:,} new images, beyond the graph", beyond, 60, "s")
    if "read" in measured and "rival" in measured:
        ratio = measured["read"]["seconds"] / measured["rival"]["scanned"]
        holds = ratio <= 3 if rows >= ROWS else None
        found.append((f"joined and read / Parquet's vectors alone: {ratio:.1f} (bar: 3)", holds))
    return found


def main() -> int:
    """Measure, print the results, and check the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="images")
    parser.add_argument("--folder", type=Path, help="folder for all files, which stay there")
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=STEPS,
        help="leave out a step; may be given several times",
    )
    options = parser.parse_args()
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    with tempfile.TemporaryDirectory(prefix="visao_ray_benchmark_") as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        measured = measure(Places(folder.resolve(), options.rows), options.skip)
    print(f"\n{MACHINE}; {options.rows:,} images, vectors of 2 x {WIDTH:,}")
    show(table(measured))
    return check_bars(bars(measured, options.rows))


if __name__ == "__main__":
    sys.exit(main())
