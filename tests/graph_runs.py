"""Helpers that run the graph of images with a cheap engine in this process's Ray."""

import contextlib
import hashlib
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from odd_files import encoded
from plain_engine import CELLS, SIZE, Means

from visao_ray.core.resources import current_cluster, fit_actors
from visao_ray.core.run import Run
from visao_ray.core.storage import locate
from visao_ray.features.extract import open_source, read_new
from visao_ray.features.settings import ExtractSettings
from visao_ray.store import schemas
from visao_ray.store.store import Store
from visao_ray.store.table import TableVersion

EXTRACTOR = "means-00000000"


def write_images(folder: Path, count: int, first: int = 0, bright: int = 0) -> Path:
    """Write different images `vazio/NUMBER.png`; the last `bright` ones have greys above 200."""
    (folder / "vazio").mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        low, high = (201, 256) if number >= first + count - bright else (0, 200)
        pixels = rng.integers(low, high, (SIZE, SIZE), np.uint8)
        (folder / "vazio" / f"{number:05}.png").write_bytes(encoded(pixels, "PNG"))
    return folder


def run_plainly(
    data: Path | str, store: Path | str, engine: Means, unit: int = 4, workers: int = 1
) -> Run[Any]:
    """Read new files below a folder as the extract job does, but without the maintenance."""
    out = f"{store}-{uuid.uuid4().hex}"
    settings = ExtractSettings(dataset="vazios", data=str(data), store=str(store), out=out)
    run = Run(settings=settings, out=locate(out), id=uuid.uuid4().hex)
    source = open_source(settings)
    pool = fit_actors(workers, settings.worker(), current_cluster())
    with source.writing(run) as writer:
        writer.ensure(writer.store.images, schemas.IMAGES)
        vectors = writer.store.vectors(EXTRACTOR)
        read_new(run, writer, source, engine, vectors, pool, unit)
    return run


def versions(of: TableVersion) -> Iterator[tuple[float, TableVersion]]:
    """Yield the time and the version of a table, for every version."""
    for version in of.open().versions():
        yield version["timestamp"].timestamp(), TableVersion(of.uri, version["version"])


def check_store(store: Path | str, folder: Path) -> None:
    """Check that each file and content is there once, with the vectors of a plain loop."""
    from visao_ray.images.decode import decode

    found = Store.open(str(store))
    files = {str(file): file.read_bytes() for file in folder.rglob("*.png")}
    contents = {name: hashlib.sha256(data).digest() for name, data in files.items()}
    rows = found.images.latest().read(["key", "content_id", "status"]).to_pylist()
    assert sorted(row["key"] for row in rows) == sorted(files)
    assert {row["key"]: row["content_id"] for row in rows} == contents
    vectors = found.vectors(EXTRACTOR).latest().read(["content_id", "avg", "max"]).to_pylist()
    assert sorted(row["content_id"] for row in vectors) == sorted(set(contents.values()))
    made = {row["content_id"]: row for row in vectors}
    for name, data in files.items():
        expected = CELLS(decode(data, SIZE, "stretch")[None])
        for pool, values in expected.items():
            np.testing.assert_allclose(made[contents[name]][pool], values[0], rtol=1e-5)


def kill_worker(word: str, timeout: float = 90.0) -> int:
    """SIGKILL a worker of this Ray session while it runs a task with `word` in its name.

    Raises:
        TimeoutError: there was no such worker in `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        for process in _descendants():
            with contextlib.suppress(OSError):  # the process has ended
                title = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
                if title.startswith("ray::") and word in title:
                    os.kill(process, signal.SIGKILL)
                    return process
        time.sleep(0.002)
    raise TimeoutError(f"no worker ran {word} within {timeout:g} s")


def _descendants() -> list[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    ours = {os.getpid()}
    while True:
        more = {child for child, parent in parents.items() if parent in ours} - ours
        if not more:
            return sorted(ours - {os.getpid()})
        ours |= more
