"""Two drivers on one store: the second is refused, and takes over if the first is dead."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from cluster_runs import EXTRACT, committed, finish, same_features, source, wait_for

from visao_ray.core.storage import Location


class Drivers:
    """Drivers of the extract job into one store."""

    def __init__(self, site, images: Location, name: str) -> None:
        self._site, self._images = site, images
        self.place = site.place(f"cluster/{name}")
        self._store = self.place.join("store")

    def begin(self, out: Location) -> "Popen[str]":
        """Start another driver with its own folder."""
        where = (f"--store={self._store.uri}", f"--out={out.uri}")
        return self._site.nodes.begin("extract", *source(self._images), *where, *EXTRACT)

    def process(self, out: Location) -> int:
        """Return the process of the driver with that folder."""
        for process in self._site.nodes.nodes["head"].processes():
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
            if words[:2] == ["python", "jobs/extract.py"] and f"--out={out.uri}" in words:
                return process
        raise AssertionError(f"no driver of {out.uri}")

    def holder(self) -> str:
        """Return the id of the run that holds the store's lease."""
        lease = json.loads(self._store.join("lease").read_bytes())
        return str(lease["owner"]["run"])

    @contextmanager
    def first(self) -> "Iterator[tuple[Popen[str], int]]":
        """Start a driver, and hold its next commit until the end of the block."""
        out = self.place.join("first")
        run = self.begin(out)
        wait_for(lambda: committed(self.place) >= 256, run)
        pattern = f"{self._store.path}/vectors/.*/_transactions/"
        with self._site.faults.paused("PUT", pattern, times=1):
            self._site.faults.wait_until_held()
            yield run, self.process(out)


def test_the_second_is_refused_and_takes_over_from_a_dead_one(site, images, calm):
    drivers = Drivers(site, images, "two-drivers")
    with drivers.first() as (first, process):
        owner = drivers.holder()
        second = drivers.begin(drivers.place.join("second"))
        output, _ = second.communicate(timeout=200)
        assert second.returncode == 2, output
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert re.search(rf"pid \d+ \(job extract, run {owner}\) has held it since", line), line
        assert "expires in 30 s" in line
        assert "Traceback" not in output
        assert drivers.holder() == owner

        third = drivers.begin(drivers.place)
        time.sleep(4)  # it is starting; it asks for the lease later
        os.kill(process, signal.SIGKILL)
        assert third.stdout is not None
        assert any("waiting up to" in line for line in third.stdout)
        asked = time.monotonic()  # the start of a job takes as long as the machine is busy
        wait_for(lambda: drivers.holder() != owner, third)
        took = time.monotonic() - asked
    first.communicate()
    print(f"\ntaken over after {took:.0f} s")
    assert took <= 60
    finish(third)
    same_features(drivers.place, calm)


def test_a_suspended_driver_is_fenced(site, images, calm):
    drivers = Drivers(site, images, "suspended")
    with drivers.first() as (first, process):
        os.kill(process, signal.SIGSTOP)
        site.nodes.start("worker3", "--num-cpus=2")  # a suspended driver keeps its actors' CPUs
        site.nodes.wait()
        try:
            finish(drivers.begin(drivers.place))
        finally:
            os.kill(process, signal.SIGCONT)
        site.faults.release()  # its commit goes on
        output, _ = first.communicate(timeout=120)
    site.nodes.kill("worker3")
    assert first.returncode == 1, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert re.search("lease was (lost|not renewed)|another writer changed", line), line
    assert "Traceback" not in output
    same_features(drivers.place, calm)
