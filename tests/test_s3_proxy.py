"""The proxy in front of a real S3 server: counts, lost responses, held requests."""

import subprocess
import sys
import threading

import obstore
import pytest
from s3_proxy import Faults, proxy
from s3_server import free_ports

from visao_ray.core.object_store import open_bucket
from visao_ray.core.storage import Location, locate

WRITER = """
import sys
from visao_ray.core.storage import locate
locate(sys.argv[1]).write_bytes(b"new")
"""


@pytest.fixture
def faults(s3, tmp_path, monkeypatch) -> Faults:
    (port,) = free_ports(1)
    with proxy(port, s3.port, tmp_path) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        yield found


@pytest.fixture
def place(s3, faults, tmp_path) -> Location:
    return locate(f"{s3.uri}/{tmp_path.name}")


def test_counts(place, faults):
    for name in ("a é/1", "a é/2", "b/3"):
        place.join(name).write_bytes(b"x")
    for name in ("a é/1", "a é/1", "a é/2", "b/3"):
        place.join(name).read_bytes()
    one, two = (place.join(f"a é/{number}").path for number in (1, 2))
    assert faults.paths("GET", place.join("a é").path) == {one: 2, two: 1}
    assert faults.requests("GET", place.join("a é").path) == 3
    assert faults.requests("PUT", place.path) == 3
    faults.reset()
    assert faults.requests("GET", "") == 0


def test_a_lost_response(place, faults):
    store, key = open_bucket(place.join("object"), retries=0)
    faults.lose_responses("PUT", "/object$", 2)
    for _ in range(2):
        with pytest.raises(obstore.exceptions.GenericError):
            obstore.put(store, key, b"x")
    assert bytes(obstore.get(store, key).bytes()) == b"x"
    obstore.put(store, key, b"y")
    assert faults.count() == {"lost_response": 2}


@pytest.mark.parametrize("drop", [False, True])
def test_a_held_request(place, faults, drop):
    file = place.join("held")
    file.write_bytes(b"old")
    place.join("other").write_bytes(b"old")
    with faults.paused("PUT", "/held$"):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, file.uri])
        assert faults.wait_until_held() == [file.path]
        place.join("other").write_bytes(b"new")
        assert place.join("other").read_bytes() == b"new"
        assert file.read_bytes() == b"old"
        writer.kill()
        writer.wait()
        faults.release(drop)
        for _ in range(100):
            if file.read_bytes() == b"new":
                break
    assert file.read_bytes() == (b"old" if drop else b"new")


def test_a_held_request_goes_on(place, faults):
    file = place.join("held")
    with faults.paused("PUT", "/held$", times=1):
        writer = threading.Thread(target=file.write_bytes, args=(b"1",))
        writer.start()
        faults.wait_until_held()
        file.write_bytes(b"2")  # a second one is not held
        assert file.read_bytes() == b"2"
        faults.release()
        writer.join(30)
    assert file.read_bytes() == b"1"
    with faults.paused("PUT", "/held$"), pytest.raises(TimeoutError):
        faults.wait_until_held(0.1)
