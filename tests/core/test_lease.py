"""Leases on a local disk and a real S3 server: one holder, whatever process or response is lost."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from s3_proxy import Faults, proxy
from s3_server import SECRET, free_ports

from visao_ray.core.errors import InputError
from visao_ray.core.lease import Lease, LeaseLost, Owner, require_conditional_puts
from visao_ray.core.storage import Location, locate

ME = Owner.here("extract", "run-1")
OTHER = Owner("elsewhere", 7, "sweep", "run-2")
TTL, BEAT = 1.5, 0.3
CONTENDERS = 16

#: Program that takes the lease and holds it until it is killed.
HOLDER = """
import sys, time
from visao_ray.core.lease import Lease, Owner
from visao_ray.core.storage import locate
uri, ttl, beat = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
with Lease(locate(uri), Owner.here("extract", "killed"), ttl=ttl, heartbeat=beat):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def bucket(s3, tmp_path) -> Location:
    return locate(f"{s3.uri}/{tmp_path.name}")


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path) -> Location:
    if request.param == "local":
        return locate(str(tmp_path / "store" / "lease"))
    return request.getfixturevalue("bucket").join("lease")


@pytest.fixture
def faults(s3, tmp_path, monkeypatch) -> Faults:
    (port,) = free_ports(1)
    with proxy(port, s3.port, tmp_path) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        yield found


def lease(place: Location, owner: Owner = ME, **options) -> Lease:
    return Lease(place, owner, **({"ttl": TTL, "heartbeat": BEAT} | options))


