"""A growing store on S3: no file is fetched, computed or assigned to a split twice."""

import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from job_runs import run_job
from numpy_engine import CELLS
from odd_files import encoded
from s3_proxy import Faults, proxy
from s3_server import S3, free_ports

from visao_ray.core.storage import Location, locate
from visao_ray.store import schemas
from visao_ray.store.join import Snapshot, read_examples
from visao_ray.store.store import Store

_numbers = itertools.count()


def picture(number: int) -> bytes:
    """Return a small PNG, different for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16), np.uint8)
    return encoded(pixels, "PNG")


@dataclass
class Scans:
    """A growing bucket of scans.

    Attributes:
        place: location of the scans.
        files: number of the picture of each file.
    """

    place: Location
    files: dict[str, int] = field(default_factory=dict)

    def put(self, files: dict[str, int]) -> None:
        """Write new files, or replace existing ones."""

        def put(name: str) -> None:
            self.place.join(name).write_bytes(picture(files[name]))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, files))
        self.files |= files


@dataclass(frozen=True)
class Bucket:
    """A store and its scans on an S3 server whose requests are counted."""

    scans: Scans
    store: str
    faults: Faults

    def extract(self, *flags: str) -> tuple[dict, dict[str, int]]:
        """Run the extract job; return its result and the number of reads of each scan."""
        self.faults.reset()
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.faults.port}"}
        out = f"{self.store}-runs/{next(_numbers)}"
        where = ["--data", self.scans.place.uri, "--store", self.store, "--out", out]
        run = run_job("extract", *where, *flags, *CELLS, timeout=400, environment=endpoint)
        assert run.returncode == 0, run.stdout + run.stderr
        print(run.stdout)
        start = len(self.scans.place.path) + 1
        fetched = self.faults.paths("GET", self.scans.place.path + "/")
        result = json.loads(locate(out).join("result.json").read_bytes())
        return result, {path[start:]: count for path, count in fetched.items()}

    def sweep(self, *flags: str) -> tuple[dict, list[dict]]:
        """Run a sweep on the store; return its result and the rows of its table of trials."""
        out = f"{self.store}-runs/{next(_numbers)}"
        few = ["--trials", "2", "--epochs", "2", "--finalists", "0"]
        run = run_job("sweep", "--store", self.store, "--out", out, *few, *flags, timeout=400)
        assert run.returncode == 0, run.stdout + run.stderr
        place = locate(out)
        trials = pq.read_table(place.join("trials").path, filesystem=place.filesystem)
        other = [name for name in trials.column_names if "seconds" in name or name == "trial_id"]
        rows = trials.drop_columns(other).sort_by("number").to_pylist()
        return json.loads(place.join("result.json").read_bytes()), rows

    def learned(self, sweep: dict) -> dict[str, str]:
        """Return the labels that a sweep read, by the name of the scan."""
        images = Store.open(self.store).images.at(sweep["inputs"]["versions"]["images"])
        examples = read_examples(Snapshot(self.store, images, None))
        names = [key.removeprefix(self.scans.place.uri + "/") for key in examples.keys.to_pylist()]
        return dict(zip(names, examples.labels.to_pylist(), strict=True))

    def images(self) -> dict[str, dict]:
        """Return the rows of `images` by the name of the scan."""
        rows = Store.open(self.store).images.latest().read(schemas.IMAGES.names).to_pylist()
        return {row["key"].removeprefix(self.scans.place.uri + "/"): row for row in rows}


@pytest.fixture
def bucket(s3: S3, tmp_path: Path) -> Iterator[Bucket]:
    (port,) = free_ports(1)
    place = locate(f"{s3.uri}/growth-{os.getpid()}-{next(_numbers)}")
    with proxy(port, s3.port, tmp_path) as faults:
        yield Bucket(Scans(place.join("scans")), place.join("store").uri, faults)


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_growth(bucket: Bucket) -> None:
    old, new, copies, replaced, relabelled = 2000, 150, 50, 10, 20
    scans = bucket.scans
    scans.put({f"{('vazio', 'nvazio')[n % 2]}/C{n:06d}.png": n for n in range(old)})
    names = list(scans.files)
    result, fetched = bucket.extract("--dataset", "vazios")
    assert fetched == dict.fromkeys(names, 1)
    assert result["counts"]["ok"] == result["counts"]["computed"] == old
    before = bucket.images()
    searched, table = bucket.sweep()

    scans.put({f"vazio/D{n:06d}.png": 100_000 + n for n in range(new)})
    scans.put({f"nvazio/copy-{n:06d}.png": scans.files[names[n]] for n in range(copies)})
    scans.put({names[-1 - n]: 200_000 + n for n in range(replaced)})
    labels = locate(f"{bucket.store}-labels.csv")
    other = {"vazio": "nvazio", "nvazio": "vazio"}
    wrong = {name: other[name.split("/")[0]] for name in names[100 : 100 + relabelled]}
    lines = ["key,label", *(f"{name},{label}" for name, label in wrong.items())]
    labels.write_bytes("\n".join(lines).encode())
    result, fetched = bucket.extract("--labels", labels.uri)

    arrived = new + copies + replaced
    assert fetched == dict.fromkeys([*list(scans.files)[old:], *names[old - replaced :]], 1)
    assert len(fetched) == arrived
    counts = result["counts"]
    assert counts["listed"] == old + new + copies == counts["new"] + counts["known"]
    assert counts["new"] == counts["read"] == arrived == counts["ok"] + counts["errors"]
    assert (counts["errors"], counts["vanished"]) == (0, 0)
    assert (counts["added"], counts["changed"]) == (new + copies, replaced)
    assert counts["computed"] == new + replaced
    assert counts["relabelled"] == relabelled
    after = bucket.images()
    assert set(after) == set(scans.files)
    for name, row in before.items():
        now = after[name]
        assert now["split"] == row["split"], name
        assert now["label"] == wrong.get(name, row["label"])
        assert (now["content_id"] != row["content_id"]) == (name in names[old - replaced :])
    for n in range(copies):  # a copy is in the split of its original
        copy, original = after[f"nvazio/copy-{n:06d}.png"], after[names[n]]
        assert (copy["content_id"], copy["split"]) == (original["content_id"], original["split"])
    store = Store.open(bucket.store)
    vectors = store.vectors(store.the_extractor(None)).latest()
    assert vectors.count() == old + new + replaced

    again, trials = bucket.sweep("--as-of", searched["run"])
    assert trials == table
    assert bucket.learned(again) == bucket.learned(searched)
    assert bucket.learned(searched).keys() == set(names)
    now, _ = bucket.sweep()
    assert {name: bucket.learned(now)[name] for name in wrong} == wrong
    assert not set(wrong.items()) & bucket.learned(searched).items()
    print(f"{relabelled} labels are new in the next sweep, {len(trials)} trials are the same")

    result, fetched = bucket.extract()
    assert not fetched
    assert (result["counts"]["known"], result["counts"]["new"]) == (old + new + copies, 0)
    assert result["counts"]["computed"] == 0
    print(f"nothing new: {result['timings']}")
    assert bucket.images() == after
