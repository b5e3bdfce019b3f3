"""Twenty kills at random moments: the store ends as without them.

KILLS_SEED=7 pytest -m faults tests/cluster/test_kills.py      repeats the moments of an earlier run
"""

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cluster_runs import EXTRACT, committed, extracted, features, finish, processes, result, source
from numpy_engine import CELLS, PACED

from visao_ray.core.storage import Location
from visao_ray.inference.committing import COMMIT_S
from visao_ray.inference.graph import _FRAGMENT_ROWS
from visao_ray.store.store import Store

if TYPE_CHECKING:
    from conftest import Site

IMAGES = 3072
UNIT = 16  # images a block, as in EXTRACT
ACTORS = 2

#: Images that may be computed and not written: a fragment that is being collected, the fragments of
#: the writers (two per actor), and a block in each actor.
IN_PROGRESS = (2 * ACTORS + 1) * _FRAGMENT_ROWS["CPU"] + ACTORS * UNIT
#: Most seconds from one commit to the next: a commit that is due waits for the next fragment.
INTERVAL_S = COMMIT_S + 5

#: Where the driver is killed: between the write of a fragment and its commit, or inside a commit,
#: which is held at one of these requests and then dropped or forwarded.
COMMITS = ("vectors/.*/_transactions/", "vectors/.*/_versions/", "images.*/_versions/")
DRIVER = ("between", "between", *COMMITS)
#: Other processes that are killed: at any moment, or between a fragment's write and its commit.
OTHERS = (
    *[("actor", "any")] * 5,
    *[("actor", "between")] * 3,
    *[("raylet", "any")] * 4,
    *[("raylet", "between")] * 3,
)


@pytest.fixture(scope="module")
def images(site) -> Location:
    """3,072 different small scans: 64 renders, each darkened 48 ways."""
    from visao_ray.synthetic.recipe import SyntheticRecipe, plan
    from visao_ray.synthetic.scan import encode, render

    place = site.place("kills/images")
    files = {}
    for planned in plan(SyntheticRecipe(dataset="vazios", images=64, seed=5)):
        scan = render("vazios", planned.true_label, planned.index, 5, planned.difficulty)[::4, ::4]
        for step in range(IMAGES // 64):
            darker = (scan * (1 - step / 96)).astype(np.uint8)
            files[f"{planned.label}/{planned.index:04d}-{step:02d}.jpg"] = encode(darker, 80)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: place.join(name).write_bytes(files[name]), files))
    return place


class Computed:
    """The number of images that all actors have computed, recorded every second."""

    def __init__(self, nodes) -> None:
        self._nodes = nodes
        self._seen = [(time.monotonic(), extracted(nodes)[0])]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            self._seen.append((time.monotonic(), extracted(self._nodes)[0]))

    def now(self) -> int:
        """Return the number of images so far."""
        return extracted(self._nodes)[0]

    def before(self, seconds: float) -> int:
        """Return the number of images some seconds ago, or a little earlier."""
        moment = time.monotonic() - seconds
        return max((count for when, count in self._seen if when <= moment), default=0)