@contextlib.contextmanager
def holder(place: Location, ttl: float = TTL, beat: float = BEAT):
    """Another process that holds the lease."""
    command = [sys.executable, "-c", HOLDER, place.uri, str(ttl), str(beat)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


def test_one_after_the_other(place):
    for owner in (ME, OTHER):
        start = time.monotonic()
        with lease(place, owner) as held:
            held.check()
            assert held.predecessor is None
            content = json.loads(place.read_bytes())
            assert content["owner"]["run"] == owner.run
        assert time.monotonic() - start < TTL, "a released lease is free at once"


def test_a_living_holder_is_named(place):
    lines = []
    with holder(place) as process:
        time.sleep(2 * TTL)  # its heartbeats alone keep it
        with pytest.raises(InputError) as refused, lease(place, say=lines.append):
            pass
    message = str(refused.value)
    for part in (ME.host, f"pid {process.pid}", "job extract", "run killed", "UTC", place.uri):
        assert part in message
    assert re.search(r"expires (in )?[\d.]+ s", message)
    assert "wait for it, or stop it" in message
    assert "\n" not in message
    assert SECRET not in message + "".join(lines)
    if not place.is_local:
        assert lines == [
            f"waiting up to {TTL:g} s to see whether {ME.host} pid {process.pid} (job extract, "
            f"run killed), which holds {place.uri}, is still alive"
        ]


def test_the_lease_of_a_killed_holder_is_taken(place):
    with holder(place) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        start = time.monotonic()
        with lease(place) as held:
            took = time.monotonic() - start
            assert held.predecessor.pid == process.pid
            held.check()
    assert took < (0.5 if place.is_local else 2 * TTL)
    assert place.is_local or took >= TTL - BEAT


@pytest.mark.faults
def test_the_lease_of_a_killed_holder_is_taken_with_real_times(bucket):
    place = bucket.join("lease")
    with holder(place, 30.0, 5.0) as process:
        time.sleep(6)
        os.kill(process.pid, signal.SIGKILL)
        start = time.monotonic()
        with Lease(place, ME) as held:
            assert held.predecessor.pid == process.pid
            assert 25 < time.monotonic() - start <= 45


def test_the_second_lease_of_a_dead_process_is_taken_sooner(bucket):
    """After one lease of a process is found stale, its next lease needs a shorter wait."""
    with holder(bucket.join("run")) as process, holder(bucket.join("store")) as other:
        process.kill()
        other.kill()
        with lease(bucket.join("run")) as run:
            first = run.predecessor
        same = replace(first, pid=other.pid)  # one process held both
        start = time.monotonic()
        with lease(bucket.join("store"), dead=same) as store:
            took = time.monotonic() - start
            assert store.predecessor == same
    assert TTL / 3 - BEAT <= took < TTL


def test_a_living_process_keeps_its_second_lease(bucket):
    place = bucket.join("lease")
    with holder(place, 6.0) as process:
        dead = replace(OTHER, host=ME.host, pid=process.pid)
        with pytest.raises(InputError, match="is alive"), lease(place, dead=dead):
            pass


@pytest.mark.parametrize("stale", [False, True])
def test_one_of_many_contenders_wins(place, stale):
    if stale:
        with holder(place) as process:
            process.kill()
    held, refused = [], []
    everyone_tried = threading.Event()

    def contend(number: int) -> None:
        owner = Owner("host", number, "extract", f"run-{number}")
        try:
            with lease(place, owner) as won:
                held.append(number)
                assert everyone_tried.wait(60)
                won.check()
                assert (won.predecessor is not None) == stale
        except InputError as error:
            refused.append(str(error))
            if len(refused) == CONTENDERS - 1:
                everyone_tried.set()

    with ThreadPoolExecutor(CONTENDERS) as pool:
        list(pool.map(contend, range(CONTENDERS)))
    assert len(held) == 1
    assert len(refused) == CONTENDERS - 1
    assert all(f"host pid {held[0]} " in message for message in refused)


def test_waiting_for_a_living_holder(place):
    first = lease(place, OTHER)
    first.__enter__()
    end = threading.Timer(2 * TTL, first.__exit__, (None, None, None))
    end.start()
    with lease(place, wait=60) as held:
        assert end.finished.is_set()
        assert held.predecessor is None
    end.join()


def test_a_suspended_holder_learns_that_it_lost(bucket):
    place = bucket.join("lease")
    with lease(place, heartbeat=600) as suspended:  # no heartbeat comes
        suspended.check()
        with lease(place, OTHER, wait=60) as second:
            assert second.predecessor == ME
            with pytest.raises(LeaseLost, match=f"now held by {OTHER.host} pid"):
                suspended.check()
            suspended.__exit__(None, None, None)  # does not release the lease of the other
            time.sleep(2 * BEAT)
            second.check()
            assert json.loads(place.read_bytes())["owner"]["host"] == OTHER.host


def test_a_suspended_holder_keeps_a_lease_that_nobody_took(bucket):
    place = bucket.join("lease")
    with lease(place, heartbeat=600) as suspended:
        time.sleep(1.5 * TTL)
        before = json.loads(place.read_bytes())["beat"]
        suspended.check()
        assert json.loads(place.read_bytes())["beat"] == before + 1
        suspended.check()  # not again
        assert json.loads(place.read_bytes())["beat"] == before + 1


def test_a_heartbeat_that_finds_another_owner(bucket):
    place = bucket.join("lease")
    with lease(place) as held:
        content = json.loads(place.read_bytes())
        place.write_bytes(json.dumps(content | {"token": "another"}).encode())
        time.sleep(3 * BEAT)
        with pytest.raises(LeaseLost, match=f"now held by {ME.host} pid"):
            held.check()
    assert json.loads(place.read_bytes())["token"] == "another"


def test_a_file_that_is_removed(tmp_path):
    place = locate(str(tmp_path / "lease"))
    with lease(place) as held:
        place.delete()
        with pytest.raises(LeaseLost, match="removed"):
            held.check()


def test_an_outage(bucket, faults):
    lines: list[str] = []
    place = locate(bucket.uri).join("lease")
    with lease(place, outage=TTL, say=lines.append) as held:
        with faults.met(slow_down=1.0):
            time.sleep(TTL / 2)
            held.check()
        time.sleep(3 * BEAT)
        held.check()
        assert not lines
        with faults.met(reset=1.0):
            time.sleep(1.5 * TTL)
            with pytest.raises(LeaseLost, match="not renewed"):
                held.check()
    (line,) = lines
    assert f"waiting up to {TTL:g} s for the object store" in line
    assert SECRET not in line


def test_an_outage_longer_than_a_lease_lives(bucket, faults):
    with lease(locate(bucket.uri).join("lease")) as held, ThreadPoolExecutor(1) as pool:
        with faults.met(reset=1.0):
            time.sleep(1.5 * TTL)
            check = pool.submit(held.check)
            time.sleep(TTL)
            assert not check.done()
        check.result(timeout=30)


@pytest.mark.parametrize("times", [1, 3])
def test_lost_responses(bucket, faults, times):
    place = locate(bucket.uri).join("lease")
    faults.lose_responses("PUT", "lease", times)  # of the one that takes it
    with lease(place, ttl=2 * TTL) as held:
        assert held.predecessor is None
        faults.lose_responses("PUT", "lease", times)
        time.sleep(3 * TTL)
        held.check()
        faults.lose_responses("PUT", "lease")  # of the one that releases it
    assert faults.count()["lost_response"] == 2 * times + 1
    assert json.loads(place.read_bytes())["released"]


def test_a_release_after_a_lost_response(bucket, faults):
    """The lease is released although the server's object is not the one the holder saw last."""
    place = locate(bucket.uri).join("lease")
    with lease(place, heartbeat=2 * BEAT):
        faults.lose_responses("PUT", "lease", 2)  # of a heartbeat, and of the release
        while not faults.count():
            time.sleep(0.01)
    assert json.loads(place.read_bytes())["released"]
    start = time.monotonic()
    with lease(place, OTHER):
        assert time.monotonic() - start < TTL / 2


def test_an_object_that_is_not_a_lease(bucket):
    place = bucket.join("lease")
    place.write_bytes(b"something else")
    with pytest.raises(InputError, match="is not a lease"), lease(place):
        pass


def test_no_bucket_and_no_permission(s3, monkeypatch):
    nowhere = locate("s3://no-such-bucket/store")
    with pytest.raises(InputError, match="no such bucket"), lease(nowhere.join("lease")):
        pass
    with pytest.raises(InputError, match="cannot be written to"):
        require_conditional_puts(nowhere)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET}-wrong")
    with pytest.raises(InputError, match="no lease") as refused, lease(locate(f"{s3.uri}/lease")):
        pass
    assert SECRET not in str(refused.value)


def test_conditional_puts_are_required(bucket, faults, tmp_path):
    require_conditional_puts(locate(str(tmp_path)))
    place = locate(bucket.uri)
    require_conditional_puts(place)
    with faults.met(reset=0.2):
        for _ in range(5):
            require_conditional_puts(place)
    faults.lose_responses("PUT", "probe-", 3)
    require_conditional_puts(place)
    with faults.ignored_conditions(), pytest.raises(InputError) as refused:
        require_conditional_puts(place)
    message = str(refused.value)
    assert "ignores If-None-Match and If-Match" in message
    assert f"http://127.0.0.1:{faults.port}" in message
    assert SECRET not in message
    assert "\n" not in message
    left = [Path(path).name for path in place.walk()]
    assert len(left) <= 5  # a probe is left behind only where its removal met a reset