@dataclass
class KilledJobs:
    """A store that is filled by jobs that are killed, one after the other.

    Attributes:
        site: the cluster and the object store.
        place: folder of the store.
        images: the images to extract.
        rng: draws the moments of kills.
        computed: images that all actors have computed.
        runs: number of jobs that were started.
        at_risk: for each kill, images that were computed and not committed.
        between: number of kills between the write of a fragment and its commit.
        inside: number of kills inside a commit.
    """

    site: "Site"
    place: Location
    images: Location
    rng: random.Random
    computed: Computed
    runs: int = 0
    at_risk: list[int] = field(default_factory=list)
    between: int = 0
    inside: int = 0

    def begin(self) -> None:
        """Start the same command again, as a new run."""
        self.runs += 1
        # What is not committed by now is lost already.
        self.lost = self.computed.now() - committed(self.place)
        self.old = self.written()
        store, out = self.place.join("store").uri, self.place.join("runs", str(self.runs)).uri
        where = (f"--store={store}", f"--out={out}")
        self.run = self.site.nodes.begin("extract", *source(self.images), *where, *EXTRACT)

    def written(self) -> set[str]:
        """Return the names of the files of vectors that any task wrote."""
        paths = self.site.faults.paths("PUT", self.place.join("store", "vectors").path)
        return {path.rpartition("/")[2] for path in paths if "/data/" in path}

    def uncommitted(self) -> int:
        """Return the number of files of vectors of this job that are in no version."""
        written = self.written() - self.old
        if not written:
            return 0
        store = Store.open(self.place.join("store").uri)
        table = store.vectors(store.the_extractor(None)).latest().open()
        named = {file.path for one in table.get_fragments() for file in one.data_files()}
        return len(written - named)

    def wait(self, what: Callable[[], object], name: str) -> None:
        """Wait for a condition while the job runs."""
        end = time.monotonic() + 240
        while not what():
            if self.run.poll() is not None:
                pytest.fail(f"ended before {name}: {self.run.communicate()[0]}")
            assert time.monotonic() < end, f"no {name}"
            time.sleep(0.05)

    def kill_other(self, kind: str, when: str) -> None:
        """Kill an actor or a raylet while there are actors."""
        if when == "any":
            self.wait(self.actors, "actors")
            time.sleep(self.rng.uniform(0, 4))
        else:
            self.wait(self.uncommitted, "files that are not committed")
        name = self.rng.choice(["worker1", "worker2"])
        if kind == "raylet":  # the one that the last kill stopped may still be starting
            self.wait(lambda: self.raylets(name), f"raylet of {name}")
        self.wait(self.actors, "actors")
        with self.counted(f"{kind}, {when}"):
            if kind == "actor":
                os.kill(self.rng.choice(self.actors()), signal.SIGKILL)
                return
            (raylet,) = self.raylets(name)
            os.kill(raylet, signal.SIGKILL)
        self.site.nodes.kill(name)  # what is left of it
        self.site.nodes.start(name, "--num-cpus=1")

    def kill_driver(self, where: str) -> None:
        """Kill the driver between the write of a fragment and its commit, or inside a commit."""
        self.wait(lambda: self.written() - self.old, "files")
        if where == "between":
            self.wait(self.uncommitted, "files that are not committed")
            with self.counted(f"driver, {where}"):
                self.kill_the_driver()
        else:
            with self.site.faults.paused("PUT", f"{self.place.path}/store/{where}", 1):
                self.site.faults.wait_until_held(120)
                held = self.rng.uniform(0, 2)
                time.sleep(held)
                with self.counted(f"driver, {where}", held):
                    self.kill_the_driver()
                self.site.faults.release(drop=self.rng.random() < 0.5)
            self.inside += 1
        self.run.kill()
        self.run.communicate()
        end = time.monotonic() + 60
        while self.actors():
            assert time.monotonic() < end, "its actors are still alive"
            time.sleep(0.1)
        assert committed(self.place) < IMAGES, "finished before it was killed"

    @contextmanager
    def counted(self, name: str, held: float = 0.0) -> Iterator[None]:
        """Count the images at risk by a kill: computed and not committed."""
        uncommitted, safe = self.uncommitted(), committed(self.place)
        began = time.monotonic()
        yield
        risk = self.computed.now() - safe - self.lost
        last = self.computed.before(time.monotonic() - began + INTERVAL_S + held)
        allowed = self.computed.now() - last + IN_PROGRESS
        print(f"{name}: {safe} are safe, {risk} at risk where {allowed} may be")
        assert 0 <= risk <= allowed
        self.at_risk.append(risk)
        self.between += bool(uncommitted and "driver" not in name) or name == "driver, between"

    def kill_the_driver(self) -> None:
        """Send SIGKILL to the driver only."""
        out = f"--out={self.place.join('runs', str(self.runs)).uri}"
        (driver,) = self.programs(
            "head", lambda words: words[:2] == ["python", "jobs/extract.py"] and out in words
        )
        os.kill(driver, signal.SIGKILL)

    def actors(self) -> list[int]:
        """Return the processes that hold an engine."""
        nodes = list(self.site.nodes.nodes.values())
        return [one for node in nodes for one in processes(node.processes(), "ModelActor")]

    def raylets(self, node: str) -> list[int]:
        """Return the raylet of a node, if it runs."""
        return self.programs(node, lambda words: words[0].endswith("/raylet"))

    def programs(self, node: str, is_meant) -> list[int]:
        """Return the processes of a node whose command line matches."""
        found = []
        for process in self.site.nodes.nodes[node].processes():
            try:
                words = Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
            except OSError:  # it has ended
                continue
            if is_meant(words):
                found.append(process)
        return found


@pytest.fixture(scope="module")
def undisturbed(site, images) -> Location:
    """An extraction without kills, by the engine that computes the same without pauses."""
    out = site.place("kills/undisturbed")
    flags = (*CELLS, *EXTRACT[len(PACED) :])
    run = site.nodes.submit("extract", *source(images), f"--out={out.uri}", *flags)
    assert run.returncode == 0, run.stdout
    assert result(out)["counts"]["computed"] == IMAGES
    return out


@pytest.mark.timeout(1500)
def test_twenty_kills_leave_no_trace(site, images, undisturbed):
    seed = int(os.environ["KILLS_SEED"])  # the first lines of the output have it
    rng = random.Random(seed)
    drivers, others = rng.sample(DRIVER, len(DRIVER)), rng.sample(OTHERS, len(OTHERS))
    assert len(drivers) + len(others) == 20
    with Computed(site.nodes) as computed:
        before = computed.now()
        killed = KilledJobs(site, site.place(f"kills/{seed}"), images, rng, computed)
        while drivers or others:
            killed.begin()
            for kill in [others.pop() for _ in range(len(others) // (len(drivers) + 1))]:
                killed.kill_other(*kill)
            if drivers:
                killed.kill_driver(drivers.pop())
        output = finish(killed.run)
        again = computed.now() - before - IMAGES
    print(output)
    print(
        f"{again} images computed again, {sum(killed.at_risk)} were at risk; {killed.between} "
        f"kills between a fragment's write and its commit, {killed.inside} inside a commit"
    )
    assert killed.between >= 5
    assert killed.inside >= 3

    found, expected = features(killed.place), features(undisturbed)
    for name in ("key", "label", "split"):
        assert (found[name] == expected[name]).all()
    assert np.abs(found["vectors"] - expected["vectors"]).max() <= 1e-5
    counts = result(killed.place.join("runs", str(killed.runs)))["counts"]
    assert counts["listed"] == counts["new"] + counts["known"] == IMAGES
    assert counts["store"] == result(undisturbed)["counts"]["store"]
    assert 0 <= again <= sum(killed.at_risk)
    assert not orphans(killed.place.join("store"))


def orphans(place: Location) -> list[str]:
    """Return the files of tables that are in no version."""
    found = []
    for name, table in Store.open(place.uri).tables().items():
        named = set()
        for version in table.latest().open().versions():
            for fragment in table.at(version["version"]).open().get_fragments():
                named |= {f"data/{file.path}" for file in fragment.data_files()}
        for file in table.location.files():
            path = file.path[len(table.location.path) + 1 :]
            if re.match("data/", path) and path not in named:
                found.append(f"{name}/{path}")
    return found
